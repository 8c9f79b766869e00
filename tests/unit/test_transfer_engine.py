"""Copying between real archives: folders, and the test server over HTTP."""

from __future__ import annotations

import errno
import os
import re
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pydicom
import pytest
from pydicom.encaps import encapsulate

from dicomweb_io import listing
from dicomweb_io.account import exit_code
from dicomweb_io.copier import CopyOptions, InstanceCopier, InstanceStorer, SeriesLimits
from dicomweb_io.dicom.header_scan import scan_header
from dicomweb_io.dicom.part10 import encode_dataset
from dicomweb_io.elements import UID_TAGS, Failure, Instance, Resource, StoredInstance
from dicomweb_io.endpoint import Endpoint
from dicomweb_io.errors import PagingError, StoreError
from dicomweb_io.files.local import LocalFolder
from dicomweb_io.http.retry import RetryPolicy
from dicomweb_io.http.settings import Limits, Timeouts
from dicomweb_io.listing import SeriesListing, expand_reference
from dicomweb_io.pool import WorkCancelled
from dicomweb_io.profiles import PROFILES
from dicomweb_io.queries import make_query
from dicomweb_io.testing.faults import fault
from dicomweb_io.testing.samples import make_study
from dicomweb_io.transfer import TransferJob, run_transfer
from tests.answering import Reply
from tests.unit.files.making import make_bytes


@pytest.fixture
def source(tmp_path):
    """A folder with two series of twelve instances."""
    make_study(tmp_path / "source", series=2, instances=12, size=2000)
    client = Endpoint(str(tmp_path / "source")).connect()
    yield client
    client.close()


@pytest.fixture
def destination(folder):
    client = Endpoint(str(folder)).connect()
    yield client
    client.close()


def references_of(client):
    return [Resource.of(row) for row in client.iter_search(make_query("instance"))]


def contents_of(client):
    return {reference: next(iter(client.iter_instances(reference))).read() for reference in references_of(client)}


class Watched:
    """The room of a task, which is told of each instance."""

    def __init__(self, look):
        self.look = look

    @property
    def cancelled(self):
        return self.look()

    def each(self, keys, produce):
        return ((key, result) for key in keys for result in produce(key, self))

    def reserve(self, size):
        pass


def fresh(client):
    """The same archive as a newcomer sees it."""
    return Endpoint(client.base_url).connect()


def test_everything_is_copied_byte_for_byte_and_reported_in_order(source, destination):
    references = references_of(source)
    with InstanceCopier(source, destination) as copier:
        results = copier.copy(references)
    assert [result.reference for result in results] == references
    assert {result.outcome for result in results} == {"stored"}
    contents = contents_of(source)
    assert contents_of(fresh(destination)) == contents
    assert sum(result.size for result in results) == sum(map(len, contents.values()))


def test_a_second_copy_moves_nothing(source, destination):
    references = references_of(source)
    with InstanceCopier(source, destination) as copier:
        copier.copy(references)
    with InstanceCopier(source, fresh(destination)) as copier:
        again = copier.copy(references)
    assert {(result.outcome, result.size, result.verified) for result in again} == {("exists", 0, "uid")}


@pytest.mark.parametrize("times", [1, None])
def test_fifty_instances_that_end_before_their_pixels(tmp_path, serve, folder, times):
    """Once is cut off; what comes so again moves as it is, and is named."""
    make_study(tmp_path / "fifty", series=1, instances=50, size=2000)
    with Endpoint(str(tmp_path / "fifty")).connect() as client:
        whole = contents_of(client)
    server = serve(tmp_path / "fifty", faults=[fault("cut_before_pixels", times=times)])
    summary = run_transfer(TransferJob(Endpoint(server.url), Endpoint(str(folder))))
    assert (summary["transferred"], summary["failed"]) == (50, 0)
    with Endpoint(str(folder)).connect() as client:
        copied = contents_of(client)
    if times is None:
        assert summary["warnings"] == {"without pixel data": 50}
        assert all(content == whole[reference][: len(content)] for reference, content in copied.items())
        assert len([record for record in server.records if "/series/" in record.path]) < 6
    else:
        assert (summary["warnings"], copied) == ({}, whole)


