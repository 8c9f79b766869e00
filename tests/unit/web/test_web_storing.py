"""Storing: each instance proven stored by its UID, or a failure with its reason; never lost, never doubled."""

from __future__ import annotations

import io
import json

import pydicom
import pytest

from dicomweb_io.dicom.part10 import header_of
from dicomweb_io.elements import Failure, Instance, StoredInstance
from dicomweb_io.errors import DICOMwebError, StoreError
from dicomweb_io.http.retry import RetryPolicy
from dicomweb_io.profiles import GENERIC, PROFILES, ServerProfile
from tests.answering import in_turn

UIDS = [f"1.2.3.1.{number}" for number in range(1, 9)]


@pytest.fixture
def files(web):
    return [web.dicom(uid) for uid in UIDS]


def sop(content):
    return header_of(io.BytesIO(content)).sop_instance_uid


class Archive:
    """Keeps what is stored; answers as the arguments say, or stores as the function `post` says."""

    def __init__(self, web, kept=(), **habits):
        self.web, self.kept = web, dict(kept)
        self.refuse, self.silent = set(habits.get("refuse", ())), set(habits.get("silent", ()))
        self.whole, self.xml = habits.get("whole", False), habits.get("xml", False)
        self.status, self.max_bytes = habits.get("status"), habits.get("max_bytes")
        self.post = habits.get("post", self.store)

    def __call__(self, request):
        if request.method == "POST":
            return self.post(request)
        if request.method == "PUT":
            return self.store(request)
        if request.method == "DELETE":
            return self.web.Reply(204 if self.kept.pop(request.path.rpartition("/")[2], None) else 404)
        if request.path.endswith("/instances"):
            wanted = request.parameters.get("SOPInstanceUID")
            uids = [uid for uid in self.kept if wanted is None or uid in wanted.split(",")]
            rows = [] if request.parameters.get("offset") else [self.web.row("1.2.3", "1.2.3.1", uid) for uid in uids]
            return self.web.json(rows) if rows else self.web.Reply(204)
        content = self.kept.get(request.path.rpartition("/")[2])
        return self.web.multipart([content]) if content is not None else self.web.Reply(404)

    def store(self, request):
        if self.max_bytes is not None and len(request.body) > self.max_bytes:
            return self.web.Reply(413, b"too large", "text/plain")
        contents = {sop(part): part for part in self.web.stored_parts(request)}
        guilty = self.refuse & set(contents)
        if guilty and self.whole:
            return self.web.Reply(400, b'{"Message": "bad instance"}')
        good = [uid for uid in contents if uid not in guilty]
        self.kept.update({uid: contents[uid] for uid in good})
        document = self.web.module([uid for uid in good if uid not in self.silent], [(uid, 0xC000) for uid in guilty])
        status = self.status or (200 if not guilty else 202 if good else 409)
        if self.xml:
            return self.web.Reply(status, as_xml(document), "text/plain")
        return self.web.json(document, status=status)


def as_xml(document):
    def items(tag):
        for number, item in enumerate(document.get(tag, {}).get("Value", []), 1):
            inner = "".join(
                f'<DicomAttribute tag="{name}" vr="{element["vr"]}"><Value number="1">{element["Value"][0]}</Value>'
                "</DicomAttribute>"
                for name, element in item.items()
            )
            yield f'<Item number="{number}">{inner}</Item>'

    sequences = "".join(
        f'<DicomAttribute tag="{tag}" vr="SQ">{"".join(items(tag))}</DicomAttribute>'
        for tag in ("00081198", "00081199")
    )
    return f'<?xml version="1.0"?><NativeDicomModel>{sequences}</NativeDicomModel>'.encode()


def store(client, instances, **options):
    return list(client.iter_store_instances(instances, **options))


def outcomes(results):
    return [result.outcome if isinstance(result, StoredInstance) else "failed" for result in results]


def failure_of(client, content, **options):
    """The failure of one instance."""
    (result,) = store(client, [content], **options)
    assert isinstance(result, Failure)
    return result


