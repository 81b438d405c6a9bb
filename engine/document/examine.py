"""A document from text to a checked playbook, with every finding at its place."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from engine.core.checks.rules import check, excess
from engine.core.checks.types import Known, check_types
from engine.core.findings import Finding
from engine.core.playbook import LIMITS, Limits, Playbook, canonical
from engine.document.reading import to_data
from engine.document.salvage import UNREAD, Readable, readable, salvage
from engine.document.shape import check_shape
from engine.document.text import Document, Position, dotted, read_text, too_large


@dataclass(frozen=True, slots=True)
class Examined:
    """`playbook` is None when the document could not be understood; `readable` is as much of it
    as could be read, unless it is too large to look at."""

    playbook: Playbook | None
    findings: tuple[Finding, ...]
    document: Document | None = None
    readable: Readable | None = None

    def adding(self, findings: Iterable[Finding]) -> Examined:
        """The same with further findings, put in their places."""
        if self.document is None:
            return self
        located = _located(self.document, findings)
        merged = sorted((*self.findings, *located), key=lambda f: (f.line, f.column))
        return replace(self, findings=tuple(merged))

    def with_types(self, known: Known) -> Examined:
        """The same with what is wrong with the types, as far as `known` tells them."""
        if self.readable is None:
            return self
        return self.adding(check_types(self.readable.playbook, known, self.readable.untold))

    def without_warnings(self) -> Examined:
        """The same with an error in the place of each warning."""
        strict = tuple(replace(finding, warning=False) for finding in self.findings)
        return replace(self, findings=strict)

    @property
    def app(self) -> str:
        """Whose playbook it is; empty when that could not be read."""
        return "" if self.readable is None else self.readable.app

    @property
    def errors(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if not finding.warning)


def examine_text(text: str, limits: Limits = LIMITS) -> Examined:
    """Reads and checks YAML or JSON text. Never raises for what stands in it."""
    document, findings = read_text(text, limits.document)
    if document is None:
        return Examined(None, tuple(findings))
    return _examine(document, findings, limits)


def examine_playbook(playbook: Playbook, limits: Limits = LIMITS) -> Examined:
    """Checks a playbook that came as a message, by the same rules as text."""
    findings = too_large(len(canonical(playbook)), limits.document)
    if findings:
        return Examined(None, tuple(findings))
    return _examine(Document(to_data(playbook)), [], limits)


def _examine(document: Document, findings: list[Finding], limits: Limits) -> Examined:
    findings = findings + check_shape(document.data)
    rest = salvage(document) if findings else readable(document.data)
    playbook = None if findings or rest is None else rest.playbook
    if rest is not None:
        found = check(rest.playbook, rest.untold, rest.given, limits)
        findings += [finding for finding in found if finding.seen != UNREAD]
        if excess(rest.playbook, limits):
            rest = None
    in_order = sorted(_located(document, findings), key=lambda f: (f.line, f.column))
    return Examined(playbook, tuple(in_order), document, rest)


def _located(document: Document, findings: Iterable[Finding]) -> list[Finding]:
    """The findings with their places. Each path is made text once: a document can have as many
    findings as places."""
    places: dict[str, Position] | None = None
    located = []
    for finding in findings:
        if not finding.line:
            if places is None:
                places = {dotted(path): place for path, place in document.positions.items()}
            place = _closest(places, finding.path)
            finding = finding if place is None else finding.at(place.line, place.column)
        located.append(finding)
    return located


def _closest(places: dict[str, Position], path: str) -> Position | None:
    """The place of the longest known beginning of `path`."""
    while path and path not in places:
        path = path[: max(path.rfind("."), path.rfind("["), 0)]
    return places.get(path)
