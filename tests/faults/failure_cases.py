"""What can go wrong, as data: each failure case is a row of the matrix and makes the faults that the server plays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dicomweb_io.testing.faults import Fault, fault

STALL_TIMEOUT = 0.3
"""Seconds until a client gives a silent server up, where that is what is tried."""

DEADLINE = 0.6
"""Seconds that an operation may take, where only the deadline can end it."""

FAILURE_REASONS: Mapping[str, tuple[int, ...]] = {
    "out of resources": (0xA700, 0xA7FF),
    "data set does not match SOP class": (0xA900, 0xA9FF),
    "cannot understand": (0xC000, 0xC122, 0xCFFF),
    "processing failure": (0x0110,),
    "no such SOP class": (0x0122,),
    "vendor": (45070, 45071, 43264, 43265),
}
"""Failure Reason values (0008,1197) by class: PS3.18 table I.2-2, and vendors' own (documented for Azure)."""

TRAITS: Mapping[str, str] = {
    "rows": "the answer has no rows of a search",
    "json": "the answer is not JSON",
    "vrs": "the answer has no attributes with value representations that are passed on",
    "paged": "it is one request: no offset is sent",
    "matched": "no patient, date or name is a filter",
    "limited": "no limit is sent",
    "total": "no total is announced in it",
    "multipart": "the answer has no parts",
    "several": "the answer has one part only",
    "object": "the answer holds no instances",
    "store": "nothing is stored",
    "body": "the answer has no body",
    "long": "the body is shorter than that",
    "existing": "the destination has none of the instances before",
}
"""What a request must have for some failures to occur in it, and the reason where it does not."""


@dataclass(frozen=True)
class FailureCase:
    """One row of the matrix.

    Attributes:
        name: Its name.
        words: What happens, for the reader of the table.
        faults: Makes the faults for a method, a path pattern and the number of the request that is struck first.
        needs: The traits an operation must have (`TRAITS`).
        passing: Whether it is over after one request (or a short time).
        settings: Options of the endpoint that this failure case needs to show in a short time.
        alone: Whether it strikes all connections, so that nothing else can run beside it.
    """

    name: str
    words: str
    faults: Callable[[str, str, int], tuple[Fault, ...]]
    needs: tuple[str, ...] = ()
    passing: bool = True
    settings: Mapping[str, Any] = field(default_factory=dict)
    alone: bool = False

    def first(self, usual: int) -> int:
        """The number of the request that is struck first: what shows in later pages only, strikes none before."""
        return max(usual, 2) if "paged" in self.needs else usual

    def impossible(self, traits: frozenset[str]) -> str | None:
        """Why it cannot occur in an operation with these traits; None if it can."""
        return next((TRAITS[need] for need in self.needs if need not in traits), None)


_ALL: dict[str, FailureCase] = {}


def _add(
    name: str,
    words: str,
    action: str,
    *,
    needs: tuple[str, ...] = (),
    always: bool = False,
    times: int | None = 1,
    settings: Mapping[str, Any] | None = None,
    alone: bool = False,
    extra: tuple[tuple[str, Mapping[str, Any]], ...] = (),
    **options: Any,
) -> None:
    count = None if always else times

    def faults(method: str, path: str, first: int) -> tuple[Fault, ...]:
        made = [fault(action, method=method, path=path, first=first, times=count, **options)]
        made += [
            fault(other, method=method, path=path, first=first, times=count, **other_options)
            for other, other_options in extra
        ]
        return tuple(made)

    assert name not in _ALL
    _ALL[name] = FailureCase(name, words, faults, needs, not always, settings or {}, alone)


_DEADLINE = {"deadline": DEADLINE}
_STALL = {"timeout": (5.0, STALL_TIMEOUT)}

# Answers that replace the right one -----------------------------------------------------------------------------------

for _status in (400, 401, 403, 404, 405, 406, 408, 409, 410, 413, 415, 422, 425, 429, 500, 501, 502, 503, 504):
    _add(f"status {_status}", f"HTTP {_status}, once", "status", status=_status)
