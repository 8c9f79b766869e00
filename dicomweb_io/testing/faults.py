"""Faults on demand: which requests they strike, how often, and what each does to a request or its answer.

A fault is given to `serve` (``faults=[fault("status", status=503, times=2)]``) or added to a running server. Each is a
class whose `apply` applies it; its docstring says what happens, and its fields are its options. The classes come in
families, by what they are applied to:

=============== ======================================================================= ===============================
`AnswerFault`   the answer that is sent in place of the right one                       before anything is done
`ExpireToken`   the authentication                                                      before anything is done
`SearchFault`   a search                                                                before the rows are chosen
`StoreFault`    a store                                                                 before the first part is read
`RowFault`      the rows of an answer                                                   before they are written as JSON
`JSONFault`     the JSON of an answer                                                   before it is sent
`PartFault`     a multipart answer                                                      while it is sent
`CodingFault`   a whole answer                                                          before it is sent
`WireFault`     a connection, below HTTP                                                at its place in the exchange
=============== ======================================================================= ===============================

The server itself plays all of them but the last; those are played by a proxy in front of it
(`dicomweb_io.testing.proxy`).

A new fault is a class here with an `action`; `fault`, JSON, the command and the guide know it then.
"""

from __future__ import annotations

import gzip
import itertools
import json
import random
import re
import struct
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from email.utils import formatdate
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast, get_args

from dicomweb_io.dicom.attributes import resolve, vr_of
from dicomweb_io.dicom.header_scan import scan_header
from dicomweb_io.testing.samples import clone, encapsulate_frames, sample_file

if TYPE_CHECKING:
    from dicomweb_io.testing.proxy import Link
    from dicomweb_io.testing.server.auth import Authentication
    from dicomweb_io.testing.server.exchange import Answer, Exchange, JSONRow
    from dicomweb_io.testing.server.parts import Multipart, PartOut
    from dicomweb_io.testing.server.qido import Search
    from dicomweb_io.testing.server.stow import Store

Place = Literal["request", "answer", "header", "body", "part", "end"]

_DWELL = 0.02

_KINDS: dict[str, type[Fault]] = {}
FAULTS: Mapping[str, type[Fault]] = MappingProxyType(_KINDS)
"""All faults by the name of their action."""


@dataclass(frozen=True)
class Fault:
    """One fault; make it with `fault`.

    Attributes:
        action: The name of what goes wrong, a key of `FAULTS`.
        method: A regular expression that the whole method must match; None for any.
        path: A regular expression to find in the path (without the query); None for any.
        first: The number, from 1, of the first matching request that fails.
        times: How many matching requests fail from there on; None for all.
        probability: The share of them that fails, decided by `seed` and the request's number.
        seed: See `probability`.
        overlapping: It strikes only when more than so many matching requests are being answered at once, each of which
            takes a moment longer; None for any.
    """

    action: ClassVar[str] = ""

    method: str | None = None
    path: str | None = None
    first: int = 1
    times: int | None = 1
    probability: float = 1.0
    seed: int = 0
    overlapping: int | None = None

    def __init_subclass__(cls, action: str = "") -> None:
        super().__init_subclass__()
        if action:
            cls.action = action
            _KINDS[action] = cls

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(item.default, (int, float)) and not isinstance(value, (int, float, type(None))):
                raise ValueError(f"{item.name} of the fault {self.action!r} must be a number, not {value!r}")
        if self.first < 1 or (self.times is not None and self.times < 1):
            raise ValueError("first and times count from 1")
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability must be between 0 and 1, not {self.probability!r}")
        for pattern in (self.method, self.path):
            if pattern is not None:
                re.compile(pattern)

    @property
    def options(self) -> Mapping[str, Any]:
        """The options of its action, complete."""
        return {name: getattr(self, name) for name in self.defaults()}

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """The options of the action with their defaults."""
        return {item.name: item.default for item in fields(cls) if item.name not in _COMMON}

    def matches(self, method: str, path: str) -> bool:
        """Whether it concerns such requests at all."""
        fits = self.method is None or re.fullmatch(self.method, method)
        return bool(fits and (self.path is None or re.search(self.path, path)))

    def to_dict(self) -> dict[str, Any]:
        """The fault as a JSON object, without what has its default."""
        values = {item.name: (getattr(self, item.name), item.default) for item in fields(self)}
        return {"action": self.action, **{name: value for name, (value, usual) in values.items() if value != usual}}


