#!/usr/bin/env bash
# Everything, as before a release: the whole suite on each etcd, once more on the newest with uvloop,
# and two times ten minutes of random faults. Goes on after a failure, and tells at the end.
#
#   scripts/full.sh [SEED SEED]     the seeds of the random faults
#
# Writes .full/table.md: what ran where, and what is known to fail there, with the reason. An etcd
# that cannot be had here is left out, and the table says so.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

servers=(3.4.23 3.5.1 3.5.35 3.6.16 3.7.3 3.8.0-alpha.0)
seeds=("${1:-$RANDOM}" "${2:-$RANDOM}")
failed=()

# The whole suite: `suite COLUMN ARGUMENTS...`. What only looks at packages is run apart, once.
suite() {
    local column=$1
    shift
    scripts/test.sh -n auto --dist worksteal -m "not alone and not packaging" \
        --junitxml=".full/$column/together.xml" "$@" || failed+=("$column")
    scripts/test.sh -m alone --junitxml=".full/$column/alone.xml" "$@" ||
        failed+=("$column: what runs alone")
}

rm -rf .full
mkdir .full
export AIOETCD_TEST_LONG=1
scripts/test.sh -m packaging || failed+=("packaging")
for version in "${servers[@]}"; do
    if [[ $version == 3.5.1 ]]; then
        etcd= # the packaged one
    elif ! etcd=$(scripts/get_etcd.sh "$version"); then
        echo "etcd $version: not to be had here, left out"
        continue
    fi
    AIOETCD_TEST_ETCD=$etcd suite "$version"
    newest=$etcd
done
AIOETCD_TEST_ETCD=$newest suite uvloop --uvloop
for seed in "${seeds[@]}"; do
    scripts/stress.sh 10 "$seed" || failed+=("stress with seed $seed")
done

.venv/bin/python scripts/full_table.py .full "${servers[@]}" uvloop >.full/table.md
cat .full/table.md
echo "$((SECONDS / 60)) min. The table is in .full/table.md."
((${#failed[@]} == 0)) && echo "All passed." && exit
printf 'FAILED: %s\n' "${failed[@]}"
exit 1
