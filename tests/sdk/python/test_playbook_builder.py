"""A graph drawn in code is the document that somebody would have written."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from engine.document.examine import examine_text
from magicflow import Invalid, Playbook, Retry

WRITTEN = """
playbook: order
app: shop
description: Sells what is there
input:
  type: object
  required: [sku]
env: {currency: EUR}
timeout: 10m
nodes:
  price: {task: shop/price, input: {sku: $$$.sku}, timeout: 5s, priority: 7}
  pay:
    task: shop/pay
    retry: {attempts: 5, backoff: 200ms, factor: 3.0, jitter: 0.1, not_on: [CARD_STOLEN]}
    compensate: {task: shop/refund}
  ask: {hook: {timeout: 1h}}
  rest: {sleep: 30s}
  gather: {nop: {}, join: any}
  pack: {map: {over: $$$.lines, task: shop/pack, concurrency: 4, tolerate: 10%}}
  ship: {playbook: shop/shipping}
  poll: {repeat: {playbook: shop/arrived, until: "$$.there", max: 10}}
edges:
  - {from: price, to: pay, when: $.price.total > 0, priority: 3}
  - {from: price, to: gather, otherwise: true}
  - {from: pay, to: ask, "on": error, codes: [CARD_REFUSED]}
  - {from: pay, to: rest}
  - {from: ask, to: gather}
  - {from: rest, to: gather}
  - {from: gather, to: pack}
  - {from: pack, to: ship}
  - {from: ship, to: poll}
output: $.poll
"""


def drawn() -> Playbook:
    book = Playbook(
        "order",
        "shop",
        description="Sells what is there",
        input={"type": "object", "required": ["sku"]},
        env={"currency": "EUR"},
        timeout="10m",
        output="$.poll",
    )
    price = book.task("price", "shop/price", input={"sku": "$$$.sku"}, timeout="5s", priority=7)
    pay = book.task(
        "pay",
        "shop/pay",
        retry=Retry(5, backoff="200ms", factor=3.0, jitter=0.1, not_on=("CARD_STOLEN",)),
        compensate={"task": "shop/refund"},
    )
    ask = book.hook("ask", timeout="1h")
    rest = book.sleep("rest", "30s")
    gather = book.nop("gather", join="any")
    pack = book.map("pack", "$$$.lines", task="shop/pack", concurrency=4, tolerate="10%")
    ship = book.call("ship", "shop/shipping")
    poll = book.repeat("poll", "shop/arrived", until="$$.there", max=10)
    book.edge(price, pay, when="$.price.total > 0", priority=3)
    book.edge(price, gather, otherwise=True)
    book.edge(pay, ask, on="error", codes=("CARD_REFUSED",))
    pay >> rest
    ask >> gather
    rest >> gather >> pack
    pack >> ship >> poll
    return book


def test_the_document_is_the_one_that_is_written_by_hand() -> None:
    assert drawn().document() == yaml.safe_load(WRITTEN)


def test_the_server_finds_nothing_wrong_with_it() -> None:
    found = {finding.code for finding in examine_text(drawn().to_json()).findings}
    assert found == set()


def test_the_server_understands_both_alike() -> None:
    assert examine_text(drawn().to_json()).playbook == examine_text(WRITTEN).playbook


def test_the_smallest_playbook_has_one_node_and_no_edges() -> None:
    book = Playbook("one", "shop")
    book.task("a", "shop/a")
    assert book.document() == {
        "playbook": "one",
        "app": "shop",
        "nodes": {"a": {"task": "shop/a"}},
    }
    assert examine_text(book.to_json()).findings == ()


def test_arrows_draw_a_chain() -> None:
    book = Playbook("chain", "shop")
    a, b, c = (book.nop(code) for code in "abc")
    a >> b >> c
    assert book.document()["edges"] == [{"from": "a", "to": "b"}, {"from": "b", "to": "c"}]


def test_unicode_stands_in_the_text_as_it_is() -> None:
    assert "Zażółć" in Playbook("p", "shop", description="Zażółć").to_json()


def test_a_retry_says_only_what_differs() -> None:
    assert Retry(3).document() == {"attempts": 3}


def test_a_document_is_a_copy_that_can_be_changed() -> None:
    book = drawn()
    book.document()["nodes"]["price"]["task"] = "shop/other"
    book.document()["edges"].clear()
    assert book.document() == yaml.safe_load(WRITTEN)


def test_a_false_output_is_an_output() -> None:
    assert Playbook("p", "shop", output=False).document()["output"] is False


# Wrong use.


@pytest.mark.parametrize("code", ["", "1a", "a-b", "ż", "a" * 65, "a b"])
def test_a_code_that_is_none_is_refused_with_the_rule(code: str) -> None:
    with pytest.raises(Invalid, match="is no node code") as caught:
        Playbook("p", "shop").nop(code)
    assert caught.value.mend.startswith("a code is a letter")


def test_two_nodes_of_one_code_are_refused() -> None:
    book = Playbook("p", "shop")
    book.nop("a")
    with pytest.raises(Invalid, match="there are two nodes a"):
        book.sleep("a", "1s")


def test_an_unknown_option_is_refused_with_the_known_ones() -> None:
    with pytest.raises(Invalid, match="node a has no option timeuot") as caught:
        Playbook("p", "shop").task("a", "shop/a", timeuot="1s")
    assert "timeout" in caught.value.mend


def test_a_refused_node_leaves_no_trace() -> None:
    book = Playbook("p", "shop")
    with pytest.raises(Invalid):
        book.nop("a", nonsense=1)
    assert book.document()["nodes"] == {}


@pytest.mark.parametrize("retry", [3, {"attempts": 3}])
def test_a_retry_of_another_type_is_refused(retry: Any) -> None:
    with pytest.raises(Invalid, match="the retry of node a is a magicflow"):
        Playbook("p", "shop").task("a", "shop/a", retry=retry)


@pytest.mark.parametrize(
    "kinds",
    [
        {"when": "true", "otherwise": True},
        {"when": "true", "on": "error"},
        {"otherwise": True, "on": "timeout"},
    ],
)
def test_an_edge_of_two_kinds_is_refused(kinds: dict[str, Any]) -> None:
    book = Playbook("p", "shop")
    a, b = book.nop("a"), book.nop("b")
    with pytest.raises(Invalid, match="one of when, otherwise and on"):
        book.edge(a, b, **kinds)


def test_a_node_of_another_playbook_is_refused() -> None:
    stranger = Playbook("q", "shop").nop("b")
    with pytest.raises(Invalid, match="node b belongs to another playbook"):
        Playbook("p", "shop").nop("a") >> stranger


@pytest.mark.parametrize("body", [{}, {"task": "shop/a", "playbook": "shop/b"}])
def test_a_map_runs_a_task_or_a_playbook_and_not_both(body: dict[str, str]) -> None:
    with pytest.raises(Invalid, match="map a runs either a task or a playbook"):
        Playbook("p", "shop").map("a", "$.input", **body)


def test_a_value_that_json_has_not_is_refused_by_its_type() -> None:
    book = Playbook("p", "shop")
    book.nop("a", input={"x": object()})
    with pytest.raises(Invalid, match="object"):
        book.to_json()


def test_the_text_is_json() -> None:
    assert json.loads(drawn().to_json()) == drawn().document()
