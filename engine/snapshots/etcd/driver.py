"""Calls and streams to whichever etcd member answers: failover, TLS, login, deadlines.

A call moves on to the next member only when that is safe: a read always, a change only when it
is certain that it had not begun. A change whose fate is unknown raises `Unavailable` with the
reason ETCD_OUTCOME_UNKNOWN; nothing is ever sent twice behind the caller's back.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
from grpc.aio import AioRpcError, UsageError

from engine.errors import Invalid, Unavailable
from engine.snapshots.etcd import failures, wire_pb2, wire_pb2_grpc

if TYPE_CHECKING:
    from grpc.aio import (
        Channel,
        StreamStreamCall,
        StreamStreamMultiCallable,
        UnaryUnaryMultiCallable,
    )

TIMEOUT = 5.0  # seconds, for one call with all its attempts

Request = TypeVar("Request")
Response = TypeVar("Response")
Metadata = tuple[tuple[str, str], ...]

_CHANNEL_OPTIONS: list[tuple[str, Any]] = [
    # The keep-alive finds a peer that vanished without a word; etcd refuses pings more often
    # than every 5 s.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    # gRPC's own backoff grows to two minutes; a lease does not live that long.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # A list of many snapshots exceeds the default of 4 MiB.
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # Two clients in one process must not share a connection, nor its backoff.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.service_config_disable_resolution", 1),
]
# A member that lost its quorum then refuses at once, instead of answering late or never.
_NEEDS_LEADER: Metadata = (("hasleader", "true"),)
_PAUSE = 0.05  # seconds between two rounds over members of which none answers
_TURN = 1.0  # seconds to wait for one member's connection while others are left to try


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files. Without `ca` the system's roots count; `cert` and `key` go together."""

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        if (self.cert is None) != (self.key is None):
            raise Invalid(
                "a client certificate for etcd needs both cert and key",
                reason="ETCD_TLS",
                mend="Name both files or neither.",
            )
        try:
            return grpc.ssl_channel_credentials(
                root_certificates=_read(self.ca),
                private_key=_read(self.key),
                certificate_chain=_read(self.cert),
            )
        except OSError as error:
            raise Invalid(
                f"the TLS files for etcd cannot be read: {error}",
                reason="ETCD_TLS",
                mend="Check the paths and their permissions.",
            ) from error


@dataclass(frozen=True, slots=True)
class Login:
    user: str
    password: str

    def __repr__(self) -> str:  # a password must not reach a log
        return f"Login({self.user!r}, …)"


@dataclass(frozen=True, slots=True)
class Address:
    """`host:port`, with or without http:// or https://; several in one string by commas."""

    target: str
    tls: bool | None = None  # None: as the options say

    @classmethod
    def parse(cls, endpoints: str | Sequence[str]) -> tuple[Address, ...]:
        """Raises `Invalid` unless there is at least one, each with a port."""
        given = endpoints.split(",") if isinstance(endpoints, str) else endpoints
        found = tuple(cls._one(one.strip()) for one in given if one.strip())
        if not found:
            raise Invalid(
                "no etcd endpoint is named",
                reason="ETCD_ENDPOINT",
                mend="Name at least one, such as etcd:2379.",
            )
        return found

    @classmethod
    def _one(cls, text: str) -> Address:
        scheme, separator, rest = text.rpartition("://")
        target = rest.rstrip("/")
        host, _, port = target.rpartition(":")
        if (separator and scheme not in ("http", "https")) or not host or not port.isdigit():
            raise Invalid(
                f"{text!r} is no etcd endpoint",
                reason="ETCD_ENDPOINT",
                mend="Write host:port, http://host:port or https://host:port.",
            )
        return cls(target, scheme == "https" if separator else None)


