"""The index of a folder: a disposable cache of what its files say, brought up to date by comparing listings.

An unchanged file is recognised by size and version (time of modification, or an object store's tag) and not read
again. From the files follow the views that searches use: one row for each instance, series and study. Among files that
share a SOP Instance UID the rule for duplicates decides which one stands for the instance.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from dicomweb_io.clients.files.database import Database, discard, is_local_disk
from dicomweb_io.clients.files.location import FileStat, Folder, Problem
from dicomweb_io.clients.files.records import (
    IGNORED,
    INSTANCE,
    UNREADABLE,
    FileRecord,
    pack_scan,
    read_record,
    unpack_scan,
)
from dicomweb_io.clients.files.sources import is_settled
from dicomweb_io.clients.files.views import (
    MAX_VARIABLES,
    Duplicates,
    Touched,
    Views,
    batches,
    instance_row,
    make_rows,
    path_key,
    path_text,
)
from dicomweb_io.dicom.header_scan import HeaderScan
from dicomweb_io.dicom.json_model import encode

logger = logging.getLogger(__name__)

_BATCH = 1000
_REMOTE_READERS = 16

T = TypeVar("T")


class IndexedFile(NamedTuple):
    """A file that stands for an instance."""

    id: int
    path: str
    size: int
    version: str
    study: str
    series: str
    sop: str
    sop_class: str | None
    syntax: str


class RefreshCounts(NamedTuple):
    """What a refresh found: files in the folder, files that were read, and files that are gone."""

    files: int
    read: int
    removed: int


class Index:
    """The index of one folder, usable from several threads; each call sees one state of it.

    Args:
        folder: The files.
        place: The database file; None for a private index.
        in_memory: Keep a private index in memory.
        duplicates: The rule for files with one SOP Instance UID.
        rebuild: Throw away what is there.
        tidy: Remove from the folder the temporary files of writers that died.
    """

    def __init__(
        self,
        folder: Folder,
        *,
        place: Path | None = None,
        in_memory: bool = False,
        duplicates: Duplicates = "first",
        rebuild: bool = False,
        tidy: bool = False,
    ) -> None:
        self.folder = folder
        self.lock = threading.RLock()
        self.generation = 0
        self._place = place
        self._in_memory = in_memory
        self._duplicates = duplicates
        self._tidy = tidy
        self._views = Views(folder, duplicates)
        self._fragments: dict[int, bytes] = {}
        if rebuild and place is not None:
            discard(place)
        self._database = Database(place, in_memory=in_memory)
        self._process = os.getpid()

    def close(self) -> None:
        """Closes the database."""
        with self.lock:
            self._database.close()

    # Bringing it up to date -----------------------------------------------------------------------------------------

    def open(self, update: bool = True) -> None:
        """Takes the first snapshot, with what is in the folder now.

        Args:
            update: Compare with the folder; if not, an index that was complete once is taken as it is.
        """
        self._leave_parent()
        with self.lock:
            if not update and self._is_complete():
                self._snapshot()
            else:
                self.refresh()

    def refresh(self) -> RefreshCounts:
        """Compares the folder with the index, reads what is new or changed, and takes a new snapshot.

        Raises:
            FileNotFoundError: If the folder does not exist.
            ConflictingDuplicatesError: If the rule for duplicates says so.
        """
        return self._updating(self._refresh)

    def update(self, paths: Iterable[str]) -> None:
        """Looks at these files only, wherever they are new, changed or gone, and takes a new snapshot."""
        names = sorted(set(paths))
        self._updating(lambda: self._update(names))

    def _updating(self, work: Callable[[], T]) -> T:
        self._leave_parent()
        with self.lock:
            try:
                return self._update_once(work)
            except sqlite3.OperationalError:
                raise
            except sqlite3.DatabaseError as error:
                logger.warning("the index is damaged (%s) and is built anew", error)
                self._database.close()
                if self._place is not None:
                    discard(self._place)
                self._database = Database(self._place, in_memory=self._in_memory)
                self._update_once(self._refresh)
                return self._update_once(work)

    def _update_once(self, work: Callable[[], T]) -> T:
        self._database.release_snapshot()
        with self._database.exclusive():
            try:
                return work()
            finally:
                if self._database.writer.in_transaction:
                    self._database.writer.execute("ROLLBACK")
                self._snapshot()

    def _snapshot(self) -> None:
        self._database.hold_snapshot()
        self.generation += 1

    def _is_complete(self) -> bool:
        row = self._database.writer.execute("SELECT value FROM about WHERE name = 'complete'").fetchone()
        return row is not None and bool(row[0])

    def _refresh(self) -> RefreshCounts:
        started = time.monotonic()
        writer = self._database.writer
        known: dict[bytes, tuple[int, int, str]] = {
            path: (number, size, version)
            for number, path, size, version in writer.execute("SELECT id, path, size, version FROM file")
        }
        everything = not self._is_complete()
        changed: list[FileStat | Problem] = []
        abandoned: list[str] | None = [] if self._tidy else None
        files = 0
        try:
            for found in self.folder.walk(abandoned):
                files += 1
                size, version = (found.size, found.version) if isinstance(found, FileStat) else (-1, found.reason)
                old = known.pop(path_key(found.path), None)
                if old is None or old[1] != size or old[2] != version:
                    changed.append(found)
        except FileNotFoundError:
            if known:
                self._remove([number for number, _, _ in known.values()], set())
                self._finish(None)
            raise
        if abandoned:
            self.folder.sweep(abandoned)
        gone = [number for number, _, _ in known.values()]
        if changed or gone or everything:
            touched: Touched = set()
            self._remove(gone, touched)
            self._read_all(changed, touched)
            self._finish(None if everything else touched)
            logger.info(
                "index of %s: %d files, %d read, %d gone, in %.1f s",
                self.folder.base_url, files, len(changed), len(gone), time.monotonic() - started,
            )  # fmt: skip
        if self._duplicates == "error":
            self._views.refuse_conflicts(self._database.writer)
        return RefreshCounts(files, len(changed), len(gone))

    def _update(self, names: Sequence[str]) -> None:
        touched: Touched = set()
        changed: list[FileStat | Problem] = []
        gone = []
        for name in names:
            stat = self.folder.stat(name)
            if stat is not None:
                changed.append(stat)
                continue
            row = self._database.writer.execute("SELECT id FROM file WHERE path = ?", (path_key(name),)).fetchone()
            if row is not None:
                gone.append(row[0])
        everything = not self._is_complete()
        self._remove(gone, touched)
        self._read_all(changed, touched)
        self._finish(None if everything else touched)

    def _read_all(self, changed: Sequence[FileStat | Problem], touched: Touched) -> None:
        """Reads files and writes them to the index, in batches, so that a crash loses little."""
        for records in batches(self._records(changed), _BATCH):
            self._begin()
            self._write(records, touched)
            self._database.writer.execute("COMMIT")

    def _records(self, changed: Sequence[FileStat | Problem]) -> Iterator[FileRecord]:
        def read(found: FileStat | Problem) -> FileRecord:
            if isinstance(found, Problem):
                kind = IGNORED if found.reason == "not a regular file" else UNREADABLE
                return FileRecord(FileStat(found.path, -1, found.reason, 0.0), kind, found.reason)
            record = read_record(self.folder, found)
            if found.modified and not is_settled(found.modified):
                record.stat = record.stat._replace(version="!")
            return record

        if len(changed) < 2 or (self.folder.is_local and is_local_disk(Path(self.folder.url))):
            # Parsing holds the interpreter's lock, and a disk answers at once: threads would only take turns.
            yield from map(read, changed)
            return
        with ThreadPoolExecutor(_REMOTE_READERS, thread_name_prefix="dicomweb_io-index") as pool:
            for part in batches(changed, _REMOTE_READERS * 8):
                yield from pool.map(read, part)

    def _begin(self) -> None:
        writer = self._database.writer
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("INSERT OR REPLACE INTO about VALUES ('complete', 0)")

    def _write(self, records: Sequence[FileRecord], touched: Touched) -> None:
        writer = self._database.writer
        sops: set[str] = set()
        rows: dict[int, tuple[int, str]] = {}
        for record in records:
            key = path_key(record.stat.path)
            old = writer.execute("SELECT id, sop FROM file WHERE path = ?", (key,)).fetchone()
            values = (
                key, record.stat.size, record.stat.version, record.stat.modified, record.kind, record.reason,
                record.study, record.series, record.sop, record.sop_class, record.syntax,
            )  # fmt: skip
            if old is None:
                cursor = writer.execute(
                    "INSERT INTO file (path, size, version, modified, kind, reason, study, series, sop, sop_class, "
                    "syntax) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    values,
                )
                number = int(cursor.lastrowid or 0)
            else:
                number = int(old[0])
                self._forget(number, touched)
                writer.execute(
                    "UPDATE file SET path = ?, size = ?, version = ?, modified = ?, kind = ?, reason = ?, study = ?, "
                    "series = ?, sop = ?, sop_class = ?, syntax = ?, digest = NULL WHERE id = ?",
                    (*values, number),
                )
                if old[1] is not None:
                    sops.add(old[1])
            if record.sop is not None:
                sops.add(record.sop)
            if record.kind == INSTANCE and record.scan is not None:
                form, content = pack_scan(record.scan)
                writer.execute("INSERT OR REPLACE INTO header VALUES (?, ?, ?)", (number, form, content))
                rows[number] = instance_row(record.scan)
        self._views.choose(writer, sops, rows, touched)

    def _forget(self, number: int, touched: Touched) -> None:
        """Drops what follows from the former content of a file."""
        writer = self._database.writer
        self._fragments.pop(number, None)
        row = writer.execute("SELECT study, series FROM instance WHERE file = ?", (number,)).fetchone()
        if row is not None:
            touched.add((row[0], row[1]))
            writer.execute("DELETE FROM instance WHERE file = ?", (number,))
        writer.execute("DELETE FROM header WHERE file = ?", (number,))
        writer.execute("DELETE FROM fragments WHERE file = ?", (number,))

    def _remove(self, numbers: Sequence[int], touched: Touched) -> None:
        writer = self._database.writer
        for part in batches(numbers, _BATCH):
            self._begin()
            sops = set()
            for number in part:
                row = writer.execute("SELECT sop FROM file WHERE id = ?", (number,)).fetchone()
                if row is not None and row[0] is not None:
                    sops.add(row[0])
                self._forget(number, touched)
                writer.execute("DELETE FROM file WHERE id = ?", (number,))
            self._views.choose(writer, sops, {}, touched)
            writer.execute("COMMIT")

    def _finish(self, touched: Touched | None) -> None:
        writer = self._database.writer
        self._begin()
        make_rows(writer, touched)
        writer.execute("INSERT OR REPLACE INTO about VALUES ('complete', 1)")
        writer.execute("COMMIT")

    def digest(self, number: int) -> bytes:
        """A hash of all bytes of a file; computed when first wanted and kept until the file changes.

        Raises:
            OSError: If the file cannot be read.
        """
        self._own_snapshot()
        with self.lock, self._database.exclusive():
            return self._views.digest(self._database.writer, number)

    # Reading the snapshot -------------------------------------------------------------------------------------------

    def select(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of a query on the snapshot."""
        self._own_snapshot()
        with self.lock:
            return self._database.reader.execute(sql, values).fetchall()

    def select_in(self, sql: str, numbers: Sequence[int]) -> Iterator[tuple[Any, ...]]:
        """Rows for many numbers; ``%s`` in the query stands for their marks. In no particular order."""
        for part in batches(numbers, MAX_VARIABLES):
            yield from self.select(sql % ",".join("?" * len(part)), part)

    def numbers(self, sql: str, values: Sequence[Any] = ()) -> array[int]:
        """The first column of a query on the snapshot."""
        self._own_snapshot()
        with self.lock:
            return array("q", (row[0] for row in self._database.reader.execute(sql, values)))

    def scan_of(self, number: int) -> HeaderScan | None:
        """What is kept of the header of a file; None if the file is not in the snapshot any more."""
        self._own_snapshot()
        with self.lock:
            row = self._database.reader.execute("SELECT form, content FROM header WHERE file = ?", (number,)).fetchone()
        return None if row is None else unpack_scan(row[0], row[1])

    def attributes(self, number: int, tags: tuple[str, ...]) -> dict[str, Any]:
        """Some attributes of a file as DICOM JSON, large ones from the file itself; empty if it is not there any more.

        Raises:
            OSError: If a large value is wanted and the file cannot be read.
        """
        self._own_snapshot()
        with self.lock:
            row = self._database.reader.execute(
                "SELECT h.form, h.content, f.path, f.size, f.version FROM header h JOIN file f ON f.id = h.file "
                "WHERE h.file = ?",
                (number,),
            ).fetchone()
        if row is None:
            return {}
        wanted = [int(tag, 16) for tag in tags]
        scan = unpack_scan(row[0], row[1], stop_after=max(wanted))
        for tag in wanted:
            place = scan.elements.get(tag)
            if place is not None and scan.read(place[1], place[2]) is None:
                with self.folder.open(path_text(row[2]), row[3]) as file:
                    return encode(scan, tags=tags, file=file)
        return encode(scan, tags=tags)

    def _leave_parent(self) -> bool:
        """In a forked child: opens a database of its own, as the connections of the parent must not be used."""
        if os.getpid() == self._process:
            return False
        self.lock = threading.RLock()
        self._database = Database(self._place, in_memory=self._in_memory)
        self._process = os.getpid()
        return True

    def _own_snapshot(self) -> None:
        if self._leave_parent():
            self.open()

    def files(self, where: str, values: Sequence[Any]) -> Iterator[IndexedFile]:
        """The files that stand for instances, in order, some hundred at a time.

        Args:
            where: A condition on the columns of ``instance`` as ``i``.
            values: Its values.
        """
        numbers = self.numbers(
            f"SELECT i.file FROM instance i WHERE {where} ORDER BY i.study, i.series, i.number, i.sop, i.file",  # noqa: S608
            values,
        )
        for part in batches(numbers, MAX_VARIABLES):
            found = {
                row[0]: IndexedFile(row[0], path_text(row[1]), *row[2:])
                for row in self.select(
                    "SELECT id, path, size, version, study, series, sop, sop_class, syntax FROM file WHERE id IN "  # noqa: S608
                    f"({','.join('?' * len(part))})",
                    part,
                )
            }
            yield from (found[number] for number in part if number in found)

    def paths_of(self, condition: str, values: Sequence[Any]) -> list[str]:
        """The paths of all files, chosen or not, that meet a condition on the columns of ``file``."""
        rows = self.select(f"SELECT path FROM file WHERE {condition} ORDER BY path", values)  # noqa: S608
        return [path_text(row[0]) for row in rows]

    def fragments(self, number: int) -> bytes | None:
        """The table of fragments that was kept for a file, if any."""
        if number in self._fragments:
            return self._fragments[number]
        row = self.select("SELECT packed FROM fragments WHERE file = ?", (number,))
        return bytes(row[0][0]) if row else None

    def keep_fragments(self, number: int, packed: bytes) -> None:
        """Keeps a table of fragments; the next snapshot has it.

        While another process brings the index up to date, only this client keeps it: a frame does not wait for that.
        """
        self._own_snapshot()
        with self.lock:
            if self._database.writer.in_transaction:
                return
            self._fragments[number] = packed
            try:
                with self._database.exclusive(wait=False):
                    self._database.writer.execute("INSERT OR REPLACE INTO fragments VALUES (?, ?)", (number, packed))
            except BlockingIOError:
                logger.debug("the index of %s is busy: a table of fragments was not kept there", self.folder.base_url)
