"""Core values to messages and back: the only translator, so that generated code stays at the
edges and the core stays free of it."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from engine.core.events import (
    AttemptFailed,
    Event,
    NodeFailed,
    NodeSkipped,
    NodeSucceeded,
    OperatorActed,
    TaskScheduled,
    TraceEnded,
    TraceStarted,
)
from engine.core.failure import Failure
from engine.core.findings import Finding
from engine.core.graph import Graph
from engine.core.payload import Payload, of_value
from engine.core.playbook import (
    DEFAULT_PRIORITY,
    UNSET,
    Compensation,
    Edge,
    EdgeKind,
    Hook,
    Join,
    Kind,
    Map,
    Node,
    Nop,
    Playbook,
    Repeat,
    Retry,
    Sleep,
    Subplaybook,
    Task,
    kind_name,
)
from engine.core.state import TraceState
from engine.core.status import NodeStatus
from engine.core.waits import Wait, why
from engine.errors import FieldViolation, Invalid
from magicflow.v1 import (
    error_pb2,
    event_pb2,
    payload_pb2,
    playbook_pb2,
    task_pb2,
    trace_pb2,
    trigger_service_pb2,
)

MAX_PAYLOAD = 1_048_576  # bytes

_raw = msgspec.json.Decoder(msgspec.Raw)


# Time. Milliseconds since 1970 inside, `Timestamp` and `Duration` outside; 0 and unset agree.


def timestamp(at: int) -> Timestamp | None:
    return Timestamp(seconds=at // 1_000, nanos=at % 1_000 * 1_000_000) if at else None


def milliseconds(at: Timestamp) -> int:
    return at.seconds * 1_000 + at.nanos // 1_000_000


def duration(span: int) -> Duration | None:
    return Duration(seconds=span // 1_000, nanos=span % 1_000 * 1_000_000) if span else None


def span(length: Duration) -> int:
    return length.seconds * 1_000 + length.nanos // 1_000_000


# Payloads and failures.


def payload_message(payload: Payload | None) -> payload_pb2.Payload | None:
    if payload is None:
        return None
    return payload_pb2.Payload(
        data=payload.data, content_type=payload.content_type, metadata=payload.metadata
    )


def payload(message: payload_pb2.Payload) -> Payload:
    return Payload(message.data, message.content_type, dict(message.metadata) or None)


def checked_payload(message: payload_pb2.Payload, field: str) -> Payload:
    """A payload from outside: within the size limit and, if it says so, valid JSON. An empty
    one is JSON null.

    Errors: `Invalid`.
    """
    if len(message.data) > MAX_PAYLOAD:
        raise Invalid(
            f"{field} has {len(message.data)} bytes; {MAX_PAYLOAD} are allowed",
            reason="PAYLOAD_TOO_LARGE",
            mend="store the data elsewhere and pass a reference to it",
        )
    taken = payload(message)
    if not taken.is_json:
        return taken
    if not taken.data:
        return Payload(b"null", "", taken.metadata)
    complaint = json_complaint(taken.data)
    if complaint:
        raise Invalid(
            f"{field} is not valid JSON: {complaint}",
            reason="INPUT_INVALID",
            violations=[FieldViolation(field, "INPUT_INVALID", complaint)],
            mend="send JSON, or set the content type",
        )
    return taken


def json_complaint(data: bytes) -> str:
    """Why the bytes are no JSON; empty when they are."""
    try:
        _raw.decode(data)
        data.decode()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return str(error)
    return ""


def failure_message(failure: Failure | None) -> error_pb2.Failure | None:
    if failure is None:
        return None
    return error_pb2.Failure(
        code=failure.code,
        message=failure.message,
        retryable=failure.retryable,
        node=failure.node,
        attempt=failure.attempt,
        details=payload_message(failure.details),
        retry_after=duration(failure.retry_after),
    )


def failure(message: error_pb2.Failure) -> Failure:
    """A failure from outside, cut to its limits."""
    details = payload(message.details) if message.HasField("details") else None
    if details is not None and len(details.data) > 65_536:
        details = of_value({"cut": "the details were larger than 64 KiB"})
    return Failure(
        code=message.code[:128] or "FUNCTION_ERROR",
        message=message.message[:4_096],
        retryable=message.retryable,
        details=details,
        retry_after=max(0, min(span(message.retry_after), 86_400_000)),
    )


# Tasks.


def idempotency_key(trace_id: bytes, path: str) -> str:
    return f"{trace_id.hex()}/{path}"


def task_message(
    graph: Graph, state: TraceState, index: int, epoch: int, env: bytes
) -> task_pb2.Task:
    """The task of a node's current attempt. `env` is the trace-wide env as JSON or empty."""
    node, current = graph.nodes[index], state.nodes[index]
    drawn = node.drawn
    assert current.input is not None
    deadline = current.dispatched_at + drawn.timeout if drawn.timeout else 0
    return task_pb2.Task(
        id=task_pb2.TaskId(trace_id=state.trace_id, node=node.code, attempt=current.attempt),
        function=node.function,
        input=payload_message(current.input),
        env=env,
        deadline=timestamp(deadline),
        epoch=epoch,
        snapshot_id=state.snapshot_id,
        playbook=graph.full_name,
        priority=drawn.priority,
        before=drawn.before,
        after=drawn.after,
        dispatched_at=timestamp(current.dispatched_at),
        idempotency_key=idempotency_key(state.trace_id, node.code),
    )


