"""A watch that outlives its connections: nothing missed, nothing repeated."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING

from engine.errors import Denied, Unavailable
from engine.snapshots.etcd import failures
from engine.snapshots.etcd.driver import Driver
from engine.snapshots.etcd.wire_pb2 import (
    Event,
    WatchCreateRequest,
    WatchRequest,
    WatchResponse,
)
from engine.snapshots.port import Change, Compacted

if TYPE_CHECKING:
    from grpc.aio import StreamStreamCall

_FIRST_PAUSE = 0.05  # seconds
_LONGEST_PAUSE = 2.0


async def watch(
    driver: Driver, key: bytes, range_end: bytes, since: int
) -> AsyncGenerator[Change, None]:
    """The port's `watch` over one etcd range.

    `position` is the revision up to which everything was delivered. Only complete answers and
    progress notifications move it: the header of the "created" answer, and that of an answer
    with events, may be ahead of what was sent.
    """
    position = since
    pause = _FIRST_PAUSE
    refused = False
    while True:
        try:
            async with driver.stream(lambda member: member.watch.Watch) as call:
                await call.write(_create(key, range_end, position + 1))
                async with aclosing(_answers(call)) as answers:
                    async for upto, events in answers:
                        pause = _FIRST_PAUSE
                        refused = False
                        for event in events:
                            if event.kv.mod_revision > position:
                                yield _change(event)
                        position = max(position, upto)
        except _Refused as refusal:
            # It may be the token and not the user, and etcd's words do not always tell: log in
            # once more before believing it.
            if refused or not driver.forget_token():
                raise Denied(
                    f"etcd forbids this watch: {refusal}",
                    reason="ETCD_DENIED",
                    mend="Grant the user's role read access to the whole key space in use.",
                ) from None
            refused = True
        except Unavailable:
            if driver.closed:
                raise failures.closed() from None
        # Spread, so that the watches of all processes do not return in the same moment.
        await asyncio.sleep(pause * random.uniform(0.5, 1.0))
        pause = min(pause * 2, _LONGEST_PAUSE)


class _Refused(Exception):
    pass


def _create(key: bytes, range_end: bytes, start: int) -> WatchRequest:
    return WatchRequest(
        create_request=WatchCreateRequest(
            key=key,
            range_end=range_end,
            start_revision=start,
            progress_notify=True,
            fragment=True,
        )
    )


async def _answers(
    call: StreamStreamCall[WatchRequest, WatchResponse],
) -> AsyncGenerator[tuple[int, Sequence[Event]], None]:
    """Whole answers: the revision up to which all is told, and the events. Ends when the
    server ends the stream."""
    parts: list[Event] = []
    while isinstance(answer := await call.read(), WatchResponse):
        if answer.canceled:
            _raise_cancellation(answer)
        parts.extend(answer.events)
        if answer.fragment or answer.created:
            continue
        if parts:
            yield parts[-1].kv.mod_revision, parts
            parts = []
        else:
            yield answer.header.revision, ()


def _raise_cancellation(answer: WatchResponse) -> None:
    reason = answer.cancel_reason
    if answer.compact_revision:
        raise Compacted(
            f"etcd has no changes from before revision {answer.compact_revision}; list again"
        )
    if "permission denied" in reason or "auth token" in reason or "auth store" in reason:
        raise _Refused(reason)
    raise Unavailable(f"etcd ended the watch: {reason}", reason="ETCD_WATCH_ENDED")


def _change(event: Event) -> Change:
    kv = event.kv
    if event.type == Event.DELETE:
        return Change(kv.key.decode(), None, kv.mod_revision)
    return Change(kv.key.decode(), kv.value, kv.mod_revision, kv.create_revision)
