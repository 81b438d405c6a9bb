"""How an input becomes arguments, and annotations a schema."""

from __future__ import annotations

import datetime as dt
import enum
import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Literal, NamedTuple, NotRequired, Optional, TypedDict

import msgspec
import pytest

from magicflow import Context, TaskError
from magicflow.functions import BoundFunction, NotAFunction, bind
from magicflow.payloads import result_payload
from magicflow.v1.task_pb2 import Task

CONTEXT = Context(Task(), lambda task, note: None)


def called(function: Callable[..., Any], value: Any) -> Any:
    return function(**bind("app/f", function).arguments(value, CONTEXT))


def refusal(function: Callable[..., Any], value: Any) -> TaskError:
    with pytest.raises(TaskError) as caught:
        bind("app/f", function).arguments(value, CONTEXT)
    assert (caught.value.code, caught.value.retryable) == ("INPUT_INVALID", False)
    return caught.value


def schema(bound: BoundFunction) -> dict[str, Any]:
    """The object that the schema describes, found through its reference."""
    whole: dict[str, Any] = json.loads(bound.input_schema)
    if "$ref" in whole:
        return dict(whole["$defs"][whole["$ref"].rpartition("/")[2]])
    return whole


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Line:
    sku: str
    qty: int = 1
    tags: list[str] = field(default_factory=list)


class Address(TypedDict):
    city: str
    zip: NotRequired[str]


class Parcel(msgspec.Struct):
    weight: int


class Model:
    """What a pydantic model looks like from outside."""

    def __init__(self, weight: int) -> None:
        self.weight = weight

    @classmethod
    def model_validate(cls, value: Any) -> Model:
        if not isinstance(value.get("weight"), int):
            raise ValueError("weight: an integer is expected")
        return cls(value["weight"])

    @classmethod
    def model_json_schema(cls) -> dict[str, Any]:
        return {"type": "object", "required": ["weight"]}


def price(sku: str, qty: int = 1) -> dict[str, int]:
    """The price of so many.

    More for those who read on.
    """
    return {sku: qty}


# By name.


def test_parameters_are_taken_from_the_input_by_name() -> None:
    assert called(price, {"qty": 3, "sku": "a"}) == {"a": 3}


def test_a_parameter_with_a_default_may_be_missing() -> None:
    assert called(price, {"sku": "a"}) == {"a": 1}


def test_a_default_of_the_function_is_the_very_object_that_it_declared() -> None:
    marker = object()

    def f(a: int, b: Any = marker) -> Any:
        return b

    assert called(f, {"a": 1}) is marker


def test_a_keyword_only_parameter_is_an_ordinary_one() -> None:
    def f(*, a: int) -> int:
        return a

    assert called(f, {"a": 1}) == 1


def test_a_single_plain_parameter_is_taken_by_name() -> None:
    def f(sku: str) -> str:
        return sku

    assert called(f, {"sku": "a"}) == "a"


def test_a_parameter_without_an_annotation_takes_anything() -> None:
    def f(a, b=2):  # type: ignore[no-untyped-def]
        return a, b

    assert called(f, {"a": {"x": [1]}, "b": None}) == ({"x": [1]}, None)


def test_a_missing_field_is_named() -> None:
    assert str(refusal(price, {})) == (
        "INPUT_INVALID: the input of app/f does not fit: Object missing required field `sku`"
    )


def test_an_unknown_field_is_named() -> None:
    assert "unknown field `colour`" in str(refusal(price, {"sku": "a", "colour": 1}))


def test_a_wrong_field_is_named_with_what_was_expected_and_what_came() -> None:
    message = str(refusal(price, {"sku": "a", "qty": "four"}))
    assert "Expected `int`" in message
    assert "got `str`" in message
    assert "`$.qty`" in message


def test_a_wrong_field_deep_inside_is_named_by_its_path() -> None:
    def f(lines: list[Line], note: str = "") -> None: ...

    assert "`$.lines[1].qty`" in str(
        refusal(f, {"lines": [{"sku": "a"}, {"sku": "b", "qty": None}]})
    )


