"""YAML or JSON text to plain data, remembering where everything stands.

YAML is read by its 1.2 core rules, so that `on:` is a key and `no` a string; anchors are bounded
and duplicate keys refused.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from engine.core.findings import Finding
from engine.core.playbook import MAX_DOCUMENT

MAX_DEPTH = 64
MAX_VALUES = 200_000

_SURROGATE = re.compile("[\ud800-\udfff]")

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Position:
    """Counted from 1."""

    line: int
    column: int


@dataclass(slots=True)
class Document:
    """`positions` tells where the value at a path begins; for a key, where the key stands. At the
    paths in `twice` stood something else before."""

    data: Any
    positions: dict[Path, Position] = field(default_factory=dict)
    twice: frozenset[Path] = frozenset()

    def locate(self, path: Path) -> Position | None:
        """The position of the path or of the nearest thing around it."""
        while path not in self.positions:
            if not path:
                return None
            path = path[:-1]
        return self.positions[path]


class _Loader(yaml.SafeLoader):
    """Safe types only, with the scalars of YAML 1.2. Depth is bounded while it reads: the
    library's own time grows with its square."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._depth += 1
        if self._depth > MAX_DEPTH + 2:  # `_Reader` says it with a place; this is the stop
            finding = Finding(
                "DOCUMENT_TOO_LARGE",
                "",
                f"the document goes deeper than {MAX_DEPTH}",
                mend=_SPLIT,
            )
            raise _Refused(finding.at(self.get_mark().line + 1, 1))
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("int", r"^[-+]?(?:0|[1-9][0-9]*)$", "-+0123456789"),
    (
        "float",
        r"^[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))(?:[eE][-+]?[0-9]+)?$",
        "-+.0123456789",
    ),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list(_first))


_SPLIT = "split it into several playbooks, or keep large data out of it"
_PLAIN = "write objects, lists, texts, numbers, true, false and null, as JSON has them"


def too_large(size: int, most: int) -> list[Finding]:
    """The finding for a document of more bytes than it may have."""
    message = f"the document has {size} bytes; {most} are allowed"
    return [Finding("DOCUMENT_TOO_LARGE", "", message, mend=_SPLIT)] if size > most else []


def read_text(text: str, most: int = MAX_DOCUMENT) -> tuple[Document | None, list[Finding]]:
    """The document, or the findings that kept it from being read; `most` bytes of it."""
    if too_large(len(text.encode()), most):
        return None, too_large(len(text.encode()), most)
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        return None, [_malformed(error)]
    except _Refused as refused:
        return None, [refused.finding]
    except (yaml.YAMLError, RecursionError) as error:
        message = f"not YAML or JSON: {error}"
        return None, [Finding("DOCUMENT_MALFORMED", "", message, mend=_PLAIN)]
    if root is None:
        mend = "write playbook:, app: and nodes:; docs/playbook.md begins with an example"
        finding = Finding("DOCUMENT_EMPTY", "", "the document is empty", mend=mend)
        return None, [finding.at(1, 1)]
    reader = _Reader()
    try:
        data = reader.value(root, (), 0)
    except _Refused as refused:
        return None, [refused.finding]
    return Document(data, reader.positions, frozenset(reader.twice)), reader.findings


def _malformed(error: yaml.MarkedYAMLError) -> Finding:
    mark = error.problem_mark or error.context_mark
    message = " ".join(part for part in (error.context, error.problem) if part)
    return Finding(
        "DOCUMENT_MALFORMED",
        "",
        f"not YAML or JSON: {message}",
        mend="check indentation, brackets and quotes at this place",
        line=mark.line + 1 if mark else 0,
        column=mark.column + 1 if mark else 0,
    )


class _Refused(Exception):
    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.message)
        self.finding = finding


class _Reader:
    """Turns YAML nodes into data. Aliases are followed within the bound on values, which stops
    the doubling kind of bomb."""

    def __init__(self) -> None:
        self.positions: dict[Path, Position] = {}
        self.findings: list[Finding] = []
        self.twice: set[Path] = set()
        self._values = 0
        self._scalars = _Loader("")

    def value(self, node: yaml.Node, path: Path, depth: int) -> Any:
        self._values += 1
        mark = node.start_mark
        if depth > MAX_DEPTH or self._values > MAX_VALUES:
            bound = f"deeper than {MAX_DEPTH}" if depth > MAX_DEPTH else f"over {MAX_VALUES} values"
            message = f"the document goes {bound}"
            finding = Finding("DOCUMENT_TOO_LARGE", "", message, mend=_SPLIT)
            raise _Refused(finding.at(mark.line + 1, mark.column + 1))
        self.positions.setdefault(path, Position(mark.line + 1, mark.column + 1))
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path, depth)
        if isinstance(node, yaml.SequenceNode):
            return [
                self.value(item, (*path, index), depth + 1) for index, item in enumerate(node.value)
            ]
        return self._scalar(node, path)

    def _mapping(self, node: yaml.MappingNode, path: Path, depth: int) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for key_node, value_node in node.value:
            mark = key_node.start_mark
            key = key_node.value
            if not isinstance(key_node, yaml.ScalarNode):
                raise self._refused(key_node, path, "a key must be a string")
            key = self._text(key_node, path, key)
            place = (*path, key)
            if key in data:
                self.twice.add(place)
                self.findings.append(
                    Finding(
                        "DUPLICATE_KEY",
                        dotted(place),
                        f"{key} stands here a second time",
                        mend="remove or rename one of them",
                        line=mark.line + 1,
                        column=mark.column + 1,
                    )
                )
            self.positions[place] = Position(mark.line + 1, mark.column + 1)
            data[key] = self.value(value_node, place, depth + 1)
        return data

    def _scalar(self, node: yaml.Node, path: Path) -> Any:
        try:
            value = self._scalars.construct_object(node)
        except (yaml.YAMLError, ValueError, LookupError, AttributeError) as error:
            # The last two come from scalars with a tag that they do not fit: `!!int ""`.
            mark = node.start_mark
            message = getattr(error, "problem", None) or str(error)
            raise _Refused(
                Finding(
                    "DOCUMENT_MALFORMED",
                    dotted(path),
                    f"not a plain value: {message}",
                    mend=_PLAIN,
                    line=mark.line + 1,
                    column=mark.column + 1,
                )
            ) from error
        if not isinstance(value, str | int | float | bool | None):
            raise self._refused(node, path, f"{node.tag} is no type of JSON")
        if isinstance(value, float) and not math.isfinite(value):
            raise self._refused(node, path, "the number is too large for JSON")
        return self._text(node, path, value) if isinstance(value, str) else value

    def _text(self, node: yaml.Node, path: Path, text: str) -> str:
        """JSON writes what lies beyond 16 bits as two halves; YAML takes each for a character."""
        if not _SURROGATE.search(text):
            return text
        try:
            return text.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            message = r"half of a surrogate pair (\ud800 to \udfff) is no text"
            raise self._refused(node, path, message) from None

    def _refused(self, node: yaml.Node, path: Path, message: str) -> _Refused:
        mark = node.start_mark
        finding = Finding("WRONG_TYPE", dotted(path), message, mend=_PLAIN)
        return _Refused(finding.at(mark.line + 1, mark.column + 1))


def dotted(path: Path) -> str:
    """`nodes.pay.retry`, `edges[3].when`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{part}" if text else part
    return text
