#!/usr/bin/env bash
# Random faults against a cluster of three for some minutes, and every guarantee checked at the end.
#
#   scripts/stress.sh MINUTES [SEED] [--batched]
#
# AIOETCD_TEST_ETCD names the etcd to take; else it is 3.6.16 where go can build it, else 3.5.1, with
# which the faults that this server itself does not survive are left out. The seed is printed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if (($# < 1 || $# > 3)); then
    sed -n '2,7s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
scripts/setup.sh
if [[ -z ${AIOETCD_TEST_ETCD:-} ]] && { command -v go || [[ -x .etcd/3.6.16/etcd ]]; } >/dev/null; then
    AIOETCD_TEST_ETCD=$(scripts/get_etcd.sh 3.6.16)
    export AIOETCD_TEST_ETCD
fi
PYTHONPATH=. exec .venv/bin/python -m tests.stress.run "$@"
