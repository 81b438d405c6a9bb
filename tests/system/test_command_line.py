"""The command line as a new user meets it: a dev server, good input and bad input."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

import magicflow
from magicflow.v1 import trigger_service_pb2
from tests.servers import ROOT, free_port
from tests.system.stack import Program, until_offered, until_owned

pytestmark = [pytest.mark.timeout(180), pytest.mark.xdist_group("command_line")]

HELLO = """\
playbook: hello
app: shop
input: {type: object, required: [name], properties: {name: {type: string}}}
nodes:
  greet: {task: greet, timeout: 30s}
  shout: {task: shout, input: {text: $.greet}}
edges:
  - {from: greet, to: shout}
output: $.shout
"""


class Dev:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.program = Program(
            directory, ["dev", "--data", str(directory / "data")], free_port(), {}
        )

    def magicflow(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "cli.main", *arguments],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={
                **os.environ,
                "MAGICFLOW_ADDRESS": self.program.address,
                "COLUMNS": "200",
                **environment,
            },
            timeout=60,
            check=False,
        )

    def write(self, name: str, text: str) -> str:
        file = self.directory / name
        file.write_text(text)
        return str(file)

    def client(self) -> magicflow.Client:
        return magicflow.Client(self.program.address)


@pytest.fixture(scope="module")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    made = Dev(tmp_path_factory.mktemp("dev"))
    made.program.start()

    async def prepare() -> None:
        async with made.client() as client:
            await until_owned(client)
            await client.create_app("shop")
            await client.publish(HELLO, switch=True)

    asyncio.run(prepare())
    yield made
    made.program.stop()


def test_a_playbook_is_checked_with_every_finding_at_its_place(dev: Dev) -> None:
    broken = HELLO.replace("timeout: 30s", "tiemout: 30s").replace("to: shout", "to: shuot")
    file = dev.write("broken.yaml", broken)
    seen = dev.magicflow("playbook", "validate", file)
    assert seen.returncode == 3
    assert f"{file}:5:24: error UNKNOWN_KEY nodes.greet.tiemout" in seen.stderr
    assert "did you mean timeout?" in seen.stderr


def test_publishing_what_is_broken_stores_nothing_and_says_why(dev: Dev) -> None:
    file = dev.write("cycle.yaml", HELLO + "  \n" + "")
    text = HELLO.replace(
        "  - {from: greet, to: shout}",
        "  - {from: greet, to: shout}\n  - {from: shout, to: greet}",
    ).replace("playbook: hello", "playbook: ring")
    file = dev.write("cycle.yaml", text)
    seen = dev.magicflow("playbook", "publish", file)
    assert seen.returncode == 3
    assert "GRAPH_CYCLE" in seen.stderr
    assert "greet -> shout -> greet" in seen.stderr
    assert dev.magicflow("playbook", "show", "shop/ring").returncode == 4


def test_the_same_content_published_again_is_the_same_snapshot(dev: Dev) -> None:
    file = dev.write("hello.yaml", HELLO)
    first = json.loads(dev.magicflow("playbook", "publish", file, "--json").stdout)
    again = json.loads(dev.magicflow("playbook", "publish", file, "--json").stdout)
    assert again["existing"]
    assert first["snapshot"]["id"] == again["snapshot"]["id"]


def test_versions_are_switched_live_and_compared(dev: Dev) -> None:
    file = dev.write("two.yaml", HELLO.replace("hello", "two"))
    first = json.loads(dev.magicflow("playbook", "publish", file, "--switch", "--json").stdout)
    changed = HELLO.replace("hello", "two").replace("30s", "10s")
    file = dev.write("two.yaml", changed)
    second = json.loads(dev.magicflow("playbook", "publish", file, "--json").stdout)
    one, two = first["snapshot"]["id"], second["snapshot"]["id"]
    diff = dev.magicflow("playbook", "diff", one, two)
    assert "nodes.greet.timeout" in diff.stdout
    refused = dev.magicflow("playbook", "switch", "shop/two", two, "--expect", two)
    assert refused.returncode == 8
    assert "SWITCH_CONFLICT" in refused.stderr
    done = dev.magicflow("playbook", "switch", "shop/two", two, "--json")
    assert json.loads(done.stdout)["previous_snapshot_id"] == int(one)


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("trigger", "shop/nope"), 4, "PLAYBOOK_NOT_FOUND"),
        (("trigger", "nope"), 3, "write app/name"),
        (("trigger", "shop/hello", "-i", "{bad"), 3, "the input is not JSON"),
        (("trigger", "shop/hello", "-i", "{}"), 3, '"name" is a required property'),
        (("trigger", "shop/hello", "-i", '{"name": 3}'), 3, "input.name"),
        (("trigger", "shop/hello@999", "-i", '{"name": "x"}'), 4, "SNAPSHOT_NOT_FOUND"),
        (("trace", "show", "12"), 3, "32 hex digits"),
        (("trace", "show", "018bcfe5680077239fead8dfc9d5426a"), 4, "TRACE_NOT_FOUND"),
        (("trace", "abort", "018bcfe5680077239fead8dfc9d5426a"), 4, "TRACE_NOT_FOUND"),
        (("playbook", "publish", "no-such-file.yaml"), 3, "cannot be read"),
        (("app", "create", "Bad Name"), 3, "small letter"),
        (("app", "create", "shop"), 8, "APP_EXISTS"),
        (("app", "token", "shop", "--scopes", "root"), 3, "SCOPE_ROOT"),
        (("serve", "everything"), 6, "there is no service everything"),
    ],
)
def test_a_mistake_gets_a_sentence_and_an_exit_code(
    dev: Dev, arguments: tuple[str, ...], code: int, text: str
) -> None:
    seen = dev.magicflow(*arguments)
    assert (seen.returncode, text in seen.stderr) == (code, True), seen.stderr
    assert "Traceback" not in seen.stderr


def test_a_wrong_token_is_refused_by_name(dev: Dev) -> None:
    seen = dev.magicflow("worker", "list", MAGICFLOW_TOKEN="not.a.token")
    assert seen.returncode == 5
    assert "TOKEN_INVALID" in seen.stderr


async def test_a_token_of_another_app_may_not_trigger(dev: Dev) -> None:
    async with dev.client() as admin:
        token = await admin.create_app("other")
    async with magicflow.Client(dev.program.address, token=token) as stranger:
        with pytest.raises(magicflow.Denied) as refused:
            await stranger.trigger("shop/hello", {"name": "x"})
    assert refused.value.reason == "TOKEN_SCOPE"


async def test_a_revoked_token_is_worthless(dev: Dev) -> None:
    async with dev.client() as admin:
        text, token = await admin.create_token("shop", "guest", ["trigger"])
        async with magicflow.Client(dev.program.address, token=text) as guest:
            assert await guest.playbooks("shop")
            await admin.revoke_token(token.id)
            async with asyncio.timeout(5):
                with pytest.raises(magicflow.Unauthenticated, match="revoked"):
                    while True:
                        await guest.playbooks("shop")


async def test_an_oversized_input_is_refused_before_it_is_stored(dev: Dev) -> None:
    async with dev.client() as client:
        with pytest.raises(magicflow.Invalid) as refused:
            await client.trigger("shop/hello", {"name": "x" * 1_100_000})
    assert refused.value.reason == "PAYLOAD_TOO_LARGE"


async def test_options_of_later_versions_are_refused_not_ignored(dev: Dev) -> None:
    async with dev.client() as client:
        request = trigger_service_pb2.TriggerRequest(playbook="shop/hello", labels={"a": "b"})
        with pytest.raises(magicflow.Unimplemented, match="labels"):
            await client._call(client._trigger.Trigger, request)


async def test_an_abort_ends_a_trace_and_tells_its_worker(dev: Dev) -> None:
    worker = magicflow.Worker(dev.program.address, token="", drain_timeout=1)
    begun, cancelled = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    @worker.function("shop/greet")
    async def greet(name: str) -> str:
        loop.call_soon_threadsafe(begun.set)
        try:
            await asyncio.Event().wait()
        finally:
            loop.call_soon_threadsafe(cancelled.set)
        return name

    @worker.function("shop/shout")
    async def shout(text: str) -> str:
        return text

    serving = asyncio.create_task(worker.serve())
    async with dev.client() as client, asyncio.timeout(30):
        handle = await client.trigger("shop/hello", {"name": "x"})
        await begun.wait()
        running = await handle.get()
        assert running.nodes[0].status == 3  # RUNNING, seen by its gateway
        await handle.abort("enough")
        await cancelled.wait()
        with pytest.raises(magicflow.TraceFailed) as ended:
            await handle.result()
        assert (ended.value.status, ended.value.code) == ("ABORTED", "ABORTED")
        await handle.abort("again")  # harmless
    worker.stop()
    await asyncio.wait_for(serving, 10)


async def test_every_service_reports_its_health_and_describes_itself(dev: Dev) -> None:
    async with grpc.aio.insecure_channel(dev.program.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("Trigger", "Dispatch", "Registry", "Trace", "Partition"):
            name = f"magicflow.v1.{service}Service"
            answer = await health.Check(health_pb2.HealthCheckRequest(service=name), timeout=5)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        call = reflection.ServerReflectionInfo(iter([asked]), timeout=5)
        names = {s.name for s in (await call.read()).list_services_response.service}
        assert "magicflow.v1.TriggerService" in names


async def test_the_status_details_name_reason_field_place_and_mend(dev: Dev) -> None:
    broken = HELLO.replace("timeout: 30s", "tiemout: 30s")
    async with dev.client() as client:
        with pytest.raises(magicflow.Invalid) as refused:
            await client.publish(broken)
    assert refused.value.reason == "PLAYBOOK_INVALID"
    (violation,) = refused.value.violations
    assert (violation.field, violation.code) == ("nodes.greet.tiemout", "UNKNOWN_KEY")
    assert "line 5, column 24" in violation.description
    assert "did you mean timeout?" in violation.description


async def test_a_wait_that_is_too_short_leaves_the_trace_running(dev: Dev) -> None:
    async with dev.client() as client:
        with pytest.raises(magicflow.DeadlineExceeded) as late:
            await client.run("shop/hello", {"name": "x"}, timeout=0.2)
        handle = client.handle(late.value.metadata["trace_id"])
        assert not (await handle.get()).HasField("ended_at")
        await handle.abort("test")


def test_a_taken_port_is_said_before_anything_starts(dev: Dev) -> None:
    seen = dev.magicflow("dev", "--listen", dev.program.address, "--data", str(dev.directory / "x"))
    assert seen.returncode == 6
    assert "is taken by another process" in seen.stderr


def test_a_missing_server_is_a_sentence_that_says_what_to_do(dev: Dev) -> None:
    seen = dev.magicflow("worker", "list", MAGICFLOW_ADDRESS=f"127.0.0.1:{free_port()}")
    assert seen.returncode == 6
    assert "magicflow dev" in seen.stderr


def test_an_old_nats_server_is_refused_by_version(dev: Dev) -> None:
    old = dev.directory / "old-nats-server"
    old.write_text("#!/bin/sh\necho 'nats-server: v2.9.10'\n")
    old.chmod(0o755)
    seen = dev.magicflow(
        "dev",
        "--listen",
        f"127.0.0.1:{free_port()}",
        "--data",
        str(dev.directory / "y"),
        MAGICFLOW_NATS_SERVER=str(old),
    )
    assert seen.returncode == 6
    assert "is version 2.9.10" in seen.stderr


def test_doctor_finds_a_healthy_server_well_and_a_missing_one_ill(dev: Dev) -> None:
    assert dev.magicflow("doctor").returncode == 0
    ill = dev.magicflow("doctor", MAGICFLOW_ADDRESS=f"127.0.0.1:{free_port()}")
    assert ill.returncode == 1
    assert "start one with" in ill.stdout


def test_a_server_that_is_stopped_while_it_starts_leaves_no_nats_server(tmp_path: Path) -> None:
    made = Dev(tmp_path)
    with (tmp_path / "out.log").open("wb") as log:
        child = subprocess.Popen(
            made.program.command(), env=made.program.environment(), stdout=log, stderr=log
        )
    config = str(tmp_path / "data" / "nats" / "nats.conf")
    try:
        while not _running_with(config):
            assert child.poll() is None
            os.sched_yield()
    finally:
        child.terminate()
        child.wait(30)
    assert _running_with(config) == []


def _running_with(argument: str) -> list[str]:
    """Process ids whose command line has this argument."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if argument.encode() in (process / "cmdline").read_bytes().split(b"\0"):
                found.append(process.name)
    return found


