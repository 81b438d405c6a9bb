"""That the state of a trace does not allow what was asked for."""

from __future__ import annotations


class Refused(Exception):
    """Nothing was done. `reason` is one of the contract's error reasons."""

    def __init__(self, reason: str, message: str, mend: str = "") -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.mend = mend
