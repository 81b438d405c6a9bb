"""What publishing finds with the help of the registry: schemas of what is called, rings."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

import pytest

from engine.clock import Clock
from engine.config import Settings
from engine.core.findings import Finding
from engine.core.playbook import Limits
from engine.document.examine import examine_text
from engine.errors import NotFound
from engine.snapshots import keys
from engine.snapshots.apps import App
from engine.snapshots.library import pack, version
from engine.snapshots.memory import MemorySnapshots
from engine.snapshots.mirror import Mirror
from engine.store.registry import RegistryStore, row_of
from magicflow.v1.worker_pb2 import Function
from services.registry.publishing import Publishing


class Grants:
    def __init__(self) -> None:
        self.apps: dict[str, App] = {}
        self._rows: list[Any] = []

    def give(self, target: str, grantee: str) -> None:
        self._rows.append(SimpleNamespace(target=target, grantee=grantee))

    async def grants(self, app: str) -> list[Any]:
        return self._rows

    async def app(self, name: str) -> Any:
        if name not in self.apps:
            raise NotFound(f"there is no app {name}")
        return SimpleNamespace(**row_of(self.apps[name]))


class Registry:
    """A space with functions and live playbooks in it."""

    def __init__(self) -> None:
        self.snapshots = MemorySnapshots()
        self.entries: dict[str, bytes] = {}
        self.grants = Grants()
        self.limits = Limits()
        self._count = 0

    def offers(self, name: str, input: Any = None, output: Any = None) -> None:
        def text(schema: Any) -> bytes:
            return b"" if schema is None else json.dumps(schema).encode()

        function = Function(name=name, input_schema=text(input), output_schema=text(output))
        self.entries[keys.function(name)] = function.SerializeToString()

    async def has(self, document: str, live: bool = True) -> int:
        """Publishes the playbook; the number is that of its snapshot."""
        playbook = examine_text(document).playbook
        assert playbook is not None
        self._count += 1
        number = self._count
        await self.snapshots.put(keys.snapshot(number, number), pack(playbook))
        await self.snapshots.put(keys.name(playbook.full_name), str(number).encode())
        if live:
            await self.snapshots.put(keys.active(number), version(number))
        return number

    async def finds(self, document: str) -> list[Finding]:
        """What is wrong, but for functions that nobody offers."""
        found = await self.finds_all(document)
        return [finding for finding in found if finding.code != "FUNCTION_UNKNOWN"]

    async def finds_all(self, document: str, strict: bool = False) -> list[Finding]:
        publishing = Publishing(
            cast(RegistryStore, self.grants),
            self.snapshots,
            cast(Mirror, SimpleNamespace(entries=self.entries)),
            Clock(),
            self.limits,
        )
        return list((await publishing.examine(document, strict)).findings)


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


async def test_the_schema_of_what_is_not_known_is_no_fault(registry: Registry) -> None:
    assert await registry.finds(HEAD + "nodes: {d: {task: f, input: {x: 1}}}") == []


# What is called.


async def test_what_undoes_a_node_needs_a_grant_like_any_function(registry: Registry) -> None:
    document = HEAD + "nodes: {p: {task: f, compensate: {task: bank/undo}}}"
    [found] = await registry.finds(document)
    assert (found.code, found.path) == ("GRANT_MISSING", "nodes.p.compensate.task")
    assert (found.warning, found.line) == (False, 3)
    registry.grants.give("bank/undo", "a")
    assert await registry.finds(document) == []


async def test_what_undoes_a_node_is_looked_for_like_any_function(registry: Registry) -> None:
    registry.offers("a/f")
    document = HEAD + "nodes: {p: {task: f, compensate: {task: undo}}}"
    [found] = await registry.finds_all(document)
    assert (found.code, found.path) == ("FUNCTION_UNKNOWN", "nodes.p.compensate.task")
    registry.offers("a/undo")
    assert await registry.finds_all(document) == []


async def test_an_input_that_never_fits_what_undoes_a_node_is_found(registry: Registry) -> None:
    registry.offers("a/undo", input=PRICED)
    document = HEAD + "nodes: {p: {task: f, compensate: {task: undo, input: {total: much}}}}"
    [found] = await registry.finds(document)
    assert (found.code, found.path) == ("TYPE_CLASH", "nodes.p.compensate.input.total")


async def test_a_grant_for_a_whole_app_is_one_for_each_of_its_functions(registry: Registry) -> None:
    document = HEAD + "nodes: {p: {task: bank/pay}}"
    [found] = await registry.finds(document)
    assert (found.code, found.path) == ("GRANT_MISSING", "nodes.p.task")
    registry.grants.give("bank/*", "a")
    assert await registry.finds(document) == []


async def test_a_playbook_that_is_not_there_is_found(registry: Registry) -> None:
    [found] = await registry.finds(HEAD + "nodes: {c: {playbook: nowhere}}")
    assert (found.code, found.path) == ("PLAYBOOK_NOT_FOUND", "nodes.c.playbook")
    assert found.warning


async def test_a_playbook_that_is_not_live_is_found(registry: Registry) -> None:
    number = await registry.has("playbook: q\napp: a\nnodes: {x: {nop: {}}}", live=False)
    [found] = await registry.finds(
        HEAD + f"nodes: {{c: {{map: {{over: [1], playbook: q}}}}, d: {{playbook: q@{number}}}}}"
    )
    assert (found.code, found.path) == ("PLAYBOOK_NOT_ACTIVE", "nodes.c.map.playbook")
    assert found.warning


async def test_a_pinned_snapshot_that_is_not_there_is_found(registry: Registry) -> None:
    await registry.has("playbook: q\napp: a\nnodes: {x: {nop: {}}}")
    [found] = await registry.finds(
        HEAD + "nodes: {c: {repeat: {playbook: q@99, until: $$ == 1, max: 2}}}"
    )
    assert (found.code, found.path) == ("SNAPSHOT_NOT_FOUND", "nodes.c.repeat.playbook")
    assert found.warning


async def test_a_playbook_that_calls_itself_need_not_be_there_yet(registry: Registry) -> None:
    [found] = await registry.finds(HEAD + "nodes: {c: {map: {over: $$$, playbook: top}}}")
    assert (found.code, found.warning) == ("RECURSION", True)


async def test_strictly_every_warning_is_an_error(registry: Registry) -> None:
    document = HEAD + (
        "nodes: {c: {playbook: nowhere}, f: {task: f}, m: {map: {over: $$$, playbook: top}}}"
    )
    kept = await registry.finds_all(document)
    assert {f.code for f in kept} == {"PLAYBOOK_NOT_FOUND", "FUNCTION_UNKNOWN", "RECURSION"}
    assert all(finding.warning for finding in kept)
    assert not any(finding.warning for finding in await registry.finds_all(document, strict=True))


async def test_what_needs_the_registry_is_found_beside_faults_of_every_other_stage(
    registry: Registry,
) -> None:
    registry.offers("a/price", output=PRICED)
    found = await registry.finds(
        HEAD + "bogus: 1\n"
        "nodes: {p: {task: price}, q: {task: bank/pay, input: $.p.totel}, r: {playbook: nowhere},\n"
        "  s: {task: 12}, t: {nop: {}}}\n"
        "edges: [{from: p, to: q}, {from: r, to: s}, {from: s, to: r}, {from: s, to: tt}]"
    )
    assert {(finding.code, finding.path) for finding in found} == {
        ("UNKNOWN_KEY", "bogus"),
        ("FIELD_UNKNOWN", "nodes.q.input"),
        ("GRANT_MISSING", "nodes.q.task"),
        ("PLAYBOOK_NOT_FOUND", "nodes.r.playbook"),
        ("WRONG_TYPE", "nodes.s.task"),
        ("GRAPH_CYCLE", "edges[1]"),
        ("EDGE_DANGLING", "edges[3].to"),
    }


async def test_without_an_app_the_registry_tells_nothing(registry: Registry) -> None:
    registry.offers("b/price", output=PRICED)
    [found] = await registry.finds("playbook: top\nnodes: {p: {task: b/price, input: $$$.x}}")
    assert (found.code, found.path) == ("MISSING_KEY", "")


async def test_the_bounds_of_a_playbook_are_settings_of_the_registry(registry: Registry) -> None:
    registry.limits = Settings(max_nodes=1, max_document=1_024).limits
    document = HEAD + "nodes: {a: {task: f}, b: {task: f}}"
    [found] = await registry.finds(document)
    assert (found.code, found.message) == ("BUDGET_EXCEEDED", "2 nodes; 1 are allowed")
    [found] = await registry.finds(document + "#" * 1_000)
    assert found.code == "DOCUMENT_TOO_LARGE"


async def test_an_app_may_have_tighter_bounds_and_never_wider_ones(registry: Registry) -> None:
    document = HEAD + "nodes: {a: {task: f}, b: {task: f}}\nedges: [{from: a, to: b}]"
    registry.grants.apps = {"a": App(max_nodes=1), "other": App(max_nodes=1)}
    [found] = await registry.finds(document)
    assert (found.code, found.message) == ("BUDGET_EXCEEDED", "2 nodes; 1 are allowed")
    assert await registry.finds(document.replace("app: a", "app: nobody")) == []
    registry.grants.apps = {"a": App(max_document=40)}
    assert [f.code for f in await registry.finds(document)] == ["DOCUMENT_TOO_LARGE"]
    registry.limits = Settings(max_nodes=1).limits
    registry.grants.apps = {"a": App(max_nodes=2_000)}
    assert [f.code for f in await registry.finds(document)] == ["BUDGET_EXCEEDED"]


# Rings.


async def test_a_ring_of_playbooks_is_spelled_out(registry: Registry) -> None:
    await registry.has("playbook: one\napp: a\nnodes: {x: {playbook: two}}")
    await registry.has("playbook: two\napp: a\nnodes: {x: {map: {over: [1], playbook: top}}}")
    [found] = await registry.finds(HEAD + "nodes: {c: {playbook: one}, d: {task: f}}")
    assert (found.code, found.warning) == ("RECURSION", True)
    assert "a/top -> a/one -> a/two -> a/top" in found.message


ONE = "playbook: one\napp: a\nnodes: {x: {playbook: two}}"


async def test_a_ring_that_every_run_goes_round_is_an_error(registry: Registry) -> None:
    await registry.has(ONE)
    await registry.has("playbook: two\napp: a\nnodes: {x: {playbook: top}}")
    [found] = await registry.finds(HEAD + "nodes: {c: {playbook: one}, d: {task: f}}")
    assert (found.code, found.path, found.warning) == ("RECURSION", "nodes.c", False)
    assert "a/top -> a/one -> a/two -> a/top" in found.message


async def test_a_ring_of_others_that_every_run_falls_into_is_an_error(registry: Registry) -> None:
    await registry.has(ONE)
    await registry.has("playbook: two\napp: a\nnodes: {x: {playbook: one}}")
    [found] = await registry.finds(HEAD + "nodes: {c: {playbook: one}}")
    assert (found.code, found.warning) == ("RECURSION", False)
    assert "a/top -> a/one -> a/two -> a/one" in found.message


@pytest.mark.parametrize("where", ["top", "two"])
async def test_a_ring_with_a_condition_in_it_is_a_warning(registry: Registry, where: str) -> None:
    def call(name: str) -> str:
        if name != where:
            return "nodes: {c: {playbook: %s}}"
        return (
            "nodes: {a: {nop: {}}, c: {playbook: %s}, e: {nop: {}}}\n"
            "edges: [{from: a, to: c, when: $$.n > 0}, {from: a, to: e, otherwise: true}]"
        )

    await registry.has(ONE)
    await registry.has("playbook: two\napp: a\n" + call("two") % "top")
    [found] = await registry.finds(HEAD + call("top") % "one")
    assert (found.code, found.path, found.warning) == ("RECURSION", "nodes.c", True)


async def test_a_pinned_snapshot_in_the_ring_is_an_older_one(registry: Registry) -> None:
    older = await registry.has(HEAD + "nodes: {d: {task: f}}")
    await registry.has(f"playbook: one\napp: a\nnodes: {{x: {{playbook: top@{older}}}}}")
    assert await registry.finds(HEAD + "nodes: {c: {playbook: one}}") == []


async def test_a_ring_that_no_single_way_shows_is_found(registry: Registry) -> None:
    """Two calls of one playbook, whose callees call each other."""
    await registry.has(ONE)
    await registry.has("playbook: two\napp: a\nnodes: {x: {playbook: one}, y: {nop: {}}}")
    await registry.has("playbook: both\napp: a\nnodes: {x: {playbook: one}, y: {playbook: two}}")
    [found] = await registry.finds(HEAD + "nodes: {c: {playbook: both}}")
    assert (found.code, found.warning) == ("RECURSION", False)


async def test_a_thousand_playbooks_that_call_each_other_in_a_row_are_followed_to_their_end(
    registry: Registry,
) -> None:
    count = 1_200
    for number in range(count - 1):
        call = f"{{x: {{playbook: p{number + 1}}}}}"
        await registry.has(f"playbook: p{number}\napp: a\nnodes: {call}")
    await registry.has(f"playbook: p{count - 1}\napp: a\nnodes: {{x: {{task: f}}}}")
    nodes = ", ".join(f"c{number}: {{playbook: p{number}}}" for number in range(count))
    assert await registry.finds(HEAD + f"nodes: {{{nodes}}}") == []
