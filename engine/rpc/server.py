"""A gRPC server with health, reflection, limits and a graceful stop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from engine.errors import Unavailable
from engine.rpc.interceptors import Gate

MESSAGE_LIMIT = 16 << 20  # bytes

OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", MESSAGE_LIMIT),
    ("grpc.max_send_message_length", MESSAGE_LIMIT),
    ("grpc.max_concurrent_streams", 10_000),
    ("grpc.so_reuseport", 0),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.keepalive_permit_without_calls", 1),
]


@dataclass(frozen=True, slots=True)
class Registration:
    """One service of a server: its full name and how it is added."""

    name: str
    add: Callable[[Any, grpc.aio.Server], None]
    servicer: Any


class Server:
    """Serves until `stop`. Health is per service, and empty for the whole."""

    def __init__(self, gate: Gate, services: Sequence[Registration]) -> None:
        self._server = grpc.aio.server(interceptors=[gate], options=OPTIONS)
        self._health = health.aio.HealthServicer()
        self._names = ["", *(service.name for service in services)]
        for service in services:
            service.add(service.servicer, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflected = [*self._names[1:], health.SERVICE_NAME, reflection.SERVICE_NAME]
        reflection.enable_server_reflection(reflected, self._server)

    async def start(self, listen: str) -> int:
        """The port it listens on. Errors: `Unavailable` when the address is taken."""
        try:
            port = self._server.add_insecure_port(listen)
        except RuntimeError as error:
            raise Unavailable(
                f"the address {listen} cannot be listened on: another process has the port",
                mend="stop that process, or choose another port with --listen",
            ) from error
        await self._server.start()
        await self._report(health_pb2.HealthCheckResponse.SERVING)
        return port

    async def stop(self, grace: float) -> None:
        """Turns health to not serving, ends calls, cuts what is left after `grace` seconds."""
        await self._report(health_pb2.HealthCheckResponse.NOT_SERVING)
        await self._server.stop(grace)

    async def _report(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for name in self._names:
            await self._health.set(name, status)
