#!/usr/bin/env bash
# Packs what programs.sh has laid out into .rpm files.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

work=$STAGE-rpm
log=$work/log
version=$(version)
architecture=$(uname -m)
rm -rf "$work"
mkdir -p "$work" "$OUT"
level=19
[ "$PROFILE" = release ] || level=1
# Neither this machine's name nor its clock, and packages that older rpms can read.
rpmbuild -bb --target "$architecture-linux" \
    --define "_topdir $work" \
    --define "_rpmdir $work/out" \
    --define "stage $STAGE" \
    --define "berth_version ${version/-/\~}" \
    --define "berth_revision $REVISION" \
    --define "berth_packager $MAINTAINER" \
    --define "berth_date $(date --date "@$SOURCE_DATE_EPOCH" +'%a %b %d %Y')" \
    --define "source_date_epoch_from_changelog 0" \
    --define "_buildhost berth" \
    --define "use_source_date_epoch_as_buildtime 1" \
    --define "clamp_mtime_to_source_date_epoch 1" \
    --define "_binary_payload w$level.zstdio" \
    "$ROOT/packaging/rpm/berth.spec" >"$log" 2>&1 || {
    tail -n 20 "$log" >&2
    die "rpmbuild failed: see above and $log"
}
find "$OUT" -maxdepth 1 -name "*.$architecture.rpm" -delete
cp "$work/out/$architecture"/*.rpm "$OUT/"
