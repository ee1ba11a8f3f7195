#!/usr/bin/env bash
# Builds etcd and etcdctl from their Go modules into .etcd/VERSION/, and prints the path of etcd.
# Returns at once when they are there.
#
#   scripts/get_etcd.sh 3.6.16
set -euo pipefail

fail() {
    echo "get_etcd.sh: $*" >&2
    exit 1
}

[[ $# == 1 && $1 =~ ^v?[0-9]+\.[0-9]+\.[0-9]+(-[a-z0-9.]+)?$ ]] || fail "usage: get_etcd.sh VERSION"
version=${1#v}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
target=$root/.etcd/$version

if [[ -x $target/etcd && -x $target/etcdctl ]]; then
    echo "$target/etcd"
    exit
fi
command -v go >/dev/null || fail "building etcd $version needs go, and there is none on the PATH"

mkdir -p "$root/.etcd"
work=$(mktemp -d "$root/.etcd/build-XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/source/etcd" "$work/source/etcdctl" "$work/programs"
cat >"$work/source/etcd/main.go" <<'GO'
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() { etcdmain.Main(os.Args) }
GO
cat >"$work/source/etcdctl/main.go" <<'GO'
package main

import "go.etcd.io/etcd/etcdctl/v3/ctlv3"

func main() { ctlv3.MustStart() }
GO

echo "get_etcd.sh: building etcd $version" >&2
(
    cd "$work/source"
    export CGO_ENABLED=0 GOWORK=off
    go mod init programs
    # All of etcd's modules: a server of a pre-release may ask for an older `api`, which holds the version.
    go get "go.etcd.io/etcd/"{api,client/pkg,client,pkg,server,etcdctl}"/v3@v$version"
    go build -mod=mod -buildvcs=false -trimpath -ldflags='-s -w' -o "$work/programs/" ./...
) >"$work/log" 2>&1 || fail "building etcd $version failed:
$(tail -n 20 "$work/log")"
# Read to its end: a reader that leaves early (grep -q) kills the writer, and `pipefail` reports that.
built=$("$work/programs/etcd" --version)
[[ $built == *"etcd Version: $version"$'\n'* ]] || fail "the etcd that was built says: $built"

# In one step, so that nobody sees half of it; somebody else may have been quicker.
if [[ ! -x $target/etcd || ! -x $target/etcdctl ]]; then
    rm -rf "$target"
    mv "$work/programs" "$target"
fi
echo "$target/etcd"
