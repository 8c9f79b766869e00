"""Change sources: by search on the test server and on folders, by feed on Orthanc and on a change feed over HTTP."""

from __future__ import annotations

import itertools
import json
import pickle
import tempfile
from datetime import datetime, timedelta, timezone
from urllib.parse import parse_qs

import pydicom
import pytest
from hypothesis import given, strategies as st

from dicomweb_io.changes import _LISTINGS, Cursor, change_source, check_start, parse_moment, uids_of_orthanc
from dicomweb_io.elements import Instance, Resource
from dicomweb_io.endpoint import Endpoint
from dicomweb_io.errors import SearchIncompleteError
from dicomweb_io.http.retry import RetryPolicy
from dicomweb_io.profiles import PROFILES
from dicomweb_io.testing.faults import fault
from dicomweb_io.testing.samples import make_study, synthetic_instance
from tests.answering import Reply

ONCE = RetryPolicy.none()


_counter = itertools.count()
TODAY = f"{datetime.now(timezone.utc):%Y%m%d}"


def store(place, *, studies=1, instances=3, study_date=TODAY, modality="CT"):
    """Stores new studies at an endpoint; gives references to their instances."""
    with tempfile.TemporaryDirectory() as scratch:
        paths = make_study(scratch, studies, 1, instances, 100, seed=("changes", next(_counter)))
        for path in paths:
            dataset = pydicom.dcmread(path)
            dataset.StudyDate, dataset.Modality = study_date, modality
            dataset.save_as(path)
        return put(place, paths)


def put(place, paths):
    client = Endpoint.of(place).connect()
    client.store_instances([str(path) for path in paths])
    client.close()
    return {Instance.from_path(path).reference for path in paths}


class Follower:
    """Asks a change source again and again, each time with a cursor that went through JSON."""

    def __init__(self, endpoint, *arguments, start="now", max_changes=10_000, **options):
        self.source = change_source(endpoint, *arguments, **options)
        self.client = Endpoint.of(endpoint).connect()
        self.start, self.max_changes = start, max_changes
        self.cursor = None
        self.more = False
        self.failures = []

    def poll(self):
        changes = self.source.poll(self.client, self.cursor, start=self.start, max_changes=self.max_changes)
        self.cursor = Cursor.from_json(json.loads(json.dumps(changes.cursor.to_json())))
        self.more = changes.more
        self.failures += changes.failures
        found = list(changes.references)
        assert len(found) == len(set(found))
        return set(found)

    def all(self):
        found = self.poll()
        while self.more:
            again = self.poll()
            assert not found & again, "told twice"
            found |= again
        return found


# By search ------------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["server", "folder"])
def place(request, serve, folder):
    return serve(folder).url if request.param == "server" else str(folder)


@pytest.mark.parametrize("level", ["instance", "study"])
def test_what_comes_later_is_told_once(place, level):
    def wanted(references):
        return {Resource(item.study_instance_uid) if level == "study" else item for item in references}

    old = store(place)
    follower = Follower(place, level, start="all")
    assert follower.poll() == wanted(old)
    assert follower.poll() == set()
    new = store(place) | store(place)
    assert follower.poll() == wanted(new)
    assert follower.poll() == set()


def test_now_tells_nothing_that_is_there_already(place):
    store(place)
    follower = Follower(place)
    assert follower.poll() == set()
    new = store(place)
    assert follower.poll() == new


def test_a_late_instance_of_a_known_study_is_found(place, tmp_path):
    first = store(place, study_date="20200101")
    follower = Follower(place, start="all", method="list")
    assert follower.poll() == first
    study = next(iter(first)).study_instance_uid
    late = synthetic_instance(100, tmp_path / "late.dcm", seed="late", study_instance_uid=study)
    added = put(place, [late])
    assert follower.poll() == added


def test_an_answer_ends_at_the_most_and_goes_on(place):
    there = store(place, instances=10)
    follower = Follower(place, start="all", max_changes=4)
    assert len(follower.poll()) == 4
    assert follower.more
    follower.cursor = None
    assert follower.all() == there
    assert follower.all() == set()


