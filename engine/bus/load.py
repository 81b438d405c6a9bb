"""What owners tell those who admit triggers, a few times a second; a note that may be lost."""

from __future__ import annotations

import msgspec


class Load(msgspec.Struct, array_like=True):
    """Of one partition. `waiting` are triggers by app that have not started, `queued` frames of
    them still on the bus. `commit` is how long a frame takes to be on disk, milliseconds,
    `unprojected` how many frames SQL is behind."""

    partition: int
    waiting: dict[str, int]
    queued: int
    commit: float
    unprojected: int


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[Load])


def encode_loads(loads: list[Load]) -> bytes:
    return _encoder.encode(loads)


def decode_loads(data: bytes) -> list[Load]:
    """Errors: `msgspec.MsgspecError`."""
    return _decoder.decode(data)