@pytest.mark.parametrize(
    ("value", "seen"),
    [(None, "null"), ([1], "a list"), ("x", "a string"), (7, "int"), (b"x", "bytes")],
)
def test_an_input_that_is_no_object_is_refused_by_what_it_is(value: Any, seen: str) -> None:
    assert f"an object is expected, {seen} came" in str(refusal(price, value))


# No parameters, and the rest.


@pytest.mark.parametrize("value", [None, {}])
def test_a_function_without_parameters_takes_null_and_the_empty_object(value: Any) -> None:
    assert called(lambda: 5, value) == 5


def test_a_function_without_parameters_names_what_came() -> None:
    assert "takes no input, a, b came" in str(refusal(lambda: 5, {"a": 1, "b": 2}))


def test_kwargs_alone_receive_every_field() -> None:
    def f(**rest: Any) -> Any:
        return rest

    assert called(f, {"a": 1, "b": [2]}) == {"a": 1, "b": [2]}


def test_kwargs_receive_what_no_parameter_is_called() -> None:
    def f(a: int, b: int = 2, **rest: Any) -> Any:
        return a, b, rest

    assert called(f, {"a": 1, "c": 3}) == (1, 2, {"c": 3})


# The whole input.


def test_a_parameter_called_input_receives_the_whole_input() -> None:
    def f(input: Any) -> Any:
        return input

    assert called(f, [1, {"a": None}]) == [1, {"a": None}]


def test_a_parameter_called_input_is_checked_against_its_annotation() -> None:
    def f(input: list[int]) -> Any:
        return input

    assert "Expected `int`, got `str` - at `$[1]`" in str(refusal(f, [1, "2"]))


def test_bytes_reach_a_parameter_called_input() -> None:
    def f(input: bytes) -> Any:
        return input

    assert called(f, b"\x00\xff") == b"\x00\xff"


def test_a_dataclass_receives_the_whole_input() -> None:
    def f(line: Line) -> Line:
        return line

    assert called(f, {"sku": "a", "tags": ["x"]}) == Line("a", 1, ["x"])


def test_a_typed_dict_receives_the_whole_input() -> None:
    def f(address: Address) -> Address:
        return address

    assert called(f, {"city": "Łódź"}) == {"city": "Łódź"}


def test_a_struct_receives_the_whole_input() -> None:
    def f(parcel: Parcel) -> Parcel:
        return parcel

    assert called(f, {"weight": 3}) == Parcel(3)


def test_a_model_is_asked_to_validate_the_whole_input() -> None:
    def f(model: Model) -> int:
        return model.weight

    assert called(f, {"weight": 3}) == 3


def test_what_a_model_says_against_an_input_is_passed_on() -> None:
    def f(model: Model) -> None: ...

    assert "weight: an integer is expected" in str(refusal(f, {"weight": "x"}))


def test_a_record_among_other_parameters_is_a_field() -> None:
    def f(line: Line, note: str) -> Any:
        return line.sku + note

    assert called(f, {"line": {"sku": "a"}, "note": "!"}) == "a!"


# The context.


def test_the_context_is_known_by_its_annotation() -> None:
    def f(where: Context, a: int) -> Any:
        return where, a

    assert called(f, {"a": 1}) == (CONTEXT, 1)


def test_the_context_is_known_by_its_name() -> None:
    def f(a, ctx):  # type: ignore[no-untyped-def]
        return a, ctx

    assert called(f, {"a": 1}) == (1, CONTEXT)


def test_beside_the_context_a_record_still_receives_the_whole_input() -> None:
    def f(ctx: Context, line: Line) -> Any:
        return line

    assert called(f, {"sku": "a"}) == Line("a")


def test_a_function_of_the_context_alone_takes_no_input() -> None:
    def f(ctx: Context) -> Any:
        return ctx

    assert called(f, None) is CONTEXT


# Types.


