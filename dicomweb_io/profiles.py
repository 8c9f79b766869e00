"""Server profiles: how DICOMweb servers differ, as data. No code path asks which server it talks to.

Each profile names the source of its facts. Unknown facts have careful values: they cost one more request, or an error
before anything is sent, but never a row. ``"auto"`` chooses by the URL alone; `Endpoint.probe` asks the server.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any, Literal

from dicomweb_io.dicom.media_types import DICOM
from dicomweb_io.elements import LEVELS, SearchLevel

ComparisonLevel = Literal["file", "dataset", "pixels", "none"]

_PARTS = f'multipart/related; type="{DICOM}"; transfer-syntax=*'
_PARTS_QUOTED = f'multipart/related; type="{DICOM}"; transfer-syntax="*"'
_SINGLE = f"{DICOM}; transfer-syntax=*"
_PARTS_ANY_SYNTAX_LEFT_OFF = f'multipart/related; type="{DICOM}"'


@dataclass(frozen=True, repr=False)
class ServerProfile:
    """The behaviour of one kind of server.

    Attributes:
        name: The name to ask for it by.
        url_pattern: A regular expression that its addresses match; None if the address does not show it.
        sources: Where the facts come from.
        fingerprint: An address relative to the root and a member of the JSON object found there, by which a probe
            recognizes the server; None if there is none.
        page_sizes: Rows to ask for per search page: study, series, instance.
        max_limits: The largest limit that the server keeps to: study, series, instance; None where not known. Only if
            it is known, a page with fewer rows than asked for is the last one.
        decodes_queries: Whether it decodes percent escapes in query strings, as it must; None: ask it, once, before the
            first filter whose value needs them.
        max_offset: The largest offset it accepts; None where none is known.
        max_rows: The most rows that it returns for one search; None if there is no such limit.
        short_pages: Whether a page may be short or empty although more rows follow.
        total_is_upper_bound: Whether announced totals count rows that are not returned. Elsewhere a search with fewer
            rows than announced is incomplete.
        offset_works: Whether it is known that ``offset`` is honoured (a transform may read pages ahead); None: unknown.
        order_by: A query parameter that makes the order of rows stable, or None.
        uid_lists: Whether a filter may list several UIDs, separated by commas.
        loose_names: Whether names are matched loosely without ``fuzzymatching``: then rows are not judged by them.
        matches_series_of_studies: Whether a search for studies matches attributes of their series, such as Modality;
            False: none matches, so ModalitiesInStudy is sent for Modality; None: unknown.
        flat_series: Whether ``/series`` can be searched; None: try, and walk studies if it is missing.
        flat_instances: Whether ``/instances`` can be searched; None: try.
        study_instances: Whether ``/studies/UID/instances`` can be searched; None: try.
        count_resources: Whether ``/studies/count`` and its like exist.
        retrieve_study: Whether a study can be retrieved as a whole; if not, its instances are; None: try.
        retrieve_series: Whether a series can be retrieved as a whole; None: try.
        study_metadata: Whether metadata of a whole study can be retrieved; if not, its series' are.
        metadata_resource: Whether ``…/metadata`` exists; None: try, and ask the object for JSON if it is missing.
        original_accepts: Accept headers that give the stored bytes, best first.
        transcoding_accepts: Accept headers that may give re-encoded instances; sent only with ``allow_transcoding``.
        frames_per_request: The maximum number of frames of one request.
        max_url_length: The longest URL to send, in characters.
        store_batch_bytes: The maximum number of bytes of instances per store request.
        store_batch_count: The maximum number of instances per store request.
        max_request_bytes: The largest store request that the server accepts; None if no limit is known.
        duplicate_reasons: Failure reasons that mean "an instance with this UID is already here, whatever its content".
        conflict_reasons: Failure reasons that may mean "another object with this UID is already here".
        same_uid_elsewhere: What becomes of an instance whose SOP Instance UID the server has in another series:
            ``"keeps_both"``, ``"ignores"`` (it keeps the old one only), ``"overwrites"`` (the new one only), or None:
            unknown, so it is looked for before and after the store.
        store_again: What sending an instance again does, if the first request may have been processed: nothing
            (``"harmless"``), what has to be looked at first, so that only what is missing is sent (``"look"``), or
            damage, so that it is never done (``"never"``).
        replace: How an instance can be replaced safely: ``"upsert"`` (PUT to the store resource), ``"delete"`` (delete,
            then store, with the old bytes kept until the new ones are in), or None.
        delete: How objects are deleted: ``"resource"`` (DELETE of the resource, PS3.18 section 10.7), ``"orthanc"``
            (Orthanc's own REST interface beside DICOMweb), or None.
        comparison_level: How much of a stored file it preserves: every byte, the dataset's bytes, the decoded pixels,
            or nothing reliable.
        metadata_bulkdata: Whether metadata refers to large values by BulkDataURI.
        thumbnails: Whether thumbnails exist; None: unknown.
        changes: How new instances are found: ``"orthanc"`` (its change log beside DICOMweb), ``"azure"`` (a change
            feed), ``"receive_time"`` (searches by the time it received studies), or None.
    """

    name: str
    url_pattern: str | None = None
    sources: tuple[str, ...] = ()
    fingerprint: tuple[str, str] | None = None
    page_sizes: tuple[int, int, int] = (200, 200, 200)
    max_limits: tuple[int | None, int | None, int | None] = (None, None, None)
    decodes_queries: bool | None = True
    max_offset: int | None = None
    max_rows: int | None = None
    short_pages: bool = False
    total_is_upper_bound: bool = False
    offset_works: bool | None = None
    order_by: tuple[str, str] | None = None
    uid_lists: bool = True
    loose_names: bool = False
    matches_series_of_studies: bool | None = None
    flat_series: bool | None = None
    flat_instances: bool | None = None
    study_instances: bool | None = None
    count_resources: bool = False
    retrieve_study: bool | None = None
    retrieve_series: bool | None = None
    study_metadata: bool = True
    metadata_resource: bool | None = None
    original_accepts: tuple[str, ...] = (_PARTS, _PARTS_QUOTED, _SINGLE)
    transcoding_accepts: tuple[str, ...] = (_PARTS_ANY_SYNTAX_LEFT_OFF, DICOM)
    frames_per_request: int = 400
    max_url_length: int = 2000
    store_batch_bytes: int = 20_000_000
    store_batch_count: int = 50
    max_request_bytes: int | None = None
    duplicate_reasons: tuple[int, ...] = ()
    conflict_reasons: tuple[int, ...] = ()
    same_uid_elsewhere: Literal["keeps_both", "ignores", "overwrites"] | None = None
    store_again: Literal["harmless", "look", "never"] = "look"
    replace: Literal["upsert", "delete"] | None = None
    delete: Literal["resource", "orthanc"] | None = "resource"
    comparison_level: ComparisonLevel = "none"
    metadata_bulkdata: bool = True
    thumbnails: bool | None = None
    changes: Literal["orthanc", "azure", "receive_time"] | None = None

    def page_size(self, level: SearchLevel) -> int:
        """Rows to ask for per page of a search for ``"study"``, ``"series"`` or ``"instance"``."""
        return self.page_sizes[LEVELS.index(level)]

    def max_limit(self, level: SearchLevel) -> int | None:
        """The largest limit that the server keeps to at a level, if it is known."""
        return self.max_limits[LEVELS.index(level)]

    def __repr__(self) -> str:
        return f"<ServerProfile {self.name}>"

    def with_facts(self, **facts: Any) -> ServerProfile:
        """A copy with other facts, for example for a server with other settings."""
        return replace(self, **facts)


GENERIC = ServerProfile(
    name="generic",
    sources=(
        "PS3.18 sections 10.4 to 10.7; nothing is assumed that the standard leaves open",
        "200 rows per page: the smallest maximum above which a server refuses a search is Azure's 200",
        "64 MiB per store request: the smallest body limit met among servers (measured); batches stay at 20 MB",
        "400 frames per request: the number that clients of Google's service keep to",
    ),
    max_request_bytes=64 * 1024 * 1024,
    comparison_level="file",
)

ORTHANC = ServerProfile(
    name="orthanc",
    url_pattern=r"https?://[^?#]*/dicom-web/?\Z",
    sources=(
        "measured on Orthanc 1.10.1 with DICOMweb plugin 1.7: offset and limit honoured, all search resources, "
        "transfer-syntax=* gives the stored bytes, single parts and an unquoted * after a list are refused with 400, "
        "no count resource (400), HEAD and DELETE are not available below the DICOMweb root",
        "a configured LimitFindResults may cut a page (Orthanc Book, configuration): its maximum counts as unknown",
        "same UID again: 200 and the old bytes are kept (measured); replacing means deleting first",
        "one SOP Instance UID in several series: all are kept (measured)",
        "measured on Orthanc 1.10.1 of Debian: percent escapes in a query are taken literally (PatientID=%31 does not "
        "find 1, limit=%31 is 400)",
        "deletion by POST /tools/lookup and DELETE of the native resource (Orthanc Book, REST API; measured)",
        "changes by GET /changes of the native interface, mapped by POST /tools/bulk-content (measured)",
        "a search for studies by an attribute of series (Modality=CT, Manufacturer=*) finds nothing (measured)",
    ),
    fingerprint=("../system", "ApiVersion"),
    page_sizes=(1000, 1000, 1000),
    decodes_queries=None,
    matches_series_of_studies=False,
    offset_works=True,
    flat_series=True,
    flat_instances=True,
    study_instances=True,
    retrieve_study=True,
    retrieve_series=True,
    metadata_resource=True,
    original_accepts=(_PARTS, _PARTS_QUOTED),
    transcoding_accepts=(_PARTS_ANY_SYNTAX_LEFT_OFF,),
    same_uid_elsewhere="keeps_both",
    store_again="harmless",
    replace="delete",
    delete="orthanc",
    comparison_level="file",
    changes="orthanc",
)

DCM4CHEE = ServerProfile(
    name="dcm4chee",
    url_pattern=r"https?://[^?#]*(?:/dcm4chee-arc/)?aets/[^/?#]+/rs/?\Z",
    sources=(
        "dcm4chee-arc-light 674a8642 (read): limit 1 to 99,999, default cap 1,000 (dcmQidoMaxNumberOfResults), offset "
        "up to 99,999, count resources, orderby, Warning 299 above the cap, 413 when a query finds too much",
        "dcm4chee-arc-light issues 418 and 18: older builds return short or empty pages although more rows follow, "
        "because they leave out rejected studies after they were counted",
        "dcm4chee-arc-light issue 4796: the order of rows is stable by default since 2025-09 only, so orderby is sent",
        "dcm4chee-arc-light issue 3469: a file from another source is ignored, yet reported as stored: no safe replace",
        "attributes of the database are merged into what is served (read): only pixels are preserved",
        "DELETE /studies/UID (read); several instances of one UID list separated by commas (read)",
        "StudyReceiveDateTime=FROM- as a parameter of searches (read)",
    ),
    page_sizes=(1000, 1000, 1000),
    max_limits=(1000, 1000, 1000),
    max_offset=99_999,
    short_pages=True,
    total_is_upper_bound=True,
    offset_works=True,
    order_by=("orderby", "{uid}"),
    flat_series=True,
    flat_instances=True,
    study_instances=True,
    retrieve_study=True,
    retrieve_series=True,
    count_resources=True,
    metadata_resource=True,
    comparison_level="pixels",
    changes="receive_time",
)

DICOMCLOUD = ServerProfile(
    name="dicomcloud",
    url_pattern=r"https?://[^/?#]*dicomcloud[^?#]*\Z",
    sources=(
        "DICOMcloud 0eb7773 (read): limit 12, clamped silently; X-Total-Count, Link and Warning 299; 100 MB per "
        "request (IIS setting); anonymizes what it stores by default; transfer-syntax=* is ignored; always failure "
        "reason 272",
        "DICOMcloud issue 25: older builds return fewer unique rows than the limit: a short page is not the last one",
        "409 with reason 272 for an instance that exists (read): also its only reason for everything else",
        "delete resources of its own prefix (read)",
        "fuzzy matching is always supported (its conformance table)",
    ),
    page_sizes=(12, 12, 12),
    max_limits=(12, 12, 12),
    loose_names=True,
    short_pages=True,
    offset_works=True,
    flat_series=True,
    flat_instances=True,
    study_instances=True,
    retrieve_study=True,
    retrieve_series=True,
    metadata_resource=True,
    max_request_bytes=100_000_000,
    conflict_reasons=(272,),
    replace="delete",
    comparison_level="none",
)

GOOGLE = ServerProfile(
    name="google",
    url_pattern=r"https://healthcare\.googleapis\.com/",
    sources=(
        "Google Cloud Healthcare quotas page: at most 5,000 studies or series and 50,000 instances per search, offset "
        "up to 1,000,000; truncation is silent (Weasis issue 653)",
        "healthcare-dicom-dicomweb-adapter issue 42: defaults of 100 and 1,000 rows, so the limit is always sent",
        "documented: 4 GB per tag, 30 minutes per request; identical bytes accepted again, others 409 (dicom-fuse "
        "issue 20); PUT …/dicomWeb/studies is an upsert (beta)",
        "documented: transfer-syntax=*, single parts; rendered instances and frames only, no thumbnails",
        "clients keep to 400 frames per request (ez-wsi-dicomweb)",
        "what bytes it keeps is not documented: the dataset level is compared, not relied on",
    ),
    page_sizes=(1000, 1000, 1000),
    max_limits=(5000, 5000, 50_000),
    max_offset=1_000_000,
    offset_works=True,
    flat_series=True,
    flat_instances=True,
    study_instances=True,
    retrieve_study=True,
    retrieve_series=True,
    metadata_resource=True,
    conflict_reasons=(272,),
    store_again="harmless",
    replace="upsert",
    comparison_level="dataset",
    thumbnails=False,
)

AZURE = ServerProfile(
    name="azure",
    url_pattern=r"https://[^/?#]*\.dicom\.azurehealthcareapis\.com(?:/|\Z)",
    sources=(
        "Azure DICOM service conformance statement v2 (January 2024): limit 1 to 200, above it 400; 204 for no rows; "
        "newest first; 409 with reason 45070 for an instance that exists, 45071 while one is pending; PUT /v2/studies "
        "is an upsert; 4 GB per request; JSON answers only; preamble zeroed; metadata without bulk data URIs",
        "microsoft/dicom-server pull request 1364: */* gives the original",
        "Azure DICOM service change feed (January 2024): startTime, offset and limit up to 200 at /v2/changefeed",
    ),
    fingerprint=("changefeed/latest", "Sequence"),
    page_sizes=(200, 200, 200),
    max_limits=(200, 200, 200),
    offset_works=True,
    flat_series=True,
    flat_instances=True,
    study_instances=True,
    retrieve_study=True,
    retrieve_series=True,
    metadata_resource=True,
    original_accepts=(_PARTS, _SINGLE, "*/*"),
    max_request_bytes=4_000_000_000,
    duplicate_reasons=(45070,),
    store_again="harmless",
    replace="upsert",
    comparison_level="dataset",
    metadata_bulkdata=False,
    thumbnails=False,
    changes="azure",
)

HEALTHIMAGING = ServerProfile(
    name="healthimaging",
    url_pattern=r"https://dicom-medical-imaging\.[^/?#]+\.amazonaws\.com(?:/|\Z)",
    sources=(
        "AWS HealthImaging guide: limit up to 1,000, offset up to 1,000,000, at most 10,000 records of a search; "
        "instances are searched at /studies/S/series/E/instances only; no retrieval of studies or series; 1 GB per "
        "store request; a frame list must have no repeats",
        "AWS HealthImaging guide: most lossless frames are re-encoded as HTJ2K on import (equal pixels)",
        "AWS HealthImaging guide: the same UIDs again go to another image set that searches do not show; deletion is "
        "the image-set API's: neither replace nor delete is safe by DICOMweb",
    ),
    page_sizes=(1000, 1000, 1000),
    max_limits=(1000, 1000, 1000),
    max_offset=1_000_000,
    max_rows=10_000,
    offset_works=True,
    flat_series=False,
    flat_instances=False,
    study_instances=False,
    retrieve_study=False,
    retrieve_series=False,
    study_metadata=False,
    metadata_resource=True,
    max_request_bytes=1_000_000_000,
    store_again="never",
    delete=None,
    comparison_level="pixels",
)

PROFILES: dict[str, ServerProfile] = {
    profile.name: profile for profile in (GENERIC, ORTHANC, DCM4CHEE, DICOMCLOUD, GOOGLE, AZURE, HEALTHIMAGING)
}
"""All profiles by name."""


def profile_for(url: str) -> ServerProfile:
    """The profile whose URL pattern the address matches, else ``generic``. Causes no traffic."""
    for profile in PROFILES.values():
        if profile.url_pattern is not None and re.match(profile.url_pattern, url, re.IGNORECASE):
            return profile
    return GENERIC


def resolve_profile(profile: str | ServerProfile, url: str) -> ServerProfile:
    """The profile that is meant: ``"auto"``, a name, or a profile itself.

    Raises:
        TypeError: If it is none of these.
        ValueError: If there is no profile of this name.
    """
    if isinstance(profile, ServerProfile):
        return profile
    if not isinstance(profile, str):
        raise TypeError(f"profile must be a name or a ServerProfile, not {type(profile).__name__}")
    if profile == "auto":
        return profile_for(url)
    if profile not in PROFILES:
        raise ValueError(f"there is no profile {profile!r} (known: auto, {', '.join(PROFILES)})")
    return PROFILES[profile]


@dataclass(frozen=True)
class Finding:
    """One thing that was asked of a server.

    Attributes:
        feature: What was asked, such as ``"search of all series"``.
        supported: Whether the server supports it; None if unknown, for example in an empty archive.
        detail: What came back, in a few words.
    """

    feature: str
    supported: bool | None
    detail: str


@dataclass(frozen=True)
class ProbeReport:
    """What a probe found.

    Attributes:
        profile: The profile to use: the one recognized, with the facts that were measured.
        recognized: Whether the server was recognized by what it answers rather than by its URL.
        findings: What was asked, in order.
    """

    profile: ServerProfile
    recognized: bool
    findings: tuple[Finding, ...]
