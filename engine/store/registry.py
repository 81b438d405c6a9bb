"""Apps, tokens, playbooks, snapshots and grants in SQL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from engine.bus.balancing import Broker
from engine.errors import AlreadyExists, NotFound
from engine.snapshots.apps import App
from engine.store import tables
from engine.store.sql import Database


class RegistryStore:
    """Records of the registry. Rows come back as SQLAlchemy rows named like the tables' columns.

    Errors everywhere: `Unavailable` when the database is out of reach.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    # Apps and tokens.

    async def create_app(self, name: str, description: str, app: App, now: int) -> None:
        """Errors: `AlreadyExists`."""
        values = {"name": name, "description": description, "created_at": now}
        try:
            async with self._database.write() as connection:
                await connection.execute(tables.app.insert().values(**values, **row_of(app)))
        except IntegrityError as error:
            raise AlreadyExists(f"there is an app {name} already", reason="APP_EXISTS") from error

    async def app(self, name: str) -> Any:
        """Errors: `NotFound`."""
        row = await self._first(sa.select(tables.app).where(tables.app.c.name == name))
        if row is None:
            raise NotFound(
                f"there is no app {name}",
                reason="APP_NOT_FOUND",
                mend=f"make it: `magicflow app create {name}`",
            )
        return row

    async def apps(self) -> Sequence[Any]:
        return await self._all(sa.select(tables.app).order_by(tables.app.c.name))

    async def update_app(self, name: str, description: str, app: App) -> None:
        """Replaces the description and every setting."""
        async with self._database.write() as connection:
            await connection.execute(
                tables.app.update()
                .where(tables.app.c.name == name)
                .values(description=description, **row_of(app))
            )

    async def add_token(self, values: dict[str, Any]) -> None:
        async with self._database.write() as connection:
            await connection.execute(tables.token.insert().values(**values, revoked_at=0))

    async def token(self, token_id: str) -> Any:
        """Errors: `NotFound`."""
        row = await self._first(sa.select(tables.token).where(tables.token.c.id == token_id))
        if row is None:
            raise NotFound(f"there is no token {token_id}")
        return row

    async def tokens(self, app: str) -> Sequence[Any]:
        table = tables.token
        return await self._all(
            sa.select(table).where(table.c.app == app).order_by(table.c.created_at.desc())
        )

    async def revoke_token(self, token_id: str, now: int) -> None:
        table = tables.token
        async with self._database.write() as connection:
            await connection.execute(
                table.update()
                .where(table.c.id == token_id, table.c.revoked_at == 0)
                .values(revoked_at=now)
            )

    # Playbooks and snapshots.

    async def add_snapshot(
        self,
        app: str,
        name: str,
        description: str,
        checksum: bytes,
        content: bytes,
        document: str,
        now: int,
        by: str,
    ) -> tuple[int, int, bool]:
        """(playbook, snapshot, whether the same content was there before)."""
        try:
            return await self._add_snapshot(
                app, name, description, checksum, content, document, now, by
            )
        except IntegrityError:
            # Another instance was faster with the same name or content: now it can be read.
            return await self._add_snapshot(
                app, name, description, checksum, content, document, now, by
            )

    async def _add_snapshot(
        self,
        app: str,
        name: str,
        description: str,
        checksum: bytes,
        content: bytes,
        document: str,
        now: int,
        by: str,
    ) -> tuple[int, int, bool]:
        books, snapshots = tables.playbook, tables.snapshot
        async with self._database.write() as connection:
            found = await connection.execute(
                sa.select(books.c.id).where(books.c.app == app, books.c.name == name)
            )
            playbook_id = found.scalar()
            if playbook_id is None:
                made = await connection.execute(
                    books.insert()
                    .values(app=app, name=name, description=description, created_at=now)
                    .returning(books.c.id)
                )
                playbook_id = made.scalar_one()
            found = await connection.execute(
                sa.select(snapshots.c.id).where(
                    snapshots.c.playbook_id == playbook_id, snapshots.c.checksum == checksum
                )
            )
            snapshot_id = found.scalar()
            if snapshot_id is not None:
                return playbook_id, snapshot_id, True
            made = await connection.execute(
                snapshots.insert()
                .values(
                    playbook_id=playbook_id,
                    checksum=checksum,
                    content=content,
                    document=document,
                    published_at=now,
                    published_by=by[:128],
                )
                .returning(snapshots.c.id)
            )
            await connection.execute(
                books.update().where(books.c.id == playbook_id).values(description=description)
            )
            return playbook_id, made.scalar_one(), False

    async def playbook(self, app: str, name: str) -> Any:
        """Errors: `NotFound`."""
        table = tables.playbook
        row = await self._first(sa.select(table).where(table.c.app == app, table.c.name == name))
        if row is None:
            raise NotFound(
                f"there is no playbook {app}/{name}",
                reason="PLAYBOOK_NOT_FOUND",
                mend="see `magicflow playbook list`, or publish it",
            )
        return row

    async def playbooks(self, app: str) -> Sequence[Any]:
        """Those of an app, or all for an empty name."""
        table = tables.playbook
        query = sa.select(table).order_by(table.c.app, table.c.name)
        return await self._all(query.where(table.c.app == app) if app else query)

    async def latest(self, playbook_id: int) -> int:
        table = tables.snapshot
        query = sa.select(sa.func.max(table.c.id)).where(table.c.playbook_id == playbook_id)
        row = await self._first(query)
        return int(row[0] or 0) if row is not None else 0

    async def snapshot(self, snapshot_id: int) -> Any:
        """The snapshot with `app` and `name` of its playbook. Errors: `NotFound`."""
        books, snapshots = tables.playbook, tables.snapshot
        row = await self._first(
            sa.select(snapshots, books.c.app, books.c.name)
            .join(books, books.c.id == snapshots.c.playbook_id)
            .where(snapshots.c.id == snapshot_id)
        )
        if row is None:
            raise NotFound(f"there is no snapshot {snapshot_id}", reason="SNAPSHOT_NOT_FOUND")
        return row

    async def snapshots(self, playbook_id: int, before: int, limit: int) -> Sequence[Any]:
        """Newest first, without content; `before` is the last id of the page before, or 0."""
        table = tables.snapshot
        query = sa.select(
            table.c.id,
            table.c.playbook_id,
            table.c.checksum,
            table.c.published_at,
            table.c.published_by,
        ).where(table.c.playbook_id == playbook_id)
        if before:
            query = query.where(table.c.id < before)
        return await self._all(query.order_by(table.c.id.desc()).limit(limit))

    # Grants.

    async def add_grant(self, owner: str, grantee: str, target: str) -> None:
        try:
            async with self._database.write() as connection:
                await connection.execute(
                    tables.grant.insert().values(owner=owner, grantee=grantee, target=target)
                )
        except IntegrityError:
            return  # it is there already

    async def remove_grant(self, owner: str, grantee: str, target: str) -> None:
        table = tables.grant
        async with self._database.write() as connection:
            await connection.execute(
                table.delete().where(
                    table.c.owner == owner,
                    table.c.grantee == grantee,
                    table.c.target == target,
                )
            )

    async def grants(self, app: str) -> Sequence[Any]:
        """Those that the app gave and those that it holds."""
        table = tables.grant
        return await self._all(
            sa.select(table)
            .where(sa.or_(table.c.owner == app, table.c.grantee == app))
            .order_by(*table.c)
        )

    async def _first(self, query: Any) -> Any:
        async with self._database.read() as connection:
            return (await connection.execute(query)).first()

    async def _all(self, query: Any) -> Sequence[Any]:
        async with self._database.read() as connection:
            return (await connection.execute(query)).all()


def row_of(app: App) -> dict[str, Any]:
    return {
        "enabled": int(app.enabled),
        "quota": app.quota,
        "in_flight": app.in_flight,
        "require_workers": int(app.require_workers),
        "balancing": app.balancing,
        "brokers": msgspec.json.encode(app.brokers),
        "max_nodes": app.max_nodes,
        "max_edges": app.max_edges,
        "max_document": app.max_document,
    }


def settings_of(row: Any) -> App:
    """The settings in a row of the table of apps."""
    brokers = msgspec.json.decode(row.brokers, type=tuple[Broker, ...]) if row.brokers else ()
    return App(
        bool(row.enabled),
        row.quota,
        row.in_flight,
        bool(row.require_workers),
        row.balancing,
        brokers,
        row.max_nodes,
        row.max_edges,
        row.max_document,
    )
