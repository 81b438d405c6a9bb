"""The judge: callers' journal, workers' journal, logs and SQL, held against the promises A to H
of the architecture."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from engine.core.payload import to_value
from engine.core.status import TraceStatus
from magicflow.v1.task_pb2 import RESULT_VERDICT_ACCEPTED, RESULT_VERDICT_REFUSED
from tests.system.chaos.chronicle import Chronicle, Key, Shelf, fold_again, tell
from tests.system.chaos.evidence import EVERYTHING, Evidence, Injection, Shown
from tests.system.chaos.functions import answer
from tests.system.chaos.journals import ACKNOWLEDGED, BEGAN, ENDED, RECEIPT, REFUSED, SENT, Done
from tests.system.chaos.playbooks import KINDS, Ending
from tests.system.chaos.rows import Rows

# Seconds after a fault in which what it left behind may still be given out again: the lease, the
# takeover, and a stream whose silence has to be noticed.
MARGIN = 15.0
_VERBS = ("signal", "abort", "pause", "resume")


@dataclass(frozen=True, slots=True)
class Broken:
    """A promise that does not hold, and how that was seen."""

    promise: str
    what: str

    def __str__(self) -> str:
        return f"{self.promise}: {self.what}"


@dataclass(slots=True)
class Verdict:
    """What was found. `seen` counts what happened: a run in which nothing happened proves
    nothing."""

    broken: list[Broken]
    seen: Counter[str]
    chronicles: list[Chronicle]


def judge(evidence: Evidence) -> Verdict:
    """All checks, over all that the evidence holds."""
    shelf = Shelf(evidence.graphs)
    chronicles = [tell(p, frames, shelf) for p, frames in enumerate(evidence.logs)]
    case = _Case(evidence, shelf, chronicles)
    broken = [
        found
        for check in (
            _told,
            _altered,
            _acknowledged,
            _started_once,
            _ended_right,
            _receipts,
            _results,
            _second_runs,
            _folded_twice,
            _shown_as_folded,
            _sql_is_the_log,
            _sql_was_a_prefix,
            _complaints,
        )
        for found in check(case)
    ]
    return Verdict(broken, _count(case), chronicles)


class _Case:
    """The evidence, and what several checks need of it."""

    def __init__(self, evidence: Evidence, shelf: Shelf, chronicles: list[Chronicle]) -> None:
        self.evidence = evidence
        self.shelf = shelf
        self.chronicles = chronicles
        self.started = {t: e for c in chronicles for t, e in c.started.items()}
        self.ended = {t: e for c in chronicles for t, e in c.ended.items()}
        self.acts = {why: verb for c in chronicles for why, verb in c.acts.items()}
        self.decided = {key: d for c in chronicles for key, d in c.decided.items()}
        self.scheduled = {key: s for c in chronicles for key, s in c.scheduled.items()}
        self.outputs = {t: o for c in chronicles for t, o in c.outputs.items()}
        self.runs: dict[Key, list[Done]] = defaultdict(list)
        for line in evidence.done:
            if line.what == BEGAN:
                self.runs[line.key].append(line)

    def ending(self, trace: str) -> Ending | None:
        event = self.ended.get(trace)
        if event is None:
            return None
        output = to_value(event.output) if event.output is not None else None
        code = event.failure.code if event.failure is not None else ""
        return Ending(event.status.name, output, code)


def _told(case: _Case) -> Iterator[Broken]:
    for chronicle in case.chronicles:
        for promise, what in chronicle.broken:
            yield Broken(promise, what)


def _altered(case: _Case) -> Iterator[Broken]:
    for what in case.evidence.altered:
        yield Broken("A", what)


def _acknowledged(case: _Case) -> Iterator[Broken]:
    """A: what was acknowledged to a caller is in the log, and every trace comes to its end."""
    for line in case.evidence.said:
        who = f"call {line.call} ({line.kind})"
        if line.state == ACKNOWLEDGED and line.verb == "start":
            if line.trace not in case.started:
                yield Broken("A", f"{who}: the acknowledged start of {line.trace} is in no log")
        elif line.state == ACKNOWLEDGED and line.verb in _VERBS:
            if line.why not in case.acts and not _needless(case, line.verb, line.trace):
                yield Broken("A", f"{who}: the acknowledged {line.verb} of {line.trace} is lost")
        elif line.state == REFUSED and not _may_be_refused(line.verb, line.error):
            yield Broken("A", f"{who}: {line.verb} of {line.trace or 'a trace'}: {line.error}")
        if "Internal" in line.error:
            yield Broken("A", f"{who}: {line.verb}: a fault in the server: {line.error}")
    for trace in case.started.keys() - case.ended.keys():
        yield Broken("A", f"{trace} of {case.started[trace].playbook} does not end")


def _needless(case: _Case, verb: str, trace: str) -> bool:
    """Aborting an aborted trace is acknowledged, and leaves nothing in the log."""
    ending = case.ended.get(trace)
    return verb == "abort" and ending is not None and ending.status is TraceStatus.ABORTED


def _may_be_refused(verb: str, error: str) -> bool:
    """An act may come too late, or a second time after an answer that got lost."""
    return verb in _VERBS and error.startswith("WrongState")


def _started_once(case: _Case) -> Iterator[Broken]:
    """A: one trace per key, and never more traces than attempts to start one."""
    attempts: Counter[int] = Counter()
    keys: dict[int, str] = {}
    told: dict[int, set[str]] = defaultdict(set)
    for line in case.evidence.said:
        if line.verb == "start":
            attempts[line.call] += line.state == SENT
            keys[line.call] = line.key
            if line.state == ACKNOWLEDGED:
                told[line.call].add(line.trace)
    found: dict[int, set[str]] = defaultdict(set)
    for trace, event in case.started.items():
        found[to_value(event.input)["call"]].add(trace)
    for call, traces in found.items():
        allowed = 1 if keys.get(call) else attempts[call]
        if len(traces) > allowed:
            yield Broken("A", f"call {call} started {len(traces)} traces; {allowed} are right")
        if keys.get(call) and told[call] - traces:
            yield Broken("A", f"call {call} was told {told[call]}; its key started {traces}")


def _ended_right(case: _Case) -> Iterator[Broken]:
    """B: every trace ends as its playbook says, and callers hear the same."""
    for trace, event in case.started.items():
        ending = case.ending(trace)
        if ending is None or event.playbook not in KINDS:
            continue
        right = KINDS[event.playbook].endings(to_value(event.input))
        if ending not in right:
            yield Broken("B", f"{trace} of {event.playbook} ended as {ending}, not as {right}")
    for line in case.evidence.said:
        if line.verb == "outcome" and line.state == ACKNOWLEDGED:
            heard = Ending(line.status, line.value, line.error)
            ending = case.ending(line.trace)
            if heard != ending:
                yield Broken("B", f"{line.trace}: the caller heard {heard}; the log has {ending}")


def _receipts(case: _Case) -> Iterator[Broken]:
    """A, B and H: a receipt says what the log says, and none is a refusal."""
    accepted: dict[Key, str] = {}
    for line in case.evidence.done:
        if line.what != RECEIPT:
            continue
        who = f"{line.worker}: the result of {_text(line.key)}"
        if line.verdict == RESULT_VERDICT_REFUSED:
            yield Broken("H", f"{who} was refused")
        if line.verdict != RESULT_VERDICT_ACCEPTED:
            continue
        decision = case.decided.get(line.key)
        if decision is None:
            yield Broken("A", f"{who} was accepted and is in no log")
        elif decision.worker != line.worker:
            yield Broken("B", f"{who} was accepted; the log has that of {decision.worker}")
        if accepted.setdefault(line.key, line.worker) != line.worker:
            yield Broken("B", f"{who} was accepted, and so was that of {accepted[line.key]}")


def _results(case: _Case) -> Iterator[Broken]:
    """B: the log has what a worker said, and that is what the function must return."""
    said: dict[tuple[Key, str], list[Done]] = defaultdict(list)
    for line in case.evidence.done:
        if line.what == ENDED:
            said[line.key, line.worker].append(line)
            right = answer(line.function, line.given, line.attempt)
            if (line.value, line.code) != (right.value, right.code):
                what = f"{line.value!r} {line.code}, not {right.value!r} {right.code}"
                yield Broken("B", f"{line.worker} answered {_text(line.key)} with {what}")
        if line.what == BEGAN and line.key not in case.scheduled:
            yield Broken("A", f"{line.worker} ran {_text(line.key)}, which no log has scheduled")
    for key, decision in case.decided.items():
        if not decision.worker:
            continue  # a timer's or an operator's
        answers = said.get((key, decision.worker), [])
        if not any((a.value, a.code) == (decision.value, decision.code) for a in answers):
            what = f"{decision.value!r} {decision.code} of {decision.worker}"
            yield Broken("B", f"the log has {what} for {_text(key)}; its journal has {answers}")


def _second_runs(case: _Case) -> Iterator[Broken]:
    """C: an attempt runs again only after something that explains it."""
    for key, runs in case.runs.items():
        for first, second in pairwise(runs):
            if not _excused(case.evidence.injections, key, first, second):
                what = f"on {first.worker} at {first.at:.3f}, on {second.worker} at {second.at:.3f}"
                yield Broken("C", f"{_text(key)} ran again without a reason: {what}")


def _excused(injections: tuple[Injection, ...], key: Key, first: Done, second: Done) -> bool:
    since = min(first.at, first.dispatched, second.dispatched)
    for injection in injections:
        if key in injection.tasks:
            return True
        if injection.excuses == first.worker and injection.at <= second.at:
            return True
        if injection.excuses == EVERYTHING and injection.covers(since, second.at, MARGIN):
            return True
    return False


def _folded_twice(case: _Case) -> Iterator[Broken]:
    """E: another fold gives the same bytes after every frame."""
    for chronicle, frames in zip(case.chronicles, case.evidence.logs, strict=True):
        try:
            again = fold_again(frames[: len(chronicle.digests)], case.shelf)
        except Exception as error:
            yield Broken("E", f"partition {chronicle.partition} cannot be folded: {error!r}")
            continue
        for recorded, one, other in zip(frames, chronicle.digests, again, strict=False):
            if one != other:
                where = f"partition {chronicle.partition} at {recorded.sequence}"
                yield Broken("E", f"two folds of {where} differ")
                break


def _shown_as_folded(case: _Case) -> Iterator[Broken]:
    """E: `GetTrace` shows what the fold says."""
    for trace, shown in case.evidence.shown.items():
        ending = case.ending(trace)
        if ending is None:
            continue
        folded = Shown(ending.status, ending.output, ending.code, case.outputs.get(trace, {}))
        if shown != folded:
            yield Broken("E", f"{trace} is shown as {shown}; the fold says {folded}")


def _sql_is_the_log(case: _Case) -> Iterator[Broken]:
    """F: at the end the rows are exactly the frames that count, and each trace is there once."""
    rows = case.evidence.rows
    for chronicle in case.chronicles:
        position = rows.positions.get(chronicle.partition, 0)
        telling = max((sequence for sequence, _ in chronicle.rows), default=0)
        if not telling <= position <= chronicle.last:
            what = f"SQL of partition {chronicle.partition} is at {position}"
            yield Broken("F", f"{what}; the log tells of traces up to {telling}")
    yield from _rows_are_frames(case, rows, {})
    times = Counter(row.trace for row in rows.executions)
    for trace, number in times.items():
        if number > 1 or trace not in case.started:
            yield Broken("F", f"{trace} is {number} times in SQL; started: {trace in case.started}")
    for trace in case.started.keys() - times.keys():
        yield Broken("F", f"{trace} is not in the list of traces")
    for row in rows.executions:
        ending = case.ending(row.trace)
        if ending is not None and (TraceStatus(row.status).name, row.failure_code) != (
            ending.status,
            ending.code,
        ):
            has = f"{TraceStatus(row.status).name} {row.failure_code}"
            yield Broken("F", f"SQL has {has} for {row.trace}; the log has {ending}")


def _sql_was_a_prefix(case: _Case) -> Iterator[Broken]:
    """F: so it was at every moment that was looked at, up to the position of that moment."""
    before: dict[int, int] = {}
    for rows in case.evidence.glimpses:
        for partition, position in before.items():
            if rows.positions.get(partition, 0) < position:
                yield Broken("F", f"SQL of partition {partition} has gone back from {position}")
        yield from _rows_are_frames(case, rows, before)
        before = rows.positions


def _rows_are_frames(case: _Case, rows: Rows, above: dict[int, int]) -> Iterator[Broken]:
    """Neither a hole nor anything ahead, from `above` to the rows' own position."""
    found: dict[tuple[int, int, str], list[bytes]] = defaultdict(list)
    for row in rows.chapters:
        found[row.partition, row.sequence, row.trace].append(row.events)
    for chronicle in case.chronicles:
        partition = chronicle.partition
        position = rows.positions.get(partition, 0)
        for (sequence, trace), events in chronicle.rows.items():
            if not above.get(partition, 0) < sequence <= position:
                continue
            if found.pop((partition, sequence, trace), []) != events:
                where = f"frame {sequence} of partition {partition}, {trace}"
                yield Broken("F", f"SQL at {position} does not have {where} as the log has it")
    passed = {(c.partition, s) for c in case.chronicles for s in c.passed_over}
    for partition, sequence, trace in found:
        if sequence > above.get(partition, 0):
            place = f"frame {sequence} of partition {partition}, {trace}"
            promise, why = (
                ("D", "that does not count")
                if (partition, sequence) in passed
                else ("F", f"that is not in the log up to {rows.positions.get(partition, 0)}")
            )
            yield Broken(promise, f"SQL has {place}, {why}")


