"""From a document to a snapshot: checks, freezing, switching."""

from __future__ import annotations

from dataclasses import dataclass

import structlog

from engine.clock import Clock
from engine.core.checks.types import Nothing
from engine.core.findings import Finding
from engine.core.playbook import LIMITS, Limits, Playbook, canonical, checksum
from engine.document.examine import Examined, examine_playbook, examine_text
from engine.document.salvage import Readable
from engine.errors import Conflict, Invalid, NotFound
from engine.snapshots import keys
from engine.snapshots.library import pack, parse_version, version
from engine.snapshots.mirror import Mirror
from engine.snapshots.port import Put, Require, Snapshots
from engine.store.registry import RegistryStore, settings_of
from engine.wire.playbooks import violation
from services.registry.calls import check_calls, check_rings
from services.registry.surroundings import Surroundings

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Published:
    playbook_id: int
    snapshot_id: int
    existing: bool
    findings: tuple[Finding, ...]


class Publishing:
    def __init__(
        self,
        store: RegistryStore,
        snapshots: Snapshots,
        functions: Mirror,
        clock: Clock,
        limits: Limits = LIMITS,
    ) -> None:
        self._store = store
        self._snapshots = snapshots
        self._functions = functions
        self._clock = clock
        self._limits = limits

    async def examine(self, source: str | Playbook, strict: bool) -> Examined:
        """Every finding: those of the playbook alone, and those that need the registry. With
        `strict` all of them are errors."""
        examined = _examine(source, self._limits)
        if examined.readable is not None:
            limits = await self._limits_of(examined.readable.app)
            if limits != self._limits:
                examined = _examine(source, limits)
        if examined.readable is not None:
            examined = await self._with_surroundings(examined, examined.readable)
        return examined.without_warnings() if strict else examined

    async def _limits_of(self, app: str) -> Limits:
        """The app's own where they are tighter than the cluster's."""
        try:
            own = settings_of(await self._store.app(app))
        except NotFound:
            return self._limits
        ours = self._limits
        return Limits(
            min(own.max_nodes or ours.nodes, ours.nodes),
            min(own.max_edges or ours.edges, ours.edges),
            min(own.max_document or ours.document, ours.document),
        )

    async def publish(self, source: str | Playbook, strict: bool, by: str) -> Published:
        """Freezes the playbook. The same content again is the same snapshot.

        Errors: `Invalid` with every finding, `NotFound` for an unknown app, `Unavailable`.
        """
        examined = await self.examine(source, strict)
        playbook = refuse_errors(examined)
        await self._store.app(playbook.app)
        packed = pack(playbook)
        document = source if isinstance(source, str) else ""
        playbook_id, snapshot_id, existing = await self._store.add_snapshot(
            playbook.app,
            playbook.name,
            playbook.description,
            checksum(playbook),
            canonical(playbook),
            document,
            self._clock.now(),
            by,
        )
        # Written also when it was there: the publisher before may have died between the two.
        key = keys.snapshot(playbook_id, snapshot_id)
        await self._snapshots.commit([Require(key, 0)], [Put(key, packed)])
        await self._snapshots.put(keys.name(playbook.full_name), str(playbook_id).encode())
        _log.info("published", playbook=playbook.full_name, snapshot=snapshot_id, existing=existing)
        return Published(playbook_id, snapshot_id, existing, examined.findings)

    async def switch(self, playbook_id: int, snapshot_id: int, expected: int) -> int:
        """Makes the snapshot active; returns the one before, 0 for none.

        Errors: `NotFound`, `Conflict` when `expected` (0: any) is not the active one or somebody
        else switched at the same moment, `Unavailable`.
        """
        if await self._snapshots.get(keys.snapshot(playbook_id, snapshot_id)) is None:
            raise NotFound(
                f"playbook {playbook_id} has no snapshot {snapshot_id}",
                reason="SNAPSHOT_NOT_FOUND",
                mend="see `magicflow playbook show`",
            )
        key = keys.active(playbook_id)
        entry = await self._snapshots.get(key)
        previous = parse_version(entry.value) if entry is not None else 0
        if expected and previous != expected:
            raise Conflict(
                f"snapshot {previous} is active, not {expected}", reason="SWITCH_CONFLICT"
            )
        modified = entry.modified if entry is not None else 0
        done = await self._snapshots.commit(
            [Require(key, modified)], [Put(key, version(snapshot_id))]
        )
        if done is None:
            raise Conflict(
                "somebody else switched this playbook at the same moment",
                reason="SWITCH_CONFLICT",
                mend="look at the active version, then switch again",
            )
        _log.info("switched", playbook=playbook_id, snapshot=snapshot_id, before=previous)
        return previous

    async def _with_surroundings(self, examined: Examined, readable: Readable) -> Examined:
        """Without an app nobody knows what it may see."""
        if not readable.app:
            return examined.with_types(Nothing())
        playbook = readable.playbook
        granted = frozenset(
            row.target
            for row in await self._store.grants(readable.app)
            if row.grantee == readable.app
        )
        surroundings = Surroundings(self._snapshots, self._functions)
        await surroundings.load(playbook)
        return examined.with_types(surroundings).adding(
            (*check_calls(playbook, granted, surroundings), *check_rings(playbook, surroundings))
        )


def refuse_errors(examined: Examined) -> Playbook:
    """The playbook, if it has no error. Errors: `Invalid` with every finding."""
    errors = examined.errors
    if examined.playbook is None or errors:
        first = errors[0]
        place = f" (line {first.line})" if first.line else ""
        more = f"; {len(errors) - 1} more" if len(errors) > 1 else ""
        raise Invalid(
            f"the playbook is not valid: {first.path or 'document'}{place}: {first.message}{more}",
            reason="PLAYBOOK_INVALID",
            violations=[violation(finding) for finding in errors],
        )
    return examined.playbook


def _examine(source: str | Playbook, limits: Limits) -> Examined:
    if isinstance(source, str):
        return examine_text(source, limits)
    return examine_playbook(source, limits)