def task_env(graph: Graph, state: TraceState, index: int) -> bytes:
    """What the function sees as env: the trace's, with the node's own on top."""
    own = graph.nodes[index].drawn.env
    if own is UNSET:
        return of_value(state.env).data if state.env else b""
    return of_value({**state.env, **own}).data


# Traces.


def trace_message(
    graph: Graph,
    state: TraceState,
    offered: frozenset[str] = frozenset(),
    running: dict[tuple[int, int], tuple[str, int]] | None = None,
) -> trace_pb2.Trace:
    """The trace with its nodes. `running` says which attempts a worker has begun: (node,
    attempt) to (worker, milliseconds)."""
    message = summary_message(state)
    message.nodes.extend(
        _node_message(graph, state, index, offered, running or {})
        for index in range(len(graph.nodes))
    )
    return message


def summary_message(state: TraceState) -> trace_pb2.Trace:
    """The trace without its nodes."""
    return trace_pb2.Trace(
        trace_id=state.trace_id.hex(),
        app=state.app,
        playbook=state.playbook,
        playbook_id=state.playbook_id,
        snapshot_id=state.snapshot_id,
        status=trace_pb2.TraceStatus.ValueType(state.status),
        input=payload_message(state.input),
        output=payload_message(state.output),
        failure=failure_message(state.failure),
        triggered_at=timestamp(state.triggered_at),
        started_at=timestamp(state.started_at),
        ended_at=timestamp(state.ended_at),
        env=of_value(state.env).data if state.env else b"",
        triggered_by=state.by,
    )


def _node_message(
    graph: Graph,
    state: TraceState,
    index: int,
    offered: frozenset[str],
    running: dict[tuple[int, int], tuple[str, int]],
) -> trace_pb2.NodeState:
    node, current = graph.nodes[index], state.nodes[index]
    status, worker, wait = current.status, current.worker, None
    begun = running.get((index, current.attempt))
    if status is NodeStatus.QUEUED and not current.retry_at and begun is not None:
        status, worker = NodeStatus.RUNNING, begun[0]
    else:
        wait = why(graph, state, index, offered)
    return trace_pb2.NodeState(
        path=node.code,
        status=trace_pb2.NodeStatus.ValueType(status),
        kind=kind_name(node.drawn.kind),
        function=node.function,
        attempt=current.attempt,
        input=payload_message(current.input),
        output=None if status is NodeStatus.SKIPPED else payload_message(current.output),
        failure=failure_message(current.failure),
        started_at=timestamp(current.started_at),
        ended_at=timestamp(current.ended_at),
        worker=worker,
        wait=_wait_message(wait),
    )


def _wait_message(wait: Wait | None) -> trace_pb2.WaitReason | None:
    if wait is None:
        return None
    return trace_pb2.WaitReason(
        code=trace_pb2.WaitCode.ValueType(wait.code),
        message=wait.message,
        holders=wait.holders,
        until=timestamp(wait.until),
    )