class Member:
    """One endpoint: its channel and the stubs on it."""

    def __init__(self, target: str, credentials: grpc.ChannelCredentials | None) -> None:
        self.target = target
        self.channel: Channel = (
            grpc.aio.secure_channel(target, credentials, _CHANNEL_OPTIONS)
            if credentials
            else grpc.aio.insecure_channel(target, _CHANNEL_OPTIONS)
        )
        self.kv = wire_pb2_grpc.KVStub(self.channel)
        self.watch = wire_pb2_grpc.WatchStub(self.channel)
        self.lease = wire_pb2_grpc.LeaseStub(self.channel)
        self.auth = wire_pb2_grpc.AuthStub(self.channel)
        self.cluster = wire_pb2_grpc.ClusterStub(self.channel)
        self.maintenance = wire_pb2_grpc.MaintenanceStub(self.channel)

    async def connected(self, timeout: float) -> bool:
        """True once there is a connection; False when it failed or the seconds are up."""
        try:
            async with asyncio.timeout(timeout):
                state = self.channel.get_state(try_to_connect=True)
                while state is not grpc.ChannelConnectivity.READY:
                    if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                        return False
                    await self.channel.wait_for_state_change(state)
                    state = self.channel.get_state(try_to_connect=True)
                return True
        except TimeoutError:
            return False


