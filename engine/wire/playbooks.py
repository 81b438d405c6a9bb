"""Playbooks and findings to messages and back."""

from __future__ import annotations

import json
from typing import Any

from google.protobuf.duration_pb2 import Duration

from engine.core.findings import Finding
from engine.core.payload import of_value
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
)
from engine.errors import FieldViolation, Invalid
from engine.wire.values import duration, span
from magicflow.v1 import playbook_pb2


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
        priority=node.own_priority,
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
    given = message.HasField("priority")
    priority = message.priority if given else DEFAULT_PRIORITY
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
        priority=priority,
        explicit_priority=True if given and priority == DEFAULT_PRIORITY else UNSET,
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
