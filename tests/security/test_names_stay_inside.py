"""What an archive or a file calls an object cannot lead a written file out of its directory.

Each test writes into a folder deep inside of the test's directory and looks at everything outside of it afterwards.
"""

from __future__ import annotations

import os
from pathlib import Path

import apache_beam as beam
import pytest

from dicomweb_io.cli import main as command_line
from dicomweb_io.copier import InstanceCopier
from dicomweb_io.elements import Failure, Instance, Resource, StoredInstance
from dicomweb_io.files.client import DICOMfileClient
from dicomweb_io.files.store import Downloaded, InstanceDownloader
from dicomweb_io.http.retry import RetryPolicy
from dicomweb_io.spool import PrivateDirectory
from dicomweb_io.transforms import DownloadInstances, RetrieveInstances
from dicomweb_io.web.client import DICOMwebClient
from pipelines.transfer import main as transfer
from tests.security.hostile import INSTANCE, SERIES, STUDY, multipart, part10, row, rows

ESCAPES = {
    "parent": "..",
    "self": ".",
    "up": "../../evil",
    "up, Windows": "..\\..\\evil",
    "hidden in a UID": "1.2/../../../evil",
    "behind an underscore": "1.2_/../../../evil",
    "escaped": "%2e%2e%2fevil",
    "escaped twice": "%252e%252e%252fevil",
    "separator": "a/b",
    "separator, Windows": "a\\b",
    "NUL": "1.2\0/../evil",
    "line break": "1.2\n../evil",
    "drive": "C:\\evil",
    "drive, relative": "C:evil",
    "stream": "1.2:evil",
    "share": "\\\\host\\evil",
    "fullwidth": "．．／evil",
    "two dot leader": "\u2025/evil",
    "right to left": "1.2.\u202e3",
    "combining": "e\u0301vil",
    "URL": "file:///tmp/evil",
}
NO_NAMES = {
    **ESCAPES,
    "device": "CON",
    "device, small": "nul.1",
    "device, numbered": "com1.2",
    "65 characters": "1." * 32 + "1",
    "4,000 characters": "1" * 4000,
    "ends with a dot": "1.2.",
    "ends with dots": "1.2..",
    "hidden": ".1.2",
    "option": "-rf",
    "home": "~",
    "blank": "1 2",
}
NO_FILE_NAMES = {name: text for name, text in NO_NAMES.items() if name != "blank"}
"""In folders a blank is escaped."""
QUICK = RetryPolicy(max_attempts=2, initial_delay=0.001)


