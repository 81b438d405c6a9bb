"""One simulated cluster: dispatchers, workers, callers, and what befalls them, from one seed.

First chaos, then healing, then patience: everything that was acknowledged must come to an end.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from unittest import mock

from engine.bus.triggers import StartTrace, encode_triggers
from engine.core.payload import of_value
from engine.core.steering import Act, Verb
from engine.errors import Unavailable
from engine.ids import make, partition_of
from tests.simulation.bus import Connection, Faults, Server
from tests.simulation.determinism import virtual
from tests.simulation.dispatchers import Dispatcher
from tests.simulation.folds import committed
from tests.simulation.loop import Process, VirtualLoop
from tests.simulation.oracle import Oracle
from tests.simulation.playbooks import COUNT, graph
from tests.simulation.workers import Habits, Worker

PROFILES = ("clean", "network", "crash", "all")
PATIENCE = 240.0  # virtual seconds from the healing to the end of every trace
LEASE = 6.0
LINES = int(os.environ.get("LINES_OF_TRACE", "60"))  # of a failed run's event trace


class Failed(AssertionError):
    """What a seed has found."""


@dataclass(slots=True)
class Outcome:
    """One run. `digest` is that of the event trace."""

    seed: int
    profile: str
    oracle: Oracle
    ended_at: float

    @property
    def digest(self) -> str:
        return self.oracle.digest


class World:
    """All of it. Everything that is drawn at random is drawn from the loop's chance."""

    def __init__(self, loop: VirtualLoop, seed: int) -> None:
        self.loop = loop
        self.chance = random.Random(seed)
        chance = self.chance
        self.profile = PROFILES[seed % len(PROFILES)]
        self.partitions = chance.choice((1, 1, 2, 3))
        self.oracle = Oracle(loop, self.partitions)
        self.faults = self._faults()
        self.habits = self._habits()
        self.server = Server(loop, self.faults, self.oracle)
        self.claims: dict[int, tuple[Dispatcher, int]] = {}
        self.revision = 0
        self.healed = False
        self.dispatchers: dict[str, Dispatcher] = {}
        self._lives = 0
        self._compared: dict[int, int] = {}
        for number in range(chance.choice((1, 2, 2, 3))):
            self._start_dispatcher(f"d{number}")
        self.workers = [self._worker(n) for n in range(chance.choice((1, 2, 2, 3)))]
        self.caller = Process(loop, "caller")
        self.caller_bus = Connection(self.server, self.caller)

    def _faults(self) -> Faults:
        chance = self.chance
        faults = Faults(quick=chance.choice((0.002, 0.01, 0.05)))
        if self.profile in ("network", "all"):
            faults.lose_request = chance.choice((0.0, 0.01, 0.05))
            faults.lose_answer = chance.choice((0.0, 0.02, 0.08))
            faults.lose_ack = chance.choice((0.0, 0.05, 0.2))
            faults.lose_tell = chance.choice((0.0, 0.1, 0.5))
            faults.again = chance.choice((0.0, 0.02, 0.1))
            faults.slow = chance.choice((0.0, 0.01, 0.03))
        return faults

    def _habits(self) -> Habits:
        chance = self.chance
        habits = Habits(longest=chance.choice((3.0, 20.0, 50.0)), slow=chance.choice((0.05, 0.3)))
        if self.profile == "clean":
            habits.longest = 3.0
        return habits

    # Life of the run.

    async def run(self) -> None:
        for worker in self.workers:
            worker.start()
        for partition in range(self.partitions):
            self._assign(partition, self.chance.random() * 0.2)
        calling = self.caller.spawn(self._call())
        await self._chaos()
        self._heal()
        await calling
        await self._until(self.oracle.all_ended, PATIENCE)
        if not self.oracle.broken:
            await self._until(self._settled, PATIENCE)
        self.oracle.check_end()
        if not self.oracle.broken:
            self._check_settled()

    async def _chaos(self) -> None:
        chance = self.chance
        end = self.loop.time() + chance.choice((4.0, 10.0, 25.0))
        pace = chance.choice((0.3, 1.0, 3.0))
        while self.loop.time() < end and not self.oracle.broken:
            await asyncio.sleep(chance.expovariate(1 / pace))
            self._compare()
            chance.choice(self._actions())()

    async def _until(self, reached: Callable[[], bool], patience: float) -> None:
        end = self.loop.time() + patience
        while self.loop.time() < end and not reached() and not self.oracle.broken:
            await asyncio.sleep(0.5)
            self._compare()
            self._resume_all()

    def _settled(self) -> bool:
        return not self._unsettled()

    def _unsettled(self) -> list[str]:
        """What is still under way after the last trace has ended."""
        found = [f"{w.name} waits for receipts" for w in self.workers if not w.idle]
        for dispatcher in self.dispatchers.values():
            for session in dispatcher.gateway.sessions.values():
                if session.assigned:
                    found.append(f"{session.worker_id} has lost slots: {list(session.assigned)}")
        for name, queue in self.server.queues.items():
            found += [f"{name} holds frame {sequence}" for sequence in queue.items]
        return found

    def _check_settled(self) -> None:
        left = self._unsettled()
        self.oracle.demand(not left, "liveness", f"everything has ended, but {left}")

    def _compare(self) -> None:
        """Promise E: what an owner takes for committed is what its log says."""
        for partition, (dispatcher, epoch) in self.claims.items():
            processor = dispatcher.processors.get(partition)
            part = self.oracle.partitions[partition]
            if processor is None or processor.epoch != epoch or part.epoch != epoch:
                continue
            fold = committed(processor)
            if fold is None or fold.sequence != part.fold.sequence:
                continue
            processor.projected = fold.sequence
            if self._compared.get(partition) == fold.sequence:
                continue
            self._compared[partition] = fold.sequence
            self.oracle.seen["states compared"] += 1
            same = fold.dump() == part.fold.dump()
            self.oracle.demand(same, "E", f"partition {partition}: the owner's state differs")

    # Callers.

    async def _call(self) -> None:
        chance = self.chance
        for _ in range(chance.choice((1, 2, 3, 5, 8))):
            await asyncio.sleep(chance.expovariate(1.0))
            count = chance.choice((1, 1, 1, 2, 3))
            by_partition: dict[int, list[StartTrace]] = {}
            for _ in range(count):
                start = self._start_trace()
                partition = partition_of(start.trace_id, self.partitions)
                by_partition.setdefault(partition, []).append(start)
            for partition, starts in by_partition.items():
                await self._trigger(partition, starts)

    async def _trigger(self, partition: int, starts: list[StartTrace]) -> None:
        try:
            await (await self.caller_bus.offer_trigger(partition, 5, encode_triggers(starts)))
        except Unavailable:
            return
        for start in starts:
            self.oracle.start_acknowledged(start.trace_id)

    def _start_trace(self) -> StartTrace:
        chance = self.chance
        number = 1 + chance.randrange(COUNT)
        now = int(self.loop.wall() * 1_000)
        trace_id = make(now, chance.randrange(4_096), number % 10, chance.getrandbits(58))
        value = of_value({"v": chance.randrange(3)})
        self.oracle.happened("trigger", trace_id.hex()[-8:], number, graph(number).full_name)
        return StartTrace(trace_id, 1, number, value, now, "caller")

    # Owners.

    def owner(self, partition: int) -> Dispatcher | None:
        claim = self.claims.get(partition)
        return None if claim is None else claim[0]

    def _assign(self, partition: int, delay: float) -> None:
        self.loop.outside(delay, self._claim, partition)

    def _claim(self, partition: int) -> None:
        if partition in self.claims:
            return
        living = [d for d in self.dispatchers.values() if d.takes(partition)]
        if not living:
            self._assign(partition, 0.5)
            return
        ready = [dispatcher for dispatcher in living if partition in dispatcher.warm]
        self.oracle.seen["claimed by a standby"] += bool(ready)
        self._give(partition, self.chance.choice(ready or living))

    def _give(self, partition: int, to: Dispatcher) -> None:
        self.revision += 1
        self.claims[partition] = (to, self.revision)
        self.oracle.happened("claimed", partition, self.revision, to.name)
        to.claim(partition, self.revision)

    def _vacated(self, partition: int, epoch: int) -> None:
        claim = self.claims.get(partition)
        self.oracle.happened("vacated", partition, epoch)
        if claim is not None and claim[1] == epoch:
            del self.claims[partition]
            self._assign(partition, self.chance.random() * 0.5)

    def _start_dispatcher(self, name: str) -> None:
        self._lives += 1
        clean = self.profile == "clean"
        skew = 0 if clean else self.chance.choice((0, 0, -300, 700))
        self.dispatchers[name] = Dispatcher(
            f"{name}.{self._lives}",
            self.loop,
            self.server,
            self.partitions,
            self.owner,
            self._vacated,
            skew,
        )
        self.oracle.happened("dispatcher", self.dispatchers[name].name)

    def _restart(self, name: str, of: Dispatcher) -> None:
        if self.dispatchers[name] is of:
            self._start_dispatcher(name)

    def _worker(self, number: int) -> Worker:
        return Worker(
            f"w{number}",
            self.chance.choice((1, 2, 4)),
            self.loop,
            self.oracle,
            self.habits,
            self._any_dispatcher,
            self.faults.quick,
        )

    def _any_dispatcher(self) -> Dispatcher | None:
        return self.chance.choice(list(self.dispatchers.values()))

    # What befalls them.

    def _actions(self) -> list[Callable[[], None]]:
        act = [self._act, self._pause_briefly]
        clean = [self._hand_over, self._drain, self._drain_worker, self._nothing, *act]
        network = [
            self._break_bus,
            self._break_stream,
            self._break_stream,
            self._usurp,
            self._lose_lease,
            self._hand_over,
        ]
        crash = [self._crash, self._vanish, self._freeze, self._usurp, self._lose_tasks]
        return {
            "clean": clean,
            "network": [*network, *act],
            "crash": [*crash, self._crash, self._hand_over, *act, self._drain],
            "all": [*clean, *network, *crash],
        }[self.profile]

    def _nothing(self) -> None:
        return None

    def _some_dispatcher(self) -> tuple[str, Dispatcher] | None:
        living = [item for item in self.dispatchers.items() if item[1].alive]
        return self.chance.choice(living) if living else None

    def _hand_over(self) -> None:
        if not self.claims:
            return
        partition = self.chance.choice(sorted(self.claims))
        dispatcher, epoch = self.claims[partition]
        processor = dispatcher.processors.get(partition)
        if processor is not None and processor.epoch == epoch:
            self.oracle.happened("hand over", partition, epoch)
            others = [d for d in self.dispatchers.values() if d.takes(partition)]
            if others and self.chance.random() < 0.5:
                self.chance.choice(others).stand_by(partition)
                later = self.chance.random() * 0.5
                self.loop.outside(later, dispatcher.process.call, processor.stop, True)
            else:
                dispatcher.process.call(processor.stop)

    def _drain(self) -> None:
        found = self._some_dispatcher()
        if found is None or found[1].process.stopped:
            return
        name, dispatcher = found
        self.oracle.happened("drain", dispatcher.name)
        dispatcher.drain(40.0)
        self._when_gone(name, dispatcher)

    def _when_gone(self, name: str, dispatcher: Dispatcher) -> None:
        if dispatcher.gone:
            self._kill(dispatcher)
            self._restart(name, dispatcher)
        elif not dispatcher.process.dead:
            self.loop.outside(0.5, self._when_gone, name, dispatcher)

    def _crash(self) -> None:
        found = self._some_dispatcher()
        if found is None:
            return
        name, dispatcher = found
        self.oracle.fault("crash", dispatcher.name, lasts=LEASE + 3)
        flights = sum(len(p._flights) for p in dispatcher.processors.values())
        self.oracle.seen["crash with frames in flight"] += bool(flights)
        self._kill(dispatcher)
        self.loop.outside(self.chance.random() * 8, self._restart, name, dispatcher)

    def _kill(self, dispatcher: Dispatcher) -> None:
        dispatcher.process.kill()
        dispatcher.bus.cut()
        for worker in self.workers:
            stream = worker.stream
            if stream is not None and stream.dispatcher is dispatcher:
                stream.break_(0.0, self.chance.random() * 3)
        for partition, (owner, _) in list(self.claims.items()):
            if owner is dispatcher:
                del self.claims[partition]
                self._assign(partition, self.chance.random() * LEASE)

    def _usurp(self) -> None:
        """The lease has ended for etcd, and its holder does not know yet."""
        if not self.claims:
            return
        partition = self.chance.choice(sorted(self.claims))
        former, epoch = self.claims[partition]
        others = [d for d in self.dispatchers.values() if d.takes(partition)]
        if not others:
            return
        self.oracle.fault("usurp", partition, epoch, lasts=11.0)
        self._give(partition, self.chance.choice(others))
        self.loop.outside(self.chance.random() * 10, self._learn, former, epoch)

    def _learn(self, former: Dispatcher, epoch: int) -> None:
        former.process.call(former.give_up, epoch)

    def _lose_lease(self) -> None:
        found = self._some_dispatcher()
        if found is not None:
            self.oracle.fault("lease lost", found[1].name, lasts=1.0)
            found[1].process.call(found[1].lose_lease)

    def _freeze(self) -> None:
        """A pause of the whole process, longer or shorter than its lease."""
        found = self._some_dispatcher()
        if found is None or found[1].process.stopped:
            return
        dispatcher = found[1]
        length = self.chance.choice((1.0, 4.0, 12.0, 25.0)) * self.chance.random()
        self.oracle.fault("freeze", dispatcher.name, length, lasts=length + LEASE + 3)
        dispatcher.process.stop()
        self.loop.outside(length, self._thaw, dispatcher)
        if length > LEASE:
            self.loop.outside(LEASE, self._expire, dispatcher)

    def _expire(self, dispatcher: Dispatcher) -> None:
        for partition, (owner, _) in list(self.claims.items()):
            if owner is dispatcher and dispatcher.process.stopped:
                del self.claims[partition]
                self._assign(partition, self.chance.random())

    def _thaw(self, dispatcher: Dispatcher) -> None:
        self.oracle.happened("thaw", dispatcher.name)
        if not dispatcher.process.stopped:
            return
        dispatcher.process.continue_()
        mine = {partition for partition, claim in self.claims.items() if claim[0] is dispatcher}
        if dispatcher.running - mine:  # it finds out that its lease has ended
            delay = self.chance.random() * 0.5
            self.loop.outside(delay, dispatcher.process.call, dispatcher.lose_lease)

    def _break_bus(self) -> None:
        found = self._some_dispatcher()
        if found is not None:
            seconds = self.chance.choice((0.5, 3.0, 8.0, 40.0)) * self.chance.random()
            self.oracle.fault("bus broken", found[1].name, seconds, lasts=seconds + 6)
            found[1].bus.break_(seconds)

    def _lose_tasks(self) -> None:
        self.oracle.fault("tasks lost")
        self.server.lose_tasks()

    def _some_worker(self) -> Worker | None:
        living = [worker for worker in self.workers if worker.alive and not worker.draining]
        return self.chance.choice(living) if living else None

    def _vanish(self) -> None:
        worker = self._some_worker()
        if worker is not None:
            silently = self.chance.random() < 0.4
            self.oracle.fault("worker vanishes", worker.name, silently)
            worker.vanish(silently)
            self.loop.outside(self.chance.random() * 6, self._revive, worker)

    def _break_stream(self) -> None:
        worker = self._some_worker()
        if worker is not None:
            self.oracle.fault("stream broken", worker.name)
            worker.lose_stream()

    def _drain_worker(self) -> None:
        worker = self._some_worker()
        if worker is not None:
            self.oracle.happened("worker drains", worker.name)
            worker.drain()
            self._revive_when_gone(worker)

    def _revive_when_gone(self, worker: Worker) -> None:
        if worker.alive:
            self.loop.outside(0.5, self._revive_when_gone, worker)
        else:
            self._revive(worker)

    def _revive(self, worker: Worker) -> None:
        if not worker.alive:
            self.oracle.happened("worker starts", worker.name)
            worker.start()

    def _act(self) -> None:
        """An operator steps in."""
        living = [t for t, story in self.oracle.stories.items() if not story.ended]
        if not living:
            return
        trace_id = self.chance.choice(living)
        story = self.oracle.stories[trace_id]
        hooks = story.open_hooks()
        if hooks and self.chance.random() < 0.7:
            self._steer(trace_id, Verb.SIGNAL, self.chance.choice(hooks))
        elif story.paused_at:
            self._steer(trace_id, Verb.RESUME)
        else:
            self._steer(trace_id, self.chance.choice((Verb.PAUSE, Verb.PAUSE, Verb.ABORT)))

    def _pause_briefly(self) -> None:
        """A pause that races with whatever is under way, and ends soon."""
        living = [t for t, s in self.oracle.stories.items() if not s.ended and not s.paused_at]
        for trace_id in living[:2]:
            self._steer(trace_id, Verb.PAUSE)
            self.loop.outside(self.chance.random() * 4, self._steer, trace_id, Verb.RESUME)

    def _resume_all(self) -> None:
        for trace_id, story in self.oracle.stories.items():
            if story.paused_at and not story.ended:
                self._steer(trace_id, Verb.RESUME)

    def _steer(self, trace_id: bytes, verb: Verb, node: str = "") -> None:
        partition = partition_of(trace_id, self.partitions)
        owner = self.owner(partition)
        if owner is None:
            return
        by = f"op{len(self.oracle.trace)}"
        self.oracle.happened(str(verb), trace_id.hex()[-8:], by, node)
        done = self.oracle.act_acknowledged
        act = Act(verb, by, node=node)
        owner.operate(trace_id, partition, act, lambda: done(trace_id, str(verb), by))

    # Healing.

    def _heal(self) -> None:
        self.oracle.happened("heal")
        self.healed = True
        self.faults.calm()
        self.habits.calm()
        for name, dispatcher in list(self.dispatchers.items()):
            if dispatcher.process.dead:
                self._restart(name, dispatcher)
            else:
                self._thaw(dispatcher)
                dispatcher.bus.break_(0.0)
        for worker in self.workers:
            if not worker.alive:
                worker.start()
            worker.hurry()


