"""What a story must know about the playbooks in it. Documents may be broken, since there are
stories about that: whatever is not understood here is left to publishing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from cli.scenarios.story import Document, Grant
from engine.document.text import read_text

Data = dict[str, Any]


def name_of(document: Document) -> str:
    """The playbook, app/name; empty where the document does not say it."""
    data = _data(document)
    app, name = data.get("app"), data.get("playbook")
    return f"{app}/{name}" if isinstance(app, str) and isinstance(name, str) else ""


def functions_of(document: Document) -> set[str]:
    """The functions that it calls, as app/name."""
    return {target for target, is_function in _targets(document) if is_function}


def callees_of(document: Document) -> set[str]:
    """The playbooks that it calls, as app/name."""
    return {target for target, is_function in _targets(document) if not is_function}


def grants_for(document: Document) -> Iterator[Grant]:
    """Grants for whatever it calls of other apps."""
    app = _data(document).get("app")
    for target, _ in sorted(_targets(document)):
        if isinstance(app, str) and target.partition("/")[0] != app:
            yield Grant(target, app)


def text_of(document: Document, snapshot_id: Callable[[str, int], int]) -> str:
    """What is published: with the numbers of the story's snapshots (`shop/pay@2`) turned into
    those that they really have. A document that came as text is left alone."""
    if isinstance(document, str):
        return document
    data = json.loads(json.dumps(document))
    app = data.get("app")
    for caller in _callers(data):
        called = caller.get("playbook")
        name, _, number = called.partition("@") if isinstance(called, str) else ("", "", "")
        if number.isdigit():
            caller["playbook"] = f"{name}@{snapshot_id(_full(name, app), int(number))}"
    return json.dumps(data, ensure_ascii=False)


def _data(document: Document) -> Data:
    if isinstance(document, str):
        read, _ = read_text(document)
        return read.data if read is not None and isinstance(read.data, dict) else {}
    return dict(document)


def _targets(document: Document) -> set[tuple[str, bool]]:
    """(app/name, whether it is a function)."""
    data = _data(document)
    found = set()
    for caller in _callers(data):
        for word in ("task", "playbook"):
            called = caller.get(word)
            if isinstance(called, str) and called:
                found.add((_full(called.partition("@")[0], data.get("app")), word == "task"))
    return found


def _callers(data: Data) -> Iterator[Data]:
    """Whatever may say `task:` or `playbook:`: nodes, and what stands inside them."""
    nodes = data.get("nodes")
    for node in nodes.values() if isinstance(nodes, dict) else ():
        if not isinstance(node, dict):
            continue
        yield node
        yield from (node[word] for word in ("map", "repeat", "compensate") if _is_data(node, word))


def _is_data(node: Data, word: str) -> bool:
    return isinstance(node.get(word), dict)


def _full(name: str, app: Any) -> str:
    return name if "/" in name else f"{app}/{name}"
