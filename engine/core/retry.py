"""Whether and when a failed attempt is followed by another."""

from __future__ import annotations

import zlib

from engine.core.failure import Failure
from engine.core.playbook import Retry

QUARANTINE_AFTER = 3  # workers that disappeared over one attempt


def is_poison(losses: int) -> bool:
    """Whether an attempt over which so many workers have disappeared may have ended them: then
    no further one gets it."""
    return losses >= QUARANTINE_AFTER


def wait_before_next(policy: Retry, attempt: int, failure: Failure, seed: bytes) -> int | None:
    """Milliseconds until attempt `attempt + 1`, or None when there is none.

    `seed` makes the spread differ from task to task and the same on every replay.
    """
    if attempt >= policy.attempts or not _worth_repeating(policy, failure):
        return None
    wait = min(float(policy.max), policy.backoff * _growth(policy.factor, attempt - 1))
    if policy.jitter:
        unit = zlib.crc32(seed + attempt.to_bytes(4, "big")) / 0xFFFFFFFF
        wait *= 1 + policy.jitter * (2 * unit - 1)
    return max(round(wait), failure.retry_after)


def _growth(factor: float, times: int) -> float:
    try:
        return float(factor**times)
    except OverflowError:
        return float("inf")


def _worth_repeating(policy: Retry, failure: Failure) -> bool:
    if failure.code in policy.not_on:
        return False
    if policy.on:
        return failure.code in policy.on
    return failure.retryable
