"""The oracle notices what it is there for: honest evidence passes, and each lie in it is named."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest

from engine.core.events import (
    Event,
    NodeSucceeded,
    OperatorActed,
    TaskScheduled,
    TraceEnded,
    TraceStarted,
)
from engine.core.graph import compile_graph
from engine.core.journal import VERSION, Entry, Frame, encode_frame
from engine.core.payload import of_value
from engine.core.status import TraceStatus
from engine.document.examine import examine_text
from engine.ids import make
from magicflow.v1.task_pb2 import RESULT_VERDICT_ACCEPTED, RESULT_VERDICT_REFUSED
from tests.system.chaos.chronicle import Shelf, tell
from tests.system.chaos.evidence import EVERYTHING, Evidence, Injection, Shown
from tests.system.chaos.journals import ACKNOWLEDGED, BEGAN, ENDED, RECEIPT, SENT, Done, Said
from tests.system.chaos.oracle import MARGIN, judge
from tests.system.chaos.playbooks import KINDS
from tests.system.chaos.rows import Chapter, Execution, Rows
from tests.system.chaos.tape import Recorded

TRACE = make(1_800_000_000_000, 0, 1, 7)
NAME = TRACE.hex()
NODES = ("a", "b", "c", "d")
GIVEN = {"n": 5, "call": 0}
AT = 1_800_000_000_000


def _graph():  # type: ignore[no-untyped-def]
    examined = examine_text(KINDS["chain"].document)
    assert examined.playbook is not None
    return compile_graph(examined.playbook, 1, 1)


GRAPHS = {1: _graph()}


def frame(epoch: int, number: int, events: list[Event]) -> bytes:
    entries = [Entry(TRACE, events)] if events else []
    return encode_frame(Frame(VERSION, 0, epoch, number, AT, 0, entries))


def scheduled(node: int) -> Event:
    return TaskScheduled(node, 1, of_value({"n": 5 + node}))


def succeeded(node: int, value: int = -1, worker: str = "w1") -> Event:
    taken = (node,) if node < 3 else ()
    value = 6 + node if value < 0 else value
    return NodeSucceeded(node, 1, of_value(value), taken, worker=worker)


def started() -> Event:
    return TraceStarted(1, 1, "chaos", "chain", of_value(GIVEN), AT, "me")


def ended(output: int = 9) -> Event:
    return TraceEnded(TraceStatus.SUCCEEDED, of_value(output))


FRAMES = (
    frame(5, 0, []),
    frame(5, 1, [started(), scheduled(0)]),
    frame(5, 2, [succeeded(0), scheduled(1)]),
    frame(6, 0, []),  # a new owner
    frame(5, 3, [succeeded(1, worker="w9"), scheduled(2)]),  # of the deposed one, too late
    frame(6, 1, [succeeded(1), scheduled(2)]),
    frame(6, 2, [succeeded(2), OperatorActed("pause", "me", "pause-0"), scheduled(3)]),
    frame(6, 3, [succeeded(3), ended()]),
)
STALE = 5  # the sequence of the frame that does not count


def recorded(frames: tuple[bytes, ...]) -> tuple[Recorded, ...]:
    return tuple(Recorded(sequence, 0.0, data) for sequence, data in enumerate(frames, 1))


def rows_of(frames: tuple[bytes, ...]) -> Rows:
    told = tell(0, recorded(frames), Shelf(GRAPHS))
    chapters = [
        Chapter(0, sequence, trace, events)
        for (sequence, trace), listed in told.rows.items()
        for events in listed
    ]
    execution = Execution(NAME, int(TraceStatus.SUCCEEDED), "")
    return Rows({0: told.last}, tuple(chapters), (execution,))


def worked(node: int, at: float = 1.0, worker: str = "w1") -> list[Done]:
    name, function = NODES[node], "chaos/slow" if node == 1 else "chaos/inc"
    given = {"n": 5 + node, "pause": 0.0} if node == 1 else {"n": 5 + node}
    return [
        Done(at, worker, BEGAN, NAME, name, 1, function, given, dispatched=at),
        Done(at, worker, ENDED, NAME, name, 1, function, given, 6 + node, dispatched=at),
    ]


def receipt(node: int, worker: str = "w1", verdict: int = RESULT_VERDICT_ACCEPTED) -> Done:
    return Done(2.0, worker, RECEIPT, NAME, NODES[node], 1, verdict=verdict)


def said(verb: str, state: str = ACKNOWLEDGED, **more: object) -> Said:
    return Said(1.0, 0, verb, state, NAME, "chain", "call-0", **more)  # type: ignore[arg-type]


def honest(frames: tuple[bytes, ...] = FRAMES) -> Evidence:
    return Evidence(
        graphs=GRAPHS,
        logs=(recorded(frames),),
        said=(
            said("start", SENT),
            said("start"),
            said("pause", why="pause-0"),
            said("outcome", status="SUCCEEDED", value=9),
        ),
        done=tuple(line for node in range(4) for line in (*worked(node), receipt(node))),
        injections=(),
        rows=rows_of(frames),
        shown={NAME: Shown("SUCCEEDED", 9, "", {"a": 6, "b": 7, "c": 8, "d": 9})},
    )


def broken(evidence: Evidence) -> str:
    return "\n".join(map(str, judge(evidence).broken))


def test_honest_evidence_passes_and_is_counted() -> None:
    verdict = judge(honest())
    assert verdict.broken == []
    assert verdict.seen["frames passed over"] == 1
    assert verdict.seen["epochs opened"] == 2
    assert verdict.seen["results accepted"] == 4


def test_an_acknowledged_start_that_is_in_no_log() -> None:
    evidence = honest()
    line = Said(1.0, 1, "start", ACKNOWLEDGED, "f" * 32, "chain")
    lost = f"A: call 1 (chain): the acknowledged start of {line.trace} is in no log"
    assert lost in broken(replace(evidence, said=(*evidence.said, line)))


def test_an_acknowledged_act_that_is_in_no_log() -> None:
    evidence = honest()
    line = said("signal", why="signal-0")
    assert "the acknowledged signal" in broken(replace(evidence, said=(*evidence.said, line)))


def test_an_act_in_a_frame_that_does_not_count_is_lost() -> None:
    acted = frame(5, 3, [OperatorActed("signal", "me", "signal-0")])
    evidence = honest((*FRAMES[:4], acted, *FRAMES[5:]))
    line = said("signal", why="signal-0")
    assert "the acknowledged signal" in broken(replace(evidence, said=(*evidence.said, line)))


def test_an_accepted_result_that_is_in_no_log() -> None:
    short = honest((*FRAMES[:7], frame(6, 3, [OperatorActed("abort", "me", "x")])))
    assert "was accepted and is in no log" in broken(short)


def test_a_trace_that_does_not_end() -> None:
    assert f"A: {NAME} of chain does not end" in broken(honest(FRAMES[:7]))


def test_a_log_that_lost_its_end_or_has_other_frames_than_before() -> None:
    evidence = replace(honest(), altered=("FLOW_LOG_0 ends at 3; 8 was there",))
    assert "A: FLOW_LOG_0 ends at 3" in broken(evidence)


def test_a_hole_in_a_log() -> None:
    evidence = honest()
    frames = evidence.logs[0]
    assert "the log goes from 2 to 4" in broken(
        replace(evidence, logs=((*frames[:2], *frames[3:]),))
    )


def test_two_traces_of_one_key() -> None:
    other = make(AT, 0, 1, 8)
    begun = encode_frame(Frame(VERSION, 0, 6, 4, AT, 0, [Entry(other, [started(), scheduled(0)])]))
    assert "A: call 0 started 2 traces; 1 are right" in broken(honest((*FRAMES, begun)))


def test_a_second_effective_result_in_the_log() -> None:
    twice = frame(6, 3, [succeeded(2), succeeded(3), ended()])
    assert "has a second result" in broken(honest((*FRAMES[:7], twice)))


def test_two_workers_whose_results_were_both_accepted() -> None:
    evidence = honest()
    more = (*worked(0, worker="w2"), receipt(0, "w2"))
    found = broken(replace(evidence, done=(*evidence.done, *more)))
    assert "w2: the result of" in found and "the log has that of w1" in found


def test_a_wrong_output_in_the_log() -> None:
    wrong = (*FRAMES[:7], frame(6, 3, [succeeded(3, 10), ended(10)]))
    found = broken(honest(wrong))
    assert "ended as" in found
    assert "the log has 10  of w1" in found
    assert "the caller heard" in found


def test_a_worker_that_answers_wrongly() -> None:
    evidence = honest()
    lines = [replace_value(line) for line in evidence.done]
    assert "B: w1 answered" in broken(replace(evidence, done=tuple(lines)))


def replace_value(line: Done) -> Done:
    wrong = line.what == ENDED and line.node == "c"
    return msgspec.structs.replace(line, value=99) if wrong else line


def test_a_refused_result() -> None:
    evidence = honest()
    line = receipt(0, verdict=RESULT_VERDICT_REFUSED)
    assert "was refused" in broken(replace(evidence, done=(*evidence.done, line)))


def test_an_execution_that_nothing_has_scheduled() -> None:
    evidence = honest()
    line = Done(1.0, "w1", BEGAN, NAME, "z", 1, "chaos/inc", {"n": 1})
    assert "which no log has scheduled" in broken(replace(evidence, done=(*evidence.done, line)))


def again(at: float, injection: Injection | None) -> str:
    evidence = honest()
    lines = sorted((*evidence.done, *worked(0, at, "w2")), key=lambda line: line.at)
    injections = (injection,) if injection else ()
    return broken(replace(evidence, done=tuple(lines), injections=injections))


def fault(at: float, excuses: str, **more: object) -> Injection:
    return Injection("kill", "it", at, at, at + 1.0, excuses, **more)  # type: ignore[arg-type]


def test_an_extra_execution_without_a_fault() -> None:
    assert "C: " in again(3.0, None)


@pytest.mark.parametrize(
    ("injection", "explained"),
    [
        (fault(2.0, EVERYTHING), True),
        (fault(2.0, "w1"), True),
        (fault(2.0, "w2"), False),  # another worker than the one that had it
        (fault(2.0, ""), False),  # a clean restart
        (fault(4.0, EVERYTHING), False),  # only afterwards
        (fault(-1.0 - MARGIN, EVERYTHING), False),  # long before
        (fault(2.0, "", tasks=frozenset({(NAME, "a", 1)})), True),
        (fault(2.0, "", tasks=frozenset({(NAME, "b", 1)})), False),
    ],
)
def test_what_explains_a_second_execution(injection: Injection, explained: bool) -> None:
    assert ("ran again without a reason" not in again(3.0, injection)) == explained


def test_a_frame_behind_the_handover_of_its_epoch() -> None:
    handed = encode_frame(Frame(VERSION, 0, 6, 4, AT, 0, [], "tasks"))
    assert broken(honest((*FRAMES, handed))) == ""
    behind = honest((*FRAMES, handed, frame(6, 5, [])))
    assert "stands behind the epoch's handover" in broken(behind)


def test_an_epoch_that_opens_with_events() -> None:
    opening = frame(6, 0, [OperatorActed("pause", "me", "pause-1")])
    assert "opens the epoch with events" in broken(honest((*FRAMES[:3], opening, *FRAMES[4:])))


def test_sql_that_has_counted_a_frame_of_a_lower_epoch() -> None:
    evidence = honest()
    stale = Chapter(0, STALE, NAME, b"")
    rows = replace(evidence.rows, chapters=(*evidence.rows.chapters, stale))
    assert "D: SQL has frame 5 of partition 0" in broken(replace(evidence, rows=rows))


def test_a_row_that_is_missing_in_sql() -> None:
    evidence = honest()
    rows = replace(evidence.rows, chapters=evidence.rows.chapters[1:])
    assert "F: SQL at 8 does not have frame 2" in broken(replace(evidence, rows=rows))


def test_a_row_that_is_twice_in_sql() -> None:
    evidence = honest()
    rows = replace(evidence.rows, chapters=(*evidence.rows.chapters, evidence.rows.chapters[0]))
    assert "F: SQL at 8 does not have frame 2" in broken(replace(evidence, rows=rows))


def test_a_row_of_sql_that_is_ahead_of_its_position() -> None:
    evidence = honest()
    glimpse = replace(evidence.rows, positions={0: 6})
    assert "F: SQL has frame 7" in broken(replace(evidence, glimpses=(glimpse,)))


def test_sql_that_goes_back() -> None:
    evidence = honest()
    later = Rows({0: 4}, (), ())
    found = broken(replace(evidence, glimpses=(evidence.rows, later)))
    assert "F: SQL of partition 0 has gone back from 8" in found


def test_sql_that_stays_behind() -> None:
    evidence = honest()
    chapters = tuple(c for c in evidence.rows.chapters if c.sequence <= 6)
    rows = replace(evidence.rows, positions={0: 6}, chapters=chapters)
    assert "F: SQL of partition 0 is at 6" in broken(replace(evidence, rows=rows))


def test_a_trace_that_is_missing_in_the_list_or_has_another_status() -> None:
    evidence = honest()
    rows = replace(evidence.rows, executions=())
    assert "is not in the list of traces" in broken(replace(evidence, rows=rows))
    rows = replace(evidence.rows, executions=(Execution(NAME, int(TraceStatus.RUNNING), ""),))
    assert "SQL has RUNNING" in broken(replace(evidence, rows=rows))


def test_a_trace_that_is_shown_otherwise_than_folded() -> None:
    evidence = honest()
    shown = {NAME: Shown("SUCCEEDED", 9, "", {"a": 6, "b": 7, "c": 8, "d": 10})}
    assert "E: " in broken(replace(evidence, shown=shown))


def test_a_line_that_tells_of_a_result_refused_for_overload() -> None:
    evidence = replace(honest(), complaints=("dispatcher: RESOURCE_EXHAUSTED",))
    assert "H: dispatcher" in broken(evidence)
