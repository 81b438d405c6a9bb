"""The routes that a trace can take through a graph, whatever its data: which nodes can run, and
what may have become of one node when another one runs.

Sets of nodes are integers, one bit a node. `docs/playbook.md` has the rules of edges and joins;
here every choice may go either way, and every node that has an error edge may fail.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from graphlib import CycleError, TopologicalSorter

from engine.core.playbook import Edge, EdgeKind, Join, Playbook

END = -1
"""The reader that stands for the playbook's output."""

MAX_STEPS = 300_000  # nodes looked at again and again, for one playbook


class Fate(Enum):
    """What becomes of a node in the end, other than that it succeeds, and what it may be when
    another one runs that does not wait for it: unsettled."""

    SKIPPED = "skipped"
    FAILED = "failed"  # and the failure was handled
    UNSETTLED = "unsettled"


@dataclass(frozen=True, slots=True)
class Fates:
    """`possible`: all others can be ruled out. `shown`: there is a route on which it is so."""

    possible: frozenset[Fate]
    shown: frozenset[Fate]


@dataclass(slots=True)
class _Ways:
    """The edges out of one node that can be taken. After a success all of `forced` are, and one
    of `chosen` if the node chooses; after a failure one of `errors`."""

    chooses: bool = False
    forced: list[Edge] = field(default_factory=list)
    chosen: list[Edge] = field(default_factory=list)
    errors: list[Edge] = field(default_factory=list)

    def all(self) -> Iterator[Edge]:
        yield from self.forced
        yield from self.chosen
        yield from self.errors