def test_filters_hold(place):
    ct, mr = store(place, modality="CT"), store(place, modality="MR")
    follower = Follower(place, start="all", search_filters={"Modality": "MR"})
    assert follower.poll() == mr
    store(place, modality="CT")
    more = store(place, modality="MR")
    assert follower.poll() == more
    assert ct


def test_the_window_of_study_dates_moves_and_forgets(serve, folder):
    today = datetime.now(timezone.utc)
    recent = store(folder, study_date=f"{today:%Y%m%d}")
    old = store(folder, study_date="20200101")
    server = serve(folder)
    follower = Follower(server.url, start="all", lookback=timedelta(days=3), method="study_date")
    assert follower.poll() == recent | old
    assert follower.poll() == set()
    sent = [parse_qs(record.query).get("StudyDate", [""])[0] for record in server.records]
    bound = f"{today - timedelta(days=4):%Y%m%d}-"
    assert sent[0] == ""
    assert sent[-1] in (bound, f"{today - timedelta(days=3):%Y%m%d}-")
    assert set(follower.cursor.seen) == {f"{today:%Y%m%d}"}, "what cannot be listed any more is to be forgotten"
    # An archive that was not asked for a month is asked about that month.
    month_ago = today - timedelta(days=30)
    follower.cursor = Cursor("study_date", month_ago.isoformat(), "", follower.cursor.seen)
    assert follower.poll() == set()
    assert parse_qs(server.records[-1].query)["StudyDate"] == [f"{month_ago - timedelta(days=4):%Y%m%d}-"]


def test_a_start_in_the_past_is_the_first_window(serve, folder):
    early, late = store(folder, study_date="20190505"), store(folder, study_date="20210505")
    follower = Follower(serve(folder).url, start=datetime(2021, 1, 3).date(), method="study_date")
    assert follower.poll() == late
    assert early


@pytest.mark.parametrize("level", ["study_change", "instance"])
def test_a_listing_reports_what_is_dated_since_the_start_and_then_all_that_arrives(folder, level):
    for day in ("20200101", "20200301"):
        store(folder, instances=1, study_date=day)
    watcher = Follower(folder, level, start=datetime(2020, 2, 1))
    assert len(watcher.poll()) == 1
    store(folder, instances=1, study_date="19990101")
    assert len(watcher.poll()) == 1


def test_receive_times_are_asked_for_and_forgotten(serve, folder):
    there = store(folder)
    server = serve(folder)
    endpoint = Endpoint(server.url, profile="dcm4chee")
    follower = Follower(endpoint, start="all", lookback=3600)
    assert follower.source.method == "receive_time"
    assert follower.poll() == there
    assert follower.poll() == set()
    now = datetime.now(timezone.utc)
    received = parse_qs(server.records[-1].query)["StudyReceiveDateTime"][0]
    bound = datetime.strptime(received, "%Y%m%d%H%M%S-").replace(tzinfo=timezone.utc)
    assert timedelta(hours=25) <= now - bound <= timedelta(hours=26)
    long_ago = {"20200101": frozenset({"x"})}
    follower.cursor = Cursor("receive_time", follower.cursor.position, "", {**follower.cursor.seen, **long_ago})
    assert follower.poll() == set()
    assert "20200101" not in follower.cursor.seen


def test_a_poll_that_fails_loses_nothing(serve, folder):
    server = serve(folder)
    follower = Follower(Endpoint(server.url, retry=ONCE))
    assert follower.poll() == set()
    new = store(folder)
    server.stop()
    with pytest.raises(OSError, match=r"studies|instances"):
        follower.poll()
    follower.client = Endpoint(serve(folder).url).connect()
    assert follower.poll() == new


def test_a_search_that_stays_incomplete_tells_what_came_and_is_told_once(serve, folder):
    faults = [fault("lying_total", times=None), fault("null_row", times=None)]
    follower = Follower(serve(folder, faults=faults).url, start="all", method="study_date")
    there = store(folder)
    found = follower.poll()
    assert found < there
    assert len(found) == 2
    assert [failure.retryable for failure in follower.failures] == [False]
    window, follower.failures = follower.cursor.position, []
    assert follower.poll() == set()
    assert follower.failures == []
    assert follower.cursor.position == window == ""
    with pytest.raises(SearchIncompleteError):
        Follower(follower.client.base_url).poll()


