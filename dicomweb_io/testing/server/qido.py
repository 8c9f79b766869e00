"""Searches (PS3.18 section 10.6, QIDO-RS) with the behaviour and faults of the server.

The archive matches as PS3.4 section C.2.2.2 says. Filters that this server treats otherwise are applied here to the
archive's rows.
"""

from __future__ import annotations

import itertools
import random
import re
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from typing import Any
from urllib.parse import quote

from dicomweb_io.dicom.attributes import lookup_keyword, resolve, vr_of
from dicomweb_io.dicom.json_decode import first_text
from dicomweb_io.dicom.uids import is_uid
from dicomweb_io.elements import SearchLevel, SearchQuery
from dicomweb_io.testing.faults import JSONFault, SearchFault
from dicomweb_io.testing.server.behaviour import Behaviour
from dicomweb_io.testing.server.exchange import (
    Answer,
    Exchange,
    JSONRow,
    Refusal,
    parse_accept,
    warning_header,
)
from dicomweb_io.testing.server.parts import json_bytes, xml_document
from dicomweb_io.testing.server.site import Site

JSON = "application/dicom+json"
XML = "application/dicom+xml"
_PARAMETERS = frozenset({"limit", "offset", "includefield", "fuzzymatching", "accept", "emptyvaluematching"})
_DEPTH = {"study": 0, "series": 1, "instance": 2}
_MODALITY, _MODALITIES_IN_STUDY = "00080060", "00080061"
_TIMES = {
    "StudyReceiveDateTime": ("study", 0),
    "SeriesReceiveDateTime": ("series", 0),
    "StudyAccessDateTime": ("study", 1),
}

_SERIES_KEYS = frozenset(
    {"00080060", "0008103E", "0020000E", "00200011", "00400244", "00400245", "00080021", "00080031", "00180015"}
    | {"00080070", "00081090", "00180010", "00201209", "00400275"}
)
_INSTANCE_KEYS = frozenset({"00080016", "00080018", "00200013", "00280010", "00280011", "00280100", "00280008"})
_SOUNDEX = {
    letter: code for code, letters in enumerate(("bfpv", "cgjkqsxz", "dt", "l", "mn", "r"), 1) for letter in letters
}
_TEXT_VRS = frozenset({"AE", "CS", "LO", "LT", "SH", "ST", "UC", "UR", "UT", "PN"})
_UIDS = {"study": "0020000D", "series": "0020000E", "instance": "00080018"}
_RETRIEVE_URL = "00081190"
_CHARACTER_SET = "00080005"


@dataclass(frozen=True)
class Target:
    """What is searched and where.

    Attributes:
        resource: One of `dicomweb_io.testing.server.behaviour.SEARCHES`.
        level: What the rows are.
        study: Within this study.
        series: Within this series.
    """

    resource: str
    level: SearchLevel
    study: str | None = None
    series: str | None = None


@dataclass(frozen=True)
class Filter:
    """One filter.

    Attributes:
        path: Its dotted tags.
        vr: Its VR.
        values: Its values.
        own: Whether the server applies it, because it matches otherwise than the archive.
        impossible: Whether nothing can match it.
    """

    path: tuple[str, ...]
    vr: str
    values: tuple[str, ...]
    own: bool = False
    impossible: bool = False

    @property
    def key(self) -> str:
        """The dotted tags as a search filter has them."""
        return ".".join(self.path)


@dataclass(frozen=True)
class Received:
    """A condition on the time at which a study or series arrived.

    Attributes:
        level: ``"study"`` or ``"series"``.
        last: 0 for its first arrival, 1 for the last one of something in it.
        start, end: The first moment, and the first one after the range; None where it is open.
    """

    level: str
    last: int
    start: datetime | None
    end: datetime | None


