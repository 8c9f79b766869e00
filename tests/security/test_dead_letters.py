"""What jobs and transforms write about what failed: UIDs, paths and reasons, but no pixels and no names.

``unless asked`` has one meaning: a path of a user's own file is told as it is, since only the path leads to the file
(the dead-letter file is therefore for its owner alone). There is no option that puts content into a failure. Failing
stores are tried in ``test_credentials_stay.py``.
"""

from __future__ import annotations

import json
import struct

import apache_beam as beam
import pytest
from apache_beam.testing.util import assert_that

from dicomweb_io.cli import main as command
from dicomweb_io.elements import Failure, Resource
from dicomweb_io.testing import fault, make_study
from dicomweb_io.transforms import RetrieveInstances, RetrieveMetadata, StoreInstances
from pipelines.transfer import main as transfer
from tests.answering import Reply
from tests.security.hostile import INSTANCE, SERIES, STUDY, element, multipart, part10, row, rows


def copy(arguments):
    return command(["copy", *arguments])


NAME = b"Zzyzx"
PIXELS = b"THESE ARE THE PIXELS"
FIELDS = {
    *("transform", "message", "reference", "rows", "source", "url"),
    *("status", "reason_code", "attempts", "retryable", "server_message", "element"),
}


def image(instance=INSTANCE, *, tail=b"", declared=None):
    """A file with a name and pixels; with `declared`, its pixels are said to be longer than they are."""
    content = PIXELS + tail
    pixels = element(0x7FE00010, "OW", content)
    if declared is not None:
        pixels = pixels[:8] + struct.pack("<I", declared) + content
    return part10(instance=instance, more=pixels)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr("dicomweb_io.http.retry.RetryPolicy.delay", lambda *_: 0.0)


@pytest.fixture
def job(tmp_path, capsys):
    """Runs the main job; gives its failures and everything that it wrote and printed."""

    def run(source, destination, *more):
        failures, summary = tmp_path / "failures.jsonl", tmp_path / "summary.json"
        command = ["--source", str(source), "--destination", str(destination)]
        code = transfer([*command, "--failures", str(failures), "--summary", str(summary), *more])
        printed = capsys.readouterr()
        assert failures.stat().st_mode & 0o777 == 0o600
        told = failures.read_text()
        everything = (told + summary.read_text() + printed.out + printed.err).encode()
        return code, [json.loads(line) for line in told.splitlines()], everything

    return run


def check(failures, everything):
    assert failures
    assert NAME not in everything
    assert PIXELS not in everything
    assert b"QUENTIN" not in everything.upper()
    for failure in failures:
        assert set(failure) <= FIELDS


@pytest.mark.parametrize("level", ["series", "instances"])
@pytest.mark.parametrize("run", [transfer, copy], ids=["job", "command"])
def test_a_listing_whose_error_names_a_patient_leaves_the_name_out_of_the_summary(
    run, level, serve, folder, tmp_path, capsys, caplog
):
    source = tmp_path / "source"
    make_study(source)
    error = {"status": 500, "body": "cannot open Zzyzx^Quentin", "path": f"/{level}$", "times": None}
    server = serve(source, faults=[fault("status", **error)])
    summary = tmp_path / "summary.json"
    ends = [server.url, str(folder)] if run is copy else ["--source", server.url, "--destination", str(folder)]
    assert run([*ends, "--summary", str(summary)]) == 1
    printed = capsys.readouterr()
    assert "HTTP 500" in summary.read_text()
    assert "Zzyzx" not in summary.read_text() + printed.out + caplog.text


def named_row(**uids):
    return {**row(**uids), "00100010": {"vr": "PN", "Value": [{"Alphabetic": "Zzyzx^Quentin"}]}}


ANSWERS = {
    "cut": lambda: multipart([image()[:-5]]),
    "longer than it is": lambda: multipart([image(declared=1000)]),
    "no DICOM": lambda: multipart([NAME + PIXELS * 100]),
    "another instance": lambda: multipart([image(instance="1.2.3.4.6")]),
    "no UIDs": lambda: multipart([image(instance="Zzyzx^Quentin/../1")]),
    "JSON": lambda: rows(named_row()),
    "a page": lambda: Reply(200, b"<p>Zzyzx^Quentin THESE ARE THE PIXELS</p>", "text/html"),
    "a strange type": lambda: Reply(200, image(), "image/jpeg"),
    "wrong boundary": lambda: Reply(200, multipart([image()]).body, "multipart/related; boundary=no"),
    "broken compression": lambda: Reply(200, image(), "application/dicom", {"Content-Encoding": "gzip"}),
    "binary error": lambda: Reply(500, image(), "application/dicom"),
    "error as DICOM JSON": lambda: Reply.json([named_row()], 500),
    "not found, with the object": lambda: Reply(404, b"\0" + image(), "text/plain"),
}


