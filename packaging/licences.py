#!/usr/bin/env python3
"""Prints the licences of all that is linked into a program, each text once with the crates it is of.

    licences.py PACKAGE TARGET

Knows what cargo knows: the crates that PACKAGE depends on when it is built for TARGET, without those that only
build or test it, and the files with licences in their sources. A crate without such a file must offer Apache-2.0,
whose text is there anyway, or MIT, which is then written out for its authors. Nothing but this is accepted.
"""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("licen", "copying", "copyright", "notice", "unlicense")
MIT = """Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""
RULE = "=" * 80


def linked(metadata, name):
    """The packages whose code is in that program, but for our own."""
    packages = {package["id"]: package for package in metadata["packages"]}
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    todo = [id for id, package in packages.items() if package["name"] == name]
    seen = set()
    while todo:
        id = todo.pop()
        kinds = {kind for target in packages[id]["targets"] for kind in target["kind"]}
        if id in seen or "proc-macro" in kinds:
            continue
        seen.add(id)
        for below in nodes[id]["deps"]:
            if any(kind["kind"] is None for kind in below["dep_kinds"]):
                todo.append(below["pkg"])
    found = [packages[id] for id in seen if packages[id]["source"]]
    return sorted(found, key=lambda package: (package["name"], package["version"]))


def texts(package):
    """The texts of its licences."""
    folder = Path(package["manifest_path"]).parent
    files = sorted(f for f in folder.iterdir() if f.is_file() and f.name.lower().startswith(NAMES))
    if files:
        return ["\n".join(line.rstrip() for line in f.read_text(errors="replace").strip().splitlines()) for f in files]
    licence = package["license"] or ""
    if "Apache-2.0" in licence:
        return [(ROOT / "LICENSE").read_text().strip()]
    if licence == "MIT":
        return [f"Copyright (c) {', '.join(package['authors']) or 'the authors of ' + package['name']}\n\n{MIT}"]
    sys.exit(f"berth: {package['name']} {package['version']} ({licence or 'no licence'}) has no text of its licence")


def main():
    name, target = sys.argv[1:]
    command = ["cargo", "metadata", "--format-version=1", "--locked", "--filter-platform", target]
    metadata = json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)
    packages = linked(metadata, name)
    print("Libraries in this program, and the terms on which their authors allow it.\n")
    by_text = {}
    for package in packages:
        what = f"{package['name']} {package['version']}"
        print(f"{what}  {package['license'] or ''}  {package['repository'] or ''}".rstrip())
        for text in texts(package):
            by_text.setdefault(text, []).append(what)
    library = "The standard library of Rust"
    print(f"{library}  MIT OR Apache-2.0  https://github.com/rust-lang/rust")
    by_text.setdefault((ROOT / "LICENSE").read_text().strip(), []).append(library)
    for text, crates in sorted(by_text.items(), key=lambda item: item[1]):
        print(f"\n{RULE}\n{', '.join(crates)}\n{RULE}\n\n{text}")


main()
