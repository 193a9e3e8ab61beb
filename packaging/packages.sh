#!/usr/bin/env bash
# Makes the packages: .deb and .rpm of berth-agent, berth-controlplane and berth. lib.sh says what can be chosen.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

readonly HERE=$ROOT/packaging

step "installing what is missing" "$ROOT/tests/scripts/prepare.sh" packages
"$HERE/programs.sh"
step "deb" "$HERE/deb.sh"
step "rpm" "$HERE/rpm.sh"
ls -l "$OUT"
