"""The load: who calls what when, drawn from a seed, and callers who behave as real ones do.

A caller believes only what was acknowledged to it. When the server is out of reach or busy it
tries again; what it then does not know it writes down as unsure.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import magicflow
from magicflow.client import status_name
from magicflow.payloads import from_payload
from magicflow.v1.trace_pb2 import NODE_STATUS_PAUSED
from magicflow.v1.trigger_service_pb2 import Outcome
from tests.system.chaos.journals import ACKNOWLEDGED, REFUSED, SENT, UNSURE, Said, Writer
from tests.system.chaos.playbooks import KINDS, Kind, hook_payload

Answered = TypeVar("Answered")

PATIENCE = 90.0  # seconds in which everything must be done once all is well
TRANSIENT = (
    magicflow.Unavailable,
    magicflow.Exhausted,
    magicflow.DeadlineExceeded,
    magicflow.Internal,
)
_PAUSES = (0.05, 0.1, 0.2, 0.4, 0.8)  # seconds between attempts


@dataclass(frozen=True, slots=True)
class Call:
    """One trace of the load. `after` is seconds from the beginning."""

    number: int
    after: float
    kind: Kind
    given: dict[str, Any]
    key: str
    lingers: float  # seconds between the acts of a follow-up


def draw(rng: random.Random, first: int, traces: int, seconds: float) -> tuple[Call, ...]:
    """Calls numbered from `first`, spread over so many seconds. A call with a follow-up carries
    a key: whoever must act on its trace has to know which one that is."""
    calls = []
    for number in range(first, first + traces):
        kind = rng.choice(tuple(KINDS.values()))
        given = {
            "n": rng.randrange(100),
            "items": [rng.randrange(100) for _ in range(rng.randrange(1, 6))],
            "fails": rng.randrange(3),
            "call": number,
        }
        keyed = bool(kind.follow_up) or rng.random() < 0.5
        key = f"call-{number}" if keyed else ""
        calls.append(Call(number, rng.uniform(0, seconds), kind, given, key, rng.uniform(0, 0.5)))
    return tuple(sorted(calls, key=lambda call: call.after))


class GaveUp(Exception):
    """What was to be done could not be done in time, or was refused for good."""


class Callers:
    """Makes the calls, side by side. `acknowledged` counts starts."""

    def __init__(self, client: magicflow.Client, journal: Writer[Said], seed: int) -> None:
        self._client = client
        self._journal = journal
        self._rng = random.Random(seed)
        self.acknowledged = 0
        self.ended = 0
        self._finished = False
        self._news = asyncio.Event()

    async def make(self, calls: tuple[Call, ...]) -> None:
        """Returns when every caller has seen its trace's end, or has given up."""
        try:
            async with asyncio.TaskGroup() as group:
                for call in calls:
                    group.create_task(self._make(call))
        finally:
            self._finished = True
            self._news.set()

    async def progress(self, starts: int) -> None:
        """Returns when so many starts were acknowledged and at least one trace still runs, or
        when all callers are done."""
        while not self._finished and (
            self.acknowledged < max(1, starts) or self.acknowledged == self.ended
        ):
            self._news.clear()
            await self._news.wait()

    async def _make(self, call: Call) -> None:
        await asyncio.sleep(call.after)
        try:
            handle = await self._start(call)
            self.acknowledged += 1
            self._news.set()
            await self._follow_up(call, handle)
            await self._await(call, handle)
        except GaveUp:
            return  # the journal says what was refused; the oracle asks why
        finally:
            self.ended += 1
            self._news.set()

    async def _start(self, call: Call) -> magicflow.TraceHandle:
        handle = await self._persist(
            call,
            "start",
            lambda: self._client.trigger(call.kind.full_name, call.given, key=call.key),
            value=call.given,
        )
        self._say(call, "start", ACKNOWLEDGED, handle.trace_id, value=call.given)
        return handle

    async def _follow_up(self, call: Call, handle: magicflow.TraceHandle) -> None:
        match call.kind.follow_up:
            case "signal":
                await self._until_asked(call, handle.trace_id)
                payload = hook_payload(call.given)
                await self._act(
                    call, handle, "signal", lambda why: handle.signal("ask", payload, why=why)
                )
            case "abort":
                await asyncio.sleep(call.lingers)
                await self._act(call, handle, "abort", handle.abort)
            case "pause":
                trace = handle.trace_id
                await self._act(call, handle, "pause", lambda why: self._client.pause(trace, why))
                await asyncio.sleep(call.lingers)
                await self._act(call, handle, "resume", lambda why: self._client.resume(trace, why))

    async def _until_asked(self, call: Call, trace: str) -> None:
        """The hook is open. Half of the callers watch, the others look again and again."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            try:
                if call.number % 2:
                    found = await self._client.get(trace)
                    if _asks(found):
                        return
                else:
                    async with asyncio.timeout_at(asyncio.get_running_loop().time() + PATIENCE):
                        async for seen in self._client.watch(trace):
                            if _asks(seen):
                                return
            except (*TRANSIENT, TimeoutError):
                pass
            except magicflow.MagicflowError as error:
                self._say(call, "look", REFUSED, trace, error=_told(error))
            await asyncio.sleep(self._rng.choice(_PAUSES))
        self._say(call, "look", REFUSED, trace, error="the hook was not shown as open in time")
        raise GaveUp

    async def _act(
        self,
        call: Call,
        handle: magicflow.TraceHandle,
        verb: str,
        act: Callable[[str], Awaitable[None]],
    ) -> None:
        """A refusal is the answer where an earlier attempt may have been carried out, or the
        trace was faster; the trace's end shows what was true."""
        why = f"{verb}-{call.number}"
        try:
            await self._persist(call, verb, lambda: act(why), trace=handle.trace_id, why=why)
        except GaveUp:
            return
        self._say(call, verb, ACKNOWLEDGED, handle.trace_id, why=why)

    async def _await(self, call: Call, handle: magicflow.TraceHandle) -> None:
        outcome = await self._persist(
            call, "outcome", lambda: handle.outcome(10.0), trace=handle.trace_id
        )
        self._say(
            call,
            "outcome",
            ACKNOWLEDGED,
            handle.trace_id,
            status=status_name(outcome.status),
            value=_output(outcome),
            error=outcome.failure.code,
        )

    async def _persist(
        self,
        call: Call,
        verb: str,
        attempt: Callable[[], Awaitable[Answered]],
        *,
        trace: str = "",
        value: Any = None,
        why: str = "",
    ) -> Answered:
        """Errors: `GaveUp` after a refusal for good, or when the patience is at its end."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            self._say(call, verb, SENT, trace, value=value, why=why)
            try:
                return await attempt()
            except TRANSIENT as error:
                self._say(call, verb, UNSURE, trace, error=_told(error), why=why)
                await asyncio.sleep(error.retry_after or self._rng.choice(_PAUSES))
            except magicflow.NotFound as error:
                # Wrong, as the trace was acknowledged; but who gives up leaves it without an end.
                self._say(call, verb, REFUSED, trace, error=_told(error), why=why)
                await asyncio.sleep(self._rng.choice(_PAUSES))
            except magicflow.MagicflowError as error:
                self._say(call, verb, REFUSED, trace, error=_told(error), why=why)
                raise GaveUp from error
        self._say(call, verb, REFUSED, trace, error="no answer within the patience", why=why)
        raise GaveUp

    def _say(self, call: Call, verb: str, state: str, trace: str = "", **more: Any) -> None:
        self._journal.write(
            Said(
                time.monotonic(),
                call.number,
                verb,
                state,
                trace,
                call.kind.name,
                call.key,
                **more,
            )
        )


def _asks(trace: Any) -> bool:
    """Also true once it is too late to ask: then the act itself is refused, and says so."""
    if trace.HasField("ended_at"):
        return True
    return any(n.path == "ask" and n.status == NODE_STATUS_PAUSED for n in trace.nodes)


def _output(outcome: Outcome) -> Any:
    return from_payload(outcome.output) if outcome.HasField("output") else None


def _told(error: magicflow.MagicflowError) -> str:
    return f"{type(error).__name__} {error.reason}: {error}"