for _status in (400, 401, 403, 404, 409, 413, 429, 500, 501, 503):
    # A refused login ends the work of all.
    _add(
        f"status {_status} always",
        f"HTTP {_status}, every time",
        "status",
        status=_status,
        always=True,
        alone=_status == 401,
    )
_add("retry after seconds", "429 with Retry-After in seconds, once", "status", status=429, retry_after=0.02)
_add(
    "retry after date",
    "503 with Retry-After as a date, once",
    "status",
    status=503,
    retry_after=-5,
    retry_after_date=True,
)
_add(
    "retry after too long",
    "503 with a Retry-After beyond the deadline",
    "status",
    status=503,
    retry_after=600,
    always=True,
    settings={"deadline": 5.0},
)
_add(
    "status 500 with a page",
    "500 with an HTML page, once",
    "status",
    status=500,
    body="<html><body>Internal error</body></html>",
    content_type="text/html",
)
_add("redirect once", "a redirect (307) to the same address, once", "redirect_loop", status=307)
_add("redirect found", "a redirect (302) to the same address, once", "redirect_loop", status=302)
_add("redirect loop", "a redirect to the same address, every time", "redirect_loop", always=True)
_add("redirect elsewhere", "a redirect (307) to another host, once", "redirect", location="{elsewhere}", status=307)
_add("login page", "200 with the HTML page of a login form, once", "html_login")
_add("login page always", "200 with the HTML page of a login form, every time", "html_login", always=True)
_add(
    "endless body",
    "a body that does not end, every time",
    "endless_body",
    always=True,
    settings=_DEADLINE,
    extra=(("bandwidth", {"rate": 2_000_000}),),
    chunk=16384,
)
_add("expired token", "the access token expires", "expire_token")

# Content coding -------------------------------------------------------------------------------------------------------

_add("gzip bomb", "a gzip body that expands without measure", "gzip_bomb", always=True, size=192 << 20)
_add("bad gzip", "a body said to be gzip that is none, once", "bad_gzip", needs=("body",))
_add("bad gzip always", "a body said to be gzip that is none, every time", "bad_gzip", needs=("body",), always=True)
_add("truncated gzip", "a gzip body without its end, once", "truncated_gzip", needs=("body",))
_add("truncated gzip always", "a gzip body without its end, every time", "truncated_gzip", needs=("body",), always=True)

# JSON -----------------------------------------------------------------------------------------------------------------

_add("bad JSON", "200 with something that is not JSON, once", "bad_json", needs=("json",))
_add("bad JSON always", "200 with something that is not JSON, every time", "bad_json", needs=("json",), always=True)
_add("truncated JSON", "JSON cut in the middle, with a matching length, once", "truncated_json", needs=("json",))
_add(
    "truncated JSON always",
    "JSON cut in the middle, with a matching length, every time",
    "truncated_json",
    needs=("json",),
    always=True,
)
_add("deep JSON", "JSON nested 200,000 levels deep", "deep_json", needs=("json",), always=True)
_add("NaN in JSON", "bare NaN and Infinity among the numbers", "nan_json", needs=("json", "vrs"), always=True)
_add("wrong VRs", "wrong or missing VRs and values of wrong types", "wrong_vrs", needs=("vrs",), always=True)

# Searches -------------------------------------------------------------------------------------------------------------

_add("offset ignored", "every page is the first", "ignore_offset", needs=("rows", "paged"), always=True)
_add(
    "filters ignored",
    "rows of the whole archive, whatever the filters and the path",
    "ignore_filters",
    needs=("rows",),
    extra=(("ignore_path", {}),),
)
_add("path ignored", "rows of other studies and series than the path's", "ignore_path", needs=("rows",))
for _attribute, _value in (("PatientID", "P-2"), ("StudyDate", "20250607"), ("PatientName", "Nemo^Nulla")):
    _add(
        f"{_attribute} ignored",
        f"a row of another {_attribute} than asked for",
        "foreign_row",
        needs=("rows", "matched"),
        attribute=_attribute,
        value=_value,
    )
