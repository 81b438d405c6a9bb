"""What every service knows of an app: `/flow/app/<name>`, written by the registry."""

from __future__ import annotations

import msgspec

from engine.bus.balancing import Balance, Broker
from engine.snapshots import keys
from engine.snapshots.mirror import Mirror
from engine.snapshots.port import Change, Snapshots


class App(msgspec.Struct, frozen=True):
    """`quota` is starts per second and `in_flight` live traces, both for the whole cluster; 0
    means no limit. `require_workers`: no start without a live worker for every function. The last
    three bound its playbooks, 0 as the cluster does."""

    enabled: bool = True
    quota: float = 0.0
    in_flight: int = 0
    require_workers: bool = False
    balancing: Balance = "round_robin"
    brokers: tuple[Broker, ...] = ()
    max_nodes: int = 0
    max_edges: int = 0
    max_document: int = 0


_STANDARD = App()
_decoder = msgspec.json.Decoder(App)


def encode_app(app: App) -> bytes:
    return msgspec.json.encode(app)


class Apps:
    """Settings by app's name, as of the newest change seen. An unknown app has no limits: who may
    do something in its name is for the tokens to say."""

    def __init__(self, snapshots: Snapshots) -> None:
        self._known: dict[str, App] = {}
        self._mirror = Mirror(snapshots, keys.APPS, self._changed)

    async def open(self) -> None:
        """Errors: `Unavailable`."""
        await self._mirror.open()

    async def close(self) -> None:
        await self._mirror.close()

    async def news(self) -> None:
        """Returns at the next change."""
        await self._mirror.news()

    def of(self, name: str) -> App:
        return self._known.get(name, _STANDARD)

    @property
    def all(self) -> dict[str, App]:
        return self._known

    def _changed(self, change: Change) -> None:
        name = change.key.removeprefix(keys.APPS)
        if change.value is None:
            self._known.pop(name, None)
        else:
            self._known[name] = _decoder.decode(change.value)