def test_odd_files_move_unchanged_and_are_named_and_cut_ones_are_not_moved(tmp_path, folder, serve):
    make_study(tmp_path / "odd", series=1, instances=4, size=2000)
    native, bare, delimited, cut = sorted((tmp_path / "odd").rglob("*.dcm"))
    bare.write_bytes(bare.read_bytes()[: scan_header(bare.read_bytes()).end])
    dataset = pydicom.dcmread(delimited)
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.RLELossless
    dataset.PixelData = encapsulate([dataset.PixelData])
    delimited.write_bytes(encode_dataset(dataset)[:-8])
    cut.write_bytes(cut.read_bytes()[:-7])
    kept = {path.read_bytes() for path in (native, bare, delimited)}
    for destination in (str(folder), serve(tmp_path / "server").url):
        summary = run_transfer(TransferJob(Endpoint(str(tmp_path / "odd")), Endpoint(destination)))
        assert (summary["transferred"], summary["failed"]) == (3, 1)
        assert summary["warnings"] == {"without pixel data": 1, "without the delimiter that ends a value": 1}
        with Endpoint(destination).connect() as client:
            assert set(contents_of(client).values()) == kept


def test_what_is_stored_from_files_and_bytes_is_named_too(tmp_path, folder, caplog):
    make_study(tmp_path / "odd", series=1, instances=2, size=2000)
    paths = sorted((tmp_path / "odd").rglob("*.dcm"))
    for path in paths:
        path.write_bytes(path.read_bytes()[: scan_header(path.read_bytes()).end])
    with Endpoint(str(folder)).connect() as client:
        stored = list(client.iter_store_instances([paths[0], paths[1].read_bytes()]))
    assert [outcome.warnings for outcome in stored] == [("without pixel data",)] * 2
    assert caplog.text.count("is sent unchanged: without pixel data") == 2


def test_only_what_is_missing_is_asked_of_the_source(source, serve, tmp_path, folder):
    server = serve(tmp_path / "source")
    web = Endpoint(server.url).connect()
    references = references_of(source)
    with InstanceCopier(source, Endpoint(str(folder)).connect()) as copier:
        copier.copy(references[:20])
    server.records.clear()
    with InstanceCopier(web, Endpoint(str(folder)).connect()) as copier:
        results = copier.copy(references)
    assert [result.outcome for result in results] == ["exists"] * 20 + ["stored"] * 4
    asked = [record for record in server.records if record.method == "GET"]
    assert len(asked) == 4
    web.close()


def test_the_destination_is_listed_once_for_each_series_however_many_threads_ask(source, serve, folder):
    server = serve(folder)
    web = Endpoint(server.url).connect()
    references = references_of(source)
    with InstanceCopier(source, web) as copier, ThreadPoolExecutor(4) as threads:
        groups = [references[start::4] for start in range(4)]
        results = [result for part in threads.map(copier.copy, groups) for result in part]
    assert {result.outcome for result in results} == {"stored"}
    asked = [record.path.split("/")[2:] for record in server.records if record.method == "GET"]
    assert sorted(path[-1] for path in asked) == ["instances", "instances", "studies"], (
        "and once for the study's patient"
    )
    web.close()


@pytest.mark.parametrize("bad", ["drop_part", "cut_part", "refused", "foreign_part"])
def test_what_a_series_does_not_give_is_asked_for_one_by_one(source, serve, tmp_path, destination, bad):
    """Nothing that came before is lost, and nothing is asked for twice that came."""
    faults = {
        "drop_part": fault("drop_part", path="/series/[0-9.]+$", part=5),
        "cut_part": fault("cut_part", path="/series/[0-9.]+$", part=5, times=None),
        "refused": fault("status", path="/series/[0-9.]+$", status=500, times=None),
        "foreign_part": fault("foreign_part", path="/series/[0-9.]+$", part=5),
    }
    server = serve(tmp_path / "source", faults=[faults[bad]])
    web = Endpoint(server.url, retry=RetryPolicy(max_attempts=2, initial_delay=0.01)).connect()
    references = references_of(source)
    with InstanceCopier(web, destination) as copier:
        results = copier.copy(references)
    assert {type(result) for result in results} == {StoredInstance}, results
    assert contents_of(fresh(destination)) == contents_of(source)
    web.close()


