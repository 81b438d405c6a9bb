"""Threads for synchronous functions: at most so many at once, and none of them keeps a program
from ending.

The standard pool waits at exit for whatever its threads do; a worker that has given a task back
because its function hangs must be able to leave.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

_log = logging.getLogger("magicflow.worker")


class Threads:
    """Runs what it is given, in order, on at most `size` daemon threads. `size` may change."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._work: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._changed = threading.Condition()
        self._idle = 0
        self._count = 0
        self._waking = False
        self._closed = False

    def submit(self, work: Callable[..., None], *arguments: Any) -> None:
        with self._changed:
            self._work.append((work, arguments))
            self._spread()

    def resize(self, size: int) -> None:
        """Threads beyond a smaller size end after what they run now."""
        with self._changed:
            self.size = size
            self._changed.notify_all()
            if self._work:
                self._spread()

    def close(self) -> None:
        """Forgets what has not begun; what runs goes on by itself."""
        with self._changed:
            self._closed = True
            self._work.clear()
            self._changed.notify_all()

    def _spread(self) -> None:
        """Sees to one more thread for what waits; that one sees to the next. Waking as many as
        there is work would have them fight for the interpreter over short functions."""
        if self._idle:
            if not self._waking:
                self._waking = True
                self._changed.notify()
        elif self._count < self.size:
            self._count += 1
            threading.Thread(target=self._live, name="magicflow-task", daemon=True).start()

    def _live(self) -> None:
        while (item := self._next()) is not None:
            work, arguments = item
            try:
                work(*arguments)
            except BaseException:
                _log.exception("a task's thread met an error of its own")

    def _next(self) -> tuple[Callable[..., None], tuple[Any, ...]] | None:
        with self._changed:
            while not self._work and not self._closed and self._count <= self.size:
                self._idle += 1
                self._changed.wait()
                self._idle -= 1
                self._waking = False
            if self._closed or self._count > self.size:
                self._count -= 1
                return None
            item = self._work.popleft()
            if self._work:
                self._spread()
            return item