@pytest.mark.parametrize(
    ("kind", "given", "seen"),
    [
        (Colour, "blue", Colour.BLUE),
        (Literal["a", "b"], "b", "b"),
        (Optional[int], None, None),  # noqa: UP045
        (int | None, 4, 4),
        (dt.datetime, "2024-02-29T12:00:00Z", dt.datetime(2024, 2, 29, 12, tzinfo=dt.UTC)),
        (dt.date, "2024-02-29", dt.date(2024, 2, 29)),
        (float, 3, 3.0),
        (tuple[int, str], [1, "a"], (1, "a")),
        (set[int], [1, 1], {1}),
        (dict[str, Line], {"x": {"sku": "a"}}, {"x": Line("a")}),
        (dict[int, str], {"7": "x"}, {7: "x"}),
        (Any, {"x": 1}, {"x": 1}),
    ],
    ids=str,
)
def test_annotations_turn_json_into_python(kind: Any, given: Any, seen: Any) -> None:
    def f(a, other=None):  # type: ignore[no-untyped-def]
        return a

    f.__annotations__ = {"a": kind, "other": kind}
    assert called(f, {"a": given}) == seen


@pytest.mark.parametrize(
    ("kind", "given", "expected"),
    [
        (Colour, "green", "Invalid enum value 'green'"),
        (Literal["a"], "z", "Invalid enum value 'z'"),
        (int | None, "x", "Expected `int | null`, got `str`"),
        (dt.datetime, "yesterday", "Invalid RFC3339 encoded datetime"),
        (int, 1.5, "Expected `int`, got `float`"),
        (int, True, "Expected `int`, got `bool`"),
    ],
    ids=str,
)
def test_a_value_of_another_type_is_refused_with_its_place(
    kind: Any, given: Any, expected: str
) -> None:
    def f(a, other=None):  # type: ignore[no-untyped-def]
        return a

    f.__annotations__ = {"a": kind}
    message = str(refusal(f, {"a": given}))
    assert expected in message
    assert "`$.a`" in message


# Schemas.


def test_the_schema_has_the_parameters_and_which_of_them_are_required() -> None:
    seen = schema(bind("app/f", price))
    assert seen["properties"] == {"sku": {"type": "string"}, "qty": {"type": "integer"}}
    assert (seen["required"], seen["additionalProperties"]) == (["sku"], False)


def test_kwargs_leave_the_schema_open() -> None:
    def f(a: int, **rest: Any) -> None: ...

    assert schema(bind("app/f", f)).get("additionalProperties", True) is True


def test_the_context_is_not_in_the_schema() -> None:
    def f(where: Context, a: int, ctx: Any) -> None: ...

    assert list(schema(bind("app/f", f))["properties"]) == ["a"]


def test_a_record_is_the_schema_itself() -> None:
    def f(line: Line) -> None: ...

    assert list(schema(bind("app/f", f))["properties"]) == ["sku", "qty", "tags"]


def test_a_model_speaks_for_itself() -> None:
    def f(model: Model) -> None: ...

    assert schema(bind("app/f", f)) == {"type": "object", "required": ["weight"]}


def test_a_function_that_takes_anything_promises_nothing() -> None:
    assert bind("app/f", lambda input: input).input_schema == b""


def test_the_return_annotation_is_the_output_schema() -> None:
    assert json.loads(bind("app/f", price).output_schema) == {
        "type": "object",
        "additionalProperties": {"type": "integer"},
    }


class Weighed(NamedTuple):
    weight: Decimal
    at: dt.datetime


class Loose(TypedDict, total=False):
    note: str


