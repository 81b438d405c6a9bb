"""An app's settings: what is refused of them, with which words, and that the rest survives."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from engine.errors import Invalid
from engine.snapshots.apps import App
from engine.store.registry import row_of, settings_of
from magicflow.v1 import registry_service_pb2 as pb
from services.registry.apps import app_message, settings

PARTITIONS = 8
BROKER = pb.Broker(name="one", servers=["nats://h:4222"])


@pytest.mark.parametrize(
    ("field", "given"),
    [
        ("quota", {"quota": -1.0}),
        ("quota", {"quota": float("nan")}),
        ("quota", {"quota": float("inf")}),
        ("quota", {"quota": 1e9}),
        ("in_flight", {"in_flight": PARTITIONS - 1}),
        ("in_flight", {"in_flight": 2_000_000_000}),
        ("balancing", {"balancing": 9}),
        ("max_nodes", {"max_nodes": 2_001}),
        ("max_edges", {"max_edges": 10_001}),
        ("max_document_bytes", {"max_document_bytes": (1 << 20) + 1}),
        (
            "brokers",
            {"brokers": [pb.Broker(name=f"b{n}", servers=["nats://h:1"]) for n in range(17)]},
        ),
        ("brokers[0].name", {"brokers": [pb.Broker(name="Bad Name", servers=["nats://h:1"])]}),
        ("brokers[0].name", {"brokers": [BROKER, BROKER]}),
        (
            "brokers[0].weight",
            {"brokers": [pb.Broker(name="a", servers=["nats://h:1"], weight=1_001)]},
        ),
        ("brokers[0].servers", {"brokers": [pb.Broker(name="a")]}),
        ("brokers[0].servers[0]", {"brokers": [pb.Broker(name="a", servers=["http://h:1"])]}),
        (
            "brokers[0].servers[0]",
            {"brokers": [pb.Broker(name="a", servers=["nats://me:secret@h:1"])]},
        ),
    ],
)
def test_what_is_no_setting_is_refused_with_its_field_and_a_mend(
    field: str, given: dict[str, Any]
) -> None:
    with pytest.raises(Invalid) as refused:
        settings(pb.App(name="a", **given), PARTITIONS, enabled=True)
    first = refused.value.violations[0]
    assert first.field == field
    assert first.mend


def test_all_that_is_wrong_is_said_at_once() -> None:
    bad = pb.App(name="a", quota=-1.0, in_flight=1, brokers=[pb.Broker(name="X")])
    with pytest.raises(Invalid) as refused:
        settings(bad, PARTITIONS, enabled=True)
    fields = [violation.field for violation in refused.value.violations]
    assert fields == ["quota", "in_flight", "brokers[0].name", "brokers[0].servers"]


def test_settings_survive_the_table_and_the_message() -> None:
    given = pb.App(
        name="a",
        quota=2.5,
        in_flight=PARTITIONS,
        require_workers=True,
        balancing=pb.BALANCING_WEIGHT,
        brokers=[BROKER],
        max_nodes=10,
        max_edges=20,
        max_document_bytes=3_000,
    )
    known = settings(given, PARTITIONS, enabled=False)
    row = SimpleNamespace(name="a", description="", created_at=1, **row_of(known))
    assert settings_of(row) == known
    shown = app_message(row)
    given.brokers[0].weight = 1  # what none is
    given.created_at.FromMilliseconds(1)
    assert shown == given


def test_an_app_without_settings_has_no_limits() -> None:
    assert settings(pb.App(name="a"), PARTITIONS, enabled=True) == App()