def refused_as(web, code):
    """An answer that refuses the first file with a failure reason."""
    return web.json(web.module([], [(UIDS[0], code)]), status=409)


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """Reads the only file that was saved of old bytes, which a text names."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def read(text):
        (kept,) = tmp_path.glob("*.dcm")
        assert str(kept) in text
        assert kept.stat().st_mode & 0o777 == 0o600
        return kept.read_bytes()

    return read


@pytest.fixture
def old(web):
    """Another file with the UID of the first one."""
    return web.dicom(UIDS[0], comment="old")


def test_all_sources_arrive_with_their_bytes_unchanged(web, files, tmp_path):
    archive = Archive(web)
    server, client = web.connect(archive)
    for name, content in zip("abc", files[1:4], strict=True):
        (tmp_path / f"{name}.dcm").write_bytes(content)
    dataset = pydicom.dcmread(io.BytesIO(files[6]))
    with open(tmp_path / "c.dcm", "rb") as file:
        sources = {
            0: files[0],
            1: str(tmp_path / "a.dcm"),
            2: tmp_path / "b.dcm",
            3: file,
            4: Instance.from_bytes(files[4]),
            6: dataset,
            7: io.BytesIO(files[7]),
            5: bytearray(files[5]),
        }
        results = store(client, [*sources.values(), f"file://{tmp_path}/b.dcm"])
    assert outcomes(results) == ["stored"] * 9
    assert [result.reference.sop_instance_uid for result in results] == [UIDS[index] for index in (*sources, 2)]
    del archive.kept[UIDS[6]]
    assert archive.kept == {uid: content for uid, content in zip(UIDS, files, strict=True) if uid != UIDS[6]}
    assert (results[0].size, results[0].verified) == (len(files[0]), "response")
    request = server.requests[0]
    assert request.target == "/dicomweb/studies"
    assert request.headers["content-type"].startswith('multipart/related; type="application/dicom"; boundary=')
    assert request.headers["accept"] == "application/dicom+json"
    assert int(request.headers["content-length"]) == len(request.body)
    assert "content-encoding" not in request.headers


@pytest.mark.parametrize("status", [200, 202, 400, 409])
@pytest.mark.parametrize("xml", [True, False])
def test_the_outcome_is_in_the_body_whatever_status_and_content_type_say(web, files, status, xml):
    _, client = web.connect(Archive(web, refuse=[UIDS[1]], status=status, xml=xml))
    results = store(client, files[:3])
    assert outcomes(results) == ["stored", "failed", "stored"]
    failure = results[1]
    assert (failure.reason_code, failure.status, failure.retryable) == (0xC000, status, False)
    assert "C000H" in failure.message
    assert failure.reference.sop_instance_uid == UIDS[1]


@pytest.mark.parametrize("content_type", ["application/dicom+json; charset=utf-8", "text/html", None])
def test_any_content_type(web, files, content_type):
    document = json.dumps([web.module([UIDS[0]])]).encode()
    _, client = web.connect(lambda request: web.Reply(200, document, content_type))
    assert outcomes(store(client, files[:1])) == ["stored"]


def test_warnings_and_urls_of_stored_instances(web, files):
    document = web.module([UIDS[0]])
    item = document["00081199"]["Value"][0]
    item["00081190"] = {"vr": "UR", "Value": ["https://user:pw@pacs.example/studies/1?token=x"]}
    item["00081196"] = {"vr": "US", "Value": ["45056"]}
    _, client = web.connect(lambda request: web.json(document))
    (result,) = store(client, files[:1])
    assert (result.warning_reason, result.retrieve_url) == (45056, "https://pacs.example/studies/1")


@pytest.mark.parametrize("guilty", [[0], [3], [7], [0, 7], [2, 3, 4]])
def test_a_refused_batch_is_split_until_the_guilty_is_alone(web, files, guilty):
    archive = Archive(web, refuse=[UIDS[index] for index in guilty], whole=True)
    _server, client = web.connect(archive)
    results = store(client, files)
    assert [index for index, result in enumerate(results) if isinstance(result, Failure)] == guilty
    assert all("bad instance" in results[index].message and results[index].status == 400 for index in guilty)
    assert sorted(archive.kept) == sorted(UIDS[index] for index in range(8) if index not in guilty)


def test_a_request_that_is_too_large_is_split(web, files):
    archive = Archive(web, max_bytes=3000)
    _, client = web.connect(archive)
    huge = web.dicom("1.2.3.1.99", filler=5000)
    results = store(client, [*files[:4], huge, *files[4:]])
    assert outcomes(results) == ["stored"] * 4 + ["failed"] + ["stored"] * 4
    assert results[4].status == 413
    assert len(archive.kept) == 8


def test_a_part_in_no_sequence_failed_unless_a_look_up_finds_it(web, files):
    _, client = web.connect(Archive(web, silent=[UIDS[1]]))
    results = store(client, files[:3])
    assert outcomes(results) == ["stored", "stored", "stored"]
    assert [result.verified for result in results] == ["response", "file", "response"]
    # Orthanc's answer to a compressed request: 200, and nothing stored.
    _, client = web.connect(Archive(web, post=lambda request: web.json({})))
    failure = failure_of(client, files[0])
    assert "does not mention it" in failure.message
    assert failure.retryable


def test_garbage_among_good_parts_is_told_without_asking_again(web, files):
    """Orthanc: 400, the stored ones are listed, the garbage is in no sequence."""

    def answer(request):
        uids = [sop(part) for part in web.stored_parts(request)]
        return web.json(web.module([uid for uid in uids if uid != UIDS[1]]), status=400)

    server, client = web.connect(answer)
    assert outcomes(store(client, files[:3])) == ["stored", "failed", "stored"]
    assert len(server.requests) == 1


def test_batches_are_bounded_by_bytes_and_count(web, files):
    def parts(server):
        return [len(web.stored_parts(request)) for request in server.requests]

    server, client = web.connect(Archive(web), profile=GENERIC.with_facts(store_batch_count=3))
    assert outcomes(store(client, files)) == ["stored"] * 8
    assert parts(server) == [3, 3, 2]
    size = len(files[0])
    server, client = web.connect(Archive(web), profile=GENERIC.with_facts(store_batch_bytes=2 * size))
    big = web.dicom("1.2.3.1.50", filler=5 * size)
    store(client, [*files[:3], big, *files[3:5]])
    assert parts(server) == [2, 1, 1, 2]
    server, client = web.connect(Archive(web))
    assert store(client, []) == []
    assert server.requests == []


def test_instances_of_one_uid_never_share_a_request(web, files):
    other = web.dicom(UIDS[0], filler=300)
    archive = Archive(web)
    server, client = web.connect(archive)
    assert outcomes(store(client, [files[0], other, files[1]])) == ["stored"] * 3
    assert [len(web.stored_parts(request)) for request in server.requests] == [1, 2]
    assert archive.kept[UIDS[0]] == other


def test_what_is_no_instance_fails_alone_and_in_order(web, files, tmp_path):
    no_file = tmp_path / "none.dcm"
    text = tmp_path / "text.txt"
    text.write_bytes(b"not DICOM at all, but long enough to look at it " * 10)
    _, client = web.connect(Archive(web))
    results = store(client, [files[0], no_file, b"junk", text, files[1]])
    assert outcomes(results) == ["stored", "failed", "failed", "failed", "stored"]
    assert results[1].source == str(no_file)
    assert results[3].source == str(text)
    with pytest.raises(TypeError, match="only an Instance"):
        store(client, [5])
    with pytest.raises(TypeError, match="sequence"):
        store(client, files[0])


def test_a_file_that_vanishes_before_it_is_sent_fails_alone(web, files, tmp_path):
    paths = []
    for number, content in enumerate(files[:3]):
        paths.append(tmp_path / f"{number}.dcm")
        paths[-1].write_bytes(content)

    def sources():
        yield paths[0]
        yield paths[1]
        paths[1].unlink()
        yield paths[2]

    archive = Archive(web)
    _, client = web.connect(archive)
    assert outcomes(store(client, sources())) == ["stored", "failed", "stored"]
    assert sorted(archive.kept) == [UIDS[0], UIDS[2]]


def test_the_study_of_the_url_is_checked(web, files):
    server, client = web.connect(Archive(web))
    other = web.dicom("1.2.3.9", study="9.9")
    results = store(client, [files[0], other], study_instance_uid="1.2.3")
    assert outcomes(results) == ["stored", "failed"]
    assert "belongs to study 9.9" in results[1].message
    assert server.asked("POST") == ["/dicomweb/studies/1.2.3"]
    with pytest.raises(ValueError, match="study_instance_uid"):
        client.iter_store_instances(files, study_instance_uid="1.2/../x")


def test_a_retried_request_has_its_whole_body(web, files):
    archive = Archive(web)
    answer = in_turn(*map(web.Reply, (503, 429, 500)), archive)
    server, client = web.connect(answer, retry=RetryPolicy(max_attempts=5, initial_delay=0.0))
    assert outcomes(store(client, files)) == ["stored"] * 8
    posts = [request for request in server.requests if request.method == "POST"]
    assert len(posts) == 2
    assert len({b"".join(request.body.split(request.body[2:34])) for request in posts}) == 1
    assert archive.kept == dict(zip(UIDS, files, strict=False))


@pytest.mark.parametrize("profile", ["generic", "dcm4chee"])
def test_after_a_lost_answer_the_archive_is_asked_what_arrived(web, files, profile):
    def post(request):
        archive.store(request)
        return web.Reply(200, b"x" * 100, "application/dicom+json", cut=10)

    archive = Archive(web, post=post)
    _, client = web.connect(archive, profile=profile)
    results = store(client, files[:2])
    assert outcomes(results) == ["stored", "stored"]
    assert {result.verified for result in results} == {"file" if profile == "generic" else "uid"}


def test_a_duplicate_that_the_first_try_made_itself_is_no_failure(web, files):
    """The answer to the first try is lost; the second is told that the instance exists."""

    def post(request):
        archive.store(request)
        return web.Reply(200, b"x" * 100, cut=1) if request.number == 1 else refused_as(web, 272)

    archive = Archive(web, post=post)
    _, client = web.connect(archive)
    (result,) = store(client, files[:1])
    assert (result.outcome, result.verified) == ("stored", "file")


def test_an_archive_that_gives_no_answer_at_all_fails_what_is_not_found(web, files):
    _, client = web.connect(Archive(web, post=lambda request: web.Reply(503)))
    results = store(client, files[:2])
    assert outcomes(results) == ["failed", "failed"]
    assert all(result.retryable and result.status == 503 and result.attempts == 3 for result in results)


@pytest.mark.parametrize("status", [401, 403, 404, 405])
def test_an_archive_that_cannot_be_used_at_all_raises(web, files, status):
    _, client = web.connect(lambda request: web.Reply(status))
    with pytest.raises(DICOMwebError) as caught:
        store(client, files)
    assert caught.value.status == status


def test_an_archive_that_is_not_there_raises(web, files):
    server, client = web.connect(Archive(web), retry=RetryPolicy(max_attempts=2, initial_delay=0.0))
    server.stop()
    with pytest.raises(DICOMwebError):
        store(client, files)


def test_a_server_that_wants_another_accept(web, files):
    archive = Archive(web, xml=True)

    def answer(request):
        return archive(request) if request.headers["accept"] == "application/dicom+xml" else web.Reply(406)

    _, client = web.connect(answer)
    assert outcomes(store(client, files[:2])) == ["stored", "stored"]


# Policies for what exists already -----------------------------------------------------------------------------------


def test_skip_lists_each_series_once_and_sends_what_is_missing(web, files):
    archive = Archive(web, zip(UIDS[:3], files, strict=False))
    server, client = web.connect(archive, profile=GENERIC.with_facts(store_batch_count=2))
    results = store(client, files, on_existing="skip")
    assert outcomes(results) == ["exists"] * 3 + ["stored"] * 5
    assert results[0].size == 0
    listings = [request for request in server.requests if request.path.endswith("/instances")]
    assert len([request for request in listings if "offset" not in request.parameters]) == 1
    assert outcomes(store(client, [files[0], files[0]], on_existing="skip")) == ["exists", "exists"]


def test_error_refuses_what_exists_and_compares_nothing(web, files):
    archive = Archive(web, {UIDS[0]: b"other"})
    _server, client = web.connect(archive)
    results = store(client, files[:2], on_existing="error")
    assert outcomes(results) == ["failed", "stored"]
    assert "already" in results[0].message
    assert archive.kept[UIDS[0]] == b"other"


def test_skip_with_content_compares_what_exists(web, files):
    _, client = web.connect(Archive(web, {UIDS[0]: files[0], UIDS[1]: web.dicom(UIDS[1], comment="other")}))
    results = store(client, files[:3], on_existing="skip", verify="content")
    assert outcomes(results) == ["exists", "failed", "stored"]
    assert (results[0].verified, results[2].verified) == ("file", "file")
    assert "another content" in results[1].message


def test_replace_by_upsert(web, files):
    archive = Archive(web, {UIDS[0]: b"old"})
    upsert = ServerProfile("upsert", replace="upsert", comparison_level="dataset")
    server, client = web.connect(archive, profile=upsert)
    results = store(client, files[:2], on_existing="replace")
    assert outcomes(results) == ["replaced", "stored"]
    assert archive.kept == dict(zip(UIDS[:2], files, strict=False))
    assert (len(server.asked("POST")), len(server.asked("PUT"))) == (0, 1)


DELETES = ServerProfile("deletes", replace="delete", comparison_level="file")


def test_what_is_replaced_must_be_found_before_the_old_bytes_are_dropped(web, files, saved):
    """A server that names as stored what it does not keep: the old bytes are all there is."""
    old = [web.dicom(uid, comment="old") for uid in UIDS[:2]]

    def post(request):
        return web.json(web.module([sop(part) for part in web.stored_parts(request)]))

    archive = Archive(web, zip(UIDS, old, strict=False), post=post)
    _, client = web.connect(archive, profile=DELETES)
    first, second = store(client, files[:2], on_existing="replace")
    assert "a search does not find it" in first.message
    assert saved(first.message) == old[0]
    # Nothing more is deleted then.
    assert "the old one is unchanged" in second.message
    assert archive.kept == {UIDS[1]: old[1]}


def test_what_is_replaced_and_cannot_be_looked_up_leaves_the_old_bytes(web, files, old, saved, caplog):
    archive = Archive(web, {UIDS[0]: old})

    def answer(request):
        if request.path.endswith("/instances") and archive.kept == {UIDS[0]: files[0]}:
            return web.Reply(503)
        return archive(request)

    _, client = web.connect(answer, profile=DELETES)
    assert outcomes(store(client, files[:1], on_existing="replace")) == ["replaced"]
    assert saved(caplog.text) == old


@pytest.mark.parametrize("status", [401, 403, 404, 501])
def test_where_the_old_bytes_are_is_told_before_the_error_of_all_others(web, files, status, old, saved):
    archive = Archive(web, {UIDS[0]: old}, post=lambda request: web.Reply(status))
    _, client = web.connect(archive, profile=DELETES)
    # In order, though it is known of the other one at first.
    results = client.iter_store_instances([files[1], files[0]], on_existing="replace")
    new, replaced = next(results), next(results)
    assert [new.reference.sop_instance_uid, new.status] == [UIDS[1], status]
    assert saved(replaced.message) == old
    with pytest.raises(DICOMwebError) as info:
        next(results)
    assert info.value.status == status


def test_replace_by_delete_and_store(web, files, old):
    archive = Archive(web, {UIDS[0]: old})
    server, client = web.connect(archive, profile=DELETES)
    results = store(client, files[:2], on_existing="replace", verify="content")
    assert outcomes(results) == ["replaced", "stored"]
    assert [result.verified for result in results] == ["file", "file"]
    assert archive.kept == dict(zip(UIDS[:2], files, strict=False))
    assert server.asked("DELETE") == [f"/dicomweb/studies/1.2.3/series/1.2.3.1/instances/{UIDS[0]}"]


def test_the_old_one_comes_back_if_the_new_one_is_refused(web, files, old):
    def post(request):
        return refused_as(web, 0xA900) if web.stored_parts(request) == [files[0]] else archive.store(request)

    archive = Archive(web, {UIDS[0]: old}, post=post)
    _, client = web.connect(archive, profile=DELETES)
    failure = failure_of(client, files[0], on_existing="replace")
    assert "the old one is back" in failure.message
    assert failure.reason_code == 0xA900
    assert archive.kept == {UIDS[0]: old}


def test_the_old_bytes_are_never_lost(web, files, old, saved):
    _, client = web.connect(Archive(web, {UIDS[0]: old}, post=lambda request: web.Reply(500)), profile=DELETES)
    assert saved(failure_of(client, files[0], on_existing="replace").message) == old


@pytest.mark.parametrize(
    ("profile", "options", "words"),
    [
        ("generic", {"on_existing": "replace"}, "replaced safely"),
        ("dcm4chee", {"on_existing": "replace"}, "replaced safely"),
        ("healthimaging", {"on_existing": "replace"}, "replaced safely"),
        ("dicomcloud", {"verify": "content"}, "do not preserve the content"),
        ("generic", {"on_existing": "ask"}, "on_existing"),
        ("generic", {"verify": "hope"}, "verify"),
    ],
)
def test_options_that_cannot_be_kept_are_refused_before_anything_is_sent(web, files, profile, options, words):
    server, client = web.connect(Archive(web), profile=profile)
    with pytest.raises(ValueError, match=words):
        client.iter_store_instances(files, **options)
    assert server.requests == []


def test_duplicates_that_the_server_refuses(web, files):
    def result_of(code, profile):
        archive = Archive(web, {UIDS[0]: files[0]}, post=lambda request: refused_as(web, code))
        (result,) = store(web.connect(archive, profile=profile)[1], files[:1])
        return result

    exists = result_of(45070, "azure")
    assert (exists.outcome, exists.verified) == ("exists", "uid")
    failure = result_of(272, "google")
    assert isinstance(failure, Failure)
    assert "another object with this UID" in failure.message
    assert result_of(45071, "azure").outcome == "exists"


# Verification -------------------------------------------------------------------------------------------------------


def test_verification_by_uid(web, files):
    _, client = web.connect(Archive(web))
    assert {result.verified for result in store(client, files, verify="uid")} == {"uid"}
    # A server that says "stored" and keeps nothing.
    _, client = web.connect(Archive(web, post=lambda request: web.json(web.module(UIDS[:2]))))
    results = store(client, files[:2], verify="uid")
    assert outcomes(results) == ["failed", "failed"]
    assert "does not find it" in results[0].message


def test_verification_of_content(web, files, old):
    _, client = web.connect(Archive(web))
    assert {result.verified for result in store(client, files, verify="content")} == {"file"}
    keeps_old = Archive(web, {UIDS[0]: old}, post=lambda request: web.json(web.module([UIDS[0]])))
    _, client = web.connect(keeps_old)
    assert "another content" in failure_of(client, files[0], verify="content").message


def test_content_is_compared_at_the_servers_level(web, files):
    """Azure zeroes the preamble: other files, equal datasets."""
    archive = Archive(web)

    def zeroing(request):
        reply = archive(request)
        archive.kept = {uid: b"\x00" * 128 + content[128:] for uid, content in archive.kept.items()}
        return reply

    marked = [b"X" * 128 + content[128:] for content in files]
    _, client = web.connect(zeroing, profile=PROFILES["azure"])
    assert {result.verified for result in store(client, marked, verify="content")} == {"dataset"}
    archive.kept = {}
    _, client = web.connect(zeroing, profile="generic")
    assert outcomes(store(client, marked, verify="content")) == ["failed"] * 8


# The method of the guide --------------------------------------------------------------------------------------------


def test_store_instances_returns_the_response_module(web, files):
    url = "http://pacs.example/studies/1.2.3"

    def answer(request):
        document = json.loads(Archive(web)(request).body)
        return web.json({**document, "00081190": {"vr": "UR", "Value": [url]}})

    _, client = web.connect(answer)
    dataset = client.store_instances(datasets=[pydicom.dcmread(io.BytesIO(content)) for content in files[:2]])
    assert [item.ReferencedSOPInstanceUID for item in dataset.ReferencedSOPSequence] == UIDS[:2]
    assert dataset.RetrieveURL == url
    assert "FailedSOPSequence" not in dataset


def test_store_instances_raises_with_every_outcome(web, files):
    _, client = web.connect(Archive(web, refuse=[UIDS[1]]))
    with pytest.raises(StoreError, match="1 of 3 instances were not stored") as caught:
        client.store_instances(files[:3])
    error = caught.value
    assert outcomes(error.outcomes) == ["stored", "failed", "stored"]
    assert [item.ReferencedSOPInstanceUID for item in error.dataset.ReferencedSOPSequence] == [UIDS[0], UIDS[2]]
    assert error.dataset.FailedSOPSequence[0].FailureReason == 0xC000
    assert error.status == 202
    assert not error.retryable


def test_iterables_are_read_lazily(web, files):
    server, client = web.connect(Archive(web), profile=GENERIC.with_facts(store_batch_count=2))
    given = []

    def sources():
        for content in files:
            given.append(content)
            yield content

    results = client.iter_store_instances(sources())
    next(results)
    assert len(given) <= 3
    assert len(server.requests) == 1


# Evidence ----------------------------------------------------------------------------------------------------------


def test_an_answer_that_names_an_instance_both_as_stored_and_as_failed_proves_nothing(web, files):
    def both(request):
        return web.json(web.module([UIDS[0]], [(UIDS[0], 0xA700)]))

    _, client = web.connect(Archive(web, {UIDS[0]: files[0]}, post=both))
    assert outcomes(store(client, files[:1])) == ["stored"]
    _, client = web.connect(Archive(web, post=both))
    assert failure_of(client, files[0]).reason_code == 0xA700


def test_uids_with_padding_in_the_answer(web, files):
    _, client = web.connect(lambda request: web.json(web.module([UIDS[0] + "\0"], [(UIDS[1] + " ", 0xA900)])))
    results = store(client, files[:2])
    assert outcomes(results) == ["stored", "failed"]
    assert results[1].reason_code == 0xA900


@pytest.mark.parametrize(
    ("policy", "expected"), [("error", "failed"), ("replace", "failed"), ("skip", "exists"), ("server", "exists")]
)
def test_error_and_replace_are_no_success_if_another_writer_was_first(web, files, old, policy, expected):
    """Nothing is there when it is looked for; when it is sent, the server has it."""

    archive = Archive(web)

    def answer(request):
        if request.method == "GET":
            return archive(request)
        archive.kept[UIDS[0]] = old
        return refused_as(web, 45070)

    _, client = web.connect(answer, profile="azure")
    assert outcomes(store(client, files[:1], on_existing=policy)) == [expected]


def test_an_old_instance_is_no_proof_that_it_was_replaced(web, files, old):
    upserts = GENERIC.with_facts(replace="upsert", comparison_level="none")
    archive = Archive(web, {UIDS[0]: old})
    _, client = web.connect(
        lambda request: web.Reply(200) if request.method == "PUT" else archive(request), profile=upserts
    )
    failure_of(client, files[0], on_existing="replace")


def test_a_refusal_after_a_busy_server_is_no_success_where_contents_cannot_be_compared(web, files):
    def post(request):
        return web.Reply(503) if request.number == 1 else refused_as(web, 272)

    _, client = web.connect(
        Archive(web, {UIDS[0]: files[0]}, post=post), profile=PROFILES["dicomcloud"].with_facts(store_again="harmless")
    )
    assert failure_of(client, files[0]).reason_code == 272


def test_a_bare_conflict_after_a_lost_answer_is_no_failure(web, files):
    def post(request):
        if request.number > 1:
            return web.Reply(409)
        archive.store(request)
        return web.Reply(502)

    archive = Archive(web, post=post)
    server, client = web.connect(archive, profile="orthanc")
    results = store(client, files)
    assert outcomes(results) == ["stored"] * 8
    assert {result.verified for result in results} == {"file"}
    assert len(server.asked("POST")) == 2


def test_a_look_up_believes_no_list_of_uids_of_which_one_was_taken(web, files):
    def answer(request):
        if request.method == "POST":
            archive.store(request)
            return web.Reply(202)
        wanted = request.parameters.get("SOPInstanceUID", "")
        if "," in wanted:
            offset = request.parameters.get("offset")
            return web.json([] if offset else [web.row("1.2.3", "1.2.3.1", wanted.partition(",")[0])])
        return archive(request)

    archive = Archive(web)
    _, client = web.connect(answer)
    assert outcomes(store(client, files)) == ["stored"] * 8


@pytest.mark.parametrize("searchable", [True, False])
def test_a_deletion_whose_answer_is_lost_loses_nothing(web, files, old, saved, searchable):
    archive = Archive(web, {UIDS[0]: old})

    def answer(request):
        if request.method == "DELETE":
            archive(request)
            return web.Reply(500)
        if request.path.endswith("/instances") and UIDS[0] not in archive.kept and not searchable:
            return web.Reply(503)
        return archive(request)

    _, client = web.connect(answer, profile=DELETES)
    if searchable:
        assert outcomes(store(client, files[:1], on_existing="replace")) == ["replaced"]
        assert archive.kept == {UIDS[0]: files[0]}
    else:
        assert saved(failure_of(client, files[0], on_existing="replace").message) == old


def test_the_new_one_that_arrived_without_an_answer_is_not_taken_for_the_old_one(web, files, old):
    """A server that keeps what it has confirms the old one without storing it."""

    def post(request):
        for part in web.stored_parts(request):
            archive.kept.setdefault(sop(part), part)
        return web.Reply(500) if web.stored_parts(request) == [files[0]] else web.json(web.module([UIDS[0]]))

    archive = Archive(web, {UIDS[0]: old}, post=post)
    _, client = web.connect(archive, profile=DELETES)
    (result,) = store(client, files[:1], on_existing="replace")
    assert (result.outcome, result.verified) == ("replaced", "file")
    assert archive.kept == {UIDS[0]: files[0]}


def test_an_interrupted_replacement_keeps_the_old_bytes(web, files, old, saved, caplog):
    def interrupt(response, *_, **__):
        if response.request.method == "POST":
            raise KeyboardInterrupt

    _, client = web.connect(Archive(web, {UIDS[0]: old}), profile=DELETES, callback=interrupt)
    with pytest.raises(KeyboardInterrupt):
        store(client, files[:1], on_existing="replace")
    assert saved(caplog.text) == old


# Again ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("again", "arrives", "posts", "expected"),
    [
        ("look", True, 1, "stored"),
        ("look", False, 2, "stored"),
        ("harmless", True, 2, "stored"),
        ("never", True, 1, "stored"),
        ("never", False, 1, "failed"),
    ],
)
def test_what_may_have_arrived_is_sent_again_as_the_profile_says(web, files, again, arrives, posts, expected):
    def post(request):
        if len(server.asked("POST")) > 1:
            return archive.store(request)
        if arrives:
            archive.store(request)
        return web.Reply(502)

    archive = Archive(web, post=post)
    server, client = web.connect(archive, profile=GENERIC.with_facts(store_again=again))
    assert outcomes(store(client, files)) == [expected] * 8
    assert len(server.asked("POST")) == posts


@pytest.mark.parametrize(("there", "outcome", "posts"), [(True, "exists", 1), (False, "failed", 2)])
def test_what_is_refused_for_no_clear_reason_is_looked_up_and_sent_once_more_alone(web, files, there, outcome, posts):
    archive = Archive(web, {UIDS[0]: files[0]} if there else {}, post=lambda request: refused_as(web, 0x0110))
    server, client = web.connect(archive)
    assert outcomes(store(client, files[:1])) == [outcome]
    assert len(server.asked("POST")) == posts


def test_after_twenty_equal_refusals_in_a_row_nothing_is_sent_again(web, files):
    server, client = web.connect(Archive(web, post=lambda request: refused_as(web, 0x0110)))
    for _ in range(30):
        assert outcomes(store(client, files[:1])) == ["failed"]
    assert len(server.asked("POST")) == 30 + 20
