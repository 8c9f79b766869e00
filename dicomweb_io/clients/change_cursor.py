"""What all change sources share: the place reached (`Cursor`), an answer (`Changes`), and where to begin (`Start`)."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, time, timezone
from typing import Any, Literal, Protocol

from dicomweb_io.clients.protocol import DICOMClient
from dicomweb_io.clients.queries import make_query
from dicomweb_io.elements import Failure, Resource

WatchLevel = Literal["study", "instance"]
"""What is watched for."""

Start = Literal["now", "all"] | date | datetime
"""Where to begin: with what arrives from now on, with everything that is there, or with a day or a moment."""

DEFAULT_MOST = 10_000
"""The most references of one answer, by default."""

_VERSION = 1


@dataclass(frozen=True, eq=False)
class Cursor:
    """The place that a change source has reached. It pickles, and it has a JSON form to be kept in a file.

    Attributes:
        method: The kind of source that made it; no other can go on from it.
        position: How far it was read: a sequence number, or a time.
        start: The time before which nothing is wanted, if any.
        seen: What was told already and may be met again, by day or time: digests of references, or sequence numbers.
    """

    method: str
    position: str = ""
    start: str = ""
    seen: Mapping[str, frozenset[str]] = field(default_factory=dict, repr=False)

    def to_json(self) -> dict[str, Any]:
        """The cursor as a JSON object."""
        return {
            "version": _VERSION,
            "method": self.method,
            "position": self.position,
            "start": self.start,
            "seen": {key: sorted(members) for key, members in sorted(self.seen.items())},
        }

    @classmethod
    def from_json(cls, value: Any) -> Cursor:
        """Restores a cursor.

        Raises:
            ValueError: If the value is no cursor, or one of another version.
        """
        if not isinstance(value, Mapping) or value.get("version") != _VERSION:
            raise ValueError("this is no cursor of a change source, or one of another version")
        method, position, start, seen = (value.get(name) for name in ("method", "position", "start", "seen"))
        if not (isinstance(method, str) and isinstance(position, str) and isinstance(start, str)):
            raise ValueError("this is no cursor of a change source: method, position and start must be texts")
        if not isinstance(seen, Mapping) or not all(isinstance(members, list) for members in seen.values()):
            raise ValueError("this is no cursor of a change source: seen must hold lists")
        return cls(method, position, start, {str(key): frozenset(map(str, members)) for key, members in seen.items()})


@dataclass(frozen=True, eq=False)
class Changes:
    """The answer of a change source.

    Attributes:
        references: What is new, in the archive's order, each once.
        cursor: Where to go on.
        more: Whether there is more already, so that there is no reason to wait.
        failures: What the archive told that names no object.
    """

    references: tuple[Resource, ...]
    cursor: Cursor
    more: bool = False
    failures: tuple[Failure, ...] = ()


class ChangeSource(Protocol):
    """Tells what is new in an archive."""

    @property
    def method(self) -> str:
        """The name of the way in which it finds out."""
        ...

    def poll(
        self, client: DICOMClient, cursor: Cursor | None, *, start: Start = "now", most: int = DEFAULT_MOST
    ) -> Changes:
        """Asks what is new.

        Args:
            client: The archive.
            cursor: Where the last answer ended; None at the beginning.
            start: Where to begin; used without a cursor only. With ``"now"`` the first answer is empty.
            most: End the answer when it holds so many references, and say that there is more.

        Raises:
            requests.HTTPError, OSError: If the archive cannot be asked. Nothing is lost: ask again with the same
                cursor.
            ValueError: If it answers nonsense, or the cursor belongs to another archive.
        """
        ...


def check_start(start: object) -> Start:
    """Returns `start` if it is one.

    Raises:
        TypeError, ValueError: If it is not.
    """
    if isinstance(start, (date, datetime)):
        return start
    if start == "now":
        return "now"
    if start == "all":
        return "all"
    kind = ValueError if isinstance(start, str) else TypeError
    raise kind(f"start must be 'now', 'all', a date or a datetime, not {start!r}")


def moment_of(start: date) -> datetime:
    """A day or moment as a moment in UTC; a datetime without a zone is UTC."""
    if not isinstance(start, datetime):
        start = datetime.combine(start, time.min)
    return start.replace(tzinfo=timezone.utc) if start.tzinfo is None else start.astimezone(timezone.utc)


def parse_moment(text: str) -> datetime:
    """A time in ISO 8601 as a moment in UTC; without a zone it is UTC, and digits below microseconds are dropped.

    Raises:
        ValueError: If it is no time.
    """
    head, dot, tail = text.strip().partition(".")
    digits = len(tail) - len(tail.lstrip("0123456789"))
    fraction, zone = (tail[:digits], tail[digits:]) if dot else ("", "")
    if not dot and head.endswith(("Z", "z")):
        head, zone = head[:-1], "Z"
    joined = f"{head}{'.' + fraction[:6].ljust(6, '0') if fraction else ''}{'+00:00' if zone in ('Z', 'z') else zone}"
    return moment_of(datetime.fromisoformat(joined))


def digest_of(text: str) -> str:
    """A short text that stands for a longer one: 128 bits of BLAKE2b."""
    return base64.urlsafe_b64encode(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest())[
        :22
    ].decode("ascii")


def check_method(cursor: Cursor, method: str) -> None:
    """Checks that a cursor was made by the same kind of source.

    Raises:
        ValueError: If it was not.
    """
    if cursor.method != method:
        raise ValueError(f"the cursor was made by the method {cursor.method!r}, so {method!r} cannot go on from it")


def matching(
    client: DICOMClient, level: WatchLevel, search_filters: Mapping[str, Any], references: Iterable[Resource]
) -> list[Resource]:
    """Those of the references that match search filters: one search for each study.

    Feeds of changes cannot be filtered, so that the archive is asked about what they told.
    """
    wanted = list(references)
    if not search_filters:
        return wanted
    found: set[Resource] = set()
    for study in dict.fromkeys(reference.study_instance_uid for reference in wanted):
        if level == "study":
            query = make_query(
                "study", search_filters={**search_filters, "StudyInstanceUID": study}, permissive_uid=True
            )
        else:
            query = make_query("instance", study, search_filters=search_filters, permissive_uid=True)
        for row in client.iter_search(query):
            reference = Resource.of(row)
            found.add(reference if level == "instance" else Resource(reference.study_instance_uid))
    return [reference for reference in wanted if reference in found]
