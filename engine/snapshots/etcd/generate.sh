#!/bin/sh
# Generates the stubs of wire.proto beside it. Usage: generate.sh [python]
# The interpreter needs the development group (grpcio-tools, mypy-protobuf).
set -eu
root=$(CDPATH='' cd -- "$(dirname -- "$0")/../../.." && pwd)
cd "$root"
python=${1:-.venv/bin/python}
case $python in */*) PATH=$(CDPATH='' cd -- "$(dirname -- "$python")" && pwd):$PATH ;; esac
# From the root, so that the generated imports read `engine.snapshots.etcd`. The types come
# from mypy-protobuf: protoc's own .pyi does not pass `mypy --strict`.
"$python" -m grpc_tools.protoc -I. \
    --python_out=. --grpc_python_out=. \
    --mypy_out=quiet:. --mypy_grpc_out=quiet:. \
    engine/snapshots/etcd/wire.proto
