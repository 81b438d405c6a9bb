"""One process: the services it was asked for, on one port, over the adapters that its settings
name. Here and in the services' `app.py` adapters are chosen, nowhere else."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from engine.bus.jetstream import connect as connect_bus
from engine.config import Settings
from engine.errors import Invalid, Unavailable
from engine.rpc.channels import Channels, Owners
from engine.rpc.interceptors import Gate
from engine.rpc.server import Registration, Server
from engine.security.keys import FileKeys
from engine.security.tokens import EVERY_APP, SERVICE, Tokens
from engine.snapshots import keys
from engine.snapshots.embedded import EmbeddedSnapshots
from engine.snapshots.etcd.adapter import EtcdSnapshots
from engine.snapshots.etcd.driver import Login
from engine.snapshots.library import Library
from engine.snapshots.membership import Member, encode
from engine.snapshots.mirror import Mirror
from engine.snapshots.port import Put, Require, Snapshots
from engine.snapshots.presence import Presence
from services.dispatcher.app import Dispatcher
from services.trigger.app import Trigger

if TYPE_CHECKING:
    from engine.store.sql import Database

SERVICES = ("trigger", "dispatcher", "registry", "trace")
_SERVICE_TOKEN = 4 * 3_600.0  # seconds; renewed long before, so that a clock may step by an hour
_RENEW_TOKEN = 1_800.0
_log = structlog.get_logger(__name__)


class Cluster(msgspec.Struct):
    """What is fixed when a cluster is made."""

    partitions: int


async def open_snapshots(settings: Settings) -> Snapshots:
    """etcd where endpoints are given, else the embedded space in the data directory.

    Errors: `Unavailable`.
    """
    if settings.etcd:
        login = Login(settings.etcd_user, settings.etcd_password) if settings.etcd_user else None
        etcd = EtcdSnapshots(settings.etcd, login=login)
        await etcd.check()
        return etcd
    settings.data.mkdir(parents=True, exist_ok=True)
    return EmbeddedSnapshots(settings.data / "snapshots.db")


class Host:
    """Starts and stops in the order that loses nothing."""

    def __init__(self, settings: Settings, names: Sequence[str]) -> None:
        unknown = set(names) - set(SERVICES)
        if unknown or not names:
            raise Invalid(
                f"there is no service {', '.join(sorted(unknown)) or '(none named)'}",
                mend=f"services are {', '.join(SERVICES)}",
            )
        if settings.auth == "local" and not settings.loopback:
            raise Invalid(
                f"auth is `local` and {settings.listen} can be reached from other hosts",
                mend="listen on 127.0.0.1, or set auth to `required`",
            )
        self._settings = settings
        self._names = [name for name in SERVICES if name in names]
        self._stack = contextlib.AsyncExitStack()
        self._token: tuple[float, tuple[tuple[str, str], ...]] = (0.0, ())
        self._tokens: Tokens | None = None
        self._server: Server | None = None
        self.port = 0

    async def start(self) -> None:
        """Returns when everything serves. Errors: `Unavailable`, `Invalid`; then nothing is left
        running."""
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise

    async def stop(self) -> None:
        await self._stack.aclose()

    async def _start(self) -> None:
        settings, stack = self._settings, self._stack
        settings.data.mkdir(parents=True, exist_ok=True)
        snapshots = await open_snapshots(settings)
        stack.push_async_callback(snapshots.close)
        cluster = await _cluster(snapshots, settings.partitions)
        tokens = await self._open_tokens(snapshots)
        bus = await connect_bus(
            settings.nats,
            partitions=cluster.partitions,
            replicas=settings.replicas,
            name=f"magicflow {settings.name}",
            monitors=settings.nats_monitor,
        )
        stack.push_async_callback(bus.close)
        library = Library(snapshots)
        await library.open()
        stack.push_async_callback(library.close)
        channels = Channels()
        stack.push_async_callback(channels.close)
        owners = Owners(snapshots, cluster.partitions, channels, self._credentials)
        await owners.open()
        stack.push_async_callback(owners.close)
        database: Database | None = None
        if {"registry", "trace"} & set(self._names):
            # SQL is half of what there is to import; who has no use for it starts without.
            from engine.store.sql import Database

            database = await Database.open(settings.database_url)
            stack.push_async_callback(database.close)
        parts: list[Any] = []
        for name in self._names:
            parts.append(
                self._part(
                    name,
                    cluster.partitions,
                    snapshots,
                    tokens,
                    bus,
                    library,
                    owners,
                    channels,
                    database,
                )
            )
        services: list[Registration] = [s for part in parts for s in part.services]
        gate = Gate(tokens, settings.auth == "local")
        self._server = Server(gate, services)
        self.port = await self._server.start(settings.listen)
        stack.push_async_callback(self._server.stop, 2.0)
        await self._announce(snapshots)
        for part in parts:
            await part.open()
            stack.push_async_callback(part.close)
        _spare_the_collector()
        _log.info("serving", services=self._names, address=settings.listen)

    def _part(
        self,
        name: str,
        partitions: int,
        snapshots: Snapshots,
        tokens: Tokens,
        bus: Any,
        library: Library,
        owners: Owners,
        channels: Channels,
        database: Database | None,
    ) -> Any:
        settings = self._settings
        if name == "trigger":
            return Trigger(partitions, snapshots, bus, library, owners, channels)
        if name == "dispatcher":
            return Dispatcher(
                self._member(name),
                partitions,
                snapshots,
                bus,
                library,
                owners,
                lease=settings.lease,
                drain=settings.drain,
                lateness=settings.lateness,
            )
        assert database is not None
        if name == "registry":
            from services.registry.app import Registry

            return Registry(partitions, snapshots, tokens, database, settings.limits)
        from services.trace.app import Trace

        return Trace(settings.name, partitions, snapshots, bus, library, owners, database)

    def _member(self, service: str) -> Member:
        address = self._settings.address
        return Member(
            service,
            self._settings.name,
            address,
            version("magicflow-server"),
            int(time.time() * 1_000),
        )

    async def _announce(self, snapshots: Snapshots) -> None:
        """Makes the services known to the others, for as long as this process lives."""
        presence = Presence(snapshots)
        await presence.open()
        self._stack.push_async_callback(presence.close)
        for name in self._names:
            member = self._member(name)
            presence.show(f"{keys.INSTANCES}{name}/{member.name}", encode(member))
        await presence.settled()

    async def _open_tokens(self, snapshots: Snapshots) -> Tokens:
        settings = self._settings
        keys_ = FileKeys.open(settings.keys_folder, create=settings.keys is None)
        revoked = Mirror(snapshots, keys.REVOKED)
        await revoked.open()
        self._stack.push_async_callback(revoked.close)
        self._tokens = Tokens(keys_, lambda token_id: keys.revoked(token_id) in revoked.entries)
        return self._tokens

    def _credentials(self) -> tuple[tuple[str, str], ...]:
        """The metadata that proves this process to other instances."""
        made_until, metadata = self._token
        if time.monotonic() < made_until:
            return metadata
        assert self._tokens is not None
        text, _ = self._tokens.make(EVERY_APP, SERVICE, ("admin",), _SERVICE_TOKEN)
        metadata = (("authorization", f"Bearer {text}"),)
        self._token = (time.monotonic() + _RENEW_TOKEN, metadata)
        return metadata


def _spare_the_collector() -> None:
    """What is here now stays: modules, adapters, services. And the hot path makes tens of
    thousands of short-lived values a second without a cycle among them, for which the standard
    thresholds would walk the heap again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


async def _cluster(snapshots: Snapshots, partitions: int) -> Cluster:
    """The cluster's fixed numbers; the first process to come writes them."""
    wanted = msgspec.json.encode(Cluster(partitions))
    await snapshots.commit([Require(keys.CLUSTER, 0)], [Put(keys.CLUSTER, wanted)])
    entry = await snapshots.get(keys.CLUSTER)
    if entry is None:
        raise Unavailable("the cluster's record vanished", reason="SNAPSHOTS_UNAVAILABLE")
    cluster = msgspec.json.decode(entry.value, type=Cluster)
    if cluster.partitions != partitions:
        raise Invalid(
            f"this cluster was made with {cluster.partitions} partitions, not {partitions}",
            mend=f"set MAGICFLOW_PARTITIONS={cluster.partitions}",
        )
    return cluster
