"""Data of the right shape to a `Playbook`, and a `Playbook` back to data."""

from __future__ import annotations

from typing import Any

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
from engine.document.durations import format_duration, parse_duration

PRIORITIES = {"low": 2, "normal": DEFAULT_PRIORITY, "high": 8}
_SHORTHANDS = {
    "error": (),
    "timeout": ("TIMEOUT", "TOTAL_TIMEOUT", "QUEUE_TIMEOUT", "HOOK_TIMEOUT"),
    "rejected": ("REJECTED",),
}
_TIMES = ("timeout", "queue_timeout", "total_timeout", "heartbeat")


def to_playbook(data: dict[str, Any]) -> Playbook:
    """The playbook of a document that `shape.check_shape` found nothing wrong with."""
    app = data["app"]
    return Playbook(
        name=data["playbook"],
        app=app,
        nodes=tuple(_node(code, node, app) for code, node in data["nodes"].items()),
        edges=tuple(_edge(edge) for edge in data.get("edges", ())),
        description=data.get("description", ""),
        input_schema=data.get("input", UNSET),
        output_schema=data.get("output_schema", UNSET),
        env=data.get("env", {}),
        timeout=_duration(data, "timeout"),
        output=data.get("output", UNSET),
    )


def _duration(data: dict[str, Any], key: str) -> int:
    return parse_duration(data[key]) if key in data else 0


def _full(name: str, app: str) -> str:
    return name if "/" in name else f"{app}/{name}"


def _callee(text: str, app: str) -> Subplaybook:
    name, _, pin = text.partition("@")
    return Subplaybook(_full(name, app), int(pin) if pin else 0)


def _kind(node: dict[str, Any], app: str) -> Kind:
    if "task" in node:
        return Task(_full(node["task"], app))
    if "playbook" in node:
        return _callee(node["playbook"], app)
    if "map" in node:
        return _map(node["map"], app)
    if "hook" in node:
        return Hook(_duration(node["hook"], "timeout"))
    if "sleep" in node:
        return Sleep(duration=parse_duration(node["sleep"]))
    if "until" in node:
        return Sleep(until=node["until"])
    if "repeat" in node:
        repeat = node["repeat"]
        callee = _callee(repeat["playbook"], app)
        return Repeat(callee.playbook, callee.snapshot_id, repeat["until"], repeat["max"])
    return Nop()


def _map(data: dict[str, Any], app: str) -> Map:
    body = Task(_full(data["task"], app)) if "task" in data else _callee(data["playbook"], app)
    tolerate = data.get("tolerate", 0)
    percent = float(tolerate[:-1]) if isinstance(tolerate, str) else 0.0
    count = 0 if isinstance(tolerate, str) else tolerate
    return Map(data["over"], body, data.get("concurrency", 0), count, percent)


def _node(code: str, node: dict[str, Any], app: str) -> Node:
    given = node.get("priority")
    priority = PRIORITIES[given] if isinstance(given, str) else given
    compensate = node.get("compensate")
    return Node(
        code=code,
        kind=_kind(node, app),
        input=node.get("input", UNSET),
        join=Join.ANY if node.get("join") == "any" else Join.ALL,
        **{key: _duration(node, key) for key in _TIMES},
        retry=_retry(node.get("retry", {})),
        priority=DEFAULT_PRIORITY if priority is None else priority,
        explicit_priority=True if priority == DEFAULT_PRIORITY else UNSET,
        before=tuple(node.get("before", ())),
        after=tuple(node.get("after", ())),
        env=node.get("env", UNSET),
        compensate=None
        if compensate is None
        else Compensation(_full(compensate["task"], app), compensate.get("input", UNSET)),
        affinity="affinity" in node,
        hook_after="task" in node and node.get("hook") is True,
        description=node.get("description", ""),
        tags=tuple(node.get("tags", ())),
    )


def _retry(data: dict[str, Any]) -> Retry:
    plain = Retry()
    return Retry(
        attempts=data.get("attempts", plain.attempts),
        backoff=_duration(data, "backoff") or plain.backoff,
        factor=float(data.get("factor", plain.factor)),
        max=_duration(data, "max") or plain.max,
        jitter=float(data.get("jitter", plain.jitter)),
        on=tuple(data.get("on", ())),
        not_on=tuple(data.get("not_on", ())),
    )


