"""What a folder holds beside its instances: duplicates, files that are no DICOM, and files that cannot be served."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from dicomweb_io.clients.files.index import Index
from dicomweb_io.clients.files.records import IGNORED, INSTANCE
from dicomweb_io.clients.files.views import path_text
from dicomweb_io.dicom.uids import is_uid
from dicomweb_io.elements import Exclusion, Resource


def iter_exclusions(index: Index, matching: Collection[int] | None) -> Iterator[Exclusion]:
    """Yields the files of an index that stand for no instance, and why; duplicates first, each kind by path.

    Args:
        index: The index.
        matching: Limits duplicates to those of instances that these files stand for.
    """
    duplicated = index.select(
        "SELECT sop FROM file WHERE sop IS NOT NULL AND sop IN (SELECT sop FROM instance) "
        "GROUP BY sop HAVING COUNT(*) > 1 ORDER BY MIN(path)"
    )
    for (sop,) in duplicated:
        yield from _duplicates(index, sop, matching)
    rows = index.select(
        f"SELECT path, kind, reason, study, series, sop FROM file WHERE kind <> {INSTANCE} AND NOT "  # noqa: S608 - constants
        f"(sop IS NOT NULL AND sop IN (SELECT sop FROM instance)) ORDER BY kind <> {IGNORED}, path"
    )
    for path, kind, reason, study, series, sop in rows:
        yield Exclusion(
            "ignored" if kind == IGNORED else "unreadable",
            index.folder.location_of(path_text(path)),
            reason or "",
            _reference(study, series, sop),
        )


def _duplicates(index: Index, sop: str, matching: Collection[int] | None) -> Iterator[Exclusion]:
    files = index.select(
        "SELECT f.id, f.path, f.size, f.kind, f.reason, f.study, f.series, f.sop, i.file FROM file f "
        "LEFT JOIN instance i ON i.file = f.id WHERE f.sop = ? ORDER BY f.path",
        (sop,),
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
            index.folder.location_of(path_text(row[1])),
            reason,
            _reference(row[5], row[6], row[7]),
            index.folder.location_of(path_text(same[1])),
        )


def _comparison(index: Index, row: tuple[Any, ...], chosen: list[tuple[Any, ...]]) -> tuple[tuple[Any, ...], str]:
    """The chosen file that a duplicate is to be seen beside, and how the two differ."""
    if row[3] != INSTANCE:
        return chosen[0], f"conflicting: {row[4]}"
    try:
        for other in chosen:
            if other[2] == row[2] and index.digest(other[0]) == index.digest(row[0]):
                return other, "identical"
    except OSError as error:
        return chosen[0], f"conflicting: it cannot be compared ({error.strerror or type(error).__name__})"
    if row[2] != chosen[0][2]:
        return chosen[0], f"conflicting: {row[2]} bytes, the chosen file has {chosen[0][2]}"
    return chosen[0], "conflicting: other bytes than the chosen file"


def _reference(study: str | None, series: str | None, sop: str | None) -> Resource | None:
    if study is None or not is_uid(study, permissive=True):
        return None
    return Resource(study, series, sop if series is not None else None)