def in_chunks(source, client, size, between=lambda number: None, cursor=None):
    """What one poll gives in answers of some size, and the cursor behind it."""
    found, number = [], 0
    while True:
        changes = source.poll(client, cursor, start="all", max_changes=size)
        found += changes.references
        cursor = changes.cursor
        if not changes.more:
            return found, cursor
        number += 1
        between(number)


def test_a_poll_in_several_answers_lists_once(serve, folder):
    there = store(folder, instances=60)
    server = serve(folder)
    client = Endpoint(server.url, profile=PROFILES["generic"].with_facts(page_sizes=(10, 10, 10))).connect()
    source = change_source(server.url, method="list")
    in_one = source.poll(client, None, start="all")
    asked = len(server.records)
    assert asked >= 7
    found, cursor = in_chunks(source, client, 7)
    assert len(server.records) == 2 * asked, "what was listed is listed again for each answer"
    assert (len(found), set(found)) == (60, there) == (60, set(in_one.references))
    assert cursor.listing == ""
    assert source.poll(client, cursor).references == ()


def test_an_answer_that_is_asked_for_again_is_the_same(place):
    there = store(place, instances=10)
    source, client = change_source(place, method="list"), Endpoint.of(place).connect()
    first = source.poll(client, None, start="all", max_changes=4)
    # A bundle that failed is repeated with the cursor from before, here or in another process.
    second, again = (source.poll(client, first.cursor, max_changes=4) for _ in range(2))
    elsewhere = Cursor.from_json(first.cursor.to_json())
    assert elsewhere.listing == ""
    assert second.references == again.references == source.poll(client, elsewhere, max_changes=4).references
    rest, _ = in_chunks(source, client, 4, cursor=again.cursor)
    assert {*first.references, *again.references, *rest} == there
    assert len(first.references) + len(again.references) + len(rest) == 10


@pytest.mark.parametrize("restarted", [False, True])
def test_an_archive_that_changes_between_answers_loses_nothing(place, restarted, monkeypatch):
    there = store(place, instances=20)
    source, client = change_source(place, method="list"), Endpoint.of(place).connect()
    other = Endpoint.of(place).connect()
    gone = sorted(there, key=lambda item: item.uri)[::9]
    added = set()

    def change(number):
        if number == 1:
            for item in gone:
                other.delete_instance(item.study_instance_uid, item.series_instance_uid, item.sop_instance_uid)
        added.update(store(place, instances=2))
        # Another watch of the process looks at the same archive through the same client.
        change_source(place, method="list").poll(client, None, start="all")
        if restarted:
            _LISTINGS.start_anew()

    found, cursor = in_chunks(source, client, 5, between=change)
    found += source.poll(client, cursor).references
    assert len(found) == len(set(found)), "told twice"
    assert set(found) | set(gone) == there | added


def test_a_clock_that_was_ahead_hides_nothing(serve, folder):
    url = serve(folder).url
    store(url)
    follower = Follower(url, method="study_date")
    assert follower.poll() == set()
    ahead = datetime.now(timezone.utc) + timedelta(days=400)
    follower.cursor = Cursor("study_date", ahead.isoformat(), "", follower.cursor.seen)
    new = store(url)
    assert follower.poll() == new
    assert follower.poll() == set()


@pytest.mark.parametrize("counted", [True, False])
def test_a_study_is_told_when_its_number_of_instances_changes(place, tmp_path, monkeypatch, counted):
    if not counted:
        # Some archives do not say it in a search.
        monkeypatch.setattr("dicomweb_io.changes._NUMBER", "StudyDescription")
    quiet, growing = store(place), store(place)
    study = Resource(next(iter(growing)).study_instance_uid)
    now = Follower(place, "study_change", method="list")
    everything = Follower(place, "study_change", method="list", start="all")
    assert now.poll() == set()
    assert everything.poll() == {study, Resource(next(iter(quiet)).study_instance_uid)}
    for number in range(2):
        seed, path = f"late {number}", tmp_path / f"{number}.dcm"
        put(place, [synthetic_instance(100, path, seed=seed, study_instance_uid=study.study_instance_uid)])
        assert everything.poll() == now.poll() == {study}
        assert everything.poll() == now.poll() == set()
    # Only the last number is remembered, also of a cursor that remembers studies without one.
    assert sum(map(len, everything.cursor.seen.values())) == 2
    plain = Follower(place, "study", method="list", start="all")
    plain.poll()
    now.cursor = plain.cursor
    assert len(now.poll()) == 2
    assert now.poll() == set()


