#!/usr/bin/env bash
# Removes what tests that were killed left behind: containers and cgroups of clusters whose process
# is gone. A test that ends by itself, passed or failed, removes its own.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# orphan NAME: whether that is a test's cluster (berth-test-PID-...) whose test does not run any more.
orphan() {
    [[ $1 =~ ^berth-test-([0-9]+)- ]] && [ ! -e "/proc/${BASH_REMATCH[1]}" ]
}

arn='{{.ID}} {{.Label "com.amazonaws.ecs.task-arn"}}'
docker ps --all --no-trunc --filter label=com.amazonaws.ecs.task-arn --format "$arn" | while read -r id task; do
    cluster=${task#*:task/}
    if orphan "${cluster%%/*}"; then
        docker rm --force --volumes "$id" >/dev/null && echo "removed container ${id:0:12} of a test that was killed"
    fi
done

for root in /sys/fs/cgroup/berth-test-* /sys/fs/cgroup/*/berth-test-*; do
    if [ -d "$root" ] && orphan "$(basename "$root")"; then
        find "$root" -depth -type d -exec rmdir {} + && echo "removed cgroup $root of a test that was killed"
    fi
done
