"""The asyncio driver beside the released `etcd3` package, on real servers that fail."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import json
import os
import urllib.request
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # before the first import of grpc

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from engine.errors import Denied, Invalid, Unauthenticated, Unavailable
from engine.snapshots.etcd import wire_pb2_grpc
from engine.snapshots.etcd.adapter import EtcdSnapshots
from engine.snapshots.etcd.driver import Address, Login, Tls
from engine.snapshots.etcd.etcd3_client import etcd3_client
from engine.snapshots.etcd.version import check_version, server_version
from engine.snapshots.etcd.wire_pb2 import Event, KeyValue, ResponseHeader, WatchResponse
from engine.snapshots.port import Change, Compacted, Entry, Put, Require
from tests.servers import Etcd, free_port

PATIENCE = 20.0  # seconds until a test that waits has failed


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    with Etcd(tmp_path_factory.mktemp("etcd")) as server:
        yield server


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[Etcd]:
    """A server that the test may kill."""
    with Etcd(tmp_path / "etcd") as server:
        yield server


@asynccontextmanager
async def client(endpoints: str | Sequence[str], **options: Any) -> AsyncIterator[EtcdSnapshots]:
    space = EtcdSnapshots(endpoints, **options)
    try:
        async with asyncio.timeout(PATIENCE):
            yield space
    finally:
        await space.close()


@pytest.fixture
def etcd3(etcd: Etcd) -> Iterator[Any]:
    other = etcd3_client(etcd.endpoint)
    yield other
    other.close()
    if other.watcher._callback_thread:
        other.watcher._callback_thread.join(PATIENCE)


# -- the two clients agree


async def test_etcd3_reads_what_the_driver_writes(etcd: Etcd, etcd3: Any) -> None:
    async with client(etcd.endpoint) as space:
        lease = await space.grant(10)
        first = await space.put("d/a", b"\x00\xff")
        second = await space.commit(
            [Require("d/a", first), Require("d/ü", 0)],
            [Put("d/a", b"2", lease.id), Put("d/ü", b"")],
        )
        value, about = await asyncio.to_thread(etcd3.get, "d/a")
        assert (value, about.create_revision, about.mod_revision, about.lease_id) == (
            b"2",
            first,
            second,
            lease.id,
        )
        found = await asyncio.to_thread(lambda: list(etcd3.get_prefix("d/")))
        assert [(value, about.key.decode()) for value, about in found] == [
            (b"2", "d/a"),
            (b"", "d/ü"),
        ]
        left = await asyncio.to_thread(etcd3.get_lease_info, lease.id)
        assert left.grantedTTL == lease.ttl and list(left.keys) == [b"d/a"]
        await lease.revoke()
        assert await asyncio.to_thread(etcd3.get, "d/a") == (None, None)


async def test_the_driver_reads_what_etcd3_writes(etcd: Etcd, etcd3: Any) -> None:
    def write() -> int:
        lease = etcd3.lease(10)
        etcd3.put("e/ü", b"\x00\xff", lease)
        done, _ = etcd3.transaction(
            compare=[etcd3.transactions.version("e/b") == 0],
            success=[etcd3.transactions.put("e/b", b"2"), etcd3.transactions.put("e/c", b"3")],
            failure=[],
        )
        assert done
        return int(lease.id)

    async with client(etcd.endpoint) as space:
        _, since = await space.list("e/")
        lease = await asyncio.to_thread(write)
        entries, _ = await space.list("e/")
        assert entries == [
            Entry("e/b", b"2", since + 2, since + 2),
            Entry("e/c", b"3", since + 2, since + 2),
            Entry("e/ü", b"\x00\xff", since + 1, since + 1, lease),
        ]
        async with aclosing(space.watch("e/", since)) as changes:
            assert [(await anext(changes)).key for _ in range(3)] == ["e/ü", "e/b", "e/c"]


# etcd3's watch thread has no end: it dies of the closed channel, and says so.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_both_clients_watch_the_same_changes(etcd: Etcd, etcd3: Any) -> None:
    async with client(etcd.endpoint) as space:
        _, since = await space.list("w/")

        def watch(count: int) -> list[tuple[str, bytes, int]]:
            events, cancel = etcd3.watch_prefix("w/", start_revision=since + 1)
            told = [next(events) for _ in range(count)]
            cancel()
            return [(event.key.decode(), event.value, event.mod_revision) for event in told]

        theirs = asyncio.create_task(asyncio.to_thread(watch, 30))
        for number in range(10):
            await space.put(f"w/{number}", b"1")
            await space.commit([], [Put("w/a", b"2"), Put("w/b", b"3")])
        async with aclosing(space.watch("w/", since)) as changes:
            ours = [await anext(changes) for _ in range(30)]
        assert [(change.key, change.value, change.revision) for change in ours] == await theirs


# -- servers that fail


async def test_a_watch_outlives_kills_of_the_server_and_misses_and_repeats_nothing(
    mortal: Etcd,
) -> None:
    async with client(mortal.endpoint) as space, client(mortal.endpoint) as writer:
        _, since = await space.list("")
        acknowledged: set[bytes] = set()
        enough = asyncio.Event()

        async def write() -> None:
            number = 0
            while not enough.is_set():
                number += 1
                value = str(number).encode()
                try:
                    await writer.put("k/n", value)
                    acknowledged.add(value)
                except Unavailable:
                    pass  # may have happened: the revisions below tell

        told: list[Change] = []

        async def watch() -> None:
            async with aclosing(space.watch("k/", since)) as changes:
                async for change in changes:
                    told.append(change)
                    if change.value == b"end":
                        return

        async def progress(count: int) -> None:
            target = len(acknowledged) + count
            async with aclosing(writer.watch("k/", since)) as changes:
                async for _ in changes:
                    if len(acknowledged) >= target:
                        return

        async with asyncio.TaskGroup() as group:
            writing = group.create_task(write())
            group.create_task(watch())
            for _ in range(3):
                await progress(100)
                await asyncio.to_thread(mortal.kill)
                await asyncio.to_thread(mortal.start)
            await progress(100)
            enough.set()
            await writing
            last = await writer.put("k/n", b"end")

        # Only this prefix is written, one key at a time: every revision is one change.
        assert [change.revision for change in told] == list(range(since + 1, last + 1))
        assert acknowledged <= {change.value for change in told}


async def test_calls_wait_for_a_server_that_restarts(mortal: Etcd) -> None:
    async with client(mortal.endpoint) as space:
        first = await space.put("a", b"1")
        await asyncio.to_thread(mortal.kill)
        reading = asyncio.create_task(space.get("a"))
        writing = asyncio.create_task(put_until_done(space, "b", b"1"))
        await asyncio.to_thread(mortal.start)
        assert await reading == Entry("a", b"1", first, first)
        assert await writing == first + 1


async def test_a_server_that_is_gone_is_unavailable_in_time() -> None:
    async with client(f"127.0.0.1:{free_port()}", timeout=0.5) as space:
        for call in (space.get("a"), space.put("a", b""), space.list(""), space.grant(5)):
            begun = asyncio.get_running_loop().time()
            with pytest.raises(Unavailable) as failed:
                await call
            assert failed.value.reason == "ETCD_UNREACHABLE"
            assert asyncio.get_running_loop().time() - begun < 2


async def test_a_dead_endpoint_among_several_is_passed_over(etcd: Etcd) -> None:
    async with client([f"127.0.0.1:{free_port()}", f"http://{etcd.endpoint}/"]) as space:
        revision = await space.put("f/a", b"1")
        async with aclosing(space.watch("f/", revision - 1)) as changes:
            assert (await anext(changes)).revision == revision


async def test_a_holder_stops_before_its_lease_ends_on_a_server_that_froze(mortal: Etcd) -> None:
    async with client(mortal.endpoint, timeout=1.0) as space:
        lease = await space.grant(2)
        await space.put("a", b"1", lease.id)
        begun = asyncio.get_running_loop().time()
        mortal.pause()
        await lease.lost()
        assert asyncio.get_running_loop().time() - begun < lease.ttl
        assert not lease.held()
        with pytest.raises(Unavailable) as failed:
            await space.put("b", b"1")
        assert failed.value.reason == "ETCD_OUTCOME_UNKNOWN"
        mortal.resume()
        entries, since = await space.list("")
        if "a" in {entry.key for entry in entries}:
            async with aclosing(space.watch("a", since)) as changes:
                assert (await anext(changes)).value is None


async def test_a_lease_outlives_a_short_restart_of_the_server(mortal: Etcd) -> None:
    async with client(mortal.endpoint) as space:
        lease = await space.grant(4)
        revision = await space.put("a", b"1", lease.id)
        await asyncio.to_thread(mortal.kill)
        await asyncio.to_thread(mortal.start)
        assert await space.get("a") == Entry("a", b"1", revision, revision, lease.id)
        # Longer than a life of it, so that only renewals can have kept it.
        losing = asyncio.create_task(lease.lost())
        done, _ = await asyncio.wait([losing], timeout=lease.ttl + 0.5)
        assert not done and lease.held()
        assert await space.get("a") is not None
        losing.cancel()


async def test_closing_while_the_server_is_away_is_prompt_and_clear(mortal: Etcd) -> None:
    space = EtcdSnapshots(mortal.endpoint)
    lease = await space.grant(5)
    changes = space.watch("", 0)
    watching = asyncio.create_task(anext(changes))
    await asyncio.to_thread(mortal.kill)
    calling = asyncio.create_task(space.get("a"))
    await asyncio.wait([watching, calling], timeout=0.2)
    async with asyncio.timeout(2):
        await space.close()
        for task in (watching, calling):
            with pytest.raises(Unavailable) as failed:
                await task
            assert failed.value.reason == "CLOSED"
        await lease.lost()


async def test_a_cluster_of_three_goes_on_without_any_one_member(tmp_path: Path) -> None:
    members = [Etcd(tmp_path / name, member=name) for name in ("one", "two", "three")]
    for member in members:
        member.peers = {other.member: other.peer_url for other in members}
    with ThreadPoolExecutor() as threads:
        try:
            list(threads.map(Etcd.start, members))
            # A change that a dying leader swallowed is only given up when its time is up.
            async with client([member.endpoint for member in members], timeout=1.5) as space:
                since = await space.put("a", b"0")
                async with aclosing(space.watch("a", since)) as changes:
                    for member in members:
                        await asyncio.to_thread(member.kill)
                        revision = await put_until_done(space, "a", member.member.encode())
                        while (await anext(changes)).revision < revision:
                            pass
                        entry = await space.get("a")
                        assert entry is not None and entry.value == member.member.encode()
                        await asyncio.to_thread(member.start)
        finally:
            list(threads.map(Etcd.kill, members))


async def put_until_done(space: EtcdSnapshots, key: str, value: bytes) -> int:
    """For a put that may be done twice."""
    while True:
        try:
            return await space.put(key, value)
        except Unavailable:
            pass


# -- a scripted server, for what a real one does only in rare moments


@dataclass
class Script(wire_pb2_grpc.WatchServicer):
    """Plays one session per stream, breaks the stream after each but the last, and keeps the
    revisions at which the client asked to start."""

    sessions: list[list[WatchResponse]]
    asked: list[int] = field(default_factory=list)

    async def Watch(self, requests: Any, context: Any) -> AsyncIterator[WatchResponse]:
        request = await anext(aiter(requests))
        self.asked.append(request.create_request.start_revision)
        session = self.sessions.pop(0)
        for answer in session:
            yield answer
        if self.sessions:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "scripted")
        await asyncio.Event().wait()


@asynccontextmanager
async def scripted(*sessions: list[WatchResponse]) -> AsyncIterator[tuple[Script, EtcdSnapshots]]:
    script = Script(list(sessions))
    server = grpc.aio.server()
    wire_pb2_grpc.add_WatchServicer_to_server(script, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with client(f"127.0.0.1:{port}") as space:
            yield script, space
    finally:
        await server.stop(None)


def created(revision: int) -> WatchResponse:
    return WatchResponse(header=ResponseHeader(revision=revision), created=True)


def progress(revision: int) -> WatchResponse:
    return WatchResponse(header=ResponseHeader(revision=revision))


def changed(*revisions: int, header: int = 0, fragment: bool = False) -> WatchResponse:
    events = [Event(kv=KeyValue(key=b"a", value=b"1", mod_revision=r)) for r in revisions]
    return WatchResponse(
        header=ResponseHeader(revision=header or revisions[-1]), events=events, fragment=fragment
    )


async def revisions(space: EtcdSnapshots, since: int, count: int) -> list[int]:
    async with aclosing(space.watch("a", since)) as changes:
        return [(await anext(changes)).revision for _ in range(count)]


async def test_a_watch_that_breaks_before_anything_was_told_starts_where_it_was_asked_to() -> None:
    async with scripted([created(100)], [created(100), changed(5)]) as (script, space):
        assert await revisions(space, 4, 1) == [5]
        assert script.asked == [5, 5]


async def test_a_watch_resumes_after_the_last_change_and_not_after_a_header() -> None:
    sessions = [created(100), changed(5, 6, header=100)], [created(100), changed(7)]
    async with scripted(*sessions) as (script, space):
        assert await revisions(space, 4, 3) == [5, 6, 7]
        assert script.asked == [5, 7]


async def test_a_watch_resumes_after_a_progress_notification() -> None:
    async with scripted([created(9), progress(90)], [created(95), changed(93)]) as (script, space):
        assert await revisions(space, 4, 1) == [93]
        assert script.asked == [5, 91]


async def test_a_fragment_is_not_told_before_the_rest_of_it() -> None:
    sessions = (
        [created(9), changed(5, 6, fragment=True)],
        [created(9), changed(5, 6, fragment=True), changed(6, 7)],
    )
    async with scripted(*sessions) as (script, space):
        assert await revisions(space, 4, 4) == [5, 6, 6, 7]
        assert script.asked == [5, 5]


async def test_a_change_that_is_sent_again_is_told_once() -> None:
    async with scripted([created(9), changed(5)], [created(9), changed(5), changed(6)]) as (
        _,
        space,
    ):
        assert await revisions(space, 4, 2) == [5, 6]


async def test_a_cancellation_by_compaction_is_told() -> None:
    gone = WatchResponse(created=True), WatchResponse(canceled=True, compact_revision=50)
    async with scripted(list(gone)) as (_, space):
        with pytest.raises(Compacted):
            await revisions(space, 4, 1)


# -- login and TLS


def administer(etcd: Etcd, path: str, *, token: str = "", **body: Any) -> dict[str, Any]:
    """etcd's own JSON gateway, for what the stubs leave out."""
    request = urllib.request.Request(
        f"http://{etcd.endpoint}/v3/auth/{path}",
        data=json.dumps(body).encode(),
        headers={"Authorization": token} if token else {},
    )
    with urllib.request.urlopen(request, timeout=5) as answer:
        return dict(json.load(answer))


