"""A client that was used before ``os.fork``: the child has nothing of its parent's that is bound to a process."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import signal
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from requests.adapters import HTTPAdapter

from dicomweb_io import Resource
from dicomweb_io.files.client import DICOMfileClient
from dicomweb_io.files.database import Database, lock_file
from dicomweb_io.http.auth import Token, TokenAuthenticator
from dicomweb_io.http.retry import ProcessLock
from dicomweb_io.http.transport import Transport
from dicomweb_io.listing import SeriesListing
from dicomweb_io.spool import PrivateDirectory, Spool

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]


def in_child(work: Callable[[], Any]) -> Any:
    """What a forked child returns; one that hangs is ended."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            signal.alarm(60)
            os.close(reading)
            try:
                result = work()
            except BaseException as error:
                result = f"{type(error).__name__}: {error}"
            with os.fdopen(writing, "wb") as file:
                file.write(pickle.dumps(result))
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        said = file.read()
    assert os.waitpid(child, 0)[1] == 0, "the child hangs"
    return pickle.loads(said)


class OwnWay(requests.Session):
    """Sends in its own way, and gets its tokens with a session of its own, as google.auth's AuthorizedSession does."""

    def __init__(self, token_url: str) -> None:
        super().__init__()
        self.token_url = token_url
        self._auth_request_session = requests.Session()
        self._auth_request = SimpleNamespace(session=self._auth_request_session)
        self._lock = threading.Lock()

    def request(self, method: Any, url: Any, *args: Any, **kwargs: Any) -> Any:
        with self._lock:
            self._auth_request.session.get(self.token_url, timeout=20)
        return super().request(method, url, *args, **kwargs)


class OwnAdapter(HTTPAdapter):
    """A user's adapter, such as one with certificates of its own."""


class TokenAuth(requests.auth.AuthBase):
    """Gets tokens with a session of its own."""

    def __init__(self, token_url: str) -> None:
        self.token_url = token_url
        self.http_client = requests.Session()

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        self.http_client.get(self.token_url, timeout=20)
        return request


def session_with_adapter(url: str) -> requests.Session:
    session = requests.Session()
    session.mount("http://", OwnAdapter())
    return session


def session_with_auth(url: str) -> requests.Session:
    session = requests.Session()
    session.auth = TokenAuth(url)
    return session


@pytest.mark.parametrize(
    ("options", "each"),
    [
        (lambda url: {}, 1),
        (lambda url: {"session": requests.Session()}, 1),
        (lambda url: {"session": session_with_adapter(url)}, 1),
        (lambda url: {"session": OwnWay(url)}, 2),
        (lambda url: {"session": session_with_auth(url)}, 2),
        (lambda url: {"credentials": TokenAuth(url)}, 2),
        (lambda url: {"proxies": {"http": url}}, 1),
    ],
    ids=["own", "session", "adapter", "session class", "session's auth", "credentials", "proxy"],
)
def test_connections_are_not_shared(answering, options, each: int) -> None:
    server = answering(lambda got: got.answer(200, got.target.encode()))
    with Transport(server.url, **options(server.url + "/token")) as transport:
        transport.request("GET", "/before")
        assert server.connections == each

        def work() -> Any:
            inner = in_child(lambda: transport.request("GET", "/grandchild").content[-11:])
            return inner, transport.request("GET", "/child").content[-6:]

        assert in_child(work) == (b"/grandchild", b"/child")
        assert server.connections == 3 * each
        assert transport.request("GET", "/after").content[-6:] == b"/after"
        assert server.connections == 3 * each, "the connections of the parent are still good"


def test_frames_in_four_children_are_each_ones_own(answering) -> None:
    server = answering(lambda got: got.answer(200, got.target.encode() * 200))
    with Transport(server.url, session=OwnWay(server.url + "/token")) as transport:
        transport.request("GET", "/before")

        def work(number: int, wrong: Any) -> None:
            for frame in range(25):
                path = f"/{number}/{frame}"
                if transport.request("GET", path).content != path.encode() * 200:
                    wrong.value += 1

        context = multiprocessing.get_context("fork")
        wrong = context.Value("i", 0)
        children = [context.Process(target=work, args=(number, wrong), daemon=True) for number in range(4)]
        for child in children:
            child.start()
        work(9, wrong)
        for child in children:
            child.join(60)
        assert [child.exitcode for child in children] == [0] * 4
        assert wrong.value == 0


@pytest.mark.parametrize("what", ["reads on", "drops it"])
def test_an_answer_that_is_being_read_stays_the_parents(answering, what: str) -> None:
    body = bytes(range(256)) * 20_000
    server = answering(lambda got: got.answer(200, body))
    with Transport(server.url) as transport, transport.stream("GET", "/") as answer:
        chunks = answer.iter_chunks(1000)
        first = next(chunks)

        def work() -> Any:
            if what == "reads on":
                return next(chunks)
            answer.close(drain=True)
            gc.collect()
            return transport.request("GET", "/").content == body

        said = in_child(work)
        assert said is True or "another process asked for this answer" in said
        assert first + b"".join(chunks) == body


class _Held:
    """A lock that another thread holds."""

    def __init__(self, lock: Any) -> None:
        self._lock = lock
        self._held, self._let_go = threading.Event(), threading.Event()

    def __enter__(self) -> None:
        self._thread = threading.Thread(target=self._hold, daemon=True)
        self._thread.start()
        assert self._held.wait(30)

    def _hold(self) -> None:
        with self._lock:
            self._held.set()
            self._let_go.wait(60)

    def __exit__(self, *_: object) -> None:
        self._let_go.set()
        self._thread.join(30)


