#!/bin/sh
# Puts the programs on the machine that tests/system/rigs need: loop mounts, network namespaces, a
# clock that can be set. Debian's packages, and only as root; anybody else is told what is missing.
set -eu

missing=""
need() { # program, its package
    command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ] || [ -x "/sbin/$1" ] || missing="$missing $2"
}
need ip iproute2
need mkfs.ext4 e2fsprogs
need mount mount
need nsenter util-linux
need faketime faketime

[ -n "$missing" ] || exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    # shellcheck disable=SC2086 # a list of packages
    apt-get install -y -qq --no-install-recommends $missing >/dev/null 2>&1 || {
        apt-get update -qq >/dev/null
        apt-get install -y -qq --no-install-recommends $missing >/dev/null
    }
    echo "installed:$missing"
else
    echo "missing for tests/system/rigs, which will fail without:$missing (apt-get install$missing)" >&2
fi
