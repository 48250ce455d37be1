#!/usr/bin/env bash
# Makes the environment and runs the tests, on all cores.
#
#   bash launchers/test.sh                     all tests
#   bash launchers/test.sh tests/rules -x      arguments go to pytest
#   bash launchers/test.sh --dry_run [...]     only prints what it would do
set -euo pipefail

if [ "${1:-}" = --dry_run ]; then
    dry_run=1
    shift
fi
source "$(dirname "${BASH_SOURCE[0]}")/_environment.sh"
prepare_environment dev

cd "$root"
workers=$(cores)
if [ -r /proc/meminfo ]; then # a worker may come to four gigabytes: networks of the papers, and all that XLA compiled
    room=$(awk '/^MemAvailable/ { print int($2 / 4e6) }' /proc/meminfo)
    workers=$((room < 1 ? 1 : room < workers ? room : workers))
fi
run exec "$python" -m pytest -n "$workers" --dist worksteal "$@"
