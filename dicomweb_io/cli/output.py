"""What the commands print and save: JSON that pipes well, text for people, files with safe names, progress."""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from dicomweb_io.account import format_bytes, shown_progress
from dicomweb_io.dicom.json_decode import dumps, load_json_dataset, loads
from dicomweb_io.dicom.part10 import header_of
from dicomweb_io.dicom.uids import is_uid
from dicomweb_io.elements import JSONDataset, Resource
from dicomweb_io.errors import plain_text
from dicomweb_io.options import atomic_file

logger = logging.getLogger("dicomweb_io")

# A UID outside of sequences, as pydicom prints it.
_UID_LINE = re.compile(rb"^\((\w{4}, ?\w{4})\) .* UI: (\S+)$", re.MULTILINE)

# JSON allows these characters in texts.
_CONTROLS = re.compile("[\x7f-\x9f\u2028-\u202e\u2066-\u2069]")

_EXTENSIONS = {
    "application/dicom": "dcm",
    "application/dicom+json": "json",
    "image/jpeg": "jpg",
    "image/jls": "jls",
    "image/x-jls": "jls",
    "image/x-jpls": "jls",
    "image/jp2": "jp2",
    "image/jpx": "jpx",
    "image/jphc": "jph",
    "image/jxl": "jxl",
    "image/png": "png",
    "image/gif": "gif",
    "image/dicom-rle": "rle",
    "text/html": "html",
    "text/plain": "txt",
    "application/pdf": "pdf",
    "video/mp4": "mp4",
    "video/mpeg": "mpg",
}


def print_datasets(rows: Iterable[JSONDataset], args: argparse.Namespace) -> int:
    """Prints DICOM JSON datasets as they arrive, in the form the options ask for.

    A JSON list is closed only when every row is there: what a failed command has printed does not parse.

    Returns:
        The number of rows.
    """
    write = sys.stdout.write
    count = 0
    if args.dicomize or args.json_lines:
        for row in rows:
            write(f"{readable_text(row)}\n\n" if args.dicomize else json_text(row) + "\n")
            count += 1
        return count
    for row in rows:
        write((",\n" if count else "[\n") + json_text(row, indent=args.prettify))
        count += 1
    write("\n]\n" if count else "[]\n")
    return count


def readable_text(row: JSONDataset) -> str:
    """A dataset in the DICOM JSON model as lines of text."""
    return "\n".join(map(plain_text, str(load_json_dataset(row)).split("\n")))


def json_text(value: Any, *, indent: bool = False) -> str:
    """A value as JSON text with sorted keys; what would do something to a terminal is escaped."""
    if not indent:
        text = dumps(value).decode("utf-8")
    else:
        import json

        text = json.dumps(value, indent=4, sort_keys=True, ensure_ascii=False)
    return (
        text if text.isascii() and "\x7f" not in text else _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    )


def print_line(value: Any) -> None:
    """Prints one JSON line."""
    sys.stdout.write(json_text(value) + "\n")


_WIDTH = 200
ANSWERS = {True: "yes", False: "no", None: "unknown"}
"""Words for whether something works."""


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Prints a table. In a file or pipe every row is one line, for grep and similar tools."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(Text(plain_text(cell)) for cell in row))
    width = None if sys.stdout.isatty() else _WIDTH
    Console(file=sys.stdout, highlight=False, width=width).print(table)


def extension(media_type: str) -> str:
    """The file name extension for a media type, ``dat`` for unknown ones."""
    return _EXTENSIONS.get(media_type.partition(";")[0].strip().lower(), "dat")


def safe_name(stem: str, suffix: str) -> str:
    """A file name for an object, from its UID and perhaps a number.

    Raises:
        ValueError: If the UID, which a server or file may have made up, cannot be part of a file name.
    """
    uid, underscore, number = stem.partition("_")
    if not is_uid(uid) or (underscore and not (number.isascii() and number.isdigit())):
        raise ValueError(f"cannot make a file name of the identifier {stem[:64]!r}: it is not a UID")
    return f"{stem}.{suffix}"


