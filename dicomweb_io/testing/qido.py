"""Searches (PS3.18 section 10.6, QIDO-RS) with the manners and faults of the server."""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import random
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import replace
from email.utils import format_datetime
from typing import cast
from urllib.parse import quote

from dicomweb_io.dicom.attributes import lookup_keyword, resolve
from dicomweb_io.elements import Resource
from dicomweb_io.testing.encoding import JSONRow, faulty_json, json_bytes, wrong_vrs, xml_document
from dicomweb_io.testing.exchange import Answer, Exchange, Refusal, Site, warning_header
from dicomweb_io.testing.manners_model import Manners
from dicomweb_io.testing.matching import element_at, matches_text
from dicomweb_io.testing.parts import PartOut
from dicomweb_io.testing.search_request import (
    CSV,
    XML,
    Filter,
    Received,
    Search,
    Target,
    limit_of,
    media_type_of,
    offset_of,
    read_search,
)

_UIDS = {"study": "0020000D", "series": "0020000E", "instance": "00080018"}
_RETRIEVE_URL = "00081190"
_CHARACTER_SET = "00080005"


def search(site: Site, exchange: Exchange, target: Target) -> Answer:
    """Answers a search."""
    manners = site.manners
    if target.resource not in manners.searches:
        raise Refusal(404, f"There is no search resource of the form /{target.resource}.")
    media_type = media_type_of(manners, exchange)
    limit, explicit = limit_of(manners, exchange, target.level)
    offset = offset_of(manners, exchange)
    wanted = read_search(manners, exchange, target)
    try:
        rows, total, more = _page(site, exchange, wanted, offset, limit)
    except FileNotFoundError:
        # A folder that nothing was stored in yet need not exist.
        rows, total, more = [], 0, False
    headers = {"Cache-Control": "no-cache"}
    if manners.total_header or exchange.fault("lying_total"):
        lie = exchange.fault("lying_total")
        announced = total if total is not None else _total(site, wanted)
        headers["X-Total-Count"] = str(max(0, announced + (int(lie.options["difference"]) if lie else 0)))
    if more and manners.link_header:
        headers["Link"] = f'<{_next_url(exchange, offset + len(rows))}>; rel="next"'
    server_limit = manners.max_limit.at(target.level) or manners.default_limit.at(target.level)
    cut_by_server = server_limit is not None and (not explicit or len(rows) >= server_limit)
    if more and (manners.more_warning == "always" or (manners.more_warning == "server limit" and cut_by_server)):
        exchange.warnings.append("There are additional results that can be requested")
    if exchange.parameter("fuzzymatching") == "true" and manners.fuzzy == "warning":
        exchange.warnings.append(
            "The fuzzymatching parameter is not supported. Only literal matching has been performed."
        )
    if exchange.warnings:
        headers["Warning"] = warning_header(exchange.warnings)
    if not rows and not any(exchange.fault(name) for name in ("bad_json", "truncated_json", "deep_json", "nan_json")):
        status = manners.past_end_status if offset else manners.empty_status
        if wanted.nothing:
            status = manners.unmatchable_status
        if status == 204:
            return Answer(204, headers)
    if manners.erroneous_header:
        erroneous = [name for name in dict.fromkeys(_keywords(wanted)) if name in site.erroneous]
        if erroneous:
            headers["erroneous-dicom-attributes"] = ",".join(erroneous)
    answer = _answer(exchange, rows, media_type, headers)
    return _with_etag(site, exchange, rows, answer) if manners.search_etags and target.level == "study" else answer


def _keywords(wanted: Search) -> Iterator[str]:
    for key, _ in wanted.query.search_filters:
        yield lookup_keyword(key[:8])
    for one in wanted.own:
        yield lookup_keyword(one.path[0])


def _with_etag(site: Site, exchange: Exchange, rows: list[JSONRow], answer: Answer) -> Answer:
    """The answer with what a cache needs, or 304 if the client has it."""
    etag = f'"{hashlib.sha256(json_bytes(rows)).hexdigest()[:32]}"'
    if exchange.headers.get("if-none-match") == etag:
        return Answer(304, {"ETag": etag})
    answer.headers["ETag"] = etag
    moments = [site.arrivals.times(_uid(row, "study"))[1] for row in rows]
    if moments:
        answer.headers["Last-Modified"] = format_datetime(max(moments), usegmt=True)
    return answer


