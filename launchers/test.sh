#!/usr/bin/env bash
# Makes the environment and runs the tests, on all cores. Arguments go to pytest: bash launchers/test.sh tests/rules -x
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"
prepare_environment dev

cd "$root"
workers=$(cores)
if [ "$workers" -gt 8 ]; then
    workers=8 # each takes about a gigabyte of memory
fi
exec "$python" -m pytest -n "$workers" --dist worksteal "$@"
