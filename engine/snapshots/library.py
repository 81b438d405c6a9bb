"""Compiled snapshots, and which of them are active."""

from __future__ import annotations

import hashlib
import zlib
from collections import OrderedDict

import msgspec

from engine.core.graph import Graph, compile_graph
from engine.core.playbook import Playbook, canonical
from engine.errors import Corrupt, Invalid, NotFound, WrongState
from engine.snapshots import keys
from engine.snapshots.mirror import Mirror
from engine.snapshots.port import VALUE_LIMIT, Snapshots

MAX_CACHED = 1_000
_MAX_UNPACKED = 16 * VALUE_LIMIT  # against decompression bombs
_version_prefix = b"version_"


class _Stored(msgspec.Struct, array_like=True):
    checksum: bytes
    packed: bytes


_decoder = msgspec.msgpack.Decoder(_Stored)
_playbooks = msgspec.json.Decoder(Playbook)


def pack(playbook: Playbook) -> bytes:
    """What is stored of a snapshot. Errors: `Invalid` when it is too large to be stored."""
    data = canonical(playbook)
    packed = msgspec.msgpack.encode(_Stored(hashlib.sha256(data).digest(), zlib.compress(data)))
    if len(packed) > VALUE_LIMIT:
        raise Invalid(
            f"the snapshot has {len(packed)} bytes compressed; {VALUE_LIMIT} are allowed",
            reason="PLAYBOOK_INVALID",
            mend="move large literals out of the playbook, or split it",
        )
    return packed


def unpack(data: bytes) -> Playbook:
    """Errors: `Corrupt` when the bytes do not fit their checksum."""
    try:
        stored = _decoder.decode(data)
        unpacker = zlib.decompressobj()
        plain = unpacker.decompress(stored.packed, _MAX_UNPACKED)
        if hashlib.sha256(plain).digest() != stored.checksum:
            raise Corrupt("a stored snapshot does not fit its checksum")
        return _restore(plain)
    except (msgspec.MsgspecError, zlib.error) as error:
        raise Corrupt(f"a stored snapshot cannot be read: {error}") from error


def _restore(plain: bytes) -> Playbook:
    return _playbooks.decode(plain)


def version(snapshot_id: int) -> bytes:
    """The value of an active key."""
    return _version_prefix + str(snapshot_id).encode()


def parse_version(value: bytes) -> int:
    return int(value.removeprefix(_version_prefix))


class Library:
    """Graphs by snapshot, loaded once and shared; active versions by a watch."""

    def __init__(self, snapshots: Snapshots) -> None:
        self._snapshots = snapshots
        self._graphs: OrderedDict[int, Graph] = OrderedDict()
        self._active = Mirror(snapshots, keys.PLAYBOOKS)
        self._names = Mirror(snapshots, keys.NAMES)
        self._grants = Mirror(snapshots, keys.GRANTS)

    async def open(self) -> None:
        await self._active.open()
        await self._names.open()
        await self._grants.open()

    async def close(self) -> None:
        await self._active.close()
        await self._names.close()
        await self._grants.close()

    def granted(self, app: str, target: str) -> bool:
        """Whether the app may call another app's function or playbook."""
        owner = target.partition("/")[0]
        wanted = (keys.grant(app, target), keys.grant(app, f"{owner}/*"))
        return any(key in self._grants.entries for key in wanted)

    def playbook_id(self, full_name: str) -> int:
        """Errors: `NotFound`."""
        value = self._names.entries.get(keys.name(full_name))
        if value is None:
            raise NotFound(
                f"there is no playbook {full_name}",
                reason="PLAYBOOK_NOT_FOUND",
                mend="see `magicflow playbook list`, or publish it",
            )
        return int(value)

    def active(self, full_name: str) -> tuple[int, int]:
        """(playbook, snapshot) for new traces. Errors: `NotFound`, `WrongState`."""
        playbook_id = self.playbook_id(full_name)
        value = self._active.entries.get(keys.active(playbook_id))
        if value is None:
            raise WrongState(
                f"no snapshot of {full_name} is live yet",
                reason="PLAYBOOK_NOT_ACTIVE",
                mend=f"switch one live: `magicflow playbook switch {full_name} <snapshot>`",
            )
        return playbook_id, parse_version(value)

    async def graph(self, playbook_id: int, snapshot_id: int) -> Graph:
        """Errors: `NotFound`, `Corrupt`, `Unavailable`."""
        found = self._graphs.get(snapshot_id)
        if found is not None:
            self._graphs.move_to_end(snapshot_id)
            return found
        entry = await self._snapshots.get(keys.snapshot(playbook_id, snapshot_id))
        if entry is None:
            raise NotFound(
                f"playbook {playbook_id} has no snapshot {snapshot_id}",
                reason="SNAPSHOT_NOT_FOUND",
                mend="see `magicflow playbook show`",
            )
        graph = compile_graph(unpack(entry.value), playbook_id, snapshot_id)
        self._graphs[snapshot_id] = graph
        while len(self._graphs) > MAX_CACHED:
            self._graphs.popitem(last=False)
        return graph
