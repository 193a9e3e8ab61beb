#!/usr/bin/env bash
# Builds everything and runs all tests against a real engine; arguments go to the test runner.
# Ends with "N passed, N failed".
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

readonly SCRIPTS=$ROOT/tests/scripts
readonly LOG=$RUN_DIR/test.log

engine_was_down=no

finish() {
    local code=$?
    trap - EXIT
    if "$SCRIPTS/engine.sh" status; then "$SCRIPTS/sweep.sh" || true; fi
    if [ "$engine_was_down" = yes ]; then "$SCRIPTS/engine.sh" stop || true; fi
    if [ -s "$LOG" ]; then
        # Last, where whoever looks at the end of a long log finds them.
        [ "$code" -eq 0 ] || failures "$LOG"
        count_results "$LOG"
    fi
    exit "$code"
}

# In the fallback every package's tests run one executable after the other; the tests that start
# containers are kept to four at a time, as .config/nextest.toml does.
run_tests() {
    if cargo nextest --version >/dev/null 2>&1; then
        cargo nextest run --workspace --locked "$@"
    else
        cargo test --workspace --lib --bins --tests --locked --no-fail-fast "$@" -- --test-threads=4
    fi
}

mkdir -p "$RUN_DIR"
rm -f "$LOG"
trap finish EXIT
step "installing what is missing" "$SCRIPTS/prepare.sh"
"$SCRIPTS/engine.sh" status || engine_was_down=yes
step "engine" "$SCRIPTS/engine.sh" ensure
# Programs and tests at once: a build of the programs alone would choose other features of what they share with tests,
# and most would be compiled twice.
step "building" cargo test --workspace --locked --no-run ||
    die "the build failed: the compiler's reasons are above"
step "demo image" "$SCRIPTS/demo-image.sh"
"$SCRIPTS/sweep.sh"

code=0
step "tests" run_tests "$@" 2>&1 | tee -a "$LOG" || code=$?
# Arguments choose among the tests proper; with any, documentation is left alone.
if [ $# -eq 0 ]; then
    step "documentation tests" cargo test --doc --workspace --locked --quiet 2>&1 | tee -a "$LOG" || code=$?
fi
[ $code -eq 0 ] ||
    die "tests failed: see above and $LOG; one alone again: make test ARGS=\"NAME\""
