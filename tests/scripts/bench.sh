#!/usr/bin/env bash
# Measures Berth against the engine's own floor, with optimised programs: a table, and target/bench.json.
#
#   BERTH_BENCH=quick           fewer measurements
#   BERTH_BENCH_ONLY=ROW,...    launch, quota, awsvpc, api, start, recovery, memory, idle, metrics, burst
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

readonly SCRIPTS=$ROOT/tests/scripts
engine_was_down=no

finish() {
    if "$SCRIPTS/engine.sh" status; then "$SCRIPTS/sweep.sh" || true; fi
    if [ "$engine_was_down" = yes ]; then "$SCRIPTS/engine.sh" stop || true; fi
}

mkdir -p "$RUN_DIR"
trap finish EXIT
step "installing what is missing" "$SCRIPTS/prepare.sh"
"$SCRIPTS/engine.sh" status || engine_was_down=yes
step "engine" "$SCRIPTS/engine.sh" ensure
step "demo image" "$SCRIPTS/demo-image.sh"
step "building" cargo build --release --locked -p berth-agent -p berth-controlplane ||
    die "the build failed: the compiler's reasons are above"
cargo bench --locked -p berth-tests --bench berth -- "$@" ||
    die "the benchmark failed: see above; are other containers starting at the same time?"
