"""What can differ from server to server, as one frozen dataclass whose defaults are the standard's.

`dicomweb_io.testing.server.behaviours` holds the table of known servers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TypeVar

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
            vendor, ``"seen"`` in reports of others, or ``"unverified"``: the most plausible value, unchecked.
        source: Where it is from.
    """

    value: Any
    evidence: Evidence
    source: str


T = TypeVar("T")


def meant(default: T, meaning: str) -> T:
    """A field of `Behaviour` with its default and what it means, for people who ask the server about itself."""
    if isinstance(default, MappingProxyType):
        return field(default_factory=lambda: default, metadata={"meaning": meaning})
    return field(default=default, metadata={"meaning": meaning})


@dataclass(frozen=True)
class Behaviour:
    """How a server behaves where servers differ. The defaults follow the standard.

    Attributes:
        name: The name in the table.
        title: The server that it stands for.
        facts: The fields that are known, with their evidence; all others have the standard's value, unchecked.
        gaps: What is known of the server and not shown by this one.

    Each further field says what it means in its own place; see `meanings`.
    """

    name: str
    title: str
    facts: Mapping[str, Fact] = field(default_factory=dict, repr=False)
    gaps: tuple[str, ...] = field(default=(), repr=False)

    root: str = meant("/dicom-web", "The path of the service.")
    qido_prefix: str = meant("", "Path segments between root and resource.")
    wado_prefix: str = meant("", "Path segments between root and resource.")
    stow_prefix: str = meant("", "Path segments between root and resource.")
    delete_prefix: str = meant("", "Path segments between root and resource.")

    decodes_query: bool = meant(True, "Whether percent escapes in queries are decoded.")
    searches: frozenset[str] = meant(SEARCHES, "The search resources there are; others are 404.")
    counts: bool = meant(True, 'Whether each search resource has ``/count``, answering ``{"count": N}``.')
    default_limit: Limits = meant(_UNLIMITED, "Rows of an answer without ``limit``, by level.")  # noqa: RUF009 - a field
    max_limit: Limits = meant(_UNLIMITED, "The largest number of rows of an answer, by level.")  # noqa: RUF009 - a field
    over_limit: Literal["clamp"] | int = meant(
        "clamp", "A larger limit is clamped silently, or refused with this status."
    )
    limit_zero: Literal["empty", "all", "one"] | int = meant(
        "empty", 'What ``limit=0`` means: ``"empty"``, ``"all"``, ``"one"``, or a status.'
    )
    limit_negative: Literal["one", "all"] | int = meant(
        400, 'The status for a negative limit, ``"one"``, or ``"all"``.'
    )
    limit_refused: int | None = meant(None, "A limit above this number is 400, whatever `over_limit` says.")
    offset: bool = meant(True, "Whether ``offset`` is honoured.")
    max_offset: int | None = meant(None, "The largest offset; beyond it 400.")
    max_rows: int | None = meant(None, "Rows that can be reached in all by paging; None for all.")
    too_many: int | None = meant(None, "A search with more rows than this is refused with 413.")
    empty_status: int = meant(204, "204, or 200 with an empty list, where nothing matches.")
    unmatchable_status: int = meant(204, "The same where the server sees at once that nothing can match.")
    past_end_status: int = meant(204, "The same where rows match but the offset skips them all.")
    total_header: bool = meant(False, "Whether ``X-Total-Count`` is sent.")
    link_header: bool = meant(False, "Whether a ``Link`` to the next page is sent.")
    more_warning: Literal["always", "server limit", "never"] = meant(
        "always",
        "When Warning 299 says that rows remain: always, only if the client's limit is absent or above the server's "
        "own, or never.",
    )
    order: Literal["archive", "newest", "updated and number", "undefined"] = meant(
        "archive",
        "The order of rows: the archive's, newest arrivals first, by update and number (studies newest first, "
        "series and instances by number), or undefined: another one for each page, unless ``orderby`` is given.",
    )
    short_page: int = meant(0, "Rows by which a full page is short although more follow.")
    receive_times: bool = meant(
        False,
        "Whether ``StudyReceiveDateTime``, ``SeriesReceiveDateTime`` and ``StudyAccessDateTime`` filter by the time "
        "(UTC) at which the server received a study or series.",
    )

    own_parameters: frozenset[str] = meant(
        frozenset(),
        "Query parameters beyond the standard's that are not filters. They have no effect, except ``orderby``: a "
        "comma list of attributes, with ``-`` for descending order, and ``includedefaults=false``: of the default "
        "attributes only the UIDs are returned.",
    )
    unknown_key: Literal["ignore"] | int = meant("ignore", 'What an unknown filter does: ``"ignore"``, or a status.')
    tag_keys: bool = meant(
        True, "Whether filters may be given as 8 hexadecimal digits; if not they are treated as unknown keys."
    )
    refused_filters: frozenset[str] = meant(frozenset(), "Keywords that are answered 400 as a filter.")
    refused_fields: frozenset[str] = meant(frozenset(), "Keywords that are answered 400 in ``includefield``.")
    max_fields: int | None = meant(None, "The largest number of attributes in ``includefield``; more are 400.")
    all_fields: bool = meant(True, "Whether ``includefield=all`` is honoured; if not it is ignored.")
    study_modality: bool = meant(False, "Whether Modality filters studies as ModalitiesInStudy does.")
    sequence_keys: Literal["match", "ignore"] | int = meant(
        "match", 'What a dotted filter does: ``"match"``, ``"ignore"``, or a status.'
    )
    lower_level_keys: Literal["match", "none", "ignore"] | int = meant(
        "match",
        'What a filter of a lower level does: ``"match"`` (any child), ``"none"`` (no rows), ``"ignore"``, or a '
        "status.",
    )
    searchable: frozenset[str] | None = meant(
        None, "The only keywords that may be filters, or None; others as `unknown_key`."
    )
    uid_separators: frozenset[str] = meant(
        frozenset({",", "%2C"}), 'What separates the UIDs of a list, in the raw query: ``","``, ``"%2C"``, ``"%5C"``.'
    )
    value_separators: frozenset[str] = meant(frozenset(), "The same for attributes that are not UIDs.")
    empty_value: Literal["universal"] | int = meant(
        "universal", '``"universal"``, or the status of a filter without value.'
    )
    wildcards: bool = meant(True, "Whether ``*`` and ``?`` are wildcards.")
    undated_before: bool = meant(
        False, "Whether a range without beginning (``-20040601``) takes in rows without a date."
    )
    ignore_case: bool = meant(False, "Whether all text is matched without regard to case; person names always are.")
    person_names: Literal["standard", "substring"] = meant(
        "standard", 'How PatientName and its like match: ``"standard"`` or ``"substring"``.'
    )
    fuzzy: Literal["literal", "warning", "prefix", "soundex"] = meant(
        "warning",
        'What ``fuzzymatching=true`` does: ``"literal"`` matching, ``"warning"`` (the same, and Warning 299 says so), '
        '``"prefix"`` (of any part of a name), or ``"soundex"`` (each part by its sound).',
    )
    includefield: Literal["honoured", "ignored", "everything"] = meant(
        "honoured",
        'Whether ``includefield`` is honoured; if not, the answer has its default attributes, or ``"everything"``.',
    )
    only_if_asked: frozenset[str] = meant(
        frozenset(), "Keywords of default attributes that come only if ``includefield`` names them."
    )
    character_set: str | None = meant(
        None, "The SpecificCharacterSet (0008,0005) of rows; None if they do not have it."
    )
    erroneous_header: bool = meant(
        False, "Whether ``erroneous-dicom-attributes`` names the filters whose stored values are malformed."
    )
    search_types: tuple[str, ...] = meant(
        ("application/dicom+json", "application/dicom+xml"), "The media types of search answers."
    )
    search_unacceptable: Literal["json"] | int = meant(
        406, 'The status where none of them is acceptable, or ``"json"`` for JSON all the same.'
    )
    xml_search_multipart: bool = meant(
        False, "Whether a plain ``application/dicom+xml`` gives multipart XML and the multipart form JSON."
    )

    retrieves: frozenset[str] = meant(
        frozenset({"study", "series", "instance"}), "The levels whose objects can be retrieved."
    )
    default_syntax: Literal["explicit", "stored"] = meant(
        "explicit", "What a request without transfer syntax gets: Explicit VR Little Endian, or what is stored."
    )
    any_is_stored: bool = meant(
        False, "Whether ``*/*`` or no Accept gets what is stored, whatever `default_syntax` says."
    )
    star_syntax: bool = meant(True, "Whether ``transfer-syntax=*`` gives what is stored; if not it is ignored.")
    transcoding: frozenset[str] | None = meant(
        None, "The transfer syntaxes that it can make; None for all that this server can."
    )
    transcoding_limit: int | None = meant(None, "Bytes above which it does not transcode.")
    unsupported_syntax: int = meant(406, "The status for a transfer syntax that it cannot make.")
    refused_syntaxes: Mapping[str, int] = meant(
        MappingProxyType({}), "The status of certain syntaxes, where it differs."
    )
    undecodable: int = meant(406, "The status where the stored encoding cannot be decoded.")
    undecodable_syntaxes: frozenset[str] = meant(
        frozenset(), "Stored transfer syntaxes that it cannot decode, although this server can."
    )
    partial: bool = meant(
        False,
        "Whether a study or series is answered 206 with the instances that are available in the wanted transfer "
        "syntax.",
    )
    single_part: bool = meant(True, "Whether a single instance is available as a body without parts.")
    any_is_single: bool = meant(False, "Whether ``*/*`` or no Accept gets a single part.")
    unacceptable: int = meant(406, "The status for media types it does not have.")
    accepts_alternatives: bool = meant(
        True,
        "Whether an Accept list of several ranges is understood; if not, the whole header is read as one range, and "
        "what then makes no sense is refused.",
    )
    quoted_boundary: bool = meant(True, "Whether the boundary in Content-Type is quoted.")
    boundary_length: int = meant(32, "Characters of the boundary.")
    part_headers: tuple[str, ...] = meant(
        ("location",), 'Headers of each part beside Content-Type: ``"location"``, ``"length"``, ``"mime"``.'
    )
    part_syntax: bool = meant(True, "Whether the Content-Type of a part names its transfer syntax.")
    frame_headers: tuple[str, ...] | None = meant(None, "`part_headers` of frames, where they differ.")
    frame_syntax: bool | None = meant(None, "`part_syntax` of frames, where it differs.")
    root_syntax: bool = meant(
        False, "Whether the ``type`` of a multipart answer with frames names the transfer syntax, inside the quotes."
    )
    known_length: Literal["single", "never"] = meant(
        "single", '``"single"``: answers with one instance have a Content-Length; ``"never"``.'
    )
    close_delimited: bool = meant(
        False, "Whether answers with several instances end by closing the connection, without length."
    )
    metadata: bool = meant(True, "Whether there are ``/metadata`` resources; if not the objects answer to dicom+json.")
    metadata_types: tuple[str, ...] = meant(
        ("application/dicom+json", "application/dicom+xml"), "The media types of metadata."
    )
    plain_json: bool = meant(True, "Whether a request for ``application/json`` is answered under that name.")
    metadata_bulkdata: Literal["uri", "omitted"] = meant(
        "uri", "Whether binary values become BulkDataURI, or are left out."
    )
    metadata_syntax: bool = meant(True, "Whether metadata names the stored transfer syntax (0008,3002).")
    metadata_compressed: bool = meant(True, "Whether metadata have a BulkDataURI for compressed pixel data.")
    metadata_parameters: bool = meant(
        False, "Whether ``includefield`` and ``excludeprivate`` choose the attributes of metadata."
    )
    frames: bool = meant(True, "Whether there are frames resources.")
    frames_missing: Literal["drop"] | int = meant(
        404, 'The status for a frame number that does not exist, or ``"drop"``: the others with 206.'
    )
    frames_unique: bool = meant(False, "Whether a repeated frame number is refused.")
    frames_without_pixels: int = meant(404, "The status for frames of an instance without pixel data.")
    frame_types: tuple[str, ...] | None = meant(
        None, "The media types of frames; None for all that this server can make."
    )
    bulkdata: bool = meant(True, "Whether there are bulk data resources.")
    bulkdata_segment: str = meant("bulkdata", "The path segment before the tags of a value.")
    bulkdata_fragments: bool = meant(
        False,
        "Whether the bulk data of compressed pixel data are the Basic Offset Table and all fragments, as parts, "
        "instead of the frames.",
    )
    bulkdata_of_all: bool = meant(
        False, "Whether values without BulkDataURI are available at the same kind of address."
    )
    bulkdata_levels: bool = meant(
        True, "Whether there are ``/bulkdata`` and ``/pixeldata`` with all values of a study, series or instance."
    )
    byte_ranges: bool = meant(True, "Whether ``Range`` is honoured for bulk data in a single part.")
    rendered: frozenset[str] = meant(
        frozenset({"study", "series", "instance", "frame"}), "The levels that can be rendered."
    )
    rendered_types: tuple[str, ...] = meant(
        ("image/jpeg", "image/png", "image/gif"), "The media types of rendered answers."
    )
    rendered_parameters: frozenset[str] | None = meant(
        None, "The parameters that have an effect; others are ignored. None: all of the standard's, and others are 400."
    )
    rendered_window_of_three: bool = meant(False, "Whether ``window`` needs its third value.")
    unrenderable: int = meant(406, "The status for what cannot be rendered.")
    thumbnails: bool = meant(True, "Whether there are thumbnails.")

    store_types: frozenset[str] = meant(
        frozenset({"multipart", "single"}), 'Accepted bodies: ``"multipart"``, ``"single"``.'
    )
    max_body: int | None = meant(None, "Bytes of a request body above which it is 413.")
    store_gzip: Literal["swallowed"] | int = meant(
        415, 'A gzip body is refused with this status, or ``"swallowed"``: 200 and nothing stored.'
    )
    store_empty: int = meant(400, "The status of a store without parts.")
    store_some: int = meant(202, "The status where some instances were refused.")
    store_none: int = meant(409, "The status where all instances were refused.")
    garbage_status: int | None = meant(
        None, "The status where a part is not DICOM, or None to count it like any refusal."
    )
    garbage: Literal["other", "failed", "nowhere"] = meant(
        "other", 'Where such a part is named: as ``"other"`` failure, as ``"failed"`` without UIDs, or ``"nowhere"``.'
    )
    garbage_reason: int = meant(0xC000, "The Failure Reason of a part that is not DICOM.")
    missing_uids_reason: int = meant(0xC000, "The Failure Reason of an instance without its UIDs.")
    wrong_study_reason: int = meant(0x0110, "The Failure Reason of an instance of another study than the URL's.")
    invalid_value_warning: int | None = meant(
        None,
        "The Warning Reason (0008,1196) of an instance with malformed dates or times, which makes the status "
        "`store_some`; None to store it silently.",
    )
    stored_sequence: Literal["00081199", "0008114A"] = meant(
        "00081199", 'Where stored instances are named: ``"00081199"``, or where a client does not look for them.'
    )
    one_failure: bool = meant(False, "Whether only the first refused instance is named.")
    same_again: Literal["stored", "refused"] = meant(
        "stored", 'An instance that exists with equal bytes is ``"stored"`` or ``"refused"``.'
    )
    other_again: Literal["refused", "keep_old", "replaced", "hidden"] = meant(
        "refused",
        'An instance that exists with other bytes is ``"refused"``, ``"keep_old"`` (and named as stored), '
        '``"replaced"``, or ``"hidden"`` (named as stored, and available only with ``imageSetId``).',
    )
    duplicate_reason: int = meant(0x0110, "The Failure Reason of a refused duplicate.")
    store_response: str = meant("application/dicom+json", "The default media type of the answer.")
    store_response_types: tuple[str, ...] = meant(
        ("application/dicom+json", "application/dicom+xml"),
        "The media types of the answer; if none is acceptable, 406.",
    )
    empty_failed_sequence: bool = meant(False, "Whether FailedSOPSequence is there although nothing failed.")
    store_warning: bool = meant(False, "Whether anything but full success comes with a Warning header.")
    failure_detail: Literal["none", "private", "attributes"] = meant(
        "none",
        'What stands beside a Failure Reason: ``"none"``, a ``"private"`` text (creator GOOGLE), or '
        '``"attributes"``: FailedAttributesSequence with ErrorComment.',
    )
    explicit_only: bool = meant(False, "Whether Implicit VR is refused.")
    kept: Literal["file", "dataset", "pixels", "anonymized"] = meant(
        "file",
        'What is kept of a file: every ``"file"`` byte, the ``"dataset"`` (the preamble is zeroed), the '
        '``"pixels"`` (attributes are coerced), or ``"anonymized"``.',
    )
    upsert: bool = meant(False, "Whether ``PUT /studies`` stores and replaces.")

    deletes: frozenset[str] = meant(frozenset({"study", "series", "instance"}), "The levels that can be deleted.")
    delete_lag: float = meant(0.0, "Seconds for which searches still show what was deleted.")

    feed: Literal["none", "orthanc", "azure"] = meant(
        "none",
        'The feed of changes: ``"orthanc"`` (its own interface beside the DICOMweb root: ``/changes``, '
        '``/tools/lookup`` and more), ``"azure"`` (``/changefeed``), or ``"none"``.',
    )
    head: bool = meant(True, "Whether HEAD is answered; if not it is 404.")
    options: int = meant(405, "The status of OPTIONS.")
    gzip: bool = meant(False, "Whether answers are compressed (gzip, deflate) when asked for.")
    reason_phrase: bool = meant(False, "Whether the text of a refusal stands in the status line.")
    keep_alive_header: bool = meant(False, "Whether ``Keep-Alive: timeout=…`` is sent.")
    error_style: Literal["text", "json", "orthanc"] = meant(
        "text", 'The form of an error: ``"text"``, ``"json"``, or ``"orthanc"`` (its own JSON, without Content-Type).'
    )
    rate_limit: tuple[float, int] | None = meant(None, "Requests per second, and burst; beyond them 429.")
    keep_alive: int = meant(5, "Seconds after which an idle connection is closed.")


