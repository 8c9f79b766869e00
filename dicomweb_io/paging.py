"""The paging engine of searches: which request comes next, and what an answer proves. It does no I/O.

A client drives it one page after another (`read_in_turn`), a source with pages read ahead; both obey the same rules:

- A limit is always sent, within the server's maximum. The offset advances by the rows received, not by those asked for.
- A page ends the search if it is empty (one that announces more is asked for once more), if it is shorter than its
  limit and that lies within the server's known maximum, or if it reaches an announced total that as many different
  rows confirm.
- A row whose UIDs came before is left out. The last 100,000 rows at least are remembered (16 bytes of each), those of
  one search for a client, of one range of offsets for a source. A row without UIDs is never left out.
- A page that begins like the first one, or holds nothing new, is in doubt: the beginning is asked for again. If it has
  changed, the archive moved (many list what is newest first), and the search goes on. If a limit of one row is ignored
  too, the server does not page at all, and its first answer is the whole result. Otherwise the offset is ignored or
  pages repeat: a `PagingError`.
- Where the server gives out no more rows, or accepts no larger offset, and more may follow: a `TooManyResultsError`.

So every row of an archive that stands still comes once, or the search fails.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from dicomweb_io.dicom import json_decode
from dicomweb_io.elements import LEVELS, UID_TAGS, JSONDataset, SearchLevel, SearchPage, SearchQuery
from dicomweb_io.errors import PagingError, TooManyResultsError
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
    """The UIDs that tell the rows of a search apart, from the study down; None if the row has none of its own.

    Some archives hold one SOP Instance UID in several series (Orthanc does), and each can be retrieved by itself.
    """
    tags = _NAMES[level]
    try:
        # Nearly every row is like this, and there may be millions.
        found = [row[tag]["Value"] for tag in tags]
        # The first letter of a text that is no list would tell nothing apart.
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
    """What a page says of rows behind it; see `SearchPage.more`.

    Args:
        profile: The server's behaviour.
        level: What the rows are.
        page: The page.
        announced: Whether its headers say that rows follow.
    """
    number, limit, total = len(page.rows), page.limit, page.total
    if total:
        if page.offset + number < total:
            return True
        # Totals can be wrong: behind a full page the next one is looked at all the same.
        return None if limit is not None and number >= limit else False
    if announced:
        return True
    if profile.short_pages:
        return None
    if not number:
        return False
    maximum = profile.max_limit(level)
    return False if limit is not None and maximum is not None and number < limit <= maximum else None


@dataclass(frozen=True)
class PageRequest:
    """The rows to ask for: at most `limit` of them, from `offset` on.

    Attributes:
        offset: The offset of the first row.
        limit: The most rows.
        fill: Whether the rows behind may be asked for before the answer has come. Then rows missing from a short answer
            are to be asked for at once; see `pages_of`.
    """

    offset: int
    limit: int
    fill: bool = False


@dataclass(frozen=True)
class Evidence:
    """What an answer tells the engine.

    Attributes:
        keys: The identities of its rows; see `row_key`.
        total: The number of all rows, where it was announced.
        more: Whether rows follow, where that is known.
    """

    keys: Sequence[bytes]
    total: int | None = None
    more: bool | None = None

    @classmethod
    def of(cls, page: SearchPage, level: SearchLevel) -> Evidence:
        """The evidence of a page."""
        return cls([row_key(row, level) for row in page.rows], page.total, page.more)


@dataclass(frozen=True)
class Beginning:
    """What the first pages of a search proved, for whatever reads the rest.

    Attributes:
        first: The identity of row 0.
        last: The identities of the last rows that came.
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
        """Remembers a row, and tells whether it came before. Of a row without UIDs that cannot be told."""
        if key in self:
            return len(key) == _KEY_BYTES
        if len(self._recent) >= _MAX_REMEMBERED // 2:
            self._older, self._recent = self._recent, set()
        self._recent.add(key)
        return False


