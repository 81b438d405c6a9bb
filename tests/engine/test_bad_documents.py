"""Whatever stands in a document, examining it does not raise; and what it lets pass runs to an
end, whatever the functions do."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.core import machine
from engine.core.checks.flow import Signature
from engine.core.effects import TimerKind
from engine.core.failure import Failure
from engine.core.graph import Graph, compile_graph
from engine.core.payload import of_value
from engine.core.playbook import UNSET, Subplaybook
from engine.core.state import TraceState
from engine.document.examine import examine_text
from engine.document.text import read_text
from tests.engine.core.courses import walk, wander
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
    """The playbooks of all stories are live. Each has to be looked up once."""

    def __init__(self, graph: Graph) -> None:
        self._asked: set[str] = set()
        self._graphs = {42: graph}
        self._by_name = {graph.full_name: 42}

    def graph(self, snapshot_id: int) -> Graph:
        return self._graphs[snapshot_id]

    def callee(self, callee: Subplaybook) -> Graph | Failure | None:
        if callee.playbook not in self._asked:
            self._asked.add(callee.playbook)
            return None
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


class Signatures:
    """Of the playbooks of all stories; functions have registered nothing."""

    def function(self, name: str) -> Signature | None:
        return None

    def playbook(self, name: str, snapshot_id: int) -> Signature | None:
        found = PLAYBOOKS.get(name)
        if found is None:
            return None
        schemas = (found.input_schema, found.output_schema)
        return Signature(*(None if schema is UNSET else schema for schema in schemas))


def test_a_mutated_document_is_refused_or_every_course_of_it_ends() -> None:
    accepted = cut = 0

    @settings(max_examples=1_500, deadline=None, suppress_health_check=list(HealthCheck))
    @given(mutated(), st.integers(0, 2**32))
    def tried(book: dict[str, Any], seed: int) -> None:
        nonlocal accepted, cut
        examined = examine_text(json.dumps(book)).with_types(Signatures())
        assert all(finding.code and finding.mend for finding in examined.findings)
        if examined.errors:
            return
        assert examined.playbook is not None
        accepted += 1
        graph = compile_graph(examined.playbook, 7, 42)
        cut += walk(*begun(graph), START, most=150).cut
        for course in range(3):
            wander(*begun(graph), START, Random(seed + course), MOST_STEPS)

    tried()
    assert accepted > 50  # or it says nothing
    assert cut < accepted / 4


MOST_STEPS = 3_000  # of one course; beyond that it has no end


def test_every_outcome_in_every_published_story_leads_to_an_end() -> None:
    ends = cut = 0
    for book in BOOKS:
        found = walk(*begun(published(book)), START, most=600)
        ends += found.ends
        cut += found.cut
    assert ends > 5_000
    assert cut < len(BOOKS) / 20  # those with many tasks; `wander` goes to their ends


def test_every_course_of_every_published_story_ends_whatever_comes_first() -> None:
    happened: set[str] = set()
    for number, book in enumerate(BOOKS):
        graph = published(book)
        for course in range(8):
            happened |= wander(*begun(graph), START, Random(100 * number + course), MOST_STEPS)
    assert happened == {
        *(kind.name for kind in TimerKind if kind is not TimerKind.START),
        *("Succeeded", "Failed", "Began", "Lost", "Call", "Act"),
    }


def published(book: dict[str, Any]) -> Graph:
    playbook = examine_text(json.dumps(book)).playbook
    assert playbook is not None
    return compile_graph(playbook, 7, 42)


def begun(graph: Graph) -> tuple[AllStories, TraceState]:
    graphs = AllStories(graph)
    return graphs, machine.start(graphs, TRACE, started(of_value({"x": 1})), START)[0]


def test_negative_control_a_trace_that_is_stuck_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.Turn, "_follow", lambda turn, scope, node: None)
    with pytest.raises(AssertionError, match=r"stuck|changed nothing"):
        test_every_outcome_in_every_published_story_leads_to_an_end()
    with pytest.raises(AssertionError, match=r"stuck|changed nothing"):
        test_every_course_of_every_published_story_ends_whatever_comes_first()


def test_negative_control_a_limit_that_does_nothing_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine.Turn, "timer", lambda turn, command: None)
    with pytest.raises(AssertionError, match="changed nothing"):
        test_every_course_of_every_published_story_ends_whatever_comes_first()
