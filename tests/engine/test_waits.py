"""The reasons of waiting are those of the contract."""

from __future__ import annotations

from engine.core.waits import WaitCode
from magicflow.v1.trace_pb2 import WaitCode as Contract


def test_every_reason_has_its_number_in_the_contract() -> None:
    for code in WaitCode:
        assert Contract.Name(code) == f"WAIT_CODE_{code.name}"
