"""The paging engine of searches: which request comes next, and what an answer proves. It does no I/O.

A client drives it one page after another (`read_in_turn`), a source with pages read ahead; both obey the same rules:

- A limit is always sent, within the server's maximum. The offset advances by the rows received, not by those asked for.
- A page ends the search if it is empty, or if it is shorter than its limit and that lies within the server's known
  maximum. An announced total alone does not end it: rows behind a total that is too low are found.
- An end before the announced total, or where a `Link` or `Warning` says that rows follow, is requested once more. If it
  stays, the announcement is requested again too: if it agrees now, the archive changed meanwhile. If nothing agrees, or
  if rows could not be read, the search ends, after all rows that came, with a `SearchIncompleteError`.
- A row whose UIDs were returned before is left out. The last 100,000 rows at least are remembered (16 bytes of each),
  those of one search for a client, of one range of offsets for a source. A row without UIDs is never left out.
- A page that begins like the first one, or holds nothing new, is doubtful: the first page is requested again. If it has
  changed, the archive changed (many list the newest first), and the search continues. If a limit of one row is ignored
  too, the server does not page at all, and its first answer is the whole result. Otherwise the offset is ignored or
  pages repeat: a `PagingError`.
- If more rows may follow than the server returns, or an offset is larger than it accepts: a `TooManyResultsError`.

So every row of an archive that does not change is returned once, or the search ends with an error.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from dicomweb_io.dicom import json_decode
from dicomweb_io.elements import LEVELS, UID_TAGS, JSONDataset, SearchLevel, SearchPage, SearchQuery
from dicomweb_io.errors import PagingError, SearchIncompleteError, TooManyResultsError
from dicomweb_io.profiles import ServerProfile

# The tags of the UIDs that name an object of each level.
_NAMES = {level: tuple(UID_TAGS.values())[: number + 1] for number, level in enumerate(LEVELS)}

_MAX_REMEMBERED = 200_000
_KEY_BYTES = 16

# The rows at the end of a page that travel with what follows it, so that they are known if the archive moves.
_MAX_CARRIED = 100

# Pages in a row without anything new, of an archive that moves while it is read.
_MAX_STALLED = 3


def uids_of(row: JSONDataset, level: SearchLevel) -> str | None:
    """The UIDs that distinguish the rows of a search, from the study down; None if the row has no own UID.

    Some archives hold one SOP Instance UID in several series (Orthanc does), and each can be retrieved by itself.
    """
    tags = _NAMES[level]
    try:
        # The usual case, kept fast: there may be millions of rows.
        found = [row[tag]["Value"] for tag in tags]
        # A text in place of a list must not count by its first letter.
        if found[-1][0] and all(isinstance(values, list) for values in found):
            return "/".join([values[0] for values in found])
    except (KeyError, IndexError, TypeError):
        pass
    uids = []
    for tag in tags:
        element = row.get(tag)
        values = element.get("Value") if isinstance(element, dict) else None
        first = values[0] if values and isinstance(values, list) else None
        uids.append(first if isinstance(first, str) else "")
    return "/".join(uids) if uids[-1] else None


def row_key(row: JSONDataset, level: SearchLevel) -> bytes:
    """A row's identity: a digest of its UIDs or, a byte longer, of all its content if it has none."""
    uids = uids_of(row, level)
    if uids is None:
        return b"?" + hashlib.blake2b(json_decode.dumps(row), digest_size=_KEY_BYTES).digest()
    return hashlib.blake2b(uids.encode("utf-8", "surrogatepass"), digest_size=_KEY_BYTES).digest()


def resource_name(query: SearchQuery) -> str | None:
    """The profile's name of the search resource that a query needs beyond those every server has, or None.

    Every server has ``/studies``, ``/studies/UID/series`` and ``/studies/UID/series/UID/instances``.
    """
    if query.level == "series" and query.study_instance_uid is None:
        return "flat_series"
    if query.level == "instance" and query.study_instance_uid is None:
        return "flat_instances"
    if query.level == "instance" and query.series_instance_uid is None:
        return "study_instances"
    return None


