"""Types through a playbook's graph: what is found, and what is left alone."""

from __future__ import annotations

from typing import Any

import pytest

from engine.core.checks.types import Signature, check_types
from engine.core.findings import Finding
from engine.document.examine import examine_text

TEXT, WHOLE, ANYTHING = {"type": "string"}, {"type": "integer"}, True


def an_object(closed: bool = True, /, **fields: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": fields,
        "required": list(fields),
        **({"additionalProperties": False} if closed else {}),
    }


class Registered:
    """Signatures by full name; `app/name@7` for a pinned playbook."""

    def __init__(self, **signatures: Signature) -> None:
        self._signatures = {f"a/{name}": signature for name, signature in signatures.items()}

    def function(self, name: str) -> Signature | None:
        return self._signatures.get(name)

    def playbook(self, name: str, snapshot_id: int) -> Signature | None:
        return self._signatures.get(f"{name}_{snapshot_id}" if snapshot_id else name)


LINE = an_object(sku=TEXT, price=WHOLE)
KNOWN = Registered(
    order=Signature(None, an_object(total=WHOLE, state={"enum": ["open", "paid"]}, note=TEXT)),
    lines=Signature(None, {"type": "array", "items": LINE}),
    opened=Signature(None, an_object(False, id=TEXT)),
    pay=Signature(an_object(amount=WHOLE, to=TEXT), an_object(id=TEXT)),
    mail=Signature(
        {
            "type": "object",
            "properties": {"to": {"$ref": "#/$defs/address"}, "copies": {"maximum": 3}},
            "required": ["to"],
            "$defs": {"address": {"type": "string", "minLength": 3}},
        }
    ),
    line=Signature(LINE, TEXT),
    older_7=Signature(TEXT, TEXT),
)


def findings(text: str, known: Registered = KNOWN) -> list[Finding]:
    examined = examine_text(f"playbook: p\napp: a\n{text}")
    assert examined.playbook is not None, examined.findings
    assert not examined.errors, examined.errors
    return check_types(examined.playbook, known)


def seen(text: str) -> list[tuple[str, str]]:
    return [(finding.code, finding.path) for finding in findings(text)]


def one(text: str) -> Finding:
    (finding,) = findings(text)
    assert finding.mend
    return finding


def after(source: str, **node: Any) -> str:
    """`o` runs the function, then `n` is the node."""
    options = ", ".join(f"{key}: {value}" for key, value in node.items())
    return f"nodes: {{o: {{task: {source}}}, n: {{{options}}}}}\nedges: [{{from: o, to: n}}]"


# References.


def test_a_field_that_a_closed_schema_lacks_is_an_error() -> None:
    finding = one(after("order", nop="{}", input="$.o.totl"))
    assert (finding.code, finding.path) == ("FIELD_UNKNOWN", "nodes.n.input")
    assert finding.message == "$.o has no field totl"
    assert finding.seen == "$.o.totl"
    assert finding.mend == "did you mean $.o.total?"
    assert not finding.warning


def test_a_field_that_an_open_schema_does_not_list_is_a_warning() -> None:
    finding = one(after("opened", nop="{}", input="{x: $$.ident}"))
    assert (finding.code, finding.path) == ("FIELD_UNKNOWN", "nodes.n.input.x")
    assert finding.message == "the schema of $$ does not list ident"
    assert finding.warning


@pytest.mark.parametrize(
    "reference",
    ["$.o.total", "$$.state", "$$", "$.o", "$$$.anything", "$._env.region", "$.o.note?"],
)
def test_a_field_that_is_there_is_fine(reference: str) -> None:
    assert seen(after("order", nop="{}", input=f'"{reference}"')) == []