def simulate(seed: int) -> Outcome:
    """One run.

    Errors: `Failed` with everything that is needed to look for the cause.
    """
    loop = VirtualLoop(seed)
    chance = random.Random(seed)
    frames = chance.choice((2, 5, 12, 40))
    with ExitStack() as stack:
        stack.enter_context(virtual(loop))
        stack.enter_context(mock.patch("services.dispatcher.processor.CHECKPOINT_FRAMES", frames))
        stack.enter_context(mock.patch("services.dispatcher.gateway.WATCH_EVERY", 1.0))
        world = World(loop, seed)
        oracle = world.oracle
        trouble: BaseException | None = None
        try:
            loop.run_until_complete(world.run())
        except Exception as error:
            trouble = error
        ended_at, accidents = loop.time(), _unexpected(loop.accidents)
        trace = list(oracle.trace)
        outcome = Outcome(seed, world.profile, oracle, ended_at)
        digest = oracle.digest
        world.server.close()
        oracle.closed = True
        loop.bury()
        assert oracle.digest == digest
    found = accidents + [str(violation) for violation in oracle.broken]
    if trouble is not None:
        found.append(repr(trouble))
    if found:
        raise Failed(_report(outcome, found, trace))
    return outcome


def _unexpected(accidents: list[str]) -> list[str]:
    """Futures that nobody waits for any more are no fault. Known: the search for the fate of an
    append (`JetStreamLog._learn`) outlives whoever waited, and its error is noise."""
    noise = (
        "Future exception was never retrieved",
        "Task exception was never retrieved: Fenced(",
        "Task exception was never retrieved: Unavailable(",
    )
    return [accident for accident in accidents if not accident.startswith(noise)]


def _report(outcome: Outcome, found: list[str], trace: list[tuple[Any, ...]]) -> str:
    lines = [f"seed {outcome.seed} ({outcome.profile}): {found[0]}"]
    lines += [f"  also: {text}" for text in found[1:5]]
    lines.append(f"  replay: SEED={outcome.seed} pytest tests/simulation -k replay -s")
    for at, *what in trace[-LINES:]:
        lines.append(f"  {at:10.4f}  {' '.join(str(part) for part in what)}")
    return "\n".join(lines)