def outcome_message(state: TraceState) -> trigger_service_pb2.Outcome:
    return trigger_service_pb2.Outcome(
        status=trace_pb2.TraceStatus.ValueType(state.status),
        output=payload_message(state.output),
        failure=failure_message(state.failure),
        ended_at=timestamp(state.ended_at),
    )


def outcome_of(trace: trace_pb2.Trace) -> trigger_service_pb2.Outcome:
    """The outcome of an ended trace."""
    return trigger_service_pb2.Outcome(
        status=trace.status,
        output=trace.output if trace.HasField("output") else None,
        failure=trace.failure if trace.HasField("failure") else None,
        ended_at=trace.ended_at,
    )


def event_message(
    graph: Graph, trace_id: bytes, event: Event, partition: int, sequence: int, index: int, at: int
) -> event_pb2.Event:
    message = event_pb2.Event(
        partition=partition,
        sequence=sequence,
        index=index,
        at=timestamp(at),
        trace_id=trace_id.hex(),
    )
    name, body = _event_body(graph, event)
    getattr(message, name).CopyFrom(body)
    return message


def _event_body(graph: Graph, event: Event) -> tuple[str, Any]:
    def code(place: int) -> str:
        return graph.nodes[place].code if place >= 0 else ""

    def target(place: int) -> str:
        return code(graph.edges[place].target) if place >= 0 else ""

    match event:
        case TraceStarted():
            return "trace_started", event_pb2.TraceStarted(
                snapshot_id=event.snapshot_id,
                playbook_id=event.playbook_id,
                app=event.app,
                playbook=event.playbook,
                input=payload_message(event.input),
                triggered_at=timestamp(event.triggered_at),
                triggered_by=event.by,
            )
        case TaskScheduled():
            return "task_scheduled", event_pb2.TaskScheduled(
                node=code(event.node),
                attempt=event.attempt,
                input=payload_message(event.input),
                function=graph.nodes[event.node].function,
            )
        case NodeSucceeded():
            return "node_succeeded", event_pb2.NodeSucceeded(
                node=code(event.node),
                attempt=event.attempt,
                output=payload_message(event.output),
                env=event.env,
                taken=[target(place) for place in event.taken],
                worker=event.worker,
                began_at=timestamp(event.began_at),
            )
        case AttemptFailed():
            return "attempt_failed", event_pb2.AttemptFailed(
                node=code(event.node),
                attempt=event.attempt,
                failure=failure_message(event.failure),
                retry_at=timestamp(event.retry_at),
                worker=event.worker,
            )
        case NodeFailed():
            return "node_failed", event_pb2.NodeFailed(
                node=code(event.node),
                attempt=event.attempt,
                failure=failure_message(event.failure),
                taken=target(event.taken),
                worker=event.worker,
            )
        case NodeSkipped():
            return "node_skipped", event_pb2.NodeSkipped(node=code(event.node))
        case TraceEnded():
            return "trace_ended", event_pb2.TraceEnded(
                status=event.status.name,
                output=payload_message(event.output),
                failure=failure_message(event.failure),
            )
        case OperatorActed():
            return "operator_acted", event_pb2.OperatorActed(
                verb=event.verb, node=code(event.node), by=event.by, why=event.why
            )


# Playbooks.


def _json(value: Any) -> bytes:
    return b"" if value is UNSET else of_value(value).data


def _template(data: bytes, field: str) -> Any:
    if not data:
        return UNSET
    try:
        return json.loads(data)
    except ValueError as error:
        raise Invalid(f"{field} is not valid JSON: {error}", reason="PLAYBOOK_INVALID") from error


def playbook_message(playbook: Playbook) -> playbook_pb2.Playbook:
    return playbook_pb2.Playbook(
        name=playbook.name,
        app=playbook.app,
        description=playbook.description,
        input_schema=_json(playbook.input_schema),
        output_schema=_json(playbook.output_schema),
        env=_json(playbook.env) if playbook.env else b"",
        timeout=duration(playbook.timeout),
        nodes=[_drawn_message(node) for node in playbook.nodes],
        edges=[_edge_message(edge) for edge in playbook.edges],
        output=_json(playbook.output),
    )


