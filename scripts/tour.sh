#!/usr/bin/env bash
# Shows what the client does, on a real etcd that it starts and ends itself.
#
#   scripts/tour.sh [arguments of examples/tour.py]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
scripts/setup.sh
exec .venv/bin/python examples/tour.py "$@"
