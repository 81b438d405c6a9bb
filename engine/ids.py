"""Trace ids: 128 bits, time-ordered (UUIDv7), and routable.

The twelve bits after the version hold a bucket, `partition = bucket mod partitions`; the four bits
after the variant hold the SQL shard, the snapshot's id modulo ten. So a call about a trace finds
its owner and its table from the id alone.
"""

from __future__ import annotations

import re
import secrets
import zlib

BUCKETS = 4_096
SHARDS = 10
_HEX = re.compile(r"[0-9a-f]{32}")


def mint(now: int, snapshot_id: int, key: bytes = b"") -> bytes:
    """A new id of a trace of this snapshot. `now` is milliseconds since 1970. Ids of one `key`
    belong to one bucket, and so to one partition."""
    bucket = int.from_bytes(key[:8], "big") % BUCKETS if key else secrets.randbelow(BUCKETS)
    return make(now, bucket, snapshot_id % SHARDS, secrets.randbits(58))


def make(now: int, bucket: int, shard: int, chance: int) -> bytes:
    value = (now & (1 << 48) - 1) << 80
    value |= 7 << 76 | bucket << 64
    value |= 0b10 << 62 | shard << 58 | chance
    return value.to_bytes(16, "big")


def born_at(trace_id: bytes) -> int:
    """When it was minted, in milliseconds since 1970."""
    return int.from_bytes(trace_id[:6], "big")


def bucket_of(trace_id: bytes) -> int:
    return int.from_bytes(trace_id[6:8], "big") & (BUCKETS - 1)


def partition_of(trace_id: bytes, partitions: int) -> int:
    return bucket_of(trace_id) % partitions


def account_of(app: str, partitions: int) -> int:
    """The partition whose owner keeps the app's account of starts."""
    return zlib.crc32(app.encode()) % partitions


def shard_of(trace_id: bytes) -> int:
    return (trace_id[8] >> 2 & 0b1111) % SHARDS


def parse_trace_id(text: str) -> bytes | None:
    """The 16 bytes of 32 hex digits, or None."""
    return bytes.fromhex(text) if _HEX.fullmatch(text) else None