@pytest.mark.parametrize("source", ["lines", "unknown", "mail"])
def test_where_nothing_is_declared_nothing_is_said(source: str) -> None:
    assert seen(after(source, nop="{}", input='"${ $.o[0].price }"')) == []


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("$.o.note.x", "$.o.note is string: it has no field x"),
        ("$.o.note[0]", "$.o.note is string, no list"),
        ("$.o[0]", "$.o is object, no list"),
        ("$.o.total[*]", "$.o.total is integer, no list"),
    ],
)
def test_a_path_into_what_has_no_inside_is_a_clash(reference: str, message: str) -> None:
    finding = one(after("order", nop="{}", input=f"'{reference}'"))
    assert (finding.code, finding.message, finding.warning) == ("TYPE_CLASH", message, False)


def test_a_path_through_items_that_finds_nothing_is_a_warning() -> None:
    finding = one(after("lines", nop="{}", input='"$.o[*].cost"'))
    assert (finding.code, finding.message) == ("FIELD_UNKNOWN", "$.o[*] has no field cost")
    assert finding.warning


def test_what_may_be_missing_by_its_writing_is_a_warning_when_it_always_is() -> None:
    assert one(after("order", nop="{}", input='"$.o.totl?"')).warning
    assert seen(after("opened", nop="{}", input='"$.o.totl?"')) == []


def test_the_trigger_has_the_type_of_the_playbooks_input() -> None:
    text = "input: {type: object, additionalProperties: false, properties: {sku: {}}}\n"
    finding = one(text + "nodes: {n: {task: f, input: $$$.qty}}")
    assert finding.message == "$$$ has no field qty"
    finding = one(text + "nodes: {n: {task: f, input: $$.qty}}")
    assert finding.message == "$$ has no field qty"


def test_an_expression_is_looked_into() -> None:
    assert one(after("order", nop="{}", input='"${ $.o.totl + 1 }"')).code == "FIELD_UNKNOWN"
    assert one(after("order", nop="{}", input='"x ${ $.o.totl } y"')).code == "FIELD_UNKNOWN"


@pytest.mark.parametrize(
    "expression",
    [
        "has($.o.totl)",
        "has($.o.totl) && $.o.totl > 1",
        "has($.o.totl) ? $.o.totl : 0",
        "$.o[?(@.nothing > 1)] == []",
    ],
)
def test_what_is_asked_for_first_may_be_missing(expression: str) -> None:
    codes = [code for code, _ in seen(after("order", nop="{}", input=f'"${{ {expression} }}"'))]
    assert "FIELD_UNKNOWN" not in codes


# What nodes give.


def test_types_pass_through_nops_and_sleeps() -> None:
    finding = one(
        "nodes: {o: {task: order}, n: {nop: {}, input: {t: $$.total}}, s: {sleep: 5s},\n"
        "        z: {nop: {}, input: $.s.x}}\n"
        "edges: [{from: o, to: n}, {from: n, to: s}, {from: s, to: z}]"
    )
    assert (finding.path, finding.message) == ("nodes.z.input", "$.s has no field x")


@pytest.mark.parametrize(
    ("node", "path", "fine"),
    [
        ("{playbook: pay, input: {amount: 1, to: x}}", "$.n.ident", False),
        ("{playbook: pay@3, input: 1}", "$.n.ident", True),
        ("{playbook: older@7, input: x}", "$.n.ident", False),
        ("{repeat: {playbook: pay, until: 'true', max: 2}, input: {amount: 1, to: x}}",
         "$.n.ident", False),
        ("{map: {over: [1], task: order}}", "$.n[0].totl", False),
        ("{map: {over: [1], task: order, tolerate: 1}}", "$.n[0].total", True),
        ("{map: {over: [1], task: order}}", "$.n.totl", False),
        ("{hook: {}}", "$.n.any", True),
        ("{task: order, hook: true}", "$.n.any", True),
        ("{task: unknown}", "$.n.any", True),
    ],
)  # fmt: skip
def test_each_kind_gives_what_it_runs(node: str, path: str, fine: bool) -> None:
    text = f"nodes: {{n: {node}, z: {{nop: {{}}, input: '{path}'}}}}\nedges: [{{from: n, to: z}}]"
    assert (seen(text) == []) is fine


