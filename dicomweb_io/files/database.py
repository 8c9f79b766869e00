"""The SQLite database that holds the index of a folder: where it is, how it is opened, and who may write to it.

The database is a cache that may be deleted at any time. There is one for each folder, in the user's cache directory;
only its owner can read it, because it holds names. Several processes share it: a lock file lets one of them at a time
bring it up to date, and each reads its own snapshot (SQLite's write-ahead log). Where that cannot work, on a network
filesystem or without a writable directory, the index is a private temporary file.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import sqlite3
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dicomweb_io.http.retry import start_anew_after_fork

logger = logging.getLogger(__name__)

SCHEMA_VERSION = 3
_APPLICATION_ID = 0x44574946
_BUSY_SECONDS = 60.0
# UIDs come in no order: while an index of 100,000 files is built, the tables of its keys have to stay in memory.
_WRITER_CACHE_KIB = 64_000
_SECRET_WORDS = ("secret", "key", "token", "password", "credential", "sas")

_SCHEMA = """
CREATE TABLE about (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE file (
    id INTEGER PRIMARY KEY,
    path BLOB NOT NULL UNIQUE,
    size INTEGER NOT NULL,
    version TEXT NOT NULL,
    modified REAL NOT NULL,
    kind INTEGER NOT NULL,
    reason TEXT,
    study TEXT,
    series TEXT,
    sop TEXT,
    sop_class TEXT,
    syntax TEXT,
    digest BLOB
);
CREATE INDEX file_sop ON file (sop) WHERE sop IS NOT NULL;
CREATE INDEX file_kind ON file (kind) WHERE kind <> 0;
CREATE TABLE header (file INTEGER PRIMARY KEY, form INTEGER NOT NULL, content BLOB NOT NULL);
CREATE TABLE fragments (file INTEGER PRIMARY KEY, packed BLOB NOT NULL);
CREATE TABLE instance (
    file INTEGER PRIMARY KEY,
    study TEXT NOT NULL,
    series TEXT NOT NULL,
    number INTEGER NOT NULL,
    sop TEXT NOT NULL,
    row TEXT NOT NULL
);
CREATE UNIQUE INDEX instance_order ON instance (study, series, number, sop, file);
CREATE INDEX instance_sop ON instance (sop);
CREATE TABLE series (
    id INTEGER PRIMARY KEY,
    study TEXT NOT NULL,
    series TEXT NOT NULL,
    number INTEGER NOT NULL,
    modality TEXT,
    instances INTEGER NOT NULL,
    file INTEGER NOT NULL,
    row TEXT NOT NULL,
    UNIQUE (study, series)
);
CREATE TABLE study (
    id INTEGER PRIMARY KEY,
    study TEXT NOT NULL UNIQUE,
    instances INTEGER NOT NULL,
    file INTEGER NOT NULL,
    row TEXT NOT NULL
);
"""

# Filesystems on which locks or shared memory cannot be trusted between hosts, or at all.
_NETWORK_FILESYSTEMS = (
    "nfs", "cifs", "smb", "9p", "fuse.", "lustre", "gpfs", "beegfs", "ceph", "gluster", "afs", "ncp", "coda",
    "virtiofs", "drvfs", "vboxsf", "prl_fs",
)  # fmt: skip


def index_path(
    base_url: str, storage_options: Mapping[str, Any] | None, variant: str, place: str | None
) -> Path | None:
    """Where the index of a folder is.

    Args:
        base_url: The folder.
        storage_options: The options of its filesystem; those that look like secrets are left out.
        variant: What else makes an index differ, such as the rule for duplicates.
        place: A local directory for indexes; by default ``index`` in the directory that the environment variable
            ``DICOMWEB_IO_CACHE`` names, or in ``dicomweb_io`` in the user's cache directory.

    Returns:
        The file, or None if there is no directory for it.
    """
    options = sorted(
        (str(name), repr(value))
        for name, value in (storage_options or {}).items()
        if not any(word in str(name).lower() for word in _SECRET_WORDS)
    )
    text = "\n".join([base_url, variant, *(f"{name}={value}" for name, value in options)])
    name = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32] + ".sqlite"
    if place is not None:
        return Path(place).expanduser().absolute() / name
    cache = _cache_directory()
    return None if cache is None else cache / "index" / name


def _cache_directory() -> Path | None:
    own = os.environ.get("DICOMWEB_IO_CACHE")
    if own:
        return Path(own).expanduser().absolute()
    named = os.environ.get("XDG_CACHE_HOME")
    if named and os.path.isabs(named):
        return Path(named) / "dicomweb_io"
    try:
        home = Path.home()
    except RuntimeError:
        return None
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local") / "dicomweb_io"
    if sys.platform == "darwin":
        return home / "Library" / "Caches" / "dicomweb_io"
    return home / ".cache" / "dicomweb_io"


def is_local_disk(directory: Path) -> bool:
    """Whether a directory is on a disk of this host, as far as the system says (Linux only; true elsewhere)."""
    try:
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return True
    where = os.path.realpath(directory)
    best, kind = "", ""
    for line in mounts:
        fields = line.split(" ")
        if len(fields) < 3:
            continue
        mount = fields[1].encode("latin-1", "backslashreplace").decode("unicode_escape")
        inside = where == mount or where.startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= len(best):
            best, kind = mount, fields[2]
    return not kind.startswith(_NETWORK_FILESYSTEMS)


class Database:
    """An open index database: one connection for reading a snapshot, one for writing.

    Args:
        path: The file; None for a private database that disappears with its connection.
        in_memory: Keep a private database in memory, not in a temporary file.
    """

    def __init__(self, path: Path | None, *, in_memory: bool = False) -> None:
        self.path = path
        if path is not None:
            try:
                self._open_shared(path)
                return
            except (OSError, sqlite3.Error) as error:
                logger.warning("no shared index in %s (%s): this client makes a private one", path.parent, error)
                self.path = None
        self._open_private(in_memory)

    @property
    def shared(self) -> bool:
        """Whether other processes use the same database."""
        return self.path is not None

    def copy_in_child(self, in_memory: bool) -> Database:
        """A private copy for a forked child.

        The child cannot open the shared file: SQLite would take the parent's locks on it for its own. So it reads the
        file once, while nobody writes. (A private database is not copied, and its files are read again.)
        """
        copy = Database(None, in_memory=in_memory)
        if self.path is None or not self.path.exists():
            return copy
        try:
            with lock_file(self.path):
                source = _connect(str(self.path))
                try:
                    source.backup(copy.writer)
                finally:
                    source.close()
        except (OSError, sqlite3.Error) as error:
            logger.warning(
                "the index %s cannot be copied for a forked process (%s): it reads all files", self.path, error
            )
            copy._open_private(in_memory)
        return copy

    def _open_shared(self, path: Path) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not is_local_disk(path.parent):
            raise OSError("the directory is on a network filesystem")
        with lock_file(path):
            for attempt in (1, 2):
                try:
                    self._connect_shared(path)
                    return
                except sqlite3.DatabaseError as error:
                    # An operational error (locked, disk full) does not mean that the contents are bad.
                    if attempt == 2 or isinstance(error, sqlite3.OperationalError):
                        raise
                    logger.info("the index %s is not usable (%s) and is rebuilt", path, error)
                    discard(path)

    def _connect_shared(self, path: Path) -> None:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        writer = _connect(str(path), cache_kib=_WRITER_CACHE_KIB)
        try:
            if writer.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
                raise OSError("SQLite has no write-ahead log there")
            version = tuple(
                writer.execute(f"PRAGMA {name}").fetchone()[0] for name in ("user_version", "application_id")
            )
            if version == (0, 0) and not writer.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone():
                _create_schema(writer)
            elif version != (SCHEMA_VERSION, _APPLICATION_ID):
                raise sqlite3.DatabaseError("another version wrote it")
            # A probe: what cannot be written, locked and read back now cannot be later either.
            writer.execute("BEGIN IMMEDIATE")
            writer.execute("INSERT OR REPLACE INTO about VALUES ('probe', ?)", (time.time(),))
            writer.execute("COMMIT")
            reader = _connect(str(path))
        except BaseException:
            writer.close()
            raise
        self.writer = writer
        self.reader = reader

    def _open_private(self, in_memory: bool) -> None:
        connection = _connect(":memory:" if in_memory else "")
        _create_schema(connection)
        self.writer = self.reader = connection

    @contextmanager
    def exclusive(self, *, wait: bool = True) -> Iterator[None]:
        """Holds the write lock of the index; other processes of this host wait.

        Args:
            wait: Wait for others, which may be reading a million files.

        Raises:
            BlockingIOError: If another process has the right, and `wait` is false.
        """
        if self.path is None:
            yield
        else:
            with lock_file(self.path, wait=wait):
                yield

    def hold_snapshot(self) -> None:
        """Makes the reader see what is committed now, and nothing newer until the next call."""
        if not self.shared:
            return
        self.release_snapshot()
        self.reader.execute("BEGIN")
        # SQLite takes the snapshot with the first read, not with BEGIN.
        self.reader.execute("SELECT 1 FROM about LIMIT 1").fetchall()

    def release_snapshot(self) -> None:
        """Ends the snapshot, so that the log can be emptied."""
        if self.shared and self.reader.in_transaction:
            self.reader.execute("ROLLBACK")

    def close(self) -> None:
        """Closes the connections."""
        self.reader.close()
        if self.writer is not self.reader:
            self.writer.close()


def discard(path: Path) -> None:
    """Removes an index; processes that have it open still see what they saw."""
    for suffix in ("", "-wal", "-shm", "-journal"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


class _Connection(sqlite3.Connection):
    """A connection that a forked child never touches, not even to close it: SQLite forbids that."""

    def start_anew(self) -> None:
        # Closed when it is collected, it could write to the parent's files, or wait for a lock of the parent's threads.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self))

    # Python 3.13 warns of a connection that stays open when its client is dropped instead of closed.
    def __del__(self) -> None:
        with suppress(sqlite3.ProgrammingError):  # it was never opened
            self.close()


def _connect(target: str, cache_kib: int = 16_000) -> sqlite3.Connection:
    connection = sqlite3.connect(
        target,
        timeout=_BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=256,
        factory=_Connection,
    )
    start_anew_after_fork(connection)
    # In the write-ahead log NORMAL loses nothing when a process dies, and is not damaged when the power goes.
    for pragma in ("synchronous = NORMAL", "temp_store = MEMORY", f"cache_size = -{cache_kib}"):
        connection.execute(f"PRAGMA {pragma}")
    return connection


def _create_schema(connection: sqlite3.Connection) -> None:
    connection.executescript(
        f"BEGIN IMMEDIATE;{_SCHEMA}"
        f"PRAGMA user_version = {SCHEMA_VERSION};PRAGMA application_id = {_APPLICATION_ID};COMMIT;"
    )


@contextmanager
def lock_file(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Holds the lock file beside a file. The system releases it when a process dies.

    Raises:
        BlockingIOError: If another process holds it, and this one does not wait.
    """
    descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    _lock_files.add(descriptor)
    try:
        _lock(descriptor, wait)
        try:
            yield
        finally:
            _unlock(descriptor)
    finally:
        _lock_files.discard(descriptor)
        os.close(descriptor)


_lock_files: set[int] = set()


def _leave_lock_files() -> None:
    """In a forked child: leaves the locks to the parent. An open file would keep them beyond the parent's end."""
    while _lock_files:
        os.close(_lock_files.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_lock_files)


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int, wait: bool) -> None:
        while True:
            try:
                msvcrt.locking(descriptor, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
                return
            except OSError as error:
                if not wait:
                    raise BlockingIOError(*error.args) from None
                # LK_LOCK gives up after ten seconds; an index may take longer to build.

    def _unlock(descriptor: int) -> None:
        os.lseek(descriptor, 0, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _lock(descriptor: int, wait: bool) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _unlock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
