# What the recipes here share. Sourced, never run.
# shellcheck shell=bash
#
#   BERTH_PROFILE      release (the default), or dev: programs as `cargo build` makes them, for tests
#   BERTH_REVISION     revision of the packages of one version, 1
#   BERTH_MAINTAINER   who is named in packages
#   BERTH_OUT          where packages and image are left, target/packages
#   BERTH_STAGE        where what goes into them is laid out before, target/stage-PROFILE
#   SOURCE_DATE_EPOCH  the time in everything that is made, that of the last commit

# shellcheck source-path=SCRIPTDIR source=../tests/scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../tests/scripts/lib.sh"

PROFILE=${BERTH_PROFILE:-release}
REVISION=${BERTH_REVISION:-1}
MAINTAINER=${BERTH_MAINTAINER:-The Berth maintainers <maintainers@users.noreply.github.com>}
TARGET=${CARGO_TARGET_DIR:-$ROOT/target}
OUT=${BERTH_OUT:-$TARGET/packages}
# What goes into packages and image, before it is packed.
STAGE=${BERTH_STAGE:-$TARGET/stage-$PROFILE}
export PROFILE REVISION MAINTAINER TARGET OUT STAGE

case $PROFILE in
    release) PROGRAMS=$TARGET/release ;;
    dev) PROGRAMS=$TARGET/debug ;;
    *) die "BERTH_PROFILE=$PROFILE: release or dev" ;;
esac
export PROGRAMS

if [ -z "${SOURCE_DATE_EPOCH:-}" ]; then
    SOURCE_DATE_EPOCH=$(git -C "$ROOT" log -1 --format=%ct 2>/dev/null) ||
        die "SOURCE_DATE_EPOCH is not set, and there is no git history to take it from"
fi
export SOURCE_DATE_EPOCH
# Neither this machine's words nor its clock are in what is made.
export LC_ALL=C.UTF-8 TZ=UTC
umask 022

version() {
    cargo metadata --manifest-path "$ROOT/Cargo.toml" --locked --no-deps --format-version 1 |
        sed -n 's/.*"name":"berth-agent","version":"\([^"]*\)".*/\1/p'
}