def _edge(data: dict[str, Any]) -> Edge:
    source, target = data["from"], data["to"]
    priority = data.get("priority", 0)
    if "when" in data:
        return Edge(source, target, EdgeKind.CHOICE, data["when"], priority)
    if "otherwise" in data:
        return Edge(source, target, EdgeKind.OTHERWISE)
    if "on" in data:
        codes = tuple(data.get("codes", ())) or _SHORTHANDS[data["on"]]
        return Edge(source, target, EdgeKind.ERROR, "", priority, codes)
    return Edge(source, target)


def to_data(playbook: Playbook) -> dict[str, Any]:
    """The document of a playbook, every name in full; `to_playbook` gives an equal one back."""
    data: dict[str, Any] = {"playbook": playbook.name, "app": playbook.app}
    _keep(data, "description", playbook.description)
    _keep_template(data, "input", playbook.input_schema)
    _keep_template(data, "output_schema", playbook.output_schema)
    _keep(data, "env", playbook.env)
    _keep_duration(data, "timeout", playbook.timeout)
    data["nodes"] = {node.code: _node_data(node) for node in playbook.nodes}
    _keep(data, "edges", [_edge_data(edge) for edge in playbook.edges])
    _keep_template(data, "output", playbook.output)
    return data


def _keep(data: dict[str, Any], key: str, value: Any) -> None:
    if value:
        data[key] = value


def _keep_template(data: dict[str, Any], key: str, value: Any) -> None:
    if value is not UNSET:
        data[key] = value


def _keep_duration(data: dict[str, Any], key: str, value: int) -> None:
    if value:
        data[key] = format_duration(value)


def _callee_text(playbook: str, snapshot_id: int) -> str:
    return f"{playbook}@{snapshot_id}" if snapshot_id else playbook


def _kind_data(kind: Kind) -> dict[str, Any]:
    match kind:
        case Task():
            return {"task": kind.function}
        case Subplaybook():
            return {"playbook": _callee_text(kind.playbook, kind.snapshot_id)}
        case Map():
            data = {"over": kind.over, **_kind_data(kind.body)}
            _keep(data, "concurrency", kind.concurrency)
            _keep(data, "tolerate", kind.tolerate_count)
            if kind.tolerate_percent:
                data["tolerate"] = f"{kind.tolerate_percent:g}%"
            return {"map": data}
        case Hook():
            hook: dict[str, Any] = {}
            _keep_duration(hook, "timeout", kind.timeout)
            return {"hook": hook}
        case Sleep():
            if kind.until is not None:
                return {"until": kind.until}
            return {"sleep": format_duration(kind.duration)}
        case Nop():
            return {"nop": {}}
        case Repeat():
            callee = _callee_text(kind.playbook, kind.snapshot_id)
            return {"repeat": {"playbook": callee, "until": kind.until, "max": kind.max}}


def _node_data(node: Node) -> dict[str, Any]:
    data = _kind_data(node.kind)
    if node.hook_after:
        data["hook"] = True
    _keep_template(data, "input", node.input)
    if node.join is Join.ANY:
        data["join"] = "any"
    for key in _TIMES:
        _keep_duration(data, key, getattr(node, key))
    _keep(data, "retry", _retry_data(node.retry))
    if node.own_priority is not None:
        data["priority"] = node.own_priority
    _keep(data, "before", list(node.before))
    _keep(data, "after", list(node.after))
    _keep_template(data, "env", node.env)
    if node.compensate is not None:
        data["compensate"] = {"task": node.compensate.function}
        _keep_template(data["compensate"], "input", node.compensate.input)
    if node.affinity:
        data["affinity"] = "trace"
    _keep(data, "description", node.description)
    _keep(data, "tags", list(node.tags))
    return data


def _retry_data(retry: Retry) -> dict[str, Any]:
    plain, data = Retry(), {}
    for key in ("attempts", "factor", "jitter"):
        if getattr(retry, key) != getattr(plain, key):
            data[key] = getattr(retry, key)
    for key in ("backoff", "max"):
        if getattr(retry, key) != getattr(plain, key):
            data[key] = format_duration(getattr(retry, key))
    _keep(data, "on", list(retry.on))
    _keep(data, "not_on", list(retry.not_on))
    return data


def _edge_data(edge: Edge) -> dict[str, Any]:
    data: dict[str, Any] = {"from": edge.source, "to": edge.target}
    if edge.kind is EdgeKind.CHOICE:
        data["when"] = edge.when
    elif edge.kind is EdgeKind.OTHERWISE:
        data["otherwise"] = True
    elif edge.kind is EdgeKind.ERROR:
        data["on"] = "error"
        _keep(data, "codes", list(edge.codes))
    _keep(data, "priority", edge.priority)
    return data
