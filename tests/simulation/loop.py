"""An event loop without a world outside: its time is virtual and jumps to the next timer.

Every callback belongs to the simulated process in whose context it was scheduled. A process can
be killed, as by `kill -9`: nothing of it ever runs again, not even a `finally`. It can be stopped
and continued, as by SIGSTOP: what became ready meanwhile runs when it continues.

Callbacks run in the order in which they were scheduled; chance comes in only by the delays that
the simulated network draws. So the same seed gives the same run.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import random
from collections.abc import Callable, Coroutine
from typing import Any

EPOCH = 1_700_000_000.0  # the wall clock at virtual time 0, seconds since 1970


class Stuck(AssertionError):
    """Nothing is ready and no timer is set: nothing will ever happen again."""


class Process:
    """A simulated operating-system process: a name and the tasks that belong to it."""

    def __init__(self, loop: VirtualLoop, name: str) -> None:
        self.name = name
        self.dead = False
        self.stopped = False
        self._loop = loop
        self._limbo: list[asyncio.Handle] = []
        self._context = contextvars.copy_context()
        self._context.run(_process.set, self)
        loop.processes.append(self)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Runs in this process. Errors end up in `loop.accidents`."""
        return self._context.copy().run(self._loop.create_task, work)

    def call(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Runs soon in this process; never, if it is dead by then."""
        self._loop.call_soon(function, *arguments, context=self._context.copy())

    def kill(self) -> None:
        self.dead = True

    def stop(self) -> None:
        self.stopped = True

    def continue_(self) -> None:
        self.stopped = False
        limbo, self._limbo = self._limbo, []
        for handle in limbo:
            self._loop.ready.append(handle)

    def holds(self, handle: asyncio.Handle) -> bool:
        """Whether the handle may not run now. It is kept: a task that is forgotten in mid-air
        could never be buried."""
        if self.dead or self.stopped:
            self._limbo.append(handle)
            return True
        return False


_process: contextvars.ContextVar[Process | None] = contextvars.ContextVar("process", default=None)


class _Soon(asyncio.Handle):
    __slots__ = ()

    def _run(self) -> None:
        process = self._context.get(_process)  # type: ignore[attr-defined]
        if process is None or not process.holds(self):
            super()._run()


class _Later(asyncio.TimerHandle):
    __slots__ = ()

    def _run(self) -> None:
        process = self._context.get(_process)  # type: ignore[attr-defined]
        if process is None or not process.holds(self):
            super()._run()


class _NoSelector:
    """Stands where the loop would wait for the world: waiting is a jump."""

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop

    def select(self, timeout: float | None) -> list[Any]:
        if timeout is None:
            raise Stuck(f"nothing is left to happen at {self._loop.time():.3f}")
        if timeout > 0:
            self._loop.jump()
        return []

    def close(self) -> None:
        return None


class VirtualLoop(asyncio.BaseEventLoop):
    """The loop of one run. `steps` bounds it: an endless loop without time is an error too."""

    def __init__(self, seed: int, steps: int = 2_000_000) -> None:
        super().__init__()
        self.random = random.Random(seed)
        self.processes: list[Process] = []
        self.accidents: list[str] = []
        self.tasks: dict[asyncio.Task[Any], None] = {}
        self._selector = _NoSelector(self)
        self._now = 0.0
        self._steps = steps
        self._clock_resolution = 1e-9
        self.nowhere = contextvars.Context()  # of what belongs to no process
        self._over = False
        self.set_exception_handler(self._accident)
        self.set_task_factory(self._task)

    # What `asyncio.BaseEventLoop` asks of its kinds.

    def time(self) -> float:
        return self._now

    def wall(self) -> float:
        """The wall clock, seconds since 1970."""
        return EPOCH + self._now

    def jump(self) -> None:
        """To the moment of the next timer."""
        self._now = max(self._now, self._scheduled[0]._when)  # type: ignore[attr-defined]

    def _process_events(self, events: list[Any]) -> None:
        self._steps -= 1
        if self._steps < 0:
            raise Stuck(f"too many steps; virtual time is {self._now:.3f}")

    def _write_to_self(self) -> None:
        return None

    @property
    def ready(self) -> Any:
        return self._ready  # type: ignore[attr-defined]

    def _call_soon(
        self, callback: Any, args: Any, context: contextvars.Context | None
    ) -> asyncio.Handle:
        handle = _Soon(callback, args, self, context)
        self._ready.append(handle)  # type: ignore[attr-defined]
        return handle

    def call_soon(  # type: ignore[override]
        self, callback: Any, *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        return self._call_soon(callback, args, context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Any, *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        handle = _Later(when, callback, args, self, context)
        heapq.heappush(self._scheduled, handle)  # type: ignore[attr-defined]
        handle._scheduled = True  # type: ignore[attr-defined]
        return handle

    def outside(self, delay: float, callback: Any, *args: Any) -> asyncio.TimerHandle:
        """`delay` seconds from now, in no process: no death can hold it up."""
        handle = self.call_at(self._now + delay, callback, *args, context=self.nowhere)
        if self._over:
            handle.cancel()
        return handle

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Any, *args: Any
    ) -> Any:
        raise AssertionError(f"a thread in a simulated process: {func}")

    # Tasks and their errors.

    def _task(self, loop: asyncio.AbstractEventLoop, work: Any, **more: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.Task(work, loop=loop, **more)
        self.tasks[task] = None
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self.tasks.pop(task, None)

    def _accident(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.accidents.append(f"{context.get('message')}: {context.get('exception')!r}")

    def bury(self) -> None:
        """Ends what is left, with everybody alive again so that every `finally` may run."""
        self._over = True
        for handle in list(self._scheduled):  # type: ignore[attr-defined]
            if handle._context is self.nowhere:
                handle.cancel()
        for process in self.processes:
            process.dead = False
            process.continue_()
        for _ in range(20):
            left = list(self.tasks)
            if not left:
                break
            for task in left:
                task.cancel()
            self.run_until_complete(asyncio.sleep(20.0))
        for task in self.tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        self.close()
