"""Values on their way to JSON and back."""

from __future__ import annotations

import collections
import datetime as dt
import decimal
import enum
import uuid
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from magicflow.errors import TaskError
from magicflow.payloads import OCTETS, from_payload, result_payload, to_json, to_payload
from magicflow.v1.payload_pb2 import Payload


def back(value: Any) -> Any:
    return from_payload(to_payload(value))


class Colour(enum.Enum):
    RED = "red"


class Size(enum.IntEnum):
    BIG = 3


@dataclass
class Line:
    sku: str
    at: dt.date


@dataclass
class Order:
    lines: list[Line]


class Parcel(msgspec.Struct):
    weight: int


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)  # fmt: skip


@given(json_values)
def test_every_json_value_comes_back_as_it_went(value: Any) -> None:
    assert back(value) == value


@given(st.integers(min_value=-(10**300), max_value=10**300))
def test_integers_are_exact_and_stay_integers_whatever_their_size(number: int) -> None:
    seen = back(number)
    assert seen == number
    assert type(seen) is int


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_come_back_bit_for_bit(number: float) -> None:
    seen = back([number])[0]
    assert seen.hex() == number.hex()


@pytest.mark.parametrize(
    "text", ["", "żółć", "日本語", "🪄", "\u2028", "a\x00b", "\u202eright to left", "\\\"'"]
)
def test_unicode_travels_unescaped_as_utf_8(text: str) -> None:
    payload = to_payload({text: text})
    assert from_payload(payload) == {text: text}
    assert "\\u" not in payload.data.decode() or "\x00" in text


def test_json_is_compact() -> None:
    assert to_payload({"a": [1, 2]}).data == b'{"a":[1,2]}'


@pytest.mark.parametrize("value", [b"\x00\xff", bytearray(b"ab"), memoryview(b"abc")])
def test_bytes_travel_as_octets(value: Any) -> None:
    payload = to_payload(value)
    assert (payload.data, payload.content_type) == (bytes(value), OCTETS)
    assert from_payload(payload) == bytes(value)


def test_a_payload_that_names_json_is_read_as_json() -> None:
    assert from_payload(Payload(data=b"[1]", content_type="application/json")) == [1]


def test_an_empty_payload_is_null() -> None:
    assert from_payload(Payload()) is None


def test_malformed_json_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="truncated"):
        from_payload(Payload(data=b'{"a":'))


def test_a_ready_payload_goes_as_it_is() -> None:
    payload = Payload(data=b"<a/>", content_type="text/xml")
    assert to_payload(payload) is payload


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_json_has_not_are_refused(number: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_payload({"a": number})


MOMENT = dt.datetime(2024, 2, 29, 12, 30, tzinfo=dt.UTC)
IDENTITY = uuid.UUID("12345678123456781234567812345678")


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (Colour.RED, "red"),
        (Size.BIG, 3),
        (MOMENT, "2024-02-29T12:30:00+00:00"),
        (MOMENT.date(), "2024-02-29"),
        (MOMENT.time(), "12:30:00"),
        (IDENTITY, str(IDENTITY)),
        (decimal.Decimal("0.10"), "0.10"),
        ((1, 2), [1, 2]),
        ({3, 1, 2}, [1, 2, 3]),
        (frozenset({"b", "a"}), ["a", "b"]),
        (Order([Line("a1", MOMENT.date())]), {"lines": [{"sku": "a1", "at": "2024-02-29"}]}),
        (Parcel(3), {"weight": 3}),
        (collections.OrderedDict(a=1), {"a": 1}),
        (dt.timedelta(minutes=2), "PT120S"),
        ({"red": Colour.RED}, {"red": "red"}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_of_everyday_python_have_a_json_form(value: Any, plain: Any) -> None:
    assert back(value) == plain


def test_a_key_that_is_a_number_becomes_text() -> None:
    assert back({7: 1}) == {"7": 1}


def test_a_key_that_json_has_not_is_refused_by_its_type() -> None:
    with pytest.raises(TypeError, match=r"keys must be str.*not Colour"):
        to_json({Colour.RED: 1})


def test_sets_of_things_without_an_order_are_written() -> None:
    assert sorted(back({"a", 1}), key=str) == [1, "a"]


def test_a_value_without_a_json_form_is_named() -> None:
    with pytest.raises(TypeError, match="object has no JSON form"):
        to_json({"a": object()})


def test_bytes_inside_json_are_refused_with_their_type() -> None:
    with pytest.raises(TypeError, match="bytes has no JSON form"):
        to_json({"a": b"x"})


def test_text_that_utf_8_cannot_carry_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="surrogates"):
        to_payload("\ud800")


def test_a_result_at_the_limit_passes() -> None:
    assert len(result_payload("x" * 98, 100).data) == 100


def test_a_result_beyond_the_limit_is_a_terminal_named_error() -> None:
    with pytest.raises(TaskError, match=r"101 bytes; 100 are allowed") as caught:
        result_payload("x" * 99, 100)
    assert (caught.value.code, caught.value.retryable) == ("PAYLOAD_TOO_LARGE", False)


def ring() -> list[Any]:
    knot: list[Any] = []
    knot.append(knot)
    return knot


@pytest.mark.parametrize("value", [object(), float("nan"), "\ud800", ring()])
def test_a_result_without_a_json_form_is_a_terminal_named_error(value: Any) -> None:
    with pytest.raises(TaskError, match="cannot be sent") as caught:
        result_payload(value, 100)
    assert (caught.value.code, caught.value.retryable) == ("OUTPUT_INVALID", False)