async def test_a_login_is_renewed_when_the_server_no_longer_takes_it(mortal: Etcd) -> None:
    for user, role in (("root", "root"), ("flow", "reader")):
        administer(mortal, "user/add", name=user, password="secret")
        administer(mortal, "role/add", name=role)
        administer(mortal, "user/grant", user=user, role=role)
    # "ci8=" and "cjA=" are r/ and r0: this role may read the keys under r/ only.
    permission = {"permType": "READ", "key": "ci8=", "range_end": "cjA="}
    administer(mortal, "role/grant", name="reader", perm=permission)
    administer(mortal, "enable")

    login = Login("root", "secret")
    # A client that only calls and one that only watches: either must find out by itself.
    async with (
        client(mortal.endpoint, login=login) as calling,
        client(mortal.endpoint, login=login) as watching,
    ):
        first = await calling.put("r/a", b"1")
        async with aclosing(watching.watch("r/", first - 1)) as changes:
            assert (await anext(changes)).revision == first
            # A new password, though it is the old one, ends all tokens of the user.
            token = administer(mortal, "authenticate", name="root", password="secret")["token"]
            administer(mortal, "user/changepw", token=token, name="root", password="secret")
            second = await calling.put("r/a", b"2")
            assert (await anext(changes)).revision == second
            # An open stream keeps its rights; the next one starts with a dead token.
            await asyncio.to_thread(mortal.kill)
            await asyncio.to_thread(mortal.start)
            third = await put_until_done(calling, "r/a", b"3")
            while (await anext(changes)).revision < third:
                pass
        other = await asyncio.to_thread(etcd3_client, mortal.endpoint, login=login)
        assert (await asyncio.to_thread(other.get, "r/a"))[0] == b"3"
        other.close()

    async with client(mortal.endpoint, login=Login("flow", "secret")) as space:
        assert await space.get("r/a") is not None
        with pytest.raises(Denied):
            await space.put("r/a", b"3")
        with pytest.raises(Denied):
            await anext(space.watch("s/", 1))
    async with client(mortal.endpoint, login=Login("flow", "wrong")) as space:
        with pytest.raises(Unauthenticated):
            await space.get("r/a")
    async with client(mortal.endpoint) as space:
        with pytest.raises(Unauthenticated):
            await space.get("r/a")
    assert "secret" not in repr(login)


