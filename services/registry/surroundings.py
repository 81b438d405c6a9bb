"""What a playbook calls, as far as the registry knows it: for the checks that need it."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from typing import Any

from engine.core.checks.dead_ends import certain_calls
from engine.core.checks.flow import Signature
from engine.core.playbook import UNSET, Map, Node, Playbook, Repeat, Subplaybook
from engine.errors import MagicflowError
from engine.snapshots import keys
from engine.snapshots.library import parse_version, unpack
from engine.snapshots.mirror import Mirror
from engine.snapshots.port import Snapshots
from magicflow.v1.worker_pb2 import Function

MAX_LOADED = 200  # playbooks behind those that a published one calls itself

Callee = tuple[str, int]  # app/name, snapshot; 0: the active one


class Surroundings:
    """Implements `engine.core.checks.flow.Known` with what `load` has found."""

    def __init__(self, snapshots: Snapshots, functions: Mirror) -> None:
        self._snapshots = snapshots
        self._functions = functions
        self._playbooks: dict[Callee, Playbook | None] = {}
        self._missing: dict[Callee, str] = {}
        self._ending: set[Callee] = set()  # no way from these leads round

    async def load(self, playbook: Playbook) -> None:
        """Everything that the playbook calls, and what that calls, as it stands now. What
        cannot be read is unknown. Errors: `Unavailable`."""
        todo = deque(callees(playbook))
        most = len(todo) + MAX_LOADED
        while todo and len(self._playbooks) < most:
            callee = todo.popleft()
            if callee not in self._playbooks:
                found = await self._find(callee)
                self._playbooks[callee] = found
                todo += callees(found) if found is not None else ()

    async def _find(self, callee: Callee) -> Playbook | None:
        name, snapshot_id = callee
        number = await self._snapshots.get(keys.name(name))
        if number is None:
            self._missing[callee] = "PLAYBOOK_NOT_FOUND"
            return None
        playbook_id = int(number.value)
        if not snapshot_id:
            active = await self._snapshots.get(keys.active(playbook_id))
            if active is None:
                self._missing[callee] = "PLAYBOOK_NOT_ACTIVE"
                return None
            snapshot_id = parse_version(active.value)
        entry = await self._snapshots.get(keys.snapshot(playbook_id, snapshot_id))
        if entry is None:
            self._missing[callee] = "SNAPSHOT_NOT_FOUND"
            return None
        try:
            return unpack(entry.value)
        except MagicflowError:
            return None

    def missing(self, callee: Callee) -> str:
        """The code that a call would fail with now; empty when it would find its snapshot."""
        return self._missing.get(callee, "")

    def function(self, name: str) -> Signature | None:
        data = self._functions.entries.get(keys.function(name))
        if data is None:
            return None
        function = Function.FromString(data)
        return Signature(_schema(function.input_schema), _schema(function.output_schema))

    def playbook(self, name: str, snapshot_id: int) -> Signature | None:
        found = self._playbooks.get((name, snapshot_id))
        if found is None:
            return None
        return Signature(_set(found.input_schema), _set(found.output_schema))

    def ring(self, playbook: Playbook, node: Node) -> list[str]:
        """The names on a way of calls from the node back to the playbook itself, through at least
        one other; empty without one. What is pinned is an older one, and followed as such."""
        itself = (playbook.full_name, 0)
        start = _callee(node)
        if start is None or start == itself:
            return []
        ways: list[tuple[Callee, ...]] = [(start,)]
        seen = {start}
        while ways:
            way = ways.pop()
            for further in self._calls(way[-1]):
                if further == itself:
                    return [_written(callee) for callee in (itself, *way, itself)]
                if further not in seen:
                    seen.add(further)
                    ways.append((*way, further))
        return []

    def endless(self, playbook: Playbook, node: Node) -> list[str]:
        """The names on a way of calls that begins with the node's and goes on with those that
        every run makes, if it comes to a playbook for the second time, through at least one
        other; empty without one."""
        itself = (playbook.full_name, 0)
        start = _callee(node)
        if start is None or start == itself:
            return []
        return [_written(callee) for callee in self._way_round((itself, start))]

    def _way_round(self, way: tuple[Callee, ...]) -> tuple[Callee, ...]:
        """Not by calling itself: a playbook may call a thousand others that call each other."""
        here = dict.fromkeys(way)  # the way, and what is on it
        left = [iter(self._certain_calls(way[-1]))]
        while left:
            further = next(left[-1], None)
            if further is None:
                left.pop()
                self._ending.add(here.popitem()[0])
            elif further in here:
                return (*here, further)
            elif further not in self._ending:
                here[further] = None
                left.append(iter(self._certain_calls(further)))
        return ()

    def _certain_calls(self, callee: Callee) -> list[Callee]:
        found = self._playbooks.get(callee)
        calls = () if found is None else map(_callee, certain_calls(found))
        return [call for call in calls if call is not None]

    def _calls(self, callee: Callee) -> Iterator[Callee]:
        found = self._playbooks.get(callee)
        return callees(found) if found is not None else iter(())


def callees(playbook: Playbook) -> Iterator[Callee]:
    """The playbooks that one calls."""
    for node in playbook.nodes:
        callee = _callee(node)
        if callee is not None:
            yield callee


def _callee(node: Node) -> Callee | None:
    body = node.kind.body if isinstance(node.kind, Map) else node.kind
    if isinstance(body, Subplaybook | Repeat):
        return body.playbook, body.snapshot_id
    return None


def _written(callee: Callee) -> str:
    name, snapshot_id = callee
    return f"{name}@{snapshot_id}" if snapshot_id else name


def _set(schema: Any) -> Any | None:
    return None if schema is UNSET else schema


def _schema(data: bytes) -> Any | None:
    """None where a worker registered nothing that can be read."""
    try:
        return json.loads(data) if data else None
    except (ValueError, RecursionError):
        return None
