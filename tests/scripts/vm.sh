#!/usr/bin/env bash
# Runs the tests that need a kernel of their own on a virtual host with systemd: cgroups of both versions with both
# of the engine's drivers, interfaces, and what becomes of a host that is rebooted or loses its power.
# Ends with "N passed, N failed".
#
#   BERTH_RIG   the program that makes the virtual host; it knows the commands deps, build, up NAME,
#               exec NAME COMMAND, cp FROM NAME:TO, reboot NAME, kill NAME, host COMMAND (beside it) and down NAME
#   RIG_NET     the first two numbers of the host's address; the control plane is at .0.1 (10.77)
#
# The host has an engine, and emulated processors: everything takes five to ten times as long there.
#   BERTH_VM=short     without the other cgroup version and driver, reboots, and power that fails
#   BERTH_VM=rest      with nothing but these
# shellcheck disable=SC2317 # functions are called by name, through step and traps
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

readonly SCRIPTS=$ROOT/tests/scripts
readonly RIG=${BERTH_RIG:-}
readonly HOST=berth-$$
readonly THERE=/root/berth
# Where a test writes the address of the NIC that it waits for.
readonly PLUG=$THERE/plug
readonly LOG=$RUN_DIR/vm.log
# Those of the tests of limits that read back what the kernel has, for each version and driver.
readonly READ_BACK=(--exact container_limits_are_read_back_inside task_limits_bound_all_containers)
# How much longer a test may take there, and what ends one that hangs.
readonly SLOWNESS=6
readonly SECONDS_EACH=240
readonly SECONDS_LIFE=1000

is_up=no
tests=
life=
bundle=

finish() {
    local code=$?
    trap - EXIT
    trap '' INT TERM
    [ -z "$bundle" ] || rm -rf "$bundle"
    if [ "$is_up" = yes ]; then "$RIG" down "$HOST" >/dev/null || true; fi
    if [ -s "$LOG" ]; then count_results "$LOG"; fi
    exit "$code"
}

# The whole workspace, so that nothing is compiled again with other features than `make test` has.
build() {
    cargo test --workspace --locked --no-run
    tests=$(cargo test --workspace --locked --no-run --message-format json --quiet \
        --test cgroup_v2 --test limits --test stop --test awsvpc --test awsvpc_kernel --test faults_kernel \
        --test vm_life |
        sed -n 's/.*"executable":"\([^"]*\)".*/\1/p')
    # This one runs beside the host.
    life=$(grep /vm_life- <<<"$tests")
    tests=$(grep -v /vm_life- <<<"$tests")
}

start() {
    # Also what is half up is to be taken down.
    is_up=yes
    "$RIG" up "$HOST" >/dev/null || die "the virtual host does not start: see above, and $RIG ls"
}