class Routes:
    """`order`: the nodes' codes so that each stands after those that lead to it."""

    def __init__(
        self, playbook: Playbook, dead: frozenset[int], without: frozenset[int] = frozenset()
    ) -> None:
        """`dead` are places of edges that are never taken, `without` of those that do not count.

        Errors: `ValueError` for a graph with a cycle, a dangling edge or a code twice.
        """
        self._place = {node.code: index for index, node in enumerate(playbook.nodes)}
        self._any = {node.code for node in playbook.nodes if node.join is Join.ANY}
        self._steps = 0
        self._skips: dict[str, tuple[int, bool]] = {}
        edges = {i: edge for i, edge in enumerate(playbook.edges) if i not in without}
        self.order = _order(edges.values(), self._place, len(playbook.nodes))
        self._incoming: dict[str, list[Edge]] = {code: [] for code in self.order}
        self._live: dict[str, list[Edge]] = {code: [] for code in self.order}
        self._ways = {code: _Ways() for code in self.order}
        self._find_ways(edges, dead)
        self.starts = [code for code in self.order if not self._incoming[code]]
        self._after = self._descendants()
        self._before = self._ancestors()
        self._surely = self._dominators()
        self._settled = self._settled_before()

    # What can run.

    def runs(self, code: str) -> bool:
        """Whether the node can run at all."""
        return not self._incoming[code] or bool(self._live[code])

    def always_runs(self, code: str) -> bool:
        """Whether the node runs in every trace that no unhandled failure ends before."""
        return self.runs(code) and not self._skipping(code)[1] and self._counts()

    def never(self) -> list[tuple[str, list[str]]]:
        """The nodes that cannot run although something before them can, each with those after it
        that therefore cannot run either."""
        found = []
        for code in self.order:
            sources = [edge.source for edge in self._incoming[code]]
            if not self.runs(code) and any(self.runs(source) for source in sources):
                others = [
                    other
                    for other in self.order
                    if not self.runs(other) and self.comes_before(code, other)
                ]
                found.append((code, others))
        return found

    def sources(self, code: str) -> list[tuple[str, bool, bool]]:
        """The nodes that can lead here, in the order of the document: code, whether by success,
        whether by failure."""
        kinds: dict[str, set[bool]] = {}
        for edge in self._live[code]:
            kinds.setdefault(edge.source, set()).add(edge.kind is EdgeKind.ERROR)
        order = sorted(kinds, key=self._place.__getitem__)
        return [(source, False in kinds[source], True in kinds[source]) for source in order]

    def always_leads(self, source: str, code: str) -> bool:
        """Whether `source`, when it succeeds, always leads to `code`."""
        return any(edge.target == code for edge in self._ways[source].forced)

    def comes_before(self, code: str, reader: str) -> bool:
        """Whether edges lead from the one to the other, taken or not."""
        return bool(self._above[reader] & self._bit(code))

    # What may have become of a node.

    def fates(self, code: str, reader: str | int) -> Fates:
        """What may have become of `code` when `reader`, which comes after it, runs. For `END`:
        when the trace has succeeded."""
        possible, shown = set(), set()
        if not self._counts():
            return Fates(frozenset(Fate), frozenset())
        if self._may_skip(code, reader):
            possible.add(Fate.SKIPPED)
            shown.add(Fate.SKIPPED)
        if self._ways[code].errors:
            if self._may_fail(code, reader):
                possible.add(Fate.FAILED)
            if self._can_fail(code, reader):
                shown.add(Fate.FAILED)
        if isinstance(reader, str) and not self._settles(code, reader):
            possible.add(Fate.UNSETTLED)
            if self.runs(code) and self._can_wait(code, reader):
                shown.add(Fate.UNSETTLED)
        return Fates(frozenset(possible), frozenset(shown))

    def _may_skip(self, code: str, reader: str | int) -> bool:
        readers, end = self._skipping(code)
        return end if isinstance(reader, int) else bool(readers & self._bit(reader))

    def _may_fail(self, code: str, reader: str | int) -> bool:
        if isinstance(reader, int):
            return True
        bypassed = not self._surely[reader] & self._bit(code)
        return bypassed or self._can_lead(self._ways[code].errors, reader)

    def _can_fail(self, code: str, reader: str | int) -> bool:
        if isinstance(reader, int) or self._can_lead(self._ways[code].errors, reader):
            return True
        return any(
            beside == reader or self._reaches(beside, reader) for beside in self._beside(code)
        )

    def _settles(self, code: str, reader: str) -> bool:
        return bool((self._settled[reader] | self._surely[reader]) & self._bit(code))

    def _can_wait(self, code: str, reader: str) -> bool:
        """Whether the reader can be reached beside the node, without waiting for it."""
        open_, seen = list(self._beside(code)), set()
        while open_:
            here = open_.pop()
            if here in seen or (self.comes_before(code, here) and here not in self._any):
                continue
            if here == reader:
                return True
            seen.add(here)
            open_ += [edge.target for edge in self._ways[here].all()]
            self._steps += 1
        return False

    def _beside(self, code: str) -> set[str]:
        """The first nodes of the routes that can be taken together with a route to `code`, and
        that have left everything that leads to it."""
        toward = self._before[code] | self._bit(code)
        found = {start for start in self.starts if not toward & self._bit(start)}
        for source in self.order:
            if not self._before[code] & self._bit(source):
                continue
            ways = self._ways[source]
            self._steps += 1
            for one, others in (
                (ways.forced, ways.forced + ways.chosen),
                (ways.chosen, ways.forced),
            ):
                leaving = [edge for edge in one if not toward & self._bit(edge.target)]
                if leaving and any(toward & self._bit(edge.target) for edge in others):
                    found.update(edge.target for edge in leaving)
        return found

    def _can_lead(self, edges: Iterable[Edge], reader: str) -> bool:
        return any(edge.target == reader or self._reaches(edge.target, reader) for edge in edges)

    def _reaches(self, code: str, other: str) -> bool:
        return bool(self._after[code] & self._bit(other))

    def _skipping(self, code: str) -> tuple[int, bool]:
        """The nodes that can run while `code` is skipped, and whether the trace can end so."""
        if code not in self._skips:
            self._skips[code] = self._find_skipping(code)
        return self._skips[code]

    def _find_skipping(self, code: str) -> tuple[int, bool]:
        """A node is safe when it can run without `code` running because of it. Every start runs,
        so all of them must be safe; then the routes of safe steps lead to what can run."""
        if not self.runs(code):
            return -1, True
        before, unsafe = self._before[code], self._bit(code)
        upstream = [other for other in self.order if before & self._bit(other)]
        for other in reversed(upstream):
            self._steps += 1
            if not self._can_avoid(self._ways[other], unsafe):
                unsafe |= self._bit(other)
        if any(unsafe & self._bit(start) for start in self.starts):
            return 0, False
        reached = self._bits(self.starts)
        for other in upstream:
            if reached & self._bit(other):
                reached |= self._safe_steps(self._ways[other], unsafe)
        for other in self.order:
            if reached & ~before & self._bit(other):
                reached |= self._after[other]
        return reached, True

    def _can_avoid(self, ways: _Ways, unsafe: int) -> bool:
        if any(not unsafe & self._bit(edge.target) for edge in ways.errors):
            return True
        if any(unsafe & self._bit(edge.target) for edge in ways.forced):
            return False
        return not ways.chooses or any(not unsafe & self._bit(e.target) for e in ways.chosen)

    def _safe_steps(self, ways: _Ways, unsafe: int) -> int:
        safe = [
            edge
            for edge in (
                ways.errors
                if any(unsafe & self._bit(e.target) for e in ways.forced)
                else ways.all()
            )
            if not unsafe & self._bit(edge.target)
        ]
        if ways.chooses and not any(not unsafe & self._bit(e.target) for e in ways.chosen):
            safe = [edge for edge in safe if edge.kind is EdgeKind.ERROR]
        return self._bits(edge.target for edge in safe)

    # Made once.

    def _find_ways(self, edges: Mapping[int, Edge], dead: frozenset[int]) -> None:
        choosing = {edge.source for edge in edges.values() if edge.kind is EdgeKind.CHOICE}
        outgoing: dict[str, list[tuple[int, Edge]]] = {code: [] for code in self.order}
        for index, edge in edges.items():
            self._incoming[edge.target].append(edge)
            outgoing[edge.source].append((index, edge))
        for code in self.order:
            ways = self._ways[code]
            ways.chooses = code in choosing
            if not self.runs(code):
                continue
            for index, edge in outgoing[code]:
                if index in dead:
                    continue
                if edge.kind is EdgeKind.ERROR:
                    ways.errors.append(edge)
                elif edge.kind is EdgeKind.PARALLEL or not ways.chooses:
                    ways.forced.append(edge)
                else:
                    ways.chosen.append(edge)
            if ways.chooses and not ways.chosen:
                ways.forced = []  # without a branch to take the trace fails
            for edge in ways.all():
                self._live[edge.target].append(edge)

    def _descendants(self) -> dict[str, int]:
        after: dict[str, int] = {}
        for code in reversed(self.order):
            after[code] = 0
            for edge in self._ways[code].all():
                after[code] |= after[edge.target] | self._bit(edge.target)
        return after

    def _ancestors(self) -> dict[str, int]:
        before: dict[str, int] = {}
        for code in self.order:
            before[code] = 0
            for edge in self._live[code]:
                before[code] |= before[edge.source] | self._bit(edge.source)
        return before

    def _dominators(self) -> dict[str, int]:
        """The nodes that every route to a node goes through."""
        surely: dict[str, int] = {}
        for code in self.order:
            common = -1 if self._live[code] else 0
            for edge in self._live[code]:
                common &= surely[edge.source] | self._bit(edge.source)
            surely[code] = common
        return surely

    def _settled_before(self) -> dict[str, int]:
        """The nodes that have settled whenever a node runs, because it waits for them."""
        settled: dict[str, int] = {}
        self._above: dict[str, int] = {}
        for code in self.order:
            waits = code not in self._any or not self._live[code]
            common = 0 if waits else -1
            above = 0
            for edge in self._incoming[code]:
                there = settled[edge.source] | self._bit(edge.source)
                above |= self._above[edge.source] | self._bit(edge.source)
                if waits:
                    common |= there
            for edge in () if waits else self._live[code]:
                common &= settled[edge.source] | self._bit(edge.source)
            settled[code], self._above[code] = common, above
        return settled

    def _counts(self) -> bool:
        """Whether the bound on work is not reached; beyond it nothing more is shown."""
        return self._steps <= MAX_STEPS

    def _bit(self, code: str) -> int:
        return 1 << self._place[code]

    def _bits(self, codes: Iterable[str]) -> int:
        bits = 0
        for code in codes:
            bits |= self._bit(code)
        return bits


def _order(edges: Iterable[Edge], place: dict[str, int], count: int) -> list[str]:
    if len(place) != count:
        raise ValueError("a code stands twice")
    before: dict[str, list[str]] = {code: [] for code in place}
    for edge in edges:
        if edge.source not in place or edge.target not in place:
            raise ValueError("an edge dangles")
        before[edge.target].append(edge.source)
    try:
        return list(TopologicalSorter(before).static_order())
    except CycleError as error:
        raise ValueError("the edges run in a circle") from error
