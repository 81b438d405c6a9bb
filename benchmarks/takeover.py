"""`python -m benchmarks.takeover`: how long a partition stands still when its owner is killed, and
when it hands over, with many live traces.

Two dispatchers over a nats-server and an etcd. The clock is this process's own: it sees frames
arrive in the logs and keys go in etcd.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import magicflow
from benchmarks.overload import Cluster
from benchmarks.run import BATCH, until_ready
from engine.bus.jetstream import JetStreamBus, connect
from engine.core.journal import decode_frame
from engine.snapshots import keys
from engine.snapshots.etcd.adapter import EtcdSnapshots

PARTITIONS = 8
WAITING = """
playbook: waiting
app: bench
nodes:
  a: {hook: {timeout: 1h}}
  b: {nop: {}}
  c: {nop: {}}
edges:
  - {from: a, to: b}
  - {from: b, to: c}
"""


class Watcher:
    """When each epoch of a partition told its first and its last frame, and when keys went."""

    def __init__(self) -> None:
        self.first: dict[tuple[int, int], float] = {}
        self.last: dict[tuple[int, int], float] = {}
        self.gone: dict[int, float] = {}

    async def follow(self, bus: JetStreamBus, partition: int) -> None:
        async for _, data in bus.partition_log(partition).follow(0):
            now, frame = time.perf_counter(), decode_frame(data)
            self.first.setdefault((partition, frame.epoch), now)
            self.last[partition, frame.epoch] = now

    async def watch(self, snapshots: EtcdSnapshots) -> None:
        _, since = await snapshots.list(keys.PARTITIONS)
        async for change in snapshots.watch(keys.PARTITIONS, since):
            if change.value is None:
                self.gone[int(change.key.rpartition("/")[2])] = time.perf_counter()

    def epoch(self, partition: int) -> int:
        return max(epoch for number, epoch in self.first if number == partition)


async def main(traces: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with Cluster(Path(folder), PARTITIONS, {"MAGICFLOW_LEASE": "2"}) as cluster:
            second = await cluster.serve("dispatcher", "second-2")
            async with magicflow.Client(addresses=cluster.addresses, timeout=300) as client:
                await until_ready(client)
                await client.create_app("bench")
                await client.publish(WAITING, switch=True)
                for _ in range(traces // BATCH):
                    await client.trigger_batch([("bench/waiting", None)] * BATCH)
                await measure(cluster, client, second, traces)


async def measure(
    cluster: Cluster,
    client: magicflow.Client,
    second: subprocess.Popen[bytes],
    traces: int,
) -> None:
    bus = await connect([cluster.nats], partitions=PARTITIONS, monitors=[cluster.monitor])
    snapshots = EtcdSnapshots([cluster.etcd])
    watcher = Watcher()
    tasks = [asyncio.create_task(watcher.follow(bus, p)) for p in range(PARTITIONS)]
    tasks.append(asyncio.create_task(watcher.watch(snapshots)))
    while len(await client.list_traces("bench/waiting", limit=traces)) < traces:
        await asyncio.sleep(0.2)
    before = {p: watcher.epoch(p) for p in range(PARTITIONS)}
    theirs = {p.partition for p in (await client.cluster()).partitions if p.instance[-1] == "2"}

    killed = time.perf_counter()
    second.kill()
    await _until_owned(watcher, theirs, before)
    new = {p: watcher.first[p, watcher.epoch(p)] for p in theirs}
    print(f"{traces} live traces, {len(theirs)} of {PARTITIONS} partitions change their owner")
    _line("kill -9: from the blow to the new epoch", [new[p] - killed for p in theirs])
    _line("kill -9: from the lease's end", [new[p] - watcher.gone[p] for p in theirs])

    before = {p: watcher.epoch(p) for p in range(PARTITIONS)}
    again = await cluster.serve("dispatcher", "second-2")
    await _until_owned(watcher, theirs, before)
    gaps = [watcher.first[p, watcher.epoch(p)] - watcher.last[p, before[p]] for p in theirs]
    _line("handover to one that joins: gap", gaps)
    before = {p: watcher.epoch(p) for p in range(PARTITIONS)}
    again.terminate()
    await _until_owned(watcher, theirs, before)
    gaps = [watcher.first[p, watcher.epoch(p)] - watcher.last[p, before[p]] for p in theirs]
    _line("handover of one that drains: gap", gaps)
    for task in tasks:
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.gather(*tasks)
    await snapshots.close()
    await bus.close()


async def _until_owned(watcher: Watcher, partitions: set[int], before: dict[int, int]) -> None:
    """Returns when each has a newer epoch than before."""
    async with asyncio.timeout(60):
        while any(watcher.epoch(p) <= before[p] for p in partitions):
            await asyncio.sleep(0.01)


def _line(title: str, seconds: list[float]) -> None:
    values = [1_000 * value for value in seconds]
    print(f"{title:44} median {statistics.median(values):7.0f} ms, longest {max(values):7.0f} ms")


if __name__ == "__main__":
    import uvloop

    uvloop.install()
    parser = argparse.ArgumentParser()
    parser.add_argument("--traces", type=int, default=10_000)
    asyncio.run(main(parser.parse_args().traces))
