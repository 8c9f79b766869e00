"""Where failures are tried: a small archive, servers that misbehave on demand, and a watch over secrets and hangs."""

from __future__ import annotations

import hashlib
import io
import logging
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import UID

from dicomweb_io.elements import Resource
from dicomweb_io.endpoint import Endpoint
from dicomweb_io.http.auth import OAuth2ClientCredentials
from dicomweb_io.http.retry import RetryPolicy
from dicomweb_io.http.settings import Limits, Timeouts
from dicomweb_io.profiles import PROFILES
from dicomweb_io.testing.faults import Fault, Redirect
from dicomweb_io.testing.samples import make_study, new_uid
from dicomweb_io.testing.server.auth import OAuth2Authentication
from dicomweb_io.testing.server.behaviours import GENERIC
from dicomweb_io.testing.server.server import TestServer, serve

PATIENT = "Zzyzx^Quentin"
SECRET = "s3cret-of-the-matrix"
CLIENT = "matrix"
BEHAVIOURS = replace(GENERIC, total_header=False, counts=True)
WITH_TOTALS = replace(GENERIC, total_header=True, counts=True)

KNOWN = PROFILES["generic"].with_facts(
    flat_series=True,
    flat_instances=True,
    study_instances=True,
    retrieve_study=True,
    retrieve_series=True,
    metadata_resource=True,
)
"""A server that was probed: what it can retrieve is known, so that a 404 does not tell that a resource is missing."""

QUICK = RetryPolicy(max_attempts=3, initial_delay=0.001, max_delay=0.005)
PATIENT_POLICY = RetryPolicy(max_attempts=14, initial_delay=0.02, max_delay=0.08)
OUTAGE = 1.0
"""Seconds that a transform waits for a server that cannot be reached any more."""

LONGEST = 60.0
"""Seconds after which a cell counts as hanging: far more than any deadline in the matrix."""

T = TypeVar("T")


def tiny_image() -> bytes:
    """A valid multi-frame image of about 3 KB: three frames of 16 by 16 pixels."""
    dataset = Dataset()
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7.3"
    dataset.SOPInstanceUID = "1.2.826.0.1.1"
    dataset.StudyInstanceUID = "1.2.826.0.1.2"
    dataset.SeriesInstanceUID = "1.2.826.0.1.3"
    dataset.PatientName, dataset.PatientID = PATIENT, "P-1"
    dataset.StudyDate, dataset.StudyTime, dataset.AccessionNumber = "20260102", "030405", "A-1"
    dataset.Modality, dataset.StudyID, dataset.SeriesNumber, dataset.InstanceNumber = "OT", "1", 1, 1
    dataset.ConversionType, dataset.NumberOfFrames = "SYN", 3
    dataset.FrameIncrementPointer, dataset.FrameTime = 0x00181063, "40"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows = dataset.Columns = 16
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 0
    dataset.PixelData = bytes(range(256)) * 6
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.1")
    buffer = io.BytesIO()
    dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:12]


class Elsewhere:
    """Another host: it refuses everything, and remembers what it was told."""

    def __init__(self) -> None:
        self.headers: list[dict[str, str]] = []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def refuse(self) -> None:
                owner.headers.append({name.lower(): value for name, value in self.headers.items()})
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self.send_response(403)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_GET = do_POST = do_PUT = do_DELETE = refuse

            def log_message(self, *arguments: Any) -> None:
                return

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/dicom-web/studies"

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


