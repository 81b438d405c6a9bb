"""What came out of a trace, held against what was expected: differences in a line each."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cli.scenarios.story import ABSENT, Expected, ExpectedFailure
from engine.core.findings import shorten
from magicflow.conformance import Call
from magicflow.payloads import from_payload
from magicflow.v1.event_pb2 import Event
from magicflow.v1.payload_pb2 import Payload
from magicflow.v1.trace_pb2 import NodeState, NodeStatus, Trace, TraceStatus, WaitCode

_STARTS = (
    "task_scheduled",
    "call_started",
    "hook_opened",
    "sleep_started",
    "node_succeeded",
    "node_failed",
    "node_skipped",
)
_ENDS = ("node_succeeded", "node_failed", "node_skipped")


@dataclass(frozen=True, slots=True)
class Seen:
    """`events` are the trace's, in order; `calls` those of the story."""

    trace: Trace
    events: Sequence[Event]
    calls: Sequence[Call]


def differences(name: str, expected: Expected, seen: Seen) -> list[str]:
    """One line each; none when the trace, which the story calls `name`, is as expected."""
    nodes = {node.path: node for node in seen.trace.nodes}
    return [
        *_status(name, expected.status, seen.trace),
        *_failure(f"{name}.error", expected.error, seen.trace),
        *_value(f"{name}.output", expected.output, _opened(seen.trace, "output")),
        *_statuses(f"{name}.nodes", expected, nodes),
        *_payloads(f"{name}.inputs", expected.inputs, nodes, "input"),
        *_payloads(f"{name}.outputs", expected.outputs, nodes, "output"),
        *_attempts(f"{name}.attempts", expected.attempts, nodes),
        *_order(f"{name}.order", expected.order, seen.events),
        *_env(f"{name}.env", expected.env, seen.trace),
        *_calls(f"{name}.calls", expected.calls, seen),
        *_waits(f"{name}.waits", expected.waits, nodes),
    ]


def trace_status(trace: Trace) -> str:
    return TraceStatus.Name(trace.status).removeprefix("TRACE_STATUS_")


def node_status(node: NodeState) -> str:
    return NodeStatus.Name(node.status).removeprefix("NODE_STATUS_")


def wait_reason(node: NodeState) -> str:
    """Empty where it does not wait."""
    return WaitCode.Name(node.wait.code).removeprefix("WAIT_CODE_") if node.HasField("wait") else ""


def shown_failure(trace: Trace) -> str:
    """` (BUSY at pay/charge: …)`, empty where nothing failed."""
    if not trace.HasField("failure"):
        return ""
    failure = trace.failure
    at = f" at {failure.node}" if failure.node else ""
    return f" ({failure.code}{at}: {shorten(failure.message, 200)})"


