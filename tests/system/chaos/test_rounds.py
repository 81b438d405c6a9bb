"""A short round of every fault, on one cluster that lives through all of them; and a real run
without protection, which the oracle must not let pass. Long rounds: `make chaos`.

In this order: first what explains no second execution, so that what is left behind by a crash
cannot excuse anything.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from engine.ids import shard_of
from engine.store import tables
from tests.system.chaos.cluster import Cluster
from tests.system.chaos.faults import FAULTS
from tests.system.chaos.rounds import Finding, Plan, Rounds
from tests.system.chaos.worker import WRONG

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.xdist_group("chaos"),  # one cluster for all, or each worker starts its own
]

SEED = 2_026
TRACES = 40
SECONDS = 2.0
CLEAN = ("drain-worker", "rolling-restart", "kill-registry", "kill-trace", "kill-trigger")
CRASHES = tuple(name for name in FAULTS if name not in CLEAN)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    directory: Path = tmp_path_factory.mktemp("chaos")
    running = await Cluster(directory).start()
    try:
        yield running
    finally:
        await running.stop()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def rounds(cluster: Cluster) -> Rounds:
    return Rounds(cluster)


async def run(rounds: Rounds, *faults: str) -> Finding:
    return await rounds.run(Plan(SEED + len(faults), TRACES, SECONDS, faults))


def told(finding: Finding) -> str:
    return "\n".join(map(str, finding.broken))


async def test_nothing_is_broken_and_nothing_runs_twice_in_peace(rounds: Rounds) -> None:
    finding = await run(rounds)
    assert told(finding) == ""
    assert finding.verdict.seen["traces ended"] == TRACES
    assert finding.verdict.seen["second executions"] == 0


@pytest.mark.parametrize("fault", CLEAN)
async def test_nothing_runs_twice_after(rounds: Rounds, fault: str) -> None:
    finding = await run(rounds, fault)
    assert told(finding) == ""
    assert finding.injections[0].live > 0, "the fault has hit nothing"


@pytest.mark.parametrize("fault", CRASHES)
async def test_every_promise_holds_through(rounds: Rounds, fault: str) -> None:
    finding = await run(rounds, fault)
    assert told(finding) == ""
    assert finding.injections[0].live > 0, "the fault has hit nothing"
    for takeover in finding.takeovers:
        assert takeover.seconds is not None, f"nobody took partition {takeover.partition} over"


async def test_a_row_taken_out_of_sql_does_not_go_unnoticed(
    cluster: Cluster, rounds: Rounds
) -> None:
    row = (await cluster.rows()).chapters[-1]
    journal = tables.journal[shard_of(bytes.fromhex(row.trace))]
    engine = create_async_engine(cluster.stack.postgres.url)
    async with engine.begin() as connection:
        here = (journal.c.partition == row.partition) & (journal.c.sequence == row.sequence)
        await connection.execute(sa.delete(journal).where(here & (journal.c.trace_id == row.trace)))
    await engine.dispose()
    missing = f"does not have frame {row.sequence} of partition {row.partition}, {row.trace}"
    assert missing in told(await run(rounds))


async def test_a_worker_that_answers_wrongly_does_not_go_unnoticed(
    cluster: Cluster, rounds: Rounds
) -> None:
    cluster.fleet.variant = WRONG
    for place in list(cluster.fleet.members):
        cluster.fleet.kill(place)
        cluster.fleet.start(place)
    await cluster.settle()
    finding = await run(rounds)
    assert any(b.promise == "B" and "answered" in b.what for b in finding.broken)
    assert any(b.promise == "B" and "ended as" in b.what for b in finding.broken)
