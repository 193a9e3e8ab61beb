# What the scripts here share: where things are, how steps and failures are told. Sourced, never run.
# shellcheck shell=bash
# (The scripts live under tests/ and not under packaging/: nothing of them is ever installed.)

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
RUN_DIR=$ROOT/.run
VENV=$ROOT/.venv
export ROOT RUN_DIR VENV

# die WHAT FAILED, WHAT TO DO: one line on stderr, then the end.
die() {
    printf 'berth: %s\n' "$*" >&2
    exit 1
}

# Milliseconds since the epoch, without starting a process.
now_ms() {
    local us=${EPOCHREALTIME/[.,]/}
    echo $((us / 1000))
}

# seconds_since MS: "1.2 s".
seconds_since() {
    local ms=$(($(now_ms) - $1))
    printf '%d.%d s' $((ms / 1000)) $((ms % 1000 / 100))
}

# What hosts with systemd have beside what every one has: what shows packages of the Red Hat family on a Debian. Their
# system is made once, by whichever script comes first.
# shellcheck disable=SC2034 # used by those that read this file
readonly HOST_PACKAGES="dnf createrepo-c"

# step NAME COMMAND...: runs the command, says its name before and how long it took after.
# The command's own output goes through.
step() {
    local name=$1 began
    shift
    began=$(now_ms)
    printf '==> %s\n' "$name"
    # Where `set -e` holds, a failure ends the script here; where it does not, the code goes up.
    "$@"
    local code=$?
    [ $code -eq 0 ] || return $code
    printf '    %s: %s\n' "$name" "$(seconds_since "$began")"
}

# await SECONDS COMMAND...: asks until the command succeeds; fails when the time is over.
await() {
    local deadline=$(($(now_ms) + $1 * 1000))
    shift
    until "$@" >/dev/null 2>&1; do
        [ "$(now_ms)" -lt "$deadline" ] || return 1
        sleep 0.05
    done
}

# count_results FILE: the sum over all runners' closing lines, nextest's "Summary" and cargo test's
# "test result", as "N passed, N failed".
count_results() {
    sed 's/\x1b\[[0-9;]*m//g' "$1" | awk '
        /^ *Summary \[/ || /^test result:/ {
            for (i = 2; i <= NF; i++) {
                if ($i ~ /^passed/) passed += $(i - 1)
                if ($i ~ /^failed/) failed += $(i - 1)
                if ($i ~ /^timed/) failed += $(i - 1)
            }
        }
        END { printf "%d passed, %d failed\n", passed, failed }'
}

# failures FILE: each test that failed, and the first line of why, as far as the log tells.
failures() {
    sed 's/\x1b\[[0-9;]*m//g' "$1" | awk '
        # Of nextest, in its closing lines; of cargo test.
        /^ *Summary \[/ { closing = 1 }
        closing && /^ +(FAIL|TIMEOUT|ABORT|SIG[A-Z]+|LEAK-FAIL) \[/ { print; told = 0 }
        /^test .* \.\.\. FAILED$/ { print "    " $0; told = 0 }
        (closing || /^Error: /) && !told && /^ *(Error: |thread .* panicked at )/ {
            told = 1
            print "        " substr($0, 1, 400)
            if ($0 ~ /panicked at/ && getline > 0) print "        " substr($0, 1, 400)
        }'
}

# gone PID: whether the process has ended (one that nobody waited for counts as ended).
gone() {
    [ ! -e "/proc/$1" ] || [ "$(sed 's/.*) \(.\).*/\1/' "/proc/$1/stat" 2>/dev/null)" = Z ]
}

# is_process PID NAME: whether that process lives and still is the program of that name
# (a process id in a file may have been given to somebody else since; the kernel keeps 15 characters).
is_process() {
    [ -n "$1" ] && ! gone "$1" && [ "$(cat "/proc/$1/comm" 2>/dev/null)" = "${2:0:15}" ]
}

# end_process PID SECONDS: SIGTERM, and SIGKILL to one that has not gone by then.
end_process() {
    kill -TERM "$1" 2>/dev/null || return 0
    # The 0 is needed: in a trap a bare `return` gives the code from before the trap.
    if await "$2" gone "$1"; then return 0; fi
    printf 'berth: process %s ignored SIGTERM for %s s and was killed\n' "$1" "$2" >&2
    kill -KILL "$1" 2>/dev/null || true
}
