"""Dead letters as a caller may see them: each belongs to the app of its tasks, or, when nobody can
tell, to whoever may operate the whole cluster."""

from __future__ import annotations

from engine.bus.port import DeadLetter, DeadLetters
from engine.core.failure import Code
from engine.errors import WrongState
from engine.rpc.interceptors import caller
from engine.rpc.paging import page_size, page_start
from engine.security.tokens import EVERY_APP
from engine.wire.values import timestamp
from magicflow.v1 import dispatch_service_pb2 as pb

_LOOKED_AT = 10_000  # letters read for one page of an app's own
_AT_ONCE = 16  # letters that are held with their frames, of some megabytes each


class Letters:
    """Errors: `NotFound`, `Denied`, `Unavailable`."""

    def __init__(self, dead: DeadLetters) -> None:
        self._dead = dead

    async def page(self, request: pb.ListDeadLettersRequest) -> pb.ListDeadLettersResponse:
        """The letters of the caller's app, without their frames: a thousand of them would fit no
        message. Of every app for who may operate all."""
        identity = caller()
        identity.require("operate", identity.app)
        size = page_size(request.page_size, 100, 1_000)
        before, looked_at = page_start(request.page_token), 0
        seen: list[pb.DeadLetter] = []
        more = True
        while more and len(seen) < size and looked_at < _LOOKED_AT:
            batch = await self._dead.letters(before, _AT_ONCE)
            more = len(batch) == _AT_ONCE
            for letter in batch:
                looked_at += 1
                before = letter.id
                if identity.may("operate", _app_of(letter)):
                    seen.append(_summary(letter))
                    if len(seen) == size:
                        break
        return pb.ListDeadLettersResponse(
            dead_letters=seen,
            next_page_token=str(before) if more or len(seen) == size else "",
        )

    async def one(self, number: int) -> pb.DeadLetter:
        """With its frame."""
        letter = await self._mine(number)
        message = _summary(letter)
        message.frame = letter.frame
        return message

    async def replay(self, number: int) -> None:
        """Errors: `WrongState` for a task whose node has failed over it."""
        letter = await self._mine(number)
        if letter.code == Code.WORKER_LOST:
            raise WrongState(
                "the task has failed its node; on the bus it would not be wanted",
                reason="TRACE_STATE",
                mend="retry the trace: `magicflow dead replay` and `magicflow trace retry` do so",
            )
        await self._dead.replay(number)

    async def drop(self, number: int) -> None:
        await self._mine(number)
        await self._dead.drop(number)

    async def _mine(self, number: int) -> DeadLetter:
        letter = await self._dead.letter(number)
        caller().require("operate", _app_of(letter))
        return letter


def _app_of(letter: DeadLetter) -> str:
    parts = letter.origin.split(".")
    return parts[2] if parts[:2] == ["flow", "task"] and len(parts) > 3 else EVERY_APP


def _summary(letter: DeadLetter) -> pb.DeadLetter:
    return pb.DeadLetter(
        id=letter.id,
        subject=letter.origin,
        code=letter.code,
        message=letter.message,
        at=timestamp(letter.at),
    )
