"""An app's settings as messages, and what is wrong with them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

from engine.bus.balancing import Balance, Broker
from engine.core.playbook import LIMITS
from engine.errors import FieldViolation, Invalid
from engine.snapshots.apps import App
from engine.store.registry import settings_of
from engine.wire.values import timestamp
from magicflow.v1 import registry_service_pb2 as pb

MAX_QUOTA = 1_000_000.0  # starts per second
MAX_IN_FLIGHT = 100_000_000
MAX_BROKERS = 16
MAX_WEIGHT = 1_000
_BROKER = re.compile(r"[a-z][a-z0-9_-]{0,63}")
_SERVER = re.compile(r"(nats|tls)://[^\s@/]+:\d{1,5}")
_BALANCING: dict[int, Balance] = {
    pb.BALANCING_UNSPECIFIED: "round_robin",
    pb.BALANCING_ROUND_ROBIN: "round_robin",
    pb.BALANCING_WEIGHT: "weight",
    pb.BALANCING_CONSISTENT_HASH: "consistent_hash",
}


def settings(app: pb.App, partitions: int, *, enabled: bool) -> App:
    """Errors: `Invalid` with everything that is wrong."""
    violations = list(_violations(app, partitions))
    if violations:
        message = f"app.{violations[0].field}: {violations[0].message}"
        raise Invalid(message, violations=violations, mend=violations[0].mend)
    return App(
        enabled,
        app.quota,
        app.in_flight,
        app.require_workers,
        _BALANCING[app.balancing],
        tuple(Broker(b.name, tuple(b.servers), b.weight or 1) for b in app.brokers),
        app.max_nodes,
        app.max_edges,
        app.max_document_bytes,
    )


def _violations(app: pb.App, partitions: int) -> Iterator[FieldViolation]:
    if not (math.isfinite(app.quota) and 0 <= app.quota <= MAX_QUOTA):
        mend = f"give starts per second from 0 (no limit) to {MAX_QUOTA:,.0f}"
        yield _violation("quota", "is no rate", app.quota, mend)
    if app.in_flight and not partitions <= app.in_flight <= MAX_IN_FLIGHT:
        mend = f"give 0 (no limit) or from {partitions}, one per partition, to {MAX_IN_FLIGHT:,}"
        yield _violation("in_flight", "is out of range", app.in_flight, mend)
    for field, given, most in (
        ("max_nodes", app.max_nodes, LIMITS.nodes),
        ("max_edges", app.max_edges, LIMITS.edges),
        ("max_document_bytes", app.max_document_bytes, LIMITS.document),
    ):
        if given > most:
            mend = f"give 0 (as the cluster) or from 1 to {most:,}"
            yield _violation(field, "is more than any playbook may have", given, mend)
    if app.balancing not in _BALANCING:
        yield _violation("balancing", "is unknown", app.balancing, "see the contract")
    if len(app.brokers) > MAX_BROKERS:
        yield _violation("brokers", "are too many", len(app.brokers), f"at most {MAX_BROKERS}")
    names = [broker.name for broker in app.brokers]
    for place, broker in enumerate(app.brokers[:MAX_BROKERS]):
        field = f"brokers[{place}]"
        if not _BROKER.fullmatch(broker.name) or names.count(broker.name) > 1:
            mend = "small letters, digits, _ or -, unique in the app"
            yield _violation(f"{field}.name", "is no name", broker.name, mend)
        if not 0 <= broker.weight <= MAX_WEIGHT:
            mend = f"give from 1 to {MAX_WEIGHT}"
            yield _violation(f"{field}.weight", "is out of range", broker.weight, mend)
        if not broker.servers:
            yield _violation(f"{field}.servers", "are missing", "", "name nats://host:port")
        for number, server in enumerate(broker.servers):
            if not _SERVER.fullmatch(server):
                mend = "write nats://host:port; credentials do not belong here"
                yield _violation(f"{field}.servers[{number}]", "is no server", server, mend)


def _violation(field: str, message: str, seen: Any, mend: str) -> FieldViolation:
    return FieldViolation(field, "INVALID", message, str(seen)[:80], mend)


def app_message(row: Any) -> pb.App:
    """From a row of the table of apps."""
    known = settings_of(row)
    return pb.App(
        name=row.name,
        description=row.description,
        enabled=known.enabled,
        quota=known.quota,
        brokers=[pb.Broker(name=b.name, servers=b.servers, weight=b.weight) for b in known.brokers],
        created_at=timestamp(row.created_at),
        in_flight=known.in_flight,
        require_workers=known.require_workers,
        balancing=pb.Balancing.Value(f"BALANCING_{known.balancing.upper()}"),
        max_nodes=known.max_nodes,
        max_edges=known.max_edges,
        max_document_bytes=known.max_document,
    )
