"""What the leader says of the cluster: `/flow/report`, there while a leader is."""

from __future__ import annotations

import msgspec


class Alarm(msgspec.Struct, frozen=True):
    """Something that an operator should know. `since` is milliseconds since 1970."""

    code: str
    subject: str
    message: str
    since: int = 0


class Function(msgspec.Struct, frozen=True):
    """`waiting` are frames of tasks that are not done."""

    name: str
    workers: int
    slots: int
    waiting: int


class Report(msgspec.Struct, frozen=True):
    leader: str
    at: int
    alarms: tuple[Alarm, ...] = ()
    functions: tuple[Function, ...] = ()


def encode_report(report: Report) -> bytes:
    return msgspec.json.encode(report)


def decode_report(data: bytes) -> Report:
    """Errors: `msgspec.MsgspecError`."""
    return msgspec.json.decode(data, type=Report)