def test_series_that_give_nothing_are_not_asked_for_again_and_again(serve, tmp_path, folder):
    """Every series is refused, after some attempts: the fourth in a row is not asked for as a whole."""
    make_study(tmp_path / "many", series=8, instances=4, size=200)
    server = serve(tmp_path / "many", faults=[fault("status", path="/series/[0-9.]+$", status=504, times=None)])
    source = Endpoint(server.url, retry=RetryPolicy(max_attempts=2, initial_delay=0.01))
    summary = run_transfer(TransferJob(source, Endpoint(str(folder))), max_in_flight=1)
    assert (summary["transferred"], summary["failed"]) == (32, 0)
    assert len(requests_for(server, "series")) == 3


def requests_for(server, what):
    """How often each series, or each instance, was requested."""
    return Counter(r.path for r in server.records if r.method == "GET" and re.search(f"/{what}/[0-9.]+$", r.path))


@pytest.mark.parametrize(
    ("limits", "alone"),
    [
        (SeriesLimits(max_bytes=10_000), 16),
        (SeriesLimits(max_bytes=1), 22),
        (SeriesLimits(max_seconds=0), 22),
        (SeriesLimits(), 0),
    ],
    ids=str,
)
def test_the_answer_for_a_series_ends_at_a_limit_and_the_rest_is_asked_for_alone(
    source, serve, tmp_path, destination, limits, alone
):
    """Twelve instances of about 2,600 bytes in each of two series: what came is not asked for again."""
    server = serve(tmp_path / "source")
    web = Endpoint(server.url).connect()
    references = references_of(source)
    with InstanceCopier(web, destination, limits=limits) as copier:
        results = copier.copy(references)
    assert {type(result) for result in results} == {StoredInstance}, results
    assert contents_of(fresh(destination)) == contents_of(source)
    assert list(requests_for(server, "series").values()) == [1, 1]
    assert list(requests_for(server, "instances").values()) == [1] * alone
    web.close()


def test_a_server_that_cuts_every_answer_gives_everything_with_a_request_for_each_that_was_cut(
    source, serve, tmp_path, destination
):
    """An answer ends without a word after 10,000 bytes, each time."""
    cut = fault("truncate", path="/(series|instances)/[0-9.]+$", position=10_000, framing="close", times=None)
    server = serve(tmp_path / "source", faults=[cut])
    web = Endpoint(server.url).connect()
    references = references_of(source)
    with InstanceCopier(web, destination) as copier:
        results = copier.copy(references)
    assert {type(result) for result in results} == {StoredInstance}, results
    assert contents_of(fresh(destination)) == contents_of(source)
    assert list(requests_for(server, "series").values()) == [1, 1]
    assert set(requests_for(server, "instances").values()) == {1}
    assert sum(requests_for(server, "instances").values()) < 24
    web.close()


def test_an_instance_that_cannot_be_had_alone_either_is_a_failure(source, serve, tmp_path, destination):
    references = references_of(source)
    faults = [
        fault("drop_part", path="/series/[0-9.]+$", part=1, times=None),
        fault("status", path="/instances/[0-9.]+$", status=404, times=None),
    ]
    web = Endpoint(serve(tmp_path / "source", faults=faults).url).connect()
    with InstanceCopier(web, destination) as copier:
        results = copier.copy(references)
    failed = [result for result in results if isinstance(result, Failure)]
    assert len(failed) == 2
    assert {failure.status for failure in failed} == {404}
    assert len(references_of(fresh(destination))) == 22
    web.close()


def test_a_listing_that_is_written_to_meanwhile_is_made_again(source):
    """Rows shift when an archive is written to: a page then repeats rows. That is no reason to fail an instance."""
    tries = []

    class Moving:
        base_url = "test"

        def iter_search(self, query, *, limit=None):
            tries.append(query)
            if len(tries) == 1:
                raise PagingError("a page repeats only rows that were there before")
            return source.iter_search(query)

    references = references_of(source)
    assert SeriesListing(Moving()).holds(references[0])
    assert len(tries) == 2


