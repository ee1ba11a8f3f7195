#!/usr/bin/env bash
# Makes .venv: the pinned development dependencies and this checkout, editable. Returns at once
# when nothing has changed since.
#
#   scripts/setup.sh
#
# Takes $PYTHON, else the newest Python >= 3.11 it finds. A .venv that is there already is kept
# unless PYTHON asks for another version.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
venv=$root/.venv
stamp=$venv/setup-stamp

fail() {
    echo "setup.sh: $*" >&2
    exit 1
}

is_new_enough() {
    "$1" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
    local candidate
    if [[ -n ${PYTHON:-} ]]; then
        is_new_enough "$PYTHON" || fail "PYTHON=$PYTHON is not a Python 3.11 or newer with venv"
        echo "$PYTHON"
        return
    fi
    for candidate in python3.14 python3.13 python3.12 python3.11 python3 python \
        "$HOME"/.pyenv/versions/3.1[1-9]*/bin/python; do
        if is_new_enough "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    fail "needs Python 3.11 or newer with venv, and found none; name one with PYTHON=/path/to/python"
}

# What decides whether .venv is up to date: what is installed, into which Python, and where.
key() {
    echo "$venv $(readlink -f "$venv/bin/python")"
    cksum requirements-dev.txt pyproject.toml
}

has_wanted_version() {
    [[ -z ${PYTHON:-} ]] && return
    local version='import sys; print(sys.version_info[:3])'
    [[ $("$PYTHON" -c "$version" 2>/dev/null) == "$("$venv/bin/python" -c "$version")" ]]
}

is_current() {
    [[ -f $stamp && -x $venv/bin/python && $(<"$stamp") == "$(key)" ]] && has_wanted_version
}

is_current && exit

mkdir -p .tools
if command -v flock >/dev/null; then # one set-up at a time
    exec 9>.tools/setup.lock
    flock 9
    is_current && exit
fi

if [[ ! -x $venv/bin/python ]] || ! is_new_enough "$venv/bin/python" || ! has_wanted_version; then
    python=$(find_python)
    echo "setup.sh: making .venv with $("$python" --version)" >&2
    "$python" -m venv --clear "$venv" || fail "$python cannot make virtual environments (venv)"
fi
echo "setup.sh: installing requirements-dev.txt" >&2
rm -f "$stamp"
pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check)
"${pip[@]}" --requirement requirements-dev.txt
"${pip[@]}" --no-deps --no-build-isolation --editable .
key >"$stamp"
