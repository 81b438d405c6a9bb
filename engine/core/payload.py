"""A value on its way between a caller, the engine and a function."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import msgspec


class Payload(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Bytes with a media type. An empty `content_type` means JSON, the only type that
    references and expressions can look into; every other type travels whole."""

    data: bytes
    content_type: str = ""
    metadata: dict[str, str] | None = None

    @property
    def is_json(self) -> bool:
        return not self.content_type or self.content_type == "application/json"


NULL = Payload(b"null")

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder()


class NotJson(ValueError):
    """The payload's bytes are no JSON, or not meant to be."""


def to_value(payload: Payload) -> Any:
    """The JSON value. Integers are exact whatever their size.

    Errors: `NotJson` with a sentence for a person.
    """
    if not payload.is_json:
        raise NotJson(f"the value is {payload.content_type}, not JSON, so nothing can look into it")
    if not payload.data:
        return None
    try:
        return _decoder.decode(payload.data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise NotJson(f"the value is not valid JSON: {error}") from error


def of_value(value: Any) -> Payload:
    """A JSON payload of a value made of dicts, lists, strings, numbers, booleans and None."""
    return Payload(_encoder.encode(value))


def json_text(value: Any) -> str:
    """Compact JSON text of the value."""
    return _encoder.encode(value).decode()


_raw_list = msgspec.json.Decoder(list[msgspec.Raw])


@lru_cache(maxsize=256)
def _split(data: bytes) -> tuple[bytes, ...]:
    return tuple(bytes(item) for item in _raw_list.decode(data))


def list_items(payload: Payload) -> tuple[bytes, ...]:
    """The JSON of each item of a payload that is a JSON list. Cached: a map asks once an item."""
    return _split(payload.data)
