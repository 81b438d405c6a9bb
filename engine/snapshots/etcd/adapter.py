"""The space in etcd: the one that many processes share."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence

from grpc.aio import AioRpcError

from engine.errors import Unavailable
from engine.snapshots.etcd import failures
from engine.snapshots.etcd.driver import TIMEOUT, Driver, Login, Tls
from engine.snapshots.etcd.version import check_version, oldest_version
from engine.snapshots.etcd.watching import watch
from engine.snapshots.etcd.wire_pb2 import (
    CompactionRequest,
    Compare,
    DeleteRangeRequest,
    KeyValue,
    LeaseGrantRequest,
    LeaseKeepAliveRequest,
    LeaseKeepAliveResponse,
    LeaseRevokeRequest,
    PutRequest,
    RangeRequest,
    RequestOp,
    TxnRequest,
)
from engine.snapshots.lease import KeptLease
from engine.snapshots.limits import check_commit, check_key, check_prefix, whole_seconds
from engine.snapshots.port import Change, Delete, Entry, LeaseLost, Put, Require


class EtcdSnapshots:
    """A client of one etcd cluster. Implements `engine.snapshots.port.Snapshots`.

    `endpoints`: `host:port`, with or without a scheme, in a sequence or by commas; any of them
    will do. `timeout` is in seconds. Nothing is sent before the first call.

    Errors beyond the port's: `Unauthenticated` and `Denied`, for a login that etcd refuses.
    `Unavailable` with the reason ETCD_OUTCOME_UNKNOWN means that the change may have happened.
    """

    def __init__(
        self,
        endpoints: str | Sequence[str],
        *,
        tls: Tls | None = None,
        login: Login | None = None,
        timeout: float = TIMEOUT,
    ) -> None:
        self._driver = Driver(endpoints, tls=tls, login=login, timeout=timeout)
        self._leases: set[KeptLease] = set()

    async def check(self) -> str:
        """The oldest version among the members; `Unavailable` (ETCD_TOO_OLD) if it loses data."""
        version = await oldest_version(self._driver)
        check_version(version)
        return version

    async def get(self, key: str) -> Entry | None:
        check_key(key)
        answer = await self._driver.call(
            lambda member: member.kv.Range, RangeRequest(key=key.encode()), repeatable=True
        )
        return _entry(answer.kvs[0]) if answer.kvs else None

    async def list(self, prefix: str) -> tuple[Sequence[Entry], int]:
        check_prefix(prefix)
        key, range_end = _range(prefix)
        answer = await self._driver.call(
            lambda member: member.kv.Range,
            # etcd's own order is by key, and asking for it makes the server sort again.
            RangeRequest(key=key, range_end=range_end),
            repeatable=True,
        )
        return [_entry(kv) for kv in answer.kvs], answer.header.revision

    async def commit(self, require: Sequence[Require], do: Sequence[Put | Delete]) -> int | None:
        check_commit(require, do)
        answer = await self._driver.call(
            lambda member: member.kv.Txn,
            TxnRequest(compare=map(_compare, require), success=map(_operation, do)),
            repeatable=not do,
            known=_lease_lost,
        )
        return answer.header.revision if answer.succeeded else None

    async def put(self, key: str, value: bytes, lease: int = 0) -> int:
        check_commit([], [Put(key, value, lease)])
        answer = await self._driver.call(
            lambda member: member.kv.Put,
            PutRequest(key=key.encode(), value=value, lease=lease),
            repeatable=False,
            known=_lease_lost,
        )
        return answer.header.revision

    async def delete(self, key: str) -> bool:
        check_key(key)
        answer = await self._driver.call(
            lambda member: member.kv.DeleteRange,
            DeleteRangeRequest(key=key.encode()),
            repeatable=False,
        )
        return answer.deleted > 0

    async def watch(self, prefix: str, since: int) -> AsyncGenerator[Change, None]:
        check_prefix(prefix)
        changes = watch(self._driver, *_range(prefix), since)
        try:
            async for change in changes:
                yield change
        finally:
            await changes.aclose()

    async def grant(self, ttl: float) -> KeptLease:
        seconds = whole_seconds(ttl)
        sent = _now()
        answer = await self._driver.call(
            lambda member: member.lease.LeaseGrant,
            LeaseGrantRequest(TTL=seconds),
            # A second grant leaves a lease that nobody renews and that holds no key.
            repeatable=True,
        )
        lease = KeptLease(
            answer.ID,
            answer.TTL,
            sent=sent,
            renew=self._renew,
            revoke=self._revoke,
            now=_now,
        )
        self._leases = {kept for kept in self._leases if not kept.finished()} | {lease}
        return lease

    async def compact(self) -> None:
        """Forgets the history so far. Administration; not part of the port."""
        now = await self._driver.call(
            lambda member: member.kv.Range,
            RangeRequest(key=b"\0", count_only=True),
            repeatable=True,
        )
        await self._driver.call(
            lambda member: member.kv.Compact,
            CompactionRequest(revision=now.header.revision),
            repeatable=False,
        )

    async def close(self) -> None:
        """Renews no lease any more, ends every watch with `Unavailable`, and disconnects."""
        for lease in self._leases:
            await lease.stop()
        self._leases.clear()
        await self._driver.close()

    async def _renew(self, id: int) -> float | None:
        # A stream for each renewal costs little at this pace, and its failover is the same as
        # everything else's.
        async with self._driver.stream(
            lambda member: member.lease.LeaseKeepAlive, timeout=TIMEOUT
        ) as call:
            await call.write(LeaseKeepAliveRequest(ID=id))
            answer = await call.read()
            if not isinstance(answer, LeaseKeepAliveResponse):
                raise Unavailable("etcd ended the renewal without an answer")
            return answer.TTL if answer.TTL > 0 else None

    async def _revoke(self, id: int) -> None:
        # Lost means that it had ended by itself, or that a first attempt came through.
        with contextlib.suppress(LeaseLost):
            await self._driver.call(
                lambda member: member.lease.LeaseRevoke,
                LeaseRevokeRequest(ID=id),
                repeatable=True,
                known=_lease_lost,
            )


def _range(prefix: str) -> tuple[bytes, bytes]:
    """All keys that start so. UTF-8 has no byte 255, so the last one can always grow."""
    if not prefix:
        return b"\0", b"\0"
    key = prefix.encode()
    return key, key[:-1] + bytes([key[-1] + 1])


def _entry(kv: KeyValue) -> Entry:
    return Entry(kv.key.decode(), kv.value, kv.create_revision, kv.mod_revision, kv.lease)


def _compare(require: Require) -> Compare:
    return Compare(
        key=require.key.encode(),
        target=Compare.MOD,
        result=Compare.EQUAL,
        mod_revision=require.modified,
    )


def _operation(operation: Put | Delete) -> RequestOp:
    if isinstance(operation, Put):
        return RequestOp(
            request_put=PutRequest(
                key=operation.key.encode(), value=operation.value, lease=operation.lease
            )
        )
    return RequestOp(request_delete_range=DeleteRangeRequest(key=operation.key.encode()))


def _lease_lost(error: AioRpcError) -> LeaseLost | None:
    if failures.is_lease_missing(error):
        return LeaseLost("the lease has ended; grant a new one")
    return None


def _now() -> float:
    return asyncio.get_running_loop().time()
