#!/usr/bin/env bash
# Makes the image berth-demo:latest out of tests/demo/main.rs; at once when the engine has that very one.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

readonly IMAGE=berth-demo:latest
readonly SOURCE=$ROOT/tests/demo/main.rs
readonly OUT=${CARGO_TARGET_DIR:-$ROOT/target}/demo
readonly LABEL=berth.demo.source

# The recipe counts as source too.
digest=$(cat "$SOURCE" "${BASH_SOURCE[0]}" | sha256sum | cut -c1-16)

made() {
    [ "$(docker image inspect --format "{{index .Config.Labels \"$LABEL\"}}" "$IMAGE" 2>/dev/null)" = "$digest" ]
}

made && exit 0
mkdir -p "$OUT" "$RUN_DIR"
exec 9>"$RUN_DIR/demo-image.lock"
flock 9
made && exit 0

if [ "$(cat "$OUT/source" 2>/dev/null)" != "$digest" ]; then
    rustc --edition 2024 -O -C target-feature=+crt-static -C panic=abort -C strip=symbols \
        -o "$OUT/berth-demo" "$SOURCE" 9>&- ||
        die "tests/demo/main.rs does not build: see above (static linking needs libc6-dev: tests/scripts/prepare.sh build)"
    echo "$digest" >"$OUT/source"
fi
# The stop signal stays the engine's default, SIGTERM: `docker import` takes no STOPSIGNAL.
# /tmp is there for programs that write; everything else comes from the engine.
mkdir -p "$OUT/root/tmp"
cp "$OUT/berth-demo" "$OUT/root/berth-demo"
tar --directory "$OUT/root" --owner 0 --group 0 --create berth-demo tmp |
    docker import \
        --change 'ENTRYPOINT ["/berth-demo"]' \
        --change 'CMD ["serve"]' \
        --change "LABEL $LABEL=$digest" \
        - "$IMAGE" >/dev/null ||
    die "the engine did not take $IMAGE: see above; does it answer (tests/scripts/engine.sh status)?"
echo "image $IMAGE made"
