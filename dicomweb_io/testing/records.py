"""What a test server remembers of each request."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import overload


@dataclass
class Record:
    """One request and what became of it.

    Attributes:
        method: The method.
        path: The path, percent-decoded.
        query: The query string as it was sent.
        headers: The request's headers by lower-case name; not in the representation, as they may hold credentials.
        status: The status that was sent; None as long as none was.
        bytes_in: Bytes of the request's body that were read.
        bytes_out: Bytes of the answer's body that were sent.
        answer_headers: The answer's headers by lower-case name.
        started: Seconds of the monotonic clock at its beginning.
        ended: The same at its end; None as long as it runs.
        complete: Whether the answer was sent to its end.
        faults: The names of the faults that struck it.
    """

    method: str
    path: str
    query: str
    headers: Mapping[str, str] = field(repr=False, default_factory=dict)
    status: int | None = None
    bytes_in: int = 0
    bytes_out: int = 0
    answer_headers: Mapping[str, str] = field(repr=False, default_factory=dict)
    started: float = field(default_factory=time.monotonic, repr=False)
    ended: float | None = field(default=None, repr=False)
    complete: bool = False
    faults: tuple[str, ...] = ()


class Records(Sequence[Record]):
    """The records of a server in order of arrival. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Condition()
        self._records: list[Record] = []

    def add(self, record: Record) -> None:
        """Adds a record."""
        with self._lock:
            self._records.append(record)

    def finish(self, record: Record) -> None:
        """Notes that a request is over."""
        with self._lock:
            record.ended = time.monotonic()
            self._lock.notify_all()

    def settled(self, timeout: float = 10.0) -> Records:
        """Waits until no request runs any more: a client has its answer a moment before its record is complete.

        Args:
            timeout: The most seconds to wait.

        Returns:
            The records themselves.

        Raises:
            TimeoutError: If a request still runs.
        """
        with self._lock:
            if not self._lock.wait_for(lambda: all(one.ended is not None for one in self._records), timeout):
                raise TimeoutError(f"a request still runs after {timeout:g} s")
        return self

    def clear(self) -> None:
        """Forgets all."""
        with self._lock:
            self._records.clear()

    def of(self, method: str | None = None, path: str | None = None) -> list[Record]:
        """The records of a method and with a path that contains a text."""
        return [
            record
            for record in self
            if (method is None or record.method == method) and (path is None or path in record.path)
        ]

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...

    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        with self._lock:
            return self._records[index]

    def __len__(self) -> int:
        with self._lock:
            return len(self._records)

    def __iter__(self) -> Iterator[Record]:
        with self._lock:
            return iter(list(self._records))
