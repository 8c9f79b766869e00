"""The rows that searches return, derived from the files of an index: instances, series and studies.

Among complete files that share a SOP Instance UID the rule for duplicates decides which one stands for the instance; a
truncated file never does. The first instance of a series, in the order of searches, represents the series, and the
first series its study.
"""

from __future__ import annotations

import errno
import hashlib
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, Literal, TypeVar

import orjson

from dicomweb_io.clients.files.levels import (
    INSTANCE_DEFAULTS,
    MODALITY,
    SERIES_DEFAULTS,
    SERIES_INSTANCE_UID,
    STUDY_DEFAULTS,
    STUDY_INSTANCE_UID,
)
from dicomweb_io.clients.files.location import Folder
from dicomweb_io.clients.files.records import (
    INSTANCE,
    INSTANCE_NUMBER_TAG,
    SERIES_NUMBER_TAG,
    number_of,
    unpack_scan,
)
from dicomweb_io.dicom.header_scan import HeaderScan
from dicomweb_io.dicom.json_model import dumps, encode, first_value

Duplicates = Literal["first", "newest", "all", "error"]
DUPLICATE_RULES = ("first", "newest", "all", "error")

MAX_VARIABLES = 500
"""Parameters of one SQL statement; old versions of SQLite take 999."""

Touched = set[tuple[str, str]]
"""Pairs of study and series whose rows have to be made anew."""

T = TypeVar("T")


class ConflictingDuplicatesError(ValueError):
    """Files with one SOP Instance UID differ, and ``duplicates="error"`` was asked for."""


def path_key(path: str) -> bytes:
    """A path as the index keeps it: bytes, which sort like the text."""
    return path.encode("utf-8", "surrogateescape")


def path_text(key: bytes) -> str:
    """The opposite of `path_key`."""
    return key.decode("utf-8", "surrogateescape")


def batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Lists of at most `size` items each."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


