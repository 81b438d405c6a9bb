"""What people type wrongly is said in a sentence; what others have written is shown as it is."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any

import grpc.aio
import pytest
import typer
from typer.testing import CliRunner

from cli import output
from cli.apps import parse_broker
from cli.main import app
from cli.output import Exit, split_pin
from magicflow.v1 import dispatch_service_pb2 as dispatch
from magicflow.v1 import registry_service_pb2 as registry
from magicflow.v1.dispatch_service_pb2_grpc import (
    DispatchServiceServicer,
    add_DispatchServiceServicer_to_server,
)
from magicflow.v1.registry_service_pb2_grpc import (
    RegistryServiceServicer,
    add_RegistryServiceServicer_to_server,
)

ODD = "[/] [bold]so[/bold] :x:"


class Odd(RegistryServiceServicer, DispatchServiceServicer):
    """Every text of it looks like rich's markup."""

    async def ListApps(self, request: Any, context: Any) -> registry.ListAppsResponse:
        return registry.ListAppsResponse(apps=[registry.App(name="shop", description=ODD)])

    async def ListTokens(self, request: Any, context: Any) -> registry.ListTokensResponse:
        return registry.ListTokensResponse(tokens=[registry.Token(id="t", subject=ODD)])

    async def ListGrants(self, request: Any, context: Any) -> registry.ListGrantsResponse:
        return registry.ListGrantsResponse(grants=[registry.Grant(target=ODD, grantee="bank")])

    async def GetCluster(self, request: Any, context: Any) -> registry.GetClusterResponse:
        response = registry.GetClusterResponse(leader="d")
        response.alarms.add(code="BROKER_DOWN", subject="s", message=ODD)
        return response

    async def ListDeadLetters(self, request: Any, context: Any) -> dispatch.ListDeadLettersResponse:
        letter = dispatch.DeadLetter(id=7, code="CORRUPT", subject="flow.task", message=ODD)
        return dispatch.ListDeadLettersResponse(dead_letters=[letter])

    async def GetDeadLetter(self, request: Any, context: Any) -> dispatch.GetDeadLetterResponse:
        return dispatch.GetDeadLetterResponse(
            dead_letter=dispatch.DeadLetter(id=request.id, subject="flow.task.shop.f.5")
        )


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of the services on a loop of another thread: a command brings a loop of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def start() -> tuple[grpc.aio.Server, int]:
        server = grpc.aio.server()
        add_RegistryServiceServicer_to_server(Odd(), server)  # type: ignore[no-untyped-call]
        add_DispatchServiceServicer_to_server(Odd(), server)  # type: ignore[no-untyped-call]
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        return server, port

    server, port = asyncio.run_coroutine_threadsafe(start(), loop).result(10)
    yield f"127.0.0.1:{port}"
    asyncio.run_coroutine_threadsafe(server.stop(None), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


@pytest.mark.parametrize(
    "words", ["app list", "app tokens shop", "grant list shop", "cluster", "dead list"]
)
def test_brackets_and_colons_of_others_are_no_markup(
    address: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output.out, "width", 200)
    monkeypatch.setenv("MAGICFLOW_ADDRESS", address)
    done = CliRunner().invoke(app, words.split())
    assert done.exception is None
    assert ODD in done.output


def test_a_letter_whose_frame_is_empty_is_shown_without_tasks(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAGICFLOW_ADDRESS", address)
    done = CliRunner().invoke(app, ["dead", "show", "7"])
    assert json.loads(done.output)["tasks"] == []


@pytest.mark.parametrize("weight", ["x", "²", "٣", "-1", "1.5", "4294967296", "9" * 5_000])
def test_a_weight_that_is_no_number_of_a_message_is_no_broker(weight: str) -> None:
    with pytest.raises(typer.Exit) as ended:
        parse_broker(f"one=nats://h:1*{weight}")
    assert ended.value.exit_code == Exit.INVALID


def test_a_broker_has_a_name_servers_and_perhaps_a_weight() -> None:
    assert parse_broker("one=nats://h:1,nats://i:2*4294967295").weight == (1 << 32) - 1
    assert parse_broker("one=nats://h:1").weight == 1


@pytest.mark.parametrize("pin", ["x", "²", "0", "9223372036854775808", "9" * 5_000])
def test_what_is_no_snapshot_is_a_mistake_of_the_command_line(pin: str) -> None:
    with pytest.raises(typer.Exit) as ended:
        split_pin(f"shop/order@{pin}")
    assert ended.value.exit_code == Exit.USAGE
    assert split_pin("shop/order@7") == ("shop/order", 7)
    assert split_pin("shop/order") == ("shop/order", 0)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ("dead show 9223372036854775808", Exit.USAGE),
        ("trace list --snapshot 9223372036854775808", Exit.USAGE),
        ("playbook switch shop/order 9223372036854775808", Exit.USAGE),
        ("app token shop --days 1e300", Exit.INVALID),
    ],
)
def test_numbers_that_no_message_holds_are_refused_without_a_stack_trace(
    address: str, words: str, code: Exit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAGICFLOW_ADDRESS", address)
    done = CliRunner().invoke(app, words.split())
    assert (done.exit_code, type(done.exception)) == (code, SystemExit)
