"""Errors on their way through the mesh: nothing of them is lost at a hop."""

from __future__ import annotations

import grpc
import grpc.aio
import pytest

from engine import errors
from engine.errors import FieldViolation, MagicflowError
from engine.rpc.status import CODES, from_call, to_status


def over_the_wire(error: MagicflowError) -> MagicflowError:
    code = CODES[type(error)]
    details = to_status(error).SerializeToString()
    trailing = grpc.aio.Metadata(("grpc-status-details-bin", details))
    return from_call(grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, error.message))


@pytest.mark.parametrize("kind", CODES, ids=[kind.__name__ for kind in CODES])
def test_an_error_arrives_as_it_was_raised(kind: type[MagicflowError]) -> None:
    sent = kind(
        "it is so",
        reason="SOME_REASON",
        violations=[FieldViolation("a.b", "BAD", "no number")],
        mend="do this",
        metadata={"trace_id": "01"},
        retry_after=1.5,
    )
    came = over_the_wire(sent)
    assert type(came) is kind
    assert (came.message, came.reason, came.mend) == ("it is so", "SOME_REASON", "do this")
    assert (came.metadata, came.retry_after) == ({"trace_id": "01"}, 1.5)
    assert came.violations == (FieldViolation("a.b", "BAD", "no number"),)


def test_an_error_without_details_keeps_its_kind_and_words() -> None:
    plain = grpc.aio.AioRpcError(
        grpc.StatusCode.NOT_FOUND, grpc.aio.Metadata(), grpc.aio.Metadata(), "nothing there"
    )
    came = from_call(plain)
    assert (type(came), came.message) == (errors.NotFound, "nothing there")
