"""Playbooks and traces as pictures."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from io import StringIO
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from rich.style import Style as Paint
from typer.testing import CliRunner

from cli.drawing.channels import channel_of
from cli.drawing.layers import Part, layered, node_depths
from cli.drawing.layout import Layout, Line, Spaces, arrange
from cli.drawing.model import Arrow, Drawing, Shape, Style, drawing_of
from cli.drawing.progress import Passage, Progress, progress_of
from cli.drawing.states import LOOKS
from cli.drawing.svg import render
from cli.drawing.text import draw
from cli.drawing.words import fold, shorten
from cli.main import app
from cli.tree import trace_tree
from engine.core.playbook import (
    Edge,
    EdgeKind,
    Hook,
    Join,
    Map,
    Node,
    Nop,
    Playbook,
    Sleep,
    Subplaybook,
    Task,
)
from magicflow.v1.error_pb2 import Failure
from magicflow.v1.event_pb2 import Event, NodeFailed, NodeSucceeded
from magicflow.v1.trace_pb2 import NodeState, NodeStatus, Trace, TraceStatus, WaitReason

ROOT = Path(__file__).parents[2]
SVG = "{http://www.w3.org/2000/svg}"
SPACES = Spaces(items=3, bends=2, ports=2)

DIAMOND = Playbook(
    name="diamond",
    app="shop",
    nodes=(
        Node("a", Nop()),
        Node("b", Task("shop/work")),
        Node("c", Sleep(1_000)),
        Node("d", Nop(), join=Join.ANY),
    ),
    edges=(Edge("a", "b"), Edge("a", "c"), Edge("b", "d"), Edge("c", "d")),
)

ORDER = Playbook(
    name="order",
    app="shop",
    description="Reserve, take payment, ship.",
    nodes=(
        Node("reserve", Task("inventory/reserve")),
        Node("review", Hook(86_400_000)),
        Node("pay", Subplaybook("billing/pay")),
        Node("label", Map("$.reserve.boxes", Task("shop/print_label"), concurrency=8)),
        Node("refund", Task("billing/refund")),
    ),
    edges=(
        Edge("reserve", "review", EdgeKind.CHOICE, "$.reserve.total > 1000", priority=1),
        Edge("reserve", "pay", EdgeKind.OTHERWISE),
        Edge("review", "pay"),
        Edge("pay", "label"),
        Edge("pay", "refund", EdgeKind.ERROR, codes=("CARD_DECLINED",)),
    ),
)


def drawing(count: int, edges: list[tuple[int, int]], labels: list[str] | None = None) -> Drawing:
    arrows = [
        Arrow(s, t, Style.CHOICE if label else Style.PARALLEL, label, f"n{s} to n{t}")
        for (s, t), label in zip(edges, labels or [""] * len(edges), strict=True)
    ]
    shapes = [Shape(f"n{number}", "task", "", False) for number in range(count)]
    return Drawing("shop/any", "", tuple(shapes), tuple(arrows))


@st.composite
def drawings(draw: st.DrawFn, most: int = 30) -> Drawing:
    count = draw(st.integers(1, most))
    pairs = st.tuples(st.integers(0, count - 1), st.integers(0, count - 1))
    drawn = draw(st.lists(pairs.filter(lambda p: p[0] != p[1]), max_size=2 * count, unique=True))
    edges = sorted({(min(pair), max(pair)) for pair in drawn})
    labels = draw(st.lists(st.sampled_from(["", "", "x > 1"]), min_size=len(edges),
                           max_size=len(edges)))  # fmt: skip
    return drawing(count, edges, labels)


def placed(of: Drawing) -> Layout:
    widths = [9 + 4 * (number % 5) for number in range(len(of.shapes))]
    return arrange(of, widths, [len(arrow.label) for arrow in of.arrows], SPACES)


def parts(root: ET.Element, css: str) -> list[ET.Element]:
    return [found for found in root.iter() if css in found.get("class", "").split()]


# Layers and places.


def test_a_node_is_below_all_its_sources() -> None:
    assert node_depths(4, [(0, 1), (1, 2), (0, 2), (3, 2)]) == [0, 1, 2, 0]


def test_a_cycle_is_refused() -> None:
    with pytest.raises(ValueError, match="cycle"):
        node_depths(2, [(0, 1), (1, 0)])


def test_a_tree_has_no_crossings() -> None:
    layers = layered(7, [(0, 2), (0, 1), (1, 6), (1, 5), (2, 4), (2, 3)], [False] * 6)
    below = [[i.index for i in row] for row in layers.rows]
    assert below == [[0], [2, 1], [4, 3, 6, 5]]


@settings(deadline=None)
@given(drawings())
def test_nothing_overlaps_and_neighbours_keep_their_distance(of: Drawing) -> None:
    layout = placed(of)
    for row in layout.rows:
        for before, after in pairwise(layout.spots[place] for place in row):
            bend = Part.BEND in (before.part, after.part)
            room = SPACES.bends if bend else SPACES.items
            assert after.left - before.right - 1 >= room
    assert all(spot.left >= 0 and spot.right < layout.width for spot in layout.spots)


@settings(deadline=None)
@given(drawings())
def test_every_node_has_one_place_and_every_edge_one_chain(of: Drawing) -> None:
    layout = placed(of)
    nodes = [spot.index for spot in layout.spots if spot.part is Part.NODE]
    assert sorted(nodes) == list(range(len(of.shapes)))
    chains: dict[int, list[Line]] = defaultdict(list)
    for line in layout.lines:
        chains[line.edge].append(line)
    assert sorted(chains) == list(range(len(of.arrows)))
    for edge, chain in chains.items():
        arrow = of.arrows[edge]
        assert layout.spots[chain[0].upper].index == arrow.source
        assert layout.spots[chain[-1].lower].index == arrow.target
        assert all(a.lower == b.upper for a, b in pairwise(chain))


@settings(deadline=None)
@given(drawings())
def test_every_edge_points_down(of: Drawing) -> None:
    layout = placed(of)
    assert all(
        layout.spots[line.upper].rank + 1 == layout.spots[line.lower].rank for line in layout.lines
    )


def test_more_bends_than_anybody_can_follow_are_left_out() -> None:
    count = 400
    edges = [(n, n + 1) for n in range(count - 1)] + [(0, n) for n in range(2, count)]
    layout = placed(drawing(count, edges))
    assert len(layout.spots) <= count + 20_000
    assert {line.edge for line in layout.lines} == set(range(len(edges)))


# Text.


def test_a_diamond_as_text() -> None:
    assert (
        draw(drawing_of(DIAMOND), 100).plain
        == """\
          ╭───────╮
          │ a     │
          │ nop   │
          ╰───┬───╯
      ╭───────┴───────╮
      ▼               ▼
