"""What callers and workers write down: one line, one write, so that a killed process loses nothing
of what it wrote. Times are seconds of the host's monotonic clock, which all processes share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

Line = TypeVar("Line", bound=msgspec.Struct)

SENT, ACKNOWLEDGED, UNSURE, REFUSED = "sent", "acknowledged", "unsure", "refused"
BEGAN, ENDED, RECEIPT = "began", "ended", "receipt"


class Said(msgspec.Struct, frozen=True, omit_defaults=True):
    """A caller's line. `verb` is start, signal, abort, pause, resume or outcome; `state` says
    what is known of it: sent, acknowledged, refused for good, or unsure, when the server may have
    done it or not."""

    at: float
    call: int
    verb: str
    state: str
    trace: str = ""
    kind: str = ""
    key: str = ""
    why: str = ""  # how this act is found again in the log
    status: str = ""
    value: Any = None  # the input of a start, the output of an outcome
    error: str = ""


class Done(msgspec.Struct, frozen=True, omit_defaults=True):
    """A worker's line: an execution began or ended, or a receipt came for a result."""

    at: float
    worker: str
    what: str
    trace: str
    node: str
    attempt: int
    function: str = ""
    given: Any = None
    value: Any = None
    code: str = ""  # of a failure
    dispatched: float = 0.0
    verdict: int = 0

    @property
    def key(self) -> tuple[str, str, int]:
        return self.trace, self.node, self.attempt


class Writer(Generic[Line]):
    """Appends lines to a file."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def write(self, line: Line) -> None:
        os.write(self._file, msgspec.json.encode(line) + b"\n")

    def close(self) -> None:
        os.close(self._file)


def read(path: Path, kind: type[Line]) -> Iterator[Line]:
    """Every line of a journal, in order. Errors: `msgspec.MsgspecError` for one that is none."""
    if not path.exists():
        return
    decoder = msgspec.json.Decoder(kind)
    for line in path.read_bytes().splitlines():
        yield decoder.decode(line)
