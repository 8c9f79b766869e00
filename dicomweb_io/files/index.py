"""The index of a folder: a disposable cache of what its files say, brought up to date by comparing listings.

An unchanged file is recognised by size and version (time of modification, or an object store's tag) and is not read
again. Of each file the database holds a record (`dicomweb_io.files.records`). From the records follow the rows that
searches return: one for each instance, series and study. The first instance of a series, in the order of searches,
represents the series, and the first series its study.

Study, series and SOP Instance UID together name an instance. Among complete files that share all three the rule for
duplicates decides which one represents the instance; a truncated file never does, nor one that lacks its pixel data if
another has them. `iter_exclusions` lists the files that do not represent an instance, and why.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import sqlite3
import threading
import time
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from dicomweb_io.dicom.header_scan import HeaderScan
from dicomweb_io.dicom.json_decode import dumps, first_value
from dicomweb_io.dicom.json_encode import encode
from dicomweb_io.dicom.part10 import has_pixel_data
from dicomweb_io.dicom.uids import is_uid
from dicomweb_io.elements import BEGINS_ALIKE, SERIES_INSTANCE_UID, STUDY_INSTANCE_UID, Exclusion, Resource
from dicomweb_io.errors import DICOMError
from dicomweb_io.files.database import Database, discard, is_local_disk
from dicomweb_io.files.places import FileStat, Folder, Problem, is_settled, read_exactly
from dicomweb_io.files.records import (
    IGNORED,
    INSTANCE,
    SERIES_NUMBER_TAG,
    UNREADABLE,
    FileRecord,
    instance_row,
    number_of,
    pack_scan,
    path_key,
    path_text,
    read_record,
    unpack_scan,
)
from dicomweb_io.http.retry import start_anew_after_fork
from dicomweb_io.queries import MODALITY, SERIES_DEFAULTS, STUDY_DEFAULTS

logger = logging.getLogger(__name__)

Duplicates = Literal["first", "newest", "all", "error"]
DUPLICATE_RULES = ("first", "newest", "all", "error")

MAX_VARIABLES = 500
"""Parameters of one SQL statement; old versions of SQLite take 999."""
_BATCH = 1000
_REMOTE_READERS = 16

Touched = set[tuple[str, str]]
"""Pairs of study and series whose rows have to be made again."""

_Name = tuple[str, str, str]

T = TypeVar("T")


class ConflictingDuplicatesError(DICOMError):
    """Files of one instance differ, and the rule is ``duplicates="error"``."""


class IndexedFile(NamedTuple):
    """A file that represents an instance."""

    id: int
    path: str
    size: int
    version: str
    study: str
    series: str
    sop: str
    sop_class: str | None
    syntax: str
    warnings: str | None = None


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
        duplicates: The rule for files of one instance.
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
        self._forked = False
        start_anew_after_fork(self)
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

    def start_anew(self) -> None:
        """In a forked child: leaves the database to the parent, and takes a copy of it when it is used."""
        self.lock = threading.RLock()
        self._forked = True

    def close(self) -> None:
        """Closes the database."""
        with self.lock:
            if not self._forked:
                self._database.close()

    def open(self, update: bool = True) -> None:
        """Takes the first snapshot, with what is in the folder now.

        Args:
            update: Compare with the folder; otherwise use an index that was complete once as it is.
        """
        self._leave_parent()
        with self.lock:
            if not update and self._is_complete():
                self._snapshot()
            else:
                self.refresh()

    def start_empty(self) -> None:
        """Takes the first snapshot of a folder that had no files when it was looked at."""

        def work() -> None:
            known = [number for (number,) in self._database.writer.execute("SELECT id FROM file")]
            self._remove(known, set())
            self._finish(None)

        self._updating(work)

    def refresh(self) -> RefreshCounts:
        """Compares the folder with the index, reads what is new or changed, and takes a new snapshot.

        Raises:
            FileNotFoundError: If the folder does not exist.
            ConflictingDuplicatesError: If the rule for duplicates is "error" and there are any.
        """
        return self._updating(self._refresh)

    def update(self, paths: Iterable[str]) -> None:
        """Looks at these files only, whether new, changed or gone, and takes a new snapshot."""
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
                logger.warning("the index is damaged (%s) and is rebuilt", error)
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
            for entry in self.folder.walk(abandoned):
                files += 1
                size, version = (entry.size, entry.version) if isinstance(entry, FileStat) else (-1, entry.reason)
                old = known.pop(path_key(entry.path), None)
                if old is None or old[1] != size or old[2] != version:
                    changed.append(entry)
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
            self._views.check_conflicts(self._database.writer)
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
        def read(entry: FileStat | Problem) -> FileRecord:
            if isinstance(entry, Problem):
                kind = IGNORED if entry.reason == "not a regular file" else UNREADABLE
                return FileRecord(FileStat(entry.path, -1, entry.reason, 0.0), kind, entry.reason)
            record = read_record(self.folder, entry)
            if entry.modified and not entry.tagged and not is_settled(entry.modified):
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
        """Deletes what follows from the former content of a file."""
        writer = self._database.writer
        self._fragments.pop(number, None)
        _hide(writer, number, touched)
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
        """A hash of all bytes of a file; computed on first use, and valid until the file changes.

        Raises:
            OSError: If the file cannot be read.
        """
        self._own_snapshot()
        with self.lock, self._database.exclusive():
            return self._views.digest(self._database.writer, number)

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
        """The header of a file as the index holds it; None if the file is no longer in the snapshot."""
        self._own_snapshot()
        with self.lock:
            row = self._database.reader.execute("SELECT form, content FROM header WHERE file = ?", (number,)).fetchone()
        return None if row is None else unpack_scan(row[0], row[1])

    def attributes(self, number: int, tags: tuple[str, ...]) -> dict[str, Any]:
        """Some attributes of a file as DICOM JSON, large ones from the file itself; empty if it is no longer there.

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
        """In a forked child: takes a copy of the database, as the connections of the parent must not be used."""
        if not self._forked:
            return False
        with self.lock:
            if self._forked:
                self._fragments.clear()
                self._database = self._database.copy_in_child(self._in_memory)
                self._place = None
                self._forked = False
        return True

    def _own_snapshot(self) -> None:
        if self._leave_parent():
            self.open()

    def files(self, where: str, values: Sequence[Any]) -> Iterator[IndexedFile]:
        """The files that represent instances, in order, some hundred at a time.

        Args:
            where: A condition on the columns of ``instance`` as ``i``.
            values: Its values.
        """
        numbers = self.numbers(
            f"SELECT i.file FROM instance i WHERE {where} ORDER BY i.study, i.series, i.number, i.sop, i.file",  # noqa: S608
            values,
        )
        for part in batches(numbers, MAX_VARIABLES):
            sql = (
                "SELECT id, path, size, version, study, series, sop, sop_class, syntax, reason FROM file "
                "WHERE id IN (%s)"
            )
            files = {row[0]: IndexedFile(row[0], path_text(row[1]), *row[2:]) for row in self.select_in(sql, part)}
            yield from (files[number] for number in part if number in files)

    def paths_of(self, condition: str, values: Sequence[Any]) -> list[str]:
        """The paths of all files, chosen or not, that meet a condition on the columns of ``file``."""
        rows = self.select(f"SELECT path FROM file WHERE {condition} ORDER BY path", values)  # noqa: S608
        return [path_text(row[0]) for row in rows]

    def iter_paths(self) -> Iterator[str]:
        """The paths of all files, some thousand at a time."""
        last = -1
        while rows := self.select("SELECT id, path FROM file WHERE id > ? ORDER BY id LIMIT 5000", (last,)):
            yield from (path_text(row[1]) for row in rows)
            last = rows[-1][0]

    def fragments(self, number: int) -> bytes | None:
        """The table of fragments of a file, if there is one."""
        if number in self._fragments:
            return self._fragments[number]
        row = self.select("SELECT packed FROM fragments WHERE file = ?", (number,))
        return bytes(row[0][0]) if row else None

    def store_fragments(self, number: int, packed: bytes) -> None:
        """Stores a table of fragments; the next snapshot has it.

        While another process brings the index up to date, the table stays with this client: a frame does not wait.
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
                logger.debug("the index of %s is busy: a table of fragments was not stored there", self.folder.base_url)


class Views:
    """Makes the rows of instances. The caller holds the right to write and a transaction.

    Args:
        folder: The files, for comparing their contents.
        duplicates: The rule for files of one instance.
    """

    def __init__(self, folder: Folder, duplicates: Duplicates) -> None:
        self._folder = folder
        self._duplicates = duplicates

    def choose(
        self, writer: sqlite3.Connection, sops: set[str], rows: dict[int, tuple[int, str]], touched: Touched
    ) -> None:
        """Decides again which files represent some instances.

        Args:
            writer: The database.
            sops: Their SOP Instance UIDs, each in any number of series.
            rows: Sort number and row of files that were just read, from `instance_row`.
            touched: The series that change are added to it.
        """
        for part in batches(sorted(sops), MAX_VARIABLES):
            marks = ",".join("?" * len(part))
            candidates: dict[_Name, list[tuple[Any, ...]]] = {}
            for row in writer.execute(
                f"SELECT study, series, sop, id, size, modified FROM file WHERE sop IN ({marks}) AND kind = {INSTANCE} "  # noqa: S608
                "ORDER BY path",
                part,
            ):
                candidates.setdefault(row[:3], []).append(row[3:])
            shown: dict[_Name, set[int]] = {}
            for row in writer.execute(f"SELECT study, series, sop, file FROM instance WHERE sop IN ({marks})", part):  # noqa: S608
                shown.setdefault(row[:3], set()).add(row[3])
            for name in sorted(candidates.keys() | shown.keys()):
                chosen = {row[0] for row in self._chosen(writer, candidates.get(name, []))}
                for number in shown.get(name, set()) - chosen:
                    _hide(writer, number, touched)
                study, series, sop = name
                for number in sorted(chosen - shown.get(name, set())):
                    order, text = rows.get(number) or instance_row(_stored_scan(writer, number))
                    writer.execute(
                        "INSERT INTO instance VALUES (?, ?, ?, ?, ?, ?)", (number, study, series, order, sop, text)
                    )
                    touched.add((study, series))

    def _chosen(self, writer: sqlite3.Connection, candidates: Sequence[tuple[Any, ...]]) -> Sequence[tuple[Any, ...]]:
        """The files that represent an instance, out of all complete ones in order of their paths."""
        if len(candidates) < 2:
            return candidates
        order = candidates
        if self._duplicates == "newest":
            # Of several equally new ones, the first.
            order = sorted(candidates, key=lambda row: row[2], reverse=True)
        # What lacks pixel data that another file has may have been cut off, wherever its header ends.
        whole = (row for row in order if has_pixel_data(_stored_scan(writer, row[0])))
        if self._duplicates != "all":
            return [next(whole, order[0])]
        rows = list(whole) or order
        different: dict[tuple[int, bytes | None], tuple[Any, ...]] = {}
        sizes = [row[1] for row in rows]
        for row in rows:
            alone = sizes.count(row[1]) == 1
            different.setdefault((row[1], None if alone else self.digest(writer, row[0])), row)
        return list(different.values())

    def check_conflicts(self, writer: sqlite3.Connection) -> None:
        """Checks that no two different files are of one instance.

        Raises:
            ConflictingDuplicatesError: If there are any.
        """
        shared = writer.execute(
            f"SELECT study, series, sop FROM file WHERE kind = {INSTANCE} GROUP BY study, series, sop "  # noqa: S608
            "HAVING COUNT(*) > 1 ORDER BY sop, study, series"
        ).fetchall()
        for study, series, sop in shared:
            rows = writer.execute(
                f"SELECT id, path, size FROM file WHERE sop = ? AND study = ? AND series = ? AND kind = {INSTANCE} "  # noqa: S608
                "ORDER BY path",
                (sop, study, series),
            ).fetchall()
            for other in rows[1:]:
                if other[2] != rows[0][2] or self.digest(writer, other[0]) != self.digest(writer, rows[0][0]):
                    raise ConflictingDuplicatesError(
                        f"two different files are {Resource(study, series, sop).uri}: {path_text(rows[0][1])} and "
                        f"{path_text(other[1])} (remove one, or choose another rule than duplicates='error')"
                    )

    def digest(self, writer: sqlite3.Connection, number: int) -> bytes:
        """A hash of all bytes of a file; computed on first use, and valid until the file changes.

        Raises:
            OSError: If the file cannot be read.
        """
        row = writer.execute("SELECT path, size, digest FROM file WHERE id = ?", (number,)).fetchone()
        if row is None:
            raise FileNotFoundError(errno.ENOENT, "it is no longer in the index")
        if row[2] is not None:
            return bytes(row[2])
        sha = hashlib.sha256()
        with self._folder.open(path_text(row[0]), row[1]) as file:
            while chunk := file.read(1 << 20):
                sha.update(chunk)
        writer.execute("UPDATE file SET digest = ? WHERE id = ?", (sha.digest(), number))
        return sha.digest()


def make_rows(writer: sqlite3.Connection, touched: Touched | None) -> None:
    """Makes the rows of series and studies again.

    Args:
        writer: The database, in a transaction.
        touched: The series that changed; None for all.
    """
    if touched is None:
        writer.execute("DELETE FROM series")
        writer.execute("DELETE FROM study")
        touched = set(writer.execute("SELECT DISTINCT study, series FROM instance"))
    for study, series in sorted(touched):
        _make_series(writer, study, series)
    for study in sorted({study for study, _ in touched}):
        _make_study(writer, study)


def _make_series(writer: sqlite3.Connection, study: str, series: str) -> None:
    first = writer.execute(
        "SELECT file, (SELECT COUNT(*) FROM instance WHERE study = ?1 AND series = ?2) FROM instance "
        "WHERE study = ?1 AND series = ?2 ORDER BY number, sop, file LIMIT 1",
        (study, series),
    ).fetchone()
    if first is None:
        writer.execute("DELETE FROM series WHERE study = ? AND series = ?", (study, series))
        return
    scan = _stored_scan(writer, first[0])
    row = encode(scan, tags=SERIES_DEFAULTS, on_problem=partial(_report, f"studies/{study}/series/{series}"))
    # The UID comes from the index: a row must name the series that it represents.
    row[SERIES_INSTANCE_UID] = {"vr": "UI", "Value": [series]}
    writer.execute(
        "INSERT INTO series (study, series, number, modality, instances, file, row) VALUES (?, ?, ?, ?, ?, ?, ?) "
        "ON CONFLICT (study, series) DO UPDATE SET number = excluded.number, modality = excluded.modality, "
        "instances = excluded.instances, file = excluded.file, row = excluded.row",
        (
            study,
            series,
            number_of(scan, SERIES_NUMBER_TAG),
            first_value(row, MODALITY),
            first[1],
            first[0],
            dumps(row).decode(),
        ),
    )


def _make_study(writer: sqlite3.Connection, study: str) -> None:
    first = writer.execute(
        "SELECT file, (SELECT SUM(instances) FROM series WHERE study = ?1) FROM series WHERE study = ?1 "
        "ORDER BY number, series LIMIT 1",
        (study,),
    ).fetchone()
    if first is None:
        writer.execute("DELETE FROM study WHERE study = ?", (study,))
        return
    scan = _stored_scan(writer, first[0])
    row = encode(scan, tags=STUDY_DEFAULTS, on_problem=partial(_report, f"studies/{study}"))
    row[STUDY_INSTANCE_UID] = {"vr": "UI", "Value": [study]}
    writer.execute(
        "INSERT INTO study (study, instances, file, row) VALUES (?, ?, ?, ?) ON CONFLICT (study) DO UPDATE SET "
        "instances = excluded.instances, file = excluded.file, row = excluded.row",
        (study, first[1], first[0], dumps(row).decode()),
    )


def _report(uri: str, path: tuple[str | int, ...], reason: str) -> None:
    logger.warning("the row of %s is incomplete at the element %s: %s", uri, "/".join(map(str, path)), reason)


def _stored_scan(writer: sqlite3.Connection, number: int) -> HeaderScan:
    form, content = writer.execute("SELECT form, content FROM header WHERE file = ?", (number,)).fetchone()
    return unpack_scan(form, content)


def _hide(writer: sqlite3.Connection, number: int, touched: Touched) -> None:
    """A file no longer represents an instance, if it did."""
    row = writer.execute("SELECT study, series FROM instance WHERE file = ?", (number,)).fetchone()
    if row is not None:
        touched.add((row[0], row[1]))
        writer.execute("DELETE FROM instance WHERE file = ?", (number,))


def iter_exclusions(index: Index, matching: Collection[int] | None) -> Iterator[Exclusion]:
    """Yields the files of an index that do not represent an instance, and why; duplicates first, each kind by path.

    Args:
        index: The index.
        matching: Limits duplicates to those of instances that these files represent.
    """
    duplicated = index.select(
        "SELECT study, series, sop FROM file WHERE (study, series, sop) IN (SELECT study, series, sop FROM instance) "
        "GROUP BY study, series, sop HAVING COUNT(*) > 1 ORDER BY MIN(path)"
    )
    for name in duplicated:
        yield from _duplicates(index, name, matching)
    rows = index.select(
        f"SELECT path, kind, reason, study, series, sop FROM file f WHERE kind <> {INSTANCE} AND NOT EXISTS "  # noqa: S608 - constants
        "(SELECT 1 FROM instance i WHERE i.sop = f.sop AND i.study = f.study AND i.series = f.series) "
        f"ORDER BY kind <> {IGNORED}, path"
    )
    for path, kind, reason, study, series, sop in rows:
        yield Exclusion(
            "ignored" if kind == IGNORED else "unreadable",
            index.folder.shown(path_text(path)),
            reason or "",
            _reference(study, series, sop),
        )


def _duplicates(index: Index, name: tuple[Any, ...], matching: Collection[int] | None) -> Iterator[Exclusion]:
    files = index.select(
        "SELECT f.id, f.path, f.size, f.kind, f.reason, f.study, f.series, f.sop, i.file FROM file f "
        "LEFT JOIN instance i ON i.file = f.id WHERE f.study = ? AND f.series = ? AND f.sop = ? ORDER BY f.path",
        name,
    )
    chosen = [row for row in files if row[8] is not None]
    if matching is not None and not any(row[0] in matching for row in chosen):
        return
    for row in files:
        if row[8] is not None:
            continue
        same, reason = _comparison(index, row, chosen)
        yield Exclusion(
            "duplicate",
            index.folder.shown(path_text(row[1])),
            reason,
            _reference(row[5], row[6], row[7]),
            index.folder.shown(path_text(same[1])),
        )


def _comparison(index: Index, row: tuple[Any, ...], chosen: list[tuple[Any, ...]]) -> tuple[tuple[Any, ...], str]:
    """The chosen file to compare a duplicate with, and how the two differ."""
    try:
        if row[3] != INSTANCE:
            begins = f", {BEGINS_ALIKE}" if _begins_with(index, chosen[0], row) else ""
            return chosen[0], f"conflicting: {row[4]}{begins}"
        for other in chosen:
            if other[2] == row[2] and index.digest(other[0]) == index.digest(row[0]):
                return other, "identical"
    except OSError as error:
        return chosen[0], f"conflicting: it cannot be compared ({error.strerror or type(error).__name__})"
    if row[2] != chosen[0][2]:
        return chosen[0], f"conflicting: {row[2]} bytes, the chosen file has {chosen[0][2]}"
    return chosen[0], "conflicting: other bytes than the chosen file"


def _begins_with(index: Index, whole: tuple[Any, ...], part: tuple[Any, ...]) -> bool:
    """Whether a file begins with all bytes of another."""
    if part[2] > whole[2] or part[2] < 0:
        return False
    paths = (path_text(whole[1]), path_text(part[1]))
    with index.folder.open(paths[0], whole[2]) as one, index.folder.open(paths[1], part[2]) as other:
        while chunk := other.read(1 << 20):
            if read_exactly(one, len(chunk)) != chunk:
                return False
    return True


def _reference(study: str | None, series: str | None, sop: str | None) -> Resource | None:
    if study is None or not is_uid(study, permissive=True):
        return None
    return Resource(study, series, sop if series is not None else None)


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of at most `size` items each."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