╭───────────╮   ╭───────────╮
│ b         │   │ c         │
│ task work │   │ sleep 1s  │
╰─────┬─────╯   ╰─────┬─────╯
      ╰──╮         ╭──╯
         ▼         ▼
        ╭───────────╮
        │ d         │
        │ nop       │
        │ join any  │
        ╰───────────╯"""
    )


def test_conditions_stand_on_their_lines() -> None:
    assert (
        draw(drawing_of(ORDER), 100).plain
        == """\
          ╭─────────────────────────╮
          │ reserve                 │
          │ task inventory/reserve  │
          ╰────────────┬────────────╯
            ╭──────────┴────────╮
1: $.reserve.total > 1000   otherwise
            ▼                   │
       ╭───────────────╮        │
       │ review        │        │
       │ hook up to 1d │        │
       ╰───────┬───────╯        │
               ▼                ▼
          ╭───────────────────────╮
          │ pay                   │
          │ playbook billing/pay  │
          ╰──────────┬─┬──────────╯
          ╭──────────╯ ╰──────────╮
          │            on error CARD_DECLINED
          ▼                       ▼
 ╭─────────────────╮   ╭─────────────────────╮
 │ label           │   │ refund              │
 │ map print_label │   │ task billing/refund │
 ╰─────────────────╯   ╰─────────────────────╯"""
    )


@settings(deadline=None)
@given(drawings(), st.sampled_from([60, 100, 300]))
def test_text_has_every_node_once_and_is_not_too_wide(of: Drawing, width: int) -> None:
    lines = draw(of, width).plain.splitlines()
    if lines[0].startswith("  1  "):
        named = [line.split()[1] for line in lines if not line.startswith("     ")]
    else:
        assert max(map(cell_len, lines)) <= width
        named = [w for line in lines for w in line.split() if w.startswith("n") and w != "nop"]
    assert sorted(named) == sorted(shape.code for shape in of.shapes)


@settings(deadline=None)
@given(drawings())
def test_text_has_an_arrow_head_for_every_edge(of: Drawing) -> None:
    text = draw(of, 2_000).plain
    assert text.count("▼") == len(of.arrows)
    assert text.count("x > 1") == sum(arrow.label != "" for arrow in of.arrows)


@settings(deadline=None)
@given(drawings())
def test_lines_of_different_nets_only_cross(of: Drawing) -> None:
    layout = placed(of)
    for rank in range(len(layout.rows)):
        lines = [line for line in layout.lines if layout.spots[line.upper].rank == rank]
        assert_only_crossings(lines)


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 12), min_size=2, max_size=8, unique=True),
    st.permutations(range(13)),
)
def test_even_nets_that_exchange_their_columns_only_cross(
    starts: list[int], ends: list[int]
) -> None:
    assert_only_crossings(
        [Line(n, n, n, start, ends[n], (n, "")) for n, start in enumerate(starts)]
    )


def assert_only_crossings(lines: list[Line]) -> None:
    channel = channel_of(lines)
    level: dict[tuple[int, int], set[Any]] = defaultdict(set)  # row, column
    upright: dict[tuple[int, int], set[Any]] = defaultdict(set)  # half row, column
    for path in channel.paths:
        column, height = path.line.start, 0
        for row, to in path.turns:
            for half in range(height, 2 * row + 1):
                upright[half, column].add(path.line.net)
            for between in range(min(column, to), max(column, to) + 1):
                level[row, between].add(path.line.net)
            column, height = to, 2 * row + 1
        assert column == path.line.end
        for half in range(height, 2 * channel.rows):
            upright[half, column].add(path.line.net)
    for nets in (*level.values(), *upright.values()):
        assert len(nets) == 1


def test_what_is_too_wide_becomes_an_outline() -> None:
    of = drawing(41, [(0, n) for n in range(1, 41)], ["x > 1"] + [""] * 39)
    lines = draw(of, 100).plain.splitlines()
    assert lines[:3] == ["  1  n0  task", "     ├─▶ n1  x > 1", "     ├─▶ n2"]
    assert lines[-1] == "  2  n40  task"


def test_a_long_condition_is_told_in_full_below() -> None:
    condition = "size($.reserve.boxes) > 3 && $.reserve.country in ['de', 'fr', 'nl', 'pl']"
    edge = Edge("a", "b", EdgeKind.CHOICE, condition)
    playbook = Playbook("long", "shop", (Node("a", Nop()), Node("b", Nop())), (edge,))
    assert draw(drawing_of(playbook), 100).plain.endswith(f"\na to b when {condition}")


def test_a_terminal_does_not_obey_a_document() -> None:
    playbook = Playbook("bad", "shop", (Node("a", Task("shop/\x1b[2J")),))
    text = draw(drawing_of(playbook), 100).plain
    assert "\x1b" not in text
    assert "\\x1b[2J" in text


@settings(deadline=None)
@given(st.text(), st.integers(2, 20), st.integers(1, 3))
def test_folded_text_fits(text: str, width: int, most: int) -> None:
    lines = fold(text, width, most)
    assert len(lines) <= most
    assert all(cell_len(line) <= width for line in (*lines, shorten(text, width)))


# SVG.


def test_every_node_and_edge_is_in_the_picture_once() -> None:
    root = ET.fromstring(render(drawing_of(ORDER)))
    nodes = [found.get("data-node") for found in root.iter() if found.get("data-node")]
    assert nodes == ["reserve", "review", "pay", "label", "refund"]
    edges = [found.get("data-edge") for found in root.iter() if found.get("data-edge")]
    assert edges == ["0", "1", "2", "3", "4"]
    labels = ["".join(label.itertext()) for label in parts(root, "label")]
    assert labels == ["1: $.reserve.total > 1000", "otherwise", "on error CARD_DECLINED"]


@settings(max_examples=30, deadline=None)
@given(drawings(most=60))
def test_a_picture_is_well_formed_and_boxes_do_not_overlap(of: Drawing) -> None:
    root = ET.fromstring(render(of))
    nodes = next(iter(parts(root, "nodes")))
    boxes = [
        [float(rect.get(name, "")) for name in ("x", "y", "width", "height")]
        for rect in nodes.iter(f"{SVG}rect")
    ]
    assert len(boxes) == len(of.shapes)
    for (x, y, w, h), (x2, y2, w2, h2) in combinations(boxes, 2):
        assert x + w < x2 or x2 + w2 < x or y + h < y2 or y2 + h2 < y
    assert len([g for g in root.iter(f"{SVG}g") if g.get("data-edge")]) == len(of.arrows)
    assert max(x + w for x, _, w, _ in boxes) < float(root.get("width", ""))
    assert max(y + h for _, y, _, h in boxes) < float(root.get("height", ""))


@settings(deadline=None)
@given(drawings())
def test_the_same_playbook_is_always_drawn_in_the_same_way(of: Drawing) -> None:
    again = Drawing(of.title, of.description, tuple(of.shapes), tuple(of.arrows))
    assert render(of) == render(again)
    assert draw(of, 100) == draw(again, 100)


def test_two_hundred_tangled_nodes_are_all_drawn() -> None:
    edges = [(n, n + 1 + (n * step) % 11) for n in range(180) for step in (3, 7)]
    of = drawing(200, sorted(set(edges)))
    picture, text = render(of), draw(of, 100)
    assert all(f">{shape.code}<" in picture for shape in of.shapes)
    assert all(shape.code in text for shape in of.shapes)


NASTY = "</text><script>alert(1)</script> & \"q\" 'q' ]]> \x00 \x1b \ud800 日本"


def test_no_text_of_a_document_becomes_markup() -> None:
    playbook = Playbook(
        "nasty",
        "shop",
        (Node("a", Task(f"shop/{NASTY}"), description=NASTY, tags=(NASTY,)), Node("b", Nop())),
        (Edge("a", "b", EdgeKind.CHOICE, NASTY),),
        description=NASTY,
    )
    trace = Trace(status=TraceStatus.TRACE_STATUS_FAILED, trace_id="1")
    trace.failure.CopyFrom(Failure(code="X", message=NASTY.replace("\ud800", "")))
    text = render(drawing_of(playbook), progress_of(playbook, trace))
    root = ET.fromstring(text.encode())
    assert "script" not in {found.tag.removeprefix(SVG) for found in root.iter()}
    assert "\\x00" in "".join(root.itertext())
    names = {name for found in root.iter() for name in found.attrib}
    assert not any(name.startswith("on") or "href" in name for name in names)


def test_a_picture_says_in_words_what_it_shows() -> None:
    root = ET.fromstring(render(drawing_of(ORDER)))
    assert root.findtext(f"{SVG}title") == "shop/order"
    told = root.findtext(f"{SVG}desc") or ""
    assert "Reserve, take payment, ship." in told
    assert "reserve to review when $.reserve.total > 1000 (priority 1)" in told
    label = next(found for found in root.iter() if found.get("data-node") == "label")
    tooltip = label.findtext(f"{SVG}title") or ""
    assert tooltip.splitlines() == [
        "label: map print_label",
        "for each of $.reserve.boxes",
        "8 at once",
    ]


def test_kinds_of_edges_look_different_and_the_legend_explains_those_that_occur() -> None:
    root = ET.fromstring(render(drawing_of(ORDER)))
    styles = [found.get("class", "").split()[1] for found in root.iter() if found.get("data-edge")]
    assert styles == ["e-choice", "e-otherwise", "e-parallel", "e-parallel", "e-error"]
    (legend,) = parts(root, "legend")
    assert [text.split(":")[0] for text in legend.itertext() if text.strip()] == [
        "parallel",
        "choice",
        "otherwise",
        "error",
    ]
    (diamond,) = parts(ET.fromstring(render(drawing_of(DIAMOND))), "legend")
    words = " ".join(diamond.itertext())
    assert "join any" in words
    assert "error" not in words


def test_dark_pages_get_dark_colours() -> None:
    style = ET.fromstring(render(drawing_of(ORDER))).findtext(f"{SVG}style") or ""
    light, dark = style.split("@media (prefers-color-scheme: dark)")
    assert LOOKS["FAILED"].paint.line in light
    assert LOOKS["FAILED"].paint.dark_line in dark


# States.


def test_every_state_of_the_contracts_has_a_look() -> None:
    names = [name.removeprefix("NODE_STATUS_") for name in NodeStatus.DESCRIPTOR.values_by_name]
    names += [name.removeprefix("TRACE_STATUS_") for name in TraceStatus.DESCRIPTOR.values_by_name]
    assert set(names) - {"UNSPECIFIED"} == set(LOOKS)


def test_states_that_matter_have_colours_of_their_own() -> None:
    paints = Counter(look.paint for look in LOOKS.values())
    shared = [state for state, look in LOOKS.items() if paints[look.paint] > 1]
    assert shared == ["ABORTED", "CANCELLED"]
    assert LOOKS["SKIPPED"].dashed
    assert not LOOKS["SUCCEEDED"].dashed


def node(path: str, status: str, kind: str = "task", **fields: Any) -> NodeState:
    return NodeState(
        path=path, status=NodeStatus.Value(f"NODE_STATUS_{status}"), kind=kind, **fields
    )


def progress(*nodes: NodeState, events: tuple[Event, ...] = ()) -> Progress:
    trace = Trace(
        trace_id="01a2071993277f1d8584ac2b295c9a06",
        status=TraceStatus.TRACE_STATUS_RUNNING,
        nodes=nodes,
    )
    return progress_of(ORDER, trace, events)


def test_nodes_have_the_colour_of_their_state() -> None:
    seen = progress(
        node("reserve", "SUCCEEDED"),
        node("review", "SKIPPED"),
        node("pay", "TIMED_OUT"),
        node("label", "PENDING"),
    )
    root = ET.fromstring(render(drawing_of(ORDER), seen))
    classes = {
        found.get("data-node"): found.get("class")
        for found in root.iter()
        if found.get("data-node")
    }
    assert classes == {
        "reserve": "node k-task s-succeeded",
        "review": "node k-hook s-skipped",
        "pay": "node k-playbook s-timed-out",
        "label": "node k-map s-pending",
        "refund": "node k-task",
    }
    style = root.findtext(f"{SVG}style") or ""
    green = LOOKS["SUCCEEDED"].paint
    assert f".s-succeeded .box {{ fill: {green.fill}; stroke: {green.line}; }}" in style


def test_what_runs_inside_a_node_is_summed_up_on_it() -> None:
    failure = Failure(code="JAM", message="paper", node="label[1]")
    seen = progress(
        node("pay", "FAILED", "playbook", failure=Failure(code="NO", node="pay/charge/bank")),
        node("pay/charge", "FAILED", "playbook"),
        node("pay/charge/bank", "FAILED"),
        node("pay/book", "SKIPPED"),
        node("label", "RUNNING", "map"),
        node("label[0]", "SUCCEEDED"),
        node("label[1]", "FAILED", failure=failure),
        node("label[2]", "RUNNING"),
        node("reserve", "SUCCEEDED", attempt=2),
        node("reserve:compensate", "SUCCEEDED"),
    )
    assert set(seen.marks) == {"pay", "label", "reserve"}
    assert seen.marks["pay"].note == "1/2 nodes, 1 failed"
    assert seen.marks["pay"].failed == "pay/charge/bank"
    assert seen.marks["label"].note == "1/3 items, 1 failed"
    assert seen.marks["label"].failed == "label[1]"
    assert seen.marks["reserve"].note == "attempt 2, undone"


def test_rounds_are_counted() -> None:
    seen = progress(
        node("loop", "RUNNING", "repeat"),
        node("loop[0]", "SUCCEEDED"),
        node("loop[0]/step", "SUCCEEDED"),
        node("loop[1]", "RUNNING"),
    )
    assert seen.marks["loop"].note == "round 2"


def test_why_a_node_waits_is_its_tooltip() -> None:
    seen = progress(node("review", "PAUSED", wait=WaitReason(message="waits for a signal")))
    root = ET.fromstring(render(drawing_of(ORDER), seen))
    review = next(found for found in root.iter() if found.get("data-node") == "review")
    assert "waits: waits for a signal" in (review.findtext(f"{SVG}title") or "")


def test_edges_are_taken_dead_or_open() -> None:
    went = Event(node_succeeded=NodeSucceeded(node="reserve", taken=["pay"]))
    failed = Event(node_failed=NodeFailed(node="pay", taken="refund"))
    seen = progress(
        node("reserve", "SUCCEEDED"),
        node("review", "SKIPPED"),
        node("pay", "RUNNING"),
        events=(went,),
    )
    dead, taken, unknown = Passage.DEAD, Passage.TAKEN, Passage.OPEN
    assert seen.passages == (dead, taken, dead, unknown, unknown)
    seen = progress(
        node("reserve", "SUCCEEDED"),
        node("review", "SKIPPED"),
        node("pay", "FAILED"),
        events=(went, failed),
    )
    assert seen.passages == (dead, taken, dead, dead, taken)


def test_without_events_only_what_is_certain_is_told() -> None:
    seen = progress(node("reserve", "SUCCEEDED"), node("review", "SUCCEEDED"))
    assert seen.passages == (Passage.OPEN, Passage.OPEN, Passage.TAKEN, Passage.OPEN, Passage.OPEN)


def test_the_tree_on_the_terminal_has_the_same_colours_and_holds_what_runs_inside() -> None:
    trace = Trace(status=TraceStatus.TRACE_STATUS_RUNNING, app="shop", playbook="order")
    trace.nodes.extend(
        [node("label", "RUNNING"), node("label[1]", "TIMED_OUT"), node("label[1]/cut", "FAILED")]
    )
    console = Console(width=80, record=True, file=StringIO(), force_terminal=True)
    console.print(trace_tree(trace, None))
    html = console.export_html(clear=False)
    for state in ("RUNNING", "TIMED_OUT", "FAILED"):
        colour = Paint.parse(LOOKS[state].paint.terminal).get_html_style()
        assert colour in html
    assert [line.rstrip() for line in console.export_text().splitlines()[1:]] == [
        "└── ▶ label running",
        "    └── ✗ label[1] timed out",
        "        └── ✗ label[1]/cut failed",
    ]


# The command.


CENSUS = str(ROOT / "examples/census/playbook.yaml")


def command(*arguments: str) -> tuple[int, str]:
    seen = CliRunner().invoke(app, ["playbook", "graph", *arguments])
    return seen.exit_code, seen.output


def test_a_file_is_drawn_on_the_terminal() -> None:
    code, text = command(CENSUS)
    assert code == 0
    assert "│ task files/report │" in text
    assert max(map(cell_len, text.splitlines())) <= 100


def test_a_file_is_drawn_as_a_picture(tmp_path: Path) -> None:
    code, _ = command(CENSUS, "--svg", str(tmp_path / "census.svg"))
    assert code == 0
    root = ET.parse(tmp_path / "census.svg").getroot()
    assert root.tag == f"{SVG}svg"


def test_a_graph_is_data_too() -> None:
    code, text = command(CENSUS, "--json")
    assert code == 0
    data = json.loads(text)
    assert data["nodes"][0] == {
        "code": "list", "kind": "task", "callee": "files/list", "join": "all"
    }  # fmt: skip
    assert data["edges"][2]["label"] == "on error DOES_NOT_PARSE"


def test_of_a_file_with_mistakes_is_drawn_what_can_be(tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    head = "playbook: w\napp: shop\nnodes: {a: {task: x}, b: {task: x, input: $.c.d}}\nedges:\n"
    file.write_text(head + "  - {from: a, to: b}\n")
    code, text = command(str(file))
    assert code == 3
    assert "│ task x  │" in text
    file.write_text(head + "  - {from: a, to: b}\n  - {from: b, to: a}\n")
    code, text = command(str(file))
    assert code == 3
    assert "GRAPH_CYCLE" in text
    assert "│" not in text


def test_a_name_that_is_none_is_a_mistake_of_the_command_line() -> None:
    assert command("order")[0] == 2
    assert command("shop/order@new")[0] == 2
    assert command(CENSUS, "--snapshot", "3")[0] == 2
