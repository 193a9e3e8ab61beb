#!/usr/bin/env bash
# The 60-second start: a control plane, an agent and a demo task on this host, until Ctrl-C.
#
#   BERTH_API_PORT, BERTH_AGENTS_PORT   where the control plane listens (8045, 8046)
#   BERTH_SUBNET                        addresses for tasks with an interface of their own (10.213.0.0/24)
#   BERTH_RUN_ONCE=1                    go through everything, then stop again
#   BERTH_PROFILE=release               build with optimisation: later there, as in production
#
# State is kept in .run/, so that a second start finds what the first one knew.
# shellcheck disable=SC2317 # functions are called by name, through step and traps
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT"

readonly SCRIPTS=$ROOT/tests/scripts
readonly PROFILE=${BERTH_PROFILE:-dev}
readonly API_PORT=${BERTH_API_PORT:-8045}
readonly AGENTS_PORT=${BERTH_AGENTS_PORT:-8046}
readonly CGROUP=berth-run
readonly FAMILY=berth-demo-run
readonly SUBNET=${BERTH_SUBNET:-10.213.0.0/24}

folder=${PROFILE/#dev/debug}
BIN=${BERTH_BIN_DIR:-${CARGO_TARGET_DIR:-$ROOT/target}/$folder}

export AWS_ENDPOINT_URL_ECS=http://127.0.0.1:$API_PORT
export AWS_ACCESS_KEY_ID=any AWS_SECRET_ACCESS_KEY=any AWS_DEFAULT_REGION=us-east-1
export AWS_PAGER='' AWS_EC2_METADATA_DISABLED=true

control_plane=
agent=
task=
own_task=
stopped=()
engine_was_down=no

ecs() {
    "$VENV/bin/aws" ecs "$@"
}

# field QUERY COMMAND...: one value out of an answer.
field() {
    local query=$1
    shift
    ecs "$@" --output text --query "$query"
}

log_tail() {
    sed 's/^/    /' <(tail -n 15 "$RUN_DIR/$1.log") >&2
}

# ours OPTION...: containers of this demo's tasks and of nothing else.
ours() {
    local family
    for family in "$FAMILY" "$FAMILY-awsvpc"; do
        docker ps --all --quiet --filter "label=com.amazonaws.ecs.task-definition-family=$family" "$@"
    done
}

# === the end ===

task_status() {
    field 'tasks[0].lastStatus' describe-tasks --tasks "$task" 2>/dev/null
}

# all_stopped TASK...
all_stopped() {
    [ "$(field "length(tasks[?lastStatus!='STOPPED'])" describe-tasks --tasks "$@")" = 0 ]
}

# stop_tasks: all of the cluster, those that somebody ran beside the demo's own as well.
stop_tasks() {
    local each
    read -r -a stopped <<<"$(field 'taskArns[]' list-tasks | tr '\n' ' ')"
    [ "${#stopped[@]}" -gt 0 ] || return 0
    for each in "${stopped[@]}"; do
        ecs stop-task --task "$each" --reason "make run ended" >/dev/null || true
    done
    # As many as can be described at once.
    await 60 all_stopped "${stopped[@]:0:100}" ||
        echo "berth: not all tasks stopped; containers of the demo's own are removed by the next make run" >&2
}

stop_engine() {
    if [ -n "$(docker ps -q)" ]; then
        echo "the engine was started by this run, but containers run that are none of its tasks: left up" \
            "(to stop it and them: tests/scripts/engine.sh stop)"
    else
        "$SCRIPTS/engine.sh" stop
    fi
}

finish() {
    local code=$?
    trap - EXIT
    trap '' INT TERM
    if [ -n "$task" ] && [ -n "$agent" ] && ! gone "$agent"; then step "stopping the tasks" stop_tasks; fi
    if [ -n "$agent" ]; then step "stopping the agent" end_process "$agent" 20; fi
    if [ -n "$control_plane" ]; then step "stopping the control plane" end_process "$control_plane" 20; fi
    rm -f "$RUN_DIR/agent.pid" "$RUN_DIR/controlplane.pid"
    # The agent would keep ended containers for a while; it is gone.
    ours --filter status=exited | xargs --no-run-if-empty docker rm --volumes >/dev/null
    local each
    for each in "${stopped[@]}"; do
        docker ps --all --quiet --filter "label=com.amazonaws.ecs.task-arn=$each" --filter status=exited |
            xargs --no-run-if-empty docker rm --volumes >/dev/null
    done
    # Namespaces that were kept ready.
    docker ps --all --quiet --filter "label=io.berth.holder=$RUN_DIR/agent" | xargs --no-run-if-empty docker rm --force >/dev/null
    # Stays where tasks of the user's own still run.
    rmdir "/sys/fs/cgroup/$CGROUP" /sys/fs/cgroup/*/"$CGROUP" 2>/dev/null || true
    if [ "$engine_was_down" = yes ]; then step "stopping the engine" stop_engine; fi
    exit "$code"
}

# === what a killed run left ===

end_stale() {
    local pid
    pid=$(cat "$RUN_DIR/$1.pid" 2>/dev/null || true)
    if is_process "$pid" "$2"; then
        echo "    ending the $1 of a former run, process $pid"
        end_process "$pid" 10
    fi
    rm -f "$RUN_DIR/$1.pid"
}

tidy() {
    end_stale agent berth-agent
    end_stale controlplane berth-controlplane
    local stale
    stale=$(ours)
    if [ -n "$stale" ]; then
        echo "    removing $(wc -l <<<"$stale") container(s) of a former run"
        # shellcheck disable=SC2086 # one id a word
        docker rm --force --volumes $stale >/dev/null
    fi
    free_port "$API_PORT" BERTH_API_PORT
    free_port "$AGENTS_PORT" BERTH_AGENTS_PORT
}

free_port() {
    if (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; then
        die "port $1 of 127.0.0.1 is in use: end who has it (ss -ltnp sport = :$1), or choose another: $2=$(($1 + 10)) make run"
    fi
}

# === the steps ===

build() {
    # Programs that somebody else built are taken as they are.
    [ -z "${BERTH_BIN_DIR:-}" ] || return 0
    cargo build --profile "$PROFILE" --locked -p berth-agent -p berth-controlplane ||
        die "the build failed: the compiler's reasons are above"
}

# ended_or SAID PID LOG: ends the wait when the text is in the log, or the process has gone.
ended_or() {
    grep -q "$1" "$RUN_DIR/$3.log" || gone "$2"
}

# Each in a session of its own: Ctrl-C is for this script, which then ends them in order. None
# inherits the lock.
start_control_plane() {
    cat >"$RUN_DIR/vpc.json" <<END
{
  "subnets": [{"id": "subnet-demo", "cidr": "$SUBNET", "availabilityZone": "here", "provider": "veth"}],
  "securityGroups": [
    {"id": "sg-demo",
     "ingress": [{"protocol": "tcp", "fromPort": 8080, "cidrs": ["$SUBNET"]}],
     "egress": [{"protocol": "-1", "cidrs": ["0.0.0.0/0"]}]}
  ]
}
END
    setsid "$BIN/berth-controlplane" serve --data-dir "$RUN_DIR/controlplane" --vpc "$RUN_DIR/vpc.json" \
        --listen "127.0.0.1:$API_PORT" --agent-listen "127.0.0.1:$AGENTS_PORT" \
        >"$RUN_DIR/controlplane.log" 2>&1 </dev/null 9>&- &
    control_plane=$!
    echo "$control_plane" >"$RUN_DIR/controlplane.pid"
    await 20 ended_or '^listening ' "$control_plane" controlplane || true
    grep -q '^listening ' "$RUN_DIR/controlplane.log" && return
    log_tail controlplane
    die "the control plane did not get ready: its last lines are above (after an upgrade: rm -r .run/controlplane .run/agent)"
}

connected() {
    [ "$(field "length(containerInstances[?agentConnected])" describe-container-instances \
        --container-instances "$(field 'containerInstanceArns[0]' list-container-instances)")" = 1 ] ||
        gone "$agent"
}

start_agent() {
    ECS_CLUSTER=default ECS_BACKEND_HOST=http://127.0.0.1:$AGENTS_PORT ECS_DATADIR=$RUN_DIR/agent \
        ECS_IMAGE_PULL_BEHAVIOR=prefer-cached BERTH_CGROUP_ROOT="$CGROUP" ECS_ENABLE_TASK_ENI=true \
        BERTH_RUN_DIR=$RUN_DIR/run \
        setsid "$BIN/berth-agent" >>"$RUN_DIR/agent.log" 2>&1 </dev/null 9>&- &
    agent=$!
    echo "$agent" >"$RUN_DIR/agent.pid"
    if await 30 connected && ! gone "$agent"; then return; fi
    log_tail agent
    die "the agent did not join the cluster: its last lines are above, all of them in .run/agent.log"
}

register() {
    ecs register-task-definition --family "$FAMILY" --network-mode bridge --cpu 256 --memory 128 \
        --container-definitions '[{"name": "web", "image": "berth-demo:latest", "memory": 64, "cpu": 128,
            "portMappings": [{"containerPort": 8080, "hostPort": 0, "protocol": "tcp"}]}]' >/dev/null ||
        die "registering the task definition failed: the reason is above; see also .run/controlplane.log"
    ecs register-task-definition --family "$FAMILY-awsvpc" --network-mode awsvpc --cpu 256 --memory 128 \
        --container-definitions '[{"name": "web", "image": "berth-demo:latest", "memory": 64, "cpu": 128,
            "portMappings": [{"containerPort": 8080, "protocol": "tcp"}]}]' >/dev/null ||
        die "registering the task definition failed: the reason is above; see also .run/controlplane.log"
}

# run_task FAMILY OPTION...
run_task() {
    local answer
    answer=$(field '[tasks[0].taskArn, failures[0].reason]' run-task --task-definition "$@") ||
        die "running a task failed: the reason is above; see also .run/controlplane.log"
    task=${answer%%$'\t'*}
    [ "$task" != None ] || {
        task=
        die "the task was not placed: ${answer##*$'\t'}; what runs here: aws ecs list-tasks"
    }
}

settled() {
    local status
    status=$(task_status)
    if [ "$status" != "${last_status:-}" ]; then
        last_status=$status
        printf '    the task is %s after %s\n' "$status" "$(seconds_since "$task_began")" >&3
    fi
    [ "$status" = RUNNING ] || [ "$status" = STOPPED ] || gone "$agent"
}

wait_for_task() {
    local last_status='' task_began
    task_began=$(now_ms)
    exec 3>&1
    await 60 settled || true
    exec 3>&-
    [ "$last_status" = RUNNING ] && return
    log_tail agent
    die "the demo task is ${last_status:-unknown}: $(field 'tasks[0].stoppedReason' describe-tasks --tasks "$task")"
}

instance() {
    ecs describe-container-instances \
        --container-instances "$(field 'containerInstanceArns[0]' list-container-instances)" |
        "$VENV/bin/python" -c '
import json, sys
instance = json.load(sys.stdin)["containerInstances"][0]
amounts = [{r["name"]: r.get("integerValue") for r in instance[k]} for k in ("remainingResources", "registeredResources")]
print("  " + instance["containerInstanceArn"], instance["status"])
for name, unit in (("CPU", "CPU units"), ("MEMORY", "MiB of memory")):
    print(f"  {amounts[0][name]} of {amounts[1][name]} {unit} left")'
}

# The one with an interface of its own is waited for like the other.
run_own_task() {
    own_task=$task
    run_task "$FAMILY-awsvpc" --network-configuration 'awsvpcConfiguration={subnets=[subnet-demo],securityGroups=[sg-demo]}'
    wait_for_task
    local other=$own_task
    own_task=$task task=$other
}

show() {
    local port answer address own_answer
    address=$(field "tasks[0].attachments[0].details[?name=='privateIPv4Address'].value | [0]" describe-tasks --tasks "$own_task")
    own_answer=$(curl -fsS --retry 20 --retry-delay 1 --retry-connrefused --max-time 5 "http://$address:8080/") ||
        die "the task with an interface runs, but http://$address:8080/ does not answer: see .run/agent.log"
    port=$(field 'tasks[0].containers[0].networkBindings[0].hostPort' describe-tasks --tasks "$task")
    answer=$(curl -fsS --retry 20 --retry-delay 1 --retry-connrefused --max-time 5 "http://127.0.0.1:$port/") ||
        die "the task runs, but http://127.0.0.1:$port/ does not answer: see .run/agent.log"
    cat <<END

Berth is up.

The instance and what is left of it:
$(instance)

The task:
  $task
  RUNNING at http://127.0.0.1:$port/, which answers:
    ${answer//$'\n'/$'\n'    }

A task with an interface of its own (awsvpc):
  $own_task
  RUNNING at http://$address:8080/, which answers:
    ${own_answer//$'\n'/$'\n'    }

Go on in another terminal:
  export AWS_ENDPOINT_URL_ECS=$AWS_ENDPOINT_URL_ECS AWS_DEFAULT_REGION=us-east-1
  export AWS_ACCESS_KEY_ID=any AWS_SECRET_ACCESS_KEY=any
  export ECS_DATADIR=$RUN_DIR/agent BERTH_RUN_DIR=$RUN_DIR/run
  export PATH="$BIN:$VENV/bin:\$PATH"
  aws ecs describe-tasks --tasks $task
  aws ecs run-task --task-definition $FAMILY
  aws ecs run-task --task-definition $FAMILY-awsvpc --network-configuration 'awsvpcConfiguration={subnets=[subnet-demo],securityGroups=[sg-demo]}'
  berth-agent status
  berth-agent explain $task
  berth-agent exec $task -- /berth-demo connect 127.0.0.1 8080
  berth-agent net inspect $own_task
  aws ecs list-tasks
  aws ecs stop-task --task $task

Kill the agent, if you like (kill -9 \$(cat $RUN_DIR/agent.pid)): it is started again, and its tasks run on.
Logs: .run/agent.log and .run/controlplane.log.
END
}

began=$(now_ms)
mkdir -p "$RUN_DIR"
step "installing what is missing" "$SCRIPTS/prepare.sh"
exec 9>"$RUN_DIR/run.lock"
flock -n 9 || die "another make run is up in this checkout: end it with Ctrl-C there, or use a second checkout"
trap finish EXIT
interrupted=130
trap 'exit $interrupted' INT
trap 'exit 0' TERM
"$SCRIPTS/engine.sh" status || engine_was_down=yes
step "engine" "$SCRIPTS/engine.sh" ensure
step "building the control plane and the agent ($PROFILE)" build
step "demo image" "$SCRIPTS/demo-image.sh"
step "looking for what a former run left" tidy
step "starting the control plane" start_control_plane
: >"$RUN_DIR/agent.log"
step "starting the agent" start_agent
step "registering the task definitions $FAMILY and $FAMILY-awsvpc" register
step "running a task" run_task "$FAMILY"
step "waiting for the task" wait_for_task
step "running a task with an interface of its own" run_own_task
show
echo "All of it took $(seconds_since "$began")."
[ "${BERTH_RUN_ONCE:-}" != 1 ] || exit 0
echo "Ctrl-C ends it, and its tasks."
interrupted=0
while true; do
    code=0
    wait -n "$control_plane" "$agent" 2>/dev/null || code=$?
    # 128 and more: ended by a signal.
    if gone "$control_plane" || ! gone "$agent" || [ "$code" -lt 128 ]; then break; fi
    step "the agent was killed: starting it again" start_agent
done
if gone "$control_plane"; then ended=controlplane; else ended=agent; fi
log_tail "$ended"
die "the $ended ended by itself: its last lines are above, all of them in .run/$ended.log"
