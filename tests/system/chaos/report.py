"""What was injected and what was seen, for people and as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

from tests.system.chaos.rounds import Finding
from tests.system.chaos.takeovers import GRACE, Takeover


@dataclass(slots=True)
class Report:
    """Grows round by round. `errors` are rounds that could not be carried through, by seed."""

    seed: int
    findings: list[Finding] = field(default_factory=list)
    errors: dict[int, str] = field(default_factory=dict)
    seen: Counter[str] = field(default_factory=Counter)  # of clusters that are gone
    handovers: list[float] = field(default_factory=list)  # of these, seconds without an owner

    def bury(self, last: Finding) -> None:
        """A cluster has come to its end; this was its last round."""
        self.seen.update(last.verdict.seen)
        self.handovers += last.handovers

    @property
    def failed(self) -> int:
        return len(self.errors) + sum(bool(finding.broken) for finding in self.findings)

    @property
    def passed(self) -> int:
        return len(self.findings) + len(self.errors) - self.failed

    def lines(self) -> Iterator[str]:
        faults = Counter(i.fault for finding in self.findings for i in finding.injections)
        live = Counter[str]()
        for finding in self.findings:
            for injection in finding.injections:
                live[injection.fault] += injection.live
        yield f"seed {self.seed}"
        for fault, number in sorted(faults.items()):
            yield f"  {fault:20} {number:5} times, {live[fault] / number:.0f} traces under way"
        yield from _takeover_lines([t for finding in self.findings for t in finding.takeovers])
        if self.handovers:
            yield f"  clean handovers: {len(self.handovers)} partitions"
            yield from _spread("without an owner", self.handovers)
        for what, number in sorted(self.seen.items()):
            yield f"  {what:28} {number}"
        for finding in self.findings:
            for broken in finding.broken:
                yield f"  VIOLATION in round {finding.plan.seed} of {broken}"
        for seed, error in self.errors.items():
            yield f"  ERROR in round {seed}: {error}"
        yield f"{self.passed} passed, {self.failed} failed"

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(msgspec.json.format(msgspec.json.encode(self._content()), indent=2))

    def _content(self) -> dict[str, Any]:
        return {
            "seed": self.seed,
            "passed": self.passed,
            "failed": self.failed,
            "seen": self.seen,
            "handover_gaps": self.handovers,
            "errors": {str(seed): error for seed, error in self.errors.items()},
            "rounds": [_round(finding) for finding in self.findings],
        }


def _round(finding: Finding) -> dict[str, Any]:
    return {
        "seed": finding.plan.seed,
        "traces": finding.plan.traces,
        "injections": [
            {
                "fault": injection.fault,
                "target": injection.target,
                "at": injection.wall,
                "lasted": injection.healed - injection.at,
                "live_traces": injection.live,
            }
            for injection in finding.injections
        ],
        "takeovers": finding.takeovers,
        "violations": [str(broken) for broken in finding.broken],
    }


def _takeover_lines(takeovers: Sequence[Takeover]) -> Iterator[str]:
    for fault in sorted({takeover.fault for takeover in takeovers}):
        here = [takeover for takeover in takeovers if takeover.fault == fault]
        never = sum(takeover.seconds is None for takeover in here)
        yield f"  takeovers after {fault}: {len(here)} partitions, {never} never"
        yield from _spread("from the blow", [t.seconds for t in here])
        after = [takeover.after_lease for takeover in here]
        yield from _spread("from the lease's end", after)
        late = sum(seconds is not None and seconds > GRACE for seconds in after)
        yield f"    later than {GRACE * 1_000:.0f} ms after the lease's end: {late}"


def _spread(since: str, times: Sequence[float | None]) -> Iterator[str]:
    known = [seconds for seconds in times if seconds is not None]
    if known:
        yield f"    {since}: median {median(known):.3f} s, longest {max(known):.3f} s"
