#!/usr/bin/env bash
# Builds the programs, and lays out what goes into packages and image: programs, manual pages, completions of
# shells, licences of what is linked, configurations, units.
#
#   BERTH_BUILT   1: the programs and tests/examples/manual.rs are built already
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

# The same bytes wherever it is built: no folder of this machine is in them.
reproducibly() {
    local cargo=${CARGO_HOME:-$HOME/.cargo} flags=()
    # The last that fits counts: the folder of what is built may be within that of the sources, or elsewhere.
    flags+=("--remap-path-prefix=$cargo=/cargo" "--remap-path-prefix=$ROOT=/berth")
    flags+=("--remap-path-prefix=$TARGET=/target")
    CARGO_ENCODED_RUSTFLAGS=$(
        IFS=$'\x1f'
        printf %s "${flags[*]}"
    )
    BERTH_BUILD_HASH=$(git rev-parse --short=8 HEAD 2>/dev/null || true)
    export CARGO_ENCODED_RUSTFLAGS BERTH_BUILD_HASH
}

# The generator of manual pages comes after the programs: what it is made of with must change nothing about them.
build() {
    if [ "$PROFILE" = release ]; then
        reproducibly
        cargo build --locked --release -p berth-agent -p berth-controlplane &&
            cargo build --locked --release -p berth-tests --example manual
    else
        # As tests build everything, without a time that C compilers would take in, so that nothing is compiled anew.
        env --unset=SOURCE_DATE_EPOCH cargo test --locked --workspace --no-run
    fi
}

programs() {
    local program
    for program in berth-agent berth-controlplane berth; do
        install -D -m 755 "$PROGRAMS/$program" "$STAGE/bin/$program"
        # What debuggers need is no part of a package; the release profile leaves it out itself.
        strip --strip-unneeded "$STAGE/bin/$program"
    done
}

manual() {
    local program page
    "$PROGRAMS/examples/manual" "$STAGE/work/manual"
    for program in berth-agent berth-controlplane berth; do
        for page in "$STAGE/work/manual/$program".[158] "$STAGE/work/manual/$program"[-.]*.[158]; do
            case $program:$page in berth:*/berth-agent* | berth:*/berth-controlplane*) continue ;; esac
            [ ! -e "$page" ] || install -D -m 644 "$page" "$STAGE/man/$program/$(basename "$page")"
        done
        install -D -m 644 "$STAGE/work/manual/$program.bash" "$STAGE/completions/bash/$program"
        install -D -m 644 "$STAGE/work/manual/_$program" "$STAGE/completions/zsh/_$program"
        install -D -m 644 "$STAGE/work/manual/$program.fish" "$STAGE/completions/fish/$program.fish"
    done
}

licences() {
    local target program crate
    target=$(rustc -vV | sed -n 's/^host: //p')
    for program in berth-agent berth-controlplane berth; do
        crate=$program
        [ "$program" != berth ] || crate=berth-controlplane
        mkdir -p "$STAGE/licences/$program"
        packaging/licences.py "$crate" "$target" >"$STAGE/licences/$program/THIRD-PARTY-LICENCES"
    done
}

rm -rf "$STAGE"
mkdir -p "$STAGE/work"
[ "${BERTH_BUILT:-}" = 1 ] || step "building the programs ($PROFILE)" build || die "the build failed: the compiler's reasons are above"
programs
step "manual pages and completions" manual
step "licences" licences
install -D -m 644 -t "$STAGE/etc" packaging/etc/*
install -D -m 644 -t "$STAGE/systemd" packaging/systemd/*.service packaging/systemd/*.slice
install -D -m 644 -t "$STAGE/systemd/logind.conf.d" packaging/systemd/logind.conf.d/*
install -D -m 644 -t "$STAGE/systemd/ecstasks-.slice.d" packaging/systemd/ecstasks-.slice.d/*
install -D -m 644 -t "$STAGE/sysusers" packaging/sysusers/*
install -D -m 644 -t "$STAGE/tmpfiles" packaging/tmpfiles/*
install -m 644 LICENSE "$STAGE/LICENSE"
rm -rf "$STAGE/work"
