"""An independent fold of a log, and the committed state of an owner to hold against it: the only
place where the simulation knows how the engine folds."""

from __future__ import annotations

from engine.core.events import Event, TraceStarted
from engine.core.failure import Failure
from engine.core.graph import Graph
from engine.core.journal import Frame, PartitionState, fold
from engine.core.machine import is_current
from engine.core.places import Place, path_of
from engine.core.playbook import Subplaybook
from engine.core.state import dump
from services.dispatcher.processor import Processor
from tests.simulation.playbooks import graph


class Shelf:
    """Every snapshot, at once."""

    def graph(self, snapshot_id: int) -> Graph:
        return graph(snapshot_id)

    def callee(self, callee: Subplaybook) -> Graph | Failure | None:
        raise AssertionError("a fold decides nothing")

    def granted(self, app: str, target: str) -> bool:
        raise AssertionError("a fold decides nothing")


_shelf = Shelf()


class Fold:
    """The state of a partition as its log says."""

    def __init__(self, state: PartitionState | None = None) -> None:
        self._state = state or PartitionState()

    def take(self, sequence: int, frame: Frame) -> None:
        fold(self._state, sequence, frame, _shelf)

    @property
    def sequence(self) -> int:
        return self._state.sequence

    def dump(self) -> dict[bytes, bytes]:
        """The byte form of every live trace."""
        return {trace_id: dump(trace) for trace_id, trace in self._state.traces.items()}

    def path(self, trace_id: bytes, place: Place) -> str:
        """The node's path; empty when the trace has ended."""
        trace = self._state.traces.get(trace_id)
        return "" if trace is None else path_of(_shelf, trace, *place)

    def wants(self, trace_id: bytes, place: Place, attempt: int) -> bool:
        """Whether a result of this attempt would still count."""
        trace = self._state.traces.get(trace_id)
        return trace is not None and is_current(trace, *place, attempt)


def committed(processor: Processor) -> Fold | None:
    """The owner's state; None while it runs ahead of the log."""
    if processor._flights or processor._ended is not None:
        return None
    return Fold(processor._state)


def started_in(event: Event) -> int | None:
    """The snapshot of a trace that the event starts."""
    return event.snapshot_id if isinstance(event, TraceStarted) else None