class Views:
    """Makes the rows. The caller holds the right to write and a transaction.

    Args:
        folder: The files, for comparing their contents.
        duplicates: The rule for files with one SOP Instance UID.
    """

    def __init__(self, folder: Folder, duplicates: Duplicates) -> None:
        self._folder = folder
        self._duplicates = duplicates

    def choose(
        self, writer: sqlite3.Connection, sops: set[str], rows: dict[int, tuple[int, str]], touched: Touched
    ) -> None:
        """Decides anew which files stand for some instances.

        Args:
            writer: The database.
            sops: Their SOP Instance UIDs.
            rows: Sort number and row of files that were just read, from `instance_row`.
            touched: Takes the series that change.
        """
        for part in batches(sorted(sops), MAX_VARIABLES):
            marks = ",".join("?" * len(part))
            candidates: dict[str, list[tuple[Any, ...]]] = {}
            for row in writer.execute(
                f"SELECT sop, id, size, modified, study, series FROM file WHERE sop IN ({marks}) AND kind = {INSTANCE} "  # noqa: S608
                "ORDER BY path",
                part,
            ):
                candidates.setdefault(row[0], []).append(row)
            shown: dict[str, set[int]] = {}
            for sop, number in writer.execute(f"SELECT sop, file FROM instance WHERE sop IN ({marks})", part):  # noqa: S608
                shown.setdefault(sop, set()).add(number)
            for sop in part:
                chosen = {row[1]: row for row in self._chosen(writer, candidates.get(sop, []))}
                for number in shown.get(sop, set()) - chosen.keys():
                    _hide(writer, number, touched)
                for number, row in chosen.items():
                    if number in shown.get(sop, ()):
                        continue
                    order, text = rows.get(number) or instance_row(_stored_scan(writer, number))
                    writer.execute(
                        "INSERT INTO instance VALUES (?, ?, ?, ?, ?, ?)", (number, row[4], row[5], order, sop, text)
                    )
                    touched.add((row[4], row[5]))

    def _chosen(self, writer: sqlite3.Connection, candidates: Sequence[tuple[Any, ...]]) -> Sequence[tuple[Any, ...]]:
        """The files that stand for an instance, out of all complete ones in order of their paths."""
        if len(candidates) < 2:
            return candidates
        if self._duplicates == "newest":
            # Of equally new ones the first.
            return [max(candidates, key=lambda row: row[3])]
        if self._duplicates == "all":
            different: dict[tuple[int, bytes | None], tuple[Any, ...]] = {}
            sizes = [row[2] for row in candidates]
            for row in candidates:
                alone = sizes.count(row[2]) == 1
                different.setdefault((row[2], None if alone else self.digest(writer, row[1])), row)
            return list(different.values())
        return candidates[:1]

    def refuse_conflicts(self, writer: sqlite3.Connection) -> None:
        """Looks for different files with one SOP Instance UID.

        Raises:
            ConflictingDuplicatesError: If there are any.
        """
        shared = writer.execute(
            f"SELECT sop FROM file WHERE kind = {INSTANCE} GROUP BY sop HAVING COUNT(*) > 1 ORDER BY sop"  # noqa: S608
        ).fetchall()
        for (sop,) in shared:
            rows = writer.execute(
                f"SELECT id, path, size FROM file WHERE sop = ? AND kind = {INSTANCE} ORDER BY path",  # noqa: S608
                (sop,),
            ).fetchall()
            for other in rows[1:]:
                if other[2] != rows[0][2] or self.digest(writer, other[0]) != self.digest(writer, rows[0][0]):
                    raise ConflictingDuplicatesError(
                        f"two different files have the SOP Instance UID {sop}: {path_text(rows[0][1])} and "
                        f"{path_text(other[1])} (remove one, or choose another rule than duplicates='error')"
                    )

    def digest(self, writer: sqlite3.Connection, number: int) -> bytes:
        """A hash of all bytes of a file; computed when first wanted and kept until the file changes.

        Raises:
            OSError: If the file cannot be read.
        """
        row = writer.execute("SELECT path, size, digest FROM file WHERE id = ?", (number,)).fetchone()
        if row is None:
            raise FileNotFoundError(errno.ENOENT, "it is not in the index any more")
        if row[2] is not None:
            return bytes(row[2])
        sha = hashlib.sha256()
        with self._folder.open(path_text(row[0]), row[1]) as file:
            while chunk := file.read(1 << 20):
                sha.update(chunk)
        writer.execute("UPDATE file SET digest = ? WHERE id = ?", (sha.digest(), number))
        return sha.digest()


def make_rows(writer: sqlite3.Connection, touched: Touched | None) -> None:
    """Makes the rows of series and studies anew.

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
    row = encode(scan, tags=SERIES_DEFAULTS)
    # The UID comes from the index: a row must name the series that it stands for.
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
    row = encode(_stored_scan(writer, first[0]), tags=STUDY_DEFAULTS)
    row[STUDY_INSTANCE_UID] = {"vr": "UI", "Value": [study]}
    writer.execute(
        "INSERT INTO study (study, instances, file, row) VALUES (?, ?, ?, ?) ON CONFLICT (study) DO UPDATE SET "
        "instances = excluded.instances, file = excluded.file, row = excluded.row",
        (study, first[1], first[0], dumps(row).decode()),
    )


def instance_row(scan: HeaderScan) -> tuple[int, str]:
    """The number by which an instance is sorted, and its default attributes as JSON text."""
    row = encode(scan, tags=INSTANCE_DEFAULTS)
    try:
        text = orjson.dumps(row).decode()
    except TypeError:
        text = dumps(row).decode()
    return number_of(scan, INSTANCE_NUMBER_TAG), text


def _stored_scan(writer: sqlite3.Connection, number: int) -> HeaderScan:
    form, content = writer.execute("SELECT form, content FROM header WHERE file = ?", (number,)).fetchone()
    return unpack_scan(form, content)


def _hide(writer: sqlite3.Connection, number: int, touched: Touched) -> None:
    row = writer.execute("SELECT study, series FROM instance WHERE file = ?", (number,)).fetchone()
    touched.add((row[0], row[1]))
    writer.execute("DELETE FROM instance WHERE file = ?", (number,))