def test_content_is_verified_with_one_listing_of_the_series(source, serve, folder):
    """A store request that listed the series again, while others add to it, could meet rows that shift."""
    server = serve(folder)
    web = Endpoint(server.url).connect()
    references = [
        reference for reference in references_of(source) if reference.series == references_of(source)[0].series
    ]
    instances = [next(iter(source.iter_instances(reference))) for reference in references]
    storer = InstanceStorer(web, verify="content")
    for instance in instances:
        assert storer.store([instance])[0].verified == "file"
    assert len([record for record in server.records.of("GET") if record.path.endswith("/instances")]) == 1
    web.close()


def test_large_instances_wait_in_a_private_file_that_is_removed(source, serve, destination, tmp_path):
    spool = tmp_path / "spool"
    spool.mkdir()
    references = references_of(source)
    web = Endpoint(serve(tmp_path / "source").url).connect()
    seen = []

    def watch():
        for directory in spool.iterdir():
            assert directory.stat().st_mode & 0o077 == 0
            seen.extend(directory.iterdir())
        return False

    with InstanceCopier(web, destination, CopyOptions(spool_directory=str(spool)), memory_threshold=100) as copier:
        results = copier.copy(references, room=Watched(watch))
        assert {result.outcome for result in results} == {"stored"}
        assert seen, "nothing was spooled"
        assert [list(directory.iterdir()) for directory in spool.iterdir()] == [[]]
    assert list(spool.iterdir()) == []
    assert contents_of(fresh(destination)) == contents_of(source)


def test_large_files_of_a_local_folder_are_borrowed_and_left_alone(source, destination, tmp_path):
    spool = tmp_path / "spool"
    spool.mkdir()
    references = references_of(source)
    contents = contents_of(source)
    seen = []

    def watch():
        seen.extend(path for directory in spool.iterdir() for path in directory.iterdir())
        return False

    with InstanceCopier(source, destination, CopyOptions(spool_directory=str(spool)), memory_threshold=100) as copier:
        results = copier.copy(references, room=Watched(watch))
    assert {result.outcome for result in results} == {"stored"}
    assert seen == []
    assert contents_of(fresh(source)) == contents
    assert contents_of(fresh(destination)) == contents


def test_what_fails_is_reported_and_the_rest_arrives(source, destination):
    references = references_of(source)
    unknown = Resource("1.2.3", "1.2.3.4", "1.2.3.4.5")
    with InstanceCopier(source, destination, transform="Test") as copier:
        results = copier.copy([references[0], unknown, references[1], references[0]])
    assert [type(result) for result in results] == [StoredInstance, Failure, StoredInstance, StoredInstance]
    failure = results[1]
    assert failure.reference == unknown
    assert failure.transform == "Test"
    assert results[0] is results[3], "an instance named twice was copied twice"


def test_a_destination_that_cannot_be_reached_is_a_failure_of_each_instance(source):
    from dicomweb_io.http.retry import RetryPolicy

    nowhere = Endpoint("http://127.0.0.1:9/", retry=RetryPolicy.none(), timeouts=Timeouts(deadline=5)).connect()
    references = references_of(source)[:3]
    with InstanceCopier(source, nowhere) as copier:
        results = copier.copy(references)
    assert [type(result) for result in results] == [Failure] * 3
    assert {result.retryable for result in results} == {True}
    with InstanceCopier(source, nowhere, CopyOptions(on_existing="server")) as copier:
        results = copier.copy(references)
    assert [(type(result), result.reference) for result in results] == [(Failure, item) for item in references]


def test_verification_by_content_tells_the_level(source, serve, folder):
    server = serve(folder)
    web = Endpoint(server.url).connect()
    references = references_of(source)[:5]
    with InstanceCopier(source, web, CopyOptions(verify="content")) as copier:
        first = copier.copy(references)
        again = copier.copy(references)
    assert {(result.outcome, result.verified) for result in first} == {("stored", "file")}
    assert {(result.outcome, result.verified) for result in again} == {("exists", "file")}
    # Another object with the same UID is a difference that is reported, not "already there".
    stored = next(Path(folder).rglob(f"{references[0].sop_instance_uid}.dcm"))
    content = bytearray(stored.read_bytes())
    content[-1] ^= 0xFF
    stored.write_bytes(content)
    with InstanceCopier(source, web, CopyOptions(verify="content")) as copier:
        results = copier.copy(references)
    assert [type(result) for result in results] == [Failure] + [StoredInstance] * 4
    web.close()