@pytest.mark.parametrize("kind", ANSWERS)
def test_failing_retrieves(origin, job, tmp_path, kind, caplog):
    """Whatever comes instead of the instance, nothing of it is told."""

    def answer(request):
        if request.path.endswith(("/series", "/instances")):
            found = named_row()
            if request.path.endswith("/series"):
                del found["00080018"]
            return rows() if "offset=" in request.target else rows(found)
        return ANSWERS[kind]()

    caplog.set_level("DEBUG")
    code, failures, everything = job(origin(answer).url, tmp_path / "copy")
    assert code == 1
    check(failures, everything + caplog.text.encode())
    assert [one["reference"]["sop_instance_uid"] for one in failures] == [INSTANCE]
    assert not list((tmp_path / "copy").rglob("*.dcm")) if (tmp_path / "copy").exists() else True


def test_rows_that_name_no_instance(origin, job, tmp_path):
    broken = named_row()
    del broken["00080018"]
    server = origin(lambda request: rows() if "offset=" in request.target else rows(broken))
    code, failures, everything = job(server.url, tmp_path / "copy")
    assert code == 1
    check(failures, everything)


def test_conflicting_duplicates_and_unreadable_files(serve, job, tmp_path):
    """Files that differ under one UID, a cut one, one that is no DICOM, and one whose name is a person's."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.dcm").write_bytes(image(tail=b"one"))
    (source / "b.dcm").write_bytes(image(tail=b"two, longer"))
    (source / "cut.dcm").write_bytes(image(instance="1.2.3.4.7")[:-10])
    (source / "notes.txt").write_bytes(NAME + PIXELS)
    (source / "bad-uid.dcm").write_bytes(image(instance="Zzyzx@Quentin"))
    server = serve(tmp_path / "archive")
    code, failures, everything = job(source, server.url)
    assert code == 1
    check(failures, everything)
    assert {one["source"].rpartition("/")[2] for one in failures} == {"b.dcm", "cut.dcm", "bad-uid.dcm"}
    assert b"differ from the file that was chosen" in everything


def test_a_conflict_at_the_destination(serve, job, tmp_path):
    """The archive has other bytes under the UID, and replacing them was not asked for."""
    source, archive = tmp_path / "source", tmp_path / "archive"
    for folder, tail in ((source, b"one"), (archive, b"two")):
        folder.mkdir()
        (folder / "a.dcm").write_bytes(image(tail=tail))
    for destination in (archive, serve(archive).url):
        for policy in ("error", "skip"):
            code, failures, everything = job(source, destination, "--on-existing", policy, "--verify", "content")
            assert code == 1
            check(failures, everything)
            assert len(failures) == 1


def test_a_path_is_told_as_it_is(serve, job, tmp_path):
    """The one place where a name may stand: whoever called a file so asks for it, to find the file."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "Zzyzx^Quentin.dcm").write_bytes(image()[:-10])
    code, failures, everything = job(source, serve(tmp_path / "archive").url)
    assert code == 1
    assert failures[0]["source"].endswith("Zzyzx^Quentin.dcm")
    assert b"Zzyzx" not in json.dumps({**failures[0], "source": ""}).encode()
    assert PIXELS not in everything


@pytest.mark.parametrize("kind", ["cut", "no DICOM", "JSON", "error as DICOM JSON"])
def test_failures_of_transforms(origin, kind):
    """The same for elements of a failures output."""
    server = origin(lambda _: ANSWERS[kind]())
    reference = Resource(STUDY, SERIES, INSTANCE)

    def harmless(found):
        assert found
        for failure in found:
            assert isinstance(failure, Failure)
            check([failure.to_dict()], repr(failure).encode())

    with beam.Pipeline("FnApiRunner") as pipeline:
        references = pipeline | beam.Create([reference])
        instances = references | RetrieveInstances(server.url, failures="collect")
        assert_that(instances.failures, harmless, label="instances")
        if kind != "JSON":
            metadata = references | RetrieveMetadata(server.url, failures="collect")
            assert_that(metadata.failures, harmless, label="metadata")
        contents = pipeline | "contents" >> beam.Create([image()[:-10], NAME + PIXELS, image(instance="Zzyzx@Quentin")])
        stored = contents | StoreInstances(server.url, failures="collect")
        assert_that(stored.failures, harmless, label="stored")
