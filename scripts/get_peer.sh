#!/usr/bin/env bash
# Makes a virtual environment with another etcd client for Python, pinned, and prints its python.
# Each has one of its own: they want different versions of protobuf. Returns at once when it is there.
#
#   scripts/get_peer.sh NAME
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

case ${1:-} in
aetcd) packages=(aetcd==1.0.0) ;;
etcd-client-py) packages=(etcd-client-py==0.5.1) ;;
etcd-sdk-python) packages=(etcd-sdk-python==0.0.7 'protobuf>=5') ;; # it does not say that it needs it
etcd3) packages=(etcd3==0.12.0 'protobuf<3.21' 'tenacity<7') ;; # it is of their time
etcd3aio) packages=(etcd3aio==0.3.0) ;;
etcd3gw) packages=(etcd3gw==2.7.0) ;;
*)
    echo "usage: scripts/get_peer.sh aetcd|etcd-client-py|etcd-sdk-python|etcd3|etcd3aio|etcd3gw" >&2
    exit 2
    ;;
esac
venv=$PWD/.tools/peers/$1
key="${packages[*]} $(.venv/bin/python --version)"

[[ $(cat "$venv/key" 2>/dev/null) == "$key" ]] && echo "$venv/bin/python" && exit
.venv/bin/python -m venv --clear "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check "${packages[@]}" >&2
echo "$key" >"$venv/key"
echo "$venv/bin/python"
