"""A DICOMweb server over any archive, for tests, in a thread of this process.

    with serve("some/folder", behaviour="orthanc", faults=[fault("status", status=503)]) as server:
        client = DICOMwebClient(server.url)
        ...
        print(server.records)

It listens on the loopback interface only, unless told otherwise, and is made to misbehave: do not use it as an archive.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import socket
import ssl
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn

from dicomweb_io.client import DICOMClient
from dicomweb_io.endpoint import Endpoint, EndpointLike
from dicomweb_io.http.settings import Prefixes
from dicomweb_io.testing.faults import Fault, FaultPlan, WireFault
from dicomweb_io.testing.proxy import FaultyProxy
from dicomweb_io.testing.server.app import App, Hosts
from dicomweb_io.testing.server.auth import authentication_of
from dicomweb_io.testing.server.behaviour import Behaviour
from dicomweb_io.testing.server.behaviours import behaviour_of
from dicomweb_io.testing.server.exchange import Records
from dicomweb_io.testing.server.site import Site

logger = logging.getLogger("dicomweb_io")

_BACKLOG = 256
_LAST_SECONDS = 10.0
NOTICE = "This server is for tests only: it is not protected, and it may misbehave on purpose."


@dataclass(frozen=True)
class TLS:
    """Certificates for https.

    Attributes:
        certificate: The PEM file of the server's certificate chain.
        key: The PEM file of its key; None if it is in the same file.
        client_ca: The PEM file of the authority that clients' certificates must come from (mutual TLS); None to ask
            for no client certificate.
    """

    certificate: str
    key: str | None = None
    client_ca: str | None = None


class TestServer:
    """A running server; made by `serve`.

    Attributes:
        records: What was asked and answered, in order of arrival.
        faults: The plan of what goes wrong; use `inject` to add to it.
        auth: The authentication, for example to issue and expire tokens.
        archive: The archive behind it.
        behaviour: How it behaves.
        errors: Tracebacks of defects of the server itself.
    """

    __test__ = False  # not a test case, whatever its name looks like to pytest

    def __init__(
        self,
        archive: DICOMClient,
        *,
        address: tuple[str, int],
        behaviour: Behaviour,
        auth: Any,
        faults: Sequence[Fault],
        directory: str,
        tls: TLS | None,
        proxy: bool,
        allow_hosts: Sequence[str] = (),
    ) -> None:
        self.archive = archive
        self.behaviour = behaviour
        self.auth = authentication_of(auth)
        self.records = Records()
        wire = [one for one in faults if isinstance(one, WireFault)]
        self.faults = FaultPlan(one for one in faults if not isinstance(one, WireFault))
        self._site = Site(archive, behaviour, directory)
        self._app = App(self._site, self.faults, self.records, self.auth, Hosts(address[0], allow_hosts))
        self.errors = self._app.errors
        self._host, self._port = address
        self._tls = tls
        if tls is not None and (wire or proxy):
            raise ValueError("faults below HTTP need plain http: the proxy cannot read TLS")
        self._with_proxy = proxy or bool(wire)
        self._wire = wire
        self._proxy: FaultyProxy | None = None
        self._inner_port = 0
        self._server: _Uvicorn | None = None
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        """The port that clients connect to; it stays the same over `stop` and `start`."""
        return self._port

    @property
    def origin(self) -> str:
        """Scheme, host and port."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{'https' if self._tls else 'http'}://{host}:{self._port}"

    @property
    def url(self) -> str:
        """The root of the service, such as ``http://127.0.0.1:8042/dicom-web``."""
        return self.origin + self.behaviour.root

    def endpoint(self, **options: Any) -> Endpoint:
        """A description of this server for clients and pipelines, with the prefixes that its addresses need.

        Args:
            **options: Further arguments of `Endpoint`.
        """
        served = self.behaviour
        prefixes = (served.qido_prefix, served.wado_prefix, served.stow_prefix, served.delete_prefix)
        return Endpoint(self.url, **{"prefixes": Prefixes(*(prefix or None for prefix in prefixes)), **options})

    @property
    def running(self) -> bool:
        """Whether it answers."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def proxy(self) -> FaultyProxy:
        """The proxy in front of it.

        Raises:
            RuntimeError: If there is none: pass ``proxy=True``, or faults of the layer ``"wire"``, to `serve`.
        """
        if self._proxy is None:
            raise RuntimeError("this server has no proxy for faults below HTTP; start it with proxy=True")
        return self._proxy

    def refresh(self) -> None:
        """Lets the server see files that others put into its folder since it started."""
        self.archive.refresh()
        self._site.log.look_again()

    @property
    def image_sets(self) -> tuple[str, ...]:
        """What ``imageSetId`` can be in the behaviour of AWS HealthImaging, in the order in which they arose.

        Each holds one instance that was stored although another one with its UID was there.
        """
        return tuple(self._site.image_sets)

    def close(self) -> None:
        """Ends it."""
        self.stop()
        for archive in self._site.image_sets.values():
            archive.close()

    def inject(self, *faults: Fault) -> None:
        """Adds faults to the running server; their counts start now.

        Raises:
            RuntimeError: If one needs the proxy and there is none.
        """
        for one in faults:
            if isinstance(one, WireFault):
                self.proxy.faults.add(one)
            else:
                self.faults.add(one)

    def clear_faults(self) -> None:
        """Removes all faults; a server that is down comes back."""
        self.faults.clear()
        if self._proxy is not None:
            self._proxy.faults.clear()
            self._proxy.up()

    def start(self) -> TestServer:
        """Starts it, at first or after `stop`, then on the same port.

        Returns:
            The server itself.

        Raises:
            OSError: If the port is taken.
        """
        if self.running:
            return self
        listener = _listen(self._host, self._inner_port if self._with_proxy else self._port)
        if self._with_proxy:
            self._inner_port = listener.getsockname()[1]
        else:
            self._port = listener.getsockname()[1]
        self._server = _Uvicorn(self._configuration())
        self._thread = threading.Thread(
            target=self._server.run, args=([listener],), name="dicomweb test server", daemon=True
        )
        self._thread.start()
        self._server.ready.wait()
        if self._with_proxy:
            self._proxy = self._proxy or FaultyProxy((self._host, self._inner_port), self._wire, host=self._host)
            self._proxy.start(self._port)
            self._port = self._proxy.port
        return self

    def stop(self) -> None:
        """Ends it at once: open connections are cut, new ones are refused until `start`."""
        if self._proxy is not None:
            self._proxy.stop()
        server, thread = self._server, self._thread
        self._server = self._thread = None
        if server is not None and thread is not None:
            server.end()
            thread.join()

    def _configuration(self) -> uvicorn.Config:
        tls = self._tls
        return uvicorn.Config(
            self._app,
            interface="asgi3",
            http="h11",
            ws="none",
            lifespan="off",
            loop="asyncio",
            log_config=None,
            access_log=False,
            log_level=100,
            proxy_headers=False,
            server_header=False,
            headers=[("Server", "dicomweb_io-testing")],
            timeout_keep_alive=self.behaviour.keep_alive,
            timeout_graceful_shutdown=1,
            backlog=_BACKLOG,
            h11_max_incomplete_event_size=1 << 18,
            ssl_certfile=tls.certificate if tls else None,
            ssl_keyfile=tls.key if tls else None,
            ssl_ca_certs=tls.client_ca if tls else None,
            ssl_cert_reqs=ssl.CERT_REQUIRED if tls and tls.client_ca else ssl.CERT_NONE,
        )


class _Uvicorn(uvicorn.Server):
    """uvicorn in a thread, with an event for its start; it ends at once."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._over: asyncio.Event | None = None

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            super().run(sockets)
        finally:
            self.ready.set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._over = asyncio.Event()
        await super().startup(sockets)
        self._loop = asyncio.get_running_loop()
        self.ready.set()

    async def main_loop(self) -> None:
        counter = 0
        while not await self.on_tick(counter):
            counter += 1
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._ended(), 0.1)

    async def _ended(self) -> None:
        if self._over is not None:
            await self._over.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        for one in sockets or []:
            one.close()
        for connection in list(self.server_state.connections):
            transport = getattr(connection, "transport", None)
            if transport is not None:
                transport.abort()
        # Handlers notice that their client has gone; one may be in the middle of a write to the archive.
        tasks = list(self.server_state.tasks)
        if tasks:
            await asyncio.wait(tasks, timeout=_LAST_SECONDS)

    def end(self) -> None:
        self.should_exit = self.force_exit = True
        loop, over = self._loop, self._over
        if loop is not None and over is not None:
            with contextlib.suppress(RuntimeError):  # the loop may have ended by itself meanwhile
                loop.call_soon_threadsafe(over.set)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With its protocol named, asyncio switches Nagle's delay off for the connections.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def check_host(host: str, allow_remote: bool) -> None:
    """Checks that an address can only be reached from this computer; if others are wanted, the log gets a warning.

    Raises:
        ValueError: If it can be reached from elsewhere.
    """
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback and allow_remote:
        logger.warning("The test server can be reached from other computers at %s. %s", host, NOTICE)
    elif not loopback:
        raise ValueError(
            f"{host} can be reached from other computers; this server is for tests and listens on 127.0.0.1 only, "
            "unless other computers are allowed (allow_remote=True, --allow-remote)"
        )


