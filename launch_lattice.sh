#!/usr/bin/env bash
# Starts a Lattice node in the foreground; the first run makes the virtual environment and the .env
# file. launch_lattice_v2.bat is the same for Windows.
set -euo pipefail

usage() {
    cat <<'TEXT'
Usage: ./launch_lattice.sh [NAME] [--join TICKET]
       ./launch_lattice.sh twin

  NAME           settings are read from .env.NAME, and from .env without a NAME;
                 a missing file is made from .env.example
  --join TICKET  join the network of this ticket (also @FILE, or - for standard input)
  twin           two nodes on this machine, nodeA and nodeB, joined to each other
TEXT
}

name=""
join=""
while [ $# -gt 0 ]; do
    case "$1" in
        -h | --help)
            usage
            exit 0
            ;;
        --join)
            [ $# -ge 2 ] || { echo "lattice: --join needs a ticket" >&2; exit 2; }
            join="$2"
            shift 2
            ;;
        --join=*)
            join="${1#--join=}"
            shift
            ;;
        -*)
            echo "lattice: there is no option $1" >&2
            usage >&2
            exit 2
            ;;
        *)
            [ -z "$name" ] || { echo "lattice: one name, not two: $name, $1" >&2; exit 2; }
            name="$1"
            shift
            ;;
    esac
done

if [ "$name" = twin ] && [ -n "$join" ]; then
    echo "lattice: twin makes its own network and takes no ticket" >&2
    exit 2
fi
# The ticket goes on by the environment: the arguments of a process are open to every user.
case "$join" in
    "") ;;
    -)
        IFS= read -r LATTICE_JOIN || [ -n "$LATTICE_JOIN" ] || { echo "lattice: no ticket came in" >&2; exit 2; }
        export LATTICE_JOIN
        ;;
    @/*) export LATTICE_JOIN="$join" ;;
    @*) export LATTICE_JOIN="@$PWD/${join#@}" ;;
    *) export LATTICE_JOIN="$join" ;;
esac

root="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)"
cd -- "$root"
. scripts/env.sh

prepare_env run || exit $?
if [ "$name" = twin ]; then
    exec "$venv/bin/python" "$root/scripts/twin.py"
fi
env_file="$("$venv/bin/python" "$root/scripts/bootstrap.py" --env-file-of "$name")" || exit $?
exec "$venv/bin/python" -m lattice start --env-file "$env_file"