def test_a_failed_node_has_an_error() -> None:
    graph = "nodes: {o: {task: order}, h: {nop: {}, input: %s}}\nedges: [{from: o, to: h%s}]"
    assert seen(graph % ("$$.error.code", ", on: error")) == []
    assert seen(graph % ("$.o.error.message", ", on: error")) == []
    assert one(graph % ("$$.total", ", on: error")).message == "$$ has no field total"
    assert one(graph % ("$$.error.reason", ", on: error")).message == "$$.error has no field reason"
    assert one(graph % ("$.o.error", "")).message == "$.o has no field error"


def test_one_of_several_sources_is_enough() -> None:
    graph = (
        "nodes: {s: {task: s}, x: {task: order}, y: {task: pay, input: {amount: 1, to: x}},\n"
        "        z: {nop: {}, input: %s}}\n"
        "edges: [{from: s, to: x, when: $$ > 1}, {from: s, to: y, otherwise: true},\n"
        "        {from: x, to: z}, {from: y, to: z}]"
    )
    assert seen(graph % "$$.id") == []
    assert seen(graph % "$$.total") == []
    assert seen(graph % "'$$.x?'") == []
    assert one(graph % "$$.other").message == "$$ has no field other"


def test_at_a_join_that_always_has_both_what_led_here_is_an_object_by_node() -> None:
    graph = (
        "nodes: {x: {task: order}, y: {task: pay, input: {amount: 1, to: x}},\n"
        "        z: {nop: {}, input: %s}}\n"
        "edges: [{from: x, to: z}, {from: y, to: z}]"
    )
    assert seen(graph % "$$.x.total") == []
    finding = one(graph % "$$.total")
    assert (finding.message, finding.mend) == ("$$ has no field total", "its fields are x, y")
    assert one(graph % "$$.y.ident").message == "$$.y has no field ident"


# What may be missing.

BRANCHES = """
nodes: {{a: {{task: a}}, b: {{task: order}}, c: {{task: c}}, d: {{nop: {{}}{join}, input: {read}}}}}
edges: [{{from: a, to: b{when}}}, {{from: a, to: c{other}}}, {{from: b, to: d}}, {{from: c, to: d}}]
"""


def branches(read: str, when: str = ", when: $$ > 1", other: str = ", otherwise: true",
             join: str = "") -> str:  # fmt: skip
    return BRANCHES.format(read=read, when=when, other=other, join=join)


def test_a_node_on_another_branch_may_be_missing() -> None:
    finding = one(branches("{t: $.b.total}"))
    assert (finding.code, finding.path) == ("VALUE_MAY_BE_MISSING", "nodes.d.input.t")
    assert finding.message == "b may have been skipped when d runs: $.b.total then leads nowhere"
    assert finding.mend == "write $.b.total? to get null instead"
    assert finding.warning


@pytest.mark.parametrize(
    "read",
    [
        "$.b",
        "'$.b.total?'",
        "'${ has($.b.total) ? $.b.total : 0 }'",
        "'${ $.b != null && $.b.total > 1 }'",
        "'${ $.c == 1 ? $.b.total : 0 }'",
    ],
)
def test_a_guarded_reading_is_fine(read: str) -> None:
    assert seen(branches(read)) == []


def test_a_branch_that_is_always_taken_is_never_missing() -> None:
    assert seen(branches("$.b.total", when="", other="")) == []
    assert seen(branches("$.b.total", when="", other=", when: $$ > 1")) == []


def test_a_join_of_any_does_not_wait() -> None:
    finding = one(branches("$.b", when="", other="", join=", join: any"))
    assert finding.message == "b may not have ended when d runs: $.b then leads nowhere"


def test_a_handled_failure_leaves_no_output() -> None:
    text = (
        "nodes: {o: {task: order}, h: {task: h}}\n"
        "edges: [{from: o, to: h, on: error}]\noutput: {t: %s}"
    )
    finding = one(text % "$.o.total")
    assert finding.message == "o may have failed at the end: $.o.total then leads nowhere"
    assert seen(text % "'$.o.total?'") == []


