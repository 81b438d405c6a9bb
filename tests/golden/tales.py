"""Partition logs that are told for the golden set, by the core's own rules.

Three sources: the stories of `tests/scenarios`, each a log of its own (every rule of execution);
simulated clusters (many epochs, frames that are passed over, handovers, real owners at work); and
what neither has, told here: idempotency keys that are forgotten, triggers and their floor, a trace
that is revived under another owner, payloads that are no JSON.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cli.scenarios.core import CoreWay
from cli.scenarios.playing import play
from cli.scenarios.reading import Broken, read_story
from engine.core import machine, steering
from engine.core.effects import TimerKind
from engine.core.events import Event, NodeSkipped, TraceStarted
from engine.core.failure import Failure
from engine.core.graph import Graph
from engine.core.journal import VERSION, Entry, Frame, decode_frame, encode_frame, snapshots_in
from engine.core.keys import RETENTION, key_digest, request_digest
from engine.core.machine import Began, Failed, Lost, Resumed, Succeeded, TimerFired
from engine.core.payload import Payload, of_value
from engine.core.state import TraceState
from engine.core.steering import Act, Verb
from engine.ids import make
from tests.engine.core.playing import Shelf, Trace, graph_of
from tests.simulation.playbooks import graph as drawn_at_random
from tests.simulation.world import simulate

STORIES = Path(__file__).parents[1] / "scenarios"
LARGEST = 400_000  # bytes of a story's log that is kept
START = 1_750_000_000_000  # milliseconds since 1970


@dataclass(slots=True)
class Tale:
    """A log and the graphs that it needs."""

    name: str
    frames: list[Frame] = field(default_factory=list)
    graphs: list[Graph] = field(default_factory=list)


async def stories() -> list[Tale]:
    """Every story that the core can tell and that leaves a trace."""
    told = [await _story(file) for file in sorted(STORIES.rglob("*.yaml"))]
    return [tale for tale in told if tale is not None]


async def _story(file: Path) -> Tale | None:
    story = read_story(file)
    assert not isinstance(story, Broken), story.findings
    way = CoreWay()
    await play(story, way)
    numbered: dict[int, tuple[int, bytes, list[Event]]] = {}
    for trace_id, told in way._traces.items():
        for event, number, _, at in told.log:
            numbered.setdefault(number, (at, trace_id, []))[2].append(event)
    frames = [Frame(VERSION, 0, 1, 0, START, 0, [])]
    for number, (_, (at, trace_id, events)) in enumerate(sorted(numbered.items()), 1):
        frames.append(Frame(VERSION, 0, 1, number, at, 0, [Entry(trace_id, events)]))
    name = str(file.relative_to(STORIES))
    small = sum(len(encode_frame(frame)) for frame in frames) < LARGEST
    if len(frames) == 1 or not small:
        return None
    return Tale(name, frames, list(_needed(frames, way._shelf._graphs.values())))


def _needed(frames: list[Frame], graphs: Iterable[Graph]) -> Iterator[Graph]:
    wanted = {snapshot_id for frame in frames for _, snapshot_id in snapshots_in(frame)}
    return (graph for graph in graphs if graph.snapshot_id in wanted)


def world(seed: int) -> list[Tale]:
    """The logs of a simulated cluster, one for each partition."""
    outcome = simulate(seed)
    tales = []
    for number, partition in enumerate(outcome.oracle.partitions):
        frames = [decode_frame(data) for _, data in partition.frames]
        wanted = {snapshot for frame in frames for _, snapshot in snapshots_in(frame)}
        graphs = [drawn_at_random(snapshot) for snapshot in sorted(wanted)]
        tales.append(Tale(f"world {seed}, partition {number}", frames, graphs))
    return tales


SHOP = """
env: {currency: EUR}
timeout: 1h
nodes:
  cart:    {task: f, env: {step: 1}, priority: 7, queue_timeout: 5s, retry: {attempts: 3}}
  picture: {task: f, hook: true}
  pay:     {task: f, input: {sum: $.cart.sum}, compensate: {task: undo}}
  check:   {hook: {timeout: 1m}}
edges:
  - {from: cart, to: picture}
  - {from: cart, to: pay}
  - {from: pay, to: check}
