"""How far `ReadAhead` reads ahead, and that its rows come out as they went in."""

from __future__ import annotations

import math
import threading
from contextlib import nullcontext
from dataclasses import replace

import apache_beam as beam
import pytest
from apache_beam.testing.util import assert_that, equal_to

from dicomweb_io.elements import SearchPage
from dicomweb_io.endpoint import Endpoint
from dicomweb_io.errors import PagingError
from dicomweb_io.paging import Beginning, PageRequest, Paging, row_key
from dicomweb_io.pool import BoundedPool
from dicomweb_io.profiles import GENERIC
from dicomweb_io.queries import make_query
from dicomweb_io.testing.samples import make_study
from dicomweb_io.testing.server.behaviour import Limits
from dicomweb_io.testing.server.behaviours import behaviour_of as behaviour
from dicomweb_io.transforms import SearchForInstances, SearchForSeries
from dicomweb_io.transforms.row_range import PackedPage, ReadAhead
from dicomweb_io.transforms.search import _Plan
from tests.answering import Reply

QUERY = make_query("study")


class Rows:
    """An archive of so many studies that remembers at which offsets it was asked."""

    base_url = "https://pacs.example"

    def __init__(self, number):
        self.number = number
        self.offsets = []
        self._lock = threading.Lock()

    def search_page(self, query, *, offset, limit, surplus=True):
        with self._lock:
            self.offsets.append(offset)
        rows = [
            {"0020000D": {"vr": "UI", "Value": [f"1.{row}"]}} for row in range(self.number)[offset : offset + limit]
        ]
        return SearchPage(rows, offset, limit)


@pytest.fixture
def pool():
    pool = BoundedPool(8)
    yield pool
    pool.close()


def read(client, pool, start, *, stop=None, page_size=10, full=True, total=None, offset_works=True):
    """The offsets of the rows that come from `start` on."""
    beginning = Beginning(total=total, full=full, offset_works=offset_works)
    paging = Paging(GENERIC, QUERY, start=start, page_size=page_size, beginning=beginning)
    return [offset for offset, _ in ReadAhead(client, QUERY, pool, paging, lambda: stop)]


@pytest.mark.parametrize("offset_works", [False, True])
def test_behind_a_short_answer_one_page_is_looked_at_alone(pool, offset_works):
    client = Rows(3)
    assert read(client, pool, 3, full=False, page_size=3, offset_works=offset_works) == []
    assert client.offsets == [3]


@pytest.mark.parametrize("total", [95, 100, 60])
def test_a_total_is_read_up_to_at_once_and_then_page_after_page(pool, total):
    client = Rows(100)
    assert read(client, pool, 10, total=total) == list(range(10, 100))
    # Wrong totals cost no row; behind them nothing is asked for before it is known to be needed.
    assert sorted(client.offsets) == list(range(10, 101, 10))


def test_without_a_total_reading_ahead_grows(pool):
    client = Rows(35)
    assert read(client, pool, 10, full=False) == list(range(10, 35))
    assert {10, 20, 30} <= set(client.offsets)
    # One page, then two, then four.
    assert len(client.offsets) <= 1 + 2 + 4


def test_nothing_behind_the_end_of_the_range_is_asked_for(pool):
    client = Rows(100)
    assert read(client, pool, 10, stop=45) == list(range(10, 45))
    assert sorted(client.offsets) == [10, 20, 30, 40]


@pytest.mark.parametrize("profile", ["generic", "orthanc", "google", "azure"])
def test_a_result_of_one_row_takes_few_requests(serve, tmp_path, profile):
    make_study(tmp_path / "one", instances=1, size=100)
    server = serve(tmp_path / "one", behaviour=behaviour("generic"))
    with beam.Pipeline(runner="FnApiRunner") as p:
        rows = p | SearchForSeries(Endpoint(server.url, profile=profile))
        assert_that(rows | beam.combiners.Count.Globally(), equal_to([1]))
    searches = [record for record in server.records if record.path.endswith("/series")]
    assert len(searches) <= 2, [record.query for record in searches]


def test_an_announced_total_saves_requests(serve, tmp_path):
    make_study(tmp_path / "some", instances=20, size=100)
    caps = Limits(5, 5, 5)
    server = serve(
        tmp_path / "some",
        behaviour=replace(behaviour("generic"), max_limit=caps, default_limit=caps, total_header=True),
    )
    with beam.Pipeline(runner="FnApiRunner") as p:
        rows = p | SearchForInstances(server.url)
        assert_that(rows | beam.combiners.Count.Globally(), equal_to([20]))
    assert len(server.records) <= 5, [record.query for record in server.records]


