"""What is around traces: apps, tokens, grants, playbooks, workers, the cluster, dead letters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from magicflow.calls import Calls, duration
from magicflow.errors import Invalid, Violation
from magicflow.playbook import Playbook
from magicflow.v1 import dispatch_service_pb2 as dispatch
from magicflow.v1 import playbook_pb2
from magicflow.v1 import registry_service_pb2 as registry
from magicflow.v1.dispatch_service_pb2_grpc import DispatchServiceStub
from magicflow.v1.registry_service_pb2_grpc import RegistryServiceStub
from magicflow.v1.worker_pb2 import Function, Worker


class Administration(Calls):
    """Calls of the registry, and what operators ask of dispatchers."""

    @property
    def _registry(self) -> Any:
        return RegistryServiceStub(self._channel("registry"))

    @property
    def _dispatch(self) -> Any:
        return DispatchServiceStub(self._channel("dispatcher"))

    # Apps, tokens and grants.

    async def create_app(self, name: str, description: str = "") -> str:
        """Makes an app; returns its first token. Errors: `AlreadyExists`, `Denied`."""
        request = registry.CreateAppRequest(app=registry.App(name=name, description=description))
        answer = await self._call(self._registry.CreateApp, request, repeat=False)
        return str(answer.token)

    async def app(self, name: str) -> registry.App:
        """Errors: `NotFound`, `Denied`."""
        answer = await self._call(self._registry.GetApp, registry.GetAppRequest(name=name))
        found: registry.App = answer.app
        return found

    async def change_app(
        self,
        name: str,
        *,
        description: str | None = None,
        enabled: bool | None = None,
        quota: float | None = None,
        in_flight: int | None = None,
        require_workers: bool | None = None,
        brokers: Iterable[registry.Broker] | None = None,
        balancing: str | None = None,
        max_nodes: int | None = None,
        max_edges: int | None = None,
        max_document_bytes: int | None = None,
    ) -> registry.App:
        """Changes what is given; the app as it is then. It is read first and sent back whole: of
        two changes at the same time the last one wins. `quota` is starts per second and
        `in_flight` live traces, both for the whole cluster, 0 for no limit; `balancing` is
        `round_robin`, `weight` or `consistent_hash`; the last three bound the app's playbooks, 0 as
        the cluster does. Errors: `Invalid`, `NotFound`, `Denied`."""
        app = await self.app(name)
        plain = {
            "description": description,
            "enabled": enabled,
            "quota": quota,
            "in_flight": in_flight,
            "require_workers": require_workers,
            "max_nodes": max_nodes,
            "max_edges": max_edges,
            "max_document_bytes": max_document_bytes,
        }
        for field, value in plain.items():
            if value is not None:
                _set(app, field, value)
        if brokers is not None:
            del app.brokers[:]
            app.brokers.extend(brokers)
        if balancing is not None:
            try:
                app.balancing = registry.Balancing.Value(f"BALANCING_{balancing.upper()}")
            except ValueError as error:
                raise Invalid(
                    f"{balancing!r} is no balancing",
                    reason="INVALID",
                    mend="write round_robin, weight or consistent_hash",
                ) from error
        request = registry.UpdateAppRequest(app=app)
        answer = await self._call(self._registry.UpdateApp, request)
        changed: registry.App = answer.app
        return changed

    async def apps(self) -> list[registry.App]:
        answer = await self._call(self._registry.ListApps, registry.ListAppsRequest())
        return list(answer.apps)

    async def create_token(
        self, app: str, subject: str, scopes: Iterable[str], lifetime: float = 0.0
    ) -> tuple[str, registry.Token]:
        """A token's text, shown once, and what is remembered of it. Scopes are `trigger`, `work`,
        `operate`, `admin`; `lifetime` in seconds, 0 for 90 days."""
        try:
            numbers = [registry.Scope.Value(f"SCOPE_{scope.upper()}") for scope in scopes]
        except ValueError as error:
            raise Invalid(str(error), reason="INVALID") from error
        request = registry.CreateTokenRequest(
            app=app,
            subject=subject,
            scopes=numbers,
            lifetime=duration(lifetime) if lifetime else None,
        )
        answer = await self._call(self._registry.CreateToken, request, repeat=False)
        return answer.text, answer.token

    async def revoke_token(self, token_id: str) -> None:
        await self._call(self._registry.RevokeToken, registry.RevokeTokenRequest(id=token_id))

    async def tokens(self, app: str) -> list[registry.Token]:
        answer = await self._call(self._registry.ListTokens, registry.ListTokensRequest(app=app))
        return list(answer.tokens)

    async def grant(self, target: str, grantee: str) -> None:
        """Lets another app use `app/name` or `app/*`; harmless to repeat."""
        await self._call(
            self._registry.CreateGrant, registry.CreateGrantRequest(grant=_grant(target, grantee))
        )

    async def revoke_grant(self, target: str, grantee: str) -> None:
        await self._call(
            self._registry.RevokeGrant, registry.RevokeGrantRequest(grant=_grant(target, grantee))
        )

    async def grants(self, app: str) -> list[registry.Grant]:
        answer = await self._call(self._registry.ListGrants, registry.ListGrantsRequest(app=app))
        return list(answer.grants)

    async def validate(
        self, playbook: str | Playbook, *, strict: bool = False
    ) -> list[playbook_pb2.Finding]:
        """Checks a document (YAML or JSON text) or a `Playbook`; stores nothing."""
        request = registry.ValidatePlaybookRequest(document=_document(playbook), strict=strict)
        answer = await self._call(self._registry.ValidatePlaybook, request)
        return list(answer.findings)

    async def publish(
        self, playbook: str | Playbook, *, switch: bool = False, strict: bool = False
    ) -> registry.PublishSnapshotResponse:
        """Freezes a playbook into a snapshot; the same content again is the same snapshot. With
        `switch` it becomes the active version.

        Errors: `Invalid` with every finding in `violations`, `NotFound` for an unknown app.
        """
        request = registry.PublishSnapshotRequest(
            document=_document(playbook), switch=switch, strict=strict
        )
        answer: registry.PublishSnapshotResponse = await self._call(
            self._registry.PublishSnapshot, request
        )
        return answer

    async def switch(self, playbook: str, snapshot: int, *, expected: int = 0) -> int:
        """Makes a snapshot active; returns the one before, 0 for none. With `expected` only if
        that one is active now. Errors: `NotFound`, `Conflict`."""
        request = registry.SwitchSnapshotRequest(
            playbook=playbook, snapshot_id=snapshot, expected_snapshot_id=expected
        )
        answer = await self._call(self._registry.SwitchSnapshot, request, repeat=False)
        return int(answer.previous_snapshot_id)

    async def playbook(self, name: str) -> registry.PlaybookRecord:
        answer = await self._call(
            self._registry.GetPlaybook, registry.GetPlaybookRequest(playbook=name)
        )
        record: registry.PlaybookRecord = answer.playbook
        return record

    async def playbooks(self, app: str = "") -> list[registry.PlaybookRecord]:
        answer = await self._call(
            self._registry.ListPlaybooks, registry.ListPlaybooksRequest(app=app)
        )
        return list(answer.playbooks)

    async def snapshot(self, snapshot_id: int) -> playbook_pb2.Snapshot:
        answer = await self._call(
            self._registry.GetSnapshot, registry.GetSnapshotRequest(id=snapshot_id)
        )
        snapshot: playbook_pb2.Snapshot = answer.snapshot
        return snapshot

    async def snapshots(self, playbook: str, limit: int = 100) -> list[playbook_pb2.Snapshot]:
        request = registry.ListSnapshotsRequest(playbook=playbook, page_size=min(limit, 1_000))
        answer = await self._call(self._registry.ListSnapshots, request)
        return list(answer.snapshots)

    async def diff(self, older: int, newer: int) -> list[registry.Difference]:
        request = registry.DiffSnapshotsRequest(from_snapshot_id=older, to_snapshot_id=newer)
        answer = await self._call(self._registry.DiffSnapshots, request)
        return list(answer.differences)

    async def functions(self, app: str = "") -> list[Function]:
        answer = await self._call(
            self._registry.ListFunctions, registry.ListFunctionsRequest(app=app)
        )
        return list(answer.functions)

    async def workers(self, app: str = "") -> list[Worker]:
        answer = await self._call(self._registry.ListWorkers, registry.ListWorkersRequest(app=app))
        return list(answer.workers)

    async def cluster(self) -> registry.GetClusterResponse:
        answer: registry.GetClusterResponse = await self._call(
            self._registry.GetCluster, registry.GetClusterRequest()
        )
        return answer

    # Dead letters.

    async def dead_letters(self, limit: int = 100) -> list[dispatch.DeadLetter]:
        """Frames that could not be processed, newest first. Their frames are left out;
        `dead_letter` has one. Errors: `Denied`."""
        found: list[dispatch.DeadLetter] = []
        token = ""
        while len(found) < limit:
            request = dispatch.ListDeadLettersRequest(
                page_size=min(1_000, limit - len(found)), page_token=token
            )
            answer = await self._call(self._dispatch.ListDeadLetters, request)
            found.extend(answer.dead_letters)
            token = answer.next_page_token
            if not token:
                break
        return found

    async def dead_letter(self, number: int) -> dispatch.DeadLetter:
        """Errors: `NotFound`, `Denied`."""
        answer = await self._call(
            self._dispatch.GetDeadLetter, dispatch.GetDeadLetterRequest(id=number)
        )
        letter: dispatch.DeadLetter = answer.dead_letter
        return letter

    async def replay_dead_letter(self, number: int) -> None:
        """Puts it back where it came from. Errors: `NotFound`, `Denied`, `WrongState` for a task
        that ended its workers: retry its trace."""
        request = dispatch.ReplayDeadLetterRequest(id=number)
        await self._call(self._dispatch.ReplayDeadLetter, request, repeat=False)

    async def drop_dead_letter(self, number: int) -> None:
        """Forgets it. Errors: `NotFound`, `Denied`."""
        request = dispatch.DropDeadLetterRequest(id=number)
        await self._call(self._dispatch.DropDeadLetter, request, repeat=False)


def _document(playbook: str | Playbook) -> str:
    return playbook if isinstance(playbook, str) else playbook.to_json()


def _set(app: registry.App, field: str, value: Any) -> None:
    """Errors: `Invalid` for what the field cannot hold."""
    try:
        setattr(app, field, value)
    except (TypeError, ValueError) as error:
        message = f"{value!r} cannot be an app's {field}"
        raise Invalid(
            message,
            reason="INVALID",
            violations=(Violation(f"app.{field}", "INVALID", str(error)),),
        ) from error


def _grant(target: str, grantee: str) -> registry.Grant:
    return registry.Grant(owner=target.partition("/")[0], grantee=grantee, target=target)
