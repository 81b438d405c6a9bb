"""Statuses of calls become errors of one tree."""

from __future__ import annotations

import grpc
import grpc.aio
import pytest
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

import magicflow
from engine import errors as engine_errors
from engine.rpc.status import to_status
from magicflow.errors import MagicflowError, TaskError, TraceFailed, from_rpc
from magicflow.v1.error_pb2 import Failure


def call_error(
    code: grpc.StatusCode, message: str = "", details: bytes | None = None
) -> grpc.aio.AioRpcError:
    trailing = (("grpc-status-details-bin", details),) if details is not None else ()
    return grpc.aio.AioRpcError(
        code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailing), details=message
    )


def answered(error: engine_errors.MagicflowError) -> MagicflowError:
    """What a client sees of an error of the server."""
    status = to_status(error)
    code = next(c for c in grpc.StatusCode if c.value[0] == status.code)
    return from_rpc(call_error(code, status.message, status.SerializeToString()))


@pytest.mark.parametrize(
    "name",
    [
        "Invalid",
        "NotFound",
        "AlreadyExists",
        "WrongState",
        "Conflict",
        "Exhausted",
        "Denied",
        "Unauthenticated",
        "Unavailable",
        "DeadlineExceeded",
        "Unimplemented",
    ],
)
def test_each_error_of_the_server_has_its_namesake_here(name: str) -> None:
    seen = answered(getattr(engine_errors, name)("so it is"))
    assert type(seen) is getattr(magicflow, name)
    assert str(seen) == "so it is"


@pytest.mark.parametrize(
    "code", [grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS]
)
def test_everything_else_is_internal(code: grpc.StatusCode) -> None:
    assert type(from_rpc(call_error(code, "id 7"))) is magicflow.Internal


def test_the_reason_travels() -> None:
    seen = answered(engine_errors.NotFound("no shop/x", reason="PLAYBOOK_NOT_FOUND"))
    assert seen.reason == "PLAYBOOK_NOT_FOUND"


def test_violations_travel_with_field_code_and_description() -> None:
    violation = engine_errors.FieldViolation("input.qty", "TYPE", "a number is expected")
    (seen,) = answered(engine_errors.Invalid("bad", violations=(violation,))).violations
    assert (seen.field, seen.code, seen.description) == (
        "input.qty",
        "TYPE",
        "a number is expected",
    )


def test_the_mend_travels_apart_from_the_metadata() -> None:
    seen = answered(
        engine_errors.WrongState("not live", mend="switch one live", metadata={"app": "shop"})
    )
    assert (seen.mend, seen.metadata) == ("switch one live", {"app": "shop"})


def test_the_delay_travels_in_seconds() -> None:
    assert answered(engine_errors.Exhausted("enough", retry_after=1.5)).retry_after == 1.5


def test_a_status_without_details_has_its_code_as_reason() -> None:
    seen = from_rpc(call_error(grpc.StatusCode.NOT_FOUND, "nothing here"))
    assert (seen.reason, seen.message, seen.retry_after) == ("NOT_FOUND", "nothing here", None)


def test_a_status_without_a_message_says_its_code() -> None:
    assert str(from_rpc(call_error(grpc.StatusCode.NOT_FOUND))) == "NOT_FOUND"


def test_details_of_another_domain_are_not_ours() -> None:
    info = any_pb2.Any()
    info.Pack(error_details_pb2.ErrorInfo(reason="QUOTA", domain="elsewhere.example"))
    status = status_pb2.Status(code=8, details=[info])
    seen = from_rpc(call_error(grpc.StatusCode.RESOURCE_EXHAUSTED, "", status.SerializeToString()))
    assert seen.reason == "RESOURCE_EXHAUSTED"


def test_details_that_nobody_knows_are_passed_over() -> None:
    odd = any_pb2.Any()
    odd.Pack(duration_pb2.Duration(seconds=1))
    status = status_pb2.Status(code=5, details=[odd])
    seen = from_rpc(call_error(grpc.StatusCode.NOT_FOUND, "gone", status.SerializeToString()))
    assert (type(seen), seen.message) == (magicflow.NotFound, "gone")


def test_details_that_cannot_be_read_leave_the_status() -> None:
    seen = from_rpc(call_error(grpc.StatusCode.NOT_FOUND, "gone", b"\xff\xff\xff"))
    assert (type(seen), seen.reason) == (magicflow.NotFound, "NOT_FOUND")


def test_a_server_out_of_reach_is_named_with_what_to_do() -> None:
    seen = from_rpc(call_error(grpc.StatusCode.UNAVAILABLE, "failed to connect"), "10.0.0.1:7200")
    assert str(seen) == "no magicflow server answers at 10.0.0.1:7200"
    assert seen.reason == "SERVER_UNREACHABLE"
    assert "MAGICFLOW_ADDRESS" in seen.mend


def test_unavailable_from_a_server_that_answers_is_its_own_word() -> None:
    seen = answered(engine_errors.Unavailable("the bus is out of reach", reason="BUS_UNAVAILABLE"))
    assert (str(seen), seen.reason) == ("the bus is out of reach", "BUS_UNAVAILABLE")


def test_a_failed_trace_says_where_and_why() -> None:
    error = TraceFailed("ab12", "FAILED", Failure(code="SOLD_OUT", message="no a1", node="pay"))
    assert str(error) == "trace ab12 FAILED at pay: SOLD_OUT: no a1"
    assert (error.code, error.reason, error.node) == ("SOLD_OUT", "SOLD_OUT", "pay")


def test_a_trace_that_failed_as_a_whole_names_no_node() -> None:
    error = TraceFailed("ab12", "TIMED_OUT", Failure(code="TRACE_TIMEOUT", message="1 s is over"))
    assert str(error) == "trace ab12 TIMED_OUT: TRACE_TIMEOUT: 1 s is over"


def test_every_error_of_a_call_is_caught_by_the_root() -> None:
    kinds = [v for v in vars(magicflow.errors).values() if isinstance(v, type)]
    raised = [k for k in kinds if issubclass(k, Exception) and k.__module__ == "magicflow.errors"]
    assert [k.__name__ for k in raised if not issubclass(k, MagicflowError)] == ["TaskError"]


def test_a_task_error_without_a_message_says_its_code() -> None:
    error = TaskError("SOLD_OUT")
    assert (str(error), error.message, error.retryable) == ("SOLD_OUT", "SOLD_OUT", True)