def count(site: Site, exchange: Exchange, target: Target) -> Answer:
    """Answers ``…/count`` with the number of rows of a search."""
    if not site.manners.counts or target.resource not in site.manners.searches:
        raise Refusal(404, "There is no such resource.")
    wanted = read_search(site.manners, exchange, target)
    try:
        total = _total(site, wanted)
    except FileNotFoundError:
        total = 0
    lie = exchange.fault("lying_total")
    total = max(0, total + (int(lie.options["difference"]) if lie else 0))
    body = faulty_json(exchange, json_bytes({"count": total}))
    return Answer(200, {"Content-Type": "application/json"}, body)


def size(site: Site, exchange: Exchange, target: Target) -> Answer:
    """Answers ``…/size`` with the bytes of all instances of the rows of a search."""
    if not site.manners.sizes or target.resource not in site.manners.searches:
        raise Refusal(404, "There is no such resource.")
    wanted = read_search(site.manners, exchange, target)
    total = 0
    for row in _rows(site, wanted):
        found = site.archive.iter_instances(
            Resource.of(row),
            media_types=(("application/dicom", "*"),),
            max_element_bytes=site.spool_above,
            spool_directory=site.directory,
        )
        for instance in found:
            part = PartOut.of(instance, site.directory)
            total += part.size
            part.discard()
    return Answer(200, {"Content-Type": "application/json"}, json_bytes({"size": total}))


# Rows -----------------------------------------------------------------------------------------------------------------


def _page(
    site: Site, exchange: Exchange, wanted: Search, offset: int, limit: int | None
) -> tuple[list[JSONRow], int | None, bool]:
    """The rows of this page, the number of all rows if it was needed anyway, and whether there are more."""
    if exchange.fault("ignore_offset"):
        offset = 0
    before = exchange.fault("duplicate_rows")
    moved = exchange.fault("moving_rows")
    start = offset
    if moved and offset:
        start = max(0, offset - int(moved.options["count"]))
    if before:
        start = max(0, offset - int(before.options["count"]))
        limit = None if limit is None else limit + offset - start
    manners = site.manners
    if limit is not None and manners.short_page:
        limit = max(1, limit - manners.short_page)
    total: int | None = None
    if _in_archive_order(site, wanted):
        page = site.archive.search_page(wanted.query, offset=start, limit=None if limit is None else limit + 1)
        rows = list(page.rows)
        if manners.too_many is not None:
            total = _total(site, wanted)
    else:
        everything = list(_rows(site, wanted))
        total = len(everything)
        if manners.order == "undefined" and not wanted.order:
            # Another order for each page, and the same one for the same request.
            random.Random(start).shuffle(everything)  # noqa: S311 - no secret
        rows = everything[start:] if limit is None else everything[start : start + limit + 1]
    if manners.too_many is not None and total is not None and total > manners.too_many:
        raise Refusal(413, f"The search has more than {manners.too_many} results; narrow it.")
    more = limit is not None and len(rows) > limit
    rows = rows if limit is None else rows[:limit]
    shrunk = exchange.fault("shrink_pages")
    if shrunk:
        rows = rows[: max(0, len(rows) - int(shrunk.options["count"]))]
    hidden = {resolve(name)[0] for name in manners.only_if_asked} - {name[:8] for name in wanted.query.fields}
    rows = [_finish(site, exchange, wanted.query.level, row, hidden) for row in rows]
    return rows if wanted.defaults else [_without_defaults(row, wanted) for row in rows], total, more


def _without_defaults(row: JSONRow, wanted: Search) -> JSONRow:
    kept = {*_UIDS.values(), *(name[:8] for name in wanted.query.fields), *(one.path[0] for one in wanted.own)}
    kept |= {key[:8] for key, _ in wanted.query.search_filters}
    return {tag: element for tag, element in row.items() if tag in kept}


def _in_archive_order(site: Site, wanted: Search) -> bool:
    manners = site.manners
    if wanted.order or wanted.received:
        return False
    return not wanted.own and not wanted.nothing and manners.order == "archive" and manners.max_rows is None


def _rows(site: Site, wanted: Search) -> Iterator[JSONRow]:
    """All rows in this server's order."""
    if wanted.nothing:
        return iter(())
    manners = site.manners
    fields = (*wanted.query.fields, *(tag for tag, _ in wanted.order))
    query = replace(wanted.query, fields=("all",) if "all" in fields else fields)
    rows: Iterator[JSONRow] = (
        row
        for row in site.archive.iter_search(query)
        if all(_row_matches(row, one, manners, wanted.fuzzy) for one in wanted.own)
        and all(_was_received(site, row, one) for one in wanted.received)
    )
    level = wanted.query.level
    for tag, descending in reversed(wanted.order):
        rows = iter(sorted(rows, key=lambda row: _first_text(row, tag), reverse=descending))
    if manners.order == "newest" or (manners.order == "updated and number" and level == "study"):
        rows = iter(sorted(rows, key=lambda row: -site.arrivals.number(_uid(row, level))))
    elif manners.order == "updated and number":
        tag = "00200011" if level == "series" else "00200013"
        rows = iter(sorted(rows, key=lambda row: _number(row, tag)))
    return itertools.islice(rows, manners.max_rows)