def test_an_archive_is_copied_to_itself_with_one_request_in_flight(serve, folder):
    """The store of a batch goes on while the retrieve that fills the next one is open."""
    make_study(folder, series=2, instances=120, size=200)
    endpoint = Endpoint(serve(folder).url, limits=Limits(1), timeouts=Timeouts(deadline=60))
    summary = run_transfer(TransferJob(endpoint, endpoint, on_existing="server"), max_in_flight=1)
    assert (summary["found"], summary["transferred"]) == (240, 240), summary


def test_a_copy_can_be_cancelled(source, destination):
    asked = []

    def cancelled():
        asked.append(None)
        return len(asked) > 3

    with InstanceCopier(source, destination) as copier:
        with pytest.raises(WorkCancelled):
            copier.copy(references_of(source), room=Watched(cancelled))
    assert len(asked) == 4


def test_a_file_that_goes_while_it_is_copied_is_a_failure_of_its_instance(source, destination, tmp_path):
    references = references_of(source)
    paths = {path.name: path for path in (tmp_path / "source").rglob("*.dcm")}
    asked = []

    def remove():
        asked.append(None)
        if len(asked) == 12 + 3:
            # The third one that comes was found and is not stored yet.
            for path in paths.values():
                if Resource.of(row_of(path)) == references[2]:
                    path.unlink()
        return False

    def row_of(path):
        return Instance.from_path(path).reference

    with InstanceCopier(source, destination, memory_threshold=100) as copier:
        results = copier.copy(references, room=Watched(remove))
    assert [item.reference for item in results if isinstance(item, Failure)] == [references[2]]
    assert [item.outcome for item in results if isinstance(item, StoredInstance)] == ["stored"] * 23


def test_only_instances_are_copied(source, destination):
    with InstanceCopier(source, destination) as copier:
        with pytest.raises(ValueError, match="is a study"):
            copier.copy([Resource("1.2.3")])
    study = Resource(references_of(source)[0].study_instance_uid)
    assert set(expand_reference(source, study)) == set(references_of(source))


def test_a_spool_directory_that_goes_is_a_failure_of_each_instance(source, destination, tmp_path):
    references = references_of(source)
    options = CopyOptions(spool_directory=str(tmp_path / "gone"))
    with InstanceCopier(source, destination, options) as copier:
        results = copier.copy(references)
    assert [result.reference for result in results] == references
    assert all(isinstance(result, Failure) and "gone" in result.message for result in results)


@pytest.mark.parametrize("options", [{"on_existing": "overwrite"}, {"verify": "md5"}])
def test_policies_are_checked(source, destination, options):
    with pytest.raises(ValueError, match=r"must be one of"):
        InstanceCopier(source, destination, CopyOptions(**options))


def test_a_storer_reports_each_instance_in_order(source, destination, tmp_path):
    instances = [next(iter(source.iter_instances(reference))) for reference in references_of(source)[:3]]
    liar = Instance(Resource("1.2", "1.3", "1.4"), "1.2.840.10008.1.2.1", content=instances[0].read())
    storer = InstanceStorer(destination)
    results = storer.store([instances[0], liar, instances[1]])
    assert [type(result) for result in results] == [StoredInstance, Failure, StoredInstance]
    assert results[1].reference == liar.reference
    assert storer.store([]) == []


def test_a_listing_forgets_the_oldest_series_when_it_grows_too_large(source):
    references = references_of(source)
    asked = []

    class Counting:
        base_url = "test"

        def iter_search(self, query, *, limit=None):
            asked.append(query.series_instance_uid)
            return source.iter_search(query)

    known = SeriesListing(Counting(), max_uids=15)
    for reference in references:
        assert known.holds(reference)
    assert len(asked) == len(set(asked)) == 2
    assert not known.holds(Resource(references[-1].study_instance_uid, references[-1].series_instance_uid, "1.2.3"))
    assert len(asked) == 2
    assert known.holds(references[0])
    assert len(asked) == 3


