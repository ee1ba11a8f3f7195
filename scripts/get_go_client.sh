#!/usr/bin/env bash
# Builds benchmarks/go, which measures etcd's own client for Go, and prints the program's path. Returns
# at once when it is there, and up to date.
#
#   scripts/get_go_client.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

version=3.7.3
target=$PWD/.tools/go-client
key="$version $(cat benchmarks/go/*.go | cksum)"

[[ -x $target/go-client && $(cat "$target/key" 2>/dev/null) == "$key" ]] && echo "$target/go-client" && exit
mkdir -p "$target"
cp benchmarks/go/*.go "$target/"
(
    cd "$target"
    export CGO_ENABLED=0 GOWORK=off
    rm -f go.mod go.sum
    go mod init go-client
    go get "go.etcd.io/etcd/client/v3@v$version"
    go build -mod=mod -buildvcs=false -trimpath -o go-client .
) >&2
echo "$key" >"$target/key"
echo "$target/go-client"