@dataclass
class Search:
    """A search as this server understands it, which its faults may change.

    Attributes:
        target: What is searched and where.
        filters: The filters that are applied.
        asked: The attributes that ``includefield`` names, as tags or ``"all"``.
        fuzzy: Whether names are matched loosely.
        order: Tags to order by, and whether in descending order.
        received: Conditions on times of arrival.
        defaults: Whether rows have the default attributes.
        limit: The number of rows of the page; None for all.
        start: The number of rows before the page.
        withheld: How many rows at the end of the page are left out.
        total_announced: Whether the number of all rows is told although this server never tells it.
        total_error: By how much that number is wrong.
    """

    target: Target
    filters: list[Filter]
    asked: tuple[str, ...]
    fuzzy: bool
    order: tuple[tuple[str, bool], ...] = ()
    received: tuple[Received, ...] = ()
    defaults: bool = True
    limit: int | None = None
    start: int = 0
    withheld: int = 0
    total_announced: bool = False
    total_error: int = 0

    @property
    def own(self) -> list[Filter]:
        """The filters that the server applies to the archive's rows."""
        return [one for one in self.filters if one.own]

    @property
    def nothing(self) -> bool:
        """Whether nothing can match."""
        return any(one.impossible for one in self.filters)

    @property
    def fields(self) -> tuple[str, ...]:
        """The attributes that the archive's rows need beside the default ones."""
        names = (*(one.path[0] for one in self.own), *self.asked)
        return ("all",) if "all" in names else tuple(dict.fromkeys(names))

    @property
    def query(self) -> SearchQuery:
        """What the archive is asked."""
        filters = tuple((one.key, "\\".join(one.values)) for one in self.filters if not one.own)
        return SearchQuery(self.target.level, self.target.study, self.target.series, filters, self.fields)


def search(site: Site, exchange: Exchange, target: Target) -> Answer:
    """Answers a search."""
    behaviour = site.behaviour
    if target.resource not in behaviour.searches:
        raise Refusal(404, f"There is no search resource of the form /{target.resource}.")
    media_type = _media_type(behaviour, exchange)
    limit, explicit = _limit(behaviour, exchange, target.level)
    offset = _offset(behaviour, exchange)
    wanted = _read_search(behaviour, exchange, target, limit, offset)
    try:
        rows, total, more = _page(site, exchange, wanted)
    except FileNotFoundError:
        # A folder that nothing was stored in yet need not exist.
        rows, total, more = [], 0, False
    headers = {"Cache-Control": "no-cache"}
    if behaviour.total_header or wanted.total_announced:
        announced = total if total is not None else _total(site, wanted)
        headers["X-Total-Count"] = str(max(0, announced + wanted.total_error))
    if more and behaviour.link_header:
        headers["Link"] = f'<{_next_url(exchange, offset + len(rows))}>; rel="next"'
    server_limit = behaviour.max_limit.at(target.level) or behaviour.default_limit.at(target.level)
    cut_by_server = server_limit is not None and (not explicit or len(rows) >= server_limit)
    if more and (behaviour.more_warning == "always" or (behaviour.more_warning == "server limit" and cut_by_server)):
        exchange.warnings.append("There are additional results that can be requested")
    if exchange.parameter("fuzzymatching") == "true" and behaviour.fuzzy == "warning":
        exchange.warnings.append(
            "The fuzzymatching parameter is not supported. Only literal matching has been performed."
        )
    if exchange.warnings:
        headers["Warning"] = warning_header(exchange.warnings)
    if not rows and not exchange.struck(JSONFault):
        status = behaviour.past_end_status if offset else behaviour.empty_status
        if wanted.nothing:
            status = behaviour.unmatchable_status
        if status == 204:
            return Answer(204, headers)
    if behaviour.erroneous_header:
        keywords = dict.fromkeys(lookup_keyword(one.path[0]) for one in wanted.filters)
        erroneous = [name for name in keywords if name in site.erroneous]
        if erroneous:
            headers["erroneous-dicom-attributes"] = ",".join(erroneous)
    return _answer(exchange, rows, media_type, headers)


