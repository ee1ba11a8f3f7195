#!/usr/bin/env bash
# Builds the documentation into site/, which can be read from there: open site/index.html.
#
#   scripts/docs.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scripts/setup.sh
NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict --quiet
echo "site/index.html"