def _callee_message(callee: Subplaybook) -> playbook_pb2.PlaybookNode:
    return playbook_pb2.PlaybookNode(playbook=callee.playbook, snapshot_id=callee.snapshot_id)


def _kind_fields(kind: Kind) -> dict[str, Any]:
    match kind:
        case Task():
            return {"task": playbook_pb2.TaskNode(function=kind.function)}
        case Subplaybook():
            return {"playbook": _callee_message(kind)}
        case Map():
            message = playbook_pb2.MapNode(
                over=_json(kind.over),
                concurrency=kind.concurrency,
                tolerate_count=kind.tolerate_count,
                tolerate_percent=kind.tolerate_percent,
            )
            if isinstance(kind.body, Task):
                message.task.function = kind.body.function
            else:
                message.playbook.CopyFrom(_callee_message(kind.body))
            return {"map": message}
        case Hook():
            return {"hook": playbook_pb2.HookNode(timeout=duration(kind.timeout))}
        case Sleep():
            sleep = playbook_pb2.SleepNode()
            if kind.until is not None:
                sleep.until = _json(kind.until)
            else:
                getattr(sleep, "for").CopyFrom(duration(kind.duration) or Duration())
            return {"sleep": sleep}
        case Nop():
            return {"nop": playbook_pb2.NopNode()}
        case Repeat():
            callee = playbook_pb2.PlaybookNode(playbook=kind.playbook, snapshot_id=kind.snapshot_id)
            return {
                "repeat": playbook_pb2.RepeatNode(playbook=callee, until=kind.until, max=kind.max)
            }


def _drawn_message(node: Node) -> playbook_pb2.Node:
    retry = None
    if node.retry != Retry():
        retry = playbook_pb2.Retry(
            attempts=node.retry.attempts,
            backoff=duration(node.retry.backoff),
            factor=node.retry.factor,
            max=duration(node.retry.max),
            jitter=node.retry.jitter,
            on=node.retry.on,
            not_on=node.retry.not_on,
        )
    compensate = None
    if node.compensate is not None:
        compensate = playbook_pb2.Compensation(
            function=node.compensate.function, input=_json(node.compensate.input)
        )
    affinity = playbook_pb2.AFFINITY_TRACE if node.affinity else playbook_pb2.AFFINITY_UNSPECIFIED
    return playbook_pb2.Node(
        code=node.code,
        **_kind_fields(node.kind),
        input=_json(node.input),
        join=playbook_pb2.Join.ValueType(node.join),
        timeout=duration(node.timeout),
        queue_timeout=duration(node.queue_timeout),
        total_timeout=duration(node.total_timeout),
        heartbeat=duration(node.heartbeat),
        retry=retry,
        priority=node.priority if node.priority != DEFAULT_PRIORITY else None,
        before=node.before,
        after=node.after,
        env=_json(node.env),
        compensate=compensate,
        affinity=affinity,
        hook_after=node.hook_after,
        description=node.description,
        tags=node.tags,
    )


def _edge_message(edge: Edge) -> playbook_pb2.Edge:
    message = playbook_pb2.Edge(
        to=edge.target,
        kind=playbook_pb2.EdgeKind.ValueType(edge.kind),
        when=edge.when,
        priority=edge.priority,
        codes=edge.codes,
    )
    setattr(message, "from", edge.source)
    return message


def playbook(message: playbook_pb2.Playbook) -> Playbook:
    """A playbook that came as a message; checked afterwards by `examine_playbook`.

    Errors: `Invalid` where the message itself is malformed.
    """
    env = _template(message.env, "env")
    return Playbook(
        name=message.name,
        app=message.app,
        nodes=tuple(_drawn(node, message.app) for node in message.nodes),
        edges=tuple(_edge(edge) for edge in message.edges),
        description=message.description,
        input_schema=_template(message.input_schema, "input_schema"),
        output_schema=_template(message.output_schema, "output_schema"),
        env=env if isinstance(env, dict) else {},
        timeout=span(message.timeout),
        output=_template(message.output, "output"),
    )