async def test_a_second_start_goes_on_where_the_first_one_was(tmp_path: Path) -> None:
    made = Dev(tmp_path)
    await asyncio.to_thread(made.program.start)
    async with made.client() as client:
        await until_owned(client)
        await client.create_app("shop")
        await client.publish(HELLO, switch=True)
        handle = await client.trigger("shop/hello", {"name": "Ann"})
        assert (await handle.get()).nodes[0].wait.message == "no live worker offers shop/greet"
    await asyncio.to_thread(made.program.interrupt)
    await asyncio.to_thread(made.program.start)
    worker = magicflow.Worker(made.program.address, token="")
    worker.function("shop/greet")(lambda name: f"hello {name}")
    worker.function("shop/shout")(lambda text: text.upper())
    serving = asyncio.create_task(worker.serve())
    async with made.client() as client:
        await until_offered(client, "shop/greet", "shop/shout")
        assert await client.handle(handle.trace_id).result(30) == "HELLO ANN"
    worker.stop()
    await asyncio.wait_for(serving, 10)
    await asyncio.to_thread(made.program.stop)


STEERED = """
playbook: steered
app: shop
nodes:
  first:  {hook: {}}
  second: {hook: {}}
  end:    {nop: {}}
edges:
  - {from: first, to: second}
  - {from: second, to: end}
"""


