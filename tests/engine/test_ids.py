"""Trace ids."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.ids import BUCKETS, bucket_of, make, mint, parse_trace_id, partition_of, shard_of

NOW = 1_700_000_000_000


@given(
    st.integers(0, (1 << 48) - 1),
    st.integers(0, BUCKETS - 1),
    st.integers(0, 9),
    st.integers(0, (1 << 58) - 1),
)
def test_an_id_carries_its_bucket_and_shard(now: int, bucket: int, shard: int, chance: int) -> None:
    trace_id = make(now, bucket, shard, chance)
    assert (bucket_of(trace_id), shard_of(trace_id)) == (bucket, shard)
    assert partition_of(trace_id, 64) == bucket % 64
    assert int.from_bytes(trace_id[:6], "big") == now


def test_an_id_is_a_uuid_of_version_seven() -> None:
    made = uuid.UUID(bytes=mint(NOW, 3))
    assert made.version == 7
    assert made.variant == uuid.RFC_4122


def test_later_ids_are_greater() -> None:
    assert mint(NOW, 9) < mint(NOW + 1, 0)


def test_the_shard_is_the_snapshots_id_modulo_ten() -> None:
    assert [shard_of(mint(NOW, snapshot)) for snapshot in (9, 10, 123)] == [9, 0, 3]


def test_ids_of_one_moment_differ() -> None:
    assert len({mint(NOW, 1) for _ in range(1_000)}) == 1_000


def test_an_id_is_written_as_32_small_hex_digits() -> None:
    trace_id = mint(NOW, 1)
    assert parse_trace_id(trace_id.hex()) == trace_id


@pytest.mark.parametrize("text", ["", "0" * 31, "0" * 33, "G" * 32, "A" * 32, "0" * 31 + "\n"])
def test_anything_else_is_no_id(text: str) -> None:
    assert parse_trace_id(text) is None
