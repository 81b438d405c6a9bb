"""How to reach the services: addresses, token, TLS."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import grpc
import grpc.aio

DEFAULT_ADDRESS = "127.0.0.1:7200"
MESSAGE_LIMIT = 16 << 20  # bytes


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM texts. Without a certificate of its own the client is known by its token alone."""

    ca: bytes | None = None
    certificate: bytes | None = None
    key: bytes | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(self.ca, self.key, self.certificate)


@dataclass(frozen=True, slots=True)
class Target:
    """One address for all services, or one per service (`trigger`, `dispatcher`, `registry`,
    `trace`)."""

    address: str
    addresses: Mapping[str, str]
    token: str
    tls: Tls | None

    @classmethod
    def of(
        cls,
        address: str | None,
        token: str | None,
        tls: Tls | None,
        addresses: Mapping[str, str] | None = None,
    ) -> Target:
        """Arguments first, then MAGICFLOW_ADDRESS and MAGICFLOW_TOKEN, then the local default.
        An address may name one per service: `trigger=host:port,registry=host:port,…`."""
        text = address or os.environ.get("MAGICFLOW_ADDRESS", "") or DEFAULT_ADDRESS
        named = dict(part.split("=", 1) for part in text.split(",") if "=" in part)
        return cls(
            next(iter(named.values()), text),
            {**named, **(addresses or {})},
            token if token is not None else os.environ.get("MAGICFLOW_TOKEN", ""),
            tls,
        )

    def service(self, name: str) -> str:
        return self.addresses.get(name, self.address)

    def channel(self, name: str) -> grpc.aio.Channel:
        """A new channel to a service. It connects by itself, and again after a break."""
        options = [
            ("grpc.max_receive_message_length", MESSAGE_LIMIT),
            ("grpc.max_send_message_length", MESSAGE_LIMIT),
            ("grpc.keepalive_time_ms", 20_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 2_000),
        ]
        if self.tls is not None:
            return grpc.aio.secure_channel(self.service(name), self.tls.credentials(), options)
        return grpc.aio.insecure_channel(self.service(name), options)

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()