def names_of(resource: Resource, suffix: str) -> tuple[str, str]:
    """The short and the long name for what belongs to an object: by its own UID, and by those of its parents too.

    Raises:
        ValueError: As in `safe_name`.
    """
    uids = list(resource.uids.values())
    number = "".join(f"_{frame}" for frame in resource.frames)
    short = safe_name(f"{uids[-1]}{number}", suffix)
    for uid in uids:
        safe_name(uid, suffix)
    return short, f"{'_'.join(uids)}{number}.{suffix}"


class FileNames:
    """Names of the files of instances: the SOP Instance UID, or all three UIDs where another instance has that name.

    Args:
        directory: Where the files are, those of earlier runs too.
        suffix: ``"dcm"``, ``"json"`` or ``"txt"``.
    """

    def __init__(self, directory: str, suffix: str) -> None:
        self._directory = directory
        self._suffix = suffix
        self._given: dict[str, Resource] = {}

    def of(self, instance: Resource) -> str:
        """The name for an instance.

        Raises:
            ValueError: As in `safe_name`.
        """
        short, long = names_of(instance, self._suffix)
        return short if self._given.setdefault(short, self._saved(short) or instance) == instance else long

    def _saved(self, name: str) -> Resource | None:
        """The instance of a file that is there; None if there is none, or it cannot be told."""
        with suppress(OSError, ValueError, LookupError, TypeError):
            with open(os.path.join(self._directory, name), "rb") as file:
                if self._suffix == "dcm":
                    return Resource.of_header(header_of(file))
                content = file.read()
            if self._suffix == "json":
                return Resource.of(loads(content))
            uids = {match[1]: match[2].decode() for match in _UID_LINE.finditer(content)}
            return Resource(uids[b"0020,000D"], uids[b"0020,000E"], uids[b"0008,0018"])
        return None


def save_bytes(directory: str, name: str, chunks: Iterable[bytes]) -> str:
    """Writes a file whole or not at all and returns its path; an existing one is replaced."""
    os.makedirs(directory, exist_ok=True)
    path = os.path.join(directory, name)
    with atomic_file(path, "wb") as file:
        file.writelines(chunks)
    return path


def save_beside(directory: str, names: tuple[str, str], content: bytes) -> None:
    """Writes a file under the first name, or under the second where the first one holds something else."""
    first, second = names
    path = os.path.join(directory, first)
    with suppress(FileNotFoundError):
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size != len(content) or file.read() != content:
                logger.warning("%s holds something else and stays; what came is saved as %s", path, second)
                first = second
    save_bytes(directory, first, [content])


def write_bytes(chunks: Iterable[bytes]) -> None:
    """Writes bytes to standard output."""
    sys.stdout.flush()
    for chunk in chunks:
        sys.stdout.buffer.write(chunk)
    sys.stdout.buffer.flush()


class Saved:
    """Counts the files that a command writes, and tells of them.

    Args:
        directory: Where they are written.

    Attributes:
        files: Their number.
    """

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self.files = 0
        self._size = 0

    def add(self, size: int) -> None:
        """Counts a file."""
        self.files += 1
        self._size += size

    def tell(self, problem: str = "") -> None:
        """Says on standard error what was written, and what is wrong with that."""
        noun = "file" if self.files == 1 else "files"
        where = os.path.join(self._directory, "")
        print(f"{self.files:,} {noun}, {format_bytes(self._size)} → {where}{problem}", file=sys.stderr)


class Progress:
    """How far a command is."""

    def __init__(self, what: str, total: int | None) -> None:
        self._what = what
        self.counts: Counter[str] = Counter() if total is None else Counter(found=total)

    def advance(self, size: int = 0) -> None:
        """Counts one thing of `size` bytes."""
        self.counts["transferred"] += 1
        self.counts["bytes"] += size

    def line(self, counts: Mapping[str, int], seconds: float) -> str:
        """The progress in one line."""
        of = f" of {counts['found']:,}" if counts.get("found") else ""
        size = counts.get("bytes", 0)
        rate = f", {format_bytes(size)}, {format_bytes(size / max(seconds, 1e-3))}/s" if size else ""
        return f"{counts.get('transferred', 0):,}{of} {self._what}{rate}"


@contextmanager
def progress(what: str, total: int | None = None) -> Iterator[Progress]:
    """Shows progress on standard error while the block runs, if it is a terminal."""
    shown = Progress(what, total)
    with shown_progress(lambda: shown.counts, line=shown.line):
        yield shown
