"""How much of each app's work an owner has: traces that live, and tasks that no worker has begun.

Counts of memory, rebuilt with the state: nothing leaks that a lost note could leave behind, for
whatever a trace had goes with its end.
"""

from __future__ import annotations

from collections import Counter

Place = tuple[int, int]  # scope, node


class Census:
    """Of one partition."""

    def __init__(self) -> None:
        self.live: Counter[str] = Counter()
        self.unbegun: Counter[str] = Counter()
        self._apps: dict[bytes, str] = {}
        self._places: dict[bytes, set[Place]] = {}

    def started(self, trace_id: bytes, app: str) -> None:
        if trace_id not in self._apps:
            self._apps[trace_id] = app
            self.live[app] += 1

    def ended(self, trace_id: bytes) -> None:
        app = self._apps.pop(trace_id, None)
        if app is not None:
            self.live[app] -= 1
            self.unbegun[app] -= len(self._places.pop(trace_id, ()))

    def dispatched(self, trace_id: bytes, place: Place) -> None:
        """A task is on its way to a worker."""
        app = self._apps.get(trace_id)
        if app is None:
            return
        places = self._places.setdefault(trace_id, set())
        if place not in places:
            places.add(place)
            self.unbegun[app] += 1

    def begun(self, trace_id: bytes, place: Place) -> None:
        """A worker has it, or it is decided without one."""
        places = self._places.get(trace_id)
        if places is not None and place in places:
            places.remove(place)
            self.unbegun[self._apps[trace_id]] -= 1
