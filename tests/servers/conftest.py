"""The archives that the client test suite runs on, what they hold, and where they differ, as data.

A test takes `backend` and `client` and runs once for each row of `SPECS`: a real Orthanc, the test server in each of
its behaviour, folders. Where an archive lacks something, its row says what happens instead and why (`Lack`), and the
test checks that exactly this happens; nothing is skipped. A lack that is not there any more fails too.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import fsspec
import pydicom
import pytest
import requests
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames

from dicomweb_io.client import DICOMClient
from dicomweb_io.elements import Instance, Resource
from dicomweb_io.endpoint import Endpoint
from dicomweb_io.errors import FilterIgnoredError, MalformedResponseError, PagingError, StoreError
from dicomweb_io.files.client import DICOMfileClient
from dicomweb_io.http.auth import AWSSigV4, BasicCredentials, BearerToken, OAuth2ClientCredentials
from dicomweb_io.http.retry import RetryPolicy
from dicomweb_io.http.settings import Timeouts
from dicomweb_io.profiles import PROFILES, ServerProfile
from dicomweb_io.testing.orthanc import Orthanc
from dicomweb_io.testing.samples import Template, clone, new_uid, sample_file
from dicomweb_io.testing.server.auth import (
    BasicAuthentication,
    BearerAuthentication,
    OAuth2Authentication,
    SigV4Authentication,
)
from dicomweb_io.testing.server.behaviours import BEHAVIOURS
from dicomweb_io.testing.server.server import TestServer, serve

# What the archives hold -----------------------------------------------------------------------------------------------

STUDIES = 14
"""More than the 12 rows that DICOMcloud gives at once."""


@dataclass(frozen=True)
class Held:
    """One instance of an archive."""

    content: bytes = field(repr=False)

    @cached_property
    def instance(self) -> Instance:
        return Instance.from_bytes(self.content)

    @property
    def reference(self) -> Resource:
        return self.instance.reference

    @property
    def uids(self) -> tuple[str, str, str]:
        reference = self.reference
        return reference.study_instance_uid, str(reference.series_instance_uid), str(reference.sop_instance_uid)

    @cached_property
    def dataset(self) -> Dataset:
        """Its elements; not to be changed."""
        return self.instance.dataset()

    def frames(self) -> list[bytes]:
        """Its frames as they are stored."""
        count = int(self.dataset.get("NumberOfFrames") or 1)
        pixels = self.dataset.PixelData
        if self.dataset.file_meta.TransferSyntaxUID.is_encapsulated:
            return list(generate_frames(pixels, number_of_frames=count))
        size = self.dataset.Rows * self.dataset.Columns * self.dataset.SamplesPerPixel * self.dataset.BitsAllocated // 8
        return [pixels[number * size : (number + 1) * size] for number in range(count)]


@dataclass(frozen=True)
class Content:
    """What a reading test finds in every archive: many small images made from a CT, and real files as they are."""

    small: tuple[Held, ...]
    ct: Held
    loop: Held
    dose: Held
    implicit: Held
    jpeg_2000: Held
    report: Held

    @property
    def all(self) -> tuple[Held, ...]:
        return (*self.small, self.ct, self.loop, self.dose, self.implicit, self.jpeg_2000, self.report)

    def uids(self, level: str, matches: Callable[[Dataset], bool] = lambda dataset: True) -> set[str]:
        """The UIDs of the objects of a level that hold an instance that matches."""
        place = ("study", "series", "instance").index(level)
        return {held.uids[place] for held in self.all if matches(held.dataset)}

    def study(self, number: int) -> list[Held]:
        """The instances of one of the studies of small images."""
        return [held for held in self.small if held.dataset.PatientID == f"SUITE{number:02}"]


def small_image(study: int, series: int = 0, number: int = 1, seed: str = "suite") -> bytes:
    """A CT or MR image of 16 by 16 pixels, different in all that tests search for."""
    uids = (new_uid(seed, study), new_uid(seed, study, series), new_uid(seed, study, series, number))
    return _small_image(study, series, number).make(*uids)


@cache
def _small_image(study: int, series: int, number: int) -> Template:
    dataset = pydicom.dcmread(sample_file("CT_small.dcm"))
    dataset.PatientID, dataset.PatientName = f"SUITE{study:02}", f"Suite^Patient{study:02}"
    dataset.StudyDate, dataset.AccessionNumber = f"202001{study + 1:02}", f"12345{study}"
    dataset.StudyDescription, dataset.StudyID = f"Head {study:02}", str(study)
    dataset.Modality = "CT" if series == 0 else "MR"
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2" if series == 0 else "1.2.840.10008.5.1.4.1.1.4"
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.SeriesDescription = "T2 AXIAL" if series == 0 else "LOCALIZER"
    dataset.SeriesNumber, dataset.InstanceNumber = series + 1, number
    dataset.PixelData = dataset.PixelData[512 * number : 512 * number + 512]
    dataset.Rows = dataset.Columns = 16
    # What follows the pixels in this file would move when they shrink.
    dataset.pop("DataSetTrailingPadding", None)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return Template(buffer.getvalue())


def two_frames_in_jpeg_2000() -> bytes:
    """A JPEG 2000 image of two equal frames, made of a real one."""
    dataset = pydicom.dcmread(sample_file("MR_small_jp2klossless.dcm"))
    (frame,) = generate_frames(dataset.PixelData, number_of_frames=1)
    dataset.NumberOfFrames = 2
    dataset.PixelData = encapsulate([frame, frame])
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return clone(buffer.getvalue(), "two frames")


@pytest.fixture(scope="session")
def suite() -> tuple[tuple[Spec, ...], Mapping[str, str]]:
    """The table of archives and that of features."""
    return SPECS, FEATURES


@pytest.fixture(scope="session")
def make_image() -> Callable[..., bytes]:
    """Makes small images: study, series and instance number, and a seed for their UIDs."""
    return small_image


@pytest.fixture(scope="session")
def secret() -> str:
    """What all passwords, tokens and keys of the suite are."""
    return SECRET


@pytest.fixture(scope="session")
def content() -> Content:
    """What the archives of reading tests hold."""
    small = [(0, 0, number) for number in range(1, 15)]
    small += [(study, series, 1) for study in range(STUDIES) for series in range(1 + study % 3 % 2) if study]

    def real(name: str) -> Held:
        return Held(sample_file(name).read_bytes())

    return Content(
        tuple(Held(small_image(*one)) for one in small),
        ct=real("CT_small.dcm"),
        loop=real("examples_ybr_color.dcm"),
        dose=real("rtdose.dcm"),
        implicit=Held(clone(sample_file("MR_small_implicit.dcm").read_bytes(), "implicit")),
        jpeg_2000=Held(two_frames_in_jpeg_2000()),
        report=real("test-SR.dcm"),
    )


# Where archives differ ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lack:
    """What an archive does where it lacks a feature.

    Attributes:
        reason: Why, for the reader.
        status: It answers with this HTTP error.
        raises: The client refuses with this error, before anything is sent if it is a ValueError.
        rows: A search returns all rows (``"all"``), none (``"none"``), or also those of studies without a date
            (``"undated too"``).
    """

    reason: str
    status: int | None = None
    raises: type[Exception] | None = None
    rows: str | None = None


@dataclass(frozen=True)
class Spec:
    """One archive to test.

    Attributes:
        name: Its name in the test ids.
        kind: ``"server"``: the test server; ``"orthanc"``; ``"folder"``; ``"memory"``.
        behaviour: The behaviour of the test server.
        profile: The client's profile; ``"probe"`` to find it out from ``"generic"``, None for a folder.
        lacks: Feature to what happens instead.
        secured: Makes the server's authentication and the client's credentials.
        page_cap: The most rows the archive gives at once, where a test can reach it.
        shortfall: Rows that pages fall short of their limit.
        counts: Whether the client can count rows without fetching them.
        missing_frame: The statuses with which a frame that is not there is refused.
        comparison_level: What it keeps of a stored file; ``"none"`` if not even the pixels with their attributes.
        content_check: What ``verify="content"`` gives: the level at which the copy was compared, ``"refused"`` if the
            client knows that it cannot be, ``"failed"`` if the client does not know that content is changed.
        again: The outcomes of storing an instance again as it is, and changed, with ``on_existing="server"``.
        replaces: Whether the client knows a safe way to replace instances.
    """

    name: str
    kind: str = "server"
    behaviour: str = "generic"
    profile: str | ServerProfile | None = "generic"
    lacks: Mapping[str, Lack] = field(default_factory=dict)
    secured: Callable[[], tuple[Any, Callable[[TestServer], Any]]] | None = None
    page_cap: int | None = None
    shortfall: int = 0
    counts: bool = False
    missing_frame: tuple[int, ...] = (404,)
    comparison_level: str = "file"
    content_check: str = "file"
    again: tuple[str, str] = ("stored", "exists")
    replaces: bool = False


SECRET = "not-to-be-shown"


def basic() -> tuple[Any, Callable[[TestServer], Any]]:
    return BasicAuthentication({"me": SECRET}), lambda server: BasicCredentials("me", SECRET)


def bearer() -> tuple[Any, Callable[[TestServer], Any]]:
    return BearerAuthentication([SECRET]), lambda server: BearerToken(SECRET)


def oauth2() -> tuple[Any, Callable[[TestServer], Any]]:
    authentication = OAuth2Authentication("client", SECRET)
    return authentication, lambda server: OAuth2ClientCredentials(server.origin + authentication.path, "client", SECRET)


def sigv4() -> tuple[Any, Callable[[TestServer], Any]]:
    credentials = AWSSigV4("eu-west-1", access_key_id="AKIDEXAMPLE", secret_access_key=SECRET)
    return SigV4Authentication("AKIDEXAMPLE", SECRET, region="eu-west-1"), lambda server: credentials


FEATURES: dict[str, str] = {
    "paging": "further pages can be had by offset",
    "fields": "attributes that includefield names are returned",
    "all fields": "includefield=all is honoured",
    "fuzzy matching by spelling": "fuzzymatching=true finds no name that only sounds like the one that is wanted",
    "decoding of instances": "a JPEG instance can be had in Explicit VR Little Endian",
    "frames": "there are frames resources",
    "any image format": "frames can be asked for as image/*",
    "bulk data": "metadata refers to bulk data by address",
    "bulk data of compressed images": "also to compressed pixel data",
    "rendered study": "studies can be rendered",
    "rendered series": "series can be rendered",
    "rendered instance": "instances can be rendered",
    "rendered frame": "frames can be rendered",
    "thumbnails": "there are thumbnails",
    "implicit VR": "Implicit VR Little Endian can be stored",
    "delete": "studies, series and instances can be deleted",
    **{
        f"filter: {name}": "a filter of test_filters"
        for name in (
            *("keyword", "tag", "person name", "study UIDs", "instance UIDs", "asterisk", "asterisk in a name"),
            *("question mark", "date range", "date from", "date until", "code", "text", "SOP class", "two attributes"),
            *("contradicting attributes", "study attribute of series", "study attribute of instances", "nobody"),
            "empty value",
        )
    },
}
"""What some archives lack, by the names that the table and the tests use."""

_NO_RESOURCE = "it has no such resource"
_NOT_SEARCHABLE = "only attributes of a fixed list can be searched"

_NO_RENDERED_SETS: Mapping[str, Lack] = {
    name: Lack(_NO_RESOURCE, status=404) for name in ("rendered study", "rendered series", "thumbnails")
}
_NO_FRAMES: Mapping[str, Lack] = {
    **_NO_RENDERED_SETS,
    **{
        name: Lack(_NO_RESOURCE, status=404)
        for name in (
            *("frames", "any image format", "bulk data", "bulk data of compressed images"),
            *("rendered instance", "rendered frame"),
        )
    },
}
_NO_PATTERNS: Mapping[str, Lack] = {
    f"filter: {name}": Lack("it takes wildcards for ordinary characters", rows="none")
    for name in ("asterisk", "asterisk in a name", "question mark")
}

ORTHANC: Mapping[str, Lack] = {
    "filter: asterisk": Lack("it does not decode percent escapes, so a space cannot be sent", raises=ValueError),
    "filter: date until": Lack("a range without beginning matches studies without a date too", rows="undated too"),
    "thumbnails": Lack(_NO_RESOURCE, status=404),
    "all fields": Lack("includefield=all is ignored (measured, 1.10.1)", raises=KeyError),
    "bulk data of compressed images": Lack("its metadata leaves them out (measured, 1.10.1)", raises=KeyError),
}
DCM4CHEE: Mapping[str, Lack] = {
    "fuzzy matching by spelling": Lack("it compares names by their sound, which digits have none of", rows="all")
}
DICOMCLOUD: Mapping[str, Lack] = {"filter: tag": Lack("it knows attributes by their keywords only", status=500)}
GOOGLE: Mapping[str, Lack] = {
    **_NO_RENDERED_SETS,
    "filter: SOP class": Lack("it refuses this filter", status=400),
}
AZURE: Mapping[str, Lack] = {
    **_NO_RENDERED_SETS,
    **_NO_PATTERNS,
    "filter: text": Lack(_NOT_SEARCHABLE, status=400),
    "filter: SOP class": Lack(_NOT_SEARCHABLE, status=400),
    "filter: empty value": Lack("it refuses universal matching", status=400),
    "implicit VR": Lack("it stores explicit VR only", raises=StoreError),
    "bulk data": Lack("its metadata leaves binary values out", raises=KeyError),
    "bulk data of compressed images": Lack("its metadata leaves binary values out", raises=KeyError),
}
STRICT: Mapping[str, Lack] = {
    **_NO_FRAMES,
    **_NO_PATTERNS,
    "filter: tag": Lack("it ignores filters that are written as tags", raises=FilterIgnoredError),
    "filter: study UIDs": Lack("it takes a list of UIDs for one value", rows="none"),
    "filter: instance UIDs": Lack("it takes a list of UIDs for one value", rows="none"),
    "fields": Lack("it ignores includefield", raises=KeyError),
    "all fields": Lack("it ignores includefield", raises=KeyError),
    "decoding of instances": Lack("it gives instances as they are stored only", raises=MalformedResponseError),
}

_ORTHANC: dict[str, Any] = {
    "lacks": ORTHANC, "missing_frame": (400,), "again": ("stored", "stored"), "replaces": True,
}  # fmt: skip
_DCM4CHEE: dict[str, Any] = {
    "behaviour": "dcm4chee", "lacks": DCM4CHEE, "counts": True, "missing_frame": (404, 206),
    "comparison_level": "pixels", "again": ("stored", "stored"),
}  # fmt: skip
_DICOMCLOUD: dict[str, Any] = {
    "profile": "dicomcloud", "lacks": DICOMCLOUD, "comparison_level": "none", "content_check": "refused",
    "again": ("failed", "failed"), "replaces": True,
}  # fmt: skip
_AZURE: dict[str, Any] = {"behaviour": "azure", "lacks": AZURE, "comparison_level": "dataset"}
_HEALTHIMAGING: dict[str, Any] = {
    "behaviour": "healthimaging", "comparison_level": "pixels", "again": ("stored", "stored"),
}  # fmt: skip


def _without_deletion(**instead: Any) -> Mapping[str, Lack]:
    return {**_NO_RENDERED_SETS, "delete": Lack("it deletes by another interface only", **instead)}


SPECS: tuple[Spec, ...] = (
    Spec("generic", secured=basic),
    Spec("generic-probed", profile="probe", counts=True),
    Spec("orthanc-real", "orthanc", profile="auto", **_ORTHANC),
    Spec("orthanc-real-probed", "orthanc", profile="probe", **_ORTHANC),
    Spec("orthanc", behaviour="orthanc", profile="orthanc", secured=basic, **_ORTHANC),
    Spec("dcm4chee", profile="dcm4chee", secured=bearer, content_check="pixels", **_DCM4CHEE),
    Spec("dcm4chee-probed", profile="probe", content_check="failed", **_DCM4CHEE),
    Spec("dicomcloud", behaviour="dicomcloud", page_cap=12, **_DICOMCLOUD),
    Spec("dicomcloud-api", behaviour="dicomcloud-api", page_cap=12, **_DICOMCLOUD),
    Spec("dicomcloud-short-pages", behaviour="dicomcloud-short-pages", page_cap=10, shortfall=2, **_DICOMCLOUD),
    Spec(
        "google", behaviour="google", profile="google", lacks=GOOGLE, again=("stored", "failed"),
        secured=oauth2, content_check="dataset", replaces=True,
    ),
    Spec(
        "azure", profile="azure",
        secured=oauth2, content_check="dataset", again=("exists", "exists"), replaces=True, **_AZURE,
    ),
    Spec("azure-probed", profile="probe", content_check="failed", again=("failed", "failed"), **_AZURE),
    Spec(
        "healthimaging", profile="healthimaging",
        secured=sigv4, content_check="pixels", lacks=_without_deletion(raises=ValueError), **_HEALTHIMAGING,
    ),
    Spec(
        "healthimaging-probed", profile="probe",
        content_check="failed", lacks=_without_deletion(status=405), **_HEALTHIMAGING,
    ),
    Spec("strict-probed", behaviour="strict", profile="probe", lacks=STRICT, again=("exists", "exists")),
    Spec(
        "offset-ignored", behaviour="offset-ignored", page_cap=10,
        # With the server's true maximum known, a short page is known to be the last, and no second one is needed.
        profile=PROFILES["generic"].with_facts(max_limits=(200, 200, 200)),
        lacks={"paging": Lack("every page is the first one: nothing is known to be complete", raises=PagingError)},
    ),
    Spec("folder", kind="folder", profile=None, counts=True, again=("exists", "failed"), replaces=True),
    Spec("memory", kind="memory", profile=None, counts=True, again=("exists", "failed"), replaces=True),
)  # fmt: skip
"""The archives of the suite."""

# Running them ---------------------------------------------------------------------------------------------------------


@dataclass
class Backend:
    """A running archive and how to reach it."""

    spec: Spec
    endpoint: Endpoint
    server: TestServer | None = None
    orthanc: Orthanc | None = None

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def is_web(self) -> bool:
        return self.endpoint.is_web

    def lack(self, feature: str) -> Lack | None:
        """What happens instead of a feature; None if the archive has it."""
        assert feature in FEATURES, f"{feature!r} is not in the table of features"
        return self.spec.lacks.get(feature)

    @contextmanager
    def having(self, feature: str) -> Iterator[None]:
        """Runs the block if the archive has the feature; if not, it must fail exactly as the table says."""
        lack = self.lack(feature)
        if lack is None:
            yield
            return
        assert lack.rows is None, "a lack that shows in rows is for the test to compare"
        expected = lack.raises or requests.HTTPError
        try:
            yield
        except expected as error:
            status = getattr(error, "status", None)
            if lack.status is not None and status != lack.status:
                pytest.fail(f"{self.name} lacks {feature!r} otherwise than with {lack.status}: {error}")
        else:
            pytest.fail(f"{self.name} has {feature!r}: the table is out of date ({lack.reason})")

    def requests_made(self, client: DICOMClient) -> int:
        """How many requests a client has made; 0 for folders, whose calls make none."""
        transport = getattr(client, "transport", None)
        return int(transport.stats.requests) if transport is not None else 0


def _fill(folder: str, contents: list[bytes]) -> None:
    filesystem, root = fsspec.core.url_to_fs(folder)
    filesystem.makedirs(root, exist_ok=True)
    for number, one in enumerate(contents):
        filesystem.pipe_file(f"{root}/{number:04}.dcm", one)


_numbers = itertools.count()


@contextmanager
def running(
    spec: Spec,
    contents: list[bytes],
    directory: Path,
    orthanc: Callable[[], Orthanc],
    archive: DICOMClient | None = None,
) -> Iterator[Backend]:
    """Starts the archive of a row of the table, filled by its own means, not by the client under test.

    Args:
        spec: The row.
        contents: What it is to hold.
        directory: An empty directory for it.
        orthanc: Gives a running, empty Orthanc.
        archive: A client of a folder that holds this already, for the test server.
    """
    with ExitStack() as stack:
        options: dict[str, Any] = {
            "retry": RetryPolicy(max_attempts=3, initial_delay=0.01),
            "timeouts": Timeouts(deadline=30.0),
        }
        if spec.kind == "folder":
            _fill(str(directory), contents)
            yield Backend(spec, Endpoint(str(directory), **options))
            return
        if spec.kind == "memory":
            url = f"memory://suite-{next(_numbers)}"
            _fill(url, contents)
            stack.callback(fsspec.filesystem("memory").rm, url, recursive=True)
            yield Backend(spec, Endpoint(url, **options))
            return
        if spec.kind == "orthanc":
            real = orthanc()
            for one in contents:
                real.call("POST", "/instances", one)
            endpoint, server = Endpoint(real.url, **options), None
        else:
            real = None
            # Its rate limit is the subject of a test of its own; here it would only cost time.
            behaviour = replace(BEHAVIOURS[spec.behaviour], rate_limit=None)
            authentication, credentials = spec.secured() if spec.secured else (None, None)
            if archive is None:
                _fill(str(directory), contents)
            server = stack.enter_context(serve(archive or str(directory), behaviour=behaviour, auth=authentication))
            endpoint = server.endpoint(**options)
            if credentials is not None:
                endpoint = endpoint.replace(credentials=credentials(server))
        if spec.profile == "probe":
            endpoint = endpoint.replace(profile="generic").probe()
        elif spec.profile is not None:
            endpoint = endpoint.replace(profile=spec.profile)
        yield Backend(spec, endpoint, server, real)
        if server is not None:
            assert server.errors == [], "the test server has a defect:\n" + "\n".join(server.errors)


@pytest.fixture(scope="session")
def filled_folder(content: Content, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DICOMfileClient]:
    """The folder that all test servers of reading tests serve, indexed once."""
    folder = tmp_path_factory.mktemp("suite")
    _fill(str(folder), [held.content for held in content.all])
    with DICOMfileClient(folder, index=tmp_path_factory.mktemp("suite-index")) as client:
        yield client


# All tests of one archive go to one process.
PARAMS = [pytest.param(spec, id=spec.name, marks=pytest.mark.xdist_group(f"suite-{spec.name}")) for spec in SPECS]


@pytest.fixture(scope="module", params=PARAMS)
def backend(
    request: pytest.FixtureRequest,
    content: Content,
    filled_folder: DICOMfileClient,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Backend]:
    """An archive that holds `content`, one after the other; it is not written to."""
    contents = [held.content for held in content.all]
    directory = tmp_path_factory.mktemp("archive")
    with running(request.param, contents, directory, _empty_orthanc(request), filled_folder) as started:
        yield started


@pytest.fixture(scope="module", params=PARAMS)
def empty_backend(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """An archive, one after the other, that is empty at first; tests write into it, each its own studies."""
    directory = tmp_path_factory.mktemp("archive")
    with running(request.param, [], directory, _empty_orthanc(request)) as started:
        yield started


def _empty_orthanc(request: pytest.FixtureRequest) -> Callable[[], Orthanc]:
    def start() -> Orthanc:
        server: Orthanc = request.getfixturevalue("orthanc_server")
        server.start()
        server.wipe()
        return server

    return start


@pytest.fixture(scope="module")
def client(backend: Backend) -> Iterator[DICOMClient]:
    """A client of `backend`."""
    connected = backend.endpoint.connect()
    yield connected
    connected.close()


@pytest.fixture(scope="module")
def writer(empty_backend: Backend) -> Iterator[DICOMClient]:
    """A client of `empty_backend`."""
    connected = empty_backend.endpoint.connect()
    yield connected
    connected.close()