def pages_by_offset(profile: ServerProfile, query: SearchQuery) -> bool | None:
    """Whether the rows of a query may be asked for from any offset on, several pages at once.

    Otherwise only the client's iterator knows the way: it walks levels that cannot be searched flat, takes lists of
    UIDs apart, and steps over rows that the server counts but does not return. None: only if the first answer looks so.
    """
    resource = resource_name(query)
    exists: bool | None = True if resource is None else getattr(profile, resource)
    lists = any(separator in text for _, text in query.search_filters for separator in ("\\", ","))
    if profile.short_pages or profile.max_rows is not None or (lists and not profile.uid_lists):
        return False
    return exists


def rows_follow(profile: ServerProfile, level: SearchLevel, page: SearchPage, announced: bool) -> bool | None:
    """What a page says about the rows after it; see `SearchPage.more`.

    Args:
        profile: The server's behaviour.
        level: What the rows are.
        page: The page.
        announced: Whether its headers say that rows follow.
    """
    number, limit, total = page.number, page.limit, page.total
    if page.offset + number < (total or 0) or (announced and not total):
        return True
    # Totals can be too low: that one is reached proves something only where pages end for other reasons.
    if profile.short_pages:
        return False if total and not profile.total_is_upper_bound and (limit is None or number < limit) else None
    if not number:
        return False
    maximum = profile.max_limit(level)
    return False if limit is not None and maximum is not None and number < limit <= maximum else None


@dataclass(frozen=True)
class PageRequest:
    """The rows to ask for: at most `limit` of them, from `offset` on.

    Attributes:
        offset: The offset of the first row.
        limit: The maximum number of rows.
        fill: Whether the rows behind may be asked for before the answer has come. Then rows missing from a short answer
            are to be asked for at once; see `pages_of`.
    """

    offset: int
    limit: int
    fill: bool = False


@dataclass(frozen=True)
class Evidence:
    """What an answer says to the engine.

    Attributes:
        keys: The identities of its rows; see `row_key`.
        total: The number of all rows, where it was announced.
        more: Whether rows follow, where that is known.
        unreadable: The number of further rows, which are not datasets.
    """

    keys: Sequence[bytes]
    total: int | None = None
    more: bool | None = None
    unreadable: int = 0

    @classmethod
    def of(cls, page: SearchPage, level: SearchLevel) -> Evidence:
        """The evidence of a page."""
        return cls([row_key(row, level) for row in page.rows], page.total, page.more, page.unreadable)

    @property
    def number(self) -> int:
        """The number of rows, also of those that cannot be read."""
        return len(self.keys) + self.unreadable


@dataclass(frozen=True)
class Beginning:
    """What the first pages of a search proved, for the reader of the remaining rows.

    Attributes:
        first: The identity of row 0.
        last: The identities of the last rows that arrived.
        total: The number of all rows, where it was announced; a hint.
        full: Whether the last page held as many rows as were asked for.
        offset_works: Whether a page at a later offset held other rows than the first.
    """

    first: bytes | None = None
    last: tuple[bytes, ...] = ()
    total: int | None = None
    full: bool = False
    offset_works: bool = False


class Remembered:
    """The last rows met: 100,000 of them at least."""

    def __init__(self) -> None:
        self._recent: set[bytes] = set()
        self._older: set[bytes] = set()

    def __contains__(self, key: bytes) -> bool:
        return key in self._recent or key in self._older

    def repeats(self, key: bytes) -> bool:
        """Remembers a row, and returns whether it came before. For a row without UIDs that is unknown."""
        if key in self:
            return len(key) == _KEY_BYTES
        if len(self._recent) >= _MAX_REMEMBERED // 2:
            self._older, self._recent = self._recent, set()
        self._recent.add(key)
        return False


