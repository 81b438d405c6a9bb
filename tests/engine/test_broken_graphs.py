"""Every rule of publishing, broken once: `broken/<CODE>-<how>.yaml`.

Each file has two parts with `---` between them: what is known of functions and playbooks and all
that is to be found, then the document. Lines count from the document's first.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import yaml

import engine
from engine.core.checks.types import Signature
from engine.document.examine import examine_text

HERE = Path(__file__).parent / "broken"
FILES = sorted(HERE.glob("*.yaml"))


class Schemas:
    """What the head of a file says of functions and playbooks."""

    def __init__(self, head: dict[str, Any]) -> None:
        self._head = head

    def function(self, name: str) -> Signature | None:
        return self._signature("functions", name)

    def playbook(self, name: str, snapshot_id: int) -> Signature | None:
        return self._signature("playbooks", name)

    def _signature(self, of: str, name: str) -> Signature | None:
        known = self._head.get(of, {}).get(name)
        return None if known is None else Signature(known.get("input"), known.get("output"))


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_a_broken_document_has_these_findings_and_no_others(file: Path) -> None:
    head, document = file.read_text().split("\n---\n", 1)
    told = yaml.safe_load(head)
    examined = examine_text(document).with_types(Schemas(told))
    found = [
        {
            "code": finding.code,
            "path": finding.path,
            "line": finding.line,
            "column": finding.column,
            **({"warning": True} if finding.warning else {}),
        }
        for finding in examined.findings
    ]
    assert found == told["findings"], told["rule"]
    assert all(finding.message and finding.mend for finding in examined.findings)
    assert file.stem.split("-")[0] in [finding.code for finding in examined.findings]


def test_every_code_has_its_document() -> None:
    assert codes() == {
        finding["code"]
        for file in FILES
        for finding in yaml.safe_load(file.read_text().split("\n---\n", 1)[0])["findings"]
    }


def codes() -> set[str]:
    """The codes that stand in the modules that make findings about documents."""
    root = Path(engine.__file__).parent
    modules = [*(root / "core" / "checks").glob("*.py"), *(root / "document").glob("*.py")]
    found: set[str] = set()
    for module in modules:
        text = module.read_text()
        if "Finding(" in text:
            strings = (n.value for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Constant))
            found |= {s for s in strings if isinstance(s, str) and _is_code(s)}
    return found


def _is_code(text: str) -> bool:
    return len(text) > 3 and text.replace("_", "").isalpha() and text.isupper()