def pool_manager(transport: Transport) -> Any:
    return transport._sender._adapter.poolmanager


@pytest.mark.parametrize(
    "lock",
    [
        lambda transport: transport._sender._cookies,
        lambda transport: transport._sender._session.cookies._cookies_lock,
        lambda transport: pool_manager(transport).pools.lock,
        lambda transport: next(iter(pool_manager(transport).pools._container.values())).pool.mutex,
        lambda transport: transport._throttle._newcomers,
        lambda transport: transport.stats._lock,
        lambda transport: transport._auth._lock,
        lambda transport: __import__("dicomweb_io.http.connections", fromlist=["_lock"])._lock,
        lambda transport: __import__("dicomweb_io.http.retry", fromlist=["_THROTTLES"])._THROTTLES._lock,
    ],
    ids=["cookies", "cookie jar", "pools", "queue", "throttle", "counts", "tokens", "watchdog", "registry"],
)
def test_locks_of_other_threads_do_not_stop_a_child(answering, lock) -> None:
    server = answering(lambda got: got.answer(200, b"ok"))
    with Transport(server.url) as transport:
        transport._auth = TokenAuthenticator(lambda: Token("secret"))
        transport.request("GET", "/")

        def work() -> Any:
            with Transport(server.url) as other:
                return transport.request("GET", "/").content + other.request("GET", "/").content

        with _Held(lock(transport)):
            assert in_child(work) == b"okok"


def test_locks_beside_http_are_free_in_a_child(sample_folder: Path) -> None:
    client = DICOMfileClient(sample_folder, in_memory=True)
    listing = SeriesListing(client)
    row = client.search_for_series()[0]
    series = Resource(row["0020000D"]["Value"][0], row["0020000E"]["Value"][0])
    expected = (listing.size(series), len(client.search_for_instances()))
    for lock in (client._lock, client._current().lock, listing._lock):
        with _Held(lock):
            assert in_child(lambda: (listing.size(series), len(client.search_for_instances()))) == expected
    lock = ProcessLock()
    with lock, lock:
        pass


@pytest.mark.parametrize("private", [False, True])
def test_a_child_reads_the_index_of_a_folder_without_touching_the_parents(
    sample_folder: Path, tmp_path: Path, private: bool
) -> None:
    options: dict[str, Any] = {"in_memory": True} if private else {"index": tmp_path / "index"}
    with DICOMfileClient(sample_folder, **options) as client:
        expected = sorted(map(repr, client.search_for_instances()))
        parent = client._current()._database

        def work() -> Any:
            found = sorted(map(repr, client.search_for_instances())) == expected
            database = client._current()._database
            mine = database is not parent and not database.shared
            nested = in_child(lambda: sorted(map(repr, client.search_for_instances())) == expected)
            client.refresh()
            return found, mine, nested, client._current()._place

        assert in_child(work) == (True, True, True, None)
        assert in_child(lambda: client.close() or gc.collect() >= 0)
        assert sorted(map(repr, client.search_for_instances())) == expected
        client.refresh()


def test_a_child_that_drops_a_client_leaves_the_parents_database(sample_folder: Path, tmp_path: Path) -> None:
    client = DICOMfileClient(sample_folder, index=tmp_path / "index")
    expected = len(client.search_for_instances())

    def work() -> Any:
        client.__dict__.clear()
        return gc.collect() >= 0

    assert in_child(work) is True
    (file,) = (tmp_path / "index").glob("*.sqlite")
    other = sqlite3.connect(file)
    assert other.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    other.close()
    assert len(client.search_for_instances()) == expected
    client.close()


def test_a_child_does_not_keep_the_lock_of_an_index(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    with lock_file(path):
        ready, go_on = os.pipe(), os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.write(ready[1], b".")
                os.read(go_on[0], 1)
            finally:
                os._exit(0)
        os.read(ready[0], 1)
        # The parent dies: the system closes its file without a word.
        from dicomweb_io.files import database

        for descriptor in database._lock_files:
            os.dup2(os.open(os.devnull, os.O_RDONLY), descriptor)
        with lock_file(path, wait=False):
            pass
        os.write(go_on[1], b".")
        os.waitpid(child, 0)


def test_a_copy_that_fails_is_an_empty_index(tmp_path: Path) -> None:
    database = Database(tmp_path / "a.sqlite")
    database.close()
    (tmp_path / "a.sqlite").write_bytes(b"no database" * 1000)
    copy = database.copy_in_child(True)
    assert copy.reader.execute("SELECT count(*) FROM file").fetchone() == (0,)
    copy.close()


def _chunks(spool: Spool) -> Iterator[bytes]:
    with spool:
        spool.write(b"12345")
        yield b""


def test_spool_files_stay_the_parents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    directory = PrivateDirectory()
    chunks = _chunks(Spool(max_bytes=1, directory=directory.path))
    next(chunks)
    (file,) = Path(directory.path).iterdir()
    before = directory.path

    def work() -> Any:
        chunks.close()
        other = directory.path
        directory.remove()
        return other != before, os.path.exists(other)

    assert in_child(work) == (True, False)
    assert file.read_bytes() == b"12345"
    chunks.close()
    assert not file.exists()
    directory.remove()
    assert not os.path.exists(before)
