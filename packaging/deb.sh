#!/usr/bin/env bash
# Packs what programs.sh has laid out into .deb files.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

work=$STAGE-deb
log=$work/log
version=$(version)
rm -rf "$work"
mkdir -p "$work/berth" "$OUT"
cp -r "$ROOT/packaging/deb" "$work/berth/debian"
cp -r "$STAGE" "$work/berth/stage"
cd "$work/berth"
sed -i "s/@MAINTAINER@/$MAINTAINER/" debian/control
mkdir debian/source
echo '3.0 (quilt)' >debian/source/format
# A pre-release sorts before its release.
cat >debian/changelog <<END
berth (${version/-/\~}-$REVISION) unstable; urgency=medium

  * What has changed is in CHANGELOG.md of the sources.

 -- $MAINTAINER  $(date --rfc-email --date "@$SOURCE_DATE_EPOCH")
END
# debhelper finds these by the names of their packages.
cp stage/systemd/*.service stage/sysusers/berth-controlplane.conf stage/tmpfiles/berth-agent.conf debian/
mv debian/berth-controlplane.conf debian/berth-controlplane.sysusers
mv debian/berth-agent.conf debian/berth-agent.tmpfiles

dpkg-buildpackage --build=binary --unsigned-changes --no-check-builddeps >"$log" 2>&1 || {
    tail -n 20 "$log" >&2
    die "dpkg-buildpackage failed: see above and $log"
}
find "$OUT" -maxdepth 1 -name "*_$(dpkg --print-architecture).deb" -delete
cp ../*.deb "$OUT/"
