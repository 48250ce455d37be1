# Sourced by the launchers: the environment `.venv` in the repository, made when it is missing or out of date.
#
#   prepare_environment [EXTRA]   makes it, with tfbio and its dependencies (those of EXTRA too); sets `python`
#   cores                         prints the number of usable cores
#
# Set PYTHON to choose the interpreter that the environment is made with, and dry_run=1 to print instead of act.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
environment=$root/.venv
python=$environment/bin/python
dry_run=${dry_run:-}

run() {
    if [ -n "$dry_run" ]; then
        printf '%q ' "$@"
        printf '\n'
    else
        "$@"
    fi
}

cores() {
    nproc 2>/dev/null || getconf _NPROCESSORS_ONLN
}

# A Python counts if it runs (a version manager's stub need not) and can make an environment with pip.
_find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
            >/dev/null 2>&1 </dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "No usable Python found: install Python 3.11 to 3.13 with its venv and pip modules" \
        "(Debian, Ubuntu: apt install python3-venv), or name one: PYTHON=/path/to/python3 $0" >&2
    return 1
}

prepare_environment() { # launchers that start at the same time take turns
    if [ -z "$dry_run" ] && command -v flock >/dev/null; then
        exec 9>"$environment.lock"
        flock 9
    fi
    _make_environment "$@"
    exec 9>&-
}

_make_environment() {
    local extra=${1:-} stamp base wanted file unfinished=$environment/.unfinished
    # The path is part of the stamp since an environment can't be moved.
    wanted=$({ echo "$root" && cat "$root/setup.py" "$root/pyproject.toml"; } | cksum)
    stamp=$environment/.tfbio${extra:+-$extra}
    # An installation that was cut short can leave packages by halves that pip takes for whole.
    if [ ! -f "$unfinished" ] && "$python" -c '' >/dev/null 2>&1 </dev/null; then
        for file in "$stamp" "$environment"/.tfbio-*; do # an environment with an extra serves without it too
            if [ -f "$file" ] && [ "$(cat "$file")" = "$wanted" ] && { [ "$file" = "$stamp" ] || [ -z "$extra" ]; }; then
                return
            fi
        done
    else
        base=$(_find_python)
        echo "Making $environment with $("$base" --version)." >&2
        run "$base" -m venv --clear "$environment"
    fi
    echo "Installing tfbio and what it needs; the first time takes some minutes." >&2
    run touch "$unfinished"
    (cd "$root" && run "$python" -m pip install -qq --no-input --disable-pip-version-check -e ".${extra:+[$extra]}")
    run rm -f "$unfinished"
    if [ -z "$dry_run" ]; then
        echo "$wanted" >"$stamp"
    fi
}
