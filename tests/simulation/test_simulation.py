"""Promises A to E and liveness, on thousands of simulated clusters.

A failure says `seed 1234 (profile): …` and how to replay it. `SEEDS` in the environment sets how
many worlds are tried, `make soak` tries many more.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.simulation.world import Failed, simulate

SEEDS = int(os.environ.get("SEEDS", "4000"))
CHUNK = 80
ROOT = Path(__file__).parents[2]

# What must happen somewhere in a few hundred worlds, or they prove nothing.
SOMETIMES = (
    "crash with frames in flight",
    "frame with an unknown fate",
    "epoch opened",
    "handover frame",
    "claimed by a standby",
    "checkpoint",
    "redelivered",
    "superseded",
    "results sent again",
    "task ran again",
    "tasks lost",
    "freeze",
    "usurp",
    "states compared",
    "pause acknowledged",
    "resume acknowledged",
    "signal acknowledged",
    "abort acknowledged",
    "AttemptFailed",
    "NodeFailed",
    "NodeSkipped",
    "ScopeOpened",
    "SleepStarted",
    "HookOpened",
    "TracePaused",
)


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_the_promises_hold(first: int) -> None:
    for seed in range(first, min(first + CHUNK, SEEDS)):
        simulate(seed)


def test_a_failure_can_be_replayed() -> None:
    """`SEED=1234 pytest tests/simulation -k replay`."""
    seed = int(os.environ.get("SEED", "0"))
    assert simulate(seed).digest == simulate(seed).digest


def test_a_seed_gives_the_same_run_in_every_process() -> None:
    """Whatever the order of hashes and the addresses of objects are."""
    seeds = range(24)
    here = digest(seeds)
    code = "from tests.simulation.test_simulation import digest; print(digest(range(0, 24)))"
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        there = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert there.stdout.strip() == here


def digest(seeds: range) -> str:
    whole = hashlib.sha256()
    for seed in seeds:
        try:
            whole.update(simulate(seed).digest.encode())
        except Failed as failed:
            whole.update(str(failed).encode())
    return whole.hexdigest()


def test_what_the_worlds_are_for_happens_in_them() -> None:
    seen: Counter[str] = Counter()
    for seed in range(200):
        seen += simulate(seed).oracle.seen
    assert [what for what in SOMETIMES if not seen[what]] == []