_COMMON = tuple(item.name for item in fields(Fault))


def fault(action: str, **options: Any) -> Fault:
    """Makes a fault, such as ``fault("status", method="POST", status=503, retry_after=1, times=2)``.

    Args:
        action: A key of `FAULTS`.
        **options: The attributes of `Fault`, which all have, and the action's own.

    Raises:
        ValueError: If there is no such action or option, or a value is out of range.
    """
    kind = FAULTS.get(action)
    if kind is None:
        raise ValueError(f"there is no fault {action!r}; there are: {', '.join(FAULTS)}")
    known = kind.defaults()
    for name in options:
        if name not in known and name not in _COMMON:
            own = f"its own are: {', '.join(known)}" if known else "it has none of its own"
            raise ValueError(f"the fault {action!r} has no option {name!r}; {own}; all have: {', '.join(_COMMON)}")
    return kind(**options)


def faults_of_json(text: str | bytes) -> list[Fault]:
    """Reads faults from a JSON list such as ``[{"action": "status", "method": "POST", "status": 503, "times": 2}]``.

    Args:
        text: The list; its objects have the keys of `fault`. `Fault.to_dict` makes them.

    Raises:
        ValueError: If it is not JSON, or an object is not a fault; the message says which.
    """
    try:
        entries = json.loads(text)
    except ValueError as error:
        raise ValueError(f"faults must be a JSON list: {error}") from None
    if not isinstance(entries, list):
        raise ValueError(f"faults must be a JSON list, not {type(entries).__name__}")
    faults = []
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict) or not isinstance(entry.get("action"), str):
            raise ValueError(f"fault {number} must be an object with an action")
        try:
            faults.append(fault(**entry))
        except (TypeError, ValueError, re.error) as error:
            raise ValueError(f"fault {number}: {error}") from None
    return faults


class FaultPlan:
    """Decides, request by request, which faults strike. Thread-safe.

    Attributes:
        struck: How often each fault has struck, by its place in the list.
    """

    def __init__(self, faults: Iterable[Fault] = ()) -> None:
        self._lock = threading.Lock()
        self.clear()
        self.add(*faults)

    def add(self, *faults: Fault) -> None:
        """Adds faults; their counts start now."""
        with self._lock:
            for one in faults:
                if not isinstance(one, Fault):
                    raise TypeError(f"faults must be Fault objects (see fault()), but one is {type(one).__name__}")
                self._faults.append(one)
                self.struck.append(0)

    def clear(self) -> None:
        """Removes all faults."""
        with self._lock:
            self._faults: list[Fault] = []
            self._seen: Counter[int] = Counter()
            self._running: Counter[int] = Counter()
            self.struck: list[int] = []

    def strike(self, method: str, path: str) -> tuple[Fault, ...]:
        """Counts a request and returns the faults that strike it."""
        struck = []
        with self._lock:
            for index, one in enumerate(self._faults):
                if not one.matches(method, path):
                    continue
                self._running[index] += 1
                if one.overlapping is not None and self._running[index] <= one.overlapping:
                    continue
                self._seen[index] += 1
                number = self._seen[index]
                if number < one.first or (one.times is not None and number >= one.first + one.times):
                    continue
                draw = random.Random(f"{one.seed}/{index}/{number}").random()  # noqa: S311 - no secret
                if draw >= one.probability:
                    continue
                self.struck[index] += 1
                struck.append(one)
        return tuple(struck)

    def dwell(self, method: str, path: str) -> None:
        """Has a request take a moment, so that others overlap with it; to be called before it is answered."""
        if any(one.overlapping is not None and one.matches(method, path) for one in tuple(self._faults)):
            time.sleep(_DWELL)

    def end(self, method: str, path: str) -> None:
        """Notes that a request, which `strike` has counted, is answered."""
        with self._lock:
            for index, one in enumerate(self._faults):
                if self._running[index] and one.matches(method, path):
                    self._running[index] -= 1


