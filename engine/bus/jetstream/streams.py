"""Streams, made by whoever comes first."""

from __future__ import annotations

from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig
from nats.js.errors import APIError, NotFoundError

from engine.bus.jetstream.publishing import unavailable

_IN_USE = 10058  # another instance was first


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
