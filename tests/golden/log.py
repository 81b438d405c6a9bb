"""A golden log: the frames of a partition, what they need to be folded, and what came of them.

`replay` folds the frames with today's code and says the first thing that comes out otherwise than
in the version that recorded them:

- the frame decodes, and gives the same bytes when it is encoded again;
- after every frame the state of the partition, and of every trace that ended in it, has the same
  bytes (a digest of each is kept; of the last one the bytes themselves);
- a checkpoint of the time decodes, gives the same bytes again, and is the state that the fold has
  there, also in fields that the recording version did not have; and the rest of the log folds
  from it to the same end.

"The same bytes" is `projection.project` under the shape of the recording version.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from engine.bus.memory import MemoryBus, MemorySpace
from engine.core.failure import Failure
from engine.core.graph import Graph, compile_graph
from engine.core.journal import (
    PartitionState,
    decode_checkpoint,
    decode_frame,
    fold,
)
from engine.core.playbook import Subplaybook
from engine.core.state import TraceState, dump
from engine.snapshots.library import unpack
from services.dispatcher.checkpoints import Checkpoints
from tests.golden.projection import Shape, project

DIGEST = 8  # bytes of each


class Differs(AssertionError):
    """Today's code reads a golden log otherwise than the version that recorded it."""


class GoldenLog(msgspec.Struct):
    """`snapshots` are (playbook, snapshot, what is stored of it); `checkpoints` are (sequence of
    the log, pieces); `final` is the projection of the state after the last frame."""

    name: str
    shape: dict[str, int]
    snapshots: list[tuple[int, int, bytes]]
    frames: list[bytes]  # the first has sequence 1
    digests: list[bytes]
    checkpoints: list[tuple[int, list[bytes]]]
    final: bytes


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[GoldenLog])


def write(file: Path, logs: list[GoldenLog]) -> None:
    file.write_bytes(zlib.compress(_encoder.encode(logs), 9))


def read(file: Path) -> list[GoldenLog]:
    return _decoder.decode(zlib.decompress(file.read_bytes()))


class Shelf:
    """The snapshots of a log. A fold asks for nothing else."""

    def __init__(self, snapshots: list[tuple[int, int, bytes]]) -> None:
        self._graphs = {
            snapshot_id: compile_graph(unpack(stored), playbook_id, snapshot_id)
            for playbook_id, snapshot_id, stored in snapshots
        }

    def graph(self, snapshot_id: int) -> Graph:
        return self._graphs[snapshot_id]

    def callee(self, callee: Subplaybook) -> Graph | Failure | None:
        raise AssertionError("a fold decides nothing")

    def granted(self, app: str, target: str) -> bool:
        raise AssertionError("a fold decides nothing")


class Keeping(dict[bytes, TraceState]):
    """The traces of a partition, and those that have left it since `ended` was emptied."""

    def __init__(self) -> None:
        super().__init__()
        self.ended: list[TraceState] = []

    def __delitem__(self, trace_id: bytes) -> None:
        self.ended.append(self[trace_id])
        super().__delitem__(trace_id)


def state_bytes(state: PartitionState, shape: Shape) -> bytes:
    """The projection of a whole partition. Keys that were not in a checkpoint yet are left out:
    they say what was written, not what is true."""
    traces = {trace_id: state.traces[trace_id] for trace_id in sorted(state.traces)}
    plain = msgspec.structs.replace(state, traces=traces)
    plain.keys = msgspec.structs.replace(state.keys, fresh=[])
    return project(plain, shape)


def folded(frames: list[bytes], shelf: Shelf, shape: Shape) -> Iterator[tuple[Any, ...]]:
    """For each frame (sequence, state, projection of it, digest of it and of what ended)."""
    traces = Keeping()
    state = PartitionState(traces=traces)
    for sequence, data in enumerate(frames, 1):
        fold(state, sequence, decode_frame(data), shelf)
        whole = state_bytes(state, shape)
        ended = b"".join(project(trace, shape) for trace in traces.ended)
        traces.ended.clear()
        yield sequence, state, whole, hashlib.sha256(whole + ended).digest()[:DIGEST]


async def replay(log: GoldenLog) -> None:
    """Errors: `Differs` with the place of the first difference."""
    shelf = Shelf(log.snapshots)
    for sequence, data in enumerate(log.frames, 1):
        again = project(decode_frame(data), log.shape)
        _demand(again == data, log, sequence, "the frame has other bytes once it was decoded")
    checkpoints = dict(log.checkpoints)
    space, last = MemorySpace(), b""
    for sequence, state, last, digest in folded(log.frames, shelf, log.shape):  # noqa: B007
        same = digest == log.digests[sequence - 1]
        _demand(same, log, sequence, "the state has other bytes")
        if sequence in checkpoints:
            await _append(space, checkpoints[sequence], log, sequence)
            loaded = await Checkpoints(MemoryBus(space).checkpoint_log(0)).load()
            _compare(loaded, state, log, sequence)
            _go_on(loaded, state.sequence, shelf, log)
    _demand(last == log.final, log, len(log.frames), "the last state has other bytes")


async def _append(space: MemorySpace, pieces: list[bytes], log: GoldenLog, sequence: int) -> None:
    stored = MemoryBus(space).checkpoint_log(0)
    for piece in pieces:
        again = project(decode_checkpoint(piece), log.shape)
        _demand(again == piece, log, sequence, "the checkpoint has other bytes once decoded")
        await (await stored.append(piece, await stored.last()))


def _compare(loaded: PartitionState, state: PartitionState, log: GoldenLog, sequence: int) -> None:
    """In all fields, also those that came later: an owner that begins from an old checkpoint
    must not differ from one that has folded the whole log."""
    same = {i: dump(trace) for i, trace in loaded.traces.items()} == {
        i: dump(trace) for i, trace in state.traces.items()
    }
    _demand(same, log, sequence, "the traces of the checkpoint are others than those of the fold")
    rest = [
        (s.sequence, s.epoch, s.number, s.trigger_floor, s.triggers, list(s.keys.known.items()))
        for s in (loaded, state)
    ]
    _demand(rest[0] == rest[1], log, sequence, f"the checkpoint says {rest[0]}, not {rest[1]}")


def _go_on(loaded: PartitionState, after: int, shelf: Shelf, log: GoldenLog) -> None:
    for sequence, data in enumerate(log.frames[after:], after + 1):
        fold(loaded, sequence, decode_frame(data), shelf)
    same = state_bytes(loaded, log.shape) == log.final
    _demand(same, log, len(log.frames), f"the fold from the checkpoint at {after} ends otherwise")


def _demand(holds: bool, log: GoldenLog, sequence: int, what: str) -> None:
    if not holds:
        raise Differs(f"{log.name}, frame {sequence} of {len(log.frames)}: {what}")
