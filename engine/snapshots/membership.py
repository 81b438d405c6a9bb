"""Who is there, and who has which share: live members under leases, numbered shares claimed by
whoever rendezvous hashing points to. The dispatcher's partitions are such shares."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import msgspec


class Member(msgspec.Struct, frozen=True):
    """A live instance. `address` is host:port; `started_at` milliseconds since 1970."""

    service: str
    name: str
    address: str
    version: str = ""
    started_at: int = 0


class Claim(msgspec.Struct, frozen=True):
    """The value of an ownership key. Its epoch is the revision that created the key."""

    instance: str
    address: str


def encode(value: Member | Claim) -> bytes:
    return msgspec.json.encode(value)


def decode_member(data: bytes) -> Member:
    return msgspec.json.decode(data, type=Member)


def decode_claim(data: bytes) -> Claim:
    return msgspec.json.decode(data, type=Claim)


def chosen(share: int, members: Iterable[str]) -> str | None:
    """The member that a share belongs to: each has the highest score for about as many shares
    as any other, and a member that comes or goes moves only its own."""
    return max(members, key=lambda member: _score(share, member), default=None)


def _score(share: int, member: str) -> bytes:
    return hashlib.blake2b(f"{share}\0{member}".encode(), digest_size=8).digest()
