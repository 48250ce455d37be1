#!/usr/bin/env bash
# Trains one model in several processes of this machine, which share every batch.
#
#   bash launchers/multi_worker.sh N train --gin_file=quickstart.gin --workdir=runs/q
#   bash launchers/multi_worker.sh --dry_run N train ...     only prints what it would do
#
# The first process writes the run directory and reports here; what the others say is in WORKDIR/workers/, or, without a
# --workdir, in runs/workers/. If one process fails, the others are stopped; the same command goes on. Ctrl-C and SIGTERM
# stop all, which save a checkpoint first; the exit code is 130 or 143 then.
# PORT is that of the first process (22222), the others count up from it.
set -euo pipefail

if [ "${1:-}" = --dry_run ]; then
    dry_run=1
    shift
fi
count=${1:-}
if ! [[ $count =~ ^[1-9][0-9]*$ ]] || [ $# -lt 2 ]; then
    sed -n '4,5s/^# *//p' "${BASH_SOURCE[0]}" >&2
    exit 2
fi
shift
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"
prepare_environment

logs=runs/workers
before=
for argument in "$@"; do # a flag has one dash or two, and its value behind = or in the next word
    case $argument in --workdir=* | -workdir=*) logs=${argument#*=}/workers ;; esac
    case $before in --workdir | -workdir) logs=$argument/workers ;; esac
    before=$argument
done
run mkdir -p -- "$logs"

addresses=
for ((i = 0; i < count; i++)); do
    addresses+="${addresses:+, }\"localhost:$((${PORT:-22222} + i))\""
done

processes=()
interrupted=
stop() { # a signal to this script is one to all processes, which then save together
    kill -TERM ${processes[@]+"${processes[@]}"} 2>/dev/null || true
}
trap stop TERM
trap 'interrupted=1; stop' INT # as SIGTERM: what a script starts in the background ignores SIGINT

start() { # INDEX ARGUMENTS...
    local index=$1
    shift
    local task="{\"cluster\": {\"worker\": [$addresses]}, \"task\": {\"type\": \"worker\", \"index\": $index}}"
    if [ -n "$dry_run" ]; then
        run env "TF_CONFIG=$task" "$environment/bin/tfbio" "$@"
    elif [ "$index" = 0 ]; then
        TF_CONFIG=$task "$environment/bin/tfbio" "$@" &
        processes+=($!)
    else
        TF_CONFIG=$task "$environment/bin/tfbio" "$@" >"$logs/worker-$index.log" 2>&1 &
        processes+=($!)
    fi
}

for ((i = 0; i < count; i++)); do
    start "$i" "$@" '--gin_param=train.strategy="multi_worker"'
done

# Whichever ends first: a failure must be seen though others still wait for the one that failed.
code=0
while [ ${#processes[@]} -gt 0 ]; do
    running=()
    for process in "${processes[@]}"; do
        if kill -0 "$process" 2>/dev/null; then
            running+=("$process")
        else
            status=0
            wait "$process" || status=$?
            if [ "$status" != 0 ] && [ "$code" = 0 ]; then
                code=$status
                stop
            fi
        fi
    done
    processes=(${running[@]+"${running[@]}"})
    sleep 0.2 || true # a Ctrl-C on the terminal ends it, too
done
if [ -n "$interrupted" ] && [ "$code" = 143 ]; then
    code=130
fi
exit "$code"