def test_an_expression_is_guarded_by_has() -> None:
    finding = one(branches("'${ $.b.total > 1 }'"))
    assert finding.mend == "guard it with has($.b.total)"


def test_a_condition_of_an_edge_sees_its_own_node() -> None:
    text = (
        "nodes: {o: {task: order}, x: {nop: {}}, h: {nop: {}}}\n"
        'edges: [{from: o, to: x, when: "%s"}, {from: o, to: h, on: error}]'
    )
    assert seen(text % "$.o.total > 1 && $$.total < 5") == []
    assert one(text % "$.o.error.code == 'X'").message == "$.o has no field error"


# What is taken.


def test_a_value_of_the_wrong_type_clashes() -> None:
    finding = one(after("order", task="pay", input="{amount: $.o.note, to: x}"))
    assert (finding.code, finding.path) == ("TYPE_CLASH", "nodes.n.input.amount")
    assert finding.message == "for a/pay: $.o.note is string, must be integer"
    assert finding.mend == "give a/pay what its schema allows"
    assert not finding.warning
    finding = one(after("order", task="pay", input="{amount: 1, to: $.o.total}"))
    assert finding.mend == "write ${ string($.o.total) }"


def test_missing_and_additional_fields_are_found() -> None:
    found = findings(after("order", task="pay", input="{amout: 1, to: x}"))
    assert [(f.path, f.message, f.mend) for f in found] == [
        ("nodes.n.input", "a/pay requires amount", "add amount:"),
        ("nodes.n.input.amout", "a/pay takes no amout", "did you mean amount?"),
    ]


def test_what_leads_here_is_an_input_too() -> None:
    finding = one(after("order", task="pay"))
    assert (finding.path, finding.code) == ("nodes.n", "TYPE_CLASH")
    assert finding.message == "for a/pay: what leads here lacks amount, to"


@pytest.mark.parametrize(
    ("given", "path", "says"),
    [
        ("{to: me}", ".to", "shorter than 3"),
        ("{to: 5}", ".to", "is integer, must be string"),
        ("{to: you, copies: 4}", ".copies", "greater than"),
        ("{to: $$.x, copies: 4}", ".copies", "greater than"),
        ("[1]", "", "is array, must be object"),
        ("null", "", "is null, must be object"),
    ],
)
def test_constants_are_judged_by_the_whole_schema(given: str, path: str, says: str) -> None:
    finding = one(f"nodes: {{n: {{task: mail, input: {given}}}}}")
    assert (finding.code, finding.path) == ("TYPE_CLASH", "nodes.n.input" + path)
    assert says in finding.message


@pytest.mark.parametrize(
    "given",
    [
        "{to: $$$.x}",
        "{to: '${ $$$.x }'}",
        "{to: 'a ${ $$$.x } b', copies: 2}",
        "{to: you, more: [1]}",
        "$$$",
        "'$$$.x?'",
        "'${ $$$.ok ? $$$.a : null }'",
    ],
)
def test_what_may_fit_is_fine(given: str) -> None:
    assert seen(f"nodes: {{n: {{task: mail, input: {given}}}}}") == []


@pytest.mark.parametrize(
    ("expression", "kind"),
    [
        ("size($$$.x)", "integer"),
        ("$$$.a > 1", "boolean"),
        ("$$$.a > 1 && $$$.b", "boolean"),
        ("$$$.ok ? 1 : size($$$.x)", "integer"),
        ("1 + size($$$.a)", "integer"),
        ("[1, 2]", "array"),
        ("double($$$.a) * 2.0", "number"),
        ("$$$.l.map(i, i.x)", "array"),
    ],
)
def test_expressions_have_types(expression: str, kind: str) -> None:
    finding = one(f"nodes: {{n: {{task: mail, input: {{to: '${{ {expression} }}'}}}}}}")
    assert f"is {kind}, must be string" in finding.message


