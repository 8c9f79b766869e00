"""`PageReader`: the rows of a search from an offset on, with pages read ahead in a pool."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from dicomweb_io.clients.failures import RECOVERABLE
from dicomweb_io.clients.pool import BoundedPool, Room
from dicomweb_io.clients.profiles import ServerProfile
from dicomweb_io.clients.protocol import DICOMClient
from dicomweb_io.clients.web.walking import resource_name
from dicomweb_io.elements import JSONDataset, SearchLevel, SearchQuery

DEFAULT_PAGE_SIZE = 1000

_UID_TAGS: dict[SearchLevel, str] = {"study": "0020000D", "series": "0020000E", "instance": "00080018"}

# Rows of common archives take 1 to 2 KB as text, and several times that as objects.
_BYTES_PER_ROW = 8192
_MOST_REMEMBERED = 50_000


class PagingError(ValueError):
    """An archive's answers to a search contradict each other, so that no complete result can be had."""


def uid_of(row: JSONDataset, level: SearchLevel) -> str | None:
    """What tells the rows of a search apart: the UIDs from the study down; None if the row has none of its own.

    Some archives hold one SOP Instance UID in several series (Orthanc does), and each can be retrieved by itself.
    """
    uids: list[str] = []
    for name, tag in _UID_TAGS.items():
        values = row.get(tag, {}).get("Value")
        uids.append(values[0] if values and isinstance(values[0], str) else "")
        if name == level:
            break
    return "/".join(uids) if uids[-1] else None


@dataclass(frozen=True)
class Manners:
    """What is known of an archive's paging, from its profile.

    Attributes:
        page_size: Rows to ask for at once.
        by_offset: Whether rows may be asked for by offset, several pages at once. Otherwise the client's own iterator
            is used, which knows how to page such servers, or to walk their levels.
        try_by_offset: Whether `by_offset` is a guess, to be taken back if the first answer looks walked.
        offset_works: Whether it is known that the archive honours offsets.
        max_offset: The largest offset that it accepts.
    """

    page_size: int = DEFAULT_PAGE_SIZE
    by_offset: bool = True
    try_by_offset: bool = False
    offset_works: bool = True
    max_offset: int | None = None


def manners_of(client: DICOMClient, query: SearchQuery) -> Manners:
    """How a query is to be paged."""
    profile = getattr(client, "profile", None)
    if not isinstance(profile, ServerProfile):
        # A folder: its index answers any page at once.
        return Manners()
    resource = resource_name(query)
    exists = True if resource is None else getattr(profile, resource)
    lists = any(separator in text for _, text in query.search_filters for separator in ("\\", ","))
    return Manners(
        page_size=profile.page_size(query.level),
        by_offset=exists is not False
        and not profile.short_pages
        and profile.max_rows is None
        and (profile.uid_lists or not lists),
        try_by_offset=exists is None,
        offset_works=profile.offset_works is True,
        max_offset=profile.max_offset,
    )


@dataclass
class Slot:
    """The rows from an offset on, as many as were asked for unless the search ended or failed.

    Attributes:
        offset: The first row.
        rows: The rows; more than `size` if the archive ignores limits or repeats rows of the page before.
        size: How many were asked for.
        ended: The archive has no more rows.
        error: What happened after `rows`.
        requests: The requests it took.
    """

    offset: int
    rows: list[JSONDataset]
    size: int
    ended: bool = False
    error: BaseException | None = None
    requests: int = 0


def read_slot(client: DICOMClient, query: SearchQuery, offset: int, size: int, max_offset: int | None = None) -> Slot:
    """Reads `size` rows, in as many requests as the archive's own page size makes necessary.

    Rows are counted as they are received: archives answer with fewer than asked for, and a short page is the end only
    if the client knows that nothing follows.
    """
    slot = Slot(offset, [], size)
    try:
        while len(slot.rows) < size:
            wanted = size - len(slot.rows)
            if max_offset is not None and offset + len(slot.rows) > max_offset:
                raise PagingError(
                    f"{client.base_url} accepts no offset above {max_offset}, and there may be more rows; narrow the "
                    "search, for example by ranges of StudyDate"
                )
            page = client.search_page(query, offset=offset + len(slot.rows), limit=wanted)
            slot.requests += 1
            slot.rows.extend(page.rows)
            if not page.rows or page.more is False:
                # More rows than asked for: some archives ignore limits. The rest will be asked for again.
                slot.ended = len(page.rows) <= wanted
                break
    except RECOVERABLE as error:
        slot.error = error
    return slot


