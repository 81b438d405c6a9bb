"""Documents: text to data to playbook, and back."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.core.playbook import (
    UNSET,
    Compensation,
    Edge,
    EdgeKind,
    Hook,
    Join,
    Map,
    Node,
    Nop,
    Playbook,
    Repeat,
    Retry,
    Sleep,
    Subplaybook,
    Task,
    canonical,
    checksum,
)
from engine.document.examine import examine_playbook, examine_text
from engine.document.reading import to_data, to_playbook
from engine.document.shape import check_shape
from engine.document.text import read_text
from engine.wire import playbooks as wire

WHOLE = """
playbook: order
app: shop
description: Reserve and pay.
input: {type: object}
env: {region: cn}
timeout: 1h
nodes:
  reserve: {task: inventory/reserve, timeout: 5s, input: {sku: $$$.sku},
            retry: {attempts: 3, backoff: 200ms, not_on: [SOLD_OUT]}}
  pay: {task: pay, timeout: 30s}
  refund: {task: refund, before: [check]}
  done: {nop: {}, join: any}
edges:
  - {from: reserve, to: pay, when: $.reserve.total > 1, priority: 1}
  - {from: reserve, to: done, otherwise: true}
  - {from: pay, to: done}
  - {from: pay, to: refund, on: timeout}
