#!/bin/sh
# Puts an etcd that is safe to trust at .tools/etcd, unless one is there or on the PATH.
# Starts nothing, installs nothing outside .tools, and may be run again at any time.
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
tools=$root/.tools
go_version=v3.6.16

# 3.4.21, 3.5.5 or newer: older ones can lose acknowledged changes (engine/snapshots/etcd/version.py).
new_enough() {
    version=$("$1" --version 2>/dev/null | sed -n 's/^etcd Version: *\([0-9.]*\).*/\1/p')
    [ -n "$version" ] || return 1
    least=3.4.21
    case $version in 3.5.*) least=3.5.5 ;; esac
    [ "$(printf '%s\n%s\n' "$least" "$version" | sort -V | head -n 1)" = "$least" ]
}

if [ -x "$tools/etcd" ] && new_enough "$tools/etcd"; then
    echo "etcd $version is at .tools/etcd"
    exit 0
fi
if on_path=$(command -v etcd) && new_enough "$on_path"; then
    echo "etcd $version is at $on_path"
    exit 0
fi

mkdir -p "$tools"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

keep() { # moves a binary in place in one step, so that no half of it is ever found
    new_enough "$1" || return 1
    cp "$1" "$tools/etcd.new" && chmod 755 "$tools/etcd.new" && mv "$tools/etcd.new" "$tools/etcd"
    echo "etcd $version is now at .tools/etcd"
}

from_debian() {
    command -v apt-get >/dev/null && command -v dpkg >/dev/null || return 1
    if ! apt-cache show etcd-server >/dev/null 2>&1; then
        [ "$(id -u)" = 0 ] && apt-get update -qq >&2 || return 1
    fi
    # As root, apt fetches as its own user, who must be able to write here.
    chmod 755 "$scratch" && mkdir "$scratch/deb" && chmod 777 "$scratch/deb"
    (cd "$scratch/deb" && apt-get download -qq etcd-server >&2) || return 1
    dpkg -x "$scratch"/deb/etcd-server_*.deb "$scratch/root" || return 1
    keep "$scratch/root/usr/bin/etcd"
}

from_go() {
    command -v go >/dev/null || return 1
    # In a module of its own: `go install` refuses etcd's, because it has replace directives.
    mkdir "$scratch/go" && (
        cd "$scratch/go" &&
            go mod init scratch &&
            go get "go.etcd.io/etcd/server/v3@$go_version" &&
            go build -trimpath -o "$scratch/go/etcd" go.etcd.io/etcd/server/v3
    ) >"$scratch/go.log" 2>&1 || { tail -n 5 "$scratch/go.log" >&2 && return 1; }
    keep "$scratch/go/etcd"
}

if from_debian || from_go; then
    exit 0
fi
echo "No etcd could be fetched. Install etcd 3.4.21, 3.5.5 or newer yourself (package etcd-server" >&2
echo "on Debian, or a release from etcd.io), and put it on the PATH, at .tools/etcd," >&2
echo "or name it in MAGICFLOW_ETCD_SERVER." >&2
exit 1