def count(site: Site, exchange: Exchange, target: Target) -> Answer:
    """Answers ``…/count`` with the number of rows of a search."""
    if not site.behaviour.counts or target.resource not in site.behaviour.searches:
        raise Refusal(404, "There is no such resource.")
    wanted = _read_search(site.behaviour, exchange, target)
    try:
        total = _total(site, wanted)
    except FileNotFoundError:
        total = 0
    body = exchange.json(json_bytes({"count": max(0, total + wanted.total_error)}))
    return Answer(200, {"Content-Type": "application/json"}, body)


# The request ---------------------------------------------------------------------------------------------------------


def _media_type(behaviour: Behaviour, exchange: Exchange) -> str:
    """The media type of the answer.

    Raises:
        Refusal: If none is acceptable.
    """
    for one in parse_accept(exchange.headers.get("accept"), exchange.parameter("accept")):
        if behaviour.xml_search_multipart and one.media_type == XML:
            return JSON if one.multipart else XML
        for offered in (*behaviour.search_types, "application/json"):
            if one.covers(offered) and (offered == XML or not one.multipart):
                return offered if behaviour.plain_json or offered == XML else JSON
    if behaviour.search_unacceptable == "json":
        return JSON
    raise Refusal(behaviour.search_unacceptable, f"Searches are answered as {' or '.join(behaviour.search_types)}.")


def _limit(behaviour: Behaviour, exchange: Exchange, level: str) -> tuple[int | None, bool]:
    """The number of rows to return at most, and whether the client gave a limit."""
    text = exchange.parameter("limit")
    largest = behaviour.max_limit.at(level)
    if text is None:
        return behaviour.default_limit.at(level), False
    try:
        limit = int(text)
    except ValueError:
        raise Refusal(400, "limit is not a number.") from None
    if limit < 0:
        if isinstance(behaviour.limit_negative, int):
            raise Refusal(behaviour.limit_negative, "limit is negative.")
        return (1 if behaviour.limit_negative == "one" else largest), True
    if limit == 0:
        meaning = behaviour.limit_zero
        if isinstance(meaning, int):
            raise Refusal(meaning, "limit must be at least 1.")
        return {"empty": 0, "one": 1, "all": largest}[meaning], True
    if behaviour.limit_refused is not None and limit > behaviour.limit_refused:
        raise Refusal(400, f"limit must not be above {behaviour.limit_refused}.")
    if largest is not None and limit > largest:
        if behaviour.over_limit != "clamp":
            raise Refusal(behaviour.over_limit, f"limit must not be above {largest}.")
        limit = largest
    return limit, True


def _offset(behaviour: Behaviour, exchange: Exchange) -> int:
    """The number of rows to skip."""
    text = exchange.parameter("offset") or "0"
    if not text.isascii() or not text.isdigit():
        raise Refusal(400, "offset is not a number of 0 or more.")
    if behaviour.max_offset is not None and int(text) > behaviour.max_offset:
        raise Refusal(400, f"offset must not be above {behaviour.max_offset}.")
    return int(text) if behaviour.offset else 0