def test_what_was_deleted_long_after_it_was_listed_is_copied_again(source, folder, monkeypatch):
    """A streaming pipeline keeps its copier for weeks."""
    (reference, *_) = references_of(source)
    with Endpoint(str(folder)).connect() as destination, InstanceCopier(source, destination) as copier:
        outcomes = []
        for lasts in (600, 600, -1):
            monkeypatch.setattr(listing, "LISTING_LASTS", lasts)
            outcomes += [result.outcome for result in copier.copy([reference])]
            if len(outcomes) == 2:
                destination.delete_resource(reference)
    assert outcomes == ["stored", "exists", "stored"]


def test_two_copiers_into_one_folder_at_once_agree(source, folder):
    references = references_of(source)
    barrier = threading.Barrier(2)

    def copy(order):
        client = Endpoint(str(folder)).connect()
        with InstanceCopier(source, client) as copier:
            barrier.wait(20)
            results = copier.copy(order)
        client.close()
        return results

    with ThreadPoolExecutor(2) as threads:
        results = list(threads.map(copy, [references, references[::-1]]))
    assert all(isinstance(result, StoredInstance) for part in results for result in part)
    files = list(Path(folder).rglob("*.dcm"))
    assert len(files) == len(references)
    originals = {path.read_bytes() for path in Path(source.base_url.removeprefix("file://")).rglob("*.dcm")}
    assert {path.read_bytes() for path in files} == originals
    assert not [path for path in Path(folder).rglob("*") if path.is_file() and path.suffix not in (".dcm", ".segment")]


def test_a_full_disk_ends_a_copy(source, serve, tmp_path, folder, monkeypatch):
    """What is left is not retrieved, and is done by the same command when there is room."""
    publish, written = LocalFolder.publish, []

    def full(self, path, *arguments, **options):
        if len(written) >= 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        written.append(path)
        return publish(self, path, *arguments, **options)

    server = serve(tmp_path / "source")
    job = TransferJob(Endpoint(server.url), Endpoint(str(folder)))
    with monkeypatch.context() as patch:
        patch.setattr(LocalFolder, "publish", full)
        summary = run_transfer(job, max_in_flight=1)
    assert (summary["transferred"], summary["found"]) == (5, 24)
    assert summary["not_tried"] >= 12
    assert any("takes no more files: No space left on device" in reason for reason in summary["reasons"])
    assert sum(requests_for(server, "series").values()) == 1
    summary = run_transfer(job)
    assert (summary["transferred"], summary["already_there"], exit_code(summary)) == (19, 5, 0)


# The same UIDs elsewhere ----------------------------------------------------------------------------------------------

OLD, NEW = Resource("1.2.1", "1.2.1.1", "9"), Resource("1.2.1", "1.2.1.2", "9")
MORE = Resource("1.2.1", "1.2.1.2", "10")


class Keeper:
    """A server that keeps the names of what it is sent, and may know an instance by its SOP Instance UID alone."""

    def __init__(self, answering, keeps, held=()):
        self.keeps = keeps
        self.held = dict.fromkeys(held)
        self.requests = []
        self.url = answering(self.answer).url

    def client(self, **facts):
        return Endpoint(self.url, profile=PROFILES["generic"].with_facts(**facts)).connect()

    def answer(self, request):
        if request.method == "POST":
            return self.store(request)
        within = request.path.strip("/").split("/")
        uids = request.parameters.get("SOPInstanceUID", "").replace("%2C", ",").replace("%5C", ",").split(",")
        found = [
            item
            for item in self.held
            if (item.study_instance_uid in within or within == ["instances"] or within == ["studies"])
            and (item.series_instance_uid in within or len(within) < 4)
            and (uids == [""] or item.sop_instance_uid in uids)
        ]
        if within == ["studies"]:
            row = {"0020000D": {"vr": "UI", "Value": ["1.2.1"]}, "00100020": {"vr": "LO", "Value": ["P "]}}
            return Reply.json([row] if found else [])
        return Reply.json([row_of(item) for item in found])

    def store(self, request):
        parts = re.findall(
            rb"\x08\x00\x18\x00UI..([\d.]+)\0?.*?\x0d\x00UI..([\d.]+)\0?.*?\x0e\x00UI..([\d.]+)", request.body, re.S
        )
        sent = [Resource(*(value.decode() for value in (study, series, sop))) for sop, study, series in parts]
        self.requests.append([item.sop_instance_uid for item in sent])
        for item in sent:
            same = [held for held in self.held if held.sop_instance_uid == item.sop_instance_uid]
            if self.keeps == "overwrites":
                for held in same:
                    del self.held[held]
            if not same or self.keeps != "ignores":
                self.held[item] = None
        named = [{"00081155": {"vr": "UI", "Value": [item.sop_instance_uid]}} for item in sent]
        return Reply.json({"00081199": {"vr": "SQ", "Value": named}})