# Orthanc --------------------------------------------------------------------------------------------------------------


def test_orthanc_tells_studies_that_grow(orthanc, tmp_path):
    follower = Follower(orthanc.url, "study_change")
    assert follower.all() == set()
    new = store(orthanc.url, studies=2)
    studies = {Resource(item.study_instance_uid) for item in new}
    assert follower.all() == studies
    study = next(iter(studies))
    late = synthetic_instance(100, tmp_path / "late.dcm", seed="late", study_instance_uid=study.study_instance_uid)
    put(orthanc.url, [late])
    assert follower.all() == {study}
    assert follower.all() == set()


@pytest.mark.parametrize("level", ["instance", "study"])
def test_orthanc_tells_its_changes(orthanc, level):
    def wanted(references):
        return {Resource(item.study_instance_uid) if level == "study" else item for item in references}

    old = store(orthanc.url)
    everything, new_only = Follower(orthanc.url, level, start="all"), Follower(orthanc.url, level)
    assert everything.all() >= wanted(old)
    assert everything.cursor.method == "orthanc"
    assert new_only.poll() == set()
    new = store(orthanc.url, studies=2)
    assert everything.all() == new_only.all() == wanted(new)
    assert everything.all() == new_only.all() == set()


def test_orthanc_in_small_answers_with_filters_and_deletions(orthanc):
    follower = Follower(orthanc.url, max_changes=3)
    filtered = Follower(orthanc.url, search_filters={"Modality": "MR"})
    started = Follower(orthanc.url, start=datetime.now(timezone.utc) + timedelta(hours=1))
    for one in (follower, filtered, started):
        one.poll()
    ct, mr = store(orthanc.url, instances=5), store(orthanc.url, instances=5, modality="MR")
    gone = sorted(ct, key=lambda item: item.uri)[0]
    client = Endpoint(orthanc.url).connect()
    client.delete_instance(gone.study_instance_uid, gone.series_instance_uid, gone.sop_instance_uid)
    assert follower.all() == (ct | mr) - {gone}
    assert filtered.all() == mr
    assert started.all() == set(), "what came before the start was told"
    assert uids_of_orthanc(client, ["no-such-id"], "instance") == {}


def test_a_log_of_orthanc_that_is_cut_ends_no_watch(orthanc):
    store(orthanc.url)
    follower = Follower(orthanc.url)
    assert follower.poll() == set()
    follower.client.transport.request("DELETE", f"{orthanc.url.rpartition('/')[0]}/changes")
    assert follower.poll() == set()
    new = store(orthanc.url)
    assert follower.poll() == new


def test_another_orthanc_at_the_address_is_noticed(orthanc):
    follower = Follower(orthanc.url)
    follower.cursor = Cursor("orthanc", str(10**9))
    with pytest.raises(ValueError, match="a different one now"):
        follower.poll()


def test_a_server_without_the_feed_is_told_plainly(serve, folder):
    endpoint = Endpoint(serve(folder).url, profile="orthanc", retry=ONCE)
    with pytest.raises(OSError, match=r"no log of changes of Orthanc, choose another method"):
        Follower(endpoint).poll()
    guessed = Follower(endpoint.replace(profile="auto"), start="all")
    assert guessed.poll() == set()
    assert guessed.cursor.method == "study_date"
    new = store(endpoint)
    assert guessed.poll() == new


# Azure ----------------------------------------------------------------------------------------------------------------