class Paging:
    """The course of one search, or of the part of it from an offset on.

    `next_request` says what to send. The answers are handed in in the order of the requests: first to `doubts`, which
    may demand a further request whose answer goes to `settle`, then to `accept`, which returns the rows to pass on.

    Args:
        profile: The archive's behaviour.
        query: The search.
        url: Where it is made, for errors.
        start: The offset of the first row wanted.
        limit: The maximum number of rows to pass on; not for reading ahead.
        page_size: Rows to ask for at once; by default what the profile says.
        beginning: What is known from the pages before `start`.

    Attributes:
        level: What the rows are.
        position: The offset behind the rows received, or behind those asked for while answers are to come.
        stop: The offset at which to end; None for the end of the search. It may be changed at any time.
        total: The number of all rows, as last announced.
        passed: The rows passed on.
        received: The offset behind the rows received, duplicates included.
        repeated: The rows left out because they were returned before.
        unreadable: The rows left out because they are not datasets.
        answer: The last answer taken in.
        full: Whether that page held as many rows as were asked for.
        ended: Whether nothing more is to be asked for.
        unpaged: Whether the server ignores offset and limit, so that its first answer is the whole result.
        offset_works: Whether it is known that the server honours offsets.
    """

    def __init__(
        self,
        profile: ServerProfile,
        query: SearchQuery,
        *,
        url: str = "",
        start: int = 0,
        limit: int | None = None,
        page_size: int | None = None,
        beginning: Beginning | None = None,
    ) -> None:
        size, maximum = page_size or profile.page_size(query.level), profile.max_limit(query.level)
        self._page_size = max(1, size if maximum is None else min(size, maximum))
        self.level = query.level
        self._profile = profile
        self._url = url
        self._start = self.position = start
        self._limit = limit
        self._pending: deque[PageRequest] = deque()
        self._seen = Remembered()
        self._stalled = 0
        self._moved = False
        self._doubted: tuple[PageRequest, Evidence] | None = None
        known = beginning or Beginning()
        self._first, self._first_offset = known.first, start if known.first is None else 0
        self.answer = Evidence(known.last)
        for key in known.last:
            self._seen.repeats(key)
        self.full = known.full
        self.stop: int | None = None
        self.total = known.total
        self.passed = 0
        self.received = start
        self.repeated = 0
        self.unreadable = 0
        # Answers on their way that follow a gap: what they hold is requested again.
        self._void = 0
        self._announced = False
        self.ended = limit == 0
        self.unpaged = False
        self.offset_works = known.offset_works or profile.offset_works is True

    # Requests ---------------------------------------------------------------------------------------------------------

    def next_request(self) -> PageRequest | None:
        """The next request; None if the search has ended, or depends on an answer that is still to come.

        Raises:
            TooManyResultsError: If more rows may follow than the server returns.
        """
        size = self._page_size
        if self._limit is not None:
            size = min(size, self._limit - self.passed)
        if self.stop is not None:
            size = min(size, self.stop - self.position)
        if self.ended or size <= 0:
            return None
        profile, position = self._profile, self.position
        capped = profile.max_rows is not None and position >= profile.max_rows
        refused = profile.max_offset is not None and position > profile.max_offset
        # Totals can be wrong, so that what is behind is looked at too, but then one page after the other.
        behind = self.total is not None and position >= self.total
        if self._pending and (capped or refused or behind or not self.offset_works):
            return None
        if capped or refused:
            what = (
                f"the server returns only the first {profile.max_rows} rows of a search"
                if capped
                else f"the server accepts no offset above {profile.max_offset}"
            )
            raise TooManyResultsError(
                f"{what}, and there may be more; narrow the search, for example by ranges of StudyDate",
                method="GET",
                url=self._url,
            )
        if profile.max_rows is not None:
            size = min(size, profile.max_rows - position)
        request = PageRequest(position, size, self.offset_works)
        self._pending.append(request)
        self.position += size
        return request

    # Answers ----------------------------------------------------------------------------------------------------------

    def doubts(self, request: PageRequest, evidence: Evidence) -> PageRequest | None:
        """The request for the beginning of the search, if an answer looks like earlier rows."""
        keys = evidence.keys
        if self.ended or self._void or not keys or request.offset == self._first_offset:
            return None
        nothing_new = all(key in self._seen for key in keys)
        # Pages overlap where a server counts rows that it does not return, and at the end of an archive that moved.
        hides = self._profile.short_pages and all(len(key) == _KEY_BYTES for key in keys)
        overlaps = not self._stalled and (hides or evidence.number < request.limit)
        begins_again = keys[0] == self._first and not hides
        if self._moved or not (begins_again or (nothing_new and not overlaps)):
            return None
        self._doubted = request, evidence
        # A server that honours limits answers with another number of rows than the whole result may have.
        return PageRequest(self._first_offset, 2 if request.offset - self._first_offset == 1 else 1)

    def settle(self, check: PageRequest, now: Evidence) -> None:
        """Judges the page in doubt by what the beginning is now.

        Raises:
            PagingError: If the server ignores offsets or repeats itself.
        """
        assert self._doubted is not None  # noqa: S101 - doubts() asked for this
        request, evidence = self._doubted
        number = now.number
        # The order may be another one each time.
        reordered = number != request.limit and sorted(now.keys) == sorted(evidence.keys)
        again = reordered or list(now.keys) == list(evidence.keys)
        same = check.limit != number <= self.received and again
        announced = max(now.total or 0, evidence.total or 0, self.total or 0)
        if check.offset == 0 and same and announced <= number and not (now.more or evidence.more):
            self.unpaged = self.ended = True
            return
        # Rows without UIDs cannot be distinguished from earlier ones, so they are not read further where rows move.
        if now.keys and now.keys[0] != self._first and all(len(key) == _KEY_BYTES for key in evidence.keys):
            self._first = now.keys[0]
            self._moved = True
            return
        begins_again = evidence.keys[0] == self._first
        raise self._error(
            request.offset,
            "the server ignores offset: a later page begins like the first"
            if begins_again
            else "a page repeats only rows that were there before",
        )

    def accept(self, request: PageRequest, evidence: Evidence) -> list[tuple[int, int]]:
        """Takes in an answer.

        Args:
            request: The oldest request that was not answered yet.
            evidence: Its answer. If it holds more or fewer rows than asked for, later answers on their way are left
                out, and what they hold is requested again.

        Returns:
            The offset of each row to pass on, and its number within the answer.

        Raises:
            PagingError: If further answers contain nothing new.
        """
        if self._pending.popleft() != request:
            raise ValueError("answers are to be taken in in the order of the requests")
        if self.ended or self._void:
            self._void = max(0, self._void - 1)
            return []
        keys, number, hides = evidence.keys, evidence.number, self._profile.short_pages
        if evidence.total is not None:
            self.total = evidence.total
        if self._first is None and keys:
            self._first = keys[0]
        crowded = number > request.limit
        found = self._new_rows(request, keys, crowded)
        self.full = number >= request.limit
        self.answer = evidence
        self.unreadable += evidence.unreadable
        # A server that hides rows is asked for pages that overlap, so there only different rows count.
        passed = self._start + self.passed + self.unreadable
        self.received = passed if hides else max(self.received, request.offset + number)
        if number or evidence.more:
            self._announced = evidence.more is True
        if found or evidence.unreadable:
            self._stalled, self._moved = 0, False
            self.offset_works = self.offset_works or request.offset > self._first_offset
        else:
            self._stalled += 1
            if keys and self._stalled > _MAX_STALLED:
                raise self._error(request.offset, "page after page repeats only rows that were there before")
            if not keys and (self._stalled > 1 or not (hides or evidence.more or self._is_short or self._announced)):
                self.ended = True
        if self.passed == self._limit:
            self.ended = True
        elif number and evidence.more is False and not self._is_short:
            # A total is believed only where as many different rows have come: rows may move between pages.
            self.ended = evidence.total is None or passed >= evidence.total
        if self._pending and number != request.limit and not self.ended:
            self._void = len(self._pending)
        if len(self._pending) == self._void:
            # Of more rows than asked for only the new ones count: the page may begin with rows of the one before.
            begins = request.offset == self._first_offset
            advance = len(found) if crowded and not begins else number
            if not found and not evidence.unreadable:
                advance = request.limit if hides and not self._is_short else number
            self.position = request.offset + advance
        return found

    def _new_rows(self, request: PageRequest, keys: Sequence[bytes], crowded: bool) -> list[tuple[int, int]]:
        """The rows that did not come before."""
        found: list[tuple[int, int]] = []
        for index, key in enumerate(keys):
            if self.passed == self._limit:
                break
            if self._seen.repeats(key):
                self.repeated += 1
                continue
            found.append((request.offset + (len(found) if crowded else index), index))
            self.passed += 1
        return found

    # What is known ----------------------------------------------------------------------------------------------------

    @property
    def _is_short(self) -> bool:
        """Whether fewer rows were received than were announced, of those that are wanted."""
        if self.total is None or self._profile.total_is_upper_bound:
            return False
        wanted = [self.total] if self._limit is None else [self.total, self._start + self._limit]
        return self.received < min(wanted if self.stop is None else [*wanted, self.stop])

    @property
    def total_is_wrong(self) -> bool:
        """Whether the search ended with another number of rows than was announced."""
        whole = self._limit is None and self.stop is None
        return self.ended and whole and self.total is not None and self.total != self.received

    def last_check(self) -> PageRequest | None:
        """The request that shows whether an end before what was announced is true; None for any other end."""
        if not self.ended or self.unpaged or self.passed == self._limit:
            return None
        if self._is_short:
            return PageRequest(self._first_offset, 1)
        if self.total is None and self._announced and not self._profile.total_is_upper_bound:
            # The last row again: servers that announce a next page behind each full one do not do so for this one.
            return PageRequest(max(self._first_offset, self.received - 1), 2)
        return None

    def conclude(self, check: PageRequest, now: Evidence) -> None:
        """Judges an end by what the archive announces now.

        Raises:
            SearchIncompleteError: If it still announces more rows than came.
        """
        announced = "more rows"
        if self._is_short:
            announced = f"{self.total} rows in all"
            self.total = now.total if now.total is not None else self.total
            if not self._is_short:
                return
        elif now.number < check.limit and not now.more:
            return
        raise self._incomplete(
            f"the server announces {announced}, but returns none from {self.received} on",
            "; for a server that always announces too many, use a profile with total_is_upper_bound=True",
        )

    def check_readable(self) -> None:
        """Fails if there were rows that could not be read.

        Raises:
            SearchIncompleteError: In that case.
        """
        if self.unreadable:
            raise self._incomplete(f"{self.unreadable} of the rows cannot be read, because they are not datasets")

    @property
    def beginning(self) -> Beginning:
        """What the pages so far proved, for the reader of the remaining rows."""
        return Beginning(self._first, tuple(self.answer.keys[-_MAX_CARRIED:]), self.total, self.full, self.offset_works)

    def _incomplete(self, what: str, advice: str = "") -> SearchIncompleteError:
        # The reader of a part does not know how many rows came before it.
        came = f"; {self.passed} rows came" if self._start == self._first_offset else ""
        return SearchIncompleteError(
            f"{what}{came}. The search is incomplete. Repeat it later, or narrow it{advice}",
            method="GET",
            url=self._url,
        )

    def _error(self, offset: int, what: str) -> PagingError:
        return PagingError(
            f"{what} (when rows from {offset} on were requested). The rows so far may be incomplete. Request one page "
            f"with a limit that covers all rows, or use a profile whose max_limits give the server's real maximum",
            method="GET",
            url=self._url,
        )


