"""Functions under test without a server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from magicflow import Context, TaskError, current_context
from magicflow.testing import run_function


@dataclass
class Order:
    sku: str


def price(sku: str, qty: int = 1) -> dict[str, Any]:
    return {"total": 250 * qty, "sku": sku}


def test_a_function_runs_with_its_input() -> None:
    assert run_function(price, {"sku": "a", "qty": 2}).output == {"total": 500, "sku": "a"}


def test_the_output_has_been_through_json() -> None:
    assert run_function(lambda: (Order("a"), {2, 1})).output == [{"sku": "a"}, [1, 2]]


def test_a_result_that_is_not_what_the_annotation_promises_is_refused() -> None:
    def name(known: bool) -> str:
        return "Ann" if known else None  # type: ignore[return-value]

    assert run_function(name, {"known": True}).output == "Ann"
    with pytest.raises(TaskError, match="test/function does not fit its annotation") as refused:
        run_function(name, {"known": False})
    assert (refused.value.code, refused.value.retryable) == ("OUTPUT_INVALID", False)


def test_bytes_go_through_as_they_are() -> None:
    def echo(input: bytes) -> bytes:
        return input

    assert run_function(echo, b"\x00\xff").output == b"\x00\xff"


def test_an_async_function_runs_too() -> None:
    async def later(a: int) -> int:
        return a + 1

    assert run_function(later, {"a": 1}).output == 2


async def test_an_async_function_runs_under_an_async_test() -> None:
    async def later(a: int) -> int:
        return a + 1

    assert run_function(later, {"a": 1}).output == 2


def test_env_is_read_and_its_changes_are_told() -> None:
    def f(ctx: Context) -> Any:
        ctx.env.set("seen", ctx.env["user"])
        ctx.env["twice"] = 2
        return sorted(ctx.env)

    ran = run_function(f, env={"user": "ann"})
    assert (ran.output, ran.env) == (["seen", "twice", "user"], {"seen": "ann", "twice": 2})


def test_the_attempt_is_what_the_test_says() -> None:
    assert run_function(lambda ctx: ctx.attempt, attempt=3).output == 3


def test_the_current_context_is_the_one_of_the_function() -> None:
    def f(ctx: Context) -> bool:
        return current_context() is ctx

    assert run_function(f).output is True


def test_no_context_stays_behind() -> None:
    run_function(lambda: None)
    with pytest.raises(LookupError):
        current_context()


def test_a_heartbeat_is_harmless() -> None:
    assert run_function(lambda ctx: ctx.heartbeat({"done": 0.5})).output is None


def test_a_function_under_test_has_neither_deadline_nor_cancellation() -> None:
    def f(ctx: Context) -> Any:
        return [ctx.deadline, ctx.cancelled]

    assert run_function(f).output == [None, False]


def test_an_input_that_does_not_fit_is_the_error_of_a_worker() -> None:
    with pytest.raises(TaskError, match="missing required field `sku`"):
        run_function(price, {})


def test_what_the_function_raises_comes_out() -> None:
    def f() -> None:
        raise ZeroDivisionError("no")

    with pytest.raises(ZeroDivisionError, match="no"):
        run_function(f)


def test_an_output_without_a_json_form_is_the_error_of_a_worker() -> None:
    with pytest.raises(TaskError, match="object has no JSON form"):
        run_function(lambda: object())


def test_an_output_beyond_the_limit_is_the_error_of_a_worker() -> None:
    with pytest.raises(TaskError, match="PAYLOAD_TOO_LARGE"):
        run_function(lambda: "x" * 100, limit=50)


def test_env_without_a_json_form_is_the_error_of_a_worker() -> None:
    with pytest.raises(TaskError, match="object has no JSON form"):
        run_function(lambda ctx: ctx.env.set("a", object()))