_add("limit ignored", "all rows at once, whatever the limit", "ignore_limit", needs=("rows", "limited"), always=True)
_add("duplicate rows", "the page starts with the last row of the one before", "duplicate_rows", needs=("rows", "paged"))
_add(
    "total too high",
    "more rows are announced than there are",
    "lying_total",
    needs=("total",),
    always=True,
    difference=3,
)
_add(
    "total too low",
    "fewer rows are announced than there are",
    "lying_total",
    needs=("total",),
    always=True,
    difference=-4,
)
_add(
    "gap",
    "pages are empty, though the total tells of more rows",
    "empty_page",
    needs=("rows", "paged"),
    always=True,
)
_add("gap once", "a page is empty, though the total tells of more rows, once", "empty_page", needs=("rows", "paged"))
_add("null row", "one of the rows is null", "null_row", needs=("rows",), always=True)
_add("lower case", "tags in lower case, and padded UIDs", "lower_case_tags", needs=("rows",), always=True)
_add("shrinking page", "a page has a row less than there is, once", "shrink_pages", needs=("rows",))
_add("moving rows", "rows move by one between pages", "moving_rows", needs=("rows", "paged"), always=True)

# Parts ----------------------------------------------------------------------------------------------------------------

_add("no closing boundary", "no closing boundary, once", "missing_closing_boundary", needs=("multipart",))
_add(
    "no closing boundary always",
    "no closing boundary, every time",
    "missing_closing_boundary",
    needs=("multipart",),
    always=True,
)
_add("wrong boundary", "another boundary than announced, once", "wrong_boundary", needs=("multipart",))
_add(
    "wrong boundary always",
    "another boundary than announced, every time",
    "wrong_boundary",
    needs=("multipart",),
    always=True,
)
_add("missing part", "the first part is left out, once", "drop_part", needs=("multipart",))
_add("missing part always", "the first part is left out, every time", "drop_part", needs=("multipart",), always=True)
_add("duplicate part", "the first part comes twice", "duplicate_part", needs=("multipart",), always=True)
_add("foreign part", "the first part is another instance", "foreign_part", needs=("multipart", "object"), always=True)
_add(
    "DICOM part",
    "the first part is a DICOM file, whatever was asked for",
    "dicom_part",
    needs=("multipart",),
    always=True,
)
_add("empty part", "the first part is empty, once", "empty_part", needs=("multipart",))
_add("empty part always", "the first part is empty, every time", "empty_part", needs=("multipart",), always=True)
_add("halved part", "the first part lacks its second half, once", "cut_part", needs=("multipart",))
_add(
    "halved part always",
    "the first part lacks its second half, every time",
    "cut_part",
    needs=("multipart",),
    always=True,
)

_add(
    "cut before the pixels",
    "all parts end just before their pixel data, once",
    "cut_before_pixels",
    needs=("multipart", "object"),
)
_add(
    "cut before the pixels always",
    "all parts end just before their pixel data, every time",
    "cut_before_pixels",
    needs=("multipart", "object"),
    always=True,
)
_add(
    "delimiter missing, length proven",
    "all parts are encapsulated images without the last delimiter, every time",
    "missing_delimiter",
    needs=("multipart", "object"),
    always=True,
)

# Stores ---------------------------------------------------------------------------------------------------------------

for _reason, _what in (
    (0xA700, "out of resources"),
    (0xA900, "does not match the SOP class"),
    (0xC000, "cannot understand"),
    (0xC122, "transfer syntax"),
    (0x0110, "processing failure"),
    (0x0122, "no such SOP class"),
    (45070, "Azure: exists"),
    (45071, "Azure: being stored"),
):
    _add(
        f"refused {_reason:04X}",
        f"one instance is refused with reason {_reason:04X}H ({_what}), 202",
        "refuse_instances",
        needs=("store",),
        always=True,
        reason=_reason,
        numbers=(3,),
    )