def _full(name: str, app: str) -> str:
    return name if "/" in name else f"{app}/{name}"


def _callee(message: playbook_pb2.PlaybookNode, app: str) -> Subplaybook:
    return Subplaybook(_full(message.playbook, app), message.snapshot_id)


def _kind(message: playbook_pb2.Node, app: str) -> Kind:
    match message.WhichOneof("kind"):
        case "task":
            return Task(_full(message.task.function, app))
        case "playbook":
            return _callee(message.playbook, app)
        case "map":
            body: Task | Subplaybook
            if message.map.WhichOneof("body") == "task":
                body = Task(_full(message.map.task.function, app))
            else:
                body = _callee(message.map.playbook, app)
            over = _template(message.map.over, f"{message.code}.map.over")
            return Map(
                over if over is not UNSET else None,
                body,
                message.map.concurrency,
                message.map.tolerate_count,
                message.map.tolerate_percent,
            )
        case "hook":
            return Hook(span(message.hook.timeout))
        case "sleep":
            if message.sleep.WhichOneof("wake") == "until":
                return Sleep(until=_template(message.sleep.until, f"{message.code}.sleep.until"))
            return Sleep(duration=span(getattr(message.sleep, "for")))
        case "nop":
            return Nop()
        case "repeat":
            callee = _callee(message.repeat.playbook, app)
            return Repeat(
                callee.playbook, callee.snapshot_id, message.repeat.until, message.repeat.max
            )
        case _:
            raise Invalid(
                f"node {message.code} does not say what it does",
                reason="PLAYBOOK_INVALID",
                violations=[FieldViolation(f"nodes.{message.code}", "NODE_KIND_MISSING", "")],
            )


def _drawn(message: playbook_pb2.Node, app: str) -> Node:
    compensate = None
    if message.HasField("compensate"):
        compensate = Compensation(
            _full(message.compensate.function, app),
            _template(message.compensate.input, f"{message.code}.compensate.input"),
        )
    return Node(
        code=message.code,
        kind=_kind(message, app),
        input=_template(message.input, f"{message.code}.input"),
        join=Join(message.join or Join.ALL),
        timeout=span(message.timeout),
        queue_timeout=span(message.queue_timeout),
        total_timeout=span(message.total_timeout),
        heartbeat=span(message.heartbeat),
        retry=_retry(message.retry),
        priority=message.priority if message.HasField("priority") else DEFAULT_PRIORITY,
        before=tuple(message.before),
        after=tuple(message.after),
        env=_template(message.env, f"{message.code}.env"),
        compensate=compensate,
        affinity=message.affinity == playbook_pb2.AFFINITY_TRACE,
        hook_after=message.hook_after,
        description=message.description,
        tags=tuple(message.tags),
    )


def _retry(message: playbook_pb2.Retry) -> Retry:
    plain = Retry()
    return Retry(
        attempts=message.attempts or plain.attempts,
        backoff=span(message.backoff) or plain.backoff,
        factor=message.factor or plain.factor,
        max=span(message.max) or plain.max,
        jitter=message.jitter,
        on=tuple(message.on),
        not_on=tuple(message.not_on),
    )


def _edge(message: playbook_pb2.Edge) -> Edge:
    return Edge(
        getattr(message, "from"),
        message.to,
        EdgeKind(message.kind or EdgeKind.PARALLEL),
        message.when,
        message.priority,
        tuple(message.codes),
    )


def finding_message(finding: Finding) -> playbook_pb2.Finding:
    severity = playbook_pb2.SEVERITY_WARNING if finding.warning else playbook_pb2.SEVERITY_ERROR
    return playbook_pb2.Finding(
        code=finding.code,
        severity=severity,
        path=finding.path,
        line=finding.line,
        column=finding.column,
        message=finding.message,
        seen=finding.seen,
        mend=finding.mend,
    )


def violation(finding: Finding) -> FieldViolation:
    return FieldViolation(
        finding.path,
        finding.code,
        finding.message,
        finding.seen,
        finding.mend,
        finding.line,
        finding.column,
    )
