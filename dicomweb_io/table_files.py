"""Files of tables: rows written as Parquet, CSV or JSON lines, complete or not at all, and read again."""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
import re
import shutil
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import date, datetime, time
from types import TracebackType
from typing import IO, Any, Literal
from urllib.parse import quote

from dicomweb_io.dicom.columns import Column
from dicomweb_io.elements import open_path
from dicomweb_io.errors import safe_url
from dicomweb_io.files.remote import make_parents
from dicomweb_io.options import UsageError
from dicomweb_io.spool import PrivateDirectory

TableFormat = Literal["parquet", "csv", "jsonl"]

FORMATS: dict[str, TableFormat] = {".parquet": "parquet", ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
"""The format of a file by the end of its name."""

NO_PARTITION = "__HIVE_DEFAULT_PARTITION__"
"""The partition of rows without a value, as Hive and Spark name it."""

_CELLS = 400_000
"""Cells that wait in memory for a row group of Parquet."""
_MAX_NAME = 255


def format_of(path: str) -> TableFormat | None:
    """The format of a table by its name; None if it has no known end."""
    return FORMATS.get(os.path.splitext(path.rstrip("/"))[1].lower())


class TableFile:
    """One file of a table, written row by row.

    Args:
        file: Takes the bytes; it stays open.
        kind: The format.
        columns: The columns, in order.
        bom: Whether a CSV file begins with a byte order mark.
    """

    def __init__(self, file: IO[bytes], kind: TableFormat, columns: Sequence[Column], *, bom: bool = False) -> None:
        self._columns = columns
        self._waiting: list[list[Any]] = [[] for _ in columns]
        self._group = max(1000, min(20_000, _CELLS // max(1, len(columns)))) if kind == "parquet" else 0
        self._names = [column.name for column in columns]
        self._parquet: Any = None
        self._text: io.TextIOWrapper | None = None
        if kind == "parquet":
            from pyarrow.parquet import ParquetWriter

            self._schema = arrow_schema(columns)
            self._parquet = ParquetWriter(file, self._schema, compression="zstd")
            return
        encoding = "utf-8-sig" if bom and kind == "csv" else "utf-8"
        self._text = io.TextIOWrapper(file, encoding, errors="replace", newline="", write_through=False)
        self._csv = csv.writer(self._text) if kind == "csv" else None
        if self._csv is not None:
            self._csv.writerow(self._names)

    def write(self, row: Mapping[str, Any]) -> None:
        """Adds a row: values by the names of the columns."""
        if self._parquet is not None:
            for values, name in zip(self._waiting, self._names, strict=True):
                values.append(row[name])
            if len(self._waiting[0]) >= self._group:
                self._flush()
        elif self._csv is not None:
            self._csv.writerow([_csv_text(row[name]) for name in self._names])
        elif self._text is not None:
            cells = {name: row[name] for name in self._names}
            self._text.write(json.dumps(cells, ensure_ascii=False, default=_iso) + "\n")

    def flush(self) -> None:
        """Writes what is left; nothing can be added after that."""
        if self._parquet is not None:
            self._flush()
            self._parquet.close()
        elif self._text is not None:
            self._text.flush()
            self._text.detach()

    def _flush(self) -> None:
        import pyarrow

        if not self._waiting[0]:
            return
        arrays = []
        for values, kind in zip(self._waiting, self._schema.types, strict=True):
            try:
                arrays.append(pyarrow.array(values, kind))
            except UnicodeEncodeError:
                arrays.append(pyarrow.array(_encodable(values), kind))
        self._waiting = [[] for _ in self._columns]
        self._parquet.write_table(pyarrow.table(arrays, schema=self._schema))


def arrow_schema(columns: Iterable[Column]) -> Any:
    """The schema of a Parquet file with these columns."""
    import pyarrow

    types = {
        str: pyarrow.string(),
        int: pyarrow.int64(),
        float: pyarrow.float64(),
        date: pyarrow.date32(),
        time: pyarrow.time64("us"),
        datetime: pyarrow.timestamp("us", "UTC"),
    }
    return pyarrow.schema(
        [(column.name, pyarrow.list_(types[column.kind]) if column.many else types[column.kind]) for column in columns]
    )


def _iso(value: Any) -> str:
    return str(value.isoformat())


def _csv_text(value: Any) -> Any:
    """A cell of CSV. Several values are separated as DICOM does it, by backslashes."""
    if isinstance(value, (list, tuple)):
        return "\\".join(str(_csv_text(item)) for item in value)
    if isinstance(value, str):
        # Not every reader of CSV takes NUL, Python's before 3.11 neither.
        return value.replace("\0", "")
    return "" if value is None else _iso(value) if isinstance(value, (date, time)) else value


def _encodable(values: list[Any]) -> list[Any]:
    """Texts without lone surrogates, which UTF-8 does not have."""
    if isinstance(values, list):
        return [_encodable(item) if isinstance(item, list) else _plain(item) for item in values]
    return values


def _plain(item: Any) -> Any:
    return item.encode("utf-8", "replace").decode() if isinstance(item, str) else item


@contextmanager
def _reading(path: str) -> Iterator[IO[bytes]]:
    """Opens a table that is there. What is wrong with its content is told without the content."""
    try:
        with open_path(path) as file:
            yield file
    except (ValueError, csv.Error) as error:
        raise UsageError(
            f"{safe_url(path)}: this table is damaged or was not written here ({type(error).__name__}); to write the "
            "whole table again, remove it and its cursor file"
        ) from error


def read_table(path: str, kind: TableFormat) -> Iterator[dict[str, Any]]:
    """The rows of a file that `TableFile` wrote; the values of CSV are texts.

    Raises:
        UsageError: If it is damaged.
    """
    with _reading(path) as file:
        if kind == "parquet":
            from pyarrow.parquet import ParquetFile

            for batch in ParquetFile(file).iter_batches(1000):
                yield from batch.to_pylist()
            return
        with io.TextIOWrapper(file, "utf-8-sig", newline="") as text:
            # Sequences are long texts.
            csv.field_size_limit((1 << 31) - 1)
            rows = csv.DictReader(text, strict=True) if kind == "csv" else map(json.loads, text)
            names = None
            for row in rows:
                names = names or list(row)
                if list(row) != names or (kind == "csv" and None in row.values()):
                    raise ValueError("a row has other columns than the first one")
                yield row


def columns_in(path: str, kind: TableFormat) -> list[str]:
    """The columns of a file that `TableFile` wrote, of Parquet with their types; none if it has no rows to tell.

    Raises:
        UsageError: If it is damaged.
    """
    with _reading(path) as file:
        if kind == "parquet":
            from pyarrow.parquet import ParquetFile

            return _typed_names(ParquetFile(file).schema_arrow)
        with io.TextIOWrapper(file, "utf-8-sig", newline="") as text:
            return list(next(csv.reader(text), []) if kind == "csv" else json.loads(text.readline() or "{}"))


def columns_in_parquet(columns: Iterable[Column]) -> list[str]:
    """What `columns_in` gives for a Parquet file with these columns."""
    return _typed_names(arrow_schema(columns))


def _typed_names(schema: Any) -> list[str]:
    # The item of a list has another name once it was written.
    return [f"{item.name} {str(item.type).replace('<element:', '<item:')}" for item in schema]


class TableWriter:
    """Writes a table that appears complete or not at all, for its owner only: files have the mode 0600.

    As a context manager it publishes the table when the block ends without an error. A local file or folder is replaced
    in one step; to an object store the files go when all rows are there.

    Args:
        out: The file or, with `partition_by` or `rows_per_file`, the folder: a local path or an fsspec URL. Its suffix
            says the format.
        columns: The columns, in order.
        partition_by: The name of the column whose values become folders; the files do not repeat it.
        rows_per_file: The maximum number of rows of a file.
        bom: Whether CSV files begin with a byte order mark.
        added: A name: the files are added to the folder under it, in place of those that a run with the same name left.
            Without it the folder is replaced.

    Attributes:
        incomplete: Whether rows are missing. Then the table appears under another name, `incomplete_name`; if no row
            was written, it does not appear.
        files: The number of files that were written.
        size: Their bytes.
    """

    def __init__(
        self,
        out: str,
        columns: Sequence[Column],
        *,
        partition_by: str | None = None,
        rows_per_file: int | None = None,
        bom: bool = False,
        added: str = "",
    ) -> None:
        self._out = out.rstrip("/")
        self._kind = FORMATS[os.path.splitext(self._out)[1].lower()]
        self._by = partition_by
        self._columns = [column for column in columns if column.name != partition_by]
        self._most = rows_per_file
        self._folder = partition_by is not None or rows_per_file is not None
        self._bom, self._added = bom, added
        self._remote = "://" in out
        # In an object store the files of before stay until all of these are there.
        self._run = added or (os.urandom(4).hex() if self._remote else "")
        self._stack = ExitStack()
        self._open: tuple[TableFile, IO[bytes]] | None = None
        self._places: dict[str, array[int]] = {}
        self._rows = self._number = 0
        self.incomplete = False
        self.files = self.size = 0

    def __enter__(self) -> TableWriter:
        # On the same filesystem, so that it can be moved to its place in one step.
        parent, name = os.path.split(os.path.abspath(self._out)) if not self._remote else (None, "dicomweb_io-table")
        self._scratch = self._stack.enter_context(PrivateDirectory(parent, f".{name}-"))
        os.mkdir(os.path.join(self._scratch, "table"), 0o700)
        # Rows of a partition come in any order: they wait, and then one partition is written after the other.
        self._waiting = self._stack.enter_context(open(os.path.join(self._scratch, "rows"), "w+b"))
        return self

    def write(self, row: Mapping[str, Any]) -> None:
        """Adds a row: values by the names of the columns."""
        if self._by is None:
            self._add("", row)
            return
        self._places.setdefault(self._folder_of(row), array("Q")).append(self._waiting.tell())
        pickle.dump([row[column.name] for column in self._columns], self._waiting)

    def _add(self, folder: str, row: Mapping[str, Any]) -> None:
        file, _ = self._open or self._start(folder)
        file.write(row)
        self._rows += 1
        if self._most is not None and self._rows >= self._most:
            self._finish()

    def _divide(self) -> None:
        """Writes the rows that wait, one partition after the other."""
        names = [column.name for column in self._columns]
        for folder, places in self._places.items():
            for place in places:
                self._waiting.seek(place)
                # Written by this process, in a folder of its own.
                self._add(folder, dict(zip(names, pickle.load(self._waiting), strict=True)))  # noqa: S301
            self._finish()

    def _folder_of(self, row: Mapping[str, Any]) -> str:
        if self._by is None:
            return ""
        folder = f"{self._by}={partition_text(row.get(self._by))}"
        if len(folder.encode()) > _MAX_NAME:
            raise UsageError(f"{self._by} cannot divide the table: a value is too long for the name of a folder")
        return folder

    def _start(self, folder: str) -> tuple[TableFile, IO[bytes]]:
        name = "table" if not self._folder else f"part-{self._run}{'-' if self._run else ''}{self._number:05}"
        self._number += 1
        path = os.path.join(self._scratch, "table", folder, f"{name}.{self._kind}")
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        raw = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
        self._open = TableFile(raw, self._kind, self._columns, bom=self._bom), raw
        return self._open

    def _finish(self) -> None:
        """Ends the file that is open."""
        if self._open is None:
            return
        file, raw = self._open
        self._rows = 0
        file.flush()
        raw.flush()
        os.fsync(raw.fileno())
        self.files += 1
        self.size += raw.tell()
        raw.close()
        self._open = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._stack:
            if error is None:
                self._divide()
                if self._number == 0 and self.incomplete:
                    return
                if self._number == 0 and not self._added:
                    # A table without rows is a table.
                    self._start(self._folder_of({}))
                self._finish()
                self._publish()
            elif self._open is not None:
                self._open[1].close()

    def _publish(self) -> None:
        made = os.path.join(self._scratch, "table")
        target = incomplete_name(self._out) if self.incomplete else self._out
        if self._remote:
            self._upload(made, target)
            return
        if not self.incomplete:
            _remove(incomplete_name(self._out))
        if not self._folder:
            os.replace(os.path.join(made, f"table.{self._kind}"), target)
        elif self._added and not self.incomplete:
            for path in parts_in(self._out):
                if os.path.basename(path).startswith(f"part-{self._added}-"):
                    os.unlink(path)
            for path in parts_in(made):
                place = os.path.join(self._out, os.path.relpath(path, made))
                os.makedirs(os.path.dirname(place), mode=0o700, exist_ok=True)
                os.replace(path, place)
        else:
            with suppress(FileNotFoundError):
                os.rename(target, os.path.join(self._scratch, "before"))
            os.rename(made, target)

    def _upload(self, made: str, target: str) -> None:
        import fsspec

        files, base = fsspec.core.url_to_fs(target)
        if not self.incomplete and files.exists(gone := incomplete_name(base)):
            files.rm(gone, recursive=True)
        if not self._folder:
            files.put_file(os.path.join(made, f"table.{self._kind}"), base)
            return
        old = set(files.find(base)) if files.exists(base) else set()
        new = set()
        try:
            for path in parts_in(made):
                place = f"{base}/{os.path.relpath(path, made)}".replace(os.sep, "/")
                new.add(place)
                make_parents(files, place)
                files.put_file(path, place)
        except BaseException:
            for place in new:
                with suppress(OSError):
                    files.rm_file(place)
            raise
        run = f"part-{self._added}-" if self._added else "part-"
        for path in old - new:
            if path.rpartition("/")[2].startswith(run):
                files.rm_file(path)


def incomplete_name(out: str) -> str:
    """Where a table is written of which rows are missing: ``x.incomplete.parquet`` beside ``x.parquet``."""
    stem, suffix = os.path.splitext(out.rstrip("/"))
    return f"{stem}.incomplete{suffix}"


def partition_text(value: Any) -> str:
    """A value as the name of a folder."""
    text = _plain(str(_csv_text(value)))
    # Letters of all alphabets stay: names of folders have at most 255 bytes.
    return re.sub(r"[\x00-\x7f]", lambda match: quote(match[0], safe=" "), text) or NO_PARTITION


def parts_in(folder: str) -> list[str]:
    """The files in a local folder and the folders in it."""
    return [os.path.join(above, name) for above, _, names in os.walk(folder) for name in names]


def _remove(path: str) -> None:
    if os.path.isdir(path):
        shutil.rmtree(path)
    else:
        with suppress(FileNotFoundError):
            os.unlink(path)


def files_of(out: str, *, folder: bool) -> list[str]:
    """The files of a table that is there, local or remote."""
    if "://" not in out:
        if not os.path.exists(out):
            return []
        return parts_in(out) if folder else [out]
    import fsspec

    files, base = fsspec.core.url_to_fs(out)
    return [files.unstrip_protocol(path) for path in files.find(base)] if files.exists(base) else []