class Destination:
    """A folder inside of a watched directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / "a" / "b" / "c" / "folder"
        self.folder.mkdir(parents=True)
        (root / "evil").write_bytes(b"precious")
        self.before = self._outside()

    def _outside(self) -> dict[Path, bytes | None]:
        return {
            path: path.read_bytes() if path.is_file() else None
            for path in self.root.rglob("*")
            if path != self.folder and self.folder not in path.parents
        }

    def files(self) -> list[str]:
        """What was written, after a look at everything outside."""
        assert self._outside() == self.before
        found = sorted(path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file())
        assert not [name for name in found if "evil" in name]
        return found


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    """Retries come at once: the command line and the job take no policy."""
    monkeypatch.setattr("dicomweb_io.http.retry.RetryPolicy.delay", lambda *_: 0.0)


@pytest.fixture
def destination(tmp_path) -> Destination:
    place = tmp_path / "watched"
    place.mkdir()
    return Destination(place)


@pytest.fixture(params=["study", "series", "instance"])
def position(request) -> str:
    return request.param


def absolute(destination: Destination) -> str:
    return str(destination.root / "evil")


def named(position: str, name: str) -> dict[str, str]:
    return {position: name}


def client_of(url: str) -> DICOMwebClient:
    return DICOMwebClient(url, retry=QUICK, deadline=30.0)


# Folders ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NO_FILE_NAMES)
def test_a_file_with_such_a_name_is_not_stored(destination, position, name):
    """A Part 10 file that calls its study, series or instance so."""
    content = part10(**named(position, NO_NAMES[name]))
    with DICOMfileClient(str(destination.folder), in_memory=True) as client:
        (outcome,) = client.iter_store_instances([content])
        assert isinstance(outcome, Failure), outcome
        assert outcome.reason_code is not None
        (outcome,) = client.iter_store_instances([part10(**named(position, absolute(destination)))])
        assert isinstance(outcome, Failure), outcome
        (outcome,) = client.iter_store_instances([part10()])
        assert isinstance(outcome, StoredInstance)
    assert destination.files() == [f"{STUDY}/{SERIES}/{INSTANCE}.dcm"]


@pytest.mark.parametrize("name", ["device", "ends with a dot", "hidden", "stream", "right to left", "option"])
def test_an_element_with_such_a_name_is_not_stored(destination, position, name):
    """A reference may hold what no file may be called; the folder asks the name itself."""
    uids = {"study": STUDY, "series": SERIES, "instance": INSTANCE, **named(position, NO_NAMES[name])}
    reference = Resource(*uids.values())
    instance = Instance(reference, "1.2.840.10008.1.2.1", content=part10(**named(position, NO_NAMES[name])))
    with DICOMfileClient(str(destination.folder), in_memory=True) as client:
        (outcome,) = client.iter_store_instances([instance])
    assert isinstance(outcome, Failure)
    assert "cannot be part of a file's path" in outcome.message
    assert destination.files() == []


def test_a_name_with_a_blank_is_escaped(destination, position):
    content = part10(**named(position, NO_NAMES["blank"]))
    with DICOMfileClient(str(destination.folder), in_memory=True) as client:
        (outcome,) = client.iter_store_instances([content])
        assert isinstance(outcome, StoredInstance)
        assert [item.read() for item in client.iter_instances(outcome.reference)] == [content]
    uids = {"study": STUDY, "series": SERIES, "instance": INSTANCE, **named(position, "1%202")}
    assert destination.files() == ["/".join(uids.values()) + ".dcm"]


def test_a_link_in_the_place_of_a_file_is_not_written_through(destination):
    target = destination.folder / STUDY / SERIES / f"{INSTANCE}.dcm"
    target.parent.mkdir(parents=True)
    target.symlink_to(destination.root / "evil")
    with DICOMfileClient(str(destination.folder), in_memory=True) as client:
        (outcome,) = client.iter_store_instances([part10()], on_existing="replace")
        assert isinstance(outcome, StoredInstance)
    destination.files()
    assert not target.is_symlink()
    assert target.read_bytes() == part10()


@pytest.mark.parametrize("kind", ["link to nothing", "link to itself", "directory", "pipe"])
@pytest.mark.parametrize("policy", ["skip", "replace", "error"])
def test_what_is_no_file_is_never_taken_for_the_instance(destination, kind, policy):
    """Something with the file's name that holds no instance: a failure, or replaced, but never success by itself."""
    target = destination.folder / STUDY / SERIES / f"{INSTANCE}.dcm"
    target.parent.mkdir(parents=True)
    {
        "link to nothing": lambda: target.symlink_to(destination.root / "new"),
        "link to itself": lambda: target.symlink_to(target),
        "directory": lambda: (target / "x").mkdir(parents=True),
        "pipe": lambda: os.mkfifo(target),
    }[kind]()
    with DICOMfileClient(str(destination.folder), in_memory=True) as client:
        (outcome,) = client.iter_store_instances([part10()], on_existing=policy)
    if isinstance(outcome, StoredInstance):
        assert target.is_file()
        assert target.read_bytes() == part10()
    else:
        assert outcome.message
    destination.files()
    assert not (destination.root / "new").exists()


@pytest.mark.parametrize("kind", ["link to nothing", "directory"])
def test_a_download_does_not_take_it_for_the_instance_either(origin, destination, kind):
    target = destination.folder / STUDY / SERIES / f"{INSTANCE}.dcm"
    target.parent.mkdir(parents=True)
    if kind == "directory":
        target.mkdir()
    else:
        target.symlink_to(destination.root / "new")
    server = origin(lambda _: multipart([part10()]))
    with client_of(server.url) as client:
        downloader = InstanceDownloader(client, str(destination.folder))
        result = downloader.download(Resource(STUDY, SERIES, INSTANCE))
        downloader.close()
    assert isinstance(result, Failure), result
    assert str(target) in result.message
    assert destination.files() == []


# From a server ------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(origin, position, name, destination):
    """An archive that has one instance with this name, in its rows, its metadata and its files alike."""
    uids = named(position, absolute(destination) if name == "absolute" else NO_NAMES[name])
    headers = "".join(
        f"{line}\r\n"
        for line in (
            "Content-Location: ../../../evil",
            'Content-Disposition: attachment; filename="../../../evil"',
            f"Content-ID: <{destination.root}/evil>",
        )
    )

    def answer(request):
        if request.path.endswith(("/studies", "/series", "/instances", "/metadata")):
            return rows(row(**uids)) if request.parameters.get("offset", "0") == "0" else rows()
        return multipart([part10(**uids)], headers=headers)

    return origin(answer)


