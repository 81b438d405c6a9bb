"""What a playbook calls, as far as the registry knows it: for the checks that need it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from engine.core.checks.flow import Signature
from engine.core.playbook import UNSET, Map, Node, Playbook, Repeat, Subplaybook
from engine.errors import MagicflowError
from engine.snapshots import keys
from engine.snapshots.library import parse_version, unpack
from engine.snapshots.mirror import Mirror
from engine.snapshots.port import Snapshots
from magicflow.v1.worker_pb2 import Function

MAX_LOADED = 200  # playbooks that are looked at for one that is published

Callee = tuple[str, int]  # app/name, snapshot; 0: the active one


class Surroundings:
    """Implements `engine.core.checks.flow.Known` with what `load` has found."""

    def __init__(self, snapshots: Snapshots, functions: Mirror) -> None:
        self._snapshots = snapshots
        self._functions = functions
        self._playbooks: dict[Callee, Playbook | None] = {}

    async def load(self, playbook: Playbook) -> None:
        """Everything that the playbook calls, and what that calls, as it stands now. What
        cannot be read is unknown. Errors: `Unavailable`."""
        todo = list(callees(playbook))
        while todo and len(self._playbooks) < MAX_LOADED:
            callee = todo.pop()
            if callee not in self._playbooks:
                found = await self._find(callee)
                self._playbooks[callee] = found
                todo += callees(found) if found is not None else ()

    async def _find(self, callee: Callee) -> Playbook | None:
        name, snapshot_id = callee
        number = await self._snapshots.get(keys.name(name))
        if number is None:
            return None
        playbook_id = int(number.value)
        if not snapshot_id:
            active = await self._snapshots.get(keys.active(playbook_id))
            if active is None:
                return None
            snapshot_id = parse_version(active.value)
        entry = await self._snapshots.get(keys.snapshot(playbook_id, snapshot_id))
        try:
            return None if entry is None else unpack(entry.value)
        except MagicflowError:
            return None

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
        one other; empty without one."""
        start = _callee(node)
        if start is None or start[0] == playbook.full_name:
            return []
        ways = [(start, [start[0]])]
        seen = {start}
        while ways:
            callee, way = ways.pop()
            found = self._playbooks.get(callee)
            for further in callees(found) if found is not None else ():
                if further[0] == playbook.full_name:
                    return [playbook.full_name, *way, playbook.full_name]
                if further not in seen:
                    seen.add(further)
                    ways.append((further, [*way, further[0]]))
        return []


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


def _set(schema: Any) -> Any | None:
    return None if schema is UNSET else schema


def _schema(data: bytes) -> Any | None:
    """None where a worker registered nothing that can be read."""
    try:
        return json.loads(data) if data else None
    except (ValueError, RecursionError):
        return None
