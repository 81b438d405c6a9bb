"""The client for code without an event loop: the same verbs, blocking."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterable, Iterator
from typing import Any, TypeVar

from magicflow.client import Client, TraceHandle
from magicflow.errors import MagicflowError
from magicflow.v1 import trace_pb2
from magicflow.v1 import trigger_service_pb2 as trigger

T = TypeVar("T")


class SyncTraceHandle:
    """A started trace; as `TraceHandle`, blocking."""

    def __init__(self, client: SyncClient, handle: TraceHandle) -> None:
        self._client = client
        self._handle = handle
        self.trace_id = handle.trace_id
        self.snapshot_id = handle.snapshot_id

    def __repr__(self) -> str:
        return f"SyncTraceHandle({self.trace_id})"

    def outcome(self, timeout: float | None = None) -> trigger.Outcome:
        return self._client.wait(self._handle.outcome(timeout))

    def result(self, timeout: float | None = None) -> Any:
        return self._client.wait(self._handle.result(timeout))

    def get(self) -> trace_pb2.Trace:
        return self._client.wait(self._handle.get())

    def abort(self, why: str = "") -> None:
        self._client.wait(self._handle.abort(why))

    def signal(
        self, node: str, payload: Any = None, *, approve: bool = True, why: str = ""
    ) -> None:
        self._client.wait(self._handle.signal(node, payload, approve=approve, why=why))

    def watch(self) -> Iterator[trace_pb2.Trace]:
        traces = aiter(self._handle.watch())
        while (trace := self._client.wait(_next(traces))) is not None:
            yield trace


async def _next(traces: Any) -> Any:
    return await anext(traces, None)


class SyncClient:
    """Runs a `Client` on a thread of its own. Safe to share between threads. Every coroutine
    method of `Client` is here under the same name, blocking."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="magicflow-client", daemon=True
        )
        self._thread.start()
        self._client: Client = self.wait(_make(arguments, options))

    def __enter__(self) -> SyncClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of a coroutine, run on the client's own loop."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def close(self) -> None:
        if self._loop.is_closed():
            return
        self.wait(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5.0)
        self._loop.close()

    def trigger(self, playbook: str, input: Any = None, **options: Any) -> SyncTraceHandle:
        handle = self.wait(self._client.trigger(playbook, input, **options))
        return SyncTraceHandle(self, handle)

    def rerun(self, trace_id: str, node: str = "", **options: Any) -> SyncTraceHandle:
        return SyncTraceHandle(self, self.wait(self._client.rerun(trace_id, node, **options)))

    def handle(self, trace_id: str) -> SyncTraceHandle:
        return SyncTraceHandle(self, self._client.handle(trace_id))

    def trigger_batch(
        self, items: Iterable[tuple[str, Any]]
    ) -> list[SyncTraceHandle | MagicflowError]:
        verdicts = self.wait(self._client.trigger_batch(items))
        return [SyncTraceHandle(self, v) if isinstance(v, TraceHandle) else v for v in verdicts]

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name, None)
        if not asyncio.iscoroutinefunction(method):
            raise AttributeError(f"SyncClient has no {name}")

        def call(*arguments: Any, **options: Any) -> Any:
            return self.wait(method(*arguments, **options))

        return call


async def _make(arguments: tuple[Any, ...], options: dict[str, Any]) -> Client:
    return Client(*arguments, **options)
