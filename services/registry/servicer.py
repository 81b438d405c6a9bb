"""`RegistryService`: apps, tokens, functions, playbooks, grants, workers, the cluster."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from engine.clock import Clock
from engine.core.playbook import Playbook
from engine.document.reading import to_data
from engine.errors import Invalid, Unimplemented
from engine.rpc.interceptors import caller
from engine.rpc.paging import page_size, page_start
from engine.security.tokens import EVERY_APP, SCOPES, Tokens
from engine.snapshots import keys
from engine.snapshots.apps import encode_app
from engine.snapshots.library import parse_version
from engine.snapshots.membership import decode_claim, decode_member
from engine.snapshots.port import Snapshots
from engine.snapshots.report import decode_report
from engine.store.registry import RegistryStore
from engine.wire.playbooks import finding_message, playbook, playbook_message
from engine.wire.values import timestamp
from magicflow.v1 import playbook_pb2
from magicflow.v1 import registry_service_pb2 as pb
from magicflow.v1.registry_service_pb2_grpc import RegistryServiceServicer
from magicflow.v1.worker_pb2 import Function, Worker
from services.registry.apps import app_message, settings
from services.registry.differences import differences
from services.registry.publishing import Publishing
from services.registry.view import ClusterView

NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}")
TARGET = re.compile(r"[a-z][a-z0-9_-]{0,63}/([a-z][a-z0-9_-]{0,63}|\*)")
TOKEN_LIFETIME = 90 * 86_400.0  # seconds
MAX_LIFETIME = 10 * 365 * 86_400.0

_playbooks = msgspec.json.Decoder(Playbook)


class RegistryServicer(RegistryServiceServicer):
    def __init__(
        self,
        store: RegistryStore,
        snapshots: Snapshots,
        publishing: Publishing,
        tokens: Tokens,
        view: ClusterView,
        partitions: int,
        clock: Clock,
    ) -> None:
        self._store = store
        self._snapshots = snapshots
        self._publishing = publishing
        self._tokens = tokens
        self._view = view
        self._partitions = partitions
        self._clock = clock

    # Apps and tokens.

    async def CreateApp(self, request: pb.CreateAppRequest, context: Any) -> pb.CreateAppResponse:
        caller().require("admin", EVERY_APP)
        app = request.app
        _check_name("app.name", app.name)
        if len(app.description) > 1_024:
            raise Invalid("app.description has more than 1,024 characters")
        wanted = settings(app, self._partitions, enabled=True)
        await self._store.create_app(app.name, app.description, wanted, self._clock.now())
        await self._snapshots.put(keys.app(app.name), encode_app(wanted))
        text, _ = await self._token(app.name, "owner", SCOPES, TOKEN_LIFETIME)
        return pb.CreateAppResponse(app=await self._app(app.name), token=text)

    async def GetApp(self, request: pb.GetAppRequest, context: Any) -> pb.GetAppResponse:
        caller().require("trigger", request.name)
        return pb.GetAppResponse(app=await self._app(request.name))

    async def ListApps(self, request: pb.ListAppsRequest, context: Any) -> pb.ListAppsResponse:
        rows = await self._store.apps()
        seen = [app_message(row) for row in rows if caller().may("trigger", row.name)]
        return pb.ListAppsResponse(apps=seen)

    async def UpdateApp(self, request: pb.UpdateAppRequest, context: Any) -> pb.UpdateAppResponse:
        """Replaces every setting: what the request leaves out is not kept."""
        app = request.app
        caller().require("admin", app.name)
        if len(app.description) > 1_024:
            raise Invalid("app.description has more than 1,024 characters")
        wanted = settings(app, self._partitions, enabled=app.enabled)
        await self._store.app(app.name)
        await self._store.update_app(app.name, app.description, wanted)
        await self._snapshots.put(keys.app(app.name), encode_app(wanted))
        return pb.UpdateAppResponse(app=await self._app(app.name))

    async def _app(self, name: str) -> pb.App:
        return app_message(await self._store.app(name))

    async def CreateToken(
        self, request: pb.CreateTokenRequest, context: Any
    ) -> pb.CreateTokenResponse:
        caller().require("admin", request.app)
        if request.app != EVERY_APP:
            await self._store.app(request.app)
        if not 1 <= len(request.subject) <= 128:
            raise Invalid("subject must have 1 to 128 characters")
        names = []
        for scope in request.scopes:
            name = pb.Scope.Name(scope).removeprefix("SCOPE_").lower()
            if name not in SCOPES:
                raise Invalid(f"{name} is no scope", mend=f"scopes are {', '.join(SCOPES)}")
            names.append(name)
        if not names:
            raise Invalid("a token needs at least one scope")
        lifetime = request.lifetime.ToMilliseconds() / 1_000 or TOKEN_LIFETIME
        if not 0 < lifetime <= MAX_LIFETIME:
            raise Invalid("lifetime must be positive and at most ten years")
        text, token = await self._token(request.app, request.subject, tuple(names), lifetime)
        return pb.CreateTokenResponse(text=text, token=token)

    async def _token(
        self, app: str, subject: str, scopes: tuple[str, ...], lifetime: float
    ) -> tuple[str, pb.Token]:
        text, identity = self._tokens.make(app, subject, scopes, lifetime)
        await self._store.add_token(
            {
                "id": identity.token_id,
                "app": app,
                "subject": subject,
                "scopes": ",".join(sorted(scopes)),
                "created_at": self._clock.now(),
                "expires_at": int(identity.expires_at * 1_000),
            }
        )
        return text, _token_message(await self._store.token(identity.token_id))

    async def RevokeToken(
        self, request: pb.RevokeTokenRequest, context: Any
    ) -> pb.RevokeTokenResponse:
        row = await self._store.token(request.id)
        caller().require("admin", row.app)
        await self._snapshots.put(keys.revoked(request.id), str(row.expires_at).encode())
        await self._store.revoke_token(request.id, self._clock.now())
        return pb.RevokeTokenResponse()

    async def ListTokens(
        self, request: pb.ListTokensRequest, context: Any
    ) -> pb.ListTokensResponse:
        caller().require("admin", request.app)
        rows = await self._store.tokens(request.app)
        return pb.ListTokensResponse(tokens=[_token_message(row) for row in rows])

    async def ListFunctions(
        self, request: pb.ListFunctionsRequest, context: Any
    ) -> pb.ListFunctionsResponse:
        functions = [
            Function.FromString(value)
            for key, value in sorted(self._view.functions.entries.items())
            if self._sees(key, keys.FUNCTIONS, request.app)
        ]
        return pb.ListFunctionsResponse(functions=functions)

    def _sees(self, key: str, prefix: str, asked: str) -> bool:
        app = key.removeprefix(prefix).partition("/")[0]
        return asked in ("", app) and caller().may("trigger", app)

    # Playbooks.

    async def ValidatePlaybook(
        self, request: pb.ValidatePlaybookRequest, context: Any
    ) -> pb.ValidatePlaybookResponse:
        examined = await self._publishing.examine(_source(request), request.strict)
        known = examined.playbook
        if examined.app:
            caller().require("trigger", examined.app)
        return pb.ValidatePlaybookResponse(
            findings=[finding_message(finding) for finding in examined.findings],
            playbook=None if known is None else playbook_message(known),
        )

    async def PublishSnapshot(
        self, request: pb.PublishSnapshotRequest, context: Any
    ) -> pb.PublishSnapshotResponse:
        source = _source(request)
        examined = await self._publishing.examine(source, request.strict)
        if examined.app:
            caller().require("operate", examined.app)
        done = await self._publishing.publish(source, request.strict, caller().subject)
        if request.switch:
            await self._publishing.switch(done.playbook_id, done.snapshot_id, 0)
        row = await self._store.snapshot(done.snapshot_id)
        active = await self._active(done.playbook_id)
        return pb.PublishSnapshotResponse(
            snapshot=_snapshot_message(row, with_graph=True),
            existing=done.existing,
            findings=[finding_message(finding) for finding in done.findings],
            active=active == done.snapshot_id,
        )

    async def SwitchSnapshot(
        self, request: pb.SwitchSnapshotRequest, context: Any
    ) -> pb.SwitchSnapshotResponse:
        row = await self._playbook(request.playbook, "operate")
        previous = await self._publishing.switch(
            row.id, request.snapshot_id, request.expected_snapshot_id
        )
        return pb.SwitchSnapshotResponse(previous_snapshot_id=previous)

    async def SetCanary(self, request: Any, context: Any) -> Any:
        raise Unimplemented("SetCanary is not available in this version")

    async def GetPlaybook(
        self, request: pb.GetPlaybookRequest, context: Any
    ) -> pb.GetPlaybookResponse:
        row = await self._playbook(request.playbook, "trigger")
        return pb.GetPlaybookResponse(playbook=await self._record(row))

    async def ListPlaybooks(
        self, request: pb.ListPlaybooksRequest, context: Any
    ) -> pb.ListPlaybooksResponse:
        rows = await self._store.playbooks(request.app)
        seen = [await self._record(row) for row in rows if caller().may("trigger", row.app)]
        return pb.ListPlaybooksResponse(playbooks=seen)

    async def GetSnapshot(
        self, request: pb.GetSnapshotRequest, context: Any
    ) -> pb.GetSnapshotResponse:
        row = await self._store.snapshot(request.id)
        caller().require("trigger", row.app)
        message = _snapshot_message(row, with_graph=True)
        message.document = row.document
        return pb.GetSnapshotResponse(snapshot=message)

    async def ListSnapshots(
        self, request: pb.ListSnapshotsRequest, context: Any
    ) -> pb.ListSnapshotsResponse:
        row = await self._playbook(request.playbook, "trigger")
        size = page_size(request.page_size, 100, 1_000)
        rows = await self._store.snapshots(row.id, page_start(request.page_token), size)
        more = str(rows[-1].id) if len(rows) == size else ""
        return pb.ListSnapshotsResponse(
            snapshots=[_snapshot_message(found, with_graph=False) for found in rows],
            next_page_token=more,
        )

    async def DiffSnapshots(
        self, request: pb.DiffSnapshotsRequest, context: Any
    ) -> pb.DiffSnapshotsResponse:
        older = await self._store.snapshot(request.from_snapshot_id)
        newer = await self._store.snapshot(request.to_snapshot_id)
        caller().require("trigger", older.app)
        if older.playbook_id != newer.playbook_id:
            raise Invalid("these are snapshots of two different playbooks")
        found = differences(_document(older), _document(newer))
        return pb.DiffSnapshotsResponse(
            differences=[
                pb.Difference(path=d.path, change=d.change, before=d.before, after=d.after)
                for d in found
            ]
        )

    async def _playbook(self, full_name: str, scope: str) -> Any:
        app, _, name = full_name.partition("/")
        if not app or not name:
            raise Invalid(f"{full_name!r} is no playbook name", mend="write app/name")
        caller().require(scope, app)
        return await self._store.playbook(app, name)

    async def _active(self, playbook_id: int) -> int:
        entry = await self._snapshots.get(keys.active(playbook_id))
        return parse_version(entry.value) if entry is not None else 0

    async def _record(self, row: Any) -> pb.PlaybookRecord:
        return pb.PlaybookRecord(
            id=row.id,
            app=row.app,
            name=row.name,
            description=row.description,
            active_snapshot_id=await self._active(row.id),
            latest_snapshot_id=await self._store.latest(row.id),
            created_at=timestamp(row.created_at),
        )

    # Grants.

    async def CreateGrant(
        self, request: pb.CreateGrantRequest, context: Any
    ) -> pb.CreateGrantResponse:
        grant = request.grant
        caller().require("operate", grant.owner)
        _check_name("grant.grantee", grant.grantee)
        if not TARGET.fullmatch(grant.target) or not grant.target.startswith(f"{grant.owner}/"):
            raise Invalid(
                f"{grant.target!r} is nothing that {grant.owner} owns",
                mend=f"write {grant.owner}/name or {grant.owner}/*",
            )
        await self._store.app(grant.owner)
        await self._store.app(grant.grantee)
        await self._store.add_grant(grant.owner, grant.grantee, grant.target)
        await self._snapshots.put(keys.grant(grant.grantee, grant.target), b"")
        return pb.CreateGrantResponse()

    async def RevokeGrant(
        self, request: pb.RevokeGrantRequest, context: Any
    ) -> pb.RevokeGrantResponse:
        grant = request.grant
        caller().require("operate", grant.owner)
        await self._store.remove_grant(grant.owner, grant.grantee, grant.target)
        await self._snapshots.delete(keys.grant(grant.grantee, grant.target))
        return pb.RevokeGrantResponse()

    async def ListGrants(
        self, request: pb.ListGrantsRequest, context: Any
    ) -> pb.ListGrantsResponse:
        caller().require("trigger", request.app)
        await self._store.app(request.app)
        rows = await self._store.grants(request.app)
        return pb.ListGrantsResponse(
            grants=[pb.Grant(owner=r.owner, grantee=r.grantee, target=r.target) for r in rows]
        )

    # The cluster.

    async def ListWorkers(
        self, request: pb.ListWorkersRequest, context: Any
    ) -> pb.ListWorkersResponse:
        workers = [Worker.FromString(value) for value in self._view.workers.entries.values()]
        seen = [
            worker
            for worker in workers
            if request.app in ("", worker.app) and caller().may("trigger", worker.app)
        ]
        seen.sort(key=lambda worker: (worker.app, worker.worker_id))
        return pb.ListWorkersResponse(workers=seen)

    async def GetCluster(
        self, request: pb.GetClusterRequest, context: Any
    ) -> pb.GetClusterResponse:
        caller().require("trigger", EVERY_APP)
        response = pb.GetClusterResponse(now=timestamp(self._clock.now()))
        for _, data in sorted(self._view.instances.entries.items()):
            member = decode_member(data)
            response.instances.add(
                service=member.service,
                name=member.name,
                address=member.address,
                version=member.version,
                started_at=timestamp(member.started_at),
            )
        for partition in range(self._partitions):
            key = keys.partition(partition)
            value = self._view.partitions.entries.get(key, b"")
            owner = decode_claim(value).instance if value else ""
            epoch = self._view.partitions.created.get(key, 0) if value else 0
            response.partitions.add(partition=partition, instance=owner, epoch=epoch)
        self._add_report(response)
        return response

    def _add_report(self, response: pb.GetClusterResponse) -> None:
        data = self._view.report.entries.get(keys.REPORT)
        if data is None:
            return
        report = decode_report(data)
        response.leader = report.leader
        response.reported_at.CopyFrom(timestamp(report.at) or response.reported_at)
        for alarm in report.alarms:
            response.alarms.add(
                code=alarm.code,
                subject=alarm.subject,
                message=alarm.message,
                since=timestamp(alarm.since),
            )
        for function in report.functions:
            response.functions.add(
                name=function.name,
                workers=function.workers,
                slots=function.slots,
                waiting=function.waiting,
            )


def _source(request: Any) -> str | Playbook:
    match request.WhichOneof("source"):
        case "document":
            return str(request.document)
        case "playbook":
            return playbook(request.playbook)
        case _:
            raise Invalid("give a document or a playbook", mend="set document or playbook")


def _check_name(field: str, name: str) -> None:
    if not NAME.fullmatch(name):
        raise Invalid(
            f"{field}: {name!r} is no name",
            mend="a name is a small letter, then up to 63 small letters, digits, _ or -",
        )


def _document(row: Any) -> dict[str, Any]:
    return to_data(_playbooks.decode(row.content))


def _token_message(row: Any) -> pb.Token:
    scopes = [pb.Scope.Value(f"SCOPE_{name.upper()}") for name in row.scopes.split(",")]
    return pb.Token(
        id=row.id,
        app=row.app,
        subject=row.subject,
        scopes=scopes,
        created_at=timestamp(row.created_at),
        expires_at=timestamp(row.expires_at),
        revoked_at=timestamp(row.revoked_at),
    )


def _snapshot_message(row: Any, with_graph: bool) -> playbook_pb2.Snapshot:
    graph = playbook_message(_playbooks.decode(row.content)) if with_graph else None
    return playbook_pb2.Snapshot(
        id=row.id,
        playbook_id=row.playbook_id,
        playbook=graph,
        checksum=row.checksum,
        published_at=timestamp(row.published_at),
        published_by=row.published_by,
    )
