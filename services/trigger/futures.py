"""What callers wait for while somebody else works for many of them at once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable


def settle(futures: Iterable[asyncio.Future[None]], error: Exception | None) -> None:
    """Each that is still open: done, or failed with the error."""
    for future in futures:
        if future.done():
            continue
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
