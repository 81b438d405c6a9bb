"""Idempotency keys of the traces that a partition has started."""

from __future__ import annotations

import hashlib

import msgspec

from engine.core.payload import Payload, to_value

RETENTION = 86_400_000  # milliseconds that a key is remembered after the start
MAX_KEYS = 200_000  # of one partition; further keyed triggers are put off, none is forgotten

_sorted = msgspec.json.Encoder(order="sorted")


class KeyTaken(ValueError):
    """The key has started a trace for another request."""

    def __init__(self, trace_id: bytes) -> None:
        super().__init__(f"it started {trace_id.hex()} with another input or snapshot")
        self.trace_id = trace_id


def key_digest(playbook: str, key: str) -> bytes:
    """Sixteen bytes. A key counts per playbook, `app/name`."""
    return hashlib.sha256(f"{playbook}\n{key}".encode()).digest()[:16]


def request_digest(snapshot_id: int, value: Payload) -> bytes:
    """Sixteen bytes of what a key is used for: the snapshot asked for (0: the active one) and
    the input. The spelling of JSON makes no difference. Errors: `NotJson`."""
    data = _sorted.encode(to_value(value)) if value.is_json else value.data
    head = f"{snapshot_id}\n{value.content_type}\n".encode()
    return hashlib.sha256(head + data).digest()[:16]


Record = tuple[bytes, bytes, bytes, int]  # key, trace, request, when


class Keys(msgspec.Struct, array_like=True):
    """`known` is in the order of the starts, so that what has expired stands in front. Keys and
    requests are digests. `fresh` names the keys since the last checkpoint."""

    known: dict[bytes, tuple[bytes, bytes, int]] = {}
    fresh: list[bytes] = []

    def add(self, key: bytes, trace_id: bytes, request: bytes, at: int) -> None:
        self._expire(at)
        self.known[key] = (trace_id, request, at)
        self.fresh.append(key)

    def find(self, key: bytes, request: bytes, at: int) -> bytes | None:
        """The trace that the key has started for this request, while it is remembered. Errors:
        `KeyTaken`."""
        found = self.known.get(key)
        if found is None or at - found[2] > RETENTION:
            return None
        if found[1] != request:
            raise KeyTaken(found[0])
        return found[0]

    def full(self, at: int) -> bool:
        self._expire(at)
        return len(self.known) >= MAX_KEYS

    def records(self, full: bool) -> list[Record]:
        """All keys, or those since the last checkpoint."""
        keys = list(self.known) if full else [key for key in self.fresh if key in self.known]
        return [(key, *self.known[key]) for key in keys]

    def restore(self, records: list[Record]) -> None:
        for key, trace_id, request, at in records:
            self.known[key] = (trace_id, request, at)

    def _expire(self, at: int) -> None:
        while self.known:
            key = next(iter(self.known))
            if at - self.known[key][2] <= RETENTION:
                return
            del self.known[key]
