"""The released `etcd3` package over our stubs: for administration and as a second opinion.

Its own stubs were generated for a protobuf that is long gone, and two sets of etcd stubs cannot
live in one process anyway, because protobuf keeps one pool of names. Registering ours as
`etcd3.etcdrpc` before its first import solves both.
"""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path
from typing import Any

from engine.snapshots.etcd import wire_pb2, wire_pb2_grpc
from engine.snapshots.etcd.driver import Address, Login, Tls

_STUBS = "etcd3.etcdrpc"


def etcd3_client(
    endpoint: str,
    *,
    tls: Tls | None = None,
    login: Login | None = None,
    timeout: float = 5.0,
) -> Any:
    """An `etcd3.Etcd3Client` of one endpoint (`host:port`); it blocks, so keep it out of an
    event loop. `timeout` is in seconds, for one call.

    Cancel its watches before `close()`; the thread that read them still prints a traceback then,
    for the package gives it no other end. What is not in wire.proto (members, alarms, snapshots,
    users) raises AttributeError.
    """
    files = tls or Tls()
    (address,) = Address.parse([endpoint])
    host, _, port = address.target.rpartition(":")
    client = _etcd3().client(
        host=host,
        port=int(port),
        ca_cert=_text(files.ca),
        cert_cert=_text(files.cert),
        cert_key=_text(files.key),
        user=login and login.user,
        password=login and login.password,
        timeout=timeout,
    )
    if login and not client.uses_secure_channel:
        # It sends the token twice, as metadata and as call credentials; gRPC refuses the latter
        # on a connection without TLS.
        client.call_credentials = client.watcher._credentials = None
    return client


def _etcd3() -> Any:
    registered = sys.modules.get(_STUBS)
    if registered is None:
        stubs = types.ModuleType(_STUBS, "engine.snapshots.etcd's stubs under etcd3's name")
        for source in (wire_pb2, wire_pb2_grpc):
            public = {name: value for name, value in vars(source).items() if name[0] != "_"}
            vars(stubs).update(public)
        sys.modules[_STUBS] = stubs
    elif getattr(registered, "KeyValue", None) is not wire_pb2.KeyValue:
        raise RuntimeError("etcd3 was imported with its own stubs; import it through etcd3_client")
    return importlib.import_module("etcd3")


def _text(path: Path | None) -> str | None:
    return str(path) if path else None