# Without what debuggers need, a tenth of the size.
copy() {
    local program name
    bundle=$(mktemp -d)
    for program in "${CARGO_TARGET_DIR:-target}"/debug/berth-{agent,controlplane} $tests; do
        name=$(basename "$program")
        # The tests' executables end in a hash.
        case $program in */deps/*) name=${name%-*} ;; esac
        strip -o "$bundle/$name" "$program"
    done
    docker save --output "$bundle/demo.tar" berth-demo:latest
    "$RIG" cp "$bundle" "$HOST:$THERE" &&
        "$RIG" exec "$HOST" "docker load --quiet --input $THERE/demo.tar" >/dev/null
}

# Plugs a NIC in as soon as a test on the host has written the address that it waits for.
plug() {
    local mac
    for _ in $(seq 60); do
        mac=$("$RIG" exec "$HOST" "cat $PLUG 2>/dev/null || true")
        if [ -n "$mac" ]; then
            "$RIG" nic add "$HOST" "$mac"
            return
        fi
    done
    die "no test asked for a NIC"
}

plugged() {
    plug &
    local plugging=$!
    there awsvpc --test-threads=1 --exact a_task_waits_for_the_interface_that_was_announced
    wait "$plugging"
}

# Has the engine make cgroups with that driver, and no doubt about it.
driver() {
    "$RIG" exec "$HOST" "echo '{\"exec-opts\": [\"native.cgroupdriver=$1\"]}' >/etc/docker/daemon.json
        systemctl restart docker && docker info --format '{{.CgroupDriver}} {{.CgroupVersion}}'" |
        grep -qx "$1 $2" || die "the host's engine has not the driver $1 on cgroup v$2"
}

limits_with() {
    driver "$1" "$2"
    there limits --test-threads=2 "${READ_BACK[@]}"
}

# The rig starts the kernel itself, with a command line of its own; systemd is told of another one.
with_cgroup_v1() {
    "$RIG" exec -i "$HOST" 'cat >/sbin/init.v1; chmod 755 /sbin/init.v1; ln -sf init.v1 /sbin/init; sync' <<'END'
#!/bin/sh
export SYSTEMD_PROC_CMDLINE="quiet systemd.unified_cgroup_hierarchy=0 systemd.legacy_systemd_cgroup_controller=1"
exec /lib/systemd/systemd "$@"
END
    "$RIG" reboot -t 400 "$HOST" >/dev/null
}

# Runs the tests of the host's life beside it; they reboot it.
lives() {
    local code=0
    "$RIG" host env BERTH_RIG="$RIG" BERTH_TEST_HOST="$HOST" BERTH_TEST_SLOWNESS=$SLOWNESS \
        timeout $SECONDS_LIFE "$life" --test-threads=1 --nocapture >"$RUN_DIR/vm-life.log" 2>&1 || code=$?
    tee -a "$LOG" <"$RUN_DIR/vm-life.log"
    [ $code -eq 0 ] || failed+=("vm_life, code $code")
}

# there NAME ARGUMENT...: runs the test executable of that name on the host.
there() {
    local name=$1 code=0 began
    shift
    began=$(grep -c '^test result:' "$LOG" || true)
    "$RIG" exec -t $((SECONDS_EACH + 60)) "$HOST" "cd $THERE && BERTH_BIN_DIR=$THERE BERTH_TEST_DEMO=there \
        BERTH_TEST_SLOWNESS=$SLOWNESS BERTH_TEST_PLUG=$PLUG timeout $SECONDS_EACH ./$name $* 2>&1" >"$RUN_DIR/vm-$name.log" || code=$?
    tee -a "$LOG" <"$RUN_DIR/vm-$name.log"
    if [ $code -ne 0 ]; then
        mapfile -t -O "${#failed[@]}" failed < <(sed -n "s/^test \(.*\) \.\.\. FAILED.*/$name: \1/p" "$RUN_DIR/vm-$name.log")
        if [ "$(grep -c '^test result:' "$LOG" || true)" = "$began" ]; then
            failed+=("$name did not get to its end, code $code")
            echo "test result: $name did not end. 0 passed; 1 failed" >>"$LOG"
        fi
    fi
}

[ -n "$RIG" ] || die "BERTH_RIG is not set: it names the program that makes the virtual host"
command -v "$RIG" >/dev/null || die "BERTH_RIG=$RIG is no program"
mkdir -p "$RUN_DIR"
: >"$LOG"
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
failed=()

step "installing what is missing" "$SCRIPTS/prepare.sh"
# Twice: what the first installs may take the place of another that is needed, of a version that does not go with it.
for _ in 1 2; do
    step "packages of the virtual host" "$RIG" deps >/dev/null || die "$RIG deps failed: see above"
done
step "image of the virtual host" "$RIG" build >/dev/null ||
    die "$RIG build failed: see above"
engine_was_down=no
"$SCRIPTS/engine.sh" status || engine_was_down=yes
step "engine, for the demo image" "$SCRIPTS/engine.sh" ensure
step "demo image" "$SCRIPTS/demo-image.sh"
step "building" build || die "the build failed: the compiler's reasons are above"
step "starting the virtual host" start
step "copying programs, tests and demo image" copy || die "copying to the virtual host failed: see above"
if [ "$engine_was_down" = yes ]; then "$SCRIPTS/engine.sh" stop; fi

if [ "${BERTH_VM:-}" != rest ]; then
    step "task cgroups" there cgroup_v2 --test-threads=1
    driver systemd 2
    step "limits" there limits --test-threads=2
    step "stop" there stop --test-threads=2 --exact sigterm_is_enough_for_a_program_that_heeds_it \
        sigkill_comes_after_the_stop_timeout an_essential_container_takes_the_task_with_it

    step "VLAN and ipvlan" there awsvpc_kernel --test-threads=1
    step "delays and losses" there faults_kernel --test-threads=1
    step "interfaces that are plugged in" plugged
fi

if [ "${BERTH_VM:-}" != short ]; then
    step "cgroup v2, cgroupfs driver" limits_with cgroupfs 2
    driver systemd 2
    step "reboot, and power that fails" lives
    step "booting with cgroup v1" with_cgroup_v1 || die "the host does not come back: see above"
    step "cgroup v1, systemd driver" limits_with systemd 1
    step "cgroup v1, cgroupfs driver" limits_with cgroupfs 1
fi

[ ${#failed[@]} -eq 0 ] || die "failed on a virtual host: $(printf '%s; ' "${failed[@]}" | sed 's/; $//')"
