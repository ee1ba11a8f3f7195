#!/usr/bin/env bash
# Puts etcd, etcdctl and etcdutl (whose work in 3.4 etcdctl does) into .etcd/VERSION/, and prints the
# path of etcd. Returns at once when they are there. Builds them from their Go modules; 3.4.23, which
# cannot be built so, is Debian's.
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

is_there() {
    [[ -x $target/etcd && -x $target/etcdctl && ($version == 3.4.* || -x $target/etcdutl) ]]
}

# Into $work/programs, like the next one.
build() {
    command -v go >/dev/null || fail "building etcd $version needs go, and there is none on the PATH"
    mkdir -p "$work/source/etcd" "$work/source/etcdctl"
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
    cd "$work/source"
    export CGO_ENABLED=0 GOWORK=off
    go mod init programs
    # All of etcd's modules: a pre-release's server may ask for an older `api`, which has the version.
    go get "go.etcd.io/etcd/"{api,client/pkg,client,pkg,server,etcdctl,etcdutl}"/v3@v$version"
    go build -mod=mod -buildvcs=false -trimpath -ldflags='-s -w' -o "$work/programs/" \
        ./... go.etcd.io/etcd/etcdutl/v3
}

unpack_debians() {
    command -v apt-get dpkg-deb >/dev/null || fail "etcd $version is taken from Debian, by apt"
    mkdir "$work/packages"
    cd "$work/packages"
    apt-get download etcd-server etcd-client
    for package in *.deb; do
        dpkg-deb -x "$package" .
    done
    cp usr/bin/etcd usr/bin/etcdctl "$work/programs/"
}

is_there && echo "$target/etcd" && exit
mkdir -p "$root/.etcd"
if command -v flock >/dev/null; then # one at a time: somebody else may be at it
    exec 9>"$root/.etcd/lock"
    flock 9
    is_there && echo "$target/etcd" && exit
fi

work=$(mktemp -d "$root/.etcd/build-XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir "$work/programs"
if [[ $version == 3.4.23 ]]; then
    way=unpack_debians
else
    way=build
fi
echo "get_etcd.sh: getting etcd $version" >&2
# Not in a condition, where `set -e` would not hold.
set +e
(
    set -e
    $way
) >"$work/log" 2>&1
status=$?
set -e
((status == 0)) || fail "getting etcd $version failed:
$(tail -n 20 "$work/log")"

# Read to its end: a reader that leaves early (grep -q) kills the writer, and `pipefail` reports it.
told=$("$work/programs/etcd" --version)
[[ $told == *"etcd Version: $version"$'\n'* ]] || fail "this is not etcd $version: $told"

# In one step, so that nobody sees half of it; somebody else may have been quicker.
if ! is_there; then
    rm -rf "$target"
    mv "$work/programs" "$target"
fi
echo "$target/etcd"