def _complaints(case: _Case) -> Iterator[Broken]:
    for line in case.evidence.complaints:
        yield Broken("H", line)


def _count(case: _Case) -> Counter[str]:
    seen: Counter[str] = Counter()
    evidence = case.evidence
    seen["traces"] = len(case.started)
    seen["traces ended"] = len(case.ended)
    seen["frames"] = sum(len(frames) for frames in evidence.logs)
    seen["epochs opened"] = sum(len(c.opened) for c in case.chronicles)
    seen["clean handovers"] = sum(c.handovers for c in case.chronicles)
    seen["frames passed over"] = sum(len(c.passed_over) for c in case.chronicles)
    seen["executions"] = sum(len(runs) for runs in case.runs.values())
    seen["second executions"] = sum(len(runs) - 1 for runs in case.runs.values())
    for line in evidence.done:
        if line.what == RECEIPT:
            seen["results accepted"] += line.verdict == RESULT_VERDICT_ACCEPTED
            seen["results superseded"] += line.verdict != RESULT_VERDICT_ACCEPTED
    for said in evidence.said:
        seen[f"{said.verb} {said.state}"] += said.state != SENT
    seen["glimpses of SQL"] = len(evidence.glimpses)
    for event in case.ended.values():
        seen[f"ended {event.status.name}"] += 1
    return +seen


def _text(key: Any) -> str:
    trace, node, attempt = key
    return f"{trace} {node} attempt {attempt}"
