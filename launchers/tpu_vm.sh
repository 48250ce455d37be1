#!/usr/bin/env bash
# Trains on a Cloud TPU VM, or on a slice of several: makes it, copies this repository there, runs, deletes it.
#
#   export NAME=tfbio ZONE=us-west4-a ACCELERATOR=v5litepod-8 VERSION=tpu-vm-tf-2.20.0-pjrt
#   bash launchers/tpu_vm.sh create | copy | run train --gin_file=… --workdir=runs/q | delete
#   bash launchers/tpu_vm.sh --dry_run COMMAND ...           only prints what it would do
#
# VERSION is the machine's image, `gcloud compute tpus tpu-vm versions list` names them; an accelerator of more than one
# VM needs one with -pod in its name. TensorFlow drives a whole slice from one program: on every VM of a -pod image a
# server waits for work, and tfbio runs on the first VM alone, told the slice's name and not to take the TPU itself. So
# code goes to the first VM only, whose disk has the work directory, too, and TensorFlow must be the image's, as its
# servers are. A TPU costs money, and keeps its disk, from `create` to `delete`.
set -euo pipefail

if [ "${1:-}" = --dry_run ]; then
    dry_run=1
    shift
fi
command=${1:-}
case $command in
create | copy | delete) [ $# -eq 1 ] || command= ;;
run) [ $# -gt 1 ] || command= ;;
*) command= ;;
esac
if [ -z "$command" ]; then
    sed -n '4,6s/^# *//p' "${BASH_SOURCE[0]}" >&2
    exit 2
fi
shift
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"

wanted=("NAME, what the TPU is called (tfbio)" "ZONE, where it is (us-west4-a)")
case $command in
create) wanted+=("ACCELERATOR, which TPU (v5litepod-8)" "VERSION, the machine's image (tpu-vm-tf-2.20.0-pjrt)") ;;
run) wanted+=("VERSION, the machine's image, as it was made with (tpu-vm-tf-2.20.0-pjrt)") ;;
esac
missing=()
for variable in "${wanted[@]}"; do
    name=${variable%%,*}
    [ -n "${!name:-}" ] || missing+=("$variable")
done
if [ ${#missing[@]} -gt 0 ]; then
    printf 'Variables that %s needs, to be exported first:\n' "$command" >&2
    printf '  %s\n' "${missing[@]}" >&2
    exit 2
fi

tpu() { # VERB ARGUMENTS...
    run gcloud compute tpus tpu-vm "$@" "--zone=$ZONE"
}

on_first() { # a shell command
    tpu ssh "$NAME" --worker=0 "--command=$1"
}

case $command in
create)
    tpu create "$NAME" "--accelerator-type=$ACCELERATOR" "--version=$VERSION"
    ;;
copy)
    archive=$(mktemp -d)/tfbio.tar.gz
    trap 'rm -r "$(dirname "$archive")"' EXIT
    run tar -czf "$archive" --exclude=./.git --exclude=./.venv --exclude=./runs -C "$root" .
    tpu scp "$archive" "$NAME:" --worker=0
    on_first 'mkdir -p tfbio && tar -xzf tfbio.tar.gz -C tfbio && cd tfbio &&
        python3 -m venv --system-site-packages .venv && .venv/bin/pip install -q -e .'
    ;;
run)
    case $VERSION in
    *-pod*) settings="TPU_NAME=$NAME TPU_LOAD_LIBRARY=0" ;;
    *-pjrt*) settings='TPU_NAME=local NEXT_PLUGGABLE_DEVICE_USE_C_API=true TF_PLUGGABLE_DEVICE_LIBRARY_PATH=/lib/libtpu.so' ;;
    *) settings='TPU_NAME=local' ;;
    esac
    on_first "cd tfbio && $settings .venv/bin/tfbio$(printf ' %q' "$@" '--gin_param=train.strategy="tpu"')"
    ;;
delete)
    tpu delete "$NAME" --quiet
    ;;
esac