def meanings() -> dict[str, str]:
    """What each field of `Behaviour` means, all but the name, title, facts and gaps."""
    return {one.name: one.metadata["meaning"] for one in fields(Behaviour) if "meaning" in one.metadata}


def behaviour(
    name: str,
    title: str,
    facts: Mapping[str, Fact],
    *,
    based_on: Behaviour | None = None,
    same_release: bool = True,
    gaps: tuple[str, ...] = (),
) -> Behaviour:
    """Makes a behaviour of facts.

    Args:
        name: The name in the table.
        title: The server that it stands for.
        facts: Field to fact.
        based_on: A behaviour whose facts hold too, unless replaced.
        same_release: Whether the facts of `based_on` are known of this server too; if not they are unverified.
        gaps: What is known and not shown.

    Raises:
        ValueError: If a fact is about an unknown field.
    """
    inherited = dict(based_on.facts) if based_on is not None else {}
    if not same_release:
        inherited = {key: Fact(one.value, "unverified", f"as {one.source}") for key, one in inherited.items()}
    together = {**inherited, **facts}
    known = meanings()
    for key in together:
        if key not in known:
            raise ValueError(f"behaviour {name!r}: there is no field {key!r}")
    values = {key: fact.value for key, fact in together.items()}
    all_gaps = (*(based_on.gaps if based_on is not None else ()), *gaps)
    return Behaviour(name, title, MappingProxyType(together), all_gaps, **values)


def _known(evidence: Evidence) -> Callable[[object, str], Fact]:
    """What makes facts of a value and its source."""
    return lambda value, source: Fact(value, evidence, source)


measured = _known("measured")
read_in_source = _known("read in source")
documented = _known("documented")
seen = _known("seen")
unverified = _known("unverified")
