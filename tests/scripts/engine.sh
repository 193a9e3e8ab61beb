#!/usr/bin/env bash
# Makes sure that a container engine answers, and stops it again if (and only if) it was started here.
#
#   engine.sh ensure   start one unless one answers already
#   engine.sh status   exit code 0 when one answers
#   engine.sh stop     stop the one that `ensure` of this checkout started; any other is left alone
#
# With systemd the docker service is started; otherwise dockerd runs in the background, its log
# and process id are in .run/engine/.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

readonly DEFAULT_HOST=unix:///var/run/docker.sock
readonly HOST=${DOCKER_HOST:-$DEFAULT_HOST}
readonly STATE=$RUN_DIR/engine
# One for the machine, not for the checkout: two checkouts must not start two engines.
readonly LOCK=/run/lock/berth-engine.lock

answers() {
    case $HOST in
        unix://*) curl -fsS --max-time 2 --unix-socket "${HOST#unix://}" http://engine/_ping ;;
        tcp://*) curl -fsS --max-time 2 "http://${HOST#tcp://}/_ping" ;;
        *) docker version ;;
    esac >/dev/null 2>&1
}

with_systemd() {
    [ -d /run/systemd/system ]
}

dockerd_pid() {
    local pid
    pid=$(cat "$STATE/dockerd.pid" 2>/dev/null || true)
    if is_process "$pid" dockerd; then echo "$pid"; fi
}

# Alive and not answering yet, or answering: either ends the wait.
answers_or_died() {
    answers || [ -z "$(dockerd_pid)" ]
}

forget_dead() {
    is_process "$(cat "$1" 2>/dev/null || true)" "$2" || rm -f "$1"
}

# The bridge of the engine that is started here keeps its address. One that an earlier engine left may have none of
# its own but that of a container's link, and another with the next: who knows the old one loses the host for seconds.
settle_bridge() {
    local bridge=/sys/class/net/docker0
    local given=3 # NET_ADDR_SET
    [ "$(cat "$bridge/addr_assign_type" 2>/dev/null || echo "$given")" != "$given" ] || return 0
    ip link set docker0 address "02:42$(od -An -N4 -tx1 /dev/urandom | tr ' ' ':')"
}

start_dockerd() {
    local log=$STATE/dockerd.log
    [ "$(id -u)" = 0 ] || die "dockerd can only be started by root: use sudo, or start your engine and run this again"
    : >"$log"
    # dockerd refuses to start beside an old file as long as anything has that process id.
    forget_dead /var/run/docker.pid dockerd
    forget_dead /var/run/docker/containerd/containerd.pid containerd
    # Its own session, so that Ctrl-C in a terminal does not reach it; no descriptor of the lock.
    setsid dockerd --host "$DEFAULT_HOST" >>"$log" 2>&1 </dev/null 9>&- &
    echo $! >"$STATE/dockerd.pid"
    await 2 is_process "$!" dockerd || true
    await 60 answers_or_died || true
    if answers; then
        settle_bridge
        return
    fi
    tail -n 15 "$log" >&2
    die "dockerd does not answer on $DEFAULT_HOST: its last lines are above, all of them in $log"
}

ensure() {
    if answers; then
        echo "engine: already there at $HOST"
        return
    fi
    [ "$HOST" = "$DEFAULT_HOST" ] ||
        die "no engine answers at DOCKER_HOST=$HOST: start it, or unset DOCKER_HOST to have one started here"
    "$(dirname "${BASH_SOURCE[0]}")/prepare.sh" engine
    mkdir -p "$STATE" "$(dirname "$LOCK")"
    exec 9>"$LOCK"
    flock -w 120 9 || die "another engine.sh holds $LOCK for two minutes: end it and try again"
    # Somebody else may have been quicker, the package's installation among them.
    if answers; then
        echo "engine: already there at $HOST"
    elif with_systemd; then
        systemctl start docker || die "systemctl start docker failed: see journalctl -u docker"
        await 60 answers || die "the docker service is started but $HOST does not answer: see journalctl -u docker"
        touch "$STATE/by-systemd"
        echo "engine: started the docker service"
    else
        start_dockerd
        echo "engine: started dockerd, process $(dockerd_pid), log $STATE/dockerd.log"
    fi
}

stop() {
    local pid
    pid=$(dockerd_pid)
    if [ -n "$pid" ]; then
        end_process "$pid" 60
        echo "engine: stopped dockerd"
    elif [ -e "$STATE/by-systemd" ]; then
        systemctl stop docker.socket docker
        echo "engine: stopped the docker service"
    else
        echo "engine: not started here, left alone"
    fi
    rm -f "$STATE/dockerd.pid" "$STATE/by-systemd"
}

case ${1:-} in
    ensure) ensure ;;
    status) answers ;;
    stop) stop ;;
    *) die "usage: engine.sh ensure|status|stop" ;;
esac
