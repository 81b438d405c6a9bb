"""Frames that nobody can process, from the bus to the operator and back. Real servers."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nats
import pytest

import magicflow
from tests.servers import ROOT
from tests.system.stack import Stack, until_offered, until_owned

pytestmark = [pytest.mark.timeout(120)]

WORK = "playbook: work\napp: shop\nnodes: {a: {task: f, input: {n: $$$.n}}}\n"

WORKER = """
import os, pathlib, sys
import magicflow
address, flag = sys.argv[1:]
worker = magicflow.Worker(address, token="", slots=1)
@worker.function("shop/f")
def f(n: int) -> int:
    if pathlib.Path(flag).exists():
        os._exit(9)
    return n
worker.run()
"""


async def until(read: Callable[[], Any], patience: float = 40.0) -> Any:
    deadline = time.monotonic() + patience
    while True:
        found = await read()
        if found:
            return found
        assert time.monotonic() < deadline, "it did not come about"
        await asyncio.sleep(0.05)


class Restarted:
    """A worker program that is started again whenever it ends."""

    def __init__(self, address: str, flag: Path) -> None:
        self._arguments = [sys.executable, "-c", WORKER, address, str(flag)]
        self._keeper: asyncio.Task[None] | None = None
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Restarted:
        self._keeper = asyncio.create_task(self._keep())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._keeper is not None
        self._keeper.cancel()
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    async def _keep(self) -> None:
        while True:
            self._process = await asyncio.create_subprocess_exec(
                *self._arguments, stderr=asyncio.subprocess.DEVNULL
            )
            await self._process.wait()


def command(stack: Stack, *arguments: str) -> str:
    """What the command line prints."""
    addresses = ",".join(f"{name}={p.address}" for name, p in stack.programs.items())
    done = subprocess.run(
        [sys.executable, "-m", "cli.main", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT), "MAGICFLOW_ADDRESS": addresses},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


async def test_a_task_that_ends_its_workers_is_put_aside_and_runs_again_once_they_are_mended(
    stack: Stack, tmp_path: Path
) -> None:
    stack.serve_all()
    flag = tmp_path / "poison"
    flag.touch()
    async with stack.client() as client:
        await until_owned(client)
        await client.create_app("shop")
        await client.publish(WORK, switch=True)
        async with Restarted(stack.programs["dispatcher"].address, flag):
            await until_offered(client, "shop/f")
            handle = await client.trigger("shop/work", {"n": 7})
            with pytest.raises(magicflow.TraceFailed) as failed:
                await handle.result(60)
            assert failed.value.code == "WORKER_LOST"
            [letter] = await until(client.dead_letters)
            shown = json.loads(await asyncio.to_thread(command, stack, "dead", "show", "1"))
            assert (letter.code, shown["tasks"][0]["input"]) == ("WORKER_LOST", {"n": 7})
            assert shown["tasks"][0]["trace_id"] == handle.trace_id
            flag.unlink()
            said = await asyncio.to_thread(command, stack, "dead", "replay", str(letter.id))
            assert f"{handle.trace_id} runs again from a" in said
            assert await handle.result(60) == {"a": 7}
            assert await client.dead_letters() == []


async def test_what_is_no_frame_is_put_aside_and_holds_up_nothing(
    stack: Stack, tmp_path: Path
) -> None:
    stack.serve_all()
    async with stack.client() as client:
        await until_owned(client)
        await client.create_app("shop")
        await client.publish(WORK, switch=True)
        async with Restarted(stack.programs["dispatcher"].address, tmp_path / "none"):
            await until_offered(client, "shop/f")
            bus = await nats.connect(stack.nats.url)
            await bus.publish("flow.task.shop.f.5", b"\xff\xff\xff")
            for partition in range(4):
                await bus.publish(f"flow.trigger.{partition}.5", b"\xc1")
            await bus.close()

            async def five() -> list[Any]:
                found = await client.dead_letters()
                return found if len(found) == 5 else []

            letters = await until(five)
            assert {letter.code for letter in letters} == {"TASK_UNREADABLE", "TRIGGER_UNUSABLE"}
            for number in range(20):
                assert await client.run("shop/work", {"n": number}, timeout=30) == {"a": number}
            listed = await asyncio.to_thread(command, stack, "dead", "list")
            assert "flow.trigger.3.5" in listed.replace("\n", "")
            for letter in letters:
                await client.drop_dead_letter(letter.id)
            assert "no dead letters" in await asyncio.to_thread(command, stack, "dead", "list")
