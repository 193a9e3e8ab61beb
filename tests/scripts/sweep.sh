#!/usr/bin/env bash
# Removes what tests that were killed left behind: containers, volumes, cgroups, engines of their own, links,
# namespaces and folders of tests whose process is gone. A test that ends by itself, passed or failed, removes its own.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# orphan NAME: whether that is a test's cluster (berth-test-PID-...) or the data folder of its agent
# (berth-agent-PID-...) whose test does not run any more.
orphan() {
    [[ $1 =~ berth-(test|agent)-([0-9]+)- ]] && [ ! -e "/proc/${BASH_REMATCH[2]}" ]
}

# containers LABEL: those that have it, each with what the label says.
containers() {
    docker ps --all --no-trunc --filter "label=$1" --format "{{.ID}} {{.Label \"$1\"}}"
}

if "$ROOT/tests/scripts/engine.sh" status; then
    containers com.amazonaws.ecs.task-arn | while read -r id task; do
        cluster=${task#*:task/}
        if orphan "${cluster%%/*}"; then
            docker rm --force --volumes "$id" >/dev/null && echo "removed container ${id:0:12} of a test that was killed"
        fi
    done
    docker volume ls --filter label=com.amazonaws.ecs.task-arn \
        --format '{{.Name}} {{.Label "com.amazonaws.ecs.task-arn"}}' | while read -r name task; do
        cluster=${task#*:task/}
        if orphan "${cluster%%/*}"; then
            docker volume rm "$name" >/dev/null && echo "removed volume $name of a test that was killed"
        fi
    done
    docker ps --all --filter label=io.berth.program --format '{{.ID}} {{.Names}}' | while read -r id container; do
        if orphan "$container"; then
            docker rm --force --volumes "$id" >/dev/null && echo "removed an agent's container of a test that was killed"
        fi
    done
    containers io.berth.holder | while read -r id folder; do
        if orphan "$folder"; then
            docker rm --force "$id" >/dev/null && echo "removed holder ${id:0:12} of a test that was killed"
        fi
    done
fi

# An engine of a test's own ends with it, and one with live-restore leaves its containers, and who minds them.
{ pgrep -f '^[^ ]*containerd-shim[^ ]* .*/berth-engine-[0-9]*-' || true; } | while read -r pid; do
    if [[ $(tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null) =~ /berth-engine-([0-9]+)- ]] &&
        [ ! -e "/proc/${BASH_REMATCH[1]}" ]; then
        kill -KILL "$pid" $(pgrep -P "$pid") && echo "ended process $pid of an engine of a test that was killed"
    fi
done

for root in /sys/fs/cgroup/berth-test-* /sys/fs/cgroup/*/berth-test-*; do
    if [ -d "$root" ] && orphan "$(basename "$root")-"; then
        find "$root" -depth -type d -exec rmdir {} + && echo "removed cgroup $root of a test that was killed"
    fi
done

# Tests that are under way hold a lock for as long as they need it.
if ip -oneline address show dev lo | grep -q ' 169\.254\.170\.2/32 ' &&
    flock --nonblock "${TMPDIR:-/tmp}/berth-test-endpoint.lock" ip address delete 169.254.170.2/32 dev lo; then
    echo "removed the endpoint's address of a test that was killed"
fi
ip -oneline link show | sed -n 's/^[0-9]*: \([^:@]*\).*alias berth:\([^:]*\):.*/\1 \2/p' | while read -r link folder; do
    if orphan "$folder"; then
        ip link delete "$link" 2>/dev/null && echo "removed link $link of a test that was killed"
    fi
done
for folder in "${TMPDIR:-/tmp}"/berth-engine-*; do
    if [ -d "$folder" ] && [[ $folder =~ berth-engine-([0-9]+)- ]] && [ ! -e "/proc/${BASH_REMATCH[1]}" ]; then
        rm -rf "$folder" && echo "removed $folder of a test that was killed"
    fi
done
for folder in "${TMPDIR:-/tmp}"/berth-agent-*; do
    if [ -d "$folder" ] && orphan "$(basename "$folder")"; then
        # Pins of namespaces are the only mounts there.
        awk -v under="$folder/netns/" 'index($2, under) == 1 { print $2 }' /proc/mounts | xargs --no-run-if-empty umount
        rm -rf "$folder" && echo "removed $folder of a test that was killed"
    fi
done