NAMES = [*NO_NAMES, "absolute"]


@pytest.mark.parametrize("name", [*NO_FILE_NAMES, "absolute"])
def test_a_transfer_to_a_folder_fails_for_it(server, destination, position, name, tmp_path, capsys):
    """The whole job: the names come as rows of the search."""
    arguments = ["--source", server.url, "--destination", str(destination.folder), "--source-deadline", "20"]
    if name not in ("up", "absolute", "device"):
        # A job for each name would take long; the steps that make names of files are the same without one.
        with client_of(server.url) as source, DICOMfileClient(str(destination.folder), in_memory=True) as folder:
            outcomes = _copied(source, folder)
    else:
        arguments = arguments[:4]
        outcomes = [transfer(arguments)]
        assert outcomes == [1]
    assert all(isinstance(outcome, (Failure, int)) for outcome in outcomes)
    assert destination.files() == []


def _copied(source, folder):
    from dicomweb_io.listing import instance_of_row
    from dicomweb_io.queries import make_query

    with InstanceCopier(source, folder) as copier:
        for found in source.iter_search(make_query("instance", permissive_uid=True)):
            try:
                reference = instance_of_row(found)
            except ValueError as error:
                yield Failure("row", str(error))
                continue
            yield from copier.copy([reference])


@pytest.mark.parametrize("name", [*NO_FILE_NAMES, "absolute"])
def test_downloads_fail_for_it(server, destination, position, name):
    """The names come in the files, and for what can be a reference, in the request too."""
    clean = Resource(STUDY, SERIES, INSTANCE)
    wanted = [clean]
    try:
        text = absolute(destination) if name == "absolute" else NO_NAMES[name]
        uids = {"study": STUDY, "series": SERIES, "instance": INSTANCE, **named(position, text)}
        wanted.append(Resource(*uids.values()))
    except ValueError:
        assert name in NAMES
    with client_of(server.url) as client:
        downloader = InstanceDownloader(client, str(destination.folder))
        for reference in wanted:
            result = downloader.download(reference)
            assert isinstance(result, Failure), result
        downloader.close()
    assert destination.files() == []


@pytest.mark.parametrize("name", ["up", "absolute", "device"])
def test_the_transform_that_downloads_fails_for_it(server, destination, position, name):
    with pytest.raises(Exception, match=r"DownloadInstances|UID|file"):
        with beam.Pipeline("FnApiRunner") as pipeline:
            _ = pipeline | beam.Create([STUDY]) | beam.Map(Resource) | DownloadInstances(
                server.url, str(destination.folder)
            )  # fmt: skip
    assert destination.files() == []


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", ["full", "metadata"])
def test_the_command_saves_nothing_under_it(server, destination, position, name, form, capsys):
    """The study is asked for by its own UID, so a name in its place is another study; series and instance are free."""
    command = ["--url", server.url, "--deadline", "20", "retrieve", "studies", "--study", STUDY, form]
    code = command_line([*command, "--save", "--output-dir", str(destination.folder)])
    saved = destination.files()
    # The files are called after the instance alone; a strange series does no harm.
    if position == "series" and saved:
        assert saved == [f"{INSTANCE}.{'dcm' if form == 'full' else 'json'}"]
    else:
        assert code != 0, capsys.readouterr()
        assert saved == []
        assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("form", ["full", "metadata"])
def test_a_folder_that_is_there_is_no_way_out(origin, destination, form, capsys):
    """What stands behind a UID and an underscore, where the number of a frame stands otherwise, is looked at too."""
    (destination.folder / "1.2_").mkdir()
    name = "1.2_/../../evil"

    def answer(request):
        return rows(row(instance=name)) if form == "metadata" else multipart([part10(instance=name)])

    server = origin(answer)
    command = ["--url", server.url, "retrieve", "studies", "--study", STUDY, form, "--save"]
    assert command_line([*command, "--output-dir", str(destination.folder)]) != 0
    assert destination.files() == []


