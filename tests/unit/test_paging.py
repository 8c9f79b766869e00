"""The paging engine against a model of every server's behaviour, one page after another and with pages read ahead."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import assume, given, strategies as st

from dicomweb_io.elements import SearchPage, SearchQuery
from dicomweb_io.errors import DICOMwebError, PagingError, SearchIncompleteError, TooManyResultsError
from dicomweb_io.paging import (
    Beginning,
    Evidence,
    PageRequest,
    Paging,
    confirm_end,
    pages_of,
    read_in_turn,
    row_key,
    rows_follow,
    uids_of,
)
from dicomweb_io.profiles import GENERIC, PROFILES, ServerProfile

QUERY = SearchQuery("study")


def study(number, named=True):
    """A row; without UID it is told apart by another attribute only."""
    if named:
        return {"0020000D": {"vr": "UI", "Value": [f"1.{number}"]}}
    return {"00200010": {"vr": "SH", "Value": [str(number)]}}


@dataclass
class Archive:
    """A server as the engine meets it.

    Attributes:
        count: Its rows.
        cap: The most rows of an answer, whatever is asked for.
        ignores_offset: Every page is the first.
        ignores_limit: A page holds everything from the offset on (up to the cap).
        named: Whether rows have UIDs.
        total_error: What is wrong with announced totals; None if none are announced.
        repeats: With how many rows of the page before each page begins, besides its own.
        moves: By how many rows all pages but the first are moved.
        hidden: Rows that count for offsets and are not returned.
        fails_at: The request that fails.
        grows: What happens before a request, by its number: ``"front"`` or ``"back"``.
    """

    count: int
    cap: int | None = None
    ignores_offset: bool = False
    ignores_limit: bool = False
    named: bool = True
    total_error: int | None = None
    repeats: int = 0
    moves: int = 0
    hidden: frozenset[int] = frozenset()
    fails_at: int | None = None
    grows: dict[int, str] = field(default_factory=dict)
    profile: ServerProfile = GENERIC
    requests: list[PageRequest] = field(default_factory=list)

    def __post_init__(self):
        self.rows = [study(number, self.named) for number in range(self.count)]

    def expected(self):
        return [row for number, row in enumerate(self.rows) if number not in self.hidden]

    def can_be_judged(self, page_size):
        """Whether its answers hold what tells a whole result from a part of it."""
        cut = self.cap is not None and self.cap < max(page_size, self.count if self.ignores_limit else 0)
        # A server that ignores limit and gives the first page again has no pages: its one answer may be cut silently.
        if (self.ignores_offset or self.moves or self.repeats) and self.ignores_limit and cut:
            return False
        # Rows without UIDs that come twice look like others of the same content.
        return not ((self.repeats or self.moves) and not self.named)

    def ask(self, request):
        happening = self.grows.get(len(self.requests))
        if happening is not None:
            row = study(1000 + len(self.requests), self.named)
            self.rows.insert(0 if happening == "front" else len(self.rows), row)
        self.requests.append(request)
        assert request.limit > 0
        assert len(self.requests) < 1000, "the search does not end"
        if len(self.requests) - 1 == self.fails_at:
            raise DICOMwebError("no", status=500)
        offset = 0 if self.ignores_offset else request.offset
        start = max(0, offset - self.repeats - self.moves)
        end = len(self.rows) if self.ignores_limit else max(0, offset - self.moves) + request.limit
        end = end if self.cap is None else min(end, start + self.cap)
        rows = [row for number, row in enumerate(self.rows[start:end], start) if number not in self.hidden]
        total = None if self.total_error is None else max(0, len(self.rows) + self.total_error)
        page = SearchPage(rows, request.offset, request.limit, total)
        return replace(page, more=rows_follow(self.profile, "study", page, False))


def in_turn(archive, **how):
    paging = Paging(archive.profile, QUERY, url="https://pacs.example/studies", **how)
    return paging, read_in_turn(paging, archive.ask)


def ahead(archive, depth, beginning=None, start=0, page_size=None):
    """Reads with `depth` requests on their way, as the source does; pages are answered when they are sent."""
    paging = Paging(archive.profile, QUERY, start=start, page_size=page_size, beginning=beginning)
    waiting = deque()
    while True:
        while len(waiting) < depth and (request := paging.next_request()) is not None:
            pages = list(pages_of(request, archive.ask))
            rows = [row for page in pages for row in page.rows]
            keys = [row_key(row, "study") for row in rows]
            waiting.append(
                (request, rows, Evidence(keys, pages[-1].total, pages[-1].more, sum(page.unreadable for page in pages)))
            )
        if not waiting:
            break
        request, rows, evidence = waiting.popleft()
        check = paging.doubts(request, evidence)
        if check is not None:
            paging.settle(check, Evidence.of(archive.ask(check), "study"))
        for _, index in paging.accept(request, evidence):
            yield rows[index]
        if paging.ended:
            break
    confirm_end(paging, archive.ask)


SIZES = st.integers(1, 12)
ARCHIVES = st.builds(
    Archive,
    st.integers(0, 40),
    # Servers that answer with one row at most do not exist; nor can they be told from a result of one row.
    cap=st.none() | st.integers(2, 15),
    ignores_offset=st.booleans(),
    ignores_limit=st.booleans(),
    named=st.booleans(),
    total_error=st.none() | st.integers(-3, 3),
    repeats=st.integers(0, 2),
    moves=st.integers(0, 2),
    fails_at=st.none() | st.integers(0, 6),
)


def outcome(rows):
    """The rows that came, and the error that ended them."""
    found = []
    try:
        found.extend(rows)
    except DICOMwebError as error:
        return found, error
    return found, None


def check_complete(archive, found, error):
    expected = archive.expected()
    assert found == expected[: len(found)]
    if error is None or isinstance(error, SearchIncompleteError):
        assert len(found) == len(expected)
        # Rows that came twice hide that a total is too high.
        assert error is None or (archive.total_error or 0) > 0


@given(ARCHIVES, SIZES)
def test_each_row_of_an_archive_that_stands_still_comes_once_or_the_search_fails(archive, page_size):
    assume(archive.can_be_judged(page_size))
    check_complete(archive, *outcome(in_turn(archive, page_size=page_size)[1]))


@given(ARCHIVES, SIZES, st.integers(1, 8))
def test_so_it_does_with_pages_read_ahead(archive, page_size, depth):
    assume(archive.can_be_judged(page_size))
    check_complete(archive, *outcome(ahead(archive, depth, page_size=page_size)))


@given(st.integers(0, 40), st.none() | st.integers(2, 15), st.booleans(), st.booleans(), SIZES, st.integers(1, 8))
def test_a_server_that_pages_is_read_to_its_end(count, cap, ignores_limit, named, page_size, depth):
    for total_error in (None, 0, 3, -3):
        archive = Archive(count, cap, ignores_limit=ignores_limit, named=named, total_error=total_error)
        for rows in (in_turn(archive, page_size=page_size)[1], ahead(archive, depth, page_size=page_size)):
            found, error = outcome(rows)
            assert found == archive.rows
            assert isinstance(error, SearchIncompleteError) if total_error == 3 else error is None
            archive.requests.clear()


@given(st.integers(1, 40), SIZES, st.integers(1, 8))
def test_the_part_behind_the_first_page_is_read_with_what_that_proved(count, page_size, depth):
    archive = Archive(count)
    paging, rows = in_turn(archive, page_size=page_size)
    first = [next(rows) for _ in range(min(page_size, count))]
    assert paging.beginning.first == row_key(first[0], "study")
    rest = ahead(archive, depth, paging.beginning, paging.position, page_size)
    assert first + list(rest) == archive.rows


@given(
    st.integers(1, 30), st.dictionaries(st.integers(1, 12), st.sampled_from(["front", "back"])), SIZES, st.booleans()
)
def test_a_growing_archive_loses_no_row_and_repeats_none(count, grows, page_size, totals):
    archive = Archive(count, grows=grows, total_error=0 if totals else None)
    before = list(archive.rows)
    found, error = outcome(in_turn(archive, page_size=page_size)[1])
    uids = [uids_of(row, "study") for row in found]
    assert len(set(uids)) == len(uids)
    # Where the rows keep moving page after page, the search may give up.
    assert error is None or (isinstance(error, PagingError) and list(grows.values()).count("front") > 3)
    if error is None:
        assert {uids_of(row, "study") for row in before} <= set(uids)


@given(st.integers(0, 40), st.frozensets(st.integers(0, 39)), st.integers(2, 12))
def test_rows_that_are_counted_and_not_returned(count, hidden, page_size):
    profile = ServerProfile("hides", short_pages=True, max_limits=(50,) * 3, offset_works=True)
    archive = Archive(count, hidden=hidden, profile=profile)
    # Two empty pages in a row are the end of such a search.
    gaps = "".join("." if number in hidden else "x" for number in range(count)).strip(".").split("x")
    assume(all(len(gap) < page_size for gap in gaps))
    leading = next((number for number in range(count) if number not in hidden), 0)
    assume(leading < page_size)
    assert list(in_turn(archive, page_size=page_size)[1]) == archive.expected()


@given(st.integers(0, 40), SIZES, st.integers(0, 45), st.integers(0, 20))
def test_limit_and_offset(count, page_size, start, limit):
    archive = Archive(count)
    assert list(in_turn(archive, page_size=page_size, start=start, limit=limit)[1]) == archive.rows[start:][:limit]
    assert all(start <= request.offset < max(start + limit, 1) for request in archive.requests)


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_a_server_that_does_not_page_gives_its_whole_result_at_once(count, named):
    archive = Archive(count, ignores_offset=True, ignores_limit=True, named=named)
    paging, rows = in_turn(archive, page_size=100)
    assert list(rows) == archive.rows
    assert paging.unpaged
    assert len(archive.requests) == 3


@pytest.mark.parametrize(("total_error", "start"), [(1, 0), (None, 3)])
def test_what_a_server_that_does_not_page_cannot_give_is_an_error(total_error, start):
    archive = Archive(7, ignores_offset=True, ignores_limit=True, total_error=total_error)
    with pytest.raises(PagingError, match="ignores offset"):
        list(in_turn(archive, start=start)[1])


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("depth", [1, 8])
def test_an_ignored_offset_is_noticed_at_once(depth, named):
    archive = Archive(30, ignores_offset=True, named=named)
    with pytest.raises(PagingError, match="ignores offset") as caught:
        list(ahead(archive, depth, page_size=10))
    assert len(archive.requests) <= depth + 2
    assert caught.value.method == "GET"


def test_a_server_that_repeats_its_last_page_fails():
    archive = Archive(10)
    ask = archive.ask
    archive.ask = lambda request: ask(replace(request, offset=min(request.offset, 8)))
    for named in (True, False):
        archive.rows = [study(number, named) for number in range(10)]
        with pytest.raises(PagingError, match="repeats"):
            list(in_turn(archive, page_size=2)[1])


def test_caps_are_errors_not_ends():
    capped = ServerProfile("capped", page_sizes=(10,) * 3, max_limits=(10,) * 3, max_rows=25)
    refusing = ServerProfile("refusing", page_sizes=(10,) * 3, max_offset=15)
    for profile, words in ((capped, "first 25 rows"), (refusing, "no offset above 15")):
        for reader in (lambda archive: in_turn(archive)[1], lambda archive: ahead(archive, 4)):
            archive = Archive(40, profile=profile)
            found, error = outcome(reader(archive))
            assert isinstance(error, TooManyResultsError)
            assert words in str(error)
            assert found == archive.rows[: len(found)]
            assert len(found) >= 20
    assert list(in_turn(Archive(22, profile=capped))[1]) == Archive(22).rows


@pytest.mark.parametrize("depth", [0, 1, 4])
@pytest.mark.parametrize("number", range(1, 6))
def test_an_empty_page_that_announces_rows_is_asked_for_once_more(depth, number):
    archive = Archive(20, total_error=0)
    ask = archive.ask

    def ask_in_vain(request):
        page = ask(request)
        return replace(page, rows=[], more=True) if len(archive.requests) == number else page

    archive.ask = ask_in_vain
    beginning = Beginning(offset_works=True)
    rows = ahead(archive, depth, beginning, page_size=5) if depth else in_turn(archive, page_size=5)[1]
    assert list(rows) == archive.rows


def test_totals_that_do_not_come_true_are_told():
    for total_error, wrong in ((0, False), (5, True), (-5, True), (None, False)):
        paging, rows = in_turn(Archive(10, total_error=total_error), page_size=4)
        found, error = outcome(rows)
        assert len(found) == 10
        assert paging.total_is_wrong is wrong
        assert isinstance(error, SearchIncompleteError) is (total_error == 5)


def readers(archive, **how):
    yield in_turn(archive, page_size=10, **how)[1]
    archive.requests.clear()
    for depth in (1, 3, 8) if not how else ():
        yield ahead(archive, depth, page_size=10)
        archive.requests.clear()
        yield ahead(archive, depth, Beginning(offset_works=True), page_size=10)
        archive.requests.clear()


def with_gap(archive, *, total=None, more=None, times=1000):
    """The archive, with an empty page at offset 20, so many times; `total` of it and what follows, `more` before it."""
    ask, number = archive.ask, 0

    def ask_in_vain(request):
        nonlocal number
        page = ask(request)
        if len(archive.requests) == 1:
            number = 0
        if request.offset == 20 and number < times:
            number += 1
            page = replace(page, rows=[])
            page = replace(page, more=rows_follow(archive.profile, "study", page, False))
        elif more is not None:
            page = replace(page, more=more)
        if number and total is not None:
            page = replace(
                page, total=total, more=rows_follow(archive.profile, "study", replace(page, total=total), False)
            )
        return page

    archive.ask = ask_in_vain
    return archive


@pytest.mark.parametrize("announced", ["total", "link"])
def test_an_empty_page_is_no_end_against_evidence(announced):
    how = {"total_error": 0 if announced == "total" else None}
    more = True if announced == "link" else None
    archive = with_gap(Archive(50, **how), more=more)
    for rows in readers(archive):
        found, error = outcome(rows)
        assert found == archive.rows[:20]
        assert isinstance(error, SearchIncompleteError)
        assert ("50 rows in all" if announced == "total" else "more rows") in str(error)
        assert "20 rows came" in str(error)
    # Once more is enough where the gap goes.
    archive = with_gap(Archive(50, **how), more=None if announced == "total" else more, times=1)
    for rows in readers(archive, limit=40):
        assert outcome(rows) == (archive.rows[:40], None)


def test_an_empty_page_is_the_end_where_the_new_total_agrees():
    archive = with_gap(Archive(50, total_error=0), total=20)
    for rows in readers(archive):
        assert outcome(rows) == (archive.rows[:20], None)


def test_a_total_that_is_an_upper_bound_is_no_evidence():
    profile = ServerProfile("counts", max_limits=(10,) * 3, total_is_upper_bound=True)
    for rows in readers(archive := Archive(25, total_error=7, profile=profile)):
        assert outcome(rows) == (archive.rows, None)


def test_a_total_is_no_evidence_beyond_the_limit():
    archive = with_gap(Archive(50, total_error=0))
    for limit, complete in ((19, True), (20, True), (21, False)):
        (rows,) = readers(archive, limit=limit)
        found, error = outcome(rows)
        assert len(found) == min(limit, 20)
        assert (error is None) is complete


def test_a_full_page_before_an_empty_one_is_the_end_of_an_exact_multiple():
    """Some servers announce a next page behind each full one."""
    archive = Archive(20)
    ask = archive.ask

    def ask_announcing(request):
        page = ask(request)
        return replace(page, more=rows_follow(archive.profile, "study", page, len(page.rows) == request.limit))

    archive.ask = ask_announcing
    for rows in readers(archive):
        assert outcome(rows) == (archive.rows, None)


def test_rows_that_cannot_be_read_are_counted():
    archive = Archive(50, total_error=0)
    ask = archive.ask

    def ask_spoilt(request):
        page = ask(request)
        good = [row for row in page.rows if row != study(25)]
        return replace(page, rows=good, unreadable=len(page.rows) - len(good))

    archive.ask = ask_spoilt
    for rows in readers(archive):
        found, error = outcome(rows)
        assert found == archive.rows[:25] + archive.rows[26:]
        assert isinstance(error, SearchIncompleteError)
        assert "1 of the rows cannot be read" in str(error)


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("page_size", [4, 7, 100])
@pytest.mark.parametrize("profile", [GENERIC, GENERIC.with_facts(offset_works=True), PROFILES["dcm4chee"]])
@pytest.mark.parametrize("total_error", [None, 0])
def test_what_does_not_page_has_given_everything_at_once(named, page_size, profile, total_error):
    how = {"ignores_offset": True, "ignores_limit": True, "named": named, "profile": profile}
    archive = Archive(7, total_error=total_error, **how)
    for limit in (None, 5, 7, 20):
        rows = in_turn(archive, page_size=page_size, limit=limit)[1]
        assert outcome(rows) == (archive.rows[:limit], None)
        archive.requests.clear()
    if profile.short_pages:
        return
    for depth in (1, 8):
        assert outcome(ahead(archive, depth, page_size=page_size)) == (archive.rows, None)
        archive.requests.clear()


def test_rows_that_came_long_ago_are_forgotten(monkeypatch):
    monkeypatch.setattr("dicomweb_io.paging._MAX_REMEMBERED", 20)
    paging, rows = in_turn(Archive(301, repeats=1), page_size=10)
    assert len(list(rows)) == 301
    assert paging.repeated == 30
    assert len(paging._seen._recent) + len(paging._seen._older) <= 20


def test_answers_come_in_the_order_of_the_requests():
    paging = Paging(GENERIC, QUERY, page_size=5, beginning=Beginning(full=True))
    first, second = paging.next_request(), paging.next_request()
    assert first != second
    with pytest.raises(ValueError, match="order"):
        paging.accept(second, Evidence([]))


@pytest.mark.parametrize(
    ("row", "uids"),
    [
        ({}, None),
        ({"0020000D": {"vr": "UI"}}, None),
        ({"0020000D": {"Value": ["1"]}, "0020000E": {"Value": [""]}}, None),
        ({"0020000E": {"Value": ["2"]}}, "/2"),
        ({"0020000E": {"Value": ["2"]}, "0020000D": None}, "/2"),
        ({"0020000D": {"Value": [5]}, "0020000E": {"Value": ["2"]}}, "/2"),
        ({"0020000D": {"Value": ["1"]}, "0020000E": {"Value": [None]}}, None),
        ({"0020000D": {"Value": ["1"]}, "0020000E": {"Value": ["2"]}}, "1/2"),
    ],
)
def test_what_tells_rows_apart(row, uids):
    assert uids_of(row, "series") == uids
    assert len(row_key(row, "series")) == (17 if uids is None else 16)


@given(
    st.integers(0, 40),
    st.sets(st.integers(0, 40), max_size=3),
    st.integers(1, 3) | st.just(1000),
    st.booleans(),
    SIZES,
    st.integers(0, 8),
    st.sampled_from(["generic", "orthanc", "dicomcloud"]),
)
def test_no_gap_is_passed_over_in_silence(count, gaps, times, ignores_limit, page_size, depth, profile):
    archive = Archive(count, ignores_limit=ignores_limit, total_error=0, profile=PROFILES[profile])
    ask, left = archive.ask, dict.fromkeys(gaps, times)

    def ask_in_vain(request):
        page = ask(request)
        # The checks, of a row or two, tell what is there.
        if request.limit > 2 and left.get(request.offset, 0):
            left[request.offset] -= 1
            page = replace(page, rows=[])
            page = replace(page, more=rows_follow(archive.profile, "study", page, False))
        return page

    archive.ask = ask_in_vain
    ahead_works = depth and not archive.profile.short_pages
    rows = ahead(archive, depth, page_size=page_size) if ahead_works else in_turn(archive, page_size=page_size)[1]
    found, error = outcome(rows)
    assert found == archive.rows[: len(found)]
    assert (error is None) is (len(found) == count)