class Alias:
    """As a pydantic model whose fields are written under other names than they are read."""

    @classmethod
    def model_json_schema(cls) -> dict[str, Any]:
        return {"type": "object"}

    @classmethod
    def model_validate_json(cls, data: bytes) -> None:
        raise ValueError("the field `Name` is missing")

    def model_dump(self, mode: str) -> dict[str, Any]:
        return {"name": "Ann"}


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (int, 10**30),
        (float, 3),
        (str | None, None),
        (None, None),
        (Line, Line("a", 1)),
        (Line, {"sku": "a", "qty": 1}),
        (list[Line], (Line("a", 1),)),
        (Weighed, Weighed(Decimal("1.5"), dt.datetime(2026, 1, 31))),
        (dict[int, set[str]], {1: {"b", "a"}}),
        (dt.timedelta, dt.timedelta(hours=1)),
        (Loose, {}),
        (Alias, Alias()),
        (bytes, b"\x00"),
        (Any, {"anything": 1}),
    ],
)
def test_a_result_that_its_annotation_allows_is_taken(kind: Any, value: Any) -> None:
    promise(kind).check_result(value, result_payload(value, 1_000))


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        (str, None, "Expected `str`, got `null`"),
        (None, 1, "Expected `null`, got `int`"),
        (dict[str, int], {"a": "x"}, "`$[...]`"),
        (Line, {"sku": "a", "qty": "many"}, "`$.qty`"),
        (list[Line], [{"sku": 1}], "`$[0].sku`"),
        (int, b"1", "bytes of type application/octet-stream"),
        (Alias, {"name": "Ann"}, "the field `Name` is missing"),
    ],
)
def test_a_result_that_its_annotation_does_not_allow_is_refused(
    kind: Any, value: Any, message: str
) -> None:
    with pytest.raises(TaskError) as refused:
        promise(kind).check_result(value, result_payload(value, 1_000))
    assert (refused.value.code, refused.value.retryable) == ("OUTPUT_INVALID", False)
    assert message in refused.value.message


def promise(kind: Any) -> BoundFunction:
    def f(): ...  # type: ignore[no-untyped-def]

    f.__annotations__ = {"return": kind}
    return bind("app/f", f)


def test_no_return_annotation_promises_nothing() -> None:
    assert bind("app/f", lambda: 1).output_schema == b""


def test_a_return_annotation_that_json_cannot_say_promises_nothing() -> None:
    def f() -> Callable[[], int]:
        return int

    assert bind("app/f", f).output_schema == b""


def test_the_first_paragraph_of_the_docstring_describes_the_function() -> None:
    assert bind("app/f", price).description == "The price of so many."


def test_a_description_of_its_own_comes_first() -> None:
    assert bind("app/f", price, "Prices.").description == "Prices."


# What can be offered.


async def later() -> int:
    return 1


def test_an_async_function_is_known_as_one() -> None:
    assert bind("app/f", later).is_async


def test_an_async_wrapper_makes_an_async_function_of_a_plain_one() -> None:
    @functools.wraps(price)
    async def wrapper(**arguments: Any) -> Any:
        return price(**arguments)

    assert bind("app/f", wrapper).is_async


def test_a_method_is_offered_without_its_self() -> None:
    class Shop:
        def price(self, sku: str) -> str:
            return sku

    assert called(Shop().price, {"sku": "a"}) == "a"


def test_an_object_that_can_be_called_is_offered_as_its_call() -> None:
    class Doubler:
        async def __call__(self, a: int) -> int:
            return 2 * a

    bound = bind("app/f", Doubler())
    assert (bound.is_async, list(schema(bound)["properties"])) == (True, ["a"])


def test_a_partial_is_offered_with_what_is_left_of_it() -> None:
    assert called(functools.partial(price, qty=7), {"sku": "a"}) == {"a": 7}


def test_a_positional_only_parameter_is_refused_by_name() -> None:
    def f(a: int, /) -> None: ...

    with pytest.raises(NotAFunction, match="app/f: parameter a has no name in an input"):
        bind("app/f", f)


def test_star_args_are_refused_by_name() -> None:
    def f(*items: int) -> None: ...

    with pytest.raises(NotAFunction, match="parameter items has no name in an input"):
        bind("app/f", f)


def test_an_annotation_that_cannot_be_checked_is_refused_with_a_way_out() -> None:
    def f(a: Callable[[], int]) -> None: ...

    with pytest.raises(NotAFunction, match=r"type .*Callable.*; use plain types"):
        bind("app/f", f)


def test_an_annotation_that_cannot_be_read_is_refused_by_name() -> None:
    def f(a: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(NotAFunction, match="'Nowhere' is not defined"):
        bind("app/f", f)
