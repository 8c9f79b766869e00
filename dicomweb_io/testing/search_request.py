"""What a search asks for, as a server with these manners understands it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone

from dicomweb_io.dicom.attributes import resolve, vr_of
from dicomweb_io.dicom.uids import is_uid
from dicomweb_io.elements import SearchLevel, SearchQuery
from dicomweb_io.testing.accept import parse_accept
from dicomweb_io.testing.exchange import Exchange, Refusal
from dicomweb_io.testing.manners_model import Manners
from dicomweb_io.testing.matching import TEXT_VRS

JSON = "application/dicom+json"
XML = "application/dicom+xml"
CSV = "text/csv"
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


@dataclass(frozen=True)
class Target:
    """What is searched and where.

    Attributes:
        resource: One of `dicomweb_io.testing.manners_model.SEARCHES`.
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
    """One filter: its dotted tags, its VR and its values."""

    path: tuple[str, ...]
    vr: str
    values: tuple[str, ...]

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


@dataclass(frozen=True)
class Search:
    """A search in the archive, and what the server does by itself.

    Attributes:
        query: What the archive is asked.
        own: Filters that the server applies.
        nothing: Whether nothing can match.
        fuzzy: Whether names are matched loosely.
        order: Tags to order by, and whether in descending order.
        received: Conditions on times of arrival.
        defaults: Whether rows have the default attributes.
    """

    query: SearchQuery
    own: tuple[Filter, ...]
    nothing: bool
    fuzzy: bool
    order: tuple[tuple[str, bool], ...] = ()
    received: tuple[Received, ...] = ()
    defaults: bool = True


def media_type_of(manners: Manners, exchange: Exchange) -> str:
    """The media type of the answer.

    Raises:
        Refusal: If none is acceptable.
    """
    ranges = parse_accept(exchange.headers.get("accept"), exchange.parameter("accept"))
    for one in ranges:
        if one.media_type == CSV and CSV in manners.search_types:
            return CSV
        if manners.xml_search_multipart and one.media_type == XML:
            return JSON if one.multipart else XML
        for offered in (*manners.search_types, "application/json"):
            if one.covers(offered) and (offered == XML or not one.multipart):
                return offered if manners.plain_json or offered == XML else JSON
    if manners.search_unacceptable == "json":
        return JSON
    raise Refusal(manners.search_unacceptable, f"Searches are answered as {' or '.join(manners.search_types)}.")


def limit_of(manners: Manners, exchange: Exchange, level: str) -> tuple[int | None, bool]:
    """The number of rows to return at most, and whether the client gave a limit."""
    text = exchange.parameter("limit")
    largest = manners.max_limit.at(level)
    if text is None or exchange.fault("ignore_limit"):
        return (manners.default_limit.at(level) if not exchange.fault("ignore_limit") else None), False
    try:
        limit = int(text)
    except ValueError:
        raise Refusal(manners.limit_malformed, "limit is not a number.") from None
    if limit < 0:
        if isinstance(manners.limit_negative, int):
            raise Refusal(manners.limit_negative, "limit is negative.")
        return (1 if manners.limit_negative == "one" else largest), True
    if limit == 0:
        meaning = manners.limit_zero
        if isinstance(meaning, int):
            raise Refusal(meaning, "limit must be at least 1.")
        return {"empty": 0, "one": 1, "all": largest}[meaning], True
    if manners.limit_refused is not None and limit > manners.limit_refused:
        raise Refusal(400, f"limit must not be above {manners.limit_refused}.")
    if largest is not None and limit > largest:
        if manners.over_limit != "clamp":
            raise Refusal(manners.over_limit, f"limit must not be above {largest}.")
        limit = largest
    return limit, True


def offset_of(manners: Manners, exchange: Exchange) -> int:
    """The number of rows to skip."""
    text = exchange.parameter("offset") or "0"
    if not text.isascii() or not text.isdigit():
        raise Refusal(400, "offset is not a number of 0 or more.")
    if manners.max_offset is not None and int(text) > manners.max_offset:
        raise Refusal(400, f"offset must not be above {manners.max_offset}.")
    return int(text) if manners.offset else 0


def read_search(manners: Manners, exchange: Exchange, target: Target) -> Search:
    """The conditions and wanted attributes of a search.

    Raises:
        Refusal: If this server refuses one of them.
    """
    fuzzy = exchange.parameter("fuzzymatching") == "true" and manners.fuzzy in ("prefix", "soundex")
    archive: list[tuple[str, str]] = []
    own: list[Filter] = []
    received: list[Received] = []
    nothing = False
    for raw_name, raw_value in exchange.query:
        name = exchange.text(raw_name)
        if name in _PARAMETERS or name in manners.own_parameters:
            continue
        if manners.receive_times and name in _TIMES:
            received.append(_received(name, exchange.text(raw_value)))
            continue
        one = _read_filter(exchange, manners, name, raw_value)
        if one is None or exchange.fault("ignore_filters"):
            continue
        if one.values == ("",):
            continue
        if manners.study_modality and target.level == "study" and one.path == (_MODALITY,):
            one = replace(one, path=(_MODALITIES_IN_STUDY,))
        if not _level_known(one, target):
            if isinstance(manners.lower_level_keys, int):
                raise Refusal(manners.lower_level_keys, f"{name} is not an attribute of this level.")
            nothing = nothing or manners.lower_level_keys == "none"
            if manners.lower_level_keys != "match":
                continue
        if ("\\" in one.values[0] and len(one.values) == 1) or (one.vr == "UI" and not all(map(is_uid, one.values))):
            # A separator that this server does not know is a character that no value has.
            nothing = True
        elif _deviates(manners, one, fuzzy):
            own.append(one)
        else:
            archive.append((one.key, "\\".join(one.values)))
    query = SearchQuery(
        target.level,
        target.study,
        target.series,
        tuple(archive),
        _fields(manners, exchange, own),
    )
    defaults = not ("includedefaults" in manners.own_parameters and exchange.parameter("includedefaults") == "false")
    return Search(query, tuple(own), nothing, fuzzy, _order(manners, exchange), tuple(received), defaults)


