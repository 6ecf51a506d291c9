# shellcheck shell=bash
# Finds a Python and prepares the virtual environment; sourced by the launcher, scripts/check and
# scripts/test, so that all three agree. Expects $root, the directory of the project; sets $venv.

root="${root:?}"
venv="$root/.venv"

# Prints the first Python that is new enough. PYTHON=... names one to use instead.
find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.14 python3.13 python3.12 python3.11 python; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            command -v "$candidate"
            return 0
        fi
        if [ -n "${PYTHON:-}" ]; then
            echo "lattice: PYTHON=$PYTHON does not run, or is older than 3.11" >&2
            return 1
        fi
    done
    echo "lattice: Python 3.11 or newer is needed and none was found on PATH." >&2
    echo "lattice: on Debian or Ubuntu: sudo apt-get install python3 python3-venv; or name one with PYTHON=/path/to/python3" >&2
    return 1
}

# prepare_env run|dev: leaves $venv with the locked packages and the project; dev adds what checks
# and tests need.
prepare_env() {
    local python
    python="$(find_python)" || return 78
    "$python" "$root/scripts/bootstrap.py" --venv "$venv" --for "$1"
}
