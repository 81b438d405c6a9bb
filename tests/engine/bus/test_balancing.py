"""Which broker gets a frame, by each policy."""

from __future__ import annotations

from collections import Counter

from engine.bus.balancing import Balancer, Broker

THREE = [Broker(name, ("nats://h:1",), weight) for name, weight in (("a", 1), ("b", 2), ("c", 5))]
ALL = {"a", "b", "c"}


def first(balancer: Balancer, healthy: set[str], count: int, key: str = "k") -> Counter[str]:
    return Counter(balancer.order(key, healthy)[0] for _ in range(count))


def test_round_robin_gives_each_the_same() -> None:
    assert first(Balancer(THREE, "round_robin"), ALL, 300) == {"a": 100, "b": 100, "c": 100}


def test_weights_are_shares_and_are_spread_out() -> None:
    balancer = Balancer(THREE, "weight")
    assert first(balancer, ALL, 800) == {"a": 100, "b": 200, "c": 500}
    eight = [balancer.order("k", ALL)[0] for _ in range(8)]
    assert "cccc" not in "".join(eight)


def test_consistent_hashing_keeps_a_key_where_it_is_and_moves_few_when_a_broker_goes() -> None:
    balancer = Balancer(THREE, "consistent_hash")
    before = {f"k{n}": balancer.order(f"k{n}", ALL)[0] for n in range(3_000)}
    assert min(Counter(before.values()).values()) > 800
    after = {key: balancer.order(key, ALL - {"b"})[0] for key in before}
    moved = [key for key in before if before[key] != after[key]]
    assert {before[key] for key in moved} == {"b"}


def test_what_is_down_gets_nothing_and_the_others_its_share() -> None:
    for policy in ("round_robin", "weight", "consistent_hash"):
        balancer = Balancer(THREE, policy)  # type: ignore[arg-type]
        seen = {balancer.order(f"k{n}", {"a", "c"})[0] for n in range(100)}
        assert seen == {"a", "c"}
        assert balancer.order("k", set()) == []


def test_the_others_follow_for_when_the_first_does_not_take_it() -> None:
    for policy in ("round_robin", "weight", "consistent_hash"):
        assert set(Balancer(THREE, policy).order("k", ALL)) == ALL  # type: ignore[arg-type]