def _was_received(site: Site, row: JSONRow, one: Received) -> bool:
    uid = _uid(row, one.level)
    if not uid:
        return True
    moment = site.arrivals.times(uid)[one.last]
    return (one.start is None or moment >= one.start) and (one.end is None or moment < one.end)


def _row_matches(row: JSONRow, one: Filter, manners: Manners, fuzzy: bool) -> bool:
    values = element_at(row, one.path)
    if manners.ranges and one.vr in ("DA", "TM", "DT"):
        return not any(values) or any(str(value) <= one.values[0][1:] for value in values)
    return matches_text(values, one.values, manners, fuzzy)


def _total(site: Site, wanted: Search) -> int:
    if _in_archive_order(site, wanted):
        known = site.archive.count(wanted.query)
        if known is not None:
            return known
    return sum(1 for _ in _rows(site, wanted))


def _uid(row: Mapping[str, object], level: str) -> str:
    values = cast("dict[str, list[str]]", row.get(_UIDS[level], {})).get("Value") or [""]
    return values[0]


def _first_text(row: JSONRow, tag: str) -> tuple[float, str]:
    values = row.get(tag, {}).get("Value") or [""]
    return _number(row, tag), str(values[0])


def _number(row: JSONRow, tag: str) -> float:
    values = row.get(tag, {}).get("Value") or [0]
    try:
        return float(values[0])
    except (TypeError, ValueError):
        return 0.0


def _finish(site: Site, exchange: Exchange, level: str, row: JSONRow, hidden: set[str]) -> JSONRow:
    """The row with its RetrieveURL, without what this server leaves out."""
    path = "studies/" + quote(_uid(row, "study"), safe="")
    if level != "study":
        path += "/series/" + quote(_uid(row, "series"), safe="")
    if level == "instance":
        path += "/instances/" + quote(_uid(row, "instance"), safe="")
    prefix = site.manners.wado_prefix
    url = "/".join(filter(None, (exchange.base_url, prefix, path)))
    kept = {tag: element for tag, element in row.items() if tag not in hidden} if hidden else row
    finished = {**kept, _RETRIEVE_URL: {"vr": "UR", "Value": [url]}}
    if site.manners.character_set is not None:
        finished[_CHARACTER_SET] = {"vr": "CS", "Value": [site.manners.character_set]}
    return finished


def _next_url(exchange: Exchange, offset: int) -> str:
    pairs = [f"{name}={value}" for name, value in exchange.query if name != "offset"]
    return exchange.base_url + exchange.path + "?" + "&".join([*pairs, f"offset={offset}"])


def _csv(rows: list[JSONRow]) -> bytes:
    """The rows as a table: keywords on top, values joined with backslashes, sequences left out."""
    tags = sorted({tag for row in rows for tag, element in row.items() if element.get("vr") != "SQ"})
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow([_column(tag) for tag in tags])
    for row in rows:
        table.writerow(["\\".join(map(_cell, row.get(tag, {}).get("Value") or ())) for tag in tags])
    return text.getvalue().encode()


def _column(tag: str) -> str:
    try:
        return lookup_keyword(tag)
    except KeyError:
        return tag


def _cell(value: object) -> str:
    if isinstance(value, Mapping):
        return str(value.get("Alphabetic") or "")
    return "" if value is None else str(value)


def _answer(exchange: Exchange, rows: list[JSONRow], media_type: str, headers: dict[str, str]) -> Answer:
    if media_type == XML:
        boundary = secrets.token_hex(16)
        head = f"--{boundary}\r\nContent-Type: {XML}\r\n\r\n".encode()
        body = b"".join(head + xml_document(row) + b"\r\n" for row in rows) + f"--{boundary}--\r\n".encode()
        headers["Content-Type"] = f'multipart/related; type="{XML}"; boundary={boundary}'
        return Answer(200, headers, body)
    if media_type == CSV:
        return Answer(200, {**headers, "Content-Type": f"{CSV}; charset=utf-8"}, _csv(rows))
    if exchange.fault("wrong_vrs"):
        rows = list(wrong_vrs(rows))
    headers["Content-Type"] = media_type
    return Answer(200, headers, faulty_json(exchange, json_bytes(rows)))