@pytest.fixture(scope="module")
def tls_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """ca, cert and key; the one certificate serves both sides."""
    folder = tmp_path_factory.mktemp("tls")
    since = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1)

    def certificate(name: str, key: Any, issuer: str, signer: Any, ca: bool) -> bytes:
        loopback = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        built = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(since)
            .not_valid_after(since + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(
                x509.SubjectAlternativeName([x509.DNSName("localhost"), loopback]), critical=False
            )
            .sign(signer, hashes.SHA256())
        )
        return built.public_bytes(serialization.Encoding.PEM)

    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    files = folder / "ca.pem", folder / "cert.pem", folder / "key.pem"
    files[0].write_bytes(certificate("ca", ca_key, "ca", ca_key, True))
    files[1].write_bytes(certificate("member", key, "ca", ca_key, False))
    files[2].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return files


async def test_tls_with_client_certificates_is_spoken_by_both_clients(
    tmp_path: Path, tls_files: tuple[Path, Path, Path]
) -> None:
    tls = Tls(*tls_files)
    with Etcd(tmp_path / "etcd", tls=tls_files) as etcd:
        async with client(f"https://localhost:{etcd.port}", tls=tls) as space:
            await space.put("a", b"1")
        other = etcd3_client(f"https://localhost:{etcd.port}", tls=tls)
        assert (await asyncio.to_thread(other.get, "a"))[0] == b"1"
        other.close()
        async with client(etcd.endpoint, timeout=1) as plain:
            with pytest.raises(Unavailable):
                await plain.get("a")