def _received(name: str, text: str) -> Received:
    level, last = _TIMES[name]
    first, dash, second = text.partition("-")
    if not (first or second):
        raise Refusal(400, f"{name} is no range of times.")
    start = _moment(name, first, 0) if first else None
    end = _moment(name, second if dash else first, 1) if second or not dash else None
    return Received(level, last, start, end)


def _moment(name: str, text: str, after: int) -> datetime:
    """The beginning of what a time stands for, or (1) the beginning of what comes after it."""
    if not re.fullmatch(r"\d{4}(\d\d){0,5}", text):
        raise Refusal(400, f"{name} is no range of times.")
    filled = text + "00000101000000"[len(text) :]
    try:
        moment = datetime.strptime(filled, "%Y%m%d%H%M%S").replace(tzinfo=timezone.utc)
    except ValueError:
        raise Refusal(400, f"{name} is no range of times.") from None
    steps = {14: timedelta(seconds=1), 12: timedelta(minutes=1), 10: timedelta(hours=1), 8: timedelta(days=1)}
    return moment + after * steps.get(len(text), timedelta(days=366))


def _order(manners: Manners, exchange: Exchange) -> tuple[tuple[str, bool], ...]:
    """The tags that the client orders by, and whether in descending order."""
    text = exchange.parameter("orderby") if "orderby" in manners.own_parameters else None
    if not text:
        return ()
    try:
        return tuple((resolve(name.lstrip("-"))[0], name.startswith("-")) for name in text.split(","))
    except ValueError as error:
        raise Refusal(400, str(error)) from None


def _read_filter(exchange: Exchange, manners: Manners, name: str, raw_value: str) -> Filter | None:
    """A filter that this server applies; None for one that it ignores."""
    try:
        path = resolve(name)
    except ValueError:
        if manners.unknown_key == "ignore":
            return None
        raise Refusal(manners.unknown_key, f"Unknown attribute: {name[:64]}") from None
    if len(path) > 1 and manners.sequence_keys != "match":
        if manners.sequence_keys == "ignore":
            return None
        raise Refusal(manners.sequence_keys, "Attributes of sequences cannot be searched.")
    if not manners.tag_keys and name[:8].upper() == path[0]:
        if manners.unknown_key == "ignore":
            return None
        raise Refusal(manners.unknown_key, f"Unknown attribute: {name[:64]}")
    if path[0] in {resolve(known)[0] for known in manners.refused_filters}:
        raise Refusal(400, f"{name[:64]} cannot be searched.")
    if int(path[-1][3], 16) % 2 and manners.unknown_key == "ignore" and manners.sequence_keys == "ignore":
        return None
    if manners.searchable is not None and path[0] not in {resolve(known)[0] for known in manners.searchable}:
        if manners.unknown_key == "ignore":
            return None
        raise Refusal(manners.unknown_key, f"{name[:64]} cannot be searched.")
    vr = vr_of(path[-1])
    if raw_value == "" and manners.empty_value != "universal":
        raise Refusal(manners.empty_value, f"The value of {name[:64]} is empty.")
    separators = manners.uid_separators if vr == "UI" else manners.value_separators
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


def _deviates(manners: Manners, one: Filter, fuzzy: bool) -> bool:
    """Whether this server matches otherwise than the archive, which does what the standard says."""
    if one.vr == "PN":
        return fuzzy or not manners.wildcards or manners.person_names != "standard"
    if one.vr in TEXT_VRS:
        return manners.ignore_case or not manners.wildcards
    if one.vr not in ("DA", "TM", "DT"):
        return False
    return not manners.ranges or (manners.undated_before and one.values[0].startswith("-"))


def _fields(manners: Manners, exchange: Exchange, own: Sequence[Filter]) -> tuple[str, ...]:
    names = [one.path[0] for one in own]
    asked = 0
    if manners.includefield == "everything":
        return ("all",)
    if manners.includefield == "honoured":
        for raw_name, raw_value in exchange.query:
            if exchange.text(raw_name) == "includefield":
                for name in exchange.text(raw_value).split(","):
                    asked += 1
                    if name == "all" and not manners.all_fields:
                        continue
                    try:
                        names.append(name if name == "all" else ".".join(resolve(name)))
                    except ValueError:
                        if manners.unknown_key != "ignore":
                            raise Refusal(manners.unknown_key, f"Unknown attribute: {name[:64]}") from None
    if manners.max_fields is not None and asked > manners.max_fields:
        raise Refusal(400, f"At most {manners.max_fields} attributes can be named.")
    if {resolve(name)[0] for name in manners.refused_fields}.intersection(names):
        raise Refusal(400, "One of the attributes cannot be returned.")
    return ("all",) if "all" in names else tuple(dict.fromkeys(names))
