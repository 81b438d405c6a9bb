"""Whose priority a task has: the node's own, wherever it is given, else the trace's."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from engine.core.payload import of_value
from engine.core.playbook import DEFAULT_PRIORITY, Playbook, canonical, checksum
from engine.document.reading import to_data, to_playbook
from engine.wire.playbooks import playbook, playbook_message
from engine.wire.traces import task_message
from tests.engine.core.playing import Trace, drawn, started

PLAIN = "nodes: {a: {task: f}}"
NORMAL = "nodes: {a: {task: f, priority: normal}}"
GIVEN = [
    ("", None),
    (", priority: normal", 5),
    (", priority: 5", 5),
    (", priority: low", 2),
    (", priority: high", 8),
    (", priority: 0", 0),
]


def stored(a: Playbook) -> Playbook:
    return msgspec.json.decode(canonical(a), type=Playbook)


@pytest.mark.parametrize("of_the_trace", [0, 5, 9])
@pytest.mark.parametrize(("option", "own"), GIVEN)
def test_a_nodes_own_priority_counts_wherever_one_is_given(
    option: str, own: int | None, of_the_trace: int
) -> None:
    event = replace(started(of_value(None)), priority=of_the_trace)
    trace = Trace(f"nodes: {{a: {{task: f{option}}}}}", event=event)
    task = task_message(trace.graphs, trace.state, 0, 0, 1)
    assert task.priority == (of_the_trace if own is None else own)


def test_items_and_compensations_have_the_priority_of_their_node() -> None:
    event = replace(started(of_value(None)), priority=9)
    trace = Trace(
        "nodes: {a: {task: f, priority: normal, compensate: {task: undo}},"
        " m: {map: {over: [1], task: f}, priority: normal}}",
        event=event,
    )
    trace.returns("a")
    item = task_message(trace.graphs, trace.state, *trace.place("m[0]"), 1)
    trace.aborts(compensate=True)
    undo = task_message(trace.graphs, trace.state, *trace.place("a:compensate"), 1)
    assert (item.priority, undo.priority) == (5, 5)


@pytest.mark.parametrize(("option", "own"), GIVEN)
def test_it_survives_every_form_of_a_playbook(option: str, own: int | None) -> None:
    first = drawn(f"nodes: {{a: {{task: f{option}}}}}")
    for form in (
        to_playbook(to_data(first)),
        playbook(playbook_message(first)),
        stored(first),
    ):
        assert form == first
        assert form.nodes[0].own_priority == own


def test_an_explicit_normal_is_other_content_and_nothing_else_has_changed() -> None:
    plain, normal = drawn(PLAIN), drawn(NORMAL)
    assert checksum(plain) != checksum(normal)
    assert b"explicit" not in canonical(plain)
    assert b"explicit" not in canonical(drawn(PLAIN.replace("task: f", "task: f, priority: high")))


def test_a_snapshot_of_before_reads_as_it_was_meant() -> None:
    """They have the default also where none was given."""
    written: Any = msgspec.json.decode(canonical(drawn(NORMAL)))
    del written["nodes"][0]["explicit_priority"]
    assert written["nodes"][0]["priority"] == DEFAULT_PRIORITY
    before = msgspec.json.decode(msgspec.json.encode(written), type=Playbook)
    assert before == drawn(PLAIN)
    assert before.nodes[0].own_priority is None
