"""What may become of nodes, against every course that small graphs can take."""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.core.checks.routes import END, Fate, Routes
from engine.core.playbook import Edge, EdgeKind, Join, Node, Nop, Playbook

Status = str  # pending, running, done, failed, skipped
PARALLEL, CHOICE, OTHERWISE, ERROR = EdgeKind
BRANCHES = (CHOICE, OTHERWISE)


def playbook(nodes: dict[str, Join], edges: list[Edge]) -> Playbook:
    drawn = tuple(Node(code, Nop(), join=join) for code, join in nodes.items())
    return Playbook("p", "a", drawn, tuple(edges))


class Courses:
    """Every order in which the nodes can settle, and every way in which each can."""

    def __init__(self, drawn: Playbook, dead: frozenset[int]) -> None:
        self.joins = {node.code: node.join for node in drawn.nodes}
        self.edges = drawn.edges
        self.dead = dead
        self.seen: set[tuple[str, str, Fate]] = set()  # reader, node, fate
        self.ran: set[str] = set()
        self.skipped_at_end: set[str] = set()
        self.failed_at_end: set[str] = set()
        self._known: set[object] = set()
        self._go(dict.fromkeys(self.joins, "pending"), {})

    def _go(self, status: dict[str, Status], edges: dict[int, bool]) -> None:
        status, edges = self._decide(dict(status), dict(edges))
        key = (tuple(sorted(status.items())), tuple(sorted(edges.items())))
        if key in self._known:
            return
        self._known.add(key)
        running = [code for code, at in status.items() if at == "running"]
        if not running:
            self.skipped_at_end |= {code for code, at in status.items() if at == "skipped"}
            self.failed_at_end |= {code for code, at in status.items() if at == "failed"}
        for code in running:
            for after, taken in self._outcomes(code):
                resolved = {i: i in taken for i, e in enumerate(self.edges) if e.source == code}
                self._go({**status, code: after}, {**edges, **resolved})

    def _outcomes(self, code: str) -> Iterator[tuple[Status, set[int]]]:
        out = [(i, e) for i, e in enumerate(self.edges) if e.source == code]
        chooses = any(edge.kind is CHOICE for _, edge in out)
        live = [(i, e) for i, e in out if i not in self.dead]
        parallel = {i for i, e in live if e.kind is PARALLEL}
        branches = {i for i, e in live if e.kind in (CHOICE, OTHERWISE)}
        if chooses:
            for branch in branches:
                yield "done", parallel | {branch}
        else:
            yield "done", parallel | branches
        for index, edge in live:
            if edge.kind is ERROR:
                yield "failed", {index}

    def _decide(
        self, status: dict[str, Status], edges: dict[int, bool]
    ) -> tuple[dict[str, Status], dict[int, bool]]:
        again = True
        while again:
            again = False
            for code in self.joins:
                if status[code] != "pending":
                    continue
                into = [i for i, e in enumerate(self.edges) if e.target == code]
                taken = any(edges.get(i) for i in into)
                over = all(i in edges for i in into)
                if not into or (taken and (over or self.joins[code] is Join.ANY)):
                    status[code] = "running"
                    self._note(code, status)
                    again = True
                elif over:
                    status[code] = "skipped"
                    edges |= {i: False for i, e in enumerate(self.edges) if e.source == code}
                    again = True
        return status, edges

    def _note(self, reader: str, status: dict[str, Status]) -> None:
        self.ran.add(reader)
        for code, at in status.items():
            fate = {"skipped": Fate.SKIPPED, "failed": Fate.FAILED, "done": None}.get(
                at, Fate.UNSETTLED
            )
            if fate is not None:
                self.seen.add((reader, code, fate))


@st.composite
def graphs(draw: st.DrawFn) -> tuple[Playbook, frozenset[int]]:
    count = draw(st.integers(2, 6))
    codes = [f"n{i}" for i in range(count)]
    joins = {code: draw(st.sampled_from([Join.ALL, Join.ALL, Join.ANY])) for code in codes}
    pairs = [(a, b) for i, a in enumerate(codes) for b in codes[i + 1 :]]
    chosen = draw(st.lists(st.sampled_from(pairs), max_size=8))
    kinds = st.sampled_from([PARALLEL, PARALLEL, CHOICE, CHOICE, OTHERWISE, ERROR])
    edges = [Edge(a, b, draw(kinds), "$$") for a, b in chosen]
    dead = draw(st.sets(st.integers(0, 7), max_size=2))
    for code in codes:  # a choice that has no branch left fails every trace
        branches = {i for i, e in enumerate(edges) if e.source == code and e.kind in BRANCHES}
        if branches <= dead:
            dead -= branches
    return playbook(joins, edges), frozenset(dead)


@settings(max_examples=200, deadline=None)
@given(graphs())
def test_what_is_shown_can_happen_and_what_is_ruled_out_cannot(
    graph: tuple[Playbook, frozenset[int]],
) -> None:
    drawn, dead = graph
    courses, routes = Courses(drawn, dead), Routes(drawn, dead)
    for node in drawn.nodes:
        assert routes.runs(node.code) == (node.code in courses.ran)
        assert routes.always_runs(node.code) == (node.code not in courses.skipped_at_end)
        at_end = routes.fates(node.code, END)
        assert (Fate.SKIPPED in at_end.shown) == (node.code in courses.skipped_at_end)
        assert (Fate.FAILED in at_end.shown) == (node.code in courses.failed_at_end)
    for reader in courses.ran:
        for node in drawn.nodes:
            if not routes.comes_before(node.code, reader):
                continue
            seen = {fate for fate in Fate if (reader, node.code, fate) in courses.seen}
            fates = routes.fates(node.code, reader)
            assert seen <= fates.possible
            if Fate.UNSETTLED in seen:  # and may be the others later
                continue
            assert fates.shown <= seen
            assert (Fate.SKIPPED in seen) == (Fate.SKIPPED in fates.shown)


def test_a_branch_that_is_always_taken_is_never_skipped() -> None:
    routes = Routes(
        playbook(
            dict.fromkeys("abcd", Join.ALL),
            [Edge("a", "b"), Edge("a", "c"), Edge("b", "d"), Edge("c", "d")],
        ),
        frozenset(),
    )
    assert routes.fates("b", "d").possible == frozenset()
    assert routes.always_runs("d")


def test_a_join_of_any_does_not_wait() -> None:
    routes = Routes(
        playbook(
            {"a": Join.ALL, "b": Join.ALL, "c": Join.ANY},
            [Edge("a", "b"), Edge("a", "c"), Edge("b", "c")],
        ),
        frozenset(),
    )
    assert routes.fates("b", "c").shown == {Fate.UNSETTLED}
    assert routes.fates("a", "c").possible == frozenset()


def test_what_follows_a_dead_edge_is_found_once() -> None:
    routes = Routes(
        playbook(dict.fromkeys("abc", Join.ALL), [Edge("a", "b"), Edge("b", "c")]), frozenset([0])
    )
    assert routes.never() == [("b", ["c"])]