class Driver:
    """A client of one etcd cluster, for one event loop.

    `endpoints` are tried in order, starting with the one that answered last. `timeout` is in
    seconds. Errors: `Unavailable`, `Unauthenticated`, `Denied`, `Invalid`; a caller that knows
    more about an answer passes `known` to translate it first.
    """

    def __init__(
        self,
        endpoints: str | Sequence[str],
        *,
        tls: Tls | None = None,
        login: Login | None = None,
        timeout: float = TIMEOUT,
    ) -> None:
        self._addresses = Address.parse(endpoints)
        self._tls = tls
        self._login = login
        self._timeout = timeout
        self._members: list[Member] = []
        self._current = 0
        self._token: str | None = None
        self._login_turn = asyncio.Lock()
        self._closed = False

    @property
    def closed(self) -> bool:
        return self._closed

    async def call(
        self,
        choose: Callable[[Member], UnaryUnaryMultiCallable[Request, Response]],
        request: Request,
        *,
        repeatable: bool,
        known: Callable[[AioRpcError], Exception | None] = lambda error: None,
        timeout: float | None = None,
    ) -> Response:
        """One request and its answer. `repeatable`: doing it twice is as good as once."""
        with self._explained():
            deadline = self._now() + (timeout or self._timeout)
            token: str | None = None
            renewed = False
            last = ""
            while True:
                member = await self._reach(deadline, last)
                begun = False
                try:
                    token = await self._log_in(member, deadline)
                    begun = True
                    return await choose(member)(
                        request,
                        timeout=self._share(deadline, repeatable),
                        metadata=_metadata(token),
                    )
                except AioRpcError as error:
                    last = failures.details(error)
                    if failures.is_stale_token(error) and self._login and not renewed:
                        renewed = True
                        self._forget(token)
                        continue
                    if not failures.is_passing(error):
                        raise (known(error) or failures.translate(error)) from error
                    self._move_on(member)
                    if begun and not repeatable and not failures.has_not_begun(error):
                        raise failures.outcome_unknown(error) from error
                    await asyncio.sleep(_PAUSE)

    async def call_each(
        self,
        choose: Callable[[Member], UnaryUnaryMultiCallable[Request, Response]],
        request: Request,
    ) -> Sequence[Response]:
        """The answers of all members that can be reached, at least one. Only for reads."""
        with self._explained():
            deadline = self._now() + self._timeout
            await self._reach(deadline, "")
            async with asyncio.TaskGroup() as group:
                asked = [
                    group.create_task(self._ask(member, choose, request, deadline))
                    for member in self._opened()
                ]
        found = [answer for task in asked for answer in task.result()]
        # All failed between the connection and the answer: the usual call explains it best.
        return found or [await self.call(choose, request, repeatable=True)]

    async def _ask(
        self,
        member: Member,
        choose: Callable[[Member], UnaryUnaryMultiCallable[Request, Response]],
        request: Request,
        deadline: float,
    ) -> list[Response]:
        try:
            if await member.connected(min(_TURN, deadline - self._now())):
                token = await self._log_in(member, deadline)
                left = max(0.0, deadline - self._now())
                return [await choose(member)(request, timeout=left, metadata=_metadata(token))]
        except AioRpcError:
            pass
        return []

    @asynccontextmanager
    async def stream(
        self,
        choose: Callable[[Member], StreamStreamMultiCallable[Request, Response]],
        *,
        timeout: float | None = None,
    ) -> AsyncIterator[StreamStreamCall[Request, Response]]:
        """A stream to a member that is connected; `timeout` bounds its whole life.

        Raises `Unavailable` when no member answers or the stream breaks; the next one then
        starts at another member."""
        with self._explained():
            deadline = self._now() + self._timeout
            member = await self._reach(deadline, "")
            try:
                token = await self._log_in(member, deadline)
                call = choose(member)(metadata=_metadata(token), timeout=timeout)
                try:
                    yield call
                finally:
                    call.cancel()
            except AioRpcError as error:
                if failures.is_stale_token(error) and self._login:
                    self._forget(token)
                elif not failures.is_passing(error):
                    raise failures.translate(error) from error
                else:
                    self._move_on(member)
                raise failures.unreachable(member.target, failures.details(error)) from error
            except asyncio.InvalidStateError as error:  # written to after the stream broke
                self._move_on(member)
                raise failures.unreachable(member.target, str(error)) from error

    def forget_token(self) -> bool:
        """For a stream that was refused in words only. False where there is no login."""
        self._token = None
        return self._login is not None

    async def close(self) -> None:
        """Breaks every call and stream: their callers get `Unavailable` (CLOSED)."""
        self._closed = True
        members, self._members = self._members, []
        for member in members:
            await member.channel.close()

    async def _reach(self, deadline: float, last: str) -> Member:
        """A member with a connection, the current one first."""
        members = self._opened()
        while True:
            for _ in members:
                member = members[self._current % len(members)]
                left = deadline - self._now()
                if left > 0 and await member.connected(
                    left if len(members) == 1 else min(left, _TURN)
                ):
                    return member
                self._move_on(member)
            if self._closed:
                raise failures.closed()
            if deadline - self._now() <= _PAUSE:
                targets = ", ".join(address.target for address in self._addresses)
                raise failures.unreachable(targets, last)
            await asyncio.sleep(_PAUSE)

    def _opened(self) -> list[Member]:
        if self._closed:
            raise failures.closed()
        # Not in __init__: a channel belongs to the loop that runs when it is made.
        if not self._members:
            credentials = self._tls.credentials() if self._tls else None
            self._members = [
                Member(address.target, self._credentials(address, credentials))
                for address in self._addresses
            ]
        return self._members

    @staticmethod
    def _credentials(
        address: Address, configured: grpc.ChannelCredentials | None
    ) -> grpc.ChannelCredentials | None:
        if address.tls is False:
            return None
        return configured or (Tls().credentials() if address.tls else None)

    def _move_on(self, failed: Member) -> None:
        # Only from the member that failed: many calls fail at once when a connection breaks.
        if self._members and self._members[self._current % len(self._members)] is failed:
            self._current += 1

    def _share(self, deadline: float, repeatable: bool) -> float:
        """Seconds for one attempt: a read leaves time for the other members."""
        left = max(0.0, deadline - self._now())
        return left / 2 if repeatable and len(self._addresses) > 1 else left

    async def _log_in(self, member: Member, deadline: float) -> str:
        if self._login is None:
            return ""
        async with self._login_turn:
            if self._token is None:
                self._token = await self._authenticate(self._login, member, deadline)
            return self._token

    async def _authenticate(self, login: Login, member: Member, deadline: float) -> str:
        request = wire_pb2.AuthenticateRequest(name=login.user, password=login.password)
        try:
            answer = await member.auth.Authenticate(
                request, timeout=max(0.0, deadline - self._now())
            )
        except AioRpcError as error:
            if "authentication is not enabled" in failures.details(error):
                return ""
            if failures.is_passing(error):
                raise
            raise failures.translate(error) from error
        return answer.token

    def _forget(self, token: str | None) -> None:
        if self._token == token:
            self._token = None

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Tells a call that `close` broke from a task that was cancelled."""
        try:
            yield
        except (asyncio.CancelledError, UsageError, Unavailable):
            task = asyncio.current_task()
            if self._closed and not (task and task.cancelling()):
                raise failures.closed() from None
            raise

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def _read(path: Path | None) -> bytes | None:
    return path.read_bytes() if path else None


def _metadata(token: str | None) -> Metadata:
    return (*_NEEDS_LEADER, ("token", token)) if token else _NEEDS_LEADER
