"""What travels from admission to the owner of a partition."""

from __future__ import annotations

import msgspec

from engine.core.payload import Payload


class StartTrace(msgspec.Struct, array_like=True):
    """An accepted trigger. `triggered_at` is milliseconds since 1970."""

    trace_id: bytes
    playbook_id: int
    snapshot_id: int
    input: Payload
    triggered_at: int
    by: str


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[StartTrace])


def encode_triggers(triggers: list[StartTrace]) -> bytes:
    return _encoder.encode(triggers)


def decode_triggers(data: bytes) -> list[StartTrace]:
    """Errors: `ValueError`."""
    try:
        return _decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise ValueError(f"not a frame of triggers: {error}") from error