class PageReader:
    """Iterates over the rows of a search from an offset on.

    Unless the archive is known to honour offsets, the first slot is read alone, to see whether it does. Then further
    ones are read ahead, twice as many each time, as far as the pool allows.

    Args:
        client: The archive.
        query: The search.
        pool: Where pages are read.
        start: The first row.
        stop: Tells, whenever asked, the row after the last one wanted; None if it is the end of the search. What lies
            behind it is not asked for.
        page_size: Rows in a slot: what the archive's first answer held.
        first_uid: The UID of row 0, to notice an archive that ignores offsets.
        before: UIDs of rows before the first, which are left out if they come again.
        manners: What is known of the archive.
    """

    def __init__(
        self,
        client: DICOMClient,
        query: SearchQuery,
        pool: BoundedPool,
        *,
        start: int,
        stop: Callable[[], int | None],
        page_size: int,
        first_uid: str | None = None,
        before: Sequence[str] = (),
        manners: Manners | None = None,
    ) -> None:
        self._client = client
        self._query = query
        self._pool = pool
        self._start = start
        self._stop = stop
        self._page_size = max(1, page_size)
        self._first_uid = first_uid
        self._manners = manners or Manners(offset_works=False)
        self._seen: OrderedDict[str, None] = OrderedDict.fromkeys(before)
        self.requests = 0
        self.repeated = 0

    def __iter__(self) -> Iterator[tuple[int, JSONDataset]]:
        """Yields (offset, row); rows that were met before are left out.

        Raises:
            requests.RequestException: As the client raises it; the rows before were yielded.
            PagingError: If the archive ignores offsets or repeats itself.
        """
        for slot in self._slots():
            self.requests += slot.requests
            self._check(slot)
            crowded = len(slot.rows) > slot.size
            fresh = 0
            for index, row in enumerate(slot.rows):
                if fresh == slot.size:
                    # What is left of too many rows is asked for with the next offset.
                    break
                uid = uid_of(row, self._query.level)
                if uid is not None:
                    if uid in self._seen:
                        self.repeated += 1
                        continue
                    self._seen[uid] = None
                yield slot.offset + (fresh if crowded else index), row
                fresh += 1
            while len(self._seen) > _MOST_REMEMBERED:
                self._seen.popitem(last=False)
            if slot.error is not None:
                raise slot.error
            if slot.ended:
                return

    def _slots(self) -> Iterator[Slot]:
        lane = self._pool.lane(ordered=True)
        ahead = self._pool.max_in_flight if self._manners.offset_works else 1
        pending, offset = 0, self._start
        try:
            while True:
                arrived: list[Slot] = []
                while pending + len(arrived) < ahead:
                    stop = self._stop()
                    size = self._page_size if stop is None else min(self._page_size, stop - offset)
                    if size <= 0:
                        break
                    pending += 1
                    arrived.extend(slot for _, slot in lane.submit(offset, self._task(offset, size)))
                    offset += size
                if not pending:
                    return
                if not arrived:
                    arrived.append(next(lane.drain())[1])
                for slot in arrived:
                    pending -= 1
                    ahead = min(2 * ahead, self._pool.max_in_flight)
                    yield slot
        finally:
            lane.close()

    def _task(self, offset: int, size: int) -> Callable[[Room], Iterator[Slot]]:
        def produce(room: Room) -> Iterator[Slot]:
            room.reserve(size * _BYTES_PER_ROW)
            yield read_slot(self._client, self._query, offset, size, self._manners.max_offset)

        return produce

    def _check(self, slot: Slot) -> None:
        if not slot.rows:
            return
        uids = [uid_of(row, self._query.level) for row in slot.rows]
        if slot.offset and self._first_uid is not None and uids[0] == self._first_uid:
            raise PagingError(
                f"{self._client.base_url} answered a {self._query.level} search at offset {slot.offset} with row 0 "
                "again: it seems to ignore offsets. Narrow the search so that one answer holds all rows"
            )
        if len(uids) > 1 and all(uid is not None and uid in self._seen for uid in uids):
            raise PagingError(
                f"{self._client.base_url} answered a {self._query.level} search at offset {slot.offset} only with rows "
                "that it had given before: it seems to ignore offsets"
            )


class ClientReader:
    """Iterates over the rows of a search from an offset on as the client itself pages, without reading ahead.

    Args:
        client: The archive.
        query: The search.
        start: The first row.
        stop: The row after the last one wanted, or None.
        page_size: Rows to ask for at once, or None.
    """

    def __init__(
        self, client: DICOMClient, query: SearchQuery, *, start: int, stop: int | None, page_size: int | None
    ) -> None:
        self._rows = client.iter_search(
            query, offset=start, limit=None if stop is None else stop - start, page_size=page_size
        )
        self._start = start
        self.requests = 0
        self.repeated = 0

    def __iter__(self) -> Iterator[tuple[int, JSONDataset]]:
        """Yields (offset, row). Errors are those of the client."""
        return enumerate(self._rows, self._start)