# Answers that replace the right one -----------------------------------------------------------------------------------


class AnswerFault(Fault):
    """A fault that answers before anything was done."""

    def apply(self, exchange: Exchange, answer: Answer) -> None:
        """Fills in what is sent in place of the right answer."""
        raise NotImplementedError


@dataclass(frozen=True)
class Status(AnswerFault, action="status"):
    """A status instead of the answer; `retry_after` in seconds, as a number or (`retry_after_date`) as a date."""

    status: int = 503
    retry_after: float | None = None
    retry_after_date: bool = False
    body: str | bytes = "The server cannot do this now."
    content_type: str = "text/plain"

    def apply(self, exchange: Exchange, answer: Answer) -> None:
        """Answers with the status."""
        answer.status = self.status
        answer.headers["Content-Type"] = self.content_type
        if self.retry_after is not None:
            date = formatdate(time.time() + self.retry_after, usegmt=True)
            answer.headers["Retry-After"] = date if self.retry_after_date else f"{self.retry_after:g}"
        answer.body = self.body if isinstance(self.body, bytes) else self.body.encode()


@dataclass(frozen=True)
class Redirect(AnswerFault, action="redirect"):
    """A redirect to `location`."""

    location: str = ""
    status: int = 307

    def apply(self, exchange: Exchange, answer: Answer) -> None:
        """Sends the client elsewhere."""
        answer.status = self.status
        answer.headers["Location"] = self.location


@dataclass(frozen=True)
class RedirectLoop(AnswerFault, action="redirect_loop"):
    """A redirect to the same address, for ever."""

    status: int = 302

    def apply(self, exchange: Exchange, answer: Answer) -> None:
        """Sends the client to where it is."""
        query = "&".join(f"{name}={value}" for name, value in exchange.query)
        answer.status = self.status
        answer.headers["Location"] = exchange.path + ("?" + query if query else "")


class HTMLLogin(AnswerFault, action="html_login"):
    """200 with the HTML page of a login form."""

    def apply(self, exchange: Exchange, answer: Answer) -> None:
        """Answers with the page."""
        answer.headers["Content-Type"] = "text/html; charset=utf-8"
        answer.body = (
            b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body><form method='post' action='/login'>"
            b"<input name='user'><input name='password' type='password'><button>Sign in</button></form></body></html>\n"
        )