def test_tls_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match=r"missing\.pem"):
        Tls(ca=tmp_path / "missing.pem").credentials()
    with pytest.raises(Invalid, match="both cert and key"):
        Tls(cert=tmp_path / "cert.pem").credentials()


@pytest.mark.parametrize("endpoint", ["", ",", "etcd", "etcd:", ":2379", "ftp://etcd:2379"])
def test_an_endpoint_that_is_none_is_refused(endpoint: str) -> None:
    with pytest.raises(Invalid):
        Address.parse(endpoint)


def test_endpoints_may_be_written_in_every_usual_way() -> None:
    assert Address.parse("a:1, http://b:2/,https://[::1]:3") == (
        Address("a:1", None),
        Address("b:2", False),
        Address("[::1]:3", True),
    )


# -- versions


async def test_the_server_says_its_version_and_the_check_lets_it_pass(etcd: Etcd) -> None:
    version = await server_version([f"127.0.0.1:{free_port()}", etcd.endpoint])
    check_version(version)
    async with client(etcd.endpoint) as space:
        assert await space.check() == version
    other = etcd3_client(etcd.endpoint)
    assert (await asyncio.to_thread(other.status)).version == version
    other.close()


async def test_no_server_has_no_version() -> None:
    with pytest.raises(Unavailable):
        await server_version([f"127.0.0.1:{free_port()}"], timeout=0.3)


@pytest.mark.parametrize("version", ["3.4.21", "3.4.23", "3.5.5", "3.5.16", "3.6.0-rc.1", "4.0.0"])
def test_a_version_that_keeps_its_word_passes(version: str) -> None:
    check_version(version)


@pytest.mark.parametrize("version", ["2.3.8", "3.3.27", "3.4.20", "3.5.0", "3.5.4", "unknown"])
def test_a_version_that_loses_changes_is_refused(version: str) -> None:
    with pytest.raises(Unavailable) as refused:
        check_version(version)
    assert refused.value.reason == "ETCD_TOO_OLD"
    assert "3.5.5" in refused.value.mend