class Feed:
    """The change feed of Azure's service as documented: rows in order of sequence, a window, an offset and a limit."""

    def __init__(self, answering):
        self.rows = []
        self.requests = []
        self.status = 200
        self.endpoint = Endpoint(answering(self.answer, path="/v2").url, profile="azure", retry=ONCE)

    def answer(self, request):
        query = {key: values[0] for key, values in parse_qs(request.query).items()}
        self.requests.append((request.path, query))
        if self.status != 200:
            return Reply(self.status)
        if request.path == "/v2/changefeed/latest":
            return Reply.json(self.rows[-1]) if self.rows else Reply(204)
        assert request.path == "/v2/changefeed"
        assert query["includemetadata"] == "false"
        low = parse_moment(query.get("startTime", "2000-01-01T00:00:00Z"))
        rows = [row for row in self.rows if parse_moment(row["timestamp"]) >= low]
        offset, limit = int(query["offset"]), int(query["limit"])
        assert 1 <= limit <= 200
        return Reply.json(rows[offset : offset + limit])

    def add(self, number, seconds, *, study="1.2.3", action="create", state="current", **more):
        moment = datetime(2026, 1, 1, tzinfo=timezone.utc) + timedelta(seconds=seconds)
        row = {
            "sequence": number,
            "studyInstanceUid": study,
            "seriesInstanceUid": f"{study}.1",
            "sopInstanceUid": f"{study}.1.{number}",
            "action": action,
            "timestamp": f"{moment:%Y-%m-%dT%H:%M:%S}.1234567Z",
            "state": state,
            **more,
        }
        self.rows.append(row)
        self.rows.sort(key=lambda item: item["timestamp"])
        return Resource(study, f"{study}.1", f"{study}.1.{number}")


@pytest.fixture
def feed(answering):
    return Feed(answering)


def test_azure_tells_its_feed_once_and_finds_late_rows(feed):
    early = {feed.add(number, number) for number in range(1, 451)}
    follower = Follower(feed.endpoint, start="all")
    assert follower.source.method == "azure"
    assert follower.all() == early
    assert [query["offset"] for _, query in feed.requests] == ["0", "200", "400", "450"]
    assert follower.all() == set()
    # A row that appears late, with a time before the last one that was read.
    late = feed.add(451, 430)
    new = feed.add(452, 451)
    assert follower.all() == {late, new}
    assert follower.all() == set()
    assert sum(map(len, follower.cursor.seen.values())) <= 64, "the whole feed is remembered"


def test_azure_from_now_and_from_a_moment(feed):
    first = feed.add(1, 0)
    now = Follower(feed.endpoint)
    later = Follower(feed.endpoint, start=datetime(2026, 1, 1, 0, 0, 5))
    assert now.poll() == later.poll() == set()
    second, third = feed.add(2, 4), feed.add(3, 6)
    assert now.poll() == {second, third}
    assert later.poll() == {third}
    assert first not in now.poll()


def test_azure_with_an_empty_feed_at_first(feed):
    follower = Follower(feed.endpoint)
    assert follower.poll() == set()
    new = feed.add(1, 0)
    assert follower.poll() == {new}


def test_azure_deletions_updates_and_damaged_rows(feed):
    feed.add(1, 0, state="deleted")
    feed.add(2, 1, action="delete", state="deleted")
    feed.add(3, 2, action="update")
    replaced = feed.add(4, 3, state="replaced")
    feed.add(5, 4, sopInstanceUid=None)
    feed.add(6, 5, studyInstanceUid="no@uid")
    follower = Follower(feed.endpoint, start="all")
    assert follower.poll() == {replaced}
    assert len(follower.failures) == 2
    assert follower.poll() == set()
    assert len(follower.failures) == 2, "a damaged row was told twice"


def test_azure_studies_are_told_once(feed):
    for number in range(1, 7):
        feed.add(number, number, study=f"1.2.{number % 2}")
    follower = Follower(feed.endpoint, "study", start="all")
    assert follower.poll() == {Resource("1.2.0"), Resource("1.2.1")}
    feed.add(7, 5000, study="1.2.1")
    feed.add(8, 6000, study="1.2.2")
    assert follower.poll() == {Resource("1.2.2")}


