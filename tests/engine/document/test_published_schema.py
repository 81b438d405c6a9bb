"""What editors make of the JSON Schema of documents that `magicflow playbook schema` prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from typer.testing import CliRunner

from cli.playbooks import app
from engine.core.playbook import checksum
from engine.document.examine import examine_text
from engine.document.text import read_text
from tests.engine.test_bad_documents import BOOKS
from tests.engine.test_broken_graphs import FILES

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs" / "playbook.md"


def printed() -> dict[str, Any]:
    result = CliRunner().invoke(app, ["schema"])
    assert result.exit_code == 0
    schema = json.loads(result.stdout)
    assert isinstance(schema, dict)
    return schema


EDITOR = jsonschema_rs.validator_for(printed())  # knows nothing of our own formats


def examples() -> list[dict[str, Any]]:
    """Documents and stories in the documentation, and the playbooks of examples."""
    blocks = [part.split("```")[0] for part in DOCS.read_text().split("```yaml\n")[1:]]
    texts = [text for text in blocks if text.startswith(("playbook:", "name:"))]
    texts += [file.read_text() for file in (ROOT / "examples").rglob("playbook.yaml")]
    found = []
    for text in texts:
        document, _ = read_text(text)
        assert document is not None
        found += document.data.get("playbooks", [document.data])
    return found


def test_it_is_a_json_schema_with_a_name() -> None:
    schema = printed()
    assert jsonschema_rs.meta.is_valid(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["$id"].startswith("https://")


def test_every_example_and_every_playbook_of_a_story_fits() -> None:
    assert len(examples()) > 15
    for book in (*examples(), *BOOKS):
        assert [str(error) for error in EDITOR.iter_errors(book)] == [], book


def test_the_key_for_editors_is_not_a_part_of_the_playbook() -> None:
    plain = {"playbook": "p", "app": "a", "nodes": {"a": {"nop": {}}}}
    named = {"$schema": "./playbook.schema.json", **plain}
    one, other = (examine_text(json.dumps(book)).playbook for book in (plain, named))
    assert one is not None
    assert other is not None
    assert checksum(one) == checksum(other)
    assert EDITOR.is_valid(named)


LOCAL = (
    *("UNKNOWN_KEY", "MISSING_KEY", "WRONG_TYPE", "VALUE_INVALID", "NAME_INVALID"),
    *("NODE_KIND_MISSING", "NODE_KIND_AMBIGUOUS", "EDGE_KIND_AMBIGUOUS", "OPTION_WITHOUT_EFFECT"),
)
BEYOND = {  # no schema can say it
    "OPTION_WITHOUT_EFFECT-retry",  # one attempt is the default
    "VALUE_INVALID-env",  # integers of 64 bits
    "VALUE_INVALID-span",  # ten years
    "WRONG_TYPE-infinite",  # JSON has no such values
    "WRONG_TYPE-surrogate",
}
BROKEN = [file for file in FILES if file.stem.split("-")[0] in LOCAL and file.stem not in BEYOND]


@pytest.mark.parametrize("file", BROKEN, ids=[file.stem for file in BROKEN])
def test_an_editor_refuses_what_publishing_refuses(file: Path) -> None:
    document, _ = read_text(file.read_text().split("\n---\n", 1)[1])
    assert document is not None
    assert not EDITOR.is_valid(document.data)


@pytest.mark.parametrize(
    "node",
    [
        {},
        {"task": "f", "nop": {}},
        {"task": "f", "hook": {}},
        {"hook": True},
        {"sleep": "5s", "hook": True},
        {"map": {"over": "$$$"}},
        {"map": {"over": "$$$", "task": "f", "playbook": "p"}},
        {"hook": {}, "timeout": "5s"},
        {"playbook": "p", "heartbeat": "5s"},
        {"map": {"over": "$$$", "playbook": "p"}, "before": ["c"]},
        {"task": "f", "timeout": "0s"},
    ],
)
def test_a_node_is_of_one_kind_and_has_the_options_of_that_kind(node: dict[str, Any]) -> None:
    book = {"playbook": "p", "app": "a", "nodes": {"a": node}}
    assert not EDITOR.is_valid(book)
    assert examine_text(json.dumps(book)).errors
