"""`PageReader`: the rows of a search from an offset on, with pages read ahead in a pool."""

from __future__ import annotations

import pickle
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from dicomweb_io.client import DICOMClient
from dicomweb_io.elements import JSONDataset, SearchLevel, SearchQuery
from dicomweb_io.failures import RECOVERABLE
from dicomweb_io.pool import BoundedPool, Room
from dicomweb_io.web.search import resource_name

DEFAULT_PAGE_SIZE = 1000

_UID_TAGS: dict[SearchLevel, tuple[str, ...]] = {
    "study": ("0020000D",),
    "series": ("0020000D", "0020000E"),
    "instance": ("0020000D", "0020000E", "00080018"),
}

# Rows of common archives take 1 to 2 KB as text, and several times that as objects.
_BYTES_PER_ROW = 8192
_MAX_REMEMBERED = 50_000

# Waiting rows are packed so many at a time. Each row is dozens of dicts and lists: unpacked, a few thousand of them
# make Python's garbage collector walk through the whole heap again and again, for a third of a search's time.
_ROWS_PACKED = 10


class PagingError(ValueError):
    """An archive's answers to a search contradict each other, so that no complete result can be had."""


def uid_of(row: JSONDataset, level: SearchLevel) -> str | None:
    """What tells the rows of a search apart: the UIDs from the study down; None if the row has none of its own.

    Some archives hold one SOP Instance UID in several series (Orthanc does), and each can be retrieved by itself.
    """
    tags = _UID_TAGS[level]
    try:
        # Nearly every row is like this, and there may be millions.
        uids = [row[tag]["Value"][0] for tag in tags]
        if uids[-1]:
            return "/".join(uids)
    except (KeyError, IndexError, TypeError):
        pass
    uids = []
    for tag in tags:
        values = row.get(tag, {}).get("Value")
        uids.append(values[0] if values and isinstance(values[0], str) else "")
    return "/".join(uids) if uids[-1] else None


@dataclass(frozen=True)
class PagingFacts:
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


def paging_facts(client: DICOMClient, query: SearchQuery) -> PagingFacts:
    """How a query is to be paged."""
    profile = client.profile
    resource = resource_name(query)
    exists = True if resource is None else getattr(profile, resource)
    lists = any(separator in text for _, text in query.search_filters for separator in ("\\", ","))
    return PagingFacts(
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


@dataclass
class PackedSlot:
    """A slot that waits until its rows are wanted.

    Attributes:
        slot: The slot without its rows.
        uids: What tells the rows apart.
        parcels: The rows.
    """

    slot: Slot
    uids: list[str | None]
    parcels: list[bytes] = field(repr=False)

    @classmethod
    def of(cls, slot: Slot, level: SearchLevel) -> PackedSlot:
        """Takes the rows out of a slot and packs them."""
        rows, slot.rows = slot.rows, []
        parcels = [pickle.dumps(rows[first : first + _ROWS_PACKED], 5) for first in range(0, len(rows), _ROWS_PACKED)]
        return cls(slot, [uid_of(row, level) for row in rows], parcels)

    def rows(self) -> Iterator[JSONDataset]:
        """The rows, a few at a time in memory."""
        for parcel in self.parcels:
            yield from pickle.loads(parcel)  # noqa: S301 - our own bytes


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

    Unless the archive is known to honour offsets and its last answer was as long as asked for, the first slot is read
    alone: it may be the last one, or show that offsets are ignored. Behind a full slot further ones are read ahead, as
    far as the pool allows: up to the announced total at once, otherwise twice as many each time.

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
        full: Whether the answer before the first row held as many rows as were asked for.
        total: The total that the archive announced; a hint.
        behaviour: What is known of the archive.
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
        full: bool = True,
        total: int | None = None,
        facts: PagingFacts | None = None,
    ) -> None:
        self._client = client
        self._query = query
        self._pool = pool
        self._start = start
        self._stop = stop
        self._page_size = max(1, page_size)
        self._first_uid = first_uid
        self._facts = facts or PagingFacts(offset_works=False)
        self._proven = full and self._facts.offset_works
        self._total = total
        self._seen: OrderedDict[str, None] = OrderedDict.fromkeys(before)
        self.requests = 0
        self.repeated = 0

    def __iter__(self) -> Iterator[tuple[int, JSONDataset]]:
        """Yields (offset, row); rows that were met before are left out.

        Raises:
            requests.RequestException: As the client raises it; the rows before were yielded.
            PagingError: If the archive ignores offsets or repeats itself.
        """
        seen = self._seen
        for packed in self._slots():
            slot, uids = packed.slot, packed.uids
            self.requests += slot.requests
            self._check(packed)
            crowded = len(uids) > slot.size
            fresh = 0
            for index, row in enumerate(packed.rows()):
                if fresh == slot.size:
                    # What is left of too many rows is asked for with the next offset.
                    break
                uid = uids[index]
                if uid is not None:
                    if uid in seen:
                        self.repeated += 1
                        continue
                    seen[uid] = None
                yield slot.offset + (fresh if crowded else index), row
                fresh += 1
            while len(seen) > _MAX_REMEMBERED:
                seen.popitem(last=False)
            if slot.error is not None:
                raise slot.error
            if slot.ended:
                return

    def _slots(self) -> Iterator[PackedSlot]:
        lane = self._pool.lane(ordered=True)
        maximum = self._pool.max_in_flight
        ahead = maximum if self._proven else 1
        # How many were asked for and not given yet: `arrived` are here, the others are on their way.
        pending, full, offset = 0, 0, self._start
        arrived: deque[PackedSlot] = deque()
        try:
            while True:
                while (
                    pending < ahead
                    # While there is something to be given, nobody waits for a place in the pool.
                    and not (arrived and self._pool.in_flight >= maximum)
                    and (size := self._next_size(offset, alone=not pending)) > 0
                ):
                    pending += 1
                    arrived.extend(slot for _, slot in lane.submit(offset, self._task(offset, size)))
                    offset += size
                if not pending:
                    return
                if not arrived:
                    arrived.append(next(lane.drain())[1])
                packed = arrived.popleft()
                pending -= 1
                if len(packed.uids) >= packed.slot.size:
                    # A full page. Where the end is known there is nothing to be asked for in vain.
                    full += 1
                    ahead = maximum if self._total is not None else min(2 * ahead, maximum)
                    if full >= 2 * maximum:
                        # In a long search one slow answer must not leave the others without work.
                        ahead = 2 * maximum
                yield packed
        finally:
            lane.close()

    def _next_size(self, offset: int, *, alone: bool) -> int:
        """How many rows to ask for from an offset on; 0 if nothing (more) is to be read there now."""
        stop = self._stop()
        if stop is not None:
            return min(self._page_size, stop - offset)
        # Totals can be wrong, so that what is behind is looked at too, but then one page after the other.
        return 0 if self._total is not None and offset >= self._total and not alone else self._page_size

    def _task(self, offset: int, size: int) -> Callable[[Room], Iterator[PackedSlot]]:
        def produce(room: Room) -> Iterator[PackedSlot]:
            room.reserve(size * _BYTES_PER_ROW)
            slot = read_slot(self._client, self._query, offset, size, self._facts.max_offset)
            yield PackedSlot.of(slot, self._query.level)

        return produce

    def _check(self, packed: PackedSlot) -> None:
        slot, uids = packed.slot, packed.uids
        if not uids:
            return
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
