"""Whose dead letters a caller may see and steer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from engine.bus.memory import MemoryBus
from engine.bus.port import DeadLetter
from engine.errors import Denied, Invalid, NotFound, WrongState
from engine.rpc import interceptors
from engine.rpc.server import MESSAGE_LIMIT
from engine.security.tokens import EVERY_APP, Identity
from magicflow.v1.dispatch_service_pb2 import ListDeadLettersRequest
from services.dispatcher.letters import Letters


@contextmanager
def caller(app: str, *scopes: str) -> Iterator[None]:
    token = interceptors._caller.set(Identity(app, "ann", frozenset(scopes)))
    yield
    interceptors._caller.reset(token)


@pytest.fixture
async def letters() -> Letters:
    bus = MemoryBus()
    for number in range(3):
        await bus.dead.bury("flow.task.shop.f.5", b"%d" % number, "TASK_UNREADABLE", "no frame")
        await bus.dead.bury("flow.task.bank.f.5", b"%d" % number, "WORKER_LOST", "3 workers")
    await bus.dead.bury("flow.trigger.0.5", b"t", "TRIGGER_UNUSABLE", "no snapshot")
    return Letters(bus.dead)


async def origins(letters: Letters, size: int = 0) -> list[str]:
    found: list[str] = []
    token = ""
    while True:
        page = await letters.page(ListDeadLettersRequest(page_size=size, page_token=token))
        found += [letter.subject for letter in page.dead_letters]
        token = page.next_page_token
        if not token:
            return found


@pytest.mark.parametrize("size", [0, 1, 2, 3, 7])
async def test_an_app_sees_its_own_letters_and_who_operates_all_sees_all(
    letters: Letters, size: int
) -> None:
    with caller("shop", "operate"):
        assert await origins(letters, size) == ["flow.task.shop.f.5"] * 3
    with caller(EVERY_APP, "operate"):
        assert len(await origins(letters, size)) == 7
    with caller("empty", "operate"):
        assert await origins(letters, size) == []


async def test_a_list_leaves_out_the_frames_which_a_letter_has(letters: Letters) -> None:
    with caller("shop", "operate"):
        page = await letters.page(ListDeadLettersRequest())
        assert [letter.frame for letter in page.dead_letters] == [b""] * 3
        assert (await letters.one(page.dead_letters[0].id)).frame == b"2"


async def test_a_page_of_large_frames_fits_a_message_and_is_read_some_at_a_time() -> None:
    dead = MemoryBus().dead
    for _ in range(40):
        await dead.bury("flow.task.shop.f.5", bytes(1 << 20), "TASK_UNREADABLE", "no frame")
    asked: list[int] = []
    letters = dead.letters

    async def counting(before: int, limit: int) -> list[DeadLetter]:
        asked.append(limit)
        return await letters(before, limit)

    dead.letters = counting  # type: ignore[method-assign]
    with caller("shop", "operate"):
        page = await Letters(dead).page(ListDeadLettersRequest(page_size=1_000))
    assert len(page.dead_letters) == 40
    assert page.ByteSize() < MESSAGE_LIMIT
    assert max(asked) < 40


async def test_reading_needs_the_scope_operate(letters: Letters) -> None:
    with caller("shop", "trigger", "work"), pytest.raises(Denied):
        await origins(letters)


async def test_nobody_touches_anothers_letters_or_triggers(letters: Letters) -> None:
    with caller("shop", "operate"):
        for number in (2, 7):  # the bank's, and a trigger of who knows which app
            for verb in (letters.one, letters.replay, letters.drop):
                with pytest.raises(Denied):
                    await verb(number)
        assert (await letters.one(1)).frame == b"0"


async def test_a_task_that_ended_its_workers_is_not_put_back(letters: Letters) -> None:
    with caller("bank", "operate"), pytest.raises(WrongState, match="failed its node") as refused:
        await letters.replay(2)
    assert "retry" in refused.value.mend


async def test_a_dropped_letter_is_gone(letters: Letters) -> None:
    with caller(EVERY_APP, "operate"):
        await letters.drop(1)
        with pytest.raises(NotFound):
            await letters.one(1)


@pytest.mark.parametrize("token", ["x", "²", "-1", "9" * 20, "9" * 5_000])
async def test_a_made_up_page_token_is_refused(letters: Letters, token: str) -> None:
    with caller(EVERY_APP, "operate"), pytest.raises(Invalid):
        await letters.page(ListDeadLettersRequest(page_token=token))
