"""What etcd's refusals mean, read from its gRPC codes and the fixed texts of its errors."""

from __future__ import annotations

import grpc
from grpc.aio import AioRpcError

from engine.errors import Denied, Invalid, MagicflowError, Unauthenticated, Unavailable

_STALE_TOKEN = (
    "etcdserver: invalid auth token",
    "etcdserver: revision of auth store is old",
    "etcdserver: user name is empty",
)
# gRPC's own words when no connection could be made, and etcd's when it refuses before a
# proposal: in both cases nothing has happened.
_NOT_BEGUN = ("failed to connect to", "etcdserver: no leader")
_PASSING = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,  # by the server, when it stops
}


def details(error: AioRpcError) -> str:
    return error.details() or ""


def is_stale_token(error: AioRpcError) -> bool:
    return details(error).startswith(_STALE_TOKEN)


def is_passing(error: AioRpcError) -> bool:
    """The same call may work later or on another member."""
    return error.code() in _PASSING


def has_not_begun(error: AioRpcError) -> bool:
    return details(error).startswith(_NOT_BEGUN)


def is_lease_missing(error: AioRpcError) -> bool:
    return details(error).startswith("etcdserver: requested lease not found")


def closed() -> Unavailable:
    return Unavailable("this client of etcd is closed", reason="CLOSED")


def unreachable(endpoints: str, last: str) -> Unavailable:
    return Unavailable(
        f"no etcd answers at {endpoints}: {last or 'no connection in time'}",
        reason="ETCD_UNREACHABLE",
        mend="See that etcd runs and that the endpoints, TLS files and network policy are right.",
    )


def outcome_unknown(error: AioRpcError) -> Unavailable:
    return Unavailable(
        f"the connection to etcd broke during a change, which may have happened: {details(error)}",
        reason="ETCD_OUTCOME_UNKNOWN",
        mend="Read the keys again before you decide what to do next.",
    )


def translate(error: AioRpcError) -> MagicflowError:
    """For an answer that would be the same on another member."""
    code, text = error.code(), details(error)
    if code is grpc.StatusCode.UNAUTHENTICATED or "authentication failed" in text:
        return Unauthenticated(
            f"etcd does not accept the user or password: {text}",
            reason="ETCD_LOGIN",
            mend="Check the user and password that are configured for etcd.",
        )
    if is_stale_token(error):
        return Unauthenticated(
            f"etcd wants a user: {text}",
            reason="ETCD_LOGIN",
            mend="Configure the user and password for etcd.",
        )
    if code is grpc.StatusCode.PERMISSION_DENIED:
        return Denied(
            f"etcd forbids this to the configured user: {text}",
            reason="ETCD_DENIED",
            mend="Grant the user's role read and write access to the whole key space in use.",
        )
    if code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.OUT_OF_RANGE):
        return Invalid(f"etcd refuses the request: {text}", reason="ETCD_REFUSED")
    if "database space exceeded" in text:
        return Unavailable(
            "etcd is full and accepts no changes",
            reason="ETCD_NO_SPACE",
            mend="Compact and defragment etcd, raise its quota, then disarm its alarm.",
        )
    return Unavailable(f"etcd answered {code.name}: {text}", reason="ETCD_FAILED")