def _read_search(
    behaviour: Behaviour, exchange: Exchange, target: Target, limit: int | None = None, start: int = 0
) -> Search:
    """A search as this server and its faults understand it.

    Raises:
        Refusal: If this server refuses one of them.
    """
    fuzzy = exchange.parameter("fuzzymatching") == "true" and behaviour.fuzzy in ("prefix", "soundex")
    filters: list[Filter] = []
    received: list[Received] = []
    for raw_name, raw_value in exchange.query:
        name = exchange.text(raw_name)
        if name in _PARAMETERS or name in behaviour.own_parameters:
            continue
        if behaviour.receive_times and name in _TIMES:
            received.append(_received(name, exchange.text(raw_value)))
            continue
        one = _read_filter(exchange, behaviour, name, raw_value)
        if one is None or one.values == ("",):
            continue
        if behaviour.study_modality and target.level == "study" and one.path == (_MODALITY,):
            one = replace(one, path=(_MODALITIES_IN_STUDY,))
        if not _level_known(one, target):
            if isinstance(behaviour.lower_level_keys, int):
                raise Refusal(behaviour.lower_level_keys, f"{name} is not an attribute of this level.")
            if behaviour.lower_level_keys == "ignore":
                continue
            one = replace(one, impossible=behaviour.lower_level_keys == "none")
        if ("\\" in one.values[0] and len(one.values) == 1) or (one.vr == "UI" and not all(map(is_uid, one.values))):
            # A separator that this server does not know is a character that no value has.
            one = replace(one, impossible=True)
        filters.append(replace(one, own=_deviates(behaviour, one, fuzzy)))
    defaults = not ("includedefaults" in behaviour.own_parameters and exchange.parameter("includedefaults") == "false")
    asked, order = _asked(behaviour, exchange), _order(behaviour, exchange)
    search = Search(target, filters, asked, fuzzy, order, tuple(received), defaults, limit, start)
    for fault in exchange.struck(SearchFault):
        fault.apply(search)
    return search


def _received(name: str, text: str) -> Received:
    level, last = _TIMES[name]
    first, dash, second = text.partition("-")
    if not (first or second):
        raise Refusal(400, f"{name} is not a range of times.")
    start = _moment(name, first, 0) if first else None
    end = _moment(name, second if dash else first, 1) if second or not dash else None
    return Received(level, last, start, end)


def _moment(name: str, text: str, after: int) -> datetime:
    """The beginning of what a time stands for, or (1) the beginning of what comes after it."""
    if not re.fullmatch(r"\d{4}(\d\d){0,5}", text):
        raise Refusal(400, f"{name} is not a range of times.")
    filled = text + "00000101000000"[len(text) :]
    try:
        moment = datetime.strptime(filled, "%Y%m%d%H%M%S").replace(tzinfo=timezone.utc)
    except ValueError:
        raise Refusal(400, f"{name} is not a range of times.") from None
    steps = {14: timedelta(seconds=1), 12: timedelta(minutes=1), 10: timedelta(hours=1), 8: timedelta(days=1)}
    return moment + after * steps.get(len(text), timedelta(days=366))


def _order(behaviour: Behaviour, exchange: Exchange) -> tuple[tuple[str, bool], ...]:
    """The tags that the client orders by, and whether in descending order."""
    text = exchange.parameter("orderby") if "orderby" in behaviour.own_parameters else None
    if not text:
        return ()
    try:
        return tuple((resolve(name.lstrip("-"))[0], name.startswith("-")) for name in text.split(","))
    except ValueError as error:
        raise Refusal(400, str(error)) from None


def _read_filter(exchange: Exchange, behaviour: Behaviour, name: str, raw_value: str) -> Filter | None:
    """A filter that this server applies; None for one that it ignores."""
    try:
        path = resolve(name)
    except ValueError:
        if behaviour.unknown_key == "ignore":
            return None
        raise Refusal(behaviour.unknown_key, f"Unknown attribute: {name[:64]}") from None
    if len(path) > 1 and behaviour.sequence_keys != "match":
        if behaviour.sequence_keys == "ignore":
            return None
        raise Refusal(behaviour.sequence_keys, "Attributes of sequences cannot be searched.")
    if not behaviour.tag_keys and name[:8].upper() == path[0]:
        if behaviour.unknown_key == "ignore":
            return None
        raise Refusal(behaviour.unknown_key, f"Unknown attribute: {name[:64]}")
    if path[0] in {resolve(known)[0] for known in behaviour.refused_filters}:
        raise Refusal(400, f"{name[:64]} cannot be searched.")
    if int(path[-1][3], 16) % 2 and behaviour.unknown_key == "ignore" and behaviour.sequence_keys == "ignore":
        return None
    if behaviour.searchable is not None and path[0] not in {resolve(known)[0] for known in behaviour.searchable}:
        if behaviour.unknown_key == "ignore":
            return None
        raise Refusal(behaviour.unknown_key, f"{name[:64]} cannot be searched.")
    vr = vr_of(path[-1])
    if raw_value == "" and behaviour.empty_value != "universal":
        raise Refusal(behaviour.empty_value, f"The value of {name[:64]} is empty.")
    separators = behaviour.uid_separators if vr == "UI" else behaviour.value_separators
    return Filter(path, vr, tuple(exchange.text(piece) for piece in _split_value(raw_value, separators)))


