#!/usr/bin/env bash
# Checks the packages, and installs, upgrades and removes them on a host with systemd. Not optimised unless
# BERTH_PROFILE=release. Ends with "N passed, N failed".
#
#   BERTH_HOSTS   the program that makes hosts; it knows the commands deps, up N --systemd, exec HOST COMMAND,
#                 root HOST (where its files are) and down
# shellcheck disable=SC2317 # functions are called by name, through step and traps
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

readonly SCRIPTS=$ROOT/tests/scripts
readonly HOSTS=${BERTH_HOSTS:-}
readonly LOG=$RUN_DIR/packages.log
export BERTH_PROFILE=${BERTH_PROFILE:-dev}
export RIG_PACKAGES=$HOST_PACKAGES

is_up=no
work=

finish() {
    local code=$?
    trap - EXIT
    trap '' INT TERM
    if [ "$is_up" = yes ]; then "$HOSTS" down >/dev/null || true; fi
    [ -z "$work" ] || rm -rf "$work"
    exit "$code"
}

# Two revisions of the same programs.
make_packages() {
    packaging/programs.sh
    local revision
    for revision in 1 2; do
        export BERTH_REVISION=$revision BERTH_OUT=$work/packages/$revision
        packaging/deb.sh
        packaging/rpm.sh
    done
    unset BERTH_REVISION BERTH_OUT
}

# A package that provides what Amazon Linux 2023 does, its glibc above all: there is no such distribution here, and
# a package that wanted more than this would not be installed.
make_stub() {
    local library version
    {
        printf 'Name: stub\nVersion: 1\nRelease: 1\nSummary: What the distribution has\nLicense: none\n'
        printf 'BuildArch: noarch\nAutoReqProv: no\nProvides: /bin/sh\nProvides: systemd = 252\n'
        printf 'Provides: docker = 25\nProvides: rtld(GNU_HASH)\n'
        for library in libc.so.6 libm.so.6 ld-linux-x86-64.so.2 ld-linux-aarch64.so.1 libgcc_s.so.1; do
            printf 'Provides: %s()(64bit)\n' "$library"
            for version in 2.2.5 2.3 2.3.2 2.3.3 2.3.4 2.4 2.5 2.6 2.7 2.8 2.9 $(seq -f 2.%g 10 34); do
                printf 'Provides: %s(GLIBC_%s)(64bit)\n' "$library" "$version"
            done
        done
        for version in 3.0 3.3 3.3.1 3.4 4.2.0; do
            printf 'Provides: libgcc_s.so.1(GCC_%s)(64bit)\n' "$version"
        done
        printf '%%description\nStub.\n%%files\n'
    } >"$work/stub.spec"
    rpmbuild -bb --define "_topdir $work/rpm" --define "_rpmdir $work/packages/stub" "$work/stub.spec" \
        >"$work/stub.log" 2>&1 || {
        tail -n 5 "$work/stub.log" >&2
        return 1
    }
}

start() {
    is_up=yes
    "$HOSTS" up 1 --systemd >/dev/null
    docker save berth-demo:latest | "$HOSTS" exec 1 docker load --quiet >/dev/null
}

build() {
    test=$(cargo test --workspace --locked --no-run --message-format json --quiet --test packages |
        sed -n 's/.*"executable":"\([^"]*packages[^"]*\)".*/\1/p')
}

[ -n "$HOSTS" ] || die "BERTH_HOSTS is not set: it names the program that makes hosts"
command -v "$HOSTS" >/dev/null || die "BERTH_HOSTS=$HOSTS is no program"
mkdir -p "$RUN_DIR"
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
work=$(mktemp -d)

step "installing what is missing" "$SCRIPTS/prepare.sh"
step "installing what makes packages" "$SCRIPTS/prepare.sh" packages
step "packages of the hosts" "$HOSTS" deps >/dev/null || die "$HOSTS deps failed: see above"
engine_was_down=no
"$SCRIPTS/engine.sh" status || engine_was_down=yes
step "engine, for the demo image" "$SCRIPTS/engine.sh" ensure
step "demo image" "$SCRIPTS/demo-image.sh"
step "building the tests" build || die "the build failed: the compiler's reasons are above"
step "packages" make_packages
step "what a distribution provides" make_stub
BERTH_STAGED=1 step "checking the packages" packaging/check.sh
step "starting a host" start || die "the host does not start: see above"
if [ "$engine_was_down" = yes ]; then "$SCRIPTS/engine.sh" stop; fi

code=0
step "packages on a host" env BERTH_HOSTS="$HOSTS" BERTH_PACKAGES="$work/packages" \
    timeout 600 "$test" --test-threads=1 2>&1 | tee "$LOG" || code=$?
count_results "$LOG"
[ "$code" -eq 0 ] || die "failed: packages, see above and in $LOG"
