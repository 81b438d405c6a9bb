"""Whatever stands in a document, examining it does not raise; and what it lets pass runs to an
end, whatever the functions do."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.core import machine
from engine.core.failure import Failure
from engine.core.graph import Graph, compile_graph
from engine.core.payload import of_value
from engine.core.playbook import Subplaybook
from engine.document.examine import examine_text
from engine.document.text import read_text
from tests.engine.core.courses import walk
from tests.engine.core.playing import START, TRACE, started

STORIES = sorted((Path(__file__).parent.parent / "scenarios").rglob("*.yaml"))


def documents() -> list[dict[str, Any]]:
    """The playbooks of all stories that are meant to be published."""
    found = []
    for file in STORIES:
        document, _ = read_text(file.read_text())
        assert document is not None
        if "publish_error" not in document.data:
            found += [book for book in document.data["playbooks"] if isinstance(book, dict)]
    return found


BOOKS = documents()
ODD = st.sampled_from(
    (None, True, 0, -1, 3, 10**30, 0.5, "", "a", "$", "$$", "$$$", "$.a", "$.a.x?", "$item", "${ 1",
     "${ $$.x > 1 }", "true", "error", "5s", "-5s", "any", "shop/p", "shop/p@9", [], [1, 2], {},
     {"task": "f"}, {"nop": {}}, {"from": "a", "to": "b"})
)  # fmt: skip
WORDS = st.sampled_from(
    (
        "join",
        "when",
        "otherwise",
        "on",
        "input",
        "retry",
        "timeout",
        "hook",
        "map",
        "until",
        "a",
        "b",
    )
)


def places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inside: list[tuple[Any, ...]] = []
    keys = data.keys() if isinstance(data, dict) else range(len(data) if type(data) is list else 0)
    for key in keys:
        inside += [(*path, key), *places(data[key], (*path, key))]
    return inside


@st.composite
def mutated(draw: st.DrawFn) -> dict[str, Any]:
    """A published playbook with one to three pieces of it lost, moved, doubled or replaced."""
    book = copy.deepcopy(draw(st.sampled_from(BOOKS)))
    for _ in range(draw(st.sampled_from((1, 1, 2, 3)))):
        somewhere = places(book)
        if not somewhere:
            break
        *way, key = draw(st.sampled_from(somewhere))
        here: Any = book
        for step in way:
            here = here[step]
        change = draw(st.integers(0, 4))
        if change == 0:
            del here[key]
        elif change == 1:
            here[key] = copy.deepcopy(draw(ODD))
        elif change == 2:
            other: Any = book
            for step in draw(st.sampled_from(somewhere)):
                other = other[step] if _has(other, step) else other
            here[key] = copy.deepcopy(other)
        elif isinstance(here, list):
            here.append(copy.deepcopy(here[key]))
        else:
            here[draw(WORDS)] = copy.deepcopy(here[key])
    return book


def _has(data: Any, key: Any) -> bool:
    if isinstance(data, dict):
        return key in data
    return isinstance(data, list) and isinstance(key, int) and key < len(data)


class AllStories:
    """The playbooks of all stories are live."""

    def __init__(self, graph: Graph) -> None:
        self._graphs = {42: graph}
        self._by_name = {graph.full_name: 42}

    def graph(self, snapshot_id: int) -> Graph:
        return self._graphs[snapshot_id]

    def callee(self, callee: Subplaybook) -> Graph | Failure | None:
        if callee.playbook not in self._by_name:
            drawn = PLAYBOOKS.get(callee.playbook)
            if drawn is None:
                return Failure("PLAYBOOK_NOT_FOUND")
            number = 100 + len(self._graphs)
            self._graphs[number] = compile_graph(drawn, number, number)
            self._by_name[callee.playbook] = number
        return self._graphs[self._by_name[callee.playbook]]

    def granted(self, app: str, target: str) -> bool:
        return True


def _published() -> dict[str, Any]:
    found = {}
    for book in BOOKS:
        playbook = examine_text(json.dumps(book)).playbook
        assert playbook is not None
        found[playbook.full_name] = playbook
    return found


PLAYBOOKS = _published()


def test_a_mutated_document_is_refused_or_every_course_of_it_ends() -> None:
    accepted = 0

    @settings(max_examples=1_500, deadline=None, suppress_health_check=list(HealthCheck))
    @given(mutated())
    def tried(book: dict[str, Any]) -> None:
        nonlocal accepted
        examined = examine_text(json.dumps(book))
        if examined.errors:
            assert all(finding.code and finding.mend for finding in examined.errors)
            return
        assert examined.playbook is not None
        accepted += 1
        courses(compile_graph(examined.playbook, 7, 42), most=150)

    tried()
    assert accepted > 50  # or it says nothing


def test_every_course_of_every_published_story_ends() -> None:
    ends = 0
    for book in BOOKS:
        playbook = examine_text(json.dumps(book)).playbook
        assert playbook is not None
        ends += courses(compile_graph(playbook, 7, 42), most=300)
    assert ends > 1_000


def courses(graph: Graph, most: int) -> int:
    graphs = AllStories(graph)
    state, _ = machine.start(graphs, TRACE, started(of_value({"x": 1})), START)
    return walk(graphs, state, START, most)


def test_negative_control_a_trace_that_is_stuck_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.Turn, "_follow", lambda turn, scope, node: None)
    with pytest.raises(AssertionError, match=r"stuck|changed nothing"):
        test_every_course_of_every_published_story_ends()