def _split_value(raw: str, separators: frozenset[str]) -> list[str]:
    pieces = [raw]
    for separator in sorted(separators):
        for form in {separator, separator.lower()}:
            pieces = [part for piece in pieces for part in piece.split(form)]
    return [piece for piece in pieces if piece] or [""]


def _level_known(one: Filter, target: Target) -> bool:
    tag = one.path[0]
    depth = 2 if tag in _INSTANCE_KEYS else 1 if tag in _SERIES_KEYS else 0
    return depth <= _DEPTH[target.level]


def _deviates(behaviour: Behaviour, one: Filter, fuzzy: bool) -> bool:
    """Whether this server matches otherwise than the archive, which does what the standard says."""
    if one.vr == "PN":
        return fuzzy or not behaviour.wildcards or behaviour.person_names != "standard"
    if one.vr in _TEXT_VRS:
        return behaviour.ignore_case or not behaviour.wildcards
    return behaviour.undated_before and one.vr in ("DA", "TM", "DT") and one.values[0].startswith("-")


def _asked(behaviour: Behaviour, exchange: Exchange) -> tuple[str, ...]:
    """The attributes that ``includefield`` names, as tags or ``"all"``."""
    if behaviour.includefield == "everything":
        return ("all",)
    if behaviour.includefield == "ignored":
        return ()
    given = [
        name
        for raw_name, raw_value in exchange.query
        if exchange.text(raw_name) == "includefield"
        for name in exchange.text(raw_value).split(",")
    ]
    names = []
    for name in given:
        if name == "all":
            names += ["all"] if behaviour.all_fields else []
            continue
        try:
            names.append(".".join(resolve(name)))
        except ValueError:
            if behaviour.unknown_key != "ignore":
                raise Refusal(behaviour.unknown_key, f"Unknown attribute: {name[:64]}") from None
    if behaviour.max_fields is not None and len(given) > behaviour.max_fields:
        raise Refusal(400, f"At most {behaviour.max_fields} attributes can be named.")
    if {resolve(name)[0] for name in behaviour.refused_fields}.intersection(names):
        raise Refusal(400, "One of the attributes cannot be returned.")
    return tuple(names)


# Rows -----------------------------------------------------------------------------------------------------------------


def _page(site: Site, exchange: Exchange, wanted: Search) -> tuple[list[JSONRow], int | None, bool]:
    """The rows of this page, the number of all rows if it was needed anyway, and whether there are more."""
    start, limit = wanted.start, wanted.limit
    behaviour = site.behaviour
    if limit is not None and behaviour.short_page:
        limit = max(1, limit - behaviour.short_page)
    total: int | None = None
    if _in_archive_order(site, wanted):
        page = site.archive.search_page(wanted.query, offset=start, limit=None if limit is None else limit + 1)
        rows = list(page.rows)
        if behaviour.too_many is not None:
            total = _total(site, wanted)
    else:
        everything = list(_rows(site, wanted))
        total = len(everything)
        if behaviour.order == "undefined" and not wanted.order:
            # Another order for each page, and the same one for the same request.
            random.Random(start).shuffle(everything)  # noqa: S311 - no secret
        rows = everything[start:] if limit is None else everything[start : start + limit + 1]
    if behaviour.too_many is not None and total is not None and total > behaviour.too_many:
        raise Refusal(413, f"The search has more than {behaviour.too_many} results; narrow it.")
    more = limit is not None and len(rows) > limit
    rows = rows if limit is None else rows[:limit]
    rows = rows[: max(0, len(rows) - wanted.withheld)]
    hidden = {resolve(name)[0] for name in behaviour.only_if_asked} - {name[:8] for name in wanted.fields}
    rows = [_finish(site, exchange, wanted.target.level, row, hidden) for row in rows]
    return rows if wanted.defaults else [_without_defaults(row, wanted) for row in rows], total, more