def row_of(reference):
    return {UID_TAGS[level]: {"vr": "UI", "Value": [uid]} for level, uid in reference.uids.items()}


def put(folder, reference, patient="P"):
    (folder / f"{'-'.join(reference.uids.values())}.dcm").write_bytes(
        make_bytes(*reference.uids.values(), PatientID=patient)
    )


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize(
    ("keeps", "fact"),
    [
        ("both", None),
        ("both", "keeps_both"),
        ("ignores", None),
        ("ignores", "ignores"),
        ("overwrites", None),
        ("overwrites", "overwrites"),
    ],
)
def test_one_uid_in_two_series_is_two_instances_or_a_failure(answering, folder, keeps, fact, held):
    for reference in (NEW, MORE) if held else (OLD, NEW, MORE):
        put(folder, reference)
    there = Keeper(answering, keeps, [OLD] if held else [])
    job = TransferJob(Endpoint(str(folder)), Endpoint(there.url))
    source = job.source.connect()
    summary = run_transfer(job, clients=(source, there.client(same_uid_elsewhere=fact)))
    source.close()
    assert all(len(uids) == len(set(uids)) for uids in there.requests), "instances share a UID in one request"
    kept = {"both": {OLD, NEW, MORE}}.get(keeps, {MORE})
    assert kept <= set(there.held)
    if keeps == "both":
        assert (exit_code(summary), summary["failed"]) == (0, 0)
        return
    assert (exit_code(summary), summary["failed"]) == (1, 1)
    assert "has this SOP Instance UID in another series" in next(iter(summary["reasons"]))
    if fact is not None and held:
        assert OLD in there.held, "what the archive had is lost although the profile says that it would be"


@pytest.mark.parametrize("keeps", ["both", "ignores", "overwrites"])
@pytest.mark.parametrize("entry", ["copy", "storer", "client", "store_instances"])
@pytest.mark.parametrize("on_existing", ["server", "skip", "error"])
def test_what_was_sent_under_one_uid_is_looked_for_whoever_sends_it(answering, folder, keeps, entry, on_existing):
    for reference in (OLD, NEW, MORE):
        put(folder, reference)
    there = Keeper(answering, keeps)
    instances = [Instance.from_path(path) for path in sorted(folder.glob("*.dcm"))]
    with Endpoint(str(folder)).connect() as source, there.client() as client:
        if entry == "copy":
            job = TransferJob(Endpoint(str(folder)), Endpoint(there.url), on_existing=on_existing)
            summary = run_transfer(job, clients=(source, client))
            outcomes = [StoredInstance] * summary["transferred"] + [Failure] * summary["failed"]
        elif entry == "storer":
            outcomes = [type(one) for one in InstanceStorer(client, on_existing=on_existing).store(instances)]
        elif entry == "client":
            outcomes = [type(one) for one in client.iter_store_instances(instances, on_existing=on_existing)]
        else:
            try:
                client.store_instances(instances)
                outcomes = [StoredInstance] * 3
            except StoreError as error:
                outcomes = [type(one) for one in error.outcomes]
    assert Counter(outcomes) == ({StoredInstance: 3} if keeps == "both" else {StoredInstance: 2, Failure: 1})


