"""Many worlds, on all processors: `make soak SEEDS=100000 FROM=0`.

`python -m tests.simulation.soak known` tells for each known fault the first seed that finds it
when it is not worked around.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from multiprocessing import Pool

from tests.simulation.known import ALL
from tests.simulation.world import Failed, simulate

STEP = 50
ENOUGH = 10  # failures that are told in full


def chunk(first: int) -> list[tuple[int, str]]:
    """What the seeds from `first` on have found."""
    return [found for seed in range(first, first + STEP) if (found := attempt(seed))]


def attempt(seed: int, but: str = "") -> tuple[int, str] | None:
    try:
        simulate(seed, but)
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


def known() -> Iterator[str]:
    """One line for each."""
    for name in ALL:
        found = next((f for seed in range(3_000) if (f := attempt(seed, name))), None)
        yield f"{name}: {found[1].splitlines()[0] if found else 'not found in 3,000 seeds'}"


if __name__ == "__main__":
    if sys.argv[1:2] == ["known"]:
        for line in known():
            print(line, flush=True)
    else:
        sys.exit(soak(int(sys.argv[2]), int(sys.argv[1])) > 0)
