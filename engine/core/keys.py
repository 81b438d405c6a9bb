"""Idempotency keys of the traces that a partition has started."""

from __future__ import annotations

import msgspec

RETENTION = 86_400_000  # milliseconds that a key is remembered after the start
MAX_KEYS = 200_000  # of one partition; further keyed triggers are put off, none is forgotten

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

    def find(self, key: bytes, at: int) -> tuple[bytes, bytes] | None:
        """(trace, request) of the start with this key, while it is remembered."""
        found = self.known.get(key)
        if found is None or at - found[2] > RETENTION:
            return None
        return found[0], found[1]

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