@pytest.mark.parametrize("name", ["up"])
def test_bulk_data_are_saved_under_a_harmless_name(origin, destination, capsys, name, position):
    headers = 'Content-Location: ../../../evil\r\nContent-Disposition: attachment; filename="/tmp/evil"\r\n'
    media_type = "application/../../evil"
    server = origin(lambda _: multipart([b"x"], headers=headers, media_type=media_type))
    for uri in ("/..", "/../..", "/%2e%2e%2f%2e%2e%2fx", "/CON", "/..%5c..%5cx", "/a%00b", "/" + "x" * 300):
        command = ["--url", server.url, "retrieve", "bulkdata", "--uri", server.url + uri]
        command_line([*command, "--save", "--output-dir", str(destination.folder)])
    for saved in destination.files():
        assert "/" not in saved
        assert saved.partition("_")[0].isalnum()
        assert len(saved) < 100


def test_frames_are_saved_under_their_uid_whatever_the_parts_are_called(origin, destination, capsys):
    headers = "Content-Location: ../../frames/../evil\r\nContent-Disposition: attachment; filename=../evil\r\n"
    server = origin(lambda _: multipart([b"pixels"], headers=headers, media_type="application/octet-stream"))
    command = ["--url", server.url, "retrieve", "instances", "--study", STUDY, "--series", SERIES]
    command += ["--instance", INSTANCE, "frames", "--numbers", "1", "--save"]
    assert command_line([*command, "--output-dir", str(destination.folder)]) == 0
    assert destination.files() == [f"{INSTANCE}_1.dat"]


@pytest.mark.parametrize("form", ["full", "metadata"])
def test_saving_does_not_write_through_a_link(origin, destination, form):
    suffix = "dcm" if form == "full" else "json"

    def answer(request):
        return rows(row()) if form == "metadata" else multipart([part10()])

    link = destination.folder / f"{INSTANCE}.{suffix}"
    link.symlink_to(destination.root / "evil")
    server = origin(answer)
    command = ["--url", server.url, "retrieve", "studies", "--study", STUDY, form, "--save"]
    assert command_line([*command, "--output-dir", str(destination.folder)]) == 0
    assert destination.files() == [link.name]
    assert not link.is_symlink()


# Spool files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["1:2", "C:evil", "CON", "nul.1", "ä" * 32, "\U0001f480" * 16, "1.2.\u202e3", "-rf"])
def test_a_spooled_file_has_a_harmless_name(origin, destination, text):
    """References may hold such names; the files that elements point to are never called so."""
    server = origin(lambda _: multipart([part10(instance=text, more=b"")]))
    with client_of(server.url) as client:
        directory = PrivateDirectory(str(destination.folder))
        (instance,) = client.iter_instances(
            Resource(STUDY, SERIES), max_element_bytes=0, spool_directory=directory.path
        )
        path = directory.release(instance)
        directory.remove()
    (saved,) = destination.files()
    assert os.path.samefile(path, destination.folder / saved)
    assert saved.isascii()
    assert ":" not in saved
    assert not saved.upper().startswith(("CON", "NUL", "-"))


def test_the_transform_that_retrieves_gives_such_files_out(origin, destination):
    text = "CON"
    server = origin(lambda _: multipart([part10(instance=text)]))
    with beam.Pipeline("FnApiRunner") as pipeline:
        _ = (
            pipeline
            | beam.Create([Resource(STUDY, SERIES, text)])
            | RetrieveInstances(server.url, max_element_bytes=16, spool_directory=str(destination.folder))
        )
    (saved,) = destination.files()
    assert not saved.startswith("CON")


def test_a_good_name_is_kept_in_the_names_of_spooled_files(origin, destination):
    """So that a person finds a file."""
    server = origin(lambda _: multipart([part10()]))
    with client_of(server.url) as client:
        directory = PrivateDirectory(str(destination.folder))
        (instance,) = client.iter_instances(
            Resource(STUDY, SERIES), max_element_bytes=0, spool_directory=directory.path
        )
        path = directory.release(instance)
        directory.remove()
    assert os.path.basename(path).startswith(f"{INSTANCE}-")


def test_a_good_instance_is_written_where_it_belongs(origin, destination):
    """The other tests would pass too if nothing ever was written."""
    server = origin(lambda _: multipart([part10()]))
    with client_of(server.url) as client:
        downloader = InstanceDownloader(client, str(destination.folder))
        assert isinstance(downloader.download(Resource(STUDY, SERIES, INSTANCE)), Downloaded)
        downloader.close()
    assert destination.files() == [f"{STUDY}/{SERIES}/{INSTANCE}.dcm"]
