"""What must come of each failure in each operation: the declared cells of the matrix.

Four outcomes are right:

``recovered``: the results are those of an undisturbed run;
``reported``: one clear error or `Failure` for exactly what was affected, the rest undisturbed;
``believed``: the answer is whole and valid, and nothing in it could tell; the cell says what does tell;
``cannot occur``: with the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from tests.faults.failure_cases import FAILURE_CASES, FailureCase

Outcome = Literal["recovered", "reported", "believed", "cannot occur"]


@dataclass(frozen=True)
class Expected:
    """One cell.

    Attributes:
        outcome: The right outcome.
        why: Why it cannot occur; or what tells where the answer does not.
        errors: The class of the error, by name, or one of several.
        status: The HTTP status that the error or failure carries.
        retryable: Whether trying again later could help; None where it depends on which came first.
        other_attributes: Whether rows may come with other attributes than in an undisturbed run.
        partly_believed: Whether what the answer says of other instances is believed, as asked for.
        or_recovered: Whether it is recovered from if other requests are in flight, because it is tried once more then.
    """

    outcome: Outcome
    why: str = ""
    errors: tuple[str, ...] = ()
    status: int | None = None
    retryable: bool | None = None
    other_attributes: bool = False
    partly_believed: bool = False
    or_recovered: bool = False


RECOVERED = Expected("recovered")


def reported(*errors: str, status: int | None = None, retryable: bool | None = False) -> Expected:
    """An outcome that is an error of one of these classes, or failures with these facts."""
    return Expected("reported", errors=errors or ("DICOMwebError",), status=status, retryable=retryable)


def believed(why: str) -> Expected:
    """An answer that is whole and valid, and wrong."""
    return Expected("believed", why)


_DEADLINE = reported("DeadlineExceededError", retryable=False)
_BROKEN = reported("ResponseIncompleteError", "ConnectionFailedError", "MalformedResponseError", retryable=True)

DEFAULTS: dict[str, Expected] = {
    **{f"status {code}": reported(status=code) for code in (403, 404, 405, 409, 410, 422, 501)},
    "status 413": reported("TooManyResultsError", "DICOMwebError", status=413),
    **{f"status {code} always": reported(status=code) for code in (400, 401, 403, 404, 409, 501)},
    "status 413 always": reported("TooManyResultsError", "DICOMwebError", status=413),
    **{f"status {code} always": reported(status=code, retryable=True) for code in (429, 500, 503)},
    "retry after too long": reported(status=503, retryable=True),
    "redirect loop": reported("RedirectError", status=302),
    "redirect elsewhere": reported(status=403),
    "login page": reported("MalformedResponseError", status=200),
    "login page always": reported("MalformedResponseError", status=200),
    "endless body": reported("DeadlineExceededError", "MalformedResponseError"),
    "gzip bomb": reported("MalformedResponseError", status=200),
    "bad gzip always": reported("MalformedResponseError", status=200, retryable=True),
    "truncated gzip always": reported("ResponseIncompleteError", status=200, retryable=True),
    "bad JSON always": reported("ResponseIncompleteError", "MalformedResponseError", status=200, retryable=None),
    "truncated JSON always": reported("ResponseIncompleteError", status=200, retryable=True),
    "deep JSON": reported("MalformedResponseError", status=200),
    "offset ignored": reported("PagingError"),
    "gap": reported("SearchIncompleteError"),
    "null row": reported("SearchIncompleteError"),
    **{
        f"{what} ignored": reported("FilterIgnoredError", status=200)
        for what in ("filters", "path", "PatientID", "StudyDate", "PatientName")
    },
    "no closing boundary always": reported("ResponseIncompleteError", status=200, retryable=True),
    "wrong boundary always": reported("ResponseIncompleteError", status=200, retryable=True),
    "missing part always": reported("ResponseIncompleteError", status=200, retryable=True),
    "foreign part": reported("MalformedResponseError", status=200),
    "DICOM part": reported("MalformedResponseError", status=200),
    "empty part always": reported("ResponseIncompleteError", status=200, retryable=None),
    "halved part always": reported("ResponseIncompleteError", status=200),
    "cut before the pixels always": believed("it came so twice and may be lawful; a warning names it"),
    "delimiter missing, length proven": believed("the boundary proves that it is whole; a warning names it"),
    "reset after always": reported("ConnectionFailedError", retryable=True),
    "reset in body always": _BROKEN,
    "cut in body always": _BROKEN,
    "cut without length always": _BROKEN,
    "silence always": _DEADLINE,
    "silence in body always": _DEADLINE,
    "dripping header": _DEADLINE,
    "dripping body": _DEADLINE,
    "endless headers": reported("MalformedResponseError"),
    "server gone": reported("ConnectionFailedError", retryable=True),
}
"""What is right in most operations; what is not named here is recovered from."""

Rule = tuple[Callable[[str, frozenset[str], FailureCase], bool], Expected]


def _in(*names: str) -> Callable[[str, frozenset[str], FailureCase], bool]:
    """Matches ``"operation / failure case"``; each side may be ``*`` or begin or end with it."""
    pairs = [name.split(" / ") for name in names]

    def matches(operation: str, traits: frozenset[str], failure_case: FailureCase) -> bool:
        return any(_like(operation, left) and _like(failure_case.name, right) for left, right in pairs)

    return matches


def _like(text: str, pattern: str) -> bool:
    start, star, end = pattern.partition("*")
    return text == pattern if not star else text.startswith(start) and text.endswith(end)


RULES: list[Rule] = []
"""What differs from the defaults; the first that matches holds."""


def rule(expected: Expected, *names: str) -> None:
    """Adds a rule; see `_in`."""
    RULES.append((_in(*names), expected))


# Searching: one page is what was asked for; the client that pages asks for what is left.
rule(
    believed("one request gives one page; get_remaining and iter_search ask for the rest"),
    "search for * / shrinking page",
)
rule(reported("PagingError"), "page through studies / duplicate rows", "page through studies / moving rows")
rule(believed("the number is what was asked for"), "count / total too *")
rule(reported("SearchIncompleteError"), "page with totals / total too high")
rule(
    RECOVERED,
    # Another spelling of Accept may be what the server wants.
    *(
        f"{name} / status {code}"
        for code in (400, 406, 415)
        for name in ("search *", "page *", "retrieve *", "stream *")
    ),
    *(
        f"{name} / status {code}"
        for code in (400, 406, 415)
        for name in ("metadata *", "*frame", "frames", "*bulk data")
    ),
    # The whole series tells where a search by UID does not.
    *(
        f"store: {name} / status {code}"
        for code in (400, 406, 415)
        for name in ("the listing*", "the search*", "reading*")
    ),
)
for _code in (400, 406, 415):
    rule(reported(status=_code), f"count / status {_code}", f"rendered / status {_code}", f"thumbnail / status {_code}")

# The levels above are walked where a search seems to be missing, and what is not retrieved as a whole, one by one.
rule(
    Expected("recovered", other_attributes=True),
    *(
        f"{name} / status {code}"
        for code in ("404", "405", "501", "404 always", "501 always")
        for name in ("search for series", "search for instances", "missing instances")
    ),
)
rule(
    RECOVERED,
    *(
        f"{name} / status {code}"
        for code in ("404", "405", "501", "404 always", "501 always")
        for name in ("retrieve study", "retrieve series", "stream study to files")
    ),
)
for _code in (400, 406, 415):
    rule(reported(status=_code), f"probe / status {_code}")
rule(
    believed("it is a finding: the report says that the server does not do it"),
    *(
        f"probe / {name}"
        for name in ("limit ignored", "offset ignored", "moving rows", "shrinking page", "gap", "gap once", "null row")
    ),
)
# All rows are in the first page: what is empty is behind them.
rule(
    RECOVERED,
    *(f"{name} / gap" for name in ("missing instances", "store: the listing before", "ReadFromDICOMweb (search)")),
)
# The whole archive is searched, so that all of its rows are right.
rule(
    RECOVERED,
    *(
        f"{name} / {what} ignored"
        for what in ("filters", "path")
        for name in ("probe", "page *", "SearchForStudies", "ReadFromDICOMweb (search)", "WatchFor*")
    ),
    *(f"search for {what} / path ignored" for what in ("studies", "series", "instances")),
    # The destination has instances of the series listed, and no others.
    *(f"store: the listing before / {what} ignored" for what in ("filters", "path")),
)

# Retrieving: a listing proves that nothing is missing after an answer that has no proper end.
for _what in ("retrieve study", "retrieve series", "stream study*"):
    rule(RECOVERED, f"{_what} / no closing boundary always", f"{_what} / truncated gzip always")
    rule(
        believed("the answer is whole and valid; missing_instances() and the transforms compare it with a search"),
        f"{_what} / missing part*",
    )
for _what in ("frames", "one frame"):
    rule(reported("MalformedResponseError", status=200), f"{_what} / duplicate part")
rule(reported("MalformedResponseError", status=200), "frames / halved part*")
rule(RECOVERED, "frames / status 413")  # A shorter list may be small enough.
rule(believed("nothing tells how long a frame must be"), "one frame / halved part*")
rule(believed("bulk data may have several parts, equal ones too"), "bulk data / duplicate part")
rule(
    believed("an empty offset table is a part of bulk data"),
    "bulk data / empty part*",
    "RetrieveBulkdata / empty part*",
)
rule(reported("MalformedResponseError", status=200), "range of bulk data / empty part*")
rule(reported("MalformedResponseError", status=200), "range of bulk data / duplicate part")
rule(RECOVERED, "range of bulk data / halved part*")
rule(believed("nothing tells how long bulk data must be"), "bulk data / halved part*")

# What is refused for no clear reason and is there counts as there.
_THERE = believed("it is there, under the same UIDs; verify='content' tells whether it is the same")
for _proof in ("response", "uid", "content"):
    rule(_THERE, f"store: server, {_proof} / status 409*", f"store: server, {_proof} / all refused")

# Storing: where the server did its work, a look-up tells; where it did not, every instance of the request has failed.
_DID_ITS_WORK = (
    *("bad gzip always", "truncated gzip always", "bad JSON always", "truncated JSON always", "deep JSON"),
    *("reset after always", "reset in body always", "cut in body always", "cut without length always"),
    *("silence always", "silence in body always", "dripping header", "dripping body", "endless headers"),
)
_POSTS = (
    *("store: server*", "store: skip*", "store: error*", "store: replace*", "store_instances"),
    *("StoreInstances", "CopyInstances (store)", "WriteToDICOMweb"),
)
for _post in _POSTS:
    rule(RECOVERED, *(f"{_post} / {name}" for name in _DID_ITS_WORK))
    if _post != "store: replace*":
        rule(
            RECOVERED, *(f"{_post} / status {code}" for code in (406, 400, 409, 413, 415, 422)), f"{_post} / login page"
        )
    rule(reported("RedirectError", status=307), f"{_post} / redirect elsewhere")
    rule(reported("RedirectError", status=302), f"{_post} / redirect found", f"{_post} / redirect loop")
    for _reason in ("A900", "C000", "C122", "0122", "B00E"):
        rule(reported(status=202), f"{_post} / refused {_reason}")
    # What a quieter moment may heal is sent once more alone, where it is not the third instance of its request.
    rule(RECOVERED, *(f"{_post} / refused {_reason}" for _reason in ("A700", "0110", "B00F")))
    rule(reported(status=409), f"{_post} / one refused by 409", f"{_post} / all refused")
    rule(reported(status=200, retryable=True), f"{_post} / login page*", f"{_post} / nothing stored")
for _code in (400, 409, 413, 415, 422):
    rule(reported(status=_code), f"store: replace* / status {_code}")
rule(RECOVERED, "store: replace* / status 406")
_UNTOLD = believed("the answer is believed, as asked for; verify='uid' and verify='content' tell")
# Before the old bytes are dropped, the new ones must be found.
rule(
    replace(reported(retryable=None), partly_believed=True),
    "store: replace, response / lie: stored",
    "store: replace, uid / lie: stored",
)
rule(_UNTOLD, "store: *, response / lie: stored", "store_instances / lie: stored")
rule(_UNTOLD, "StoreInstances / lie: stored", "CopyInstances (store) / lie: stored")
rule(replace(reported(retryable=True), partly_believed=True), "store: *, uid / lie: stored")
rule(reported(retryable=None), "store: *, content / lie: stored", "WriteToDICOMweb / lie: stored")
_OLD = believed("the answer is believed, as asked for; verify='content' tells")
rule(_OLD, "store: server, response / old bytes kept", "store: server, uid / old bytes kept")

# What storing asks besides.
rule(
    RECOVERED,
    *(f"store: the search after / {what}" for what in ("filters ignored", "path ignored", "status 404")),
)
rule(reported(retryable=True), "store: the search after / status 404 always")
rule(
    believed("to many servers 404 means that there is no such series: then everything is sent"),
    "store: the listing before / status 404*",
)
# Whether an instance was deleted can be looked up.
rule(
    RECOVERED,
    *(f"store: the delete before / {name}" for name in ("dripping header", "endless headers", "reset after always")),
    "store: the delete before / silence always",
)
rule(reported(status=503, retryable=None), "store: the delete before / retry after too long")

# Deleting.
for _what in ("delete *", "store: the delete before"):
    rule(reported("RedirectError", status=307), f"{_what} / redirect elsewhere")
    rule(reported("RedirectError", status=302), f"{_what} / redirect found", f"{_what} / redirect loop")
    for _code in (400, 406, 415):
        rule(reported(status=_code), f"{_what} / status {_code}")


# Transforms.
rule(
    RECOVERED,
    *(
        f"{name} / status {code}"
        for code in (400, 406, 415)
        for name in ("SearchFor*", "WatchFor*", "Read*", "RetrieveInstances*")
    ),
    *(
        f"{name} / status {code}"
        for code in (400, 406, 415)
        for name in ("RetrieveMeta*", "RetrieveFrames", "RetrieveBulk*")
    ),
    *(f"{name} / status {code}" for code in (400, 406, 415) for name in ("CopyInstances*", "DownloadInstances")),
)
rule(
    Expected("recovered", other_attributes=True),
    *(
        f"{name} / status {code}"
        for code in ("404", "405", "501", "404 always", "501 always")
        for name in ("SearchForInstances", "ReadFromDICOMweb (search)", "WatchForInstances")
    ),
)
# What is not found while many requests are in flight is asked for once more alone.
rule(
    replace(reported(status=404), or_recovered=True),
    *(f"{name} / status 404" for name in ("SearchFor*", "WatchFor*", "Read*", "Retrieve*", "DownloadInstances")),
    "CopyInstances (source) / status 404",
)
# What is left after a refused login is not tried, and a later run can do it.
rule(
    reported(status=401, retryable=None), "CopyInstances* / status 401 always", "RetrieveInstances* / status 401 always"
)
# What does not come with its study or series is asked for by itself.
rule(
    RECOVERED,
    *(
        f"{name} / {what} always"
        for name in ("RetrieveInstances (studies)", "ReadAllFromDICOMweb")
        for what in (
            *("bad gzip", "truncated gzip", "no closing boundary", "wrong boundary", "halved part", "empty part"),
            *("reset after", "reset in body", "cut in body", "cut without length"),
            *("status 429", "status 500", "status 503"),
        )
    ),
    "RetrieveInstances (studies) / missing part*",
    "ReadAllFromDICOMweb / missing part*",
)
# What the destination has is asked for once more by the copy.
rule(
    RECOVERED,
    *(f"CopyInstances (listing) / status {code}" for code in (403, 405, 409, 410, 413, 422, 501)),
    *(f"CopyInstances (listing) / {name}" for name in ("redirect elsewhere", "login page")),
    *(f"CopyInstances (listing) / {what} ignored" for what in ("filters", "path")),
)
# So are frames.
rule(RECOVERED, *(f"RetrieveFrames / status {code}" for code in (403, 404, 405, 409, 410, 413, 422, 501)))
rule(RECOVERED, *(f"RetrieveFrames / {name}" for name in ("login page", "redirect elsewhere", "halved part")))
rule(reported("MalformedResponseError", status=200), "RetrieveFrames / duplicate part")
rule(reported("MalformedResponseError", status=200), "RetrieveFrames / halved part always")
rule(believed("nothing tells how long bulk data must be"), "RetrieveBulkdata / halved part*")
rule(believed("bulk data may have several parts, equal ones too"), "RetrieveBulkdata / duplicate part")
rule(reported("PagingError"), "SearchForStudies / moving rows")
# One answer that is whole, however often it comes.
rule(RECOVERED, *(f"SearchForSeries / {name}" for name in ("offset ignored", "moving rows", "duplicate rows")))
for _code in (400, 406, 415):
    rule(reported(status=_code), f"RetrieveRendered / status {_code}", f"DeleteResources / status {_code}")
rule(reported("PagingError"), "WatchFor*Studies / moving rows", "WatchFor*Studies / duplicate rows")
rule(reported("PagingError"), "SearchForStudies / duplicate rows")
rule(
    believed("an empty page is the end of a search"),
    "SearchForSeries / shrinking page",
)
rule(
    replace(
        believed("to many servers 404 means that there is no such series: then everything is sent"), or_recovered=True
    ),
    "CopyInstances (listing) / status 404*",
)
rule(RECOVERED, "SearchForSeries / gap", "CopyInstances (listing) / gap")
# A search of the whole archive has no filter and no path that could be ignored, and few rows.
rule(RECOVERED, *(f"CompareArchives / {what}" for what in ("filters ignored", "path ignored", "gap")))
# A listing that broke off because rows moved or came twice is made again.
rule(
    RECOVERED,
    *(
        f"{name} / {rows} rows"
        for name in ("CopyInstances (listing)", "missing instances", "store: the listing before")
        for rows in ("moving", "duplicate")
    ),
)
rule(reported("RedirectError", status=307), "DeleteResources / redirect elsewhere")
rule(reported("RedirectError", status=302), "DeleteResources / redirect found", "DeleteResources / redirect loop")


def expected(operation: str, traits: frozenset[str], failure_case: FailureCase) -> Expected:
    """The declared cell of an operation and a failure case."""
    reason = failure_case.impossible(traits)
    if reason is not None:
        return Expected("cannot occur", reason)
    for matches, outcome in RULES:
        if matches(operation, traits, failure_case):
            return outcome
    return DEFAULTS.get(failure_case.name, RECOVERED)


for _name in DEFAULTS:
    assert _name in FAILURE_CASES, _name