class Paging:
    """The course of one search, or of the part of it from an offset on.

    `next_request` says what to send. The answers are handed in in the order of the requests: first to `doubts`, which
    may demand a further request whose answer goes to `settle`, then to `accept`, which tells the rows to pass on.

    Args:
        profile: The archive's behaviour.
        query: The search.
        url: Where it is made, for errors.
        start: The offset of the first row wanted.
        limit: The most rows to pass on; not for reading ahead.
        page_size: Rows to ask for at once; by default what the profile says.
        beginning: What is known from the pages before `start`.

    Attributes:
        level: What the rows are.
        position: The offset behind the rows received, or behind those asked for while answers are to come.
        stop: The offset at which to end; None for the end of the search. It may be changed at any time.
        total: The number of all rows, as last announced.
        passed: The rows passed on.
        repeated: The rows left out because they came before.
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
        self.repeated = 0
        self.ended = limit == 0
        self.unpaged = False
        self.offset_works = known.offset_works or profile.offset_works is True

    # Requests ---------------------------------------------------------------------------------------------------------

    def next_request(self) -> PageRequest | None:
        """The next request; None if the search has ended, or depends on an answer that is still to come.

        Raises:
            TooManyResultsError: If more rows may follow than the server gives out.
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
                f"the server returns the first {profile.max_rows} rows of a search only"
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
        """The request for the beginning of the search, if an answer looks like rows that came before."""
        keys = evidence.keys
        if self.ended or not keys or request.offset == self._first_offset:
            return None
        nothing_new = all(key in self._seen for key in keys)
        # Pages overlap where a server counts rows that it does not return, and at the end of an archive that moved.
        overlaps = not self._stalled and (self._profile.short_pages or len(keys) < request.limit)
        begins_again = keys[0] == self._first and not self._profile.short_pages
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
        number = len(now.keys)
        # Rows without UIDs cannot be told from those before, so they are not read on where rows move.
        if now.keys and now.keys[0] != self._first and all(len(key) == _KEY_BYTES for key in evidence.keys):
            self._first = now.keys[0]
            self._moved = True
            return
        same = check.limit != number <= self._passed_to and list(now.keys) == list(evidence.keys)
        announced = max(now.total or 0, evidence.total or 0, self.total or 0)
        more = now.more or evidence.more or self._profile.short_pages
        if check.offset == 0 and same and announced <= number and not more:
            self.unpaged = self.ended = True
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
            evidence: Its answer; that of a request to `fill` with all rows asked for, unless the search ends with it.

        Returns:
            The offset of each row to pass on, and its number within the answer.

        Raises:
            PagingError: If the answers go on without anything new.
        """
        if self._pending.popleft() != request:
            raise ValueError("answers are to be taken in in the order of the requests")
        if self.ended:
            return []
        keys = evidence.keys
        if evidence.total is not None:
            self.total = evidence.total
        if self._first is None and keys:
            self._first = keys[0]
        crowded = len(keys) > request.limit
        found, cut = self._new_rows(request, keys, crowded)
        self.full = len(keys) >= request.limit
        self.answer = evidence
        if found:
            self._stalled, self._moved = 0, False
            self.offset_works = self.offset_works or request.offset > self._first_offset
        else:
            self._stalled += 1
            if keys and self._stalled > _MAX_STALLED:
                raise self._error(request.offset, "page after page repeats only rows that were there before")
            # An empty page that announces rows all the same is asked for once more.
            if not keys and (self._stalled > 1 or not (self._profile.short_pages or evidence.more)):
                self.ended = True
        if not self._pending:
            # Of more rows than asked for only the new ones count: the page may begin with rows of the one before.
            advance = len(found) if crowded else len(keys)
            if not found:
                advance = request.limit if self._profile.short_pages else len(keys)
            self.position = request.offset + advance
        if self.passed == self._limit:
            self.ended = True
        elif evidence.more is False and not cut:
            # A total is believed only where as many different rows have come: rows may move between pages.
            self.ended = self.ended or not keys or evidence.total is None or self._passed_to >= evidence.total
        return found

    def _new_rows(
        self, request: PageRequest, keys: Sequence[bytes], crowded: bool
    ) -> tuple[list[tuple[int, int]], bool]:
        """The rows that did not come before, and whether some are left for the requests that are on their way."""
        found: list[tuple[int, int]] = []
        for index, key in enumerate(keys):
            if self.passed == self._limit:
                break
            if self._pending and len(found) == request.limit:
                return found, True
            if self._seen.repeats(key):
                self.repeated += 1
                continue
            found.append((request.offset + (len(found) if crowded else index), index))
            self.passed += 1
        return found, False

    # What is known ----------------------------------------------------------------------------------------------------

    @property
    def _passed_to(self) -> int:
        return self._start + self.passed

    @property
    def total_is_wrong(self) -> bool:
        """Whether the search ended with another number of rows than was announced."""
        whole = self._limit is None and self.stop is None
        return self.ended and whole and self.total is not None and self.total != self._passed_to

    @property
    def beginning(self) -> Beginning:
        """What the pages so far proved, for whatever reads the rest."""
        return Beginning(self._first, tuple(self.answer.keys[-_MAX_CARRIED:]), self.total, self.full, self.offset_works)

    def _error(self, offset: int, what: str) -> PagingError:
        return PagingError(
            f"{what} (asked for rows from {offset} on). The rows so far are not known to be all. Ask for one page with "
            "a limit that covers everything, or use a profile whose max_limits tell the server's true maximum",
            method="GET",
            url=self._url,
        )


def pages_of(request: PageRequest, ask: Callable[[PageRequest], SearchPage]) -> Iterator[SearchPage]:
    """Yields the answer to a request, and of one to fill further ones until no row is missing or the search ends."""
    received, emptied = 0, False
    while True:
        page = ask(PageRequest(request.offset + received, request.limit - received))
        received += len(page.rows)
        if not page.rows and request.fill:
            if page.more and not emptied:
                emptied = True
                continue
            page = replace(page, more=False)
        yield page
        if not request.fill or received >= request.limit or page.more is False:
            return


def next_rows(paging: Paging, ask: Callable[[PageRequest], SearchPage]) -> list[JSONDataset] | None:
    """Sends the next request by `ask`, and returns the rows to pass on; None if nothing more is to be asked for."""
    request = paging.next_request()
    if request is None:
        return None
    page = ask(request)
    evidence = Evidence.of(page, paging.level)
    check = paging.doubts(request, evidence)
    if check is not None:
        paging.settle(check, Evidence.of(ask(check), paging.level))
    return [page.rows[index] for _, index in paging.accept(request, evidence)]


def read_in_turn(paging: Paging, ask: Callable[[PageRequest], SearchPage]) -> Iterator[JSONDataset]:
    """Yields the rows of a search, whose requests `ask` sends one after another."""
    while (rows := next_rows(paging, ask)) is not None:
        yield from rows
