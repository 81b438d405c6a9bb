"""What the services take from the real world, replaced for the length of one run: clocks, the
order of sets of objects (which is that of their addresses), and the log."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, MutableMapping, MutableSet
from contextlib import contextmanager
from typing import Any, TypeVar
from unittest import mock

import structlog

from services.dispatcher import feeds, gateway, outbox, sessions
from tests.simulation.loop import VirtualLoop

T = TypeVar("T")


class OrderedSet(MutableSet[T]):
    """A set that is iterated in the order of insertion."""

    def __init__(self, items: Iterable[T] = ()) -> None:
        self._items = dict.fromkeys(items)

    def __contains__(self, item: object) -> bool:
        return item in self._items

    def __iter__(self) -> Iterator[T]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def add(self, item: T) -> None:
        self._items[item] = None

    def discard(self, item: T) -> None:
        self._items.pop(item, None)

    def update(self, items: Iterable[T]) -> None:
        self._items.update(dict.fromkeys(items))


class _Time:
    """Stands for the module `time`."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.monotonic = loop.time
        self.time = loop.wall
        self.perf_counter = loop.time


@contextmanager
def virtual(loop: VirtualLoop) -> Iterator[None]:
    """Errors that the services log as such are accidents: they have no other way to say them."""
    before = structlog.get_config()
    time = _Time(loop)

    def silent(_logger: Any, method: str, event: MutableMapping[str, Any]) -> Any:
        if method in ("error", "exception"):
            loop.accidents.append(f"log: {event}")
        raise structlog.DropEvent

    structlog.configure(
        processors=[silent], wrapper_class=structlog.make_filtering_bound_logger(40)
    )
    try:
        with (
            mock.patch("engine.clock.time", time),
            mock.patch.object(gateway, "time", time),
            mock.patch.object(sessions, "time", time),
            mock.patch.object(gateway, "set", OrderedSet, create=True),
            mock.patch.object(outbox, "set", OrderedSet, create=True),
            mock.patch.object(sessions.Session, "__init__", _session(loop)),
            mock.patch.object(feeds.Feed, "__init__", _feed()),
        ):
            yield
    finally:
        structlog.configure(**before)


def _session(loop: VirtualLoop) -> Any:
    original = sessions.Session.__init__

    def init(self: sessions.Session, *arguments: Any, **more: Any) -> None:
        original(self, *arguments, **more)
        self.heard = loop.time()

    return init


def _feed() -> Any:
    original = feeds.Feed.__init__

    def init(self: feeds.Feed, *arguments: Any, **more: Any) -> None:
        original(self, *arguments, **more)
        self.frames = OrderedSet()  # type: ignore[assignment]

    return init
