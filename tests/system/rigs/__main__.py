"""Long rounds of the rigs by hand:

    python -m tests.system.rigs powercut --rounds 1000 --from 1
    python -m tests.system.rigs powercut --rounds 5 --default-flushing
    python -m tests.system.rigs apart --rounds 11

Every round is one line; ends with 1 when a round broke a promise.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

from magicflow import MagicflowError
from tests.servers import NatsServer
from tests.system.rigs.apart import APART, WAYS, cut_off, wired
from tests.system.rigs.powercut import DefaultFlushing, cut

Round = Callable[[Path, int], Awaitable[tuple[str, bool]]]  # what was seen, and whether it is well


def power_cuts(server: type[NatsServer]) -> Round:
    async def power_cut(directory: Path, seed: int) -> tuple[str, bool]:
        result = await cut(directory, seed, server)
        return str(result), not result.missing

    return power_cut


def separations(directory: Path, first: int, count: int) -> int:
    """The ways of being apart in turn, on one stack, for longer and longer."""
    wrong = 0
    with wired(directory) as wires:
        for number in range(first, first + count):
            way = list(WAYS)[number % len(WAYS)]
            lasts = APART * (1 + number // len(WAYS) % 4)
            try:
                told = str(asyncio.run(cut_off(wires, way, lasts)))
            except (AssertionError, MagicflowError) as error:
                told, wrong = f"{way} for {lasts:g} s: {error!r}", wrong + 1
                wires.heal()
            print(told, flush=True)
    print(f"{count} rounds, {wrong} wrong", flush=True)
    return wrong


def rounds(play: Round, first: int, count: int) -> int:
    """The number of rounds that were not well."""
    wrong = 0
    for seed in range(first, first + count):
        with tempfile.TemporaryDirectory(prefix="magicflow-rig-") as directory:
            told, well = asyncio.run(play(Path(directory) / "rig", seed))
        wrong += not well
        print(told, flush=True)
    print(f"{count} rounds, {wrong} wrong", flush=True)
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.system.rigs")
    rig = parser.add_subparsers(required=True)
    power = rig.add_parser("powercut", help="nothing acknowledged is missing after a power cut")
    power.add_argument("--default-flushing", action="store_true", help="the negative control")
    power.set_defaults(
        play=lambda given: power_cuts(DefaultFlushing if given.default_flushing else NatsServer)
    )
    apart = rig.add_parser("apart", help="a dispatcher is cut off from its servers")
    apart.set_defaults(play=None)
    for one in (power, apart):
        one.add_argument("--rounds", type=int, default=100)
        one.add_argument("--from", type=int, default=1, dest="first", help="the first seed")
    given = parser.parse_args()
    if given.play is None:
        with tempfile.TemporaryDirectory(prefix="magicflow-rig-") as directory:
            return int(separations(Path(directory), given.first, given.rounds) > 0)
    return int(rounds(given.play(given), given.first, given.rounds) > 0)


if __name__ == "__main__":
    sys.exit(main())
