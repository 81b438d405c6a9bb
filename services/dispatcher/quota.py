"""The accounts of apps that may start so many traces a second in the whole cluster.

One partition's owner keeps an app's account (`engine.ids.account_of`), and whoever admits triggers
asks it for as many starts as wait: nothing is handed out ahead, so nothing is lost with whoever
has it. A new owner begins with an empty account, which can make the app wait for a moment and
never gives it more than its quota.
"""

from __future__ import annotations

from dataclasses import dataclass

BURST = 0.5  # seconds of quota that an account can hold, but at least two starts


@dataclass(slots=True)
class _Account:
    starts: float
    at: int  # milliseconds


class Quotas:
    """A token bucket per app."""

    def __init__(self) -> None:
        self._accounts: dict[str, _Account] = {}

    def lease(self, app: str, rate: float, wanted: int, now: int) -> tuple[int, float]:
        """How many of the wanted starts are granted at `rate` per second, and in how many seconds
        the next one is free. A rate of 0 grants all. `now` is in milliseconds."""
        if rate <= 0:
            self._accounts.pop(app, None)
            return wanted, 0.0
        account = self._accounts.setdefault(app, _Account(0.0, now))
        most = max(2.0, rate * BURST)  # with less, what is over a whole start would be lost
        account.starts = min(most, account.starts + rate * max(0, now - account.at) / 1_000)
        account.at = now
        granted = min(wanted, int(account.starts))
        account.starts -= granted
        if granted == wanted:
            return granted, 0.0
        return granted, (1.0 - (account.starts - int(account.starts))) / rate
