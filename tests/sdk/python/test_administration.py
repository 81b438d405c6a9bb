"""What the client says of settings before it sends them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import pytest

from magicflow import Client, Invalid
from magicflow.v1 import registry_service_pb2 as pb
from magicflow.v1.registry_service_pb2_grpc import (
    RegistryServiceServicer,
    add_RegistryServiceServicer_to_server,
)


class OneApp(RegistryServiceServicer):
    """Keeps one app as it is told."""

    def __init__(self) -> None:
        self.app = pb.App(name="shop", quota=5.0)

    async def GetApp(self, request: Any, context: Any) -> pb.GetAppResponse:
        return pb.GetAppResponse(app=self.app)

    async def UpdateApp(self, request: Any, context: Any) -> pb.UpdateAppResponse:
        self.app = request.app
        return pb.UpdateAppResponse(app=self.app)


@pytest.fixture
async def magic() -> AsyncIterator[Client]:
    server = grpc.aio.server()
    add_RegistryServiceServicer_to_server(OneApp(), server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with Client(f"127.0.0.1:{port}", token="secret") as made:
        yield made
    await server.stop(None)


async def test_changing_an_app_keeps_what_is_not_named(magic: Client) -> None:
    changed = await magic.change_app("shop", in_flight=8)
    assert (changed.quota, changed.in_flight) == (5.0, 8)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("in_flight", 1 << 40),
        ("in_flight", -1),
        ("max_nodes", 1.5),
        ("quota", "many"),
        ("description", "\ud800"),
    ],
)
async def test_what_a_setting_cannot_hold_is_invalid_and_names_the_field(
    magic: Client, field: str, value: Any
) -> None:
    with pytest.raises(Invalid, match=field) as refused:
        await magic.change_app("shop", **{field: value})
    assert [violation.field for violation in refused.value.violations] == [f"app.{field}"]