def test_azure_tells_studies_that_grow(feed):
    follower = Follower(feed.endpoint, "study_change", start="all")
    for number in range(1, 7):
        feed.add(number, number, study=f"1.2.{number % 2}")
    assert follower.poll() == {Resource("1.2.0"), Resource("1.2.1")}
    feed.add(7, 5000, study="1.2.1")
    assert follower.poll() == {Resource("1.2.1")}
    assert follower.poll() == set()


def test_azure_in_small_answers(feed):
    there = {feed.add(number, number // 100) for number in range(1, 601)}
    follower = Follower(feed.endpoint, start="all", max_changes=150)
    assert follower.all() == there
    assert follower.all() == set()


def test_azure_refusals_are_told(feed):
    feed.status = 404
    with pytest.raises(OSError, match="choose another method"):
        Follower(feed.endpoint).poll()


# What they share ------------------------------------------------------------------------------------------------------


def test_methods_are_chosen_by_profile():
    def method(url, **options):
        return change_source(url, **options).method

    assert method("/data") == "list"
    assert method("https://pacs.example/rs") == "study_date"
    assert method("https://pacs.example/rs", search_filters={"StudyDate": "20260101-"}) == "list"
    assert method("https://pacs.example/dicom-web") == "orthanc or study_date"
    assert method(Endpoint("https://pacs.example/x", profile="orthanc")) == "orthanc"
    assert method("https://pacs.example/dicom-web", method="list") == "list"
    assert method("https://pacs.example/dcm4chee-arc/aets/A/rs") == "receive_time"
    assert method("https://w-s.dicom.azurehealthcareapis.com/v2") == "azure"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"level": "series"}, "level must be"),
        ({"method": "magic"}, "method must be one of"),
        ({"lookback": -1}, "lookback must be 0 or more"),
        ({"search_filters": {"Modalit": "CT"}}, "Modalit"),
        ({"method": "study_date", "search_filters": {"StudyDate": "2026"}}, "must not name StudyDate"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        change_source("https://pacs.example/rs", **arguments)
    with pytest.raises(ValueError, match="is a folder"):
        change_source("/data", method="orthanc")


@pytest.mark.parametrize("start", ["yesterday", 5, None])
def test_wrong_starts_are_refused(start):
    with pytest.raises((TypeError, ValueError), match="start must be"):
        check_start(start)


def test_cursors_belong_to_their_method(folder):
    follower = Follower(str(folder))
    follower.cursor = Cursor("orthanc", "5")
    with pytest.raises(ValueError, match="made by the method 'orthanc'"):
        follower.poll()


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        {"version": 2, "method": "list", "position": "", "start": "", "seen": {}},
        {"version": 1, "method": "list", "position": 5, "start": "", "seen": {}},
        {"version": 1, "method": "list", "position": "", "start": "", "seen": {"x": "y"}},
        {"version": 1, "method": "list", "position": "", "start": "", "seen": []},
    ],
)
def test_what_is_no_cursor_is_refused(value):
    with pytest.raises(ValueError, match="not a cursor"):
        Cursor.from_json(value)


@given(
    st.text(),
    st.text(),
    st.dictionaries(st.text(max_size=5), st.frozensets(st.text(max_size=5), max_size=4), max_size=4),
)
def test_cursors_survive_json_and_pickling(position, start, seen):
    cursor = Cursor("list", position, start, seen)
    for copy in (Cursor.from_json(json.loads(json.dumps(cursor.to_json()))), pickle.loads(pickle.dumps(cursor))):
        assert (copy.method, copy.position, copy.start, dict(copy.seen)) == ("list", position, start, seen)


@given(
    st.datetimes(min_value=datetime(1900, 1, 2), max_value=datetime(2200, 1, 1)),
    st.integers(0, 7),
    st.sampled_from(["Z", "z", "+00:00", ""]),
)
def test_moments_are_read_with_any_number_of_digits(moment, digits, zone):
    fraction = f"{moment.microsecond:06d}0"[:digits]
    text = f"{moment:%Y-%m-%dT%H:%M:%S}".rjust(19, "0") + (f".{fraction}" if digits else "") + zone
    expected = moment.replace(microsecond=int(fraction[:6].ljust(6, "0") or 0), tzinfo=timezone.utc)
    assert parse_moment(text) == expected
