"""Many worlds, on all processors: `make soak SEEDS=100000 FROM=0`."""

from __future__ import annotations

import os
import sys
import time
from multiprocessing import Pool

from tests.simulation.world import Failed, simulate

STEP = 50
ENOUGH = 10  # failures that are told in full


def chunk(first: int) -> list[tuple[int, str]]:
    """What the seeds from `first` on have found."""
    return [found for seed in range(first, first + STEP) if (found := attempt(seed))]


def attempt(seed: int) -> tuple[int, str] | None:
    try:
        simulate(seed)
    except Failed as failed:
        return seed, str(failed)
    return None


def soak(first: int, count: int) -> int:
    """The number of seeds that failed."""
    began, done, failures = time.monotonic(), 0, 0
    with Pool(os.cpu_count()) as pool:
        for found in pool.imap_unordered(chunk, range(first, first + count, STEP)):
            done += STEP
            for _, report in found:
                failures += 1
                print(report if failures <= ENOUGH else report.splitlines()[0], flush=True)
            if done % 1_000 == 0:
                pace = done / (time.monotonic() - began)
                print(f"{done} seeds, {failures} failed, {pace:.0f} a second", flush=True)
    return failures


if __name__ == "__main__":
    sys.exit(soak(int(sys.argv[2]), int(sys.argv[1])) > 0)
