#!/usr/bin/env bash
# Makes the image of the agent out of what programs.sh lays out: the program, the C library that it is linked
# with, and the certificates that TLS wants; nothing else, not even a shell. lib.sh says what can be chosen, and
#
#   BERTH_IMAGE    the image's name, berth-agent:VERSION
#   BERTH_STAGED   1: programs.sh has run already
#
# The archive in target/packages is what `docker load` and registries' tools take; an engine that answers gets
# the image at once.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

version=$(version)
image=${BERTH_IMAGE:-berth-agent:$version}
work=$STAGE-image

# Programs that are linked dynamically, so that package and image have the same one, and names are looked up as
# on any Debian: glibc has "files" and "dns" built in.
fill() {
    local root=$1 program=$STAGE/bin/berth-agent library
    mkdir -p "$root"/{etc/ssl/certs,run,tmp,usr/bin,usr/share/doc/berth-agent,usr/share/doc/libc6,var}
    chmod 1777 "$root/tmp"
    ln -s ../run "$root/var/run"
    install -m 755 "$program" "$root/usr/bin/berth-agent"
    # The loader by its own path, libraries where it looks for them; /lib is no link here.
    ldd "$program" | sed -n 's|^\t\(.* => \)\?\(/[^ ]*\) .*|\2|p' | while read -r library; do
        install -D -m 755 "$(readlink -f "$library")" "$root$library"
    done
    install -m 644 /usr/share/doc/libc6/copyright "$root/usr/share/doc/libc6/copyright"
    install -D -m 644 /usr/share/doc/libgcc-s1/copyright "$root/usr/share/doc/libgcc-s1/copyright"
    install -D -m 644 /usr/share/doc/ca-certificates/copyright "$root/usr/share/doc/ca-certificates/copyright"
    install -m 644 /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
    install -m 644 "$STAGE/licences/berth-agent/THIRD-PARTY-LICENCES" LICENSE "$root/usr/share/doc/berth-agent/"
    echo 'root:x:0:0:root:/root:/sbin/nologin' >"$root/etc/passwd"
    echo 'root:x:0:' >"$root/etc/group"
    echo 'hosts: files dns' >"$root/etc/nsswitch.conf"
}

# pack FOLDER FILE: always the same bytes for the same files.
pack() {
    tar --directory "$1" --create --file "$2" --format=ustar --sort=name --owner=0 --group=0 --numeric-owner \
        --mtime="@$SOURCE_DATE_EPOCH" .
}

sha() {
    sha256sum "$1" | cut -d ' ' -f 1
}

architecture() {
    case $(uname -m) in
        x86_64) echo amd64 ;;
        aarch64) echo arm64 ;;
        *) uname -m ;;
    esac
}

# What `docker run` without a word about it does: the agent of this host's network, whose control plane is at home.
describe() {
    local layer=$1 created
    created=$(date --utc --date "@$SOURCE_DATE_EPOCH" +%Y-%m-%dT%H:%M:%SZ)
    cat <<END
{"architecture":"$(architecture)","os":"linux","created":"$created","config":{"Entrypoint":["/usr/bin/berth-agent"],"Env":["PATH=/usr/bin","ECS_BACKEND_HOST=http://127.0.0.1:8046"],"StopSignal":"SIGTERM","Labels":{"io.berth.program":"agent","org.opencontainers.image.title":"berth-agent","org.opencontainers.image.version":"$version","org.opencontainers.image.licenses":"Apache-2.0"}},"rootfs":{"type":"layers","diff_ids":["sha256:$layer"]},"history":[{"created":"$created","created_by":"packaging/image.sh"}]}
END
}

make_archive() {
    local config
    rm -rf "$work"
    mkdir -p "$work/root" "$work/archive" "$OUT"
    fill "$work/root"
    pack "$work/root" "$work/archive/layer.tar"
    describe "$(sha "$work/archive/layer.tar")" >"$work/config"
    config=$(sha "$work/config").json
    mv "$work/config" "$work/archive/$config"
    echo "[{\"Config\":\"$config\",\"RepoTags\":[\"$image\"],\"Layers\":[\"layer.tar\"]}]" >"$work/archive/manifest.json"
    archive=$OUT/berth-agent-image_${version}_$(architecture).tar
    pack "$work/archive" "$archive"
}

cd "$ROOT"
if [ "${BERTH_STAGED:-}" != 1 ]; then
    "$ROOT/tests/scripts/prepare.sh" build
    packaging/programs.sh
fi
step "image $image" make_archive
ls -l "$archive"
if "$ROOT/tests/scripts/engine.sh" status; then
    docker load --quiet --input "$archive"
fi
