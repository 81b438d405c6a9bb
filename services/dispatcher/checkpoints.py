"""Checkpoints of a partition: a log of pieces, each as large as what changed since the last.

Recovery reads the newest complete full checkpoint and the pieces after it. When the pieces weigh
more than the state, the next one is full and the older ones are forgotten.
"""

from __future__ import annotations

import structlog

from engine.bus.port import MAX_FRAME, Fenced, Log
from engine.core.journal import (
    VERSION,
    Checkpoint,
    PartitionState,
    decode_checkpoint,
    encode_checkpoint,
    size_of,
)
from engine.core.state import TraceState

_log = structlog.get_logger(__name__)


class Checkpoints:
    """One partition's. `kept` are the log sequences of the last two checkpoints: frames above
    the older of them must stay in the log."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._last = 0
        self._full_bytes = 0
        self._since_bytes = 0
        self._stored: set[bytes] = set()  # traces that a kept checkpoint holds
        self.kept: list[int] = []

    async def load(self) -> PartitionState:
        """The state of the newest complete checkpoint; empty when there is none."""
        self._last = await self._log.last()
        state, self.kept = PartitionState(), []
        group: list[Checkpoint] = []
        async for _, data in self._log.read(0, self._last):
            piece = decode_checkpoint(data)
            if piece.epoch < state.epoch:
                continue  # a deposed owner's
            if piece.part == 0:
                group = []
            if piece.part != len(group):
                continue  # its beginning was purged
            group.append(piece)
            if len(group) < piece.parts:
                continue
            if piece.full:
                state = PartitionState()
            elif not self.kept:
                continue  # a delta of a full one that is gone
            _merge(state, group)
            self.kept = [*self.kept[-1:], piece.sequence]
        self._stored = set(state.traces)
        return state

    async def save(self, state: PartitionState, changed: set[bytes], gone: set[bytes]) -> None:
        """Writes what changed since the last call. Errors: `Fenced` when the partition has a
        newer owner, `Unavailable`."""
        full = not self.kept or self._since_bytes > 2 * self._full_bytes + MAX_FRAME
        wanted = list(state.traces) if full else sorted(changed & state.traces.keys())
        leaving = sorted(gone & self._stored)
        pieces = _pieces(state, [state.traces[i] for i in wanted], leaving, full)
        start = self._last
        try:
            written = 0
            for data in pieces:
                future = await self._log.append(data, self._last)
                self._last = await future
                written += len(data)
        except Fenced:
            await self._begin_anew(state.epoch)
            return
        state.keys.fresh.clear()
        self.kept = [*self.kept[-1:], state.sequence]
        self._stored = (set() if full else self._stored - gone) | set(wanted)
        if full:
            self._full_bytes, self._since_bytes = written, 0
            await self._log.purge(start)
        else:
            self._since_bytes += written

    async def _begin_anew(self, epoch: int) -> None:
        """Somebody else wrote a checkpoint. If it was a deposed owner, ours begins anew behind
        it; if it was a newer one, nothing of ours may stand behind it, or purge what it wrote."""
        self._last = await self._log.last()
        self.kept = []
        async for _, data in self._log.read(0, self._last):
            if decode_checkpoint(data).epoch > epoch:
                raise Fenced("a newer owner has written a checkpoint")


def _merge(state: PartitionState, group: list[Checkpoint]) -> None:
    for piece in group:
        state.sequence = piece.sequence
        state.epoch = piece.epoch
        state.number = piece.number
        state.at = piece.at
        state.trigger_floor = piece.trigger_floor
        state.triggers = set(piece.triggers)
        for trace in piece.traces:
            state.traces[trace.trace_id] = trace
        for trace_id in piece.gone:
            state.traces.pop(trace_id, None)
        state.keys.restore(piece.keys)


def _pieces(
    state: PartitionState, traces: list[TraceState], gone: list[bytes], full: bool
) -> list[bytes]:
    groups: list[list[TraceState]] = [[]]
    weight = 0
    for trace in traces:
        size = size_of(trace)
        if groups[-1] and weight + size > MAX_FRAME:
            groups.append([])
            weight = 0
        groups[-1].append(trace)
        weight += size
    return [
        encode_checkpoint(
            Checkpoint(
                version=VERSION,
                sequence=state.sequence,
                epoch=state.epoch,
                trigger_floor=state.trigger_floor,
                triggers=sorted(state.triggers),
                full=full,
                part=part,
                parts=len(groups),
                traces=group,
                gone=gone if part == 0 and not full else [],
                keys=state.keys.records(full) if part == 0 else [],
                number=state.number,
                at=state.at,
            )
        )
        for part, group in enumerate(groups)
    ]
