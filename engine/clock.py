"""Time, for the edges that hand it to the core."""

from __future__ import annotations

import time


class Clock:
    """Milliseconds since 1970 that never go back: the wall clock as it was at the start, moved
    on by the monotonic one, so that a step of the wall clock fires and loses nothing."""

    def __init__(self) -> None:
        self._wall = time.time()
        self._monotonic = time.monotonic()

    def now(self) -> int:
        return int((self._wall + time.monotonic() - self._monotonic) * 1_000)