@dataclass(frozen=True)
class EndlessBody(AnswerFault, action="endless_body"):
    """A body of the right media type that does not end."""

    chunk: int = 65536

    def apply(self, exchange: Exchange, answer: Answer) -> None:
        """Answers with rows, or with one part, for ever."""
        if "dicom+json" in exchange.headers.get("accept", "") or "metadata" in exchange.path:
            row = b'{"0020000D":{"vr":"UI","Value":["1.2.3"]}},'
            answer.headers["Content-Type"] = "application/dicom+json"
            answer.body = itertools.chain([b"["], itertools.repeat(row * max(1, self.chunk // len(row))))
            return
        head = b"--endless\r\nContent-Type: application/dicom\r\n\r\n" + b"\0" * 128 + b"DICM"
        answer.headers["Content-Type"] = 'multipart/related; type="application/dicom"; boundary=endless'
        answer.body = itertools.chain([head], itertools.repeat(b"\0" * self.chunk))


@dataclass(frozen=True)
class GzipBomb(AnswerFault, action="gzip_bomb"):
    """A gzip body that expands to `size` bytes."""

    size: int = 2 * 1024**3

    def apply(self, exchange: Exchange, answer: Answer) -> None:
        """Answers with the bomb."""
        answer.headers.update({"Content-Type": "application/dicom+json", "Content-Encoding": "gzip"})
        answer.body = _bomb(self.size)


def _bomb(size: int) -> Iterator[bytes]:
    block = b" " * (1 << 20)
    squeeze = zlib.compressobj(9, wbits=-15)
    start = squeeze.compress(b"[") + squeeze.flush(zlib.Z_FULL_FLUSH)
    # After a full flush nothing refers to what was before: one squeezed block stands for all.
    squeezed = squeeze.compress(block) + squeeze.flush(zlib.Z_FULL_FLUSH)
    check = zlib.crc32(b"[")
    yield b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + start
    for _ in range(size // len(block)):
        check = zlib.crc32(block, check)
        yield squeezed
    end = block[: size % len(block)] + b"]"
    length = (size + 2) & 0xFFFFFFFF
    yield squeeze.compress(end) + squeeze.flush() + struct.pack("<II", zlib.crc32(end, check), length)


class ExpireToken(Fault, action="expire_token"):
    """All bearer tokens given out so far expire: 401 from now on."""

    def apply(self, authentication: Authentication) -> None:
        """Lets them expire."""
        authentication.expire()


# Content coding -------------------------------------------------------------------------------------------------------


class CodingFault(Fault):
    """A fault of the content coding of a whole answer."""

    def apply(self, answer: Answer) -> None:
        """Declares the answer to be gzip."""
        content = self.coded(answer.content())
        answer.headers.pop("Content-Length", None)
        answer.headers["Content-Encoding"] = "gzip"
        answer.body = content

    def coded(self, content: bytes) -> bytes:
        """What is sent for the right content."""
        raise NotImplementedError


class BadGzip(CodingFault, action="bad_gzip"):
    """Content-Encoding: gzip on a body that is not gzip."""

    def coded(self, content: bytes) -> bytes:
        """The content as it is."""
        return content


class TruncatedGzip(CodingFault, action="truncated_gzip"):
    """The right answer as gzip whose end is missing."""

    def coded(self, content: bytes) -> bytes:
        """The beginning of the compressed content."""
        return gzip.compress(content)[:-12]


# JSON -----------------------------------------------------------------------------------------------------------------


class JSONFault(Fault):
    """A fault of the text of a JSON answer."""

    def apply(self, content: bytes) -> bytes:
        """What is sent for the right text."""
        raise NotImplementedError


class BadJSON(JSONFault, action="bad_json"):
    """200 with something that is not JSON."""

    def apply(self, content: bytes) -> bytes:
        """Something else."""
        return b'{"00080018": {"vr": "UI", "Value": [' + b"\xff\xfe not JSON"


class TruncatedJSON(JSONFault, action="truncated_json"):
    """The right answer's JSON, cut in the middle, with a matching length."""

    def apply(self, content: bytes) -> bytes:
        """The first half."""
        return content[: max(1, len(content) // 2)]


@dataclass(frozen=True)
class DeepJSON(JSONFault, action="deep_json"):
    """JSON nested `depth` levels deep."""

    depth: int = 200_000

    def apply(self, content: bytes) -> bytes:
        """Lists inside lists."""
        return b"[" * self.depth + b"]" * self.depth


class NaNJSON(JSONFault, action="nan_json"):
    """Bare NaN and Infinity among the numbers of the right answer."""

    def apply(self, content: bytes) -> bytes:
        """Each row with an attribute more."""
        extra = b'"00189073": {"vr": "FD", "Value": [NaN, Infinity, -Infinity]}'
        return re.sub(rb'\{(?="[0-9A-F]{8}")', b"{" + extra + b", ", content)


class RowFault(Fault):
    """A fault of the rows of an answer."""

    def apply(self, rows: Iterable[JSONRow]) -> Iterator[JSONRow]:
        """The rows that are sent for the right ones."""
        raise NotImplementedError


class WrongVRs(RowFault, action="wrong_vrs"):
    """Wrong or missing VRs and values of the wrong type in every row; the UIDs stay readable."""

    spoilt: ClassVar[Mapping[str, dict[str, Any]]] = {
        "00080020": {"vr": "DA", "Value": [20260102]},
        "00080061": {"vr": "CS", "Value": "CT"},
        "00100020": {"Value": [17]},
        "00200011": {"vr": "IS", "Value": ["not a number"]},
        "00201208": {"vr": "XX", "Value": [None]},
        "00280010": {"vr": "US", "Value": ["512"]},
        "7FE00010": {"vr": "OW", "InlineBinary": "@@@"},
    }

    def apply(self, rows: Iterable[JSONRow]) -> Iterator[JSONRow]:
        """The rows with some attributes spoilt."""
        for row in rows:
            names = [name.get("Alphabetic", "") for name in row.get("00100010", {}).get("Value", ())]
            spoilt = {**self.spoilt, "00100010": {"vr": "PN", "Value": names}}
            yield {**row, **{tag: value for tag, value in spoilt.items() if tag in row or tag == "00100020"}}


@dataclass(frozen=True)
class NullRow(RowFault, action="null_row"):
    """Row number `row` of the answer is null."""

    row: int = 1

    def apply(self, rows: Iterable[JSONRow]) -> Iterator[JSONRow]:
        """The rows with null in the place of one."""
        for number, row in enumerate(rows, start=1):
            yield cast("JSONRow", None) if number == self.row else row


class LowerCaseTags(RowFault, action="lower_case_tags"):
    """Tags in lower case, and UIDs with the null character that fills them in files."""

    def apply(self, rows: Iterable[JSONRow]) -> Iterator[JSONRow]:
        """The rows spelt so."""
        return map(self._spelt, rows)

    def _spelt(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._spelt(item) for item in value]
        if not isinstance(value, dict):
            return value
        changed = {key.lower() if len(key) == 8 else key: self._spelt(item) for key, item in value.items()}
        if changed.get("vr") == "UI" and "Value" in changed:
            changed["Value"] = [uid + "\0" * (len(uid) % 2) for uid in changed["Value"]]
        return changed


@dataclass(frozen=True)
class ForeignRow(RowFault, action="foreign_row"):
    """The first row is of another object: `attribute` has `value`, as if the filter on it were ignored."""

    attribute: str = "PatientID"
    value: str = "SOMEBODY-ELSE"

    def apply(self, rows: Iterable[JSONRow]) -> Iterator[JSONRow]:
        """Changes the first row."""
        tag = resolve(self.attribute)[0]
        vr = vr_of(tag)
        value = {"Alphabetic": self.value} if vr == "PN" else self.value
        for number, row in enumerate(rows):
            yield row if number else {**row, tag: {"vr": vr, "Value": [value]}}


# Searches -------------------------------------------------------------------------------------------------------------


class SearchFault(Fault):
    """A fault of a search."""

    def apply(self, search: Search) -> None:
        """Changes what the server searches for and returns."""
        raise NotImplementedError


class IgnoreOffset(SearchFault, action="ignore_offset"):
    """The offset is ignored: every page is the first."""

    def apply(self, search: Search) -> None:
        """Starts at the first row."""
        search.start = 0


class IgnoreFilters(SearchFault, action="ignore_filters"):
    """All filters are ignored: every row is returned."""

    def apply(self, search: Search) -> None:
        """Forgets the filters."""
        search.filters.clear()


class IgnorePath(SearchFault, action="ignore_path"):
    """The study and series in the path are ignored: rows of all of them are returned."""

    def apply(self, search: Search) -> None:
        """Searches the whole archive."""
        search.target = replace(search.target, study=None, series=None)


class IgnoreLimit(SearchFault, action="ignore_limit"):
    """The limit is ignored: all rows at once."""

    def apply(self, search: Search) -> None:
        """Forgets the limit."""
        search.limit = None


@dataclass(frozen=True)
class DuplicateRows(SearchFault, action="duplicate_rows"):
    """The page starts with the last `count` rows before it."""

    count: int = 1

    def apply(self, search: Search) -> None:
        """Starts earlier and ends at the same row."""
        back = min(self.count, search.start)
        search.start -= back
        if search.limit is not None:
            search.limit += back


@dataclass(frozen=True)
class LyingTotal(SearchFault, action="lying_total"):
    """X-Total-Count, off by `difference`."""

    difference: int = 1

    def apply(self, search: Search) -> None:
        """Announces another total."""
        search.total_announced = True
        search.total_error += self.difference


@dataclass(frozen=True)
class EmptyPage(SearchFault, action="empty_page"):
    """The page is empty (or the one from row `offset` on), although X-Total-Count announces rows behind it."""

    offset: int | None = None

    def apply(self, search: Search) -> None:
        """Leaves all rows out, or ends the page before that row."""
        search.total_announced = True
        if self.offset in (None, search.start):
            search.withheld = sys.maxsize
        elif self.offset is not None and search.start < self.offset:
            before = self.offset - search.start
            search.limit = before if search.limit is None else min(before, search.limit)


@dataclass(frozen=True)
class ShrinkPages(SearchFault, action="shrink_pages"):
    """The page has `count` rows less than there are."""

    count: int = 1

    def apply(self, search: Search) -> None:
        """Leaves out the last rows of the page."""
        search.withheld += self.count


@dataclass(frozen=True)
class MovingRows(SearchFault, action="moving_rows"):
    """Rows move by `count` between pages, as if others had come."""

    count: int = 1

    def apply(self, search: Search) -> None:
        """Starts earlier, with a page of the same length."""
        search.start = max(0, search.start - self.count)


# Parts ----------------------------------------------------------------------------------------------------------------


class PartFault(Fault):
    """A fault of a multipart answer."""

    def apply(self, message: Multipart) -> None:
        """Changes the parts, or what is between them."""
        raise NotImplementedError


class MissingClosingBoundary(PartFault, action="missing_closing_boundary"):
    """The body ends in order, without closing boundary."""

    def apply(self, message: Multipart) -> None:
        """Leaves the closing boundary out."""
        message.closed = False


class WrongBoundary(PartFault, action="wrong_boundary"):
    """The header announces another boundary than the body has."""

    def apply(self, message: Multipart) -> None:
        """Announces another one of the same length."""
        # Boundaries are hexadecimal digits, so this one is never the right one.
        message.announced = "z" + message.boundary[1:]


@dataclass(frozen=True)
class OnePartFault(PartFault):
    """A fault of one part of a multipart answer."""

    part: int = 1

    def apply(self, message: Multipart) -> None:
        """Replaces the part with what `instead` makes of it."""
        message.parts = self._replaced(message.parts)

    def _replaced(self, parts: Iterator[PartOut]) -> Iterator[PartOut]:
        for number, part in enumerate(parts, start=1):
            yield from self.instead(part) if number == self.part else (part,)

    def instead(self, part: PartOut) -> Iterator[PartOut]:
        """What is sent for the part."""
        raise NotImplementedError


class DropPart(OnePartFault, action="drop_part"):
    """Part number `part` is left out."""

    def instead(self, part: PartOut) -> Iterator[PartOut]:
        """Nothing."""
        part.discard()
        return iter(())


class DuplicatePart(OnePartFault, action="duplicate_part"):
    """Part number `part` comes twice."""

    def instead(self, part: PartOut) -> Iterator[PartOut]:
        """The part twice; its file is removed after the second time."""
        yield replace(part, remove=False)
        yield part


class ForeignPart(OnePartFault, action="foreign_part"):
    """Part number `part` is another instance than asked for."""

    def instead(self, part: PartOut) -> Iterator[PartOut]:
        """The same instance with other UIDs, if the part is an instance."""
        if part.content_type.partition(";")[0] != "application/dicom":
            yield part
            return
        yield replace(part, content=clone(part.read(), "foreign"), path=None, remove=False)
        part.discard()


class DICOMPart(OnePartFault, action="dicom_part"):
    """Part number `part` is a DICOM file, `application/dicom`, whatever was asked for."""

    def instead(self, part: PartOut) -> Iterator[PartOut]:
        """Some other instance."""
        part.discard()
        content = sample_file("test-SR.dcm").read_bytes()
        yield replace(part, content_type="application/dicom", content=content, path=None, remove=False)


class EmptyPart(OnePartFault, action="empty_part"):
    """Part number `part` has a header and no content."""

    def instead(self, part: PartOut) -> Iterator[PartOut]:
        """The header alone."""
        part.discard()
        yield replace(part, content=b"", path=None, remove=False)


class CutPart(OnePartFault, action="cut_part"):
    """Part number `part` lacks its second half."""

    def instead(self, part: PartOut) -> Iterator[PartOut]:
        """The first half under the header of the whole."""
        yield replace(part, sent=part.size // 2)


class InstanceFault(PartFault):
    """A fault of every instance of a multipart answer; parts of other media types are sent as they are."""

    def apply(self, message: Multipart) -> None:
        """Replaces the content of the parts with what `instead` makes of it."""
        message.parts = map(self._replaced, message.parts)

    def _replaced(self, part: PartOut) -> PartOut:
        if part.content_type.partition(";")[0] != "application/dicom":
            return part
        content = self.instead(part.read())
        part.discard()
        return replace(part, content=content, path=None, remove=False)

    def instead(self, content: bytes) -> bytes:
        """What is sent for an instance."""
        raise NotImplementedError


class CutBeforePixels(InstanceFault, action="cut_before_pixels"):
    """Every instance ends just before its pixel data, in a part that ends in order."""

    def instead(self, content: bytes) -> bytes:
        """The instance without its pixel data."""
        scan = scan_header(content)
        return content if scan.pixel_data is None or scan.deflated else content[: scan.end]


class MissingDelimiter(InstanceFault, action="missing_delimiter"):
    """Every image is encapsulated, a fragment for each frame, without the delimiter behind the last one."""

    def instead(self, content: bytes) -> bytes:
        """The encapsulated image up to there."""
        encapsulated = encapsulate_frames(content)
        return content if encapsulated is content else encapsulated[:-8]


# Stores ---------------------------------------------------------------------------------------------------------------


class StoreFault(Fault):
    """A fault of a store."""

    def apply(self, store: Store) -> None:
        """Changes what is stored, or what is said of it."""
        raise NotImplementedError


@dataclass(frozen=True)
class RefuseInstances(StoreFault, action="refuse_instances"):
    """The instances whose numbers in the request are in `numbers` (all, if empty) are refused with a reason."""

    reason: int = 0x0110
    status: int | None = None
    numbers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "numbers", tuple(self.numbers))

    def apply(self, store: Store) -> None:
        """Refuses the instances, with a status of the whole if one is given."""
        store.refusal = lambda number: self.reason if not self.numbers or number in self.numbers else None
        store.refusal_status = self.status


class StoreNothing(StoreFault, action="store_nothing"):
    """200 with empty sequences, and nothing is stored."""

    def apply(self, store: Store) -> None:
        """Reads the request and forgets it."""
        store.swallowed = True


class ClaimStored(StoreFault, action="claim_stored"):
    """All are named as stored, and nothing is stored."""

    def apply(self, store: Store) -> None:
        """Only pretends to store."""
        store.pretended = True


class KeepOld(StoreFault, action="keep_old"):
    """Named as stored; where the instance exists, its old bytes stay."""

    def apply(self, store: Store) -> None:
        """Only pretends to replace."""
        store.keeps_old = True


@dataclass(frozen=True)
class OmitOutcome(StoreFault, action="omit_outcome"):
    """Stored, but number `number` is in no sequence."""

    number: int = 1

    def apply(self, store: Store) -> None:
        """Leaves the instance out of the answer."""
        store.unnamed.add(self.number)


# Below HTTP -----------------------------------------------------------------------------------------------------------


class WireFault(Fault):
    """A fault of a connection, played by the proxy."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.overlapping is not None:
            raise ValueError(f"the fault {self.action!r} strikes connections, not requests, so it has no overlapping")

    @property
    def place(self) -> tuple[Place, int]:
        """Where in the exchange it strikes, and at which byte or boundary there."""
        return "request", 0

    @property
    def hides_length(self) -> bool:
        """Whether the answer is sent without its announced length, ended by the end of the connection."""
        return False

    def apply(self, link: Link) -> None:
        """Does it to the connection, at its place; the exchange goes on if it returns."""
        raise NotImplementedError


@dataclass(frozen=True)
class PlacedFault(WireFault):
    """A fault that strikes at a place of the user's choice."""

    at: Place = "body"
    position: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        places = get_args(Place)[:-1]
        if self.at not in places:
            raise ValueError(f"at of the fault {self.action!r} must be one of {', '.join(places)}, not {self.at!r}")

    @property
    def place(self) -> tuple[Place, int]:
        """The chosen place."""
        return self.at, self.position


@dataclass(frozen=True)
class Reset(PlacedFault, action="reset"):
    """The connection is reset.

    at='request' before the server hears of it, 'answer' after it has done its work and before a byte of its answer,
    'header' after `position` bytes of the answer's header, 'body' after `position` bytes of its body, 'part' right
    after boundary number `position`.
    """

    at: Place = "request"

    def apply(self, link: Link) -> None:
        """Resets it."""
        link.reset()
        link.cut()


@dataclass(frozen=True)
class Truncate(PlacedFault, action="truncate"):
    """As reset, but the connection is closed in order.

    That looks like the end of the body where no length is announced; framing='close' takes announced lengths and chunks
    away. A negative position cuts nothing off.
    """

    position: int = 100
    framing: Literal["keep", "close"] = "keep"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.framing not in ("keep", "close"):
            raise ValueError(f"framing of the fault 'truncate' must be 'keep' or 'close', not {self.framing!r}")

    @property
    def hides_length(self) -> bool:
        """Whether the framing is taken away."""
        return self.framing == "close"

    def apply(self, link: Link) -> None:
        """Closes it."""
        link.cut()


class Stall(PlacedFault, action="stall"):
    """Nothing more comes; the connection stays open. `at` as for reset."""

    def apply(self, link: Link) -> None:
        """Is silent until the client has gone."""
        link.stall()


@dataclass(frozen=True)
class Drip(PlacedFault, action="drip"):
    """From `at` on (as for reset), `count` bytes every `interval` seconds."""

    count: int = 1
    interval: float = 0.05

    def apply(self, link: Link) -> None:
        """Slows down what follows."""
        link.drip(self.count, self.interval)


@dataclass(frozen=True)
class Bandwidth(WireFault, action="bandwidth"):
    """At most `rate` bytes a second, both ways."""

    rate: float = 1_000_000

    def apply(self, link: Link) -> None:
        """Slows down the whole exchange."""
        link.rate = self.rate


@dataclass(frozen=True)
class EndlessHeaders(WireFault, action="endless_headers"):
    """The answer's header never ends."""

    interval: float = 0.0

    @property
    def place(self) -> tuple[Place, int]:
        """Before the empty line at the end of the header."""
        return "header", -2

    def apply(self, link: Link) -> None:
        """Sends header fields until the client has gone."""
        for number in itertools.count(1):
            link.wait(self.interval)
            link.send(f"X-Filler-{number}: {'x' * 1000}\r\n".encode())


class CloseAfter(WireFault, action="close_after"):
    """The kept-alive connection is closed right after a complete answer."""

    @property
    def place(self) -> tuple[Place, int]:
        """After the answer."""
        return "end", 0

    def apply(self, link: Link) -> None:
        """Closes it."""
        link.cut()


@dataclass(frozen=True)
class Down(WireFault, action="down"):
    """All connections are reset, and for `seconds` every new one is refused, as if the server had died."""

    seconds: float = 0.3

    def apply(self, link: Link) -> None:
        """Takes the proxy down."""
        link.proxy.down(self.seconds)
        link.cut()
