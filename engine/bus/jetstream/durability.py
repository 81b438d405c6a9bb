"""Whether nats-server keeps what it acknowledges: its version and how it flushes.

A client cannot see how a server flushes; the server's monitoring endpoint says so.
"""

from __future__ import annotations

import asyncio
import http.client
import re
import urllib.request
from collections.abc import Sequence

import msgspec
import structlog

from engine.errors import Unavailable

FLOOR = (2, 14)  # before it, errors of the disk could go unnoticed
_PATIENCE = 5.0  # seconds
_LIMIT = 1 << 20  # bytes of an answer
_log = structlog.get_logger(__name__)


class _Config(msgspec.Struct):
    sync_always: bool = False


class _JetStream(msgspec.Struct):
    config: _Config | None = None


class _Varz(msgspec.Struct):
    version: str = ""
    jetstream: _JetStream = msgspec.field(default_factory=_JetStream)


def check_version(version: str) -> None:
    """Errors: `Unavailable` for a server that is too old."""
    found = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if found < FLOOR:
        floor = ".".join(map(str, FLOOR))
        raise Unavailable(
            f"nats-server is version {version or 'unknown'}; magicflow needs {floor} or newer",
            reason="BUS_UNAVAILABLE",
            mend="upgrade nats-server",
        )


async def check_durable(monitors: Sequence[str]) -> list[str]:
    """Asks each server's monitoring endpoint, `http://host:8222`; returns those that do not
    answer: one server of a cluster may be down. Errors: `Unavailable` when one is too old, has no
    JetStream, or acknowledges before the disk has it, and for what is no address."""
    silent = []
    for monitor in monitors:
        try:
            varz = await asyncio.to_thread(_varz, monitor.rstrip("/"))
        except (http.client.InvalidURL, ValueError) as error:
            raise _no_endpoint(monitor) from error
        except (OSError, http.client.HTTPException, msgspec.MsgspecError) as error:
            # Of what speaks no HTTP, such as the port for clients, the words alone say little.
            why = f"{type(error).__name__}: {error}"
            _log.warning("a monitoring endpoint does not answer as one", monitor=monitor, why=why)
            silent.append(monitor)
            continue
        check_version(varz.version)
        if varz.jetstream.config is None:
            raise _refused(f"the nats-server at {monitor} has no JetStream", "enable jetstream")
        if not varz.jetstream.config.sync_always:
            raise _refused(
                f"the nats-server at {monitor} acknowledges before the disk has the data: what it "
                "acknowledged in the last minutes would be gone after a loss of power",
                "set `sync_interval: always` in its jetstream block",
            )
    return silent


def _varz(monitor: str) -> _Varz:
    if not monitor.startswith(("http://", "https://")):
        raise _no_endpoint(monitor)
    with urllib.request.urlopen(f"{monitor}/varz", timeout=_PATIENCE) as answer:
        return msgspec.json.decode(answer.read(_LIMIT), type=_Varz)


def _no_endpoint(monitor: str) -> Unavailable:
    mend = "write http://host:8222 in MAGICFLOW_NATS_MONITOR, several with commas between"
    return _refused(f"{monitor!r} is no monitoring endpoint", mend)


def _refused(message: str, mend: str) -> Unavailable:
    return Unavailable(message, reason="BUS_UNAVAILABLE", mend=mend)