@contextlib.contextmanager
def serve(
    archive: EndpointLike | DICOMClient,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    behaviour: str | Behaviour = "generic",
    auth: Any = None,
    faults: Sequence[Fault] = (),
    tls: TLS | None = None,
    proxy: bool = False,
    allow_remote: bool = False,
    allow_hosts: Sequence[str] = (),
) -> Iterator[TestServer]:
    """Serves an archive for the length of a ``with`` block.

    Args:
        archive: A folder, a URL, an `Endpoint`, or a client. A client stays open.
        host: The address to listen on.
        port: The port; 0 for any free one.
        behaviour: A name of `dicomweb_io.testing.BEHAVIOURS`, or a `Behaviour` of your own.
        auth: None, a pair of name and password, a bearer token, or an `Authentication` such as `BearerAuthentication`.
        faults: What goes wrong (`dicomweb_io.testing.faults.fault`).
        tls: Certificates, for https.
        proxy: Start the proxy for faults below HTTP even if there are none yet.
        allow_remote: Allow an address that other computers can reach.
        allow_hosts: Names, beside ``localhost`` and addresses, by which the server may be asked for; it answers 421 to
            requests whose Host header has another one, because such requests come from foreign web pages.

    Yields:
        The running server: `url`, `records`, `inject`, `stop`, `start` and more.

    Raises:
        ValueError: If the address is not a loopback one, or no behaviour has this name.
        OSError: If the port is taken.
    """
    check_host(host, allow_remote)
    behaviour = behaviour_of(behaviour)
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="dicomweb-io-server-"))
        spool = Path(directory, "spool")
        spool.mkdir()
        if isinstance(archive, (str, os.PathLike, Endpoint)):
            endpoint = Endpoint.of(archive)
            if not endpoint.is_web and endpoint.index is None:
                endpoint = endpoint.replace(index=str(Path(directory, "index")))
            client = endpoint.connect()
            stack.callback(client.close)
        else:
            client = archive
        server = TestServer(
            client,
            address=(host, port),
            behaviour=behaviour,
            auth=auth,
            faults=list(faults),
            directory=str(spool),
            tls=tls,
            proxy=proxy,
            allow_hosts=allow_hosts,
        )
        stack.callback(server.close)
        yield server.start()
