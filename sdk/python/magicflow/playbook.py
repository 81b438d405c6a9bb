"""Playbooks drawn in code: the same document that YAML holds."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import dataclass, field
from typing import Any

from magicflow.errors import Invalid

_CODE = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_OPTIONS = (
    "input",
    "join",
    "timeout",
    "queue_timeout",
    "total_timeout",
    "heartbeat",
    "priority",
    "before",
    "after",
    "env",
    "compensate",
    "affinity",
    "description",
    "tags",
)


@dataclass(frozen=True, slots=True)
class Retry:
    """All attempts together, the first wait, its growth, the longest wait, the spread. Durations
    as documents write them: `200ms`, `5s`."""

    attempts: int
    backoff: str = "1s"
    factor: float = 2.0
    max: str = "1h"
    jitter: float = 0.0
    on: tuple[str, ...] = ()
    not_on: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        plain = Retry(0)
        fields = ("backoff", "factor", "max", "jitter", "on", "not_on")
        changed = {f: getattr(self, f) for f in fields if getattr(self, f) != getattr(plain, f)}
        return {
            "attempts": self.attempts,
            **{key: list(v) if isinstance(v, tuple) else v for key, v in changed.items()},
        }


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """A node of a playbook under construction; `a >> b` draws a parallel edge."""

    playbook: Playbook
    code: str

    def __rshift__(self, other: Node) -> Node:
        self.playbook.edge(self, other)
        return other


@dataclass(slots=True)
class Playbook:
    """A graph under construction. `document()` is what gets published; the server checks it."""

    name: str
    app: str
    description: str = ""
    input: Any = None
    env: dict[str, Any] = field(default_factory=dict)
    timeout: str = ""
    output: Any = None
    _nodes: dict[str, dict[str, Any]] = field(default_factory=dict)
    _edges: list[dict[str, Any]] = field(default_factory=list)

    def task(self, code: str, function: str, **options: Any) -> Node:
        """A node that runs `app/function`. Options are those of the document, `retry` a `Retry`."""
        return self._add(code, {"task": function}, options)

    def nop(self, code: str, **options: Any) -> Node:
        """A node that passes its input through."""
        return self._add(code, {"nop": {}}, options)

    def hook(self, code: str, timeout: str = "", **options: Any) -> Node:
        """A node that waits for a signal."""
        return self._add(code, {"hook": {"timeout": timeout} if timeout else {}}, options)

    def sleep(self, code: str, duration: str, **options: Any) -> Node:
        """A node that waits."""
        return self._add(code, {"sleep": duration}, options)

    def call(self, code: str, playbook: str, **options: Any) -> Node:
        """A node that runs another playbook, `app/name` or `app/name@snapshot`."""
        return self._add(code, {"playbook": playbook}, options)

    def map(
        self,
        code: str,
        over: Any,
        *,
        task: str = "",
        playbook: str = "",
        concurrency: int = 0,
        tolerate: int | str = 0,
        **options: Any,
    ) -> Node:
        """A node that runs a task or a playbook once per item. Errors: `Invalid` unless it is
        one of them."""
        if bool(task) == bool(playbook):
            raise Invalid(f"map {code} runs either a task or a playbook", reason="PLAYBOOK_INVALID")
        body = {"over": over, "task": task, "playbook": playbook}
        body |= {"concurrency": concurrency, "tolerate": tolerate}
        return self._add(code, {"map": {k: v for k, v in body.items() if v}}, options)

    def repeat(self, code: str, playbook: str, *, until: str, max: int, **options: Any) -> Node:
        """A node that runs a playbook until a condition holds."""
        return self._add(
            code, {"repeat": {"playbook": playbook, "until": until, "max": max}}, options
        )

    def edge(
        self,
        source: Node,
        target: Node,
        *,
        when: str = "",
        otherwise: bool = False,
        on: str = "",
        codes: tuple[str, ...] | list[str] = (),
        priority: int = 0,
    ) -> None:
        """A parallel edge, or with `when`, `otherwise` or `on` (`error`, `timeout`, `rejected`)
        one of the others. Errors: `Invalid` for more than one of these."""
        if sum((bool(when), otherwise, bool(on))) > 1:
            raise Invalid("an edge has one of when, otherwise and on", reason="PLAYBOOK_INVALID")
        for node in (source, target):
            if node.playbook is not self:
                raise Invalid(
                    f"node {node.code} belongs to another playbook", reason="PLAYBOOK_INVALID"
                )
        edge: dict[str, Any] = {"from": source.code, "to": target.code}
        extras = {"when": when, "otherwise": otherwise, "on": on, "codes": list(codes)}
        edge.update({key: value for key, value in extras.items() if value})
        if priority:
            edge["priority"] = priority
        self._edges.append(edge)

    def document(self) -> dict[str, Any]:
        """The document, ready for JSON or YAML; a copy."""
        document: dict[str, Any] = {"playbook": self.name, "app": self.app}
        for key in ("description", "input", "env", "timeout"):
            value = getattr(self, key)
            if value:
                document[key] = value
        document["nodes"] = self._nodes
        if self._edges:
            document["edges"] = self._edges
        if self.output is not None:
            document["output"] = self.output
        return copy.deepcopy(document)

    def to_json(self) -> str:
        """The document as JSON text, which is YAML too. Errors: `Invalid` for a value in it that
        JSON does not have."""
        try:
            return json.dumps(self.document(), indent=2, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise Invalid(
                f"playbook {self.name} cannot be written as JSON: {error}",
                reason="PLAYBOOK_INVALID",
            ) from error

    def _add(self, code: str, kind: dict[str, Any], options: dict[str, Any]) -> Node:
        if not _CODE.fullmatch(code):
            raise Invalid(
                f"{code!r} is no node code",
                reason="PLAYBOOK_INVALID",
                mend="a code is a letter, then up to 63 letters, digits or _",
            )
        if code in self._nodes:
            raise Invalid(f"there are two nodes {code}", reason="PLAYBOOK_INVALID")
        retry = options.pop("retry", None)
        unknown = set(options) - set(_OPTIONS)
        if unknown:
            raise Invalid(
                f"node {code} has no option {', '.join(sorted(unknown))}",
                reason="PLAYBOOK_INVALID",
                mend=f"options are retry, {', '.join(_OPTIONS)}",
            )
        if not isinstance(retry, Retry | None):
            raise Invalid(
                f"the retry of node {code} is a magicflow.Retry, not {retry!r}",
                reason="PLAYBOOK_INVALID",
            )
        node = {**kind, **options}
        if retry is not None:
            node["retry"] = retry.document()
        self._nodes[code] = node
        return Node(self, code)