def same_json(one: Any, other: Any) -> bool:
    """Equal as JSON: 1 and 1.0 are one number, true is none."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same_json(one[k], other[k]) for k in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same_json, one, other))
    return bool(one == other)


def _line(place: str, expected: str, seen: str) -> str:
    return f"{place}: expected {expected}, saw {seen}"


def _status(name: str, expected: str, trace: Trace) -> Iterator[str]:
    seen = trace_status(trace)
    if expected and seen != expected:
        yield _line(f"{name}.status", expected, seen + shown_failure(trace))


def _failure(place: str, expected: ExpectedFailure | None, trace: Trace) -> Iterator[str]:
    if expected is None:
        return
    if not trace.HasField("failure"):
        yield _line(place, expected.code or "a failure", "none")
        return
    seen = trace.failure
    if expected.code and seen.code != expected.code:
        yield _line(f"{place}.code", expected.code, seen.code + shown_failure(trace))
    if expected.node is not None and seen.node != expected.node:
        yield _line(f"{place}.node", expected.node or "none", seen.node or "none")
    if expected.message_contains not in seen.message:
        wanted = f"… {expected.message_contains} …"
        yield _line(f"{place}.message", wanted, shorten(seen.message, 300))


def _statuses(place: str, expected: Expected, nodes: Mapping[str, NodeState]) -> Iterator[str]:
    for path, status in expected.nodes.items():
        seen = node_status(nodes[path]) if path in nodes else "no such node"
        if seen != status:
            yield _line(f"{place}.{path}", status, seen)
    if expected.exactly:
        for path in sorted(nodes.keys() - expected.nodes.keys()):
            yield _line(f"{place}.{path}", "no such node", node_status(nodes[path]))


def _payloads(
    place: str, expected: Mapping[str, Any], nodes: Mapping[str, NodeState], field: str
) -> Iterator[str]:
    for path, value in expected.items():
        if path in nodes:
            yield from _value(f"{place}.{path}", value, _opened(nodes[path], field))
        else:
            yield _line(f"{place}.{path}", _shown(value), "no such node")


def _attempts(
    place: str, expected: Mapping[str, int], nodes: Mapping[str, NodeState]
) -> Iterator[str]:
    for path, count in expected.items():
        seen = str(nodes[path].attempt) if path in nodes else "no such node"
        if seen != str(count):
            yield _line(f"{place}.{path}", str(count), seen)


def _order(
    place: str, expected: Iterable[tuple[str, str]], events: Sequence[Event]
) -> Iterator[str]:
    """By the places of the events in the log; clocks have no say."""
    if not expected:
        return
    starts, ends = _places(events, _STARTS), _places(events, _ENDS)
    for first, second in expected:
        wanted = f"{first} ended before {second} started"
        if first not in ends:
            yield _line(place, wanted, f"no end of {first}")
        elif second not in starts:
            yield _line(place, wanted, f"no start of {second}")
        elif ends[first][-1] > starts[second][0]:
            yield _line(place, wanted, f"{second} started first")


def _places(events: Sequence[Event], kinds: tuple[str, ...]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for place, event in enumerate(events):
        kind = event.WhichOneof("what")
        if kind in kinds:
            found.setdefault(getattr(event, kind).node, []).append(place)
    return found


def _env(place: str, expected: Mapping[str, Any] | None, trace: Trace) -> Iterator[str]:
    if expected is not None:
        yield from _value(place, expected, json.loads(trace.env or b"{}"))


def _calls(place: str, expected: Mapping[str, int], seen: Seen) -> Iterator[str]:
    for function, count in expected.items():
        made = sum(
            call.function == function and call.trace_id == seen.trace.trace_id
            for call in seen.calls
        )
        if made != count:
            yield _line(f"{place}.{function}", str(count), str(made))


def _waits(
    place: str, expected: Mapping[str, str], nodes: Mapping[str, NodeState]
) -> Iterator[str]:
    for path, reason in expected.items():
        seen = wait_reason(nodes[path]) or "nothing" if path in nodes else "no such node"
        if seen != reason:
            yield _line(f"{place}.{path}", reason, seen)


def _opened(message: Any, field: str) -> Any:
    if not message.HasField(field):
        return ABSENT
    payload: Payload = getattr(message, field)
    return from_payload(payload)


def _value(place: str, expected: Any, seen: Any) -> Iterator[str]:
    """Differences of two values, as deep inside as they can be named."""
    if expected is ABSENT:
        return
    if isinstance(expected, dict) and isinstance(seen, dict):
        for key in sorted(expected.keys() | seen.keys()):
            inner = f"{place}.{key}"
            if key not in expected:
                yield _line(inner, "nothing", _shown(seen[key]))
            else:
                yield from _value(inner, expected[key], seen.get(key, ABSENT))
    elif not same_json(expected, seen):
        yield _line(place, _shown(expected), _shown(seen))


def _shown(value: Any) -> str:
    if value is ABSENT:
        return "nothing"
    if isinstance(value, bytes):
        return f"{len(value)} bytes that are not JSON"
    return shorten(json.dumps(value, ensure_ascii=False), 200)
