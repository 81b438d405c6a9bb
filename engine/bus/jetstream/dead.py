"""Dead letters in a stream of their own; a letter's number is its sequence."""

from __future__ import annotations

from datetime import datetime

from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import RawStreamMsg
from nats.js.errors import NotFoundError

from engine.bus import subjects
from engine.bus.jetstream.publishing import Publisher, unavailable
from engine.bus.jetstream.streams import state_of
from engine.bus.port import DeadLetter, no_letter
from engine.errors import NotFound

_MESSAGE = 1_000  # characters


class JetStreamDeadLetters:
    """Implements `engine.bus.port.DeadLetters`."""

    def __init__(self, client: Client, js: JetStreamContext, publisher: Publisher) -> None:
        self._client = client
        self._js = js
        self._publisher = publisher

    async def bury(self, origin: str, frame: bytes, code: str, message: str) -> None:
        headers = {
            "Flow-Origin": origin,
            "Flow-Code": code,
            "Flow-Message": " ".join(message.split())[:_MESSAGE],
        }
        await self._send(subjects.dead_subject(origin), frame, headers)

    async def letters(self, before: int, limit: int) -> list[DeadLetter]:
        state, _ = await state_of(self._client, subjects.DEAD_STREAM, deleted=True)
        last = min(state.last_seq, before - 1) if before else state.last_seq
        gone = frozenset(state.deleted or ())
        found: list[DeadLetter] = []
        for number in range(last, max(state.first_seq, 1) - 1, -1):
            if len(found) == limit:
                break
            if number not in gone:
                try:
                    found.append(await self.letter(number))
                except NotFound:  # dropped in this moment
                    continue
        return found

    async def letter(self, number: int) -> DeadLetter:
        try:
            message = await self._js.get_msg(subjects.DEAD_STREAM, number)
        except NotFoundError as error:
            raise no_letter(number) from error
        except Exception as error:
            raise unavailable(error) from error
        return _letter(number, message)

    async def replay(self, number: int) -> None:
        letter = await self.letter(number)
        await self._send(letter.origin, letter.frame, None)
        await self.drop(number)

    async def drop(self, number: int) -> None:
        await self.letter(number)
        try:
            await self._js.delete_msg(subjects.DEAD_STREAM, number)
        except Exception as error:
            raise unavailable(error) from error

    async def _send(self, subject: str, frame: bytes, headers: dict[str, str] | None) -> None:
        await (await self._publisher.publish(subject, frame, headers))


def _letter(number: int, message: RawStreamMsg) -> DeadLetter:
    headers = message.headers or {}
    return DeadLetter(
        number,
        headers.get("Flow-Origin", ""),
        headers.get("Flow-Code", ""),
        headers.get("Flow-Message", ""),
        message.data or b"",
        int(message.time.timestamp() * 1_000) if isinstance(message.time, datetime) else 0,
    )