def _without_defaults(row: JSONRow, wanted: Search) -> JSONRow:
    kept = {*_UIDS.values(), *(name[:8] for name in wanted.fields), *(one.path[0] for one in wanted.filters)}
    return {tag: element for tag, element in row.items() if tag in kept}


def _in_archive_order(site: Site, wanted: Search) -> bool:
    behaviour = site.behaviour
    if wanted.order or wanted.received:
        return False
    return not wanted.own and not wanted.nothing and behaviour.order == "archive" and behaviour.max_rows is None


def _rows(site: Site, wanted: Search) -> Iterator[JSONRow]:
    """All rows in this server's order."""
    if wanted.nothing:
        return iter(())
    behaviour = site.behaviour
    fields = (*wanted.fields, *(tag for tag, _ in wanted.order))
    query = replace(wanted.query, fields=("all",) if "all" in fields else fields)
    rows: Iterator[JSONRow] = (
        row
        for row in site.archive.iter_search(query)
        if all(_row_matches(row, one, behaviour, wanted.fuzzy) for one in wanted.own)
        and all(_was_received(site, row, one) for one in wanted.received)
    )
    level = wanted.target.level
    for tag, descending in reversed(wanted.order):
        rows = iter(sorted(rows, key=lambda row: (_number(row, tag), first_text(row, tag)), reverse=descending))
    if behaviour.order == "newest" or (behaviour.order == "updated and number" and level == "study"):
        rows = iter(sorted(rows, key=lambda row: -site.arrivals.number(first_text(row, _UIDS[level]))))
    elif behaviour.order == "updated and number":
        tag = "00200011" if level == "series" else "00200013"
        rows = iter(sorted(rows, key=lambda row: _number(row, tag)))
    return itertools.islice(rows, behaviour.max_rows)


def _was_received(site: Site, row: JSONRow, one: Received) -> bool:
    uid = first_text(row, _UIDS[one.level])
    if not uid:
        return True
    moment = site.arrivals.times(uid)[one.last]
    return (one.start is None or moment >= one.start) and (one.end is None or moment < one.end)


def _row_matches(row: JSONRow, one: Filter, behaviour: Behaviour, fuzzy: bool) -> bool:
    values = _values_at(row, one.path)
    if one.vr in ("DA", "TM", "DT"):
        return not any(values) or any(str(value) <= one.values[0][1:] for value in values)
    return _matches_text(values, one.values, behaviour, fuzzy)


def _total(site: Site, wanted: Search) -> int:
    if _in_archive_order(site, wanted):
        known = site.archive.count(wanted.query)
        if known is not None:
            return known
    return sum(1 for _ in _rows(site, wanted))


def _number(row: JSONRow, tag: str) -> float:
    values = row.get(tag, {}).get("Value") or [0]
    try:
        return float(values[0])
    except (TypeError, ValueError):
        return 0.0


def _finish(site: Site, exchange: Exchange, level: str, row: JSONRow, hidden: set[str]) -> JSONRow:
    """The row with its RetrieveURL, without what this server leaves out."""
    path = "studies/" + quote(first_text(row, _UIDS["study"]), safe="")
    if level != "study":
        path += "/series/" + quote(first_text(row, _UIDS["series"]), safe="")
    if level == "instance":
        path += "/instances/" + quote(first_text(row, _UIDS["instance"]), safe="")
    url = "/".join(filter(None, (exchange.base_url, site.behaviour.wado_prefix, path)))
    kept = {tag: element for tag, element in row.items() if tag not in hidden} if hidden else row
    finished = {**kept, _RETRIEVE_URL: {"vr": "UR", "Value": [url]}}
    if site.behaviour.character_set is not None:
        finished[_CHARACTER_SET] = {"vr": "CS", "Value": [site.behaviour.character_set]}
    return finished


