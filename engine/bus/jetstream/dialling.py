"""A connection to NATS that comes back by itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import nats
import structlog
from nats.aio.client import Client

from engine.errors import Unavailable

_log = structlog.get_logger(__name__)
_PENDING = 64 << 20  # bytes that may wait to be written


async def dial(
    servers: list[str],
    name: str,
    up: Callable[[], None],
    down: Callable[[], None],
    *,
    patience: float,
    ping: float = 10.0,
) -> Client:
    """Connects within `patience` seconds. From then on `down` is called whenever the connection
    is lost and `up` when it is back; a server that does not answer two pings, `ping` seconds
    apart, is lost. Errors: `Unavailable`."""

    async def reconnected() -> None:
        _log.info("bus reconnected", name=name)
        up()

    async def disconnected() -> None:
        down()

    async def failed(error: Exception) -> None:
        _log.warning("bus error", name=name, error=repr(error))

    try:
        return await asyncio.wait_for(
            nats.connect(
                servers,
                name=name,
                connect_timeout=5,
                allow_reconnect=True,
                max_reconnect_attempts=-1,
                reconnect_time_wait=0.25,
                ping_interval=ping,
                max_outstanding_pings=2,
                pending_size=_PENDING,
                reconnected_cb=reconnected,
                disconnected_cb=disconnected,
                error_cb=failed,
            ),
            patience,
        )
    except Exception as error:
        raise Unavailable(
            f"no nats-server answers at {', '.join(servers)}: {error!r}",
            reason="BUS_UNAVAILABLE",
            mend="start nats-server with JetStream, or let `magicflow dev` start its own",
        ) from error