def pages_of(request: PageRequest, ask: Callable[[PageRequest], SearchPage]) -> Iterator[SearchPage]:
    """Yields the answer to a request, and of one to fill further ones until no row is missing or the search ends."""
    received = 0
    first: JSONDataset | None = None
    while True:
        page = ask(PageRequest(request.offset + received, request.limit - received))
        if page.rows and page.rows[0] == first:
            # It begins again, whatever that means: `Paging.doubts` judges it when it is asked for by itself.
            return
        first = page.rows[0] if page.rows and first is None else first
        received += page.number
        if not page.number and request.fill and not page.more:
            page = replace(page, more=False)
        yield page
        if not request.fill or not page.number or received >= request.limit or page.more is False:
            return


def next_rows(
    paging: Paging, ask: Callable[[PageRequest], SearchPage]
) -> tuple[Sequence[JSONDataset], list[tuple[int, int]]] | None:
    """Sends the next request by `ask`.

    Returns:
        The rows of the answer, and the offset and number of each one to pass on. None if nothing more is to be asked
        for; then `confirm_end` says whether all rows came.
    """
    request = paging.next_request()
    if request is None:
        return None
    page = ask(request)
    evidence = Evidence.of(page, paging.level)
    check = paging.doubts(request, evidence)
    if check is not None:
        paging.settle(check, Evidence.of(ask(check), paging.level))
    return page.rows, paging.accept(request, evidence)


def confirm_end(paging: Paging, ask: Callable[[PageRequest], SearchPage]) -> None:
    """Fails if the end of a search contradicts what was announced, or if rows could not be read.

    Raises:
        SearchIncompleteError: In these cases.
    """
    check = paging.last_check()
    if check is not None:
        paging.conclude(check, Evidence.of(ask(check), paging.level))
    paging.check_readable()


def read_in_turn(paging: Paging, ask: Callable[[PageRequest], SearchPage]) -> Iterator[JSONDataset]:
    """Yields the rows of a search, whose requests `ask` sends one after another."""
    while (answer := next_rows(paging, ask)) is not None:
        rows, found = answer
        for _, index in found:
            yield rows[index]
    confirm_end(paging, ask)
