"""Small random playbooks: chains, forks, joins of all and of any, choices, error edges, retries
and time limits. Playbook `number` is the same in every run."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

from engine.core.checks.rules import check
from engine.core.graph import Graph, compile_graph
from engine.core.playbook import (
    Edge,
    EdgeKind,
    Hook,
    Join,
    Map,
    Node,
    Nop,
    Playbook,
    Retry,
    Sleep,
    Subplaybook,
    Task,
)

COUNT = 240  # different playbooks
PLAIN = 40  # the first of them call no others
FUNCTIONS = ("a/f", "a/g")
BOOM, BAD = "BOOM", "BAD"  # what functions fail with: for good, and worth another attempt
_CONDITIONS = ("$$.v == 0", "$$.v == 1", "$$.v > 0", "has($$.v) && $$.v < 2")


@cache
def graph(number: int) -> Graph:
    """Snapshot `number` of playbook 1; they count from 1."""
    chance = random.Random(number)
    while True:
        playbook = _playbook(chance, number)
        if not [finding for finding in check(playbook) if not finding.warning]:
            return compile_graph(playbook, 1, number)


def _playbook(chance: random.Random, number: int) -> Playbook:
    codes = [f"n{index}" for index in range(chance.choice((1, 2, 2, 3, 3, 4, 5)))]
    edges: list[Edge] = []
    for place, target in enumerate(codes[1:], 1):
        sources = chance.sample(codes[:place], min(place, chance.choice((0, 1, 1, 1, 2, 3))))
        edges += [_edge(chance, source, target) for source in sources]
    nodes = [_node(chance, code, number) for code in codes]
    timeout = chance.choice((0, 0, 0, 0, 45_000))
    return Playbook(f"p{number}", "a", tuple(nodes), tuple(_sensible(edges)), timeout=timeout)


def _node(chance: random.Random, code: str, number: int) -> Node:
    join = chance.choice((Join.ALL, Join.ALL, Join.ANY))
    dice = chance.random()
    if dice < 0.1:
        return Node(code, Nop(), join=join)
    if dice < 0.16:
        return Node(code, Sleep(chance.choice((200, 2_500, 9_000))), join=join)
    if dice < 0.24:
        return Node(code, Hook(chance.choice((1_000, 6_000, 12_000))), join=join)
    more: dict[str, Any] = {}
    if chance.random() < 0.5:
        more["retry"] = Retry(
            chance.choice((2, 3, 4)), chance.choice((50, 400, 3_000)), 2.0, 8_000, 0.2
        )
    if chance.random() < 0.35:
        more["timeout"] = chance.choice((1_500, 4_000, 9_000))
    if chance.random() < 0.1:
        more["total_timeout"] = chance.choice((6_000, 20_000))
    task = Task(chance.choice(FUNCTIONS))
    if dice < 0.32:
        over = list(range(chance.choice((0, 1, 2, 4))))
        kind: Task | Map | Subplaybook = Map(over, task, concurrency=chance.choice((0, 1, 2)))
    elif dice < 0.4 and number >= PLAIN:
        kind = Subplaybook(f"a/p{1 + chance.randrange(PLAIN - 1)}", 0)
    else:
        kind = task
    return Node(code, kind, join=join, **more)


def _edge(chance: random.Random, source: str, target: str) -> Edge:
    dice = chance.random()
    if dice < 0.6:
        return Edge(source, target)
    if dice < 0.8:
        return Edge(source, target, EdgeKind.CHOICE, chance.choice(_CONDITIONS))
    return Edge(source, target, EdgeKind.ERROR, codes=chance.choice(((), (BOOM,), ("TIMEOUT",))))


def _sensible(edges: list[Edge]) -> list[Edge]:
    """Every node that decides has a way out where no condition holds."""
    made = list(edges)
    for source in dict.fromkeys(e.source for e in edges if e.kind is EdgeKind.CHOICE):
        targets = [e.target for e in edges if e.source == source and e.kind is EdgeKind.CHOICE]
        made.append(Edge(source, targets[0], EdgeKind.OTHERWISE))
    return made
