#!/usr/bin/env bash
# Makes the environment and compares backpropagation, feedback alignment and target propagation on handwritten
# digits: a table, a plot and a SavedModel, in a few minutes and without a data set to download.
#
#   bash launchers/local.sh                  the comparison
#   bash launchers/local.sh train --gin_file=quickstart.gin --workdir=runs/q
#                                            any tfbio command instead
#   bash launchers/local.sh --dry_run [...]  only prints what it would do
set -euo pipefail

if [ "${1:-}" = --dry_run ]; then
    dry_run=1
    shift
fi
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"
prepare_environment

if [ $# -gt 0 ]; then
    run "$environment/bin/tfbio" "$@"
    exit
fi

cd "$root"
study=runs/digits
processes=$(cores)
if [ "$processes" -gt 4 ]; then
    processes=4 # each takes about half a gigabyte of memory
fi
run "$environment/bin/tfbio" study --gin_file=studies/digits.gin --workdir="$study" --processes="$processes"
exported=$study/digits-FC-FA/seed0
run "$environment/bin/tfbio" export --workdir="$exported" --preprocessing
cat <<END

table       $study/report.md (and report.csv)
plot        $study/learning_curves.png
SavedModel  $exported/export/saved_model (feedback alignment; uint8 images in, probabilities out)
END
