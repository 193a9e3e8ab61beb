#!/usr/bin/env bash
# Runs the tests that need several hosts on one wire. Ends with "N passed, N failed".
#
#   BERTH_HOSTS   the program that makes hosts; it knows the commands deps, up N, exec HOST COMMAND,
#                 switch COMMAND (beside the hosts, at 10.78.0.1), kill HOST and down
# shellcheck disable=SC2317 # functions are called by name, through step and traps
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

readonly SCRIPTS=$ROOT/tests/scripts
readonly HOSTS=${BERTH_HOSTS:-}
readonly COUNT=3
readonly LOG=$RUN_DIR/hosts.log

are_up=no
image=

finish() {
    local code=$?
    trap - EXIT
    trap '' INT TERM
    if [ "$are_up" = yes ]; then "$HOSTS" down >/dev/null || true; fi
    [ -z "$image" ] || rm -f "$image"
    # The hosts' cgroups are this machine's.
    "$SCRIPTS/sweep.sh" || true
    exit "$code"
}

build() {
    cargo test --workspace --locked --no-run
    test=$(cargo test --workspace --locked --no-run --message-format json --quiet --test several_hosts |
        sed -n 's/.*"executable":"\([^"]*several_hosts[^"]*\)".*/\1/p')
}

save_image() {
    image=$(mktemp)
    docker save --output "$image" berth-demo:latest
}

start() {
    are_up=yes
    "$HOSTS" up "$COUNT" >/dev/null
    local host
    for host in $(seq "$COUNT"); do
        "$HOSTS" exec "$host" docker load --quiet <"$image" >/dev/null
    done
}

[ -n "$HOSTS" ] || die "BERTH_HOSTS is not set: it names the program that makes hosts"
command -v "$HOSTS" >/dev/null || die "BERTH_HOSTS=$HOSTS is no program"
mkdir -p "$RUN_DIR"
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

step "installing what is missing" "$SCRIPTS/prepare.sh"
step "packages of the hosts" "$HOSTS" deps >/dev/null || die "$HOSTS deps failed: see above"
engine_was_down=no
"$SCRIPTS/engine.sh" status || engine_was_down=yes
step "engine, for the demo image" "$SCRIPTS/engine.sh" ensure
step "demo image" "$SCRIPTS/demo-image.sh"
save_image
if [ "$engine_was_down" = yes ]; then "$SCRIPTS/engine.sh" stop; fi
step "building" build || die "the build failed: the compiler's reasons are above"
step "starting $COUNT hosts" start || die "the hosts do not start: see above"

code=0
step "several hosts" "$HOSTS" switch env BERTH_HOSTS="$HOSTS" timeout 300 "$test" --test-threads=1 2>&1 |
    tee "$LOG" || code=$?
count_results "$LOG"
[ "$code" -eq 0 ] || die "failed: several_hosts, see above and in $LOG"