output: {paid: $.pay}
"""


def test_a_document_is_read_in_full() -> None:
    playbook = examine_text(WHOLE).playbook
    assert playbook is not None
    reserve, pay, refund, done = playbook.nodes
    assert (playbook.full_name, playbook.timeout) == ("shop/order", 3_600_000)
    assert reserve.kind == Task("inventory/reserve")
    assert pay.kind == Task("shop/pay")
    assert reserve.retry == Retry(3, 200, not_on=("SOLD_OUT",))
    assert refund.before == ("check",)
    assert (done.kind, done.join) == (Nop(), Join.ANY)
    assert [edge.kind for edge in playbook.edges] == [
        EdgeKind.CHOICE,
        EdgeKind.OTHERWISE,
        EdgeKind.PARALLEL,
        EdgeKind.ERROR,
    ]
    assert playbook.edges[3].codes[0] == "TIMEOUT"
    assert examine_text(WHOLE).findings == ()


def test_json_and_yaml_of_one_content_are_one_playbook() -> None:
    as_yaml = examine_text(WHOLE).playbook
    text = json.dumps(yaml.load(WHOLE, Loader=yaml.BaseLoader) | {"env": {"region": "cn"}})
    document, findings = read_text(text)
    assert document is not None
    assert not findings
    data = read_text(WHOLE)[0]
    assert data is not None
    as_json = examine_text(json.dumps(data.data)).playbook
    assert as_json is not None
    assert as_yaml is not None
    assert checksum(as_json) == checksum(as_yaml)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("on", "on"),
        ("yes", "yes"),
        ("no", "no"),
        ("off", "off"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("12", 12),
        ("-3", -3),
        ("012", "012"),
        ("0o14", "0o14"),
        ("0x1f", "0x1f"),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("1.5", 1.5),
        ("1e3", 1000.0),
        ("-.5", -0.5),
        ("2014-01-02", "2014-01-02"),
        (".inf", ".inf"),
        (".nan", ".nan"),
        ("99999999999999999999", 99999999999999999999),
        ('"12"', "12"),
        ("größe", "größe"),
        ("<<", "<<"),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    document, findings = read_text(f"key: {text}")
    assert document is not None
    assert not findings
    assert document.data == {"key": value}
    assert type(document.data["key"]) is type(value)


def test_a_key_is_always_text() -> None:
    document, _ = read_text("{on: 1, 2: 2, true: 3, null: 4}")
    assert document is not None
    assert document.data == {"on": 1, "2": 2, "true": 3, "null": 4}


def test_an_anchor_stands_for_its_value() -> None:
    document, _ = read_text("{a: &x [1], b: *x}")
    assert document is not None
    assert document.data == {"a": [1], "b": [1]}


def codes(text: str) -> list[str]:
    return [finding.code for finding in examine_text(text).findings]


def test_json_may_write_a_character_as_two_halves() -> None:
    document, _ = read_text(json.dumps({"smile 😀": "ok 😀"}))
    assert document is not None
    assert document.data == {"smile 😀": "ok 😀"}


def test_a_bomb_of_aliases_is_bounded() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    assert codes("\n".join(lines)) == ["DOCUMENT_TOO_LARGE"]


def test_an_alias_to_itself_is_bounded() -> None:
    assert codes("a: &a [*a]") == ["DOCUMENT_TOO_LARGE"]


@pytest.mark.parametrize("depth", [66, 500, 100_000])
@pytest.mark.parametrize("brackets", ["[]", "{}"])
def test_a_bomb_of_depth_is_bounded(depth: int, brackets: str) -> None:
    opening = "[" if brackets == "[]" else "{a: "
    text = opening * depth + brackets[1] * depth
    assert codes(text) == ["DOCUMENT_TOO_LARGE"]


@pytest.mark.parametrize(
    "value",
    ["!!int ''", "!!float ''", "!!bool x", "!!timestamp x", "!!binary x", "!!null x",
     "!!python/object:os.system x", "!x y", "!!binary aGk=", "!!timestamp 2001-01-01",
     "!!float .nan", '"\\ud800"', "1e999", "9" * 5_000, "!!int 0b", "!!omap [a]", "!!set {a}"],
)  # fmt: skip
def test_no_value_makes_reading_raise(value: str) -> None:
    examined = examine_text(f"playbook: p\napp: a\nnodes: {{a: {{task: f, input: {value}}}}}")
    if examined.playbook is not None and not examined.errors:
        canonical(examined.playbook)


# Round trips.

names = st.text("abcxyz019_-", max_size=5).map("n".__add__)
targets = st.tuples(names, names).map("/".join)
milliseconds = st.integers(0, 10**9)
spans = st.integers(1, 10**9)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
templates = st.just(UNSET) | values
code_lists = st.lists(st.text("ABC_", min_size=1, max_size=6), max_size=3).map(tuple)
callees = st.builds(Subplaybook, targets, st.integers(0, 10**9))
kinds = st.one_of(
    st.builds(Task, targets),
    st.just(Nop()),
    callees,
    st.builds(
        Map,
        values,
        st.builds(Task, targets) | callees,
        st.integers(0, 100),
        st.just(0),
        st.sampled_from((0.0, 10.0, 2.5)),
    ),
    st.builds(Map, values, st.builds(Task, targets), st.integers(0, 9), st.integers(0, 9)),
    st.builds(Hook, milliseconds),
    st.builds(Sleep, spans),
    st.builds(Sleep, until=st.just("$$$.at")),
    st.builds(Repeat, targets, st.integers(0, 9), st.just("$$ > 1"), st.integers(1, 9)),
)
retries = st.builds(
    Retry,
    st.integers(1, 1_000),
    spans,
    st.floats(1, 100),
    spans,
    st.floats(0, 1),
    code_lists,
    code_lists,
)
words = st.text("abcXYZ019_.-", max_size=4).map("c".__add__)
commands = st.lists(words, max_size=2).map(tuple)


@st.composite
def playbooks(draw: st.DrawFn) -> Playbook:
    codes = draw(st.lists(st.text("abcXYZ019_", max_size=4).map("n".__add__),
                          min_size=1, max_size=4, unique=True))  # fmt: skip
    nodes = []
    for code in codes:
        kind = draw(kinds)
        compensate = st.none() | st.builds(Compensation, targets, templates)
        nodes.append(
            Node(
                code,
                kind,
                draw(templates),
                draw(st.sampled_from(Join)),
                *(draw(milliseconds) for _ in range(4)),
                retry=draw(retries),
                priority=draw(st.integers(0, 9)),
                before=draw(commands),
                after=draw(commands),
                env=draw(st.just(UNSET) | st.dictionaries(texts, values, max_size=2)),
                compensate=draw(compensate),
                affinity=draw(st.booleans()),
                hook_after=isinstance(kind, Task) and draw(st.booleans()),
                description=draw(texts),
                tags=tuple(draw(st.lists(st.text("ab", min_size=1, max_size=3), max_size=2))),
            )
        )
    return Playbook(
        draw(names),
        draw(names),
        tuple(nodes),
        tuple(draw(st.lists(edges(codes), max_size=4))),
        draw(texts),
        draw(st.just(UNSET) | st.just({"type": "object"}) | st.booleans()),
        draw(st.just(UNSET) | st.just({})),
        draw(st.dictionaries(texts, values, max_size=2)),
        draw(milliseconds),
        draw(templates),
    )


def edges(codes: list[str]) -> st.SearchStrategy[Edge]:
    end, priority = st.sampled_from(codes), st.integers(0, 99)
    return st.one_of(
        st.builds(Edge, end, end),
        st.builds(Edge, end, end, st.just(EdgeKind.CHOICE), st.just("$$ == 1"), priority),
        st.builds(Edge, end, end, st.just(EdgeKind.OTHERWISE)),
        st.builds(Edge, end, end, st.just(EdgeKind.ERROR), st.just(""), priority, code_lists),
    )


some = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@some
@given(playbooks())
def test_a_playbook_comes_back_from_its_document(playbook: Playbook) -> None:
    data = to_data(playbook)
    assert check_shape(data) == []
    assert to_playbook(data) == playbook
    document, findings = read_text(json.dumps(data))
    assert document is not None
    assert not findings
    assert document.data == data
    assert canonical(to_playbook(document.data)) == canonical(playbook)


@some
@given(playbooks())
def test_a_playbook_comes_back_from_its_message(playbook: Playbook) -> None:
    message = wire.playbook_message(playbook)
    again = wire.playbook(type(message).FromString(message.SerializeToString()))
    assert again == playbook
    assert checksum(again) == checksum(playbook)


@some
@given(playbooks())
def test_a_playbook_as_a_message_is_examined_like_its_text(playbook: Playbook) -> None:
    text = examine_text(json.dumps(to_data(playbook)))
    message = examine_playbook(playbook)
    assert sorted((f.code, f.path) for f in text.findings) == sorted(
        (f.code, f.path) for f in message.findings
    )


# Any text.

PIECES = ["&a ", "*a", "!!int ", "? ", "- ", ": ", "{", "}", "[", "]", "\n", "  ", "|", ">", "'",
          '"', "#", "%", "@", "`", "\t", "\x00", "\u2028", "on: error", "when: $.a", "${ 1 }",
          "1e999", "\\ud800", "---\n", "...\n", "<<: *a", "nodes:", "$$$."]  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=60) | st.lists(st.sampled_from(PIECES), max_size=15).map("".join))
def test_no_text_makes_examining_raise(text: str) -> None:
    examined = examine_text(text)
    assert examined.playbook is not None or examined.findings


@settings(max_examples=250, deadline=None)
@given(st.data())
def test_no_mutation_of_a_document_makes_examining_raise(data: Any) -> None:
    text = WHOLE
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text)))
        length = data.draw(st.integers(0, 12))
        text = text[:at] + data.draw(st.sampled_from(PIECES)) + text[at + length :]
    examined = examine_text(text)
    if examined.playbook is not None and not examined.errors:
        canonical(examined.playbook)
        wire.playbook_message(examined.playbook)
