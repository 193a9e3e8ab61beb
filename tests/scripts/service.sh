#!/usr/bin/env bash
# Runs the tests of the agent as a systemd service. Ends with "N passed, N failed".
#
#   BERTH_HOSTS   the program that makes hosts; it knows the commands deps, up N --systemd, exec HOST COMMAND,
#                 switch COMMAND (beside the hosts), ls and down
#   HOSTS_NET     the first two numbers of the hosts' addresses; the test is at .0.1 (10.78)
# shellcheck disable=SC2317 # functions are called by name, through step and traps
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

readonly SCRIPTS=$ROOT/tests/scripts
export RIG_PACKAGES=$HOST_PACKAGES
readonly HOSTS=${BERTH_HOSTS:-}
readonly LOG=$RUN_DIR/service.log

are_up=no

finish() {
    local code=$?
    trap - EXIT
    trap '' INT TERM
    if [ "$are_up" = yes ]; then "$HOSTS" down >/dev/null || true; fi
    exit "$code"
}

build() {
    cargo test --workspace --locked --no-run
    test=$(cargo test --workspace --locked --no-run --message-format json --quiet --test as_service |
        sed -n 's/.*"executable":"\([^"]*as_service[^"]*\)".*/\1/p')
}

start() {
    are_up=yes
    "$HOSTS" up 1 --systemd >/dev/null
}

[ -n "$HOSTS" ] || die "BERTH_HOSTS is not set: it names the program that makes hosts"
command -v "$HOSTS" >/dev/null || die "BERTH_HOSTS=$HOSTS is no program"
mkdir -p "$RUN_DIR"
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

step "installing what is missing" "$SCRIPTS/prepare.sh"
step "packages of the host" "$HOSTS" deps >/dev/null || die "$HOSTS deps failed: see above"
step "building" build || die "the build failed: the compiler's reasons are above"
step "starting a host with systemd" start || die "the host does not start: see above"

code=0
step "as a service" "$HOSTS" switch env BERTH_HOSTS="$HOSTS" timeout 500 "$test" --test-threads=1 2>&1 |
    tee "$LOG" || code=$?
count_results "$LOG"
[ "$code" -eq 0 ] || die "failed: as_service, see above and in $LOG"
