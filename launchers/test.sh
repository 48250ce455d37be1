#!/usr/bin/env bash
# Makes the environment and runs the tests, on all cores. Arguments go to pytest: bash launchers/test.sh tests/rules -x
set -euo pipefail

source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"
prepare_environment dev

cd "$root"
workers=$(cores)
if [ -r /proc/meminfo ]; then # a worker may come to four gigabytes: networks of the papers, and all that XLA compiled
    room=$(awk '/^MemAvailable/ { print int($2 / 4e6) }' /proc/meminfo)
    workers=$((room < 1 ? 1 : room < workers ? room : workers))
fi
exec "$python" -m pytest -n "$workers" --dist worksteal "$@"
