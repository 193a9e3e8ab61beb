#!/usr/bin/env bash
# Checks the packages and the image: what lintian and rpmlint say, that the same programs give the same bytes
# twice, that they run where glibc is as old as promised, and how large the image is.
#
#   BERTH_STAGED    1: programs.sh has run already
#   BERTH_REBUILD   1: the programs, too, are built a second time, elsewhere, and have to be the same
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

# The oldest glibc that the programs run with: that of Amazon Linux 2023, RHEL 9 and Ubuntu 22.04.
readonly GLIBC=2.34
readonly MOST_MIB=30
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

packed() {
    export BERTH_OUT=$1
    packaging/deb.sh
    packaging/rpm.sh
    BERTH_STAGED=1 BERTH_IMAGE=berth-agent:check DOCKER_HOST=unix:///nonexistent packaging/image.sh >/dev/null
    unset BERTH_OUT
}

# same A B: the same files with the same bytes.
same() {
    diff <(cd "$1" && sha256sum ./*) <(cd "$2" && sha256sum ./*)
}

glibc() {
    local program wanted
    for program in "$STAGE"/bin/*; do
        wanted=$(objdump -T "$program" | sed -n 's/.*(\?GLIBC_\([0-9.]*\).*/\1/p' | sort -Vu | tail -n 1)
        [ "$(printf '%s\n%s\n' "$wanted" "$GLIBC" | sort -V | tail -n 1)" = "$GLIBC" ] ||
            die "$(basename "$program") wants glibc $wanted, and $GLIBC is promised"
    done
}

# No path of this machine is in what is given away; programs of the dev profile are for tests alone.
paths() {
    [ "$PROFILE" = release ] || return 0
    local program
    for program in "$STAGE"/bin/*; do
        ! strings "$program" | grep -F -m 1 -e "$ROOT" -e "${CARGO_HOME:-$HOME/.cargo}" ||
            die "$(basename "$program") has a path of this machine in it"
    done
}

size() {
    local bytes
    bytes=$(stat --format %s "$work"/1/berth-agent-image_*.tar)
    echo "    the image has $((bytes / 1024)) KiB"
    [ "$PROFILE" != release ] || [ "$bytes" -le $((MOST_MIB * 1024 * 1024)) ] ||
        die "the image has $bytes bytes, and may have $MOST_MIB MiB"
}

# What a configuration names is in the manual pages of its program.
manuals() {
    local program key
    for program in agent controlplane; do
        while read -r key; do
            grep -rqF "$key" "$STAGE/man/berth-$program" || die "no manual page of berth-$program has $key"
        done < <(sed -n 's/^#\?\([A-Z][A-Z0-9_]*\)=.*/\1/p' "packaging/etc/$program.config")
    done
}

rebuilt() {
    git clone --quiet "$ROOT" "$work/elsewhere"
    CARGO_TARGET_DIR=$work/elsewhere/target BERTH_PROFILE=release "$work/elsewhere/packaging/programs.sh"
    same "$STAGE/bin" "$work/elsewhere/target/stage-release/bin"
}

[ "${BERTH_STAGED:-}" = 1 ] || packaging/programs.sh
step "packed once" packed "$work/1"
step "packed twice" packed "$work/2"
same "$work/1" "$work/2" || die "the same programs were packed into other bytes: see above"
step lintian lintian --fail-on error --allow-root "$work"/1/*.deb || die "lintian finds errors: see above"
step rpmlint rpmlint --config packaging/rpm/rpmlint.toml "$work"/1/*.rpm || die "rpmlint finds errors: see above"
glibc
paths
manuals
size
if [ "${BERTH_REBUILD:-}" = 1 ]; then
    step "built elsewhere" rebuilt || die "the programs are not the same when they are built elsewhere: see above"
fi
echo "packages: all clean"