@pytest.mark.parametrize("look", ["SOPInstanceUID=9", "/studies?StudyInstanceUID"])
def test_a_look_that_fails_once_leaves_the_next_ones_in_force(answering, folder, look):
    put(folder, NEW, "P" if "SOP" in look else "Q")
    there = Keeper(answering, "ignores", [OLD])
    before = []

    def fails_once(request):
        if look in request.target and not before:
            before.append(request.target)
            return Reply(503)
        return there.answer(request)

    job = TransferJob(Endpoint(str(folder)), Endpoint(answering(fails_once).url, retry=RetryPolicy.none()))
    for _ in range(2):
        summary = run_transfer(job)
        assert (summary["transferred"], summary["failed"], exit_code(summary)) == (0, 1, 1)
    assert before
    assert list(there.held) == [OLD]


@pytest.mark.parametrize(
    ("patient", "allowed", "arrives"), [("Q", False, False), ("Q", True, True), ("P", False, True)]
)
@pytest.mark.parametrize("kind", ["server", "folder"])
def test_a_study_of_another_patient_is_withheld(answering, folder, tmp_path, kind, patient, allowed, arrives):
    put(folder, MORE, patient)
    if kind == "server":
        destination = Keeper(answering, "both", [OLD]).url
    else:
        destination = tmp_path / "destination"
        destination.mkdir()
        put(destination, OLD)
    job = TransferJob(Endpoint(str(folder)), Endpoint(str(destination)), allow_other_patient=allowed)
    failures = []
    summary = run_transfer(job, on_failure=failures.append)
    assert (summary["transferred"], summary["failed"], exit_code(summary)) == ((1, 0, 0) if arrives else (0, 1, 1))
    assert all("under another PatientID" in failure.message and failure.reference == MORE for failure in failures)


@pytest.mark.parametrize(("fact", "allowed", "failed"), [(None, False, 1), (None, True, 0), ("keeps_both", False, 0)])
def test_a_study_of_two_patients_is_stored_of_the_first_alone(answering, folder, fact, allowed, failed):
    for reference, patient in ((OLD, "P"), (MORE, "Q")):
        put(folder, reference, patient)
    there = Keeper(answering, "both")
    job = TransferJob(Endpoint(str(folder)), Endpoint(there.url), allow_other_patient=allowed)
    with job.source.connect() as source, there.client(same_uid_elsewhere=fact) as destination:
        summary = run_transfer(job, clients=(source, destination))
    assert (summary["failed"], summary["transferred"]) == (failed, 2 - failed)


@pytest.mark.parametrize(
    ("how", "transferred", "complete"),
    [
        ([fault("empty_page", times=None, offset=20)], 20, False),
        ([fault("empty_page", first=2, offset=200)], 210, True),
        ([fault("lying_total", times=None, difference=7)], 210, False),
        ([fault("lying_total", times=None, difference=-15)], 210, True),
        ([fault("lying_total", times=None, difference=-205)], 210, True),
        ([fault("null_row", times=None, row=5)], 208, False),
        ([fault("lower_case_tags", times=None)], 210, True),
        ([fault("ignore_limit", times=None)], 210, True),
        ([fault("ignore_limit", times=None), fault("ignore_offset", times=None)], 210, True),
        (
            [fault("ignore_limit", times=None), fault("ignore_offset", times=None), fault("lying_total", difference=0)],
            210,
            True,
        ),
    ],
    ids=lambda value: "+".join(one.action for one in value) if isinstance(value, list) else None,
)
def test_many_instances_of_servers_that_say_odd_things(serve, tmp_path, folder, how, transferred, complete):
    make_study(tmp_path / "many", instances=210, size=200)
    faults = [fault(one.action, path="/instances$", first=one.first, times=one.times, **one.options) for one in how]
    server = serve(tmp_path / "many", faults=faults)
    source = Endpoint(server.url, profile="generic")
    summary = run_transfer(TransferJob(source, Endpoint(str(folder))))
    assert summary["transferred"] == transferred
    assert (summary["search_failures"] == 0) is complete
    assert exit_code(summary) == (0 if complete else 1)
