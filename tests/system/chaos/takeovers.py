"""How long a partition was without an owner after its owner was struck."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tests.system.chaos.evidence import Injection
from tests.system.chaos.tape import Recorded

GRACE = 0.3  # seconds after the lease's end in which a new owner must have opened its epoch

LeaseEnd = Callable[[str, float], float | None]  # of an instance that lived at that moment


@dataclass(frozen=True, slots=True)
class Takeover:
    """By the log's own clock, to the first frame of a higher epoch: `seconds` from the blow,
    `after_lease` from the moment in which etcd ended the lease. None: there was none."""

    fault: str
    partition: int
    seconds: float | None
    after_lease: float | None


def takeovers(
    injections: Sequence[Injection], logs: Sequence[Sequence[Recorded]], lease_end: LeaseEnd
) -> tuple[Takeover, ...]:
    """One for each partition that a struck process owned."""
    return tuple(
        _takeover(injection, partition, epoch, logs[partition], lease_end)
        for injection in injections
        for partition, epoch in injection.owned.items()
    )


def _takeover(
    injection: Injection,
    partition: int,
    epoch: int,
    frames: Sequence[Recorded],
    lease_end: LeaseEnd,
) -> Takeover:
    opened = next((r.at for r in frames if r.at >= injection.wall and r.frame.epoch > epoch), None)
    if opened is None:
        return Takeover(injection.fault, partition, None, None)
    ended = lease_end(injection.target, injection.wall)
    after = None if ended is None else opened - ended
    return Takeover(injection.fault, partition, opened - injection.wall, after)


def handover_gaps(logs: Sequence[Sequence[Recorded]]) -> list[float]:
    """Seconds from each clean owner's last frame to the first one of its successor, where a live
    one waited for it: a partition that stays without an owner has none."""
    gaps = []
    for frames in logs:
        for last, first in pairwise(frames):
            if last.frame.handover and first.frame.epoch > last.frame.epoch:
                gaps.append(first.at - last.at)
    return gaps
