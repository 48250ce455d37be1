#!/usr/bin/env bash
# Trains one model in several pods of a Kubernetes cluster, a worker in each, as launchers/kubernetes.yaml says.
#
#   bash launchers/kubernetes.sh N IMAGE train --gin_file=quickstart.gin --workdir=/shared/runs/q
#   bash launchers/kubernetes.sh --dry_run N IMAGE train ...     only prints what it would do
#
# IMAGE is a container's with tfbio installed. NAME (tfbio) is what the job is called, GPUS (1) how many a worker has,
# CLAIM (shared) the claim of the volume that all workers see at /shared. To watch, and to end:
#   kubectl logs --follow --selector=job-name=NAME --prefix
#   kubectl delete job,service NAME
set -euo pipefail

if [ "${1:-}" = --dry_run ]; then
    dry_run=1
    shift
fi
count=${1:-}
if ! [[ $count =~ ^[1-9][0-9]*$ ]] || [ $# -lt 3 ]; then
    sed -n '4,5s/^# *//p' "${BASH_SOURCE[0]}" >&2
    exit 2
fi
image=$2
shift 2
name=${NAME:-tfbio}
if ! [[ $name =~ ^[a-z]([-a-z0-9]{0,50}[a-z0-9])?$ ]] || ! [[ ${GPUS:-1} =~ ^[0-9]+$ ]]; then
    echo "Invalid value for NAME or GPUS: expected up to 52 lower-case letters, digits and dashes, the first a letter," \
        "and a number, received '$name' and '${GPUS:-1}'." >&2
    exit 2
fi

newline=$'\n'
escaped() { # its argument as YAML reads it between quotation marks
    local text=${1//\\/\\\\}
    text=${text//\"/\\\"}
    printf '%s\n' "${text//$newline/\\n}"
}

quoted() { # its arguments as a list that YAML reads; Kubernetes would fill in $(…)
    local argument list=
    for argument in "$@"; do
        argument=${argument//'$('/'$$('}
        list+="${list:+, }\"$(escaped "$argument")\""
    done
    echo "[$list]"
}

workers=
for ((i = 0; i < count; i++)); do
    workers+="${workers:+, }\"$name-$i.$name:22222\""
done
arguments=$(quoted "$@" '--gin_param=train.strategy="multi_worker"')

shopt -u patsub_replacement 2>/dev/null || true # or an & in a value would mean what it replaces
manifest=$(cat "$(dirname "${BASH_SOURCE[0]}")/kubernetes.yaml")
manifest=${manifest//@NAME@/$name}
manifest=${manifest//@WORKERS@/$count}
manifest=${manifest//@WORKER_LIST@/$workers}
manifest=${manifest//@IMAGE@/$(escaped "$image")}
manifest=${manifest//@GPUS@/${GPUS:-1}}
manifest=${manifest//@CLAIM@/$(escaped "${CLAIM:-shared}")}
manifest=${manifest//@ARGUMENTS@/$arguments} # last: what users write is not filled in again
if [ -n "${dry_run:-}" ]; then
    printf "kubectl apply --filename=- <<'END'\n%s\nEND\n" "$manifest"
else
    kubectl apply --filename=- <<<"$manifest"
fi