def _next_url(exchange: Exchange, offset: int) -> str:
    pairs = [f"{name}={value}" for name, value in exchange.query if name != "offset"]
    return exchange.base_url + exchange.path + "?" + "&".join([*pairs, f"offset={offset}"])


def _answer(exchange: Exchange, rows: list[JSONRow], media_type: str, headers: dict[str, str]) -> Answer:
    if media_type == XML:
        boundary = secrets.token_hex(16)
        head = f"--{boundary}\r\nContent-Type: {XML}\r\n\r\n".encode()
        body = b"".join(head + xml_document(row) + b"\r\n" for row in rows) + f"--{boundary}--\r\n".encode()
        headers["Content-Type"] = f'multipart/related; type="{XML}"; boundary={boundary}'
        return Answer(200, headers, body)
    headers["Content-Type"] = media_type
    return Answer(200, headers, exchange.json(json_bytes(list(exchange.rows(rows)))))


# Matching ------------------------------------------------------------------------------------------------------------


def _values_at(row: Mapping[str, Any], path: Sequence[str]) -> list[Any]:
    """All values of an attribute, in any item where the path goes through sequences; an empty one has the value ''."""
    element = row.get(path[0])
    values = element.get("Value") or [] if isinstance(element, Mapping) else []
    if len(path) == 1:
        return list(values) if values or element is None else [""]
    return [value for item in values if isinstance(item, Mapping) for value in _values_at(item, path[1:])]


def _matches_text(values: Sequence[Any], wanted: Sequence[str], behaviour: Behaviour, fuzzy: bool) -> bool:
    """Whether a value matches one of the wanted texts in the way of this server."""
    texts = [text for value in values for text in _texts(value)]
    name = any(isinstance(value, Mapping) for value in values)
    return any(_matches(text, one, name, behaviour, fuzzy) for text in texts for one in wanted)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        yield from (str(group) for group in value.values())
    elif value is not None:
        yield str(value)


def _matches(text: str, wanted: str, name: bool, behaviour: Behaviour, fuzzy: bool) -> bool:
    if name or behaviour.ignore_case:
        text, wanted = text.casefold(), wanted.casefold()
    if name and fuzzy and behaviour.fuzzy == "soundex":
        sounds = {soundex(part) for part in re.split(r"[\s^=]+", text) if part}
        return all(soundex(one) in sounds for one in re.split(r"[\s^]+", wanted.strip("*")) if one)
    if name and fuzzy:
        parts = [part for part in re.split(r"[\s^=]+", text) if part]
        return all(any(part.startswith(one) for part in parts) for one in re.split(r"[\s^]+", wanted.strip("*")) if one)
    if name and behaviour.person_names == "substring":
        return wanted in text
    text, wanted = text.strip(), wanted.strip()
    if not behaviour.wildcards:
        return text == wanted
    pattern = "".join(".*" if char == "*" else "." if char == "?" else re.escape(char) for char in wanted)
    return re.fullmatch(pattern, text, re.DOTALL) is not None


def soundex(word: str) -> str:
    """The American Soundex of a word: its first letter and three digits for how the rest sounds.

    Letters other than those of English are left out.
    """
    letters = [letter for letter in word.casefold() if "a" <= letter <= "z"]
    if not letters:
        return word.casefold()
    digits = ""
    before = _SOUNDEX.get(letters[0])
    for letter in letters[1:]:
        code = _SOUNDEX.get(letter)
        if code is not None and code != before:
            digits += str(code)
        if letter not in "hw":
            before = code
    return (letters[0] + digits + "000")[:4]
