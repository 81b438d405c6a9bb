"""Worker processes: started, killed, drained, and started again under a new name."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.servers import ROOT
from tests.system.chaos.journals import BEGAN, ENDED, Done, read

DRAIN_LIMIT = 20.0  # seconds until a worker that was asked to end must have ended


@dataclass(slots=True)
class WorkerProcess:
    """One incarnation of a worker: a name is used once."""

    name: str
    process: subprocess.Popen[bytes]
    journal: Path


class Fleet:
    """So many workers, all of them connected to any of the addresses."""

    def __init__(self, directory: Path, addresses: list[str]) -> None:
        self._directory = directory
        self._directory.mkdir(parents=True, exist_ok=True)
        self._addresses = addresses
        self._incarnations: dict[int, int] = {}
        self.members: dict[int, WorkerProcess] = {}
        self.variant = ""  # of the workers started from now on

    def start(self, place: int) -> WorkerProcess:
        """Starts the worker of a place. It prefers the addresses in an order of its own."""
        incarnation = self._incarnations.get(place, 0) + 1
        self._incarnations[place] = incarnation
        name = f"worker-{place}.{incarnation}"
        journal = self._directory / f"{name}.jsonl"
        addresses = list(self._addresses)
        first = place % len(addresses)
        addresses = addresses[first:] + addresses[:first]
        arguments = [f"ipv4:{','.join(addresses)}", name, str(journal)]
        if self.variant:
            arguments.append(self.variant)
        with (self._directory / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.system.chaos.worker", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
        self.members[place] = WorkerProcess(name, process, journal)
        return self.members[place]

    def kill(self, place: int) -> None:
        process = self.members[place].process
        process.kill()
        process.wait()

    def drain(self, place: int) -> int:
        """Asks it to end and waits; returns its exit status. Errors: `TimeoutExpired`."""
        process = self.members[place].process
        process.send_signal(signal.SIGTERM)
        return process.wait(DRAIN_LIMIT)

    def at_work(self, place: int) -> int:
        """Executions that have begun and not ended, as its journal says."""
        lines = [line.what for line in read(self.members[place].journal, Done)]
        return lines.count(BEGAN) - lines.count(ENDED)

    def done(self) -> list[Done]:
        """What all incarnations have written, in order of time."""
        lines = [line for path in self._journals() for line in read(path, Done)]
        return sorted(lines, key=lambda line: line.at)

    def logs(self) -> list[Path]:
        return sorted(self._directory.glob("*.log"))

    def stop(self) -> None:
        for member in self.members.values():
            if member.process.poll() is None:
                member.process.terminate()
        deadline = time.monotonic() + DRAIN_LIMIT
        for member in self.members.values():
            try:
                member.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                member.process.kill()
                member.process.wait()

    def _journals(self) -> list[Path]:
        return sorted(self._directory.glob("*.jsonl"))
