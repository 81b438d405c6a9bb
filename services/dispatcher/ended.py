"""Traces that ended a short while ago, for whoever looks before SQL has them."""

from __future__ import annotations

from collections import OrderedDict

from engine.core.state import TraceState

MAX_TRACES = 20_000
MAX_BYTES = 32 << 20


class Ended:
    """An end that is decided is kept until it is committed, and then for as long as there is
    room."""

    def __init__(self) -> None:
        self._decided: dict[bytes, TraceState] = {}
        self._committed: OrderedDict[bytes, tuple[TraceState, int]] = OrderedDict()
        self._bytes = 0

    def decided(self, trace: TraceState) -> None:
        self._decided[trace.trace_id] = trace

    def committed(self, trace: TraceState, size: int) -> None:
        """`size` is that of the outcome in bytes. A trace that runs again by now is left out."""
        if self._decided.get(trace.trace_id) is not trace:
            return
        self.forget(trace.trace_id)
        weight = size + _payloads(trace)
        self._committed[trace.trace_id] = (trace, weight)
        self._bytes += weight
        while len(self._committed) > MAX_TRACES or self._bytes > MAX_BYTES:
            _, (_, freed) = self._committed.popitem(last=False)
            self._bytes -= freed

    def forget(self, trace_id: bytes) -> None:
        """The trace runs again."""
        self._decided.pop(trace_id, None)
        _, freed = self._committed.pop(trace_id, (None, 0))
        self._bytes -= freed

    def find(self, trace_id: bytes) -> TraceState | None:
        decided = self._decided.get(trace_id)
        return decided or self._committed.get(trace_id, (None, 0))[0]


def _payloads(trace: TraceState) -> int:
    """Bytes of what its nodes were given and returned; what two of them share counts twice."""
    return len(trace.input.data) + sum(
        len(payload.data)
        for scope in trace.scopes
        for node in scope.nodes
        for payload in (node.input, node.output)
        if payload is not None
    )
