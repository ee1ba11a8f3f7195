#!/usr/bin/env bash
# Builds a program of a folder's Go files, which uses etcd's own client for Go, and prints the
# program's path. Returns at once when it is there, and up to date.
#
#   scripts/get_go_program.sh benchmarks/go      what is measured beside aioetcd
#   scripts/get_go_program.sh tests/interop/go   another player in the tests of locks and elections
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

version=3.7.3
folder=${1:?usage: scripts/get_go_program.sh FOLDER}
name=${folder//\//-}
target=$PWD/.tools/$name
key="$version $(cat "$folder"/*.go | cksum)"

is_current() {
    [[ -x $target/$name && $(cat "$target/key" 2>/dev/null) == "$key" ]]
}

is_current && echo "$target/$name" && exit
mkdir -p "$target"
if command -v flock >/dev/null; then # one build at a time
    exec 9>"$target/lock"
    flock 9
    is_current && echo "$target/$name" && exit
fi
rm -f "$target"/*.go
cp "$folder"/*.go "$target/"
(
    cd "$target"
    export CGO_ENABLED=0 GOWORK=off
    rm -f go.mod go.sum
    go mod init "$name"
    go get "go.etcd.io/etcd/client/v3@v$version"
    go build -mod=mod -buildvcs=false -trimpath -o "$name" .
) >&2
echo "$key" >"$target/key"
echo "$target/$name"