def test_a_trace_is_steered_from_the_command_line(dev: Dev) -> None:
    assert dev.magicflow("playbook", "publish", dev.write("s.yaml", STEERED), "--switch").stdout

    def trace(verb: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return dev.magicflow("trace", verb, *arguments)

    started = dev.magicflow("trigger", "shop/steered", "--key", "k", "--priority", "8")
    trace_id = started.stdout.strip()
    again = dev.magicflow("trigger", "shop/steered", "--key", "k")
    assert again.stdout.strip() == trace_id
    taken = dev.magicflow("trigger", "shop/steered", "--key", "k", "-i", "1")
    assert "IDEMPOTENCY_CONFLICT" in taken.stderr
    assert "use a key of its own" in taken.stderr  # what the owner says comes through the mesh

    assert "paused" in trace("pause", trace_id, "--why", "look").stdout
    assert "paused already" in trace("pause", trace_id).stderr
    assert trace("resume", trace_id).returncode == 0
    assert trace("signal", trace_id, "first", "--payload", '{"by": "Bob"}').returncode == 0
    assert "NODE_STATE" in trace("signal", trace_id, "first").stderr
    assert "NODE_NOT_FOUND" in trace("complete", trace_id, "nowhere").stderr
    assert (
        trace("fail", trace_id, "second", "--code", "STUCK", "--why", "no answer").returncode == 0
    )
    shown = json.loads(trace("show", trace_id, "--json").stdout)
    assert (shown["status"], shown["failure"]["code"]) == ("TRACE_STATUS_FAILED", "STUCK")

    assert trace("retry", trace_id, "--node", "second").returncode == 0
    assert trace("signal", trace_id, "second").returncode == 0
    shown = json.loads(trace("show", trace_id, "--json").stdout)
    assert shown["status"] == "TRACE_STATUS_SUCCEEDED"
    refused = trace("retry", trace_id)
    assert "TRACE_STATE" in refused.stderr
    assert "rerun it" in refused.stderr

    other = trace("rerun", trace_id, "second", "--input", '"new"', "--why", "once more").stdout
    assert trace("complete", other.strip(), "second", "--output", "5").returncode == 0
    third = trace("rerun", trace_id).stdout.strip()
    assert trace("skip", third, "first").returncode == 0
    assert trace("abort", third).returncode != 0  # everything behind it was skipped: it has ended
    events = json.loads(trace("events", trace_id, "--json").stdout)
    acts = [event["operator_acted"] for event in events if "operator_acted" in event]
    assert [act["verb"] for act in acts] == ["pause", "resume", "signal", "fail", "retry", "signal"]
    assert (acts[0]["why"], acts[3]["why"]) == ("look", "no answer")
    svg = dev.directory / "t.svg"
    assert trace("show", trace_id, "--svg", str(svg)).returncode == 0
    assert "<svg" in svg.read_text()
