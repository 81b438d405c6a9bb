"""Which etcd servers are safe to trust."""

from __future__ import annotations

import re
from collections.abc import Sequence

from engine.errors import Unavailable
from engine.snapshots.etcd.driver import TIMEOUT, Driver, Login, Tls
from engine.snapshots.etcd.wire_pb2 import StatusRequest

# 3.5.0 to 3.5.2 lose acknowledged writes when killed (etcd issue 13766), and members of one
# cluster may come to disagree up to 3.5.4; 3.4 got the same repairs in 3.4.21.
OLDEST = (3, 4, 21)
SAFE_FROM: dict[tuple[int, ...], tuple[int, ...]] = {(3, 5): (3, 5, 5)}


async def server_version(
    endpoints: str | Sequence[str],
    *,
    tls: Tls | None = None,
    login: Login | None = None,
    timeout: float = TIMEOUT,
) -> str:
    """The oldest version among the endpoints that answer, such as "3.5.16".

    Raises `Unavailable` when none answers within `timeout` seconds."""
    driver = Driver(endpoints, tls=tls, login=login, timeout=timeout)
    try:
        return await oldest_version(driver)
    finally:
        await driver.close()


async def oldest_version(driver: Driver) -> str:
    versions = [
        answer.version
        for answer in await driver.call_each(
            lambda member: member.maintenance.Status, StatusRequest()
        )
    ]
    return min(versions, key=_numbers)


def check_version(version: str) -> None:
    """Raises `Unavailable` (ETCD_TOO_OLD) for a server that is known to lose data."""
    numbers = _numbers(version)
    if numbers < SAFE_FROM.get(numbers[:2], OLDEST):
        raise Unavailable(
            f"this etcd is version {version}, which can lose acknowledged changes",
            reason="ETCD_TOO_OLD",
            mend="Run etcd 3.4.21 or newer in 3.4, 3.5.5 or newer in 3.5, or any 3.6.",
        )


def _numbers(version: str) -> tuple[int, ...]:
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    return tuple(map(int, found.groups())) if found else (0, 0, 0)