def test_a_maps_items_are_inputs() -> None:
    text = "nodes: {o: {task: lines}, m: {map: {over: $.o, task: %s}%s}}\nedges: [{from: o, to: m}]"
    assert seen(text % ("line", "")) == []
    assert seen(text % ("line", ", input: {sku: $item.sku, price: $index}")) == []
    assert one(text % ("pay", "")).message == "for a/pay: an item of the list lacks amount, to"
    finding = one(text % ("line", ", input: {sku: x, price: $item.cost}"))
    assert (finding.path, finding.message) == ("nodes.m.input.price", "$item has no field cost")


def test_a_compensation_takes_what_it_undoes() -> None:
    text = "nodes: {o: {task: order, compensate: {task: pay%s}}}"
    finding = one(text % "")
    assert finding.path == "nodes.o.compensate"
    assert seen(text % ", input: {amount: $$.total, to: $.o.note}") == []
    finding = one(text % ", input: {amount: $.o.note, to: x}")
    assert finding.path == "nodes.o.compensate.input.amount"


def test_the_output_fits_its_schema() -> None:
    head = "output_schema: {type: object, properties: {t: {type: string}}, required: [t]}\n"
    text = head + "nodes: {o: {task: order}}\n%s"
    assert seen(text % "output: {t: $.o.note}") == []
    assert one(text % "output: {t: $.o.total}").path == "output.t"
    assert one(text % "output: {u: 1}").message == "output_schema requires t"
    finding = one(text % "")
    assert finding.path == "output_schema"
    assert "lacks t" in finding.message


# Lists, times, conditions.


@pytest.mark.parametrize("over", ["5", "text", "{a: 1}", "$.o.note", "'${ 1 > 2 }'", "'a ${ 1 }'"])
def test_what_a_map_goes_over_must_be_a_list(over: str) -> None:
    found = findings(after("order", map=f"{{over: {over}, task: f}}"))
    assert [(f.code, f.path) for f in found] == [("MAP_NOT_A_LIST", "nodes.n.map.over")]


@pytest.mark.parametrize("over", ["[1]", "$$$.l", "'$$$.l?'", "'${ [1] }'", "'$.o[*]'"])
def test_what_may_be_a_list_is_fine(over: str) -> None:
    assert seen(after("lines", map=f"{{over: {over}, task: f}}")) == []


@pytest.mark.parametrize("until", ["soon", "$.o", "'${ 1 > 2 }'"])
def test_a_sleep_ends_at_a_time(until: str) -> None:
    finding = one(after("order", until=until))
    assert (finding.code, finding.path) == ("TYPE_CLASH", "nodes.n.until")


@pytest.mark.parametrize("until", ["2030-01-01T00:00:00Z", "$.o.total", "$.o.note", "$$$.when"])
def test_what_may_be_a_time_is_fine(until: str) -> None:
    assert seen(after("order", until=f"'{until}'")) == []


def a_condition(text: str) -> str:
    return (
        "nodes: {o: {task: order}, n: {nop: {}}}\n"
        f'edges: [{{from: o, to: n, when: "{text}"}}, {{from: o, to: n, otherwise: true}}]'
    )


@pytest.mark.parametrize(
    ("text", "message", "mend"),
    [
        ("$.o.total == 'x'", '$.o.total is integer, "x" is string: == is always false',
         "compare values of one type"),
        ("$.o.state == 'payd'", '$.o.state is "open" or "paid", "payd" is string: == is always '
         "false", 'did you mean "paid"?'),
        ("'x' != $$.total", '"x" is string, $$.total is integer: != is always true',
         "compare values of one type"),
        ("$$.note > 5", "$$.note is string, 5 is integer: > is always an error",
         "compare values of one type"),
        ("$$.note in [1, 2]", "$$.note is string, which no item of the list is: in is always false",
         "compare values of one type"),
        ("'a' in $$.note", "$$.note is string: in needs a list",
         "write a list on the right: [1, 2]"),
        ("$$.total > 1 && !($$.note == 2)", "$$.note is string, 2 is integer: == is always false",
         "compare values of one type"),
    ],
)  # fmt: skip
def test_a_comparison_that_says_nothing_is_a_warning(text: str, message: str, mend: str) -> None:
    finding = one(a_condition(text))
    assert (finding.code, finding.path, finding.warning) == ("TYPE_CLASH", "edges[0].when", True)
    assert (finding.message, finding.mend) == (message, mend)


