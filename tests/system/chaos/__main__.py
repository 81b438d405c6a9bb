"""Long rounds: `make chaos ROUNDS=100 SEED=7 FAULTS=kill-dispatcher,kill-nats`.

`SECONDS` ends the run after the round that is under way then; `ROUNDS=0` means no other end.
`TRACES` is the load of each fault. `FAULTS` are drawn from, one to three for a round. `REPORT`
names the JSON file, build/chaos/report.json without it.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

from tests.system.chaos.cluster import Cluster
from tests.system.chaos.faults import FAULTS
from tests.system.chaos.report import Report
from tests.system.chaos.rounds import Finding, Plan, Rounds

ROUNDS_OF_A_CLUSTER = 20
LOAD_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Options:
    """`seconds` 0: no limit."""

    rounds: int
    seconds: float
    seed: int
    traces: int
    faults: tuple[str, ...]
    report: Path

    @classmethod
    def of(cls, arguments: list[str]) -> Options:
        """From `NAME=value`; an empty value is the default. Errors: `SystemExit`."""
        named = dict(argument.split("=", 1) for argument in arguments)
        faults = tuple(name for name in named.pop("FAULTS", "").split(",") if name)
        unknown = set(faults) - set(FAULTS)
        if unknown:
            sys.exit(f"no fault is called {', '.join(sorted(unknown))}; see {', '.join(FAULTS)}")
        seconds = float(named.pop("SECONDS", "") or 0)
        options = cls(
            rounds=int(named.pop("ROUNDS", "") or (0 if seconds else 10)),
            seconds=seconds,
            seed=int(named.pop("SEED", "") or random.SystemRandom().randrange(1 << 31)),
            traces=int(named.pop("TRACES", "") or 60),
            faults=faults or tuple(FAULTS),
            report=Path(named.pop("REPORT", "") or "build/chaos/report.json"),
        )
        if named:
            sys.exit(f"there is no option {', '.join(named)}")
        return options


class Run:
    """All rounds, on one cluster after another."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._rng = random.Random(options.seed)
        self._until = time.monotonic() + options.seconds if options.seconds else None
        self._number = 0
        self.report = Report(options.seed)

    async def all(self) -> None:
        while self._more():
            await self._on_a_cluster()

    def _more(self) -> bool:
        in_time = self._until is None or time.monotonic() < self._until
        return in_time and (not self._options.rounds or self._number < self._options.rounds)

    async def _on_a_cluster(self) -> None:
        """A violation or an error ends the cluster's life, and its files are kept."""
        directory = Path(tempfile.mkdtemp(prefix="magicflow-chaos-"))
        cluster = await Cluster(directory).start()
        finding: Finding | None = None
        well = True
        try:
            rounds = Rounds(cluster)
            for _ in range(ROUNDS_OF_A_CLUSTER):
                if not well or not self._more():
                    break
                plan = self._plan()
                print(f"round {self._number}: {' '.join(plan.faults)}", flush=True)
                try:
                    finding = await rounds.run(plan)
                except Exception as error:
                    well = False
                    self.report.errors[plan.seed] = repr(error)
                    traceback.print_exc()
                else:
                    well = not finding.broken
                    self.report.findings.append(finding)
                    for broken in finding.broken:
                        print(f"  VIOLATION of {broken}", flush=True)
        finally:
            await cluster.stop()
        if finding is not None:
            self.report.bury(finding)
        self.report.write(self._options.report)
        if well:
            shutil.rmtree(directory, ignore_errors=True)
        else:
            print(f"logs and journals are in {directory}", flush=True)

    def _plan(self) -> Plan:
        self._number += 1
        seed = self._rng.randrange(1 << 31)
        chosen = random.Random(seed)
        faults = tuple(chosen.choices(self._options.faults, k=chosen.choice((1, 2, 2, 3))))
        return Plan(seed, self._options.traces, LOAD_SECONDS, faults)


def main() -> int:
    options = Options.of(sys.argv[1:])
    run = Run(options)
    asyncio.run(run.all())
    for line in run.report.lines():
        print(line)
    return run.report.failed > 0


if __name__ == "__main__":
    sys.exit(main())
