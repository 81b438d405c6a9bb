"""Tells a story on real services: everything that `magicflow dev` starts, on free ports and in a
folder of its own, with a worker process per story."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import time
from collections.abc import Iterator, Sequence
from typing import Self

import grpc.aio

import magicflow
from cli.scenarios.documents import callees_of, grants_for, name_of
from cli.scenarios.services import Services
from cli.scenarios.story import ABSENT, Act, Advance, Grant, Story, Trigger, Wait
from cli.scenarios.way import (
    PATIENCE,
    InVain,
    Published,
    Refused,
    Violation,
    check_hope,
    is_there,
    what_is,
)
from cli.scenarios.workers import WorkerProcess
from magicflow.conformance import Call
from magicflow.errors import from_rpc
from magicflow.payloads import to_payload
from magicflow.v1 import error_pb2, trace_pb2
from magicflow.v1 import trigger_service_pb2 as triggers
from magicflow.v1.event_pb2 import Event
from magicflow.v1.trace_pb2 import Trace
from magicflow.v1.trigger_service_pb2_grpc import TriggerServiceStub

LOOK_EVERY = 0.03  # seconds
PROPAGATION = 0.1  # seconds until every service has seen a switch or a grant
STORING = 10.0  # seconds until an event must be in the store

_CODES: dict[type[magicflow.MagicflowError], str] = {
    magicflow.Invalid: "INVALID_ARGUMENT",
    magicflow.NotFound: "NOT_FOUND",
    magicflow.AlreadyExists: "ALREADY_EXISTS",
    magicflow.WrongState: "FAILED_PRECONDITION",
    magicflow.Conflict: "ABORTED",
    magicflow.Exhausted: "RESOURCE_EXHAUSTED",
    magicflow.Denied: "PERMISSION_DENIED",
    magicflow.Unauthenticated: "UNAUTHENTICATED",
    magicflow.Unavailable: "UNAVAILABLE",
    magicflow.DeadlineExceeded: "DEADLINE_EXCEEDED",
    magicflow.Unimplemented: "UNIMPLEMENTED",
}


class StackWay:
    """Implements `cli.scenarios.way.Way`. An empty `worker` is that of the Python SDK.

    Stories share the services, one after the other. What one leaves behind is out of the next
    one's way: its traces are aborted, its grants taken back, idempotency keys are made different;
    and the services begin anew before a story for which a playbook must not be there that an
    earlier one has published.
    """

    patience = 5.0

    def __init__(self, worker: str = "") -> None:
        self._command = worker
        self._services = Services()
        self._worker: WorkerProcess | None = None
        self._number = 0  # of the story
        self._apps: set[str] = set()
        self._playbooks: set[str] = set()
        self._traces: list[str] = []
        self._switched_at = 0.0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._services.stop()

    # Before and after a story.

    async def begin(self, story: Story) -> str:
        if any(isinstance(step.what, Advance) for step in story.steps):
            return "it advances the time, which only the core can"
        self._number += 1
        self._traces = []
        if not self._services.running or _must_not_be_there(story) & self._playbooks:
            await self._services.start()
            self._apps, self._playbooks = set(), set()
        self._playbooks |= {name_of(document) for document in story.documents}
        with _refusals():
            await self._make_apps(story)
            await self._make_grants(story)
        if story.functions:
            await self._until_offered(set())
        if story.offered:
            await self._start_worker(story)
        return ""

    async def finish(self) -> None:
        for trace_id in self._traces:
            with contextlib.suppress(magicflow.MagicflowError):
                await self._services.client.abort(trace_id, "the story is over")
        if self._worker is not None:
            await self._worker.stop()
            self._worker = None

    async def _make_apps(self, story: Story) -> None:
        targets = {name_of(document) for document in story.documents} | set(story.functions)
        for document in story.documents:
            targets |= callees_of(document)
        for app in sorted({target.partition("/")[0] for target in targets if target} - self._apps):
            with contextlib.suppress(magicflow.AlreadyExists):
                await self._services.client.create_app(app)
            self._apps.add(app)

    async def _make_grants(self, story: Story) -> None:
        needed = {grant for document in story.documents for grant in grants_for(document)}
        wanted = needed if story.grants is None else set(story.grants)
        known = {
            Grant(grant.target, grant.grantee)
            for app in sorted(self._apps)
            for grant in await self._services.client.grants(app)
        }
        for grant in wanted - known:
            await self.grant(grant)
        for grant in known - wanted:
            await self.grant(Grant(grant.target, grant.grantee, given=False))

    async def _start_worker(self, story: Story) -> None:
        services = self._services
        folder = services.folder / f"story-{self._number}"
        self._worker = WorkerProcess(
            self._command, services.address, story.offered, story.commands, folder
        )
        try:
            await self._worker.start()
        except OSError as error:
            raise Refused("UNAVAILABLE", "WORKER", f"the worker cannot be run: {error}") from error
        await self._until_offered(set(story.offered))

    async def _until_offered(self, functions: set[str]) -> None:
        """Returns when exactly these functions are offered."""
        deadline = time.monotonic() + PATIENCE
        while True:
            offered = {f.name for w in await self._services.client.workers() for f in w.functions}
            if offered == functions:
                return
            given_up = self._worker is not None and self._worker.given_up
            if given_up or time.monotonic() > deadline:
                words = self._worker.last_words() if self._worker is not None else ""
                seen = ", ".join(sorted(offered)) or "nothing"
                raise Refused("UNAVAILABLE", "WORKER", f"workers offer {seen}: {words}")
            await asyncio.sleep(LOOK_EVERY)

    # Playbooks.

    async def publish(self, text: str) -> Published:
        with _refusals():
            snapshot = (await self._services.client.publish(text)).snapshot
        return Published(f"{snapshot.playbook.app}/{snapshot.playbook.name}", snapshot.id)

    async def switch(self, playbook: str, snapshot_id: int) -> None:
        with _refusals():
            await self._services.client.switch(playbook, snapshot_id)
        self._switched_at = time.monotonic()

    async def grant(self, grant: Grant) -> None:
        change = self._services.client.grant if grant.given else self._services.client.revoke_grant
        with _refusals():
            await change(grant.target, grant.grantee)
        self._switched_at = time.monotonic()

    async def _seen_everywhere(self) -> None:
        await asyncio.sleep(max(0.0, self._switched_at + PROPAGATION - time.monotonic()))

    # Traces.

    async def trigger(self, trigger: Trigger, snapshot_id: int) -> str:
        await self._seen_everywhere()
        delay = dt.timedelta(milliseconds=trigger.start_in)
        with _refusals():
            handle = await self._services.client.trigger(
                trigger.playbook,
                trigger.input,
                snapshot=snapshot_id,
                key=f"{self._number} {trigger.key}" if trigger.key else "",
                start_at=dt.datetime.now(dt.UTC) + delay if delay else None,
                priority=trigger.priority,
            )
        self._traces.append(handle.trace_id)
        await self._known(handle.trace_id)
        return handle.trace_id

    async def _known(self, trace_id: str) -> Trace:
        """The trace, as soon as its owner has taken up the trigger."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return await self._services.client.get(trace_id)
            except magicflow.NotFound as error:
                if time.monotonic() > deadline:
                    raise InVain(f"trace {trace_id} has not begun") from error
            await asyncio.sleep(LOOK_EVERY)

    async def act(self, trace_id: str, act: Act, snapshot_id: int) -> str:
        with _refusals():
            new = await self._act(trace_id, act, snapshot_id)
        if new:
            self._traces.append(new)
            await self._known(new)
        return new

    async def _act(self, trace_id: str, act: Act, snapshot_id: int) -> str:
        client, why = self._services.client, act.why
        match act.verb:
            case "signal":
                value = None if act.value is ABSENT else to_payload(act.value)
                await client.signal(trace_id, act.node, value, approve=act.approve, why=why)
            case "abort":
                await client.abort(trace_id, why, compensate=act.compensate)
            case "pause":
                await client.pause(trace_id, why)
            case "resume":
                await client.resume(trace_id, why)
            case "retry":
                await client.retry(trace_id, act.nodes, why)
            case "complete":
                output = None if act.value is ABSENT else act.value
                await client.complete_node(trace_id, act.node, output, why)
            case "fail":
                await self._fail(trace_id, act)
            case "skip":
                await client.skip_node(trace_id, act.node, why)
            case "rerun":
                value = None if act.value is ABSENT else to_payload(act.value)
                handle = await client.rerun(
                    trace_id, act.node, input=value, snapshot=snapshot_id, why=why
                )
                return handle.trace_id
        return ""

    async def _fail(self, trace_id: str, act: Act) -> None:
        failure = error_pb2.Failure(code=act.code, message=act.message)
        if act.value is not ABSENT:
            failure.details.CopyFrom(to_payload(act.value))
        request = triggers.FailNodeRequest(
            trace_id=trace_id, node=act.node, failure=failure, why=act.why
        )
        async with grpc.aio.insecure_channel(self._services.address) as channel:
            try:
                await TriggerServiceStub(channel).FailNode(request)
            except grpc.aio.AioRpcError as error:
                raise from_rpc(error, self._services.address) from error

    # What came of it.

    async def wait(self, trace_id: str, wait: Wait) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            trace = await self.trace(trace_id)
            if is_there(trace, wait):
                return
            check_hope(trace, wait)
            if time.monotonic() > deadline:
                raise InVain(what_is(trace, wait))
            await asyncio.sleep(LOOK_EVERY)

    async def advance(self, by: int) -> None:
        raise AssertionError("stories that advance the time are skipped")

    async def trace(self, trace_id: str) -> Trace:
        with _refusals():
            return await self._services.client.get(trace_id)

    async def events(self, trace_id: str) -> Sequence[Event]:
        """What the store has; of an ended trace its end, too, which comes there a moment later."""
        deadline = time.monotonic() + STORING
        trace = await self.trace(trace_id)
        while True:
            events = await self._stored(trace_id)
            if _is_whole(trace, events) or time.monotonic() > deadline:
                return events
            await asyncio.sleep(LOOK_EVERY)

    async def _stored(self, trace_id: str) -> Sequence[Event]:
        with _refusals():
            try:
                return await self._services.client.events(trace_id)
            except magicflow.NotFound:  # not there yet
                return ()

    async def calls(self) -> Sequence[Call]:
        return self._worker.calls() if self._worker is not None else ()


def _is_whole(trace: Trace, events: Sequence[Event]) -> bool:
    if trace.status in (trace_pb2.TRACE_STATUS_RUNNING, trace_pb2.TRACE_STATUS_PAUSED):
        return True
    if not events or events[-1].WhichOneof("what") != "trace_ended":
        return False
    return events[-1].at == trace.ended_at


def _must_not_be_there(story: Story) -> set[str]:
    """Playbooks that the story counts on to be unknown, or not live, when it begins."""
    live = {name_of(document) for document in story.playbooks}
    named = {step.what.playbook for step in story.steps if isinstance(step.what, Trigger)}
    named |= {name_of(document) for document in story.documents}
    for document in story.documents:
        named |= callees_of(document)
    return named - live


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except magicflow.MagicflowError as error:
        code = next((name for kind, name in _CODES.items() if isinstance(error, kind)), "INTERNAL")
        violations = tuple(Violation(v.code, v.field, v.description) for v in error.violations)
        raise Refused(code, error.reason, error.message, violations) from error
