"""A document from text to a checked playbook, with every finding at its place."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from engine.core.checks import check
from engine.core.findings import Finding
from engine.core.playbook import Playbook
from engine.document.reading import to_data, to_playbook
from engine.document.shape import check_shape
from engine.document.text import Document, Path, dotted, read_text


@dataclass(frozen=True, slots=True)
class Examined:
    """`playbook` is None when the document could not be understood."""

    playbook: Playbook | None
    findings: tuple[Finding, ...]
    document: Document | None = None

    def adding(self, findings: Iterable[Finding]) -> Examined:
        """The same with further findings, put in their places."""
        if self.document is None:
            return self
        located = [_located(self.document, finding) for finding in findings]
        merged = sorted((*self.findings, *located), key=lambda f: (f.line, f.column))
        return Examined(self.playbook, tuple(merged), self.document)

    @property
    def errors(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if not finding.warning)


def examine_text(text: str) -> Examined:
    """Reads and checks YAML or JSON text. Never raises for what stands in it."""
    document, findings = read_text(text)
    if document is None:
        return Examined(None, tuple(findings))
    return _examine(document, findings)


def examine_playbook(playbook: Playbook) -> Examined:
    """Checks a playbook that came as a message, by the same rules as text."""
    return _examine(Document(to_data(playbook)), [])


def _examine(document: Document, findings: list[Finding]) -> Examined:
    findings = findings + check_shape(document.data)
    playbook: Playbook | None = None
    if not findings:
        try:
            playbook = to_playbook(document.data)
        except ValueError as error:
            findings.append(Finding("VALUE_INVALID", "", str(error)))
        else:
            findings.extend(check(playbook))
    located = [_located(document, finding) for finding in findings]
    in_order = sorted(located, key=lambda f: (f.line, f.column))
    return Examined(playbook, tuple(in_order), document)


def _located(document: Document, finding: Finding) -> Finding:
    if finding.line:
        return finding
    position = document.locate(_closest(document.positions, finding.path))
    return finding if position is None else finding.at(position.line, position.column)


def _closest(positions: dict[Path, Any], path: str) -> Path:
    """The known path that is written like the longest beginning of `path`."""
    best: Path = ()
    for known in positions:
        text = dotted(known)
        if (path == text or path.startswith((f"{text}.", f"{text}["))) and len(known) > len(best):
            best = known
    return best
