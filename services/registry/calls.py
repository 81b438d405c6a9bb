"""What a playbook calls: whether it may, whether that is there, and whether it comes to an end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from engine.core.checks.dead_ends import certain_calls
from engine.core.findings import Finding
from engine.core.machine import MAX_DEPTH
from engine.core.playbook import Kind, Map, Playbook, Repeat, Subplaybook, Task
from engine.document.salvage import UNREAD
from services.registry.surroundings import Surroundings


@dataclass(frozen=True, slots=True)
class Call:
    """One function or playbook that a node names. `path` is where; `snapshot_id` 0: the active
    one."""

    path: str
    target: str
    is_function: bool
    snapshot_id: int = 0

    @property
    def owner(self) -> str:
        return self.target.partition("/")[0]


def calls_of(playbook: Playbook) -> Iterator[Call]:
    """All that the playbook calls, what undoes its nodes included, as far as it could be read."""
    return (call for call in _calls(playbook) if UNREAD not in call.target)


def _calls(playbook: Playbook) -> Iterator[Call]:
    for node in playbook.nodes:
        path = f"nodes.{node.code}"
        yield from _of_kind(node.kind, path)
        if node.compensate is not None:
            yield Call(f"{path}.compensate.task", node.compensate.function, True)


def _of_kind(kind: Kind, path: str) -> Iterator[Call]:
    match kind:
        case Task():
            yield Call(f"{path}.task", kind.function, True)
        case Subplaybook():
            yield Call(f"{path}.playbook", kind.playbook, False, kind.snapshot_id)
        case Repeat():
            yield Call(f"{path}.repeat.playbook", kind.playbook, False, kind.snapshot_id)
        case Map():
            yield from _of_kind(kind.body, f"{path}.map")


def check_calls(
    playbook: Playbook, granted: frozenset[str], known: Surroundings
) -> Iterator[Finding]:
    """`granted` are the targets that the playbook's app has grants for, `app/*` among them."""
    for call in calls_of(playbook):
        if call.owner != playbook.app and not {call.target, f"{call.owner}/*"} & granted:
            yield _not_granted(call, playbook.app)
        if call.is_function:
            if known.function(call.target) is None:
                message, mend = f"no worker has offered {call.target} yet", "start its worker"
                mend += ", or check the name"
                yield _warning("FUNCTION_UNKNOWN", call, message, mend)
        elif (call.target, call.snapshot_id) != (playbook.full_name, 0):
            yield from _callee(call, known)


def _not_granted(call: Call, app: str) -> Finding:
    message = f"{app} has no grant for {call.target}"
    give = f"`magicflow grant create {call.target} {app}`"
    mend = f"the owner of {call.owner} gives it: {give}"
    return Finding("GRANT_MISSING", call.path, message, call.target, mend)


def _callee(call: Call, known: Surroundings) -> Iterator[Finding]:
    """Whether the call would find its playbook if it were made now; by the codes that it would
    fail with."""
    name, number = call.target, call.snapshot_id
    match known.missing((name, number)):
        case "PLAYBOOK_NOT_FOUND":
            message, mend = f"there is no playbook {name} yet", "publish it, or check the name"
            yield _warning("PLAYBOOK_NOT_FOUND", call, message, mend)
        case "PLAYBOOK_NOT_ACTIVE":
            message = f"no snapshot of {name} is live yet"
            mend = f"switch one live: `magicflow playbook switch {name} <snapshot>`"
            yield _warning("PLAYBOOK_NOT_ACTIVE", call, message, mend)
        case "SNAPSHOT_NOT_FOUND":
            message = f"{name} has no snapshot {number}"
            mend = f"see `magicflow playbook show {name}`, or leave @{number} out"
            yield _warning("SNAPSHOT_NOT_FOUND", call, message, mend)


def _warning(code: str, call: Call, message: str, mend: str) -> Finding:
    return Finding(code, call.path, message, call.target, mend, warning=True)


def check_rings(playbook: Playbook, known: Surroundings) -> Iterator[Finding]:
    """Calls that lead back to the playbook through others, or into a ring of others: an error
    where every run goes round, a warning where a condition can end it."""
    certain = {node.code for node in certain_calls(playbook)}
    for node in playbook.nodes:
        path = f"nodes.{node.code}"
        endless = known.endless(playbook, node) if node.code in certain else []
        if endless:
            way = " -> ".join(endless)
            message = f"the playbooks call each other in every run, so that no run can end: {way}"
            mend = "let a condition decide about one of these calls, or use repeat or map"
            yield Finding("RECURSION", path, message, endless[-1], mend)
            continue
        ring = known.ring(playbook, node)
        if ring:
            message = f"the playbooks call each other in a ring: {' -> '.join(ring)}"
            mend = f"calls nest up to {MAX_DEPTH} deep: make sure that the ring ends"
            yield Finding("RECURSION", path, message, ring[-1], mend, warning=True)
