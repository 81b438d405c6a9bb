"""A round: a load and some faults from one seed, then peace, then the oracle."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import magicflow
from magicflow.client import status_name
from magicflow.payloads import from_payload
from magicflow.v1.trace_pb2 import NODE_STATUS_SUCCEEDED, Trace
from tests.system.chaos.callers import Call, Callers, draw
from tests.system.chaos.cluster import Cluster
from tests.system.chaos.evidence import Evidence, Injection, Shown
from tests.system.chaos.faults import FAULTS
from tests.system.chaos.journals import Said, Writer, read
from tests.system.chaos.oracle import Broken, Verdict, judge
from tests.system.chaos.rows import Rows
from tests.system.chaos.takeovers import Takeover, handover_gaps, takeovers

ROUND_WITHIN = 240.0  # seconds; what is not done then will never be


@dataclass(frozen=True, slots=True)
class Plan:
    """What a round does: these faults one after the other, each under a load of its own of so many
    traces over so many seconds; without a fault the load alone."""

    seed: int
    traces: int
    seconds: float
    faults: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Finding:
    """What a round found: `broken` is new in it, `verdict` is of all since the cluster began."""

    plan: Plan
    broken: tuple[Broken, ...]
    injections: tuple[Injection, ...]
    takeovers: tuple[Takeover, ...]
    handovers: tuple[float, ...]  # seconds without an owner, of all since the cluster began
    verdict: Verdict


class Rounds:
    """Rounds on one cluster, which lives through all of them. After each one everything since
    the cluster's beginning is judged."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._path = cluster.directory / "callers.jsonl"
        self._journal: Writer[Said] = Writer(self._path)
        self._injections: list[Injection] = []
        self._glimpses: list[Rows] = []
        self._shown: dict[str, Shown] = {}
        self._known: set[Broken] = set()
        self._calls = 0

    async def run(self, plan: Plan) -> Finding:
        """Errors: `TimeoutError` when the callers do not come back or the cluster does not, and
        whatever a fault raises that cannot be injected or healed."""
        rng = random.Random(plan.seed)
        before = len(self._injections)
        async with asyncio.timeout(ROUND_WITHIN), asyncio.TaskGroup() as group:
            for name in plan.faults or ("",):
                callers = Callers(self._cluster.client, self._journal, rng.randrange(1 << 32))
                group.create_task(callers.make(self._draw(plan, rng)))
                if name:
                    await self._glimpse()
                    await callers.progress(int(rng.uniform(0.15, 0.7) * plan.traces))
                    await self._inject(name, rng, callers)
        await self._cluster.settle()
        await self._cluster.until_projected()
        evidence = await self._evidence()
        verdict = judge(evidence)
        broken = tuple(dict.fromkeys(b for b in verdict.broken if b not in self._known))
        self._known.update(broken)
        injections = tuple(self._injections[before:])
        lease_end = self._cluster.leases.end_after
        times = takeovers(injections, evidence.logs, lease_end)
        gaps = tuple(handover_gaps(evidence.logs))
        return Finding(plan, broken, injections, times, gaps, verdict)

    def _draw(self, plan: Plan, rng: random.Random) -> tuple[Call, ...]:
        first, self._calls = self._calls, self._calls + plan.traces
        return draw(rng, first, plan.traces, plan.seconds)

    async def _inject(self, name: str, rng: random.Random, callers: Callers) -> None:
        fault = FAULTS[name](self._cluster)
        at, wall = time.monotonic(), time.time()
        live = callers.acknowledged - callers.ended
        struck = await fault.inject(rng)
        try:
            await asyncio.sleep(rng.uniform(*fault.lasts))
        finally:
            await fault.heal()
        healed = time.monotonic()
        await self._cluster.settle()
        self._injections.append(
            Injection(
                name,
                struck.target,
                at,
                wall,
                healed,
                struck.excuses,
                struck.tasks,
                struck.owned,
                live,
            )
        )
        await self._glimpse()

    async def _glimpse(self) -> None:
        """SQL as it is now, above what the glimpse before has seen."""
        before = self._glimpses[-1].positions if self._glimpses else None
        with contextlib.suppress(Exception):  # the database may be away
            self._glimpses.append(await self._cluster.rows(before))

    async def _evidence(self) -> Evidence:
        cluster = self._cluster
        rows = await cluster.rows()
        await cluster.tape.catch_up()  # later than SQL, which must not be ahead
        said = tuple(read(self._path, Said))
        await self._look_at(said)
        return Evidence(
            graphs=await cluster.graphs(),
            logs=tuple(tuple(reel.frames) for reel in cluster.tape.reels),
            said=said,
            done=tuple(await asyncio.to_thread(cluster.fleet.done)),
            injections=tuple(self._injections),
            rows=rows,
            glimpses=tuple(self._glimpses),
            shown=dict(self._shown),
            altered=tuple(await cluster.tape.altered()),
            complaints=tuple(refusals(cluster.service_logs())),
        )

    async def _look_at(self, said: Sequence[Said]) -> None:
        for trace in {line.trace for line in said if line.trace} - set(self._shown):
            with contextlib.suppress(magicflow.NotFound):  # the oracle misses it in the log
                self._shown[trace] = _shown(await self._cluster.client.get(trace))


def refusals(logs: Sequence[Path]) -> list[str]:
    """Lines that tell of a result that was refused for overload."""
    return [
        f"{log.parent.name}: {line}"
        for log in logs
        if log.exists()
        for line in log.read_text(errors="replace").splitlines()
        if "RESOURCE_EXHAUSTED" in line
    ]


def _shown(trace: Trace) -> Shown:
    output = from_payload(trace.output) if trace.HasField("output") else None
    outputs = {
        node.path: from_payload(node.output)
        for node in trace.nodes
        if node.status == NODE_STATUS_SUCCEEDED and not set(node.path) & set("/[:")
    }
    return Shown(status_name(trace.status), output, trace.failure.code, outputs)
