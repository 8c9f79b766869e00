"""The fixture `bucket`: an empty bucket on each kind of object store; `buckets` makes any number of them.

Environment variables lead the clients to the servers, as users do it with an emulator or a server of their own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import fsspec
import pytest

from tests.buckets.servers import KINDS, Kind, Proxy, Request, running, skip_or_fail
from tests.go_programs import ProgramUnavailable

_NUMBERS = itertools.count(1)


@dataclass
class Bucket:
    """A bucket.

    Attributes:
        kind: Its kind.
        url: Its URL, without a slash at the end.
        proxy: Stands before the server.
    """

    kind: Kind
    url: str
    proxy: Proxy

    @property
    def requests(self) -> list[Request]:
        """What was asked of the server since `proxy.reset`."""
        return self.proxy.requests

    @property
    def files(self) -> Any:
        """A filesystem of fsspec that knows nothing from before."""
        filesystem = fsspec.filesystem(self.kind.scheme)
        filesystem.invalidate_cache()
        return filesystem

    def names(self) -> list[str]:
        """The names of all objects."""
        root = self.url.partition("://")[2]
        return sorted(name[len(root) + 1 :] for name in self.files.find(root))

    def read(self, name: str) -> bytes:
        """The content of an object."""
        return bytes(self.files.cat_file(f"{self.url}/{name}"))

    def write(self, name: str, content: bytes) -> None:
        """Makes an object."""
        self.files.pipe_file(f"{self.url}/{name}", content)

    def mark(self, name: str) -> None:
        """Makes an object that stands for a directory, as consoles do: empty, its name ends in a slash."""
        files, bucket = self.files, self.url.partition("://")[2]

        async def put() -> None:
            # The filesystems take the slash away.
            if self.kind.scheme == "s3":
                await files._call_s3("put_object", Bucket=bucket, Key=name, Body=b"")
            elif self.kind.scheme == "gs":
                address = f"http://127.0.0.1:{self.proxy.port}/upload/storage/v1/b/{bucket}/o"
                await files._call("POST", address, uploadType="media", name=name)
            else:
                async with files.service_client.get_blob_client(container=bucket, blob=name) as blob:
                    await blob.upload_blob(b"")

        fsspec.asyn.sync(files.loop, put)

    def fill(self, folder: Path) -> None:
        """Makes objects of all files of a folder."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.write(path.relative_to(folder).as_posix(), path.read_bytes())


@pytest.fixture(scope="session")
def _servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Proxy]]:
    """Starts each server once, when it is needed first."""
    started: dict[str, Proxy | str] = {}

    def server(name: str) -> Proxy:
        if name not in started:
            try:
                if find_spec(KINDS[name].package) is None:
                    raise ProgramUnavailable(f"{KINDS[name].package} is not installed")
                started[name] = stack.enter_context(running(KINDS[name], tmp_path_factory.mktemp(f"server-{name}")))
            except ProgramUnavailable as error:
                started[name] = str(error)
        found = started[name]
        if isinstance(found, str):
            skip_or_fail(found)
        assert isinstance(found, Proxy)
        return found

    with ExitStack() as stack:
        yield server


@pytest.fixture
def buckets(_servers: Callable[[str], Proxy], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Bucket]:
    """Makes buckets: `buckets("s3")`, and `buckets("s3", exists=False)` for the URL of one that is not there."""

    def make(name: str, *, exists: bool = True) -> Bucket:
        kind, proxy = KINDS[name], _servers(name)
        for variable, value in kind.environment(proxy.port).items():
            monkeypatch.setenv(variable, value)
        if name == "az":
            # The client waits for at least a quarter of a minute after each refusal.
            waits = "azure.storage.blob._shared.policies_async.ExponentialRetry.get_backoff_time"
            monkeypatch.setattr(waits, lambda policy, settings: 0.1)
        proxy.reset()
        bucket = Bucket(kind, f"{kind.scheme}://images-{next(_NUMBERS)}", proxy)
        if exists:
            bucket.files.mkdir(bucket.url.partition("://")[2])
        proxy.reset()
        return bucket

    return make


@pytest.fixture(params=list(KINDS))
def bucket(request: pytest.FixtureRequest, buckets: Callable[..., Bucket]) -> Bucket:
    """An empty bucket, on each kind of object store in turn."""
    return buckets(request.param)
