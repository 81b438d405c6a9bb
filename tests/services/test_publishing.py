"""What publishing finds with the help of the registry: schemas of what is called, rings."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

import pytest

from engine.clock import Clock
from engine.core.findings import Finding
from engine.document.examine import examine_text
from engine.snapshots import keys
from engine.snapshots.library import pack, version
from engine.snapshots.memory import MemorySnapshots
from engine.snapshots.mirror import Mirror
from engine.store.registry import RegistryStore
from magicflow.v1.worker_pb2 import Function
from services.registry.publishing import Publishing


class NoGrants:
    async def grants(self, app: str) -> list[Any]:
        return []


class Registry:
    """A space with functions and live playbooks in it."""

    def __init__(self) -> None:
        self.snapshots = MemorySnapshots()
        self.entries: dict[str, bytes] = {}
        self._count = 0

    def offers(self, name: str, input: Any = None, output: Any = None) -> None:
        def text(schema: Any) -> bytes:
            return b"" if schema is None else json.dumps(schema).encode()

        function = Function(name=name, input_schema=text(input), output_schema=text(output))
        self.entries[keys.function(name)] = function.SerializeToString()

    async def has(self, document: str) -> None:
        playbook = examine_text(document).playbook
        assert playbook is not None
        self._count += 1
        number = self._count
        await self.snapshots.put(keys.snapshot(number, number), pack(playbook))
        await self.snapshots.put(keys.name(playbook.full_name), str(number).encode())
        await self.snapshots.put(keys.active(number), version(number))

    async def finds(self, document: str) -> list[Finding]:
        publishing = Publishing(
            cast(RegistryStore, NoGrants()),
            self.snapshots,
            cast(Mirror, SimpleNamespace(entries=self.entries)),
            Clock(),
        )
        examined = await publishing.examine(document, strict=False)
        return [finding for finding in examined.findings if finding.code != "FUNCTION_UNKNOWN"]


@pytest.fixture
def registry() -> Registry:
    return Registry()


HEAD = "playbook: top\napp: a\n"
PRICED = {
    "type": "object",
    "properties": {"total": {"type": "integer"}},
    "required": ["total"],
    "additionalProperties": False,
}


async def test_a_field_that_a_function_never_returns_is_found(registry: Registry) -> None:
    registry.offers("a/price", output=PRICED)
    [found] = await registry.finds(
        HEAD + "nodes:\n  p: {task: price}\n  q: {task: f, input: $.p.totel}\n"
        "edges: [{from: p, to: q}]"
    )
    assert (found.code, found.path, found.line) == ("FIELD_UNKNOWN", "nodes.q.input", 5)
    assert "total" in found.mend
    assert not found.warning


async def test_an_input_that_can_never_fit_a_function_is_found(registry: Registry) -> None:
    registry.offers("a/pay", input={"type": "object", "properties": {"n": {"type": "integer"}}})
    found = await registry.finds(HEAD + "nodes: {p: {task: pay, input: {n: many}}}")
    assert [finding.code for finding in found] == ["TYPE_CLASH"]


async def test_an_input_that_can_never_fit_a_called_playbook_is_found(registry: Registry) -> None:
    await registry.has(
        "playbook: inner\napp: a\ninput: {type: object, required: [n]}\nnodes: {x: {task: f}}"
    )
    found = await registry.finds(HEAD + "nodes: {c: {playbook: inner, input: {m: 1}}}")
    assert [finding.code for finding in found] == ["TYPE_CLASH"]


async def test_what_is_not_known_is_no_fault(registry: Registry) -> None:
    document = HEAD + "nodes: {c: {playbook: nowhere}, d: {task: f, input: {x: 1}}}"
    assert await registry.finds(document) == []


async def test_a_ring_of_playbooks_is_spelled_out(registry: Registry) -> None:
    await registry.has("playbook: one\napp: a\nnodes: {x: {playbook: two}}")
    await registry.has("playbook: two\napp: a\nnodes: {x: {map: {over: [1], playbook: top}}}")
    [found] = await registry.finds(HEAD + "nodes: {c: {playbook: one}, d: {task: f}}")
    assert (found.code, found.warning) == ("RECURSION", True)
    assert "a/top -> a/one -> a/two -> a/top" in found.message
