"""What can differ from server to server, as one frozen dataclass whose defaults are the standard's.

`dicomweb_io.testing.server.behaviours` holds the table of known servers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

Evidence = Literal["measured", "read in source", "documented", "seen", "unverified"]

SEARCHES = frozenset(
    {"studies", "series", "instances", "studies/series", "studies/instances", "studies/series/instances"}
)
"""The search resources of PS3.18 table 10.6.1-1, without the UIDs."""


class Limits(NamedTuple):
    """A number for each search level; None for no limit."""

    study: int | None = None
    series: int | None = None
    instance: int | None = None

    def at(self, level: str) -> int | None:
        """The number of a level."""
        number: int | None = getattr(self, level)
        return number


_UNLIMITED = Limits()


@dataclass(frozen=True)
class Fact:
    """One thing a server is known to do.

    Attributes:
        value: The value of the field of `Behaviour`.
        evidence: How it is known: ``"measured"`` on a running server, ``"read in source"``, ``"documented"`` by the
            vendor, ``"seen"`` in reports of others, or ``"unverified"``: the most plausible value, nobody checked.
        source: Where it is from.
    """

    value: Any
    evidence: Evidence
    source: str


@dataclass(frozen=True)
class Behaviour:
    """How a server behaves where servers differ. The defaults follow the standard.

    Attributes:
        name: The name in the table.
        title: What it stands for.
        facts: The fields that are known of it, with their evidence; all others have the standard's value, which
            nobody has checked.
        gaps: What is known of it and is not shown here.

        root: The path of the service.
        qido_prefix, wado_prefix, stow_prefix, delete_prefix: Path segments between root and resource.

        decodes_query: Whether percent escapes in queries are decoded.
        searches: The search resources there are (`SEARCHES`); others are 404.
        counts: Whether each search resource has ``/count``, answering ``{"count": N}``.
        default_limit: Rows of an answer without ``limit``, by level.
        max_limit: The most rows of an answer, by level.
        over_limit: A larger limit is clamped silently, or refused with this status.
        limit_zero: What ``limit=0`` means: ``"empty"``, ``"all"``, ``"one"``, or a status.
        limit_negative: The status for a negative limit, ``"one"``, or ``"all"``.
        limit_refused: A limit above this number is 400, whatever `over_limit` says.
        limit_malformed: The status for a limit that is no number.
        offset: Whether it is honoured.
        max_offset: The largest offset; beyond it 400.
        max_rows: Rows that can be reached in all by paging; None for all.
        too_many: A search with more rows than this is refused with 413.
        empty_status: 204, or 200 with an empty list, where nothing matches.
        unmatchable_status: The same where the server can tell at once that nothing can match.
        past_end_status: The same where rows match but the offset skips them all.
        total_header: Whether ``X-Total-Count`` is sent.
        link_header: Whether a ``Link`` to the next page is sent.
        more_warning: When Warning 299 says that rows remain: always, only if the client's limit is absent or above
            the server's own, or never.
        order: The order of rows: the archive's, newest arrivals first, by update and number (studies newest first,
            series and instances by number), or undefined: another one for each page, unless ``orderby`` is given.
        short_page: Rows by which a full page is short although more follow.
        sizes: Whether study searches have ``/size``, answering ``{"size": N}``, the bytes of all instances.
        receive_times: Whether ``StudyReceiveDateTime``, ``SeriesReceiveDateTime`` and ``StudyAccessDateTime`` filter
            by the time (UTC) at which this server received a study or series.
        search_etags: Whether searches for studies have ETag and Last-Modified, and 304 is given.

        own_parameters: Query parameters beyond the standard's that are not filters. They have no effect, except
            ``orderby``: a comma list of attributes, with ``-`` for descending order, and ``includedefaults=false``: of
            the default attributes only the UIDs are returned.
        unknown_key: What a filter does that the server does not know: ``"ignore"``, or a status.
        tag_keys: Whether filters may be given as 8 hexadecimal digits; if not they are treated as unknown keys.
        refused_filters, refused_fields: Keywords that are 400 as filter or in ``includefield``.
        max_fields: The most attributes that ``includefield`` may name; more are 400.
        all_fields: Whether ``includefield=all`` is honoured; if not it is ignored.
        study_modality: Whether Modality filters studies as ModalitiesInStudy does.
        sequence_keys: What a dotted filter does: ``"match"``, ``"ignore"``, or a status.
        lower_level_keys: What a filter of a lower level does: ``"match"`` (any child), ``"none"`` (no rows),
            ``"ignore"``, or a status.
        searchable: The only keywords that may be filters, or None; others as `unknown_key`.
        uid_separators: What separates the UIDs of a list, in the raw query: ``","``, ``"%2C"``, ``"%5C"``.
        value_separators: The same for other attributes.
        empty_value: ``"universal"``, or the status of a filter without value.
        wildcards: Whether ``*`` and ``?`` are wildcards.
        ranges: Whether dates and times are matched by range.
        undated_before: Whether a range without beginning (``-20040601``) takes in rows without a date.
        ignore_case: Whether all text is matched without regard to case; person names always are.
        person_names: How PatientName and its like match: ``"standard"`` or ``"substring"``.
        fuzzy: What ``fuzzymatching=true`` does: ``"literal"`` matching, ``"warning"`` (the same, and Warning 299 says
            so), ``"prefix"`` (of any part of a name), or ``"soundex"`` (each part by its sound).
        includefield: Whether it is honoured; if not, the answer has its default attributes, or ``"everything"``.
        only_if_asked: Keywords of default attributes that come only if ``includefield`` names them.
        character_set: What rows say in SpecificCharacterSet (0008,0005); None if they do not have it.
        erroneous_header: Whether ``erroneous-dicom-attributes`` names the filters whose stored values are malformed.
        search_types: The media types of search answers.
        search_unacceptable: The status where none of them is acceptable, or ``"json"`` for JSON all the same.
        xml_search_multipart: Whether a plain ``application/dicom+xml`` gives multipart XML and the multipart form JSON.

        retrieves: The levels whose objects can be retrieved.
        default_syntax: What a request without transfer syntax gets: Explicit VR Little Endian, or what is stored.
        any_is_stored: Whether ``*/*`` or no Accept gets what is stored, whatever `default_syntax` says.
        star_syntax: Whether ``transfer-syntax=*`` gives what is stored; if not it is ignored.
        transcoding: The transfer syntaxes it can make; None for all that this server can
            (`dicomweb_io.dicom.pixels.TARGETS`, as far as their encoders are installed).
        transcoding_limit: Bytes above which it does not transcode.
        unsupported_syntax: The status for a transfer syntax it cannot make.
        refused_syntaxes: The status of certain syntaxes, where it differs.
        undecodable: The status where the stored encoding cannot be decoded.
        undecodable_syntaxes: Stored transfer syntaxes for which it has no decoder, although this server has.
        partial: Whether a study or series is answered 206 with those instances that can be had in the wanted syntax.
        zip: Whether objects can be had as ``application/zip``.
        single_part: Whether a single instance can be had as a body without parts.
        any_is_single: Whether ``*/*`` or no Accept gets a single part.
        unacceptable: The status for media types it does not have.
        accepts_alternatives: Whether an Accept list of several ranges is understood; if not, the whole header is read
            as one range, and what then makes no sense is refused.
        quoted_boundary: Whether the boundary in Content-Type is quoted.
        boundary_length: Characters of the boundary.
        part_headers: Headers of each part beside Content-Type: ``"location"``, ``"length"``, ``"mime"``.
        part_syntax: Whether the Content-Type of a part names its transfer syntax.
        frame_headers, frame_syntax: The same for the parts of frames, where it differs.
        root_syntax: Whether the ``type`` of a multipart answer with frames names it, inside the quotes.
        known_length: ``"single"``: answers with one instance have a Content-Length; ``"never"``.
        close_delimited: Whether answers with several instances end by closing the connection, without length.
        metadata: Whether there are ``/metadata`` resources; if not the objects answer to dicom+json.
        metadata_types: Their media types.
        plain_json: Whether a request for ``application/json`` is answered under that name.
        metadata_bulkdata: Whether binary values become BulkDataURI, or are left out.
        metadata_syntax: Whether metadata names the stored transfer syntax (0008,3002).
        metadata_compressed: Whether compressed pixel data have a BulkDataURI.
        metadata_parameters: Whether ``includefield`` and ``excludeprivate`` choose what metadata hold.
        frames: Whether there are frames resources.
        frames_missing: The status for a frame number that does not exist, or ``"drop"``: the others with 206.
        frames_limit: The most frames of one request; more are 400.
        frames_unique: Whether a repeated frame number is refused.
        frames_without_pixels: The status of frames of what has no pixel data.
        frame_types: The media types of frames; None for all that this server can make.
        bulkdata: Whether there are bulk data resources.
        bulkdata_segment: The path segment before the tags of a value.
        bulkdata_fragments: Whether the bulk data of compressed pixel data are the Basic Offset Table and all fragments,
            as parts, instead of the frames.
        bulkdata_of_all: Whether values without BulkDataURI can be had at the same kind of address.
        bulkdata_levels: Whether there are ``/bulkdata`` and ``/pixeldata`` with all values of a study, series or
            instance.
        byte_ranges: Whether ``Range`` is honoured for bulk data in a single part.
        rendered: The levels that can be rendered.
        rendered_types: The media types of rendered answers.
        rendered_parameters: The parameters that have an effect; others are ignored. None: all of the standard's, and
            others are 400.
        rendered_window_of_three: Whether ``window`` needs its third value.
        unrenderable: The status of what has no picture.
        thumbnails: Whether there are thumbnails.
        etags: Whether metadata answers have an ETag and 304 is given.

        store_types: Accepted bodies: ``"multipart"``, ``"single"``.
        store_unsupported: The status for other bodies.
        store_needs_type: Whether multipart needs its ``type`` parameter.
        max_body: Bytes of a request body above which it is 413.
        store_gzip: A gzip body is refused with this status, or ``"swallowed"``: 200 and nothing stored.
        store_empty: The status of a store without parts.
        store_some, store_none: Statuses where some or all instances were refused.
        garbage_status: The status where a part is not DICOM, or None to count it like any refusal.
        garbage: Where such a part is named: ``"other"`` failures, ``"failed"`` without UIDs, or ``"nowhere"``.
        garbage_reason, missing_uids_reason, wrong_study_reason: Failure Reasons.
        invalid_value_warning: The Warning Reason (0008,1196) of an instance with malformed dates or times, which makes
            the status `store_some`; None to store it without a word.
        stored_sequence: Where stored instances are named: ``"00081199"``, or where a client does not look for them.
        one_failure: Whether only the first refused instance is named.
        wrong_study_status: The status where the study of the URL is another one.
        same_again: An instance that exists with equal bytes is ``"stored"`` or ``"refused"``.
        other_again: One that exists with other bytes is ``"refused"``, ``"keep_old"`` (and named as stored),
            ``"replaced"``, or ``"hidden"`` (named as stored, and only to be had with ``imageSetId``).
        duplicate_reason: The Failure Reason of a refused duplicate.
        store_response: The default media type of the answer.
        store_response_types: Its media types; if none is acceptable, 406.
        empty_failed_sequence: Whether FailedSOPSequence is there although nothing failed.
        store_warning: Whether a Warning header with a text comes with anything but full success.
        failure_detail: What stands beside a Failure Reason: ``"none"``, a ``"private"`` text (creator GOOGLE), or
            ``"attributes"``: FailedAttributesSequence with ErrorComment.
        explicit_only: Whether Implicit VR is refused.
        kept: What it keeps of a file: every ``"file"`` byte, the ``"dataset"`` (the preamble is zeroed), the
            ``"pixels"`` (attributes are coerced), or ``"anonymized"``.
        upsert: Whether ``PUT /studies`` stores and replaces.

        deletes: The levels that can be deleted.
        delete_unsupported: The status where they cannot.
        delete_missing: The status for what does not exist.
        delete_lag: Seconds for which searches still show what was deleted.
        rejects: Whether ``POST …/reject/CODE^SCHEME`` makes objects disappear.

        feed: The feed of changes: ``"orthanc"`` (its own interface beside the DICOMweb root: ``/changes``,
            ``/tools/lookup`` and more), ``"azure"`` (``/changefeed``), or ``"none"``.
        head: Whether HEAD is answered; if not it is 404.
        options: The status of OPTIONS.
        gzip: Whether answers are compressed (gzip, deflate) when asked for.
        reason_phrase: Whether the text of a refusal stands in the status line.
        keep_alive_header: Whether ``Keep-Alive: timeout=…`` is sent.
        error_style: ``"text"``: a sentence; ``"json"``: an object; ``"orthanc"``: Orthanc's JSON without Content-Type.
        rate_limit: Requests per second and burst; beyond them 429.
        keep_alive: Seconds after which an idle connection is closed.
    """

    name: str
    title: str
    facts: Mapping[str, Fact] = field(default_factory=dict, repr=False)
    gaps: tuple[str, ...] = field(default=(), repr=False)

    root: str = "/dicom-web"
    qido_prefix: str = ""
    wado_prefix: str = ""
    stow_prefix: str = ""
    delete_prefix: str = ""

    decodes_query: bool = True
    searches: frozenset[str] = SEARCHES
    counts: bool = True
    default_limit: Limits = _UNLIMITED
    max_limit: Limits = _UNLIMITED
    over_limit: Literal["clamp"] | int = "clamp"
    limit_zero: Literal["empty", "all", "one"] | int = "empty"
    limit_negative: Literal["one", "all"] | int = 400
    limit_refused: int | None = None
    limit_malformed: int = 400
    offset: bool = True
    max_offset: int | None = None
    max_rows: int | None = None
    too_many: int | None = None
    empty_status: int = 204
    unmatchable_status: int = 204
    past_end_status: int = 204
    total_header: bool = False
    link_header: bool = False
    more_warning: Literal["always", "server limit", "never"] = "always"
    order: Literal["archive", "newest", "updated and number", "undefined"] = "archive"
    short_page: int = 0
    sizes: bool = False
    receive_times: bool = False
    search_etags: bool = False

    own_parameters: frozenset[str] = frozenset()
    unknown_key: Literal["ignore"] | int = "ignore"
    tag_keys: bool = True
    refused_filters: frozenset[str] = frozenset()
    refused_fields: frozenset[str] = frozenset()
    max_fields: int | None = None
    all_fields: bool = True
    study_modality: bool = False
    sequence_keys: Literal["match", "ignore"] | int = "match"
    lower_level_keys: Literal["match", "none", "ignore"] | int = "match"
    searchable: frozenset[str] | None = None
    uid_separators: frozenset[str] = frozenset({",", "%2C"})
    value_separators: frozenset[str] = frozenset()
    empty_value: Literal["universal"] | int = "universal"
    wildcards: bool = True
    ranges: bool = True
    undated_before: bool = False
    ignore_case: bool = False
    person_names: Literal["standard", "substring"] = "standard"
    fuzzy: Literal["literal", "warning", "prefix", "soundex"] = "warning"
    includefield: Literal["honoured", "ignored", "everything"] = "honoured"
    only_if_asked: frozenset[str] = frozenset()
    character_set: str | None = None
    erroneous_header: bool = False
    search_types: tuple[str, ...] = ("application/dicom+json", "application/dicom+xml")
    search_unacceptable: Literal["json"] | int = 406
    xml_search_multipart: bool = False

    retrieves: frozenset[str] = frozenset({"study", "series", "instance"})
    default_syntax: Literal["explicit", "stored"] = "explicit"
    any_is_stored: bool = False
    star_syntax: bool = True
    transcoding: frozenset[str] | None = None
    transcoding_limit: int | None = None
    unsupported_syntax: int = 406
    refused_syntaxes: Mapping[str, int] = field(default_factory=dict)
    undecodable: int = 406
    undecodable_syntaxes: frozenset[str] = frozenset()
    partial: bool = False
    zip: bool = False
    single_part: bool = True
    any_is_single: bool = False
    unacceptable: int = 406
    accepts_alternatives: bool = True
    quoted_boundary: bool = True
    boundary_length: int = 32
    part_headers: tuple[str, ...] = ("location",)
    part_syntax: bool = True
    frame_headers: tuple[str, ...] | None = None
    frame_syntax: bool | None = None
    root_syntax: bool = False
    known_length: Literal["single", "never"] = "single"
    close_delimited: bool = False
    metadata: bool = True
    metadata_types: tuple[str, ...] = ("application/dicom+json", "application/dicom+xml")
    plain_json: bool = True
    metadata_bulkdata: Literal["uri", "omitted"] = "uri"
    metadata_syntax: bool = True
    metadata_compressed: bool = True
    metadata_parameters: bool = False
    frames: bool = True
    frames_missing: Literal["drop"] | int = 404
    frames_limit: int | None = None
    frames_unique: bool = False
    frames_without_pixels: int = 404
    frame_types: tuple[str, ...] | None = None
    bulkdata: bool = True
    bulkdata_segment: str = "bulkdata"
    bulkdata_fragments: bool = False
    bulkdata_of_all: bool = False
    bulkdata_levels: bool = True
    byte_ranges: bool = True
    rendered: frozenset[str] = frozenset({"study", "series", "instance", "frame"})
    rendered_types: tuple[str, ...] = ("image/jpeg", "image/png", "image/gif")
    rendered_parameters: frozenset[str] | None = None
    rendered_window_of_three: bool = False
    unrenderable: int = 406
    thumbnails: bool = True
    etags: bool = False

    store_types: frozenset[str] = frozenset({"multipart", "single"})
    store_unsupported: int = 415
    store_needs_type: bool = True
    max_body: int | None = None
    store_gzip: Literal["swallowed"] | int = 415
    store_empty: int = 400
    store_some: int = 202
    store_none: int = 409
    garbage_status: int | None = None
    garbage: Literal["other", "failed", "nowhere"] = "other"
    garbage_reason: int = 0xC000
    missing_uids_reason: int = 0xC000
    wrong_study_reason: int = 0x0110
    invalid_value_warning: int | None = None
    stored_sequence: Literal["00081199", "0008114A"] = "00081199"
    one_failure: bool = False
    wrong_study_status: int = 409
    same_again: Literal["stored", "refused"] = "stored"
    other_again: Literal["refused", "keep_old", "replaced", "hidden"] = "refused"
    duplicate_reason: int = 0x0110
    store_response: str = "application/dicom+json"
    store_response_types: tuple[str, ...] = ("application/dicom+json", "application/dicom+xml")
    empty_failed_sequence: bool = False
    store_warning: bool = False
    failure_detail: Literal["none", "private", "attributes"] = "none"
    explicit_only: bool = False
    kept: Literal["file", "dataset", "pixels", "anonymized"] = "file"
    upsert: bool = False

    deletes: frozenset[str] = frozenset({"study", "series", "instance"})
    delete_unsupported: int = 405
    delete_missing: int = 404
    delete_lag: float = 0.0
    rejects: bool = False

    feed: Literal["none", "orthanc", "azure"] = "none"
    head: bool = True
    options: int = 405
    gzip: bool = False
    reason_phrase: bool = False
    keep_alive_header: bool = False
    error_style: Literal["text", "json", "orthanc"] = "text"
    rate_limit: tuple[float, int] | None = None
    keep_alive: int = 5

    def unverified(self) -> dict[str, Fact]:
        """The facts that nobody has checked."""
        return {name: fact for name, fact in self.facts.items() if fact.evidence == "unverified"}


def behaviour(
    name: str,
    title: str,
    facts: Mapping[str, Fact],
    *,
    based_on: Behaviour | None = None,
    same_release: bool = True,
    gaps: tuple[str, ...] = (),
) -> Behaviour:
    """Makes behaviour of facts.

    Args:
        name: The name in the table.
        title: What it stands for.
        facts: Field to fact.
        based_on: Behaviour whose facts hold too, unless replaced.
        same_release: Whether the facts of `based_on` are known of this server too; if not they are unverified.
        gaps: What is known and not shown.

    Raises:
        ValueError: If a fact is about no field.
    """
    inherited = dict(based_on.facts) if based_on is not None else {}
    if not same_release:
        inherited = {key: Fact(one.value, "unverified", f"as {one.source}") for key, one in inherited.items()}
    together = {**inherited, **facts}
    known = {item.name for item in fields(Behaviour)} - {"name", "title", "facts", "gaps"}
    for key in together:
        if key not in known:
            raise ValueError(f"behaviour {name!r}: there is no field {key!r}")
    values = {key: fact.value for key, fact in together.items()}
    all_gaps = (*(based_on.gaps if based_on is not None else ()), *gaps)
    return Behaviour(name, title, MappingProxyType(together), all_gaps, **values)


def measured(value: object, source: str) -> Fact:
    """A fact that was seen on a running server."""
    return Fact(value, "measured", source)


def read_in_source(value: object, source: str) -> Fact:
    """A fact that a server's code says."""
    return Fact(value, "read in source", source)


def documented(value: object, source: str) -> Fact:
    """A fact that the vendor's documents say."""
    return Fact(value, "documented", source)


def seen(value: object, source: str) -> Fact:
    """A fact that others reported."""
    return Fact(value, "seen", source)


def unverified(value: object, source: str) -> Fact:
    """The most plausible value of something that nobody has checked."""
    return Fact(value, "unverified", source)