_add(
    "one refused by 409",
    "one instance is refused, and the status of the whole is 409",
    "refuse_instances",
    needs=("store",),
    always=True,
    reason=0xA900,
    numbers=(3,),
    status=409,
)
_add("all refused", "all instances are refused, 409", "refuse_instances", needs=("store",), always=True)
_add("nothing stored", "200, and nothing is stored", "store_nothing", needs=("store",), always=True)
_add("lie: stored", "all are named as stored, and none is", "claim_stored", needs=("store",), always=True)
_add("old bytes kept", "named as stored, and the old bytes stay", "keep_old", needs=("store", "existing"), always=True)
_add("outcome omitted", "stored, and one is in no sequence", "omit_outcome", needs=("store",), always=True, number=2)

# Below HTTP -----------------------------------------------------------------------------------------------------------

_add("reset before", "reset before the server hears of the request", "reset", at="request")
_add("reset after", "reset after the server did its work, before its answer", "reset", at="answer")
_add("reset after always", "the same every time", "reset", at="answer", always=True)
_add("reset in header", "reset inside the answer's header", "reset", at="header", position=25)
_add("reset in body", "reset inside the answer's body", "reset", at="body", position=5, needs=("body",))
_add("reset in body always", "the same every time", "reset", at="body", position=5, needs=("body",), always=True)
_add("reset in part", "reset inside the first part", "reset", at="body", position=1500, needs=("object",))
_add("reset late", "reset inside the second part", "reset", at="body", position=4000, needs=("several", "long"))
_add("reset between parts", "reset between the first two parts", "reset", at="part", position=2, needs=("several",))
_add("cut in header", "closed inside the answer's header", "truncate", at="header", position=25)
_add("cut in body", "closed inside the body, before its announced end", "truncate", position=5, needs=("body",))
_add(
    "cut in body always",
    "the same every time",
    "truncate",
    position=5,
    needs=("body",),
    always=True,
)
_add(
    "cut without length",
    "closed inside a body whose length was not announced, once",
    "truncate",
    position=5,
    framing="close",
    needs=("body",),
)
_add(
    "cut without length always",
    "the same every time",
    "truncate",
    position=5,
    framing="close",
    needs=("body",),
    always=True,
)
_add(
    "no length",
    "the whole body, without announced length, ended by closing",
    "truncate",
    position=-1,
    framing="close",
    needs=("body",),
    always=True,
)
_add("cut between parts", "closed between the first two parts", "truncate", at="part", position=2, needs=("several",))
_add("silence before", "no answer, as the request got lost, once", "stall", at="request", settings=_STALL)
_add("silence after", "no answer after the server did its work, once", "stall", at="answer", settings=_STALL)
_add("silence in body", "the body stops, once", "stall", at="body", position=5, needs=("body",), settings=_STALL)
_add("silence always", "no answer, every time", "stall", at="answer", always=True, settings=_DEADLINE)
_add(
    "silence in body always",
    "the body stops, every time",
    "stall",
    at="body",
    position=5,
    always=True,
    needs=("body",),
    settings=_DEADLINE,
)
_add("dripping header", "the header drips for ever", "drip", at="header", interval=0.2, always=True, settings=_DEADLINE)
_add(
    "dripping body",
    "the body drips for ever",
    "drip",
    at="body",
    position=2,
    interval=0.2,
    always=True,
    needs=("body",),
    settings=_DEADLINE,
)
_add("pieces", "the answer comes in pieces of 40 bytes", "drip", at="body", count=40, interval=0.0005, always=True)
_add("bandwidth", "at most 200 kB a second, both ways", "bandwidth", rate=200_000, always=True)
_add("endless headers", "the answer's header never ends", "endless_headers", always=True)
_add("kept connection closed", "the kept-alive connection is closed after each answer", "close_after", always=True)
_add(
    "server dies",
    "all connections are reset, and for 50 ms new ones are refused",
    "down",
    seconds=0.05,
    settings={"patient": True},
    alone=True,
)
_add(
    "server gone",
    "all connections are reset, and every new one is refused",
    "down",
    seconds=3600.0,
    always=True,
    alone=True,
)

FAILURE_CASES: Mapping[str, FailureCase] = _ALL
"""All failure cases by name."""