class _Listener(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(self.format(record))


@dataclass
class Bench:
    """What all cells of a test process share. Cells run one after the other.

    Attributes:
        root: A folder for archives.
        paths: The files of the archive: 2 studies by 2 series by 3 instances.
        server: Over the archive, which no cell may change.
        with_totals: The same with totals in its answers.
        elsewhere: Another host.
        stack: Closes what is opened later.
    """

    root: Path
    paths: list[Path]
    server: TestServer
    with_totals: TestServer
    elsewhere: Elsewhere
    listener: _Listener
    stack: ExitStack
    undisturbed: dict[str, Any] = field(default_factory=dict)

    @property
    def archive_folder(self) -> Endpoint:
        """The archive as a folder."""
        return Endpoint(str(self.root / "archive"), index=str(self.root / "index"))

    @property
    def wide_folder(self) -> str:
        """The folder with a study for each failure case, for transforms."""
        return str(self._wide()[0])

    @property
    def wide(self) -> TestServer:
        """A server over that folder."""
        return self._wide()[1]

    def _wide(self) -> tuple[Path, TestServer]:
        if "wide" not in self.undisturbed:
            from tests.faults.transform_operations import make_wide

            folder = make_wide(self.root)
            auth = OAuth2Authentication(CLIENT, SECRET)
            server = self.stack.enter_context(serve(folder, proxy=True, auth=auth, behaviour=BEHAVIOURS))
            self.undisturbed["wide"] = folder, server
        made: tuple[Path, TestServer] = self.undisturbed["wide"]
        return made

    @property
    def references(self) -> list[Resource]:
        """References to the instances, in the order of `paths`."""
        return [
            Resource(
                new_uid("matrix", "study", study),
                new_uid("matrix", "series", study, series),
                new_uid("matrix", "instance", study, series, number),
            )
            for study in range(2)
            for series in range(2)
            for number in range(3)
        ]

    def inject(self, server: TestServer, faults: tuple[Fault, ...]) -> None:
        """Adds faults to a server; the other host's address is filled in."""
        for one in faults:
            if isinstance(one, Redirect):
                one = replace(one, location=one.location.format(elsewhere=self.elsewhere.url))
            server.inject(one)

    def folder(self) -> Path:
        """A new, empty folder."""
        return Path(tempfile.mkdtemp(dir=self.root))

    @contextmanager
    def archive(self, directory: Path, behaviour: Any = BEHAVIOURS) -> Iterator[TestServer]:
        """A server over a folder, with a token endpoint and the proxy; the folder is removed afterwards."""
        auth = OAuth2Authentication(CLIENT, SECRET)
        with serve(directory, proxy=True, auth=auth, behaviour=behaviour) as server:
            yield server
            assert not server.errors, "\n".join(server.errors)
        shutil.rmtree(directory, ignore_errors=True)

    def check_connections(self) -> None:
        """Asserts that no client has left a connection open."""
        waiting = threading.Event()
        for server in (self.server, self.with_totals):
            for _ in range(1000):
                if not server.proxy.open_connections:
                    break
                waiting.wait(0.01)
            assert not server.proxy.open_connections, "a client was closed, and a connection of it is open"

    def secrets(self, *servers: TestServer) -> list[str]:
        """What must be in no message and no log."""
        found = [SECRET, *PATIENT.split("^")]
        for server in servers:
            found += getattr(server.auth, "_valid_until", ())
        return found


def endpoint_of(server: TestServer, **settings: Any) -> Endpoint:
    """The endpoint of a server with quick retries.

    Args:
        server: The server.
        **settings: Arguments of `Endpoint`, or ``patient=True`` for longer retries, `timeout`, `deadline` and
            `max_in_flight`.
    """
    patient = settings.pop("patient", False)
    timeouts = Timeouts.of(settings.pop("timeout", (5.0, 20.0)), settings.pop("deadline", 30.0))
    timeouts = replace(timeouts, outage=OUTAGE)
    limits = Limits(settings.pop("max_in_flight", Limits.max_in_flight))
    return Endpoint(
        server.url,
        **{
            "credentials": OAuth2ClientCredentials(f"{server.origin}/oauth2/token", CLIENT, SECRET),
            "retry": PATIENT_POLICY if patient else QUICK,
            "timeouts": timeouts,
            "limits": limits,
            # By its address alone it would be taken for an Orthanc.
            "profile": "generic",
            **settings,
        },
    )


@contextmanager
def make_bench() -> Iterator[Bench]:
    """Makes the archive and starts the servers."""
    listener = _Listener()
    logger = logging.getLogger()
    level = logger.level
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="matrix-")))
        # What is kept of bytes that could not be put back goes here too.
        temporary, tempfile.tempdir = tempfile.tempdir, str(root)
        stack.callback(setattr, tempfile, "tempdir", temporary)
        archive = root / "archive"
        paths = make_study(archive, 2, 2, 3, seed="matrix", template=tiny_image())
        elsewhere = Elsewhere()
        stack.callback(elsewhere.close)
        servers = []
        for behaviour in (BEHAVIOURS, WITH_TOTALS):
            auth = OAuth2Authentication(CLIENT, SECRET)
            servers.append(stack.enter_context(serve(archive, proxy=True, auth=auth, behaviour=behaviour)))
        logger.addHandler(listener)
        logger.setLevel(logging.DEBUG)
        stack.callback(logger.setLevel, level)
        stack.callback(logger.removeHandler, listener)
        bench = Bench(root, paths, servers[0], servers[1], elsewhere, listener, stack)
        yield bench
        for server in servers:
            assert not server.errors, "\n".join(server.errors)


def within(seconds: float, work: Callable[[], T]) -> T:
    """Does something in a thread and fails if it hangs."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:  # handed to the test's own thread
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), f"it hangs: no outcome after {seconds:g} s"
    if errors:
        raise errors[0]
    return results[0]
