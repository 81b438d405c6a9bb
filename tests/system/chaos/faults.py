"""What is done to the cluster. A fault has a name, `inject(rng)` and `heal()`; it lasts for some
seconds in between. Everything about it that the oracle must know is in what `inject` returns."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import magicflow
from magicflow.v1.task_pb2 import TaskFrame
from tests.servers import Server
from tests.system.chaos.cluster import LEASE, Cluster, end_cleanly, start_again
from tests.system.chaos.evidence import EVERYTHING
from tests.system.chaos.postgres import kill_postgres, start_postgres
from tests.system.stack import Program, until_owned


@dataclass(frozen=True, slots=True)
class Struck:
    """What was hit, and which second executions that explains (see `Injection`)."""

    target: str
    excuses: str = ""
    tasks: frozenset[tuple[str, str, int]] = frozenset()
    owned: dict[int, int] = field(default_factory=dict)


class Fault(Protocol):
    """`lasts` is the shortest and the longest time between injection and healing, in seconds."""

    name: str
    lasts: tuple[float, float]

    async def inject(self, rng: random.Random) -> Struck: ...

    async def heal(self) -> None: ...


class KillDispatcher:
    """kill -9 of one of the dispatchers, and so of a gateway with its workers' streams."""

    name = "kill-dispatcher"
    lasts = (0.5, 5.0)

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._victim: Program

    async def inject(self, rng: random.Random) -> Struck:
        name, owned = await choose_owner(self._cluster, rng)
        self._victim = self._cluster.dispatchers[name]
        self._victim.kill()
        return Struck(name, EVERYTHING, owned=owned)

    async def heal(self) -> None:
        await start_again(self._victim)


class PauseDispatcher:
    """SIGSTOP for longer than the lease: it wakes up deposed, and does not know."""

    name = "pause-dispatcher"
    lasts = (1.5 * LEASE, 3.0 * LEASE)

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._victim: Program

    async def inject(self, rng: random.Random) -> Struck:
        name, owned = await choose_owner(self._cluster, rng)
        self._victim = self._cluster.dispatchers[name]
        self._victim.pause()
        return Struck(name, EVERYTHING, owned=owned)

    async def heal(self) -> None:
        self._victim.resume()


class KillServer:
    """kill -9 of one server or service, started again on the same data."""

    def __init__(
        self, name: str, server: Server, excuses: str, lasts: tuple[float, float] = (0.2, 3.0)
    ) -> None:
        self.name = name
        self.lasts = lasts
        self._server = server
        self._excuses = excuses

    async def inject(self, rng: random.Random) -> Struck:
        self._server.kill()
        return Struck(self._server.name, self._excuses)

    async def heal(self) -> None:
        await start_again(self._server)


class KillPostgres:
    """kill -9 of the database with all its processes."""

    name = "kill-postgres"
    lasts = (0.2, 3.0)

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    async def inject(self, rng: random.Random) -> Struck:
        await asyncio.to_thread(kill_postgres, self._cluster.stack.postgres)
        return Struck("postgres")

    async def heal(self) -> None:
        await asyncio.to_thread(start_postgres, self._cluster.stack.postgres)


class KillWorker:
    """kill -9 of the worker that has most to do."""

    name = "kill-worker"
    lasts = (0.2, 2.0)

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._place = 0

    async def inject(self, rng: random.Random) -> Struck:
        fleet = self._cluster.fleet
        places = rng.sample(sorted(fleet.members), len(fleet.members))
        self._place = max(places, key=fleet.at_work)
        name = fleet.members[self._place].name
        fleet.kill(self._place)
        return Struck(name, excuses=name)

    async def heal(self) -> None:
        self._cluster.fleet.start(self._place)


class DrainWorker:
    """A worker is asked to end, and another one comes: nothing runs twice."""

    name = "drain-worker"
    lasts = (0.0, 1.0)

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._place = 0

    async def inject(self, rng: random.Random) -> Struck:
        fleet = self._cluster.fleet
        self._place = rng.choice(sorted(fleet.members))
        name = fleet.members[self._place].name
        status = await asyncio.to_thread(fleet.drain, self._place)
        assert status == 0, f"{name} ended with status {status}"
        return Struck(name)

    async def heal(self) -> None:
        self._cluster.fleet.start(self._place)


class RollingRestart:
    """SIGTERM and start of every service, one after the other: nothing runs twice."""

    name = "rolling-restart"
    lasts = (0.0, 0.0)

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    async def inject(self, rng: random.Random) -> Struck:
        programs = self._cluster.stack.programs
        for name in rng.sample(sorted(programs), len(programs)):
            assert await end_cleanly(programs[name]), f"{name} did not end when it was asked to"
            await start_again(programs[name])
            await until_owned(self._cluster.client)
        return Struck("every service")

    async def heal(self) -> None:
        """Everything runs again already."""


class RepeatTasks:
    """A share of the latest task frames comes once more, in another order."""

    name = "repeat-tasks"
    lasts = (0.0, 0.5)
    share = 0.3

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    async def inject(self, rng: random.Random) -> Struck:
        frames = list(self._cluster.tape.tasks)
        again = rng.sample(frames, max(1, int(self.share * len(frames)))) if frames else []
        for subject, frame in again:
            await self._cluster.tape.publish(subject, frame)
        tasks = [task.id for _, frame in again for task in TaskFrame.FromString(frame).tasks]
        keys = frozenset((task.trace_id.hex(), task.node, task.attempt) for task in tasks)
        return Struck(f"{len(again)} of {len(frames)} task frames", tasks=keys)

    async def heal(self) -> None:
        """What is in the queue is taken out of it by who it concerns."""


async def choose_owner(cluster: Cluster, rng: random.Random) -> tuple[str, dict[int, int]]:
    """A dispatcher that owns something, with its partitions and their epochs; any one when
    nobody can say who owns what."""
    owners: dict[int, tuple[str, int]] = {}
    with contextlib.suppress(magicflow.MagicflowError):
        owners = await cluster.owners()
    running = [name for name, program in cluster.dispatchers.items() if program.running]
    names = sorted({name for name, _ in owners.values()} & set(running)) or sorted(running)
    chosen = rng.choice(names)
    return chosen, {p: epoch for p, (name, epoch) in owners.items() if name == chosen}


Make = Callable[[Cluster], Fault]

# A crash of these does not touch a task on its way, so it explains no second execution.
_HARMLESS = ("registry", "trace", "trigger")


def _kill_service(name: str) -> Make:
    return lambda cluster: KillServer(f"kill-{name}", cluster.stack.programs[name], "")


FAULTS: dict[str, Make] = {
    "kill-dispatcher": KillDispatcher,
    "pause-dispatcher": PauseDispatcher,
    **{f"kill-{name}": _kill_service(name) for name in _HARMLESS},
    "kill-nats": lambda cluster: KillServer("kill-nats", cluster.stack.nats, EVERYTHING),
    "kill-etcd": lambda cluster: KillServer(
        "kill-etcd", cluster.stack.etcd, EVERYTHING, (0.2, 3.0 * LEASE)
    ),
    "kill-worker": KillWorker,
    "drain-worker": DrainWorker,
    "rolling-restart": RollingRestart,
    "repeat-tasks": RepeatTasks,
    "kill-postgres": KillPostgres,
}
