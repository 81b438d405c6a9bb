"""Which of an app's brokers gets a frame. Pure: the caller says which are healthy."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from typing import Literal

import msgspec

Balance = Literal["round_robin", "weight", "consistent_hash"]


class Broker(msgspec.Struct, frozen=True):
    """A NATS cluster for an app's tasks. `weight` is its share under balancing by weight."""

    name: str
    servers: tuple[str, ...]
    weight: int = 1


class Balancer:
    """One app's brokers. Whatever the policy, only healthy ones are chosen while there are any."""

    def __init__(self, brokers: Sequence[Broker], policy: Balance) -> None:
        self._brokers = list(brokers)
        self._policy = policy
        self._turn = 0
        self._credit: dict[str, int] = {broker.name: 0 for broker in brokers}

    def order(self, key: str, healthy: Collection[str]) -> list[str]:
        """Names in the order in which they should be tried for a frame of this key."""
        candidates = [broker for broker in self._brokers if broker.name in healthy]
        if not candidates:
            return []
        if self._policy == "consistent_hash":
            return sorted((b.name for b in candidates), key=lambda name: _score(key, name))
        first = self._weighted(candidates) if self._policy == "weight" else self._next(candidates)
        return [first, *(b.name for b in candidates if b.name != first)]

    def _next(self, candidates: list[Broker]) -> str:
        self._turn += 1
        return candidates[self._turn % len(candidates)].name

    def _weighted(self, candidates: list[Broker]) -> str:
        """Smooth weighted round robin: each gets its share, spread out and not in bursts."""
        for broker in candidates:
            self._credit[broker.name] += broker.weight
        best = max(candidates, key=lambda broker: self._credit[broker.name])
        self._credit[best.name] -= sum(broker.weight for broker in candidates)
        return best.name


def _score(key: str, name: str) -> bytes:
    """Rendezvous hashing: a broker that comes or goes moves only its own keys."""
    return hashlib.blake2b(f"{key}\0{name}".encode(), digest_size=8).digest()