def test_rows_that_wait_come_out_as_they_went_in():
    rows = [
        {"0020000D": {"vr": "UI", "Value": [f"1.{number}"]}, "00081030": {"vr": "LO", "Value": ["\udcff", None]}}
        for number in range(25)
    ]
    rows[3]["00189087"] = {"vr": "FD", "Value": [math.inf, 10**40, -0.0, 1e308]}
    rows[4] = {"00100010": {"vr": "PN", "Value": [{"Alphabetic": "A^B"}]}}
    keys = [row_key(row, "study") for row in rows]
    client = Rows(0)
    client.search_page = lambda query, *, offset, limit: SearchPage(rows[offset : offset + limit], offset, limit)
    page = PackedPage.read(client, QUERY, PageRequest(0, 25))
    assert list(page.rows()) == rows
    assert page.evidence.keys == keys


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("offset_works", [True, False])
def test_ignored_offsets_are_noticed_whether_rows_have_uids_or_not(pool, named, offset_works):
    def ignoring(query, *, offset, limit):
        client.offsets.append(offset)
        tag = "0020000D" if named else "00080050"
        return SearchPage([{tag: {"vr": "UI", "Value": [f"1.{row}"]}} for row in range(limit)], offset, limit)

    client = Rows(0)
    client.search_page = ignoring
    first = row_key(ignoring(QUERY, offset=0, limit=1).rows[0], "study")
    beginning = Beginning(first=first, offset_works=offset_works)
    for start, known in ((10, beginning), (0, None)):
        client.offsets.clear()
        paging = Paging(GENERIC, QUERY, url=client.base_url, start=start, page_size=10, beginning=known)
        came = []
        with pytest.raises(PagingError, match="ignores offset") as caught:
            came.extend(ReadAhead(client, QUERY, pool, paging, lambda: None))
        assert len(came) == 10 - start
        assert caught.value.url == client.base_url
        assert len(client.offsets) <= 3


@pytest.mark.parametrize(("offset_works", "total", "pages"), [(True, 25_000, 1), (None, 25_000, 2), (None, 15_000, 1)])
def test_parts_are_read_at_once_only_after_offset_was_shown_to_work(offset_works, total, pages):
    class Archive(Rows):
        profile = GENERIC.with_facts(offset_works=offset_works)

        def search_page(self, query, *, offset, limit, surplus=True):
            return replace(super().search_page(query, offset=offset, limit=limit), total=total, more=True)

    class Room:
        def reserve(self, size):
            assert size

    plan = _Plan(Endpoint("https://pacs.example"), "SearchForStudies", limit=None, page_size=1000, collect=False)
    *given, rest = plan.produce(QUERY, Archive(total), Room())
    assert [(part.rows.start, len(part.page)) for part in given] == [(1000 * n, 1000) for n in range(pages)]
    assert rest.rows.start == 1000 * pages
    assert rest.rows.total == total
    assert rest.beginning.first == row_key(given[0].page[0], "study")
    assert rest.beginning.offset_works is (offset_works is True or pages > 1)


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("limit_works", [True, False])
def test_a_source_and_a_client_say_the_same_of_a_server_that_ignores_offset(answering, named, limit_works):
    tag = "0020000E" if named else "00080060"
    rows = [{tag: {"vr": "UI", "Value": [f"1.{number}"]}} for number in range(10)]

    def answer(request):
        return Reply.json(rows[: int(request.parameters["limit"])] if limit_works else rows)

    endpoint = Endpoint(answering(answer, path="/rs").url)
    with beam.Pipeline(runner="FnApiRunner") as p:
        found = p | SearchForSeries(endpoint, page_size=4, failures="collect")
        came = found.rows | beam.combiners.Count.Globally()
        lost = found.failures | beam.Map(lambda failure: ("ignores offset" in failure.message, failure.rows[0]))
        assert_that(came, equal_to([4 if limit_works else 10]), label="rows")
        assert_that(lost, equal_to([(True, 4)] if limit_works else []), label="lost")
    with endpoint.connect() as client:
        came = []
        with pytest.raises(PagingError, match="ignores offset") if limit_works else nullcontext():
            came.extend(client.iter_search(make_query("series"), page_size=4))
        # A row without a UID of its own shows that it has none.
        assert came == [{"0020000E": {"vr": "UI"}, **row} for row in rows[: 4 if limit_works else 10]]


@pytest.mark.parametrize("size", [1, 3])
def test_a_source_tells_of_rows_that_were_announced_and_did_not_come(answering, size):
    rows = [{"0020000E": {"vr": "UI", "Value": [f"1.{number}"]}} for number in range(50)]

    def answer(request):
        offset, limit = int(request.parameters.get("offset", 0)), int(request.parameters["limit"])
        page = [] if offset == 20 else rows[offset : offset + min(limit, 10)]
        return Reply.json(
            [*page[:3], None, *page[4:]] if size == 3 and offset == 10 else page, headers={"X-Total-Count": "50"}
        )

    with beam.Pipeline(runner="FnApiRunner") as p:
        found = p | SearchForSeries(answering(answer, path="/rs").url, page_size=10, failures="collect")
        came = found.rows | beam.combiners.Count.Globally()
        lost = found.failures | beam.Map(lambda failure: ("the server announces" in failure.message, failure.rows))
        assert_that(came, equal_to([20 if size == 1 else 19]), label="rows")
        # The row that cannot be read has no place of its own.
        assert_that(lost, equal_to([(True, (20 if size == 1 else 19, 50))]), label="lost")
