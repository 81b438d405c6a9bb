"""A wall clock that steps under running processes; their monotonic clocks go on as ever.

By libfaketime: a file holds by how much the clock is off, and is read at every look at the clock.
The clock of the machine itself stays as it is, and with it that of the servers.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.system.rigs import needs

HOUR = 3_600


class WallClock:
    """The clock of the processes that get its `environment`."""

    def __init__(self, file: Path) -> None:
        library = "*/faketime/libfaketimeMT.so.1"
        self._library = needs.library(library, "libfaketime")
        self._file = file
        self.step(0)

    def step(self, seconds: int) -> None:
        """From now on the clock is off by so many seconds, for all at once."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{seconds:+d}")
        os.replace(new, self._file)

    def environment(self) -> dict[str, str]:
        return {
            "LD_PRELOAD": str(self._library),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def seen(self, look: str) -> float:
        """What a process with this clock sees, as `look` of the module time says, in seconds."""
        code = f"import time; print(time.{look}())"
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, **self.environment()},
            capture_output=True,
            text=True,
            check=True,
        )
        return float(done.stdout)