"""


class Scribe:
    """Plays traces of one playbook and writes what happens into frames, as an owner does."""

    def __init__(self, name: str, document: str) -> None:
        self.graph = graph_of(document)
        self.graphs = Shelf(self.graph)
        self.tale = Tale(name, graphs=[self.graph])
        self.now = START
        self.epoch, self.number, self.floor = 0, 0, 0
        self.live: dict[str, TraceState] = {}

    def opens(self, epoch: int) -> None:
        self.epoch, self.number = epoch, 0
        self.writes()

    def hands_over(self, identity: str) -> None:
        self.writes(handover=identity)

    def writes(self, *entries: Entry, handover: str = "") -> None:
        frame = Frame(
            VERSION, 0, self.epoch, self.number, self.now, self.floor, list(entries), handover
        )
        self.number += 1
        self.tale.frames.append(frame)

    def refused(self, epoch: int, number: int, *entries: Entry) -> None:
        """A frame that landed although its owner was told that it did not."""
        frame = Frame(VERSION, 0, epoch, number, self.now, 99_999, list(entries))
        self.tale.frames.append(frame)

    def start(self, name: str, trigger: int, **more: object) -> Entry:
        trace_id = make(self.now, len(self.live), 2, len(self.live))
        event = TraceStarted(
            7,
            42,
            "shop",
            "story",
            Payload(b"\x89PNG", "image/png", {"width": "3"}),
            self.now - 5,
            "ann",
            trigger,
            **more,  # type: ignore[arg-type]
        )
        self.live[name], events = machine.start(self.graphs, trace_id, event, self.now)
        return Entry(trace_id, events)

    def decide(self, name: str, command: machine.Command) -> Entry:
        trace = self.live[name]
        return Entry(trace.trace_id, machine.decide(self.graphs, trace, command, self.now))

    def steer(self, name: str, verb: Verb, node: str = "", **more: object) -> Entry:
        trace = self.live[name]
        act = Act(verb, "ann", "as it must", node, **more)  # type: ignore[arg-type]
        return Entry(trace.trace_id, steering.steer(self.graphs, trace, act, self.now))

    def retry(self, name: str) -> Entry:
        act = Act(Verb.RETRY, "ann", "once more")
        trace, events = steering.retry(self.graphs, self.live[name], act, self.now)
        self.live[name] = trace
        return Entry(trace.trace_id, events)

    def returns(self, name: str, node: int, value: object, env: bytes = b"") -> Entry:
        place = self.live[name].nodes[node]
        output = value if isinstance(value, Payload) else of_value(value)
        command = Succeeded(0, node, place.attempt, output, env, "worker-1", self.now - 3)
        return self.decide(name, command)


def owners() -> Tale:
    """Three owners of a partition with keys, triggers, a handover and frames that do not count."""
    scribe = Scribe("three owners", SHOP)
    key, request = key_digest("shop/story", "one"), request_digest(0, of_value(1))
    scribe.opens(11)
    scribe.writes(
        scribe.start("keyed", 0, key=key, request=request),
        scribe.start("late", 4, start_at=START + 9_000),
        scribe.start("low", 6, priority=9),
    )
    scribe.now += 20
    retryable = Failure("BUSY", "later", True, details=of_value({"seat": 3}), retry_after=700)
    scribe.writes(
        scribe.decide("keyed", Began(0, 0, 1, "worker-1")),
        scribe.decide("low", Failed(0, 0, 1, retryable, "worker-2")),
    )
    scribe.now += 700
    scribe.floor = 4
    scribe.writes(
        scribe.returns("keyed", 0, {"sum": 3, "list": [1, 2.5, None, "ü"]}, b'{"mood":"good"}'),
        scribe.decide("low", TimerFired(TimerKind.RETRY, 0, 0, 1)),
    )
    scribe.now += 10
    picture = Payload(b"\x00\xff", "image/jpeg", {"by": "ann", "size": "2"})
    scribe.writes(scribe.returns("keyed", 1, picture, b'{"deep":{"a":[1,{"b":null}]}}'))
    scribe.writes(scribe.returns("keyed", 2, {"paid": True}))
    scribe.writes(scribe.steer("low", Verb.PAUSE))
    scribe.hands_over("tasks of the first")
    scribe.opens(15)
    scribe.refused(11, 8, Entry(scribe.live["low"].trace_id, [NodeSkipped(0)]))
    scribe.now += 5_000
    scribe.writes(scribe.steer("low", Verb.RESUME))
    scribe.writes(scribe.steer("keyed", Verb.ABORT, compensate=True))
    scribe.refused(15, 7, Entry(scribe.live["low"].trace_id, [NodeSkipped(0)]))  # behind a hole
    scribe.now += 10_000
    scribe.floor = 6
    scribe.writes(scribe.decide("late", TimerFired(TimerKind.START, -1, -1, 0)))
    scribe.writes(scribe.decide("late", Failed(0, 0, 1, Failure("BROKEN", "for good"), "w")))
    scribe.opens(16)
    scribe.now += 10
    scribe.writes(scribe.retry("late"))
    scribe.now += RETENTION + 1  # the first key is forgotten with the next one
    other = key_digest("shop/story", "two")
    scribe.writes(scribe.start("again", 0, key=other, request=request))
    return scribe.tale


def called() -> Tale:
    """Workers begin inside a call and disappear over it; one comes back."""
    inner = "playbook: inner\napp: shop\nnodes: {a: {task: f, queue_timeout: 5s}}"
    trace = Trace(
        "nodes: {call: {playbook: shop/inner}, beside: {task: f}}",
        callees=[inner],
    )
    place, beside = trace.place("call/a"), trace.place("beside")
    steps: list[list[Event]] = [list(trace.events)]
    for command in (
        Began(*place, 1, "worker-1"),
        Lost(*place, 1, "worker-1", trace.now + 10),
        Lost(*beside, 1, "worker-1", trace.now + 10),
        Resumed(*place, 1, "worker-1"),
        Lost(*place, 1, "worker-1", trace.now + 30),
        Lost(*place, 1, "worker-2", trace.now + 40),
    ):
        trace.now += 10
        steps.append(trace.decide(command))
    steps.append(trace.returns("beside", {"done": True}))
    steps.append(trace.returns("call/a", {"done": True}))
    frames = [Frame(VERSION, 0, 3, 0, START, 0, [])]
    for number, events in enumerate(steps, 1):
        entry = Entry(trace.state.trace_id, events)
        frames.append(Frame(VERSION, 0, 3, number, START + 10 * number, 0, [entry]))
    return Tale("lost inside a call", frames, list(trace.graphs.graphs.values()))
