"""Idempotency keys: what they stand for, how long, and that nothing forgets them early."""

from __future__ import annotations

import pytest

from engine.core import keys as keys_module
from engine.core.keys import RETENTION, Keys, KeyTaken, key_digest, request_digest
from engine.core.payload import Payload, of_value

KEY = key_digest("shop/p", "order-7")
ONE, TWO = b"1" * 16, b"2" * 16
REQUEST = request_digest(0, of_value({"a": 1, "b": 2}))


def test_a_key_counts_per_playbook() -> None:
    assert len({KEY, key_digest("shop/q", "order-7"), key_digest("shop/p", "order-8")}) == 3


def test_the_spelling_of_json_makes_no_difference_and_anything_else_does() -> None:
    assert request_digest(0, Payload(b' { "b" : 2, "a": 1 } ')) == REQUEST
    others = {
        request_digest(0, of_value({"a": 1, "b": 3})),
        request_digest(4, of_value({"a": 1, "b": 2})),
        request_digest(0, Payload(b'{"a":1,"b":2}', "text/plain")),
    }
    assert len(others | {REQUEST}) == 4


def test_a_key_stands_for_its_trace_for_a_day() -> None:
    keys = Keys()
    assert keys.find(KEY, REQUEST, 1_000) is None
    keys.add(KEY, ONE, REQUEST, 1_000)
    assert keys.find(KEY, REQUEST, 1_000 + RETENTION) == ONE
    assert keys.find(KEY, REQUEST, 1_001 + RETENTION) is None


def test_a_key_that_was_used_for_something_else_is_taken() -> None:
    keys = Keys()
    keys.add(KEY, ONE, REQUEST, 1_000)
    with pytest.raises(KeyTaken) as taken:
        keys.find(KEY, request_digest(0, of_value(2)), 2_000)
    assert taken.value.trace_id == ONE


def test_there_is_a_bound_and_only_age_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys_module, "MAX_KEYS", 2)
    keys = Keys()
    keys.add(b"a", ONE, REQUEST, 1_000)
    keys.add(b"b", TWO, REQUEST, 5_000)
    assert keys.full(6_000)
    assert keys.find(b"a", REQUEST, 6_000) == ONE
    assert not keys.full(1_001 + RETENTION)
    assert keys.find(b"b", REQUEST, 1_001 + RETENTION) == TWO


def test_checkpoints_carry_all_keys_or_the_new_ones() -> None:
    keys = Keys()
    keys.add(b"a", ONE, REQUEST, 1_000)
    keys.fresh.clear()
    keys.add(b"b", TWO, REQUEST, 2_000)
    assert [record[0] for record in keys.records(full=True)] == [b"a", b"b"]
    assert [record[0] for record in keys.records(full=False)] == [b"b"]
    restored = Keys()
    restored.restore(keys.records(full=True))
    assert restored.find(b"a", REQUEST, 3_000) == ONE
