"""Streams, made by whoever comes first."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

import msgspec
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig
from nats.js.errors import APIError, NotFoundError

from engine.bus.jetstream.publishing import unavailable
from engine.errors import Unavailable

_IN_USE = 10058  # another instance was first
_PATIENCE = 5.0  # seconds


class StreamState(msgspec.Struct):
    """`deleted` are numbers that were taken out from between others, where they were asked for."""

    first_seq: int = 0
    last_seq: int = 0
    last_ts: datetime | None = None
    deleted: list[int] | None = None


class _Info(msgspec.Struct):
    ts: datetime | None = None
    state: StreamState = msgspec.field(default_factory=StreamState)
    error: dict[str, Any] | None = None


_infos = msgspec.json.Decoder(_Info)


async def state_of(
    client: Client, stream: str, *, deleted: bool = False
) -> tuple[StreamState, datetime | None]:
    """What the stream holds, and the server's time then; the library leaves out the times.
    Errors: `Unavailable`, also where there is no such stream."""
    request = json.dumps({"deleted_details": deleted}).encode()
    try:
        answer = await client.request(f"$JS.API.STREAM.INFO.{stream}", request, timeout=_PATIENCE)
    except Exception as error:
        raise unavailable(error) from error
    info = _infos.decode(answer.data)
    if info.error is not None:
        description = info.error.get("description", "unknown")
        raise Unavailable(f"{stream}: {description}", reason="BUS_UNAVAILABLE")
    return info.state, info.ts


async def make_stream(
    js: JetStreamContext,
    name: str,
    names: list[str],
    replicas: int,
    *,
    retention: RetentionPolicy = RetentionPolicy.LIMITS,
    storage: StorageType = StorageType.FILE,
    max_bytes: int = -1,
    max_msgs: int = -1,
    discard: DiscardPolicy = DiscardPolicy.OLD,
) -> None:
    """Leaves one that is there as it is. Errors: `Unavailable`."""
    config = StreamConfig(
        name=name,
        subjects=names,
        retention=retention,
        storage=storage,
        max_bytes=max_bytes,
        max_msgs=max_msgs,
        discard=discard,
        num_replicas=replicas,
        duplicate_window=0.1,
        allow_direct=True,
    )
    try:
        await js.stream_info(name)
    except NotFoundError:
        try:
            await js.add_stream(config)
        except APIError as error:
            if error.err_code != _IN_USE:
                raise unavailable(error) from error
        except Exception as error:
            raise unavailable(error) from error
    except Exception as error:
        raise unavailable(error) from error