@pytest.mark.parametrize(
    "text",
    [
        "$$.total > 1.5",
        "$$.total == 1.0",
        "$$.note == 'x' || $$.state in ['paid', 'lost']",
        "$$.total == null",
        "$$.note.size() > 3",
        "$$.note + 'x' == 'y'",
        "size($$.note) == $$.total",
        "$$$.any == 1 && $$$.any == 'x'",
        "timestamp($$.note) > timestamp($$.note) - duration('1s')",
    ],
)
def test_a_comparison_that_may_go_either_way_is_fine(text: str) -> None:
    assert seen(a_condition(text)) == []


def test_a_condition_is_true_or_false() -> None:
    finding = one(a_condition("$$.total"))
    assert (finding.code, finding.message) == (
        "TYPE_CLASH",
        "the condition is integer, must be boolean",
    )
    assert not finding.warning


def test_a_repeat_sees_the_output_of_its_round() -> None:
    text = 'nodes: {r: {repeat: {playbook: pay, max: 3, until: "%s"}, input: {amount: 1, to: x}}}'
    assert seen(text % "$$.id == 'x' && $.r.id == 'x' && $index > 1") == []
    finding = one(text % "$$.ident == 'x'")
    assert (finding.code, finding.path) == ("FIELD_UNKNOWN", "nodes.r.repeat.until")


# Bounds.


def test_a_graph_that_is_refused_elsewhere_is_not_looked_at() -> None:
    for edges in ("{from: a, to: a}", "{from: a, to: x}"):
        examined = examine_text(
            f"playbook: p\napp: a\nnodes: {{a: {{task: order, input: $.a.x.y}}}}\nedges: [{edges}]"
        )
        assert examined.playbook is not None
        assert check_types(examined.playbook, KNOWN) == []


def test_what_is_malformed_is_left_to_others() -> None:
    examined = examine_text(
        "playbook: p\napp: a\ninput: {type: 3}\n"
        "nodes: {a: {task: order, input: $x}, b: {map: {over: '${ 1 + }', task: f}}}\n"
        "edges: [{from: a, to: b, when: 1 +}]\noutput: $.nowhere.x"
    )
    assert examined.playbook is not None
    assert check_types(examined.playbook, KNOWN) == []


@pytest.mark.parametrize(
    "schema",
    [
        7,
        "x",
        [],
        {"type": 3},
        {"properties": 5, "items": {"$ref": 1}},
        {"enum": 1, "required": "a", "allOf": {}},
    ],
)
def test_a_schema_that_is_none_is_no_reason_to_stop(schema: Any) -> None:
    known = Registered(f=Signature(schema, schema))
    text = "nodes: {a: {task: f, input: {x: 1}}, b: {task: f, input: '$.a.b[0].c'}}\n"
    findings(text + "edges: [{from: a, to: b}]", known)


def test_a_playbook_of_the_largest_size_is_checked() -> None:
    nodes = ", ".join(
        f"n{i}: {{nop: {{}}, input: {{x: '$.n{i // 2}.x.y?'}}}}" for i in range(1, 2_000)
    )
    edges = ", ".join(
        f"{{from: n{i}, to: n{i + j}, when: $$.x > {i}, priority: {j}}}"
        for i in range(1_990)
        for j in (1, 2, 3, 4)
    )
    text = f"playbook: p\napp: a\nnodes: {{n0: {{task: order}}, {nodes}}}\nedges: [{edges}]"
    examined = examine_text(text)
    assert examined.playbook is not None
    found = check_types(examined.playbook, KNOWN)
    assert {finding.code for finding in found} <= {"FIELD_UNKNOWN", "VALUE_MAY_BE_MISSING"}
