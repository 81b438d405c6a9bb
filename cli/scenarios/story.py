"""A story as it was written: frozen data. `reading` makes it of a file, `playing` tells it.

Durations are milliseconds. Snapshots are numbered per playbook, from 1, in the order in which
the story publishes them. Values are JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Final


class Absent(Enum):
    """Stands for a value that was not given; None is JSON null."""

    ABSENT = "nothing"


ABSENT: Final = Absent.ABSENT

Document = Mapping[str, Any] | str
"""A playbook in its own language, or the text of one."""


@dataclass(frozen=True, slots=True)
class Publish:
    """A new snapshot, that is not switched live."""

    document: Document


@dataclass(frozen=True, slots=True)
class Switch:
    playbook: str
    snapshot: int


@dataclass(frozen=True, slots=True)
class Grant:
    """`target` is app/name or app/*; `given` is false where it is taken back."""

    target: str
    grantee: str
    given: bool = True


@dataclass(frozen=True, slots=True)
class Trigger:
    """`name` is what the story calls the trace; `snapshot` 0 means the active one."""

    playbook: str
    input: Any = None
    name: str = ""
    key: str = ""
    priority: int | None = None
    start_in: int = 0
    snapshot: int = 0


@dataclass(frozen=True, slots=True)
class Wait:
    """Until the node (or, without one, the trace) has the status and the node waits for the
    reason; without either until the end."""

    trace: str
    node: str = ""
    status: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Advance:
    by: int


@dataclass(frozen=True, slots=True)
class Act:
    """What an operator does. `value` is a signal's payload, a completion's output, a rerun's
    input or a failure's details; `name` is what the story calls the trace of a rerun."""

    verb: str
    trace: str
    why: str = ""
    node: str = ""
    value: Any = ABSENT
    approve: bool = True
    compensate: bool = False
    nodes: tuple[str, ...] = ()
    snapshot: int = 0
    name: str = ""
    code: str = ""
    message: str = ""


What = Publish | Switch | Grant | Trigger | Wait | Advance | Act


@dataclass(frozen=True, slots=True)
class ExpectedError:
    """`code` is that of gRPC, such as `FAILED_PRECONDITION`; an empty text says nothing."""

    code: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """`number` counts from 1; `word` is what the story calls it."""

    number: int
    line: int
    word: str
    what: What
    error: ExpectedError | None = None


@dataclass(frozen=True, slots=True)
class ExpectedFinding:
    """One error that publishing must find; an empty text says nothing."""

    code: str
    at: str = ""
    message_contains: str = ""


@dataclass(frozen=True, slots=True)
class ExpectedFailure:
    """Of a trace; `node` None and empty texts say nothing."""

    code: str = ""
    node: str | None = None
    message_contains: str = ""


@dataclass(frozen=True, slots=True)
class Expected:
    """What must have come out of a trace. Keys are node paths, those of `calls` functions. What
    is empty or None says nothing."""

    status: str = ""
    error: ExpectedFailure | None = None
    output: Any = ABSENT
    nodes: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, Any] = field(default_factory=dict)
    outputs: Mapping[str, Any] = field(default_factory=dict)
    attempts: Mapping[str, int] = field(default_factory=dict)
    order: tuple[tuple[str, str], ...] = ()
    env: Mapping[str, Any] | None = None
    calls: Mapping[str, int] = field(default_factory=dict)
    exactly: bool = False
    waits: Mapping[str, str] = field(default_factory=dict)

    @property
    def live(self) -> bool:
        """Whether the trace must not have ended."""
        return self.status in ("RUNNING", "PAUSED")


@dataclass(frozen=True, slots=True)
class Story:
    """`functions` and `commands` are as `magicflow.conformance` describes them. `grants` None
    means that every app may use whatever its playbooks call."""

    file: Path
    name: str
    playbooks: tuple[Document, ...]
    functions: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    steps: tuple[Step, ...] = ()
    publish_error: tuple[ExpectedFinding, ...] = ()
    expect: Mapping[str, Expected] = field(default_factory=dict)
    grants: tuple[Grant, ...] | None = None
    commands: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def offered(self) -> Mapping[str, Mapping[str, Any]]:
        """The functions that the worker offers."""
        return {name: does for name, does in self.functions.items() if "absent" not in does}

    @property
    def documents(self) -> tuple[Document, ...]:
        """Every playbook that it publishes."""
        steps = (step.what for step in self.steps)
        return (*self.playbooks, *(what.document for what in steps if isinstance(what, Publish)))
