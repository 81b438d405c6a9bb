"""A worker as a program of its own, which writes down everything that it does:
`python -m tests.system.chaos.worker ADDRESS WORKER JOURNAL [VARIANT]`.

The variant `wrong` answers 1 too much now and then: the oracle must notice.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import Any

import magicflow
from magicflow.v1.dispatch_service_pb2 import WorkResponse
from tests.system.chaos.functions import BUSY, FUNCTIONS, Answer, answer
from tests.system.chaos.journals import BEGAN, ENDED, RECEIPT, Done, Writer

SLOTS = 4
DRAIN = 8.0  # seconds; longer than any function takes
WRONG = "wrong"


class JournalledWorker(magicflow.Worker):
    """Writes down every receipt before it believes it."""

    def __init__(self, address: str, worker_id: str, journal: Writer[Done]) -> None:
        super().__init__(address, token="", slots=SLOTS, worker_id=worker_id, drain_timeout=DRAIN)
        self._journal = journal

    def _heard(self, frame: WorkResponse) -> None:
        for receipt in frame.receipts:
            self._journal.write(
                Done(
                    time.monotonic(),
                    self.worker_id,
                    RECEIPT,
                    receipt.id.trace_id.hex(),
                    receipt.id.node,
                    receipt.id.attempt,
                    verdict=receipt.verdict,
                )
            )
        super()._heard(frame)


class Hand:
    """Executes attempts and writes them down."""

    def __init__(self, worker_id: str, journal: Writer[Done], variant: str) -> None:
        self._worker_id = worker_id
        self._journal = journal
        self._variant = variant

    async def execute(self, given: dict[str, Any], context: magicflow.Context) -> Any:
        self._write(BEGAN, context, given)
        right = answer(context.function, given, context.attempt)
        until = time.monotonic() + right.work
        while time.monotonic() < until and not context.cancelled:
            await asyncio.sleep(min(0.05, max(0.0, until - time.monotonic())))
        result = self._spoil(right, given)
        self._write(ENDED, context, given, result)
        if result.code:
            raise magicflow.TaskError(result.code, retryable=result.code == BUSY)
        return result.value

    def _spoil(self, right: Answer, given: dict[str, Any]) -> Answer:
        spoiled = self._variant == WRONG and not right.code and given.get("n", 1) % 7 == 0
        return Answer(right.value + 1) if spoiled else right

    def _write(
        self, what: str, context: magicflow.Context, given: Any, result: Answer | None = None
    ) -> None:
        now = time.monotonic()
        dispatched = context._task.dispatched_at.ToMilliseconds() / 1_000
        self._journal.write(
            Done(
                now,
                self._worker_id,
                what,
                context.trace_id,
                context.node,
                context.attempt,
                context.function,
                given,
                result.value if result else None,
                result.code if result else "",
                now - (time.time() - dispatched),
            )
        )


def serve(address: str, worker_id: str, path: Path, variant: str = "") -> None:
    journal: Writer[Done] = Writer(path)
    worker = JournalledWorker(address, worker_id, journal)
    hand = Hand(worker_id, journal, variant)
    for name in FUNCTIONS:
        worker.function(name)(_function(hand))
    worker.run()


def _function(hand: Hand) -> Any:
    async def execute(input: Any, ctx: magicflow.Context) -> Any:
        return await hand.execute(input, ctx)

    return execute


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], Path(sys.argv[3]), *sys.argv[4:])
