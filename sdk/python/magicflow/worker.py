"""A worker: a process that offers functions to playbooks."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from magicflow.connection import Target, Tls
from magicflow.context import Context
from magicflow.errors import Denied, Invalid, MagicflowError, Unauthenticated
from magicflow.functions import AnyFunction, BoundFunction, bind, sdk_version
from magicflow.host_facts import host_facts
from magicflow.payloads import from_payload, to_json
from magicflow.running import Runner, clean_text
from magicflow.session import Outgoing, Session
from magicflow.v1.dispatch_service_pb2 import WorkResponse
from magicflow.v1.payload_pb2 import Payload
from magicflow.v1.task_pb2 import Task, TaskId, TaskResult
from magicflow.v1.worker_pb2 import (
    Command,
    CommandReceipt,
    Function,
    TaskProgress,
    WorkerHello,
    WorkerWelcome,
)

F = TypeVar("F", bound=Callable[..., Any])
TaskKey = tuple[bytes, str, int]

MAX_SLOTS = 10_000
_RANGE = "it must be from 1 to 10,000"
DRAIN = 30.0  # seconds
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0  # seconds between attempts to connect
_FATAL = (Denied, Unauthenticated, Invalid)
_log = logging.getLogger("magicflow.worker")


def _key(task: TaskId) -> TaskKey:
    return task.trace_id, task.node, task.attempt


class Worker:
    """Offers functions and runs their tasks, `slots` at once.

    `address` and `token` default to MAGICFLOW_ADDRESS and MAGICFLOW_TOKEN. `worker_id` names the
    process in lists; it must be unique in the app. Reconnects by itself; results that were not
    acknowledged are sent again.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        token: str | None = None,
        slots: int = 8,
        worker_id: str = "",
        version: str = "",
        labels: Mapping[str, str] | None = None,
        tls: Tls | None = None,
        drain_timeout: float = DRAIN,
    ) -> None:
        if not 1 <= slots <= MAX_SLOTS:
            raise Invalid(f"slots is {slots}; {_RANGE}", reason="INVALID")
        self._target = Target.of(address, token, tls)
        self._slots = slots
        self._version = version
        self._labels = dict(labels or {})
        self._drain_timeout = drain_timeout
        self._functions: dict[str, BoundFunction] = {}
        self._commands: dict[str, AnyFunction] = {}
        self._running: dict[TaskKey, tuple[Task, Context]] = {}
        self._unacknowledged: dict[TaskKey, TaskResult] = {}
        self._finished: list[TaskResult | TaskId] = []
        self._finished_lock = threading.Lock()
        self._session: Session | None = None
        self._outgoing: Outgoing | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._runner: Runner | None = None
        self._stopping = asyncio.Event()
        self._idle = asyncio.Event()
        self.connected = threading.Event()
        self.worker_id = worker_id

    # Registration.

    def function(self, name: str, *, description: str = "") -> Callable[[F], F]:
        """Offers the decorated function as `app/name`. It stays an ordinary function."""

        if name.count("/") != 1:
            raise Invalid(f"{name!r} is no function name; write app/name", reason="INVALID")

        def register(function: F) -> F:
            if name in self._functions:
                raise Invalid(f"{name} is offered twice", reason="INVALID")
            self._functions[name] = bind(name, function, description)
            return function

        return register

    def command(self, name: str) -> Callable[[F], F]:
        """Registers a named command: run before or after functions that a playbook says so of
        (with the context), or on an operator's word (with the command's argument)."""

        def register(function: F) -> F:
            self._commands[name] = function
            return function

        return register

    # Life.

    def run(self) -> None:
        """Serves until SIGTERM or Ctrl-C, then drains. For a program of its own: when the server
        does not want this worker, the program ends with a sentence that says why."""
        try:
            asyncio.run(self._run_with_signals())
        except _FATAL as error:
            mend = f"\nmend: {error.mend}" if error.mend else ""
            sys.exit(f"magicflow: {error} ({error.reason}){mend}")

    async def _run_with_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        await self.serve()

    def stop(self) -> None:
        """Begins to drain: takes nothing more, finishes what runs, delivers it. From any
        thread."""
        if self._loop is not None:
            self._soon(self._stopping.set)
        else:
            self._stopping.set()

    def _soon(self, work: Callable[..., None], *arguments: Any) -> None:
        """On the session's loop, from any thread. After its end nothing matters any more."""
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(work, *arguments)

    async def serve(self) -> None:
        """Serves until `stop`.

        Errors: `Unauthenticated`, `Denied` or `Invalid` when the server does not want this
        worker; every other error leads to another attempt to connect.
        """
        if not self._functions:
            raise Invalid("the worker offers no function", reason="INVALID")
        self._loop = asyncio.get_running_loop()
        self._runner = Runner(
            self._functions, self._commands, self._slots, self._done, self._progress
        )
        connection = asyncio.create_task(self._stay_connected())
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait({connection, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not connection.done():
                await self._drain(connection)
            else:
                connection.result()
        finally:
            for task in (connection, stopping):
                task.cancel()
            await asyncio.gather(connection, stopping, return_exceptions=True)
            self.connected.clear()
            await asyncio.to_thread(self._runner.close)

    async def _drain(self, connection: asyncio.Task[None]) -> None:
        if self._outgoing is not None:
            self._outgoing.draining = True
            self._outgoing.news.set()
        waiting = asyncio.create_task(self._all_delivered())
        await asyncio.wait(
            {waiting, connection},
            timeout=self._drain_timeout,
            return_when=asyncio.FIRST_COMPLETED,
        )
        waiting.cancel()
        if self._outgoing is not None and self._running:
            _log.warning("gives back %d tasks that did not finish in time", len(self._running))
            given_back, self._running = list(self._running.values()), {}
            for task, context in given_back:
                context._cancel()
                self._outgoing.returned.append(task.id)
        if self._session is not None:
            self._session.close()
        await asyncio.wait({connection}, timeout=2.0)

    async def _all_delivered(self) -> None:
        """Also what was on its way when the drain began: nothing comes any more once the server
        has answered a heartbeat that was sent with it."""
        if self._session is not None:
            await self._session.answered()
        while self._running or self._unacknowledged or self._finished:
            self._idle.clear()
            await self._idle.wait()

    async def _stay_connected(self) -> None:
        pause = FIRST_PAUSE
        while True:
            before = self.connected.is_set()
            try:
                await self._connect()
                return
            except _FATAL:
                raise
            except MagicflowError as error:
                if self.connected.is_set() or before:
                    pause = FIRST_PAUSE
                self.connected.clear()
                if self._stopping.is_set() and not self._unacknowledged and not self._running:
                    return
                _log.warning("not connected: %s; trying again", error)
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _connect(self) -> None:
        self._outgoing = Outgoing()
        self._outgoing.draining = self._stopping.is_set()
        # After a break everything unacknowledged goes again; the engine knows what it has.
        self._outgoing.results.extend(self._unacknowledged.values())
        self._session = Session(
            self._target,
            self._hello(),
            self._outgoing,
            lambda: [task.id for task, _ in self._running.values()],
            self._welcomed,
            self._heard,
        )
        await self._session.run()

    def _hello(self) -> WorkerHello:
        functions = [
            Function(
                name=function.name,
                input_schema=function.input_schema,
                output_schema=function.output_schema,
                description=function.description[:1_024],
            )
            for function in self._functions.values()
        ]
        resumed = [task.id for task, _ in self._running.values()]
        resumed += [result.id for result in self._unacknowledged.values()]
        return WorkerHello(
            worker_id=self.worker_id,
            functions=functions,
            slots=self._slots,
            version=self._version,
            labels=self._labels,
            host=host_facts(),
            sdk=sdk_version(),
            commands=list(self._commands),
            resumed=resumed,
        )

    def _welcomed(self, welcome: WorkerWelcome) -> None:
        self.worker_id = welcome.worker_id
        assert self._runner is not None and self._outgoing is not None
        self._runner.max_payload = welcome.max_payload_bytes or self._runner.max_payload
        self.connected.set()
        if not self._outgoing.empty():
            self._outgoing.news.set()
        _log.info("connected as %s", welcome.worker_id)

    # Frames.

    def _heard(self, frame: WorkResponse) -> None:
        assert self._runner is not None
        for receipt in frame.receipts:
            self._unacknowledged.pop(_key(receipt.id), None)
        if frame.receipts:
            self._idle.set()
        for task in frame.tasks:
            key = _key(task.id)
            if key in self._unacknowledged:
                # The server counts a slot for it: the result again frees it.
                assert self._outgoing is not None
                self._outgoing.results.append(self._unacknowledged[key])
                self._outgoing.news.set()
            elif self._stopping.is_set() and key not in self._running:
                # It was on its way when we began to drain: somebody else shall have it.
                assert self._outgoing is not None
                self._outgoing.returned.append(task.id)
                self._outgoing.news.set()
            elif key not in self._running:
                self._running[key] = (task, self._runner.run(task))
        for command in frame.commands:
            self._obey(command)

    def _done(self, finished: TaskResult | TaskId) -> None:
        """From any thread. Many that finish together need one wake-up of the loop."""
        with self._finished_lock:
            self._finished.append(finished)
            first = len(self._finished) == 1
        if first:
            self._soon(self._collect)

    def _collect(self) -> None:
        with self._finished_lock:
            finished, self._finished = self._finished, []
        assert self._outgoing is not None
        for item in finished:
            task = item if isinstance(item, TaskId) else item.id
            key = _key(task)
            if self._running.pop(key, None) is None:
                continue  # given back already
            if isinstance(item, TaskId):
                self._outgoing.returned.append(item)
            else:
                self._unacknowledged[key] = item
                self._outgoing.results.append(item)
        self._idle.set()
        self._outgoing.news.set()

    def _progress(self, task: Task, note: Payload | None) -> None:
        self._soon(self._add_progress, TaskProgress(id=task.id, note=note))

    def _add_progress(self, progress: TaskProgress) -> None:
        key = _key(progress.id)
        if self._outgoing is None or key not in self._running:
            return
        if progress.HasField("note") or key not in self._outgoing.progress:
            self._outgoing.progress[key] = progress
            self._outgoing.news.set()

    # Commands.

    def _obey(self, command: Command) -> None:
        assert self._runner is not None
        match command.WhichOneof("what"):
            case "cancel":
                running = self._running.get(_key(command.cancel))
                if running is not None:
                    running[1]._cancel()
                elif self._outgoing is not None:  # done with, or never here: its slot is free
                    self._outgoing.returned.append(command.cancel)
                    self._outgoing.news.set()
                return  # cancellations need no receipt
            case "drain":
                self._stopping.set()
                self._receipt(command, True, "draining")
            case "set_slots":
                self._set_slots(command)
            case "resume" | "pause_function" | "resume_function":
                self._receipt(command, True, "the dispatcher sends accordingly")
            case "log_level":
                level = command.log_level.upper()
                known = level in logging.getLevelNamesMapping()
                if known:
                    logging.getLogger("magicflow").setLevel(level)
                self._receipt(command, known, "" if known else f"no level {command.log_level}")
            case "dump_stacks":
                self._receipt(command, True, _stacks() + self._runner.stacks())
            case "custom":
                self._runner.submit(lambda: self._custom(command))
            case _:
                self._receipt(command, False, "this SDK does not know the command")

    def _set_slots(self, command: Command) -> None:
        assert self._runner is not None
        slots = command.set_slots
        fits = 1 <= slots <= MAX_SLOTS
        if fits:
            self._slots = slots  # what the next hello says
            self._runner.resize(slots)
        self._receipt(command, fits, f"{slots} slots" if fits else f"slots is {slots}; {_RANGE}")

    def _custom(self, command: Command) -> None:
        assert self._runner is not None
        function = self._commands.get(command.custom.name)
        if function is None:
            done, message = False, f"no command {command.custom.name}"
        else:
            try:
                value = self._runner.wait(function(from_payload(command.custom.argument)))
                done, message = True, to_json(value).decode()
            except Exception as error:
                done, message = False, f"{type(error).__name__}: {error}"
        self._soon(self._receipt, command, done, message)

    def _receipt(self, command: Command, done: bool, message: str) -> None:
        if self._outgoing is not None:
            self._outgoing.receipts.append(
                CommandReceipt(id=command.id, done=done, message=clean_text(message, 65_536))
            )
            self._outgoing.news.set()


def _stacks() -> str:
    parts = []
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, frame in sys._current_frames().items():
        stack = "".join(traceback.format_stack(frame))
        parts.append(f"thread {names.get(ident, ident)}\n{stack}")
    return "\n".join(parts)
