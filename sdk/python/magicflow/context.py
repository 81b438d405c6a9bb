"""What a function may know and do while it runs."""

from __future__ import annotations

import contextvars
import datetime as dt
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from magicflow.payloads import from_payload, to_payload
from magicflow.v1.payload_pb2 import Payload
from magicflow.v1.task_pb2 import Task

_current: contextvars.ContextVar[Context] = contextvars.ContextVar("magicflow_context")
_log = logging.getLogger("magicflow.task")


class Env(Mapping[str, Any]):
    """The trace-wide env as it was at dispatch, with the node's own values. Keys that are set
    here travel with the result and merge into the trace's env when it is accepted."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values
        self.changes: dict[str, Any] = {}

    def __getitem__(self, key: str) -> Any:
        return self.changes[key] if key in self.changes else self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter({**self._values, **self.changes})

    def __len__(self) -> int:
        return len({**self._values, **self.changes})

    def set(self, key: str, value: Any) -> None:
        """`value` is any JSON value."""
        self.changes[key] = value

    __setitem__ = set


class Context:
    """One attempt of one node. `trace_id` is 32 hex digits, `attempt` counts from 1, `deadline`
    is an aware time or None, `idempotency_key` is the same for every attempt of the node."""

    def __init__(self, task: Task, beat: Callable[[Task, Payload | None], None]) -> None:
        self._task = task
        self._beat = beat
        self._cancelled = False
        self._cancelling: threading.Event | None = None  # made only if somebody waits
        self.on_cancel: Callable[[], None] | None = None
        self._env: Env | None = None

    @property
    def trace_id(self) -> str:
        return self._task.id.trace_id.hex()

    @property
    def node(self) -> str:
        return self._task.id.node

    @property
    def attempt(self) -> int:
        return self._task.id.attempt

    @property
    def function(self) -> str:
        return self._task.function

    @property
    def playbook(self) -> str:
        return self._task.playbook

    @property
    def snapshot_id(self) -> int:
        return self._task.snapshot_id

    @property
    def idempotency_key(self) -> str:
        return self._task.idempotency_key

    @property
    def deadline(self) -> dt.datetime | None:
        if not self._task.HasField("deadline"):
            return None
        return self._task.deadline.ToDatetime(dt.UTC)

    @property
    def env(self) -> Env:
        if self._env is None:
            data = self._task.env
            self._env = Env(from_payload(Payload(data=data)) if data else {})
        return self._env

    @property
    def cancelled(self) -> bool:
        """True once the result will not count any more: stop as soon as you can."""
        return self._cancelled

    def wait_cancelled(self, timeout: float | None = None) -> bool:
        """Blocks a synchronous function until it is cancelled or the time (seconds) is up."""
        if self._cancelling is None:
            self._cancelling = threading.Event()
        if self._cancelled:  # it came before the event was there
            return True
        return self._cancelling.wait(timeout)

    def heartbeat(self, note: Any = None) -> None:
        """A sign of life of this task, with a note for whoever watches. Never blocks."""
        self._beat(self._task, None if note is None else to_payload(note))

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger that carries trace, node and attempt."""
        return logging.LoggerAdapter(
            _log, {"trace": self.trace_id, "node": self.node, "attempt": self.attempt}
        )

    def _cancel(self) -> None:
        self._cancelled = True
        if self._cancelling is not None:
            self._cancelling.set()
        if self.on_cancel is not None:
            self.on_cancel()

    def _env_changes(self) -> dict[str, Any]:
        return self._env.changes if self._env is not None else {}


def current_context() -> Context:
    """The context of the function that calls. Errors: `LookupError` outside a function."""
    return _current.get()


def enter(context: Context) -> contextvars.Token[Context]:
    return _current.set(context)
