"""The manners of known servers, each fact with its evidence.

Written from what the servers and their documents show, not from what a client expects: a wrong belief of the client
must not be confirmed by its own test server. Facts marked ``"unverified"`` are guesses to be checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from dicomweb_io.testing.manners_model import Evidence, Fact, Limits, Manners, manners

_ORTHANC = "Orthanc 1.10.1, DICOMweb plugin 1.7 (Debian bookworm)"
_ARC = "dcm4chee-arc-light at 674a8642 and its issues"
_CLOUD = "DICOMcloud at 0eb7773 and its issues"
_GOOGLE = "Google Cloud Healthcare API: quotas and DICOM pages, issues of its adapter and samples"
_AZURE = "Azure DICOM service conformance statement v2"
_AWS = "AWS HealthImaging guide"
_OTHER = "contrasts to Orthanc measured on another server"

_JSON = "application/dicom+json"
_XML = "application/dicom+xml"
_EXPLICIT = "1.2.840.10008.1.2.1"
_JPEG_2000 = "1.2.840.10008.1.2.4.90"


def _measured(value: object, source: str = _ORTHANC) -> Fact:
    return Fact(value, "measured", source)


def _source(value: object, source: str) -> Fact:
    return Fact(value, "read in source", source)


def _documented(value: object, source: str) -> Fact:
    return Fact(value, "documented", source)


def _seen(value: object, source: str) -> Fact:
    return Fact(value, "seen", source)


def _unverified(value: object, source: str) -> Fact:
    return Fact(value, "unverified", source)


GENERIC = Manners("generic", "What PS3.18 says, and nothing else")

ORTHANC = manners(
    "orthanc",
    _ORTHANC,
    {
        "decodes_query": _measured(False, f"{_ORTHANC}: '%2A', '%5E' and '+' are taken literally, raw UTF-8 is 400"),
        "counts": _measured(False),
        "empty_status": _measured(200),
        "past_end_status": _measured(200),
        "unmatchable_status": _measured(200),
        "limit_zero": _measured("all"),
        "limit_negative": _measured(500),
        "more_warning": _measured("never"),
        "sequence_keys": _measured("ignore"),
        "lower_level_keys": _measured("none"),
        "uid_separators": _measured(frozenset({","})),
        "value_separators": _measured(frozenset({","})),
        "ignore_case": _measured(True),
        "fuzzy": _measured("literal"),
        "search_unacceptable": _measured("json"),
        "xml_search_multipart": _measured(True),
        "unsupported_syntax": _measured(400),
        "undecodable": _measured(500),
        "transcoding": _measured(frozenset({_EXPLICIT})),
        "single_part": _measured(False),
        "unacceptable": _measured(400),
        "accepts_alternatives": _measured(False),
        "plain_json": _measured(False),
        "undated_before": _measured(True),
        "quoted_boundary": _measured(False),
        "part_headers": _measured(("length", "mime")),
        "part_syntax": _measured(False),
        "root_syntax": _measured(True, f'{_ORTHANC}: type="image/jpeg; transfer-syntax=1.2.840.10008.1.2.4.50"'),
        "close_delimited": _measured(True),
        "metadata_syntax": _measured(False),
        "frames_missing": _measured(400),
        "rendered_types": _measured(("image/jpeg", "image/png")),
        "thumbnails": _measured(False),
        "store_types": _measured(frozenset({"multipart"})),
        "store_gzip": _measured("swallowed"),
        "store_empty": _measured(200),
        "store_some": _measured(400),
        "store_none": _measured(400),
        "garbage_status": _measured(400),
        "garbage": _measured("nowhere"),
        "missing_uids_reason": _measured(0xC000),
        "wrong_study_reason": _measured(0x0110),
        "other_again": _measured("keep_old"),
        "empty_failed_sequence": _measured(True),
        "deletes": _measured(frozenset()),
        "head": _measured(False),
        "gzip": _measured(True),
        "error_style": _measured("orthanc"),
        "keep_alive": _measured(1),
    },
)

DCM4CHEE = manners(
    "dcm4chee",
    "dcm4chee-arc-light",
    {
        "root": _documented("/dcm4chee-arc/aets/DCM4CHEE/rs", _ARC),
        "default_limit": _source(Limits(1000, 1000, 1000), f"{_ARC}: dcmQidoMaxNumberOfResults"),
        "max_limit": _source(Limits(1000, 1000, 1000), f"{_ARC}: dcmQidoMaxNumberOfResults"),
        "limit_zero": _source(400, _ARC),
        "limit_negative": _source(400, _ARC),
        "max_offset": _source(99_999, _ARC),
        "empty_status": _source(204, _ARC),
        "past_end_status": _source(204, _ARC),
        "unmatchable_status": _seen(200, "dcm4chee-arc-light #477: 200 [] where a query cannot match"),
        "store_warning": _source(True, _ARC),
        "more_warning": _source("server limit", _ARC),
        "value_separators": _source(frozenset({","}), f"{_ARC}: splits at raw commas before percent-decoding"),
        "uid_separators": _source(frozenset({","}), f"{_ARC}: splits at raw commas before percent-decoding"),
        "own_parameters": _source(
            frozenset({"orderby", "includedefaults", "modified", "incomplete", "onlyWithStudies", "StudySizeInKB"}),
            _ARC,
        ),
        "unknown_key": _unverified(400, f"{_ARC}: an exception, 400 or 500"),
        "single_part": _source(False, f"{_ARC}: multipart or zip only"),
        "unsupported_syntax": _source(406, _ARC),
        "frames_missing": _source("drop", _ARC),
        "etags": _source(True, _ARC),
        "other_again": _source("keep_old", f"{_ARC}: another source's duplicate is ignored yet reported stored, #3469"),
        "kept": _source("pixels", f"{_ARC}: attributes of the database are merged into what is served"),
        "max_body": _unverified(None, _ARC),
    },
)

DICOMCLOUD = manners(
    "dicomcloud",
    "DICOMcloud",
    {
        "root": _source("", _CLOUD),
        "qido_prefix": _source("qidors", _CLOUD),
        "wado_prefix": _source("wadors", _CLOUD),
        "stow_prefix": _source("stowrs", _CLOUD),
        "delete_prefix": _source("delowrs", _CLOUD),
        "default_limit": _source(Limits(12, 12, 12), _CLOUD),
        "max_limit": _source(Limits(12, 12, 12), _CLOUD),
        "counts": _source(False, _CLOUD),
        "empty_status": _source(200, _CLOUD),
        "past_end_status": _source(200, _CLOUD),
        "unmatchable_status": _source(200, _CLOUD),
        "total_header": _source(True, _CLOUD),
        "link_header": _source(True, _CLOUD),
        "unknown_key": _source(500, _CLOUD),
        "tag_keys": _source(True, f"{_CLOUD}: keyword or tag, not 'group element'"),
        "fuzzy": _source("literal", f"{_CLOUD}: 'always supported'"),
        "includefield": _source("everything", _CLOUD),
        "default_syntax": _source("stored", f"{_CLOUD}: stored renditions"),
        "star_syntax": _source(False, _CLOUD),
        "unsupported_syntax": _unverified(406, _CLOUD),
        "single_part": _source(False, f"{_CLOUD}: by WADO-URI only"),
        "part_headers": _source((), f"{_CLOUD}: bulk data without Content-Location"),
        "store_types": _source(frozenset({"multipart"}), _CLOUD),
        "max_body": _source(100 * 1024 * 1024, f"{_CLOUD}: IIS setting"),
        "garbage_reason": _source(0x0110, f"{_CLOUD}: always 272"),
        "missing_uids_reason": _source(0x0110, f"{_CLOUD}: always 272"),
        "same_again": _source("refused", f"{_CLOUD}: 409 already exists"),
        "kept": _source("anonymized", f"{_CLOUD}: by default"),
    },
)

DICOMCLOUD_SHORT = manners(
    "dicomcloud-short-pages",
    "Older DICOMcloud builds, whose pages are short although rows remain",
    {"short_page": _seen(2, "DICOMcloud #25")},
    based_on=DICOMCLOUD,
)

GOOGLE = manners(
    "google",
    "Google Cloud Healthcare API",
    {
        "root": _documented("/v1/projects/P/locations/L/datasets/D/dicomStores/S/dicomWeb", _GOOGLE),
        "default_limit": _documented(Limits(100, 100, 1000), f"{_GOOGLE}; series 100 or 1,000 unverified"),
        "max_limit": _documented(Limits(5000, 5000, 50_000), _GOOGLE),
        "over_limit": _unverified("clamp", _GOOGLE),
        "max_offset": _documented(1_000_000, _GOOGLE),
        "counts": _documented(False, _GOOGLE),
        "more_warning": _seen("never", "Weasis #653, dicom-fuse #27"),
        "empty_status": _unverified(204, "204 in practice"),
        "past_end_status": _unverified(204, "204 in practice"),
        "order": _unverified("archive", _GOOGLE),
        "fuzzy": _documented("prefix", _GOOGLE),
        "unknown_key": _seen(400, "wsidicom #141, #149: a SOPClassUID filter was answered 400"),
        "unsupported_syntax": _unverified(406, _GOOGLE),
        "frames_limit": _unverified(
            None, "clients keep to 400 frames a request; that it is the server's limit is open"
        ),
        "rendered": _documented(frozenset({"instance", "frame"}), _GOOGLE),
        "thumbnails": _documented(False, _GOOGLE),
        "transcoding_limit": _documented(1024**3, f"{_GOOGLE}: file up to 1 GB"),
        "store_response": _seen(_XML, "dcmjs #249: XML unless JSON is asked for"),
        "store_some": _unverified(202, _GOOGLE),
        "other_again": _seen("refused", "its adapter deletes and retries on 409; dicom-fuse #20"),
        "failure_detail": _documented("private", f"{_GOOGLE}: (0009,0097) of creator GOOGLE"),
        "upsert": _documented(True, f"{_GOOGLE}: updateInstances, beta"),
        "deletes": _documented(frozenset({"study", "series", "instance"}), _GOOGLE),
        "error_style": _unverified("json", _GOOGLE),
        "kept": _unverified("file", _GOOGLE),
    },
)

AZURE = manners(
    "azure",
    "Azure DICOM service",
    {
        "root": _documented("/v2", _AZURE),
        "default_limit": _documented(Limits(100, 100, 100), _AZURE),
        "max_limit": _documented(Limits(200, 200, 200), _AZURE),
        "over_limit": _documented(400, _AZURE),
        "counts": _documented(False, _AZURE),
        "more_warning": _documented("never", _AZURE),
        "order": _documented("newest", f"{_AZURE}: rows may repeat across pages while data arrives"),
        "wildcards": _documented(False, _AZURE),
        "ignore_case": _documented(True, _AZURE),
        "searchable": _documented(
            frozenset(
                {
                    "StudyInstanceUID",
                    "PatientName",
                    "PatientID",
                    "PatientBirthDate",
                    "AccessionNumber",
                    "ReferringPhysicianName",
                    "StudyDate",
                    "StudyDescription",
                    "ModalitiesInStudy",
                    "SeriesInstanceUID",
                    "Modality",
                    "PerformedProcedureStepStartDate",
                    "ManufacturerModelName",
                    "SOPInstanceUID",
                }
            ),
            _AZURE,
        ),
        "unknown_key": _documented(400, _AZURE),
        "sequence_keys": _documented(400, _AZURE),
        "empty_value": _documented(400, _AZURE),
        "lower_level_keys": _documented(400, _AZURE),
        "fuzzy": _documented("prefix", f"{_AZURE}: prefix of any part of a name"),
        "search_types": _documented((_JSON,), f"{_AZURE}: JSON only, else 406"),
        "any_is_stored": _documented(True, _AZURE),
        "transcoding": _documented(frozenset({_EXPLICIT, _JPEG_2000}), _AZURE),
        "transcoding_limit": _source(100 * 1024 * 1024, "microsoft/dicom-server PR #1364"),
        "metadata_types": _documented((_JSON,), _AZURE),
        "metadata_bulkdata": _documented("omitted", f"{_AZURE}: no BulkDataURI, no bulk data resource"),
        "metadata_syntax": _unverified(True, _AZURE),
        "bulkdata": _documented(False, _AZURE),
        "rendered": _documented(frozenset({"instance", "frame"}), _AZURE),
        "rendered_types": _documented(("image/jpeg", "image/png"), _AZURE),
        "thumbnails": _documented(False, _AZURE),
        "etags": _documented(True, _AZURE),
        "max_body": _documented(4 * 1024**3, _AZURE),
        "store_empty": _documented(204, _AZURE),
        "garbage_reason": _documented(0x0110, _AZURE),
        "missing_uids_reason": _documented(43264, _AZURE),
        "wrong_study_reason": _documented(43265, _AZURE),
        "same_again": _documented("refused", f"{_AZURE}: 409, reason 45070"),
        "duplicate_reason": _documented(45070, _AZURE),
        "store_response_types": _documented((_JSON,), _AZURE),
        "failure_detail": _documented("attributes", f"{_AZURE}: (0074,1048) with ErrorComment"),
        "only_if_asked": _documented(frozenset({"NumberOfStudyRelatedInstances"}), _AZURE),
        "explicit_only": _documented(True, _AZURE),
        "kept": _documented("dataset", f"{_AZURE}: the preamble is zeroed"),
        "upsert": _documented(True, _AZURE),
        "error_style": _unverified("json", _AZURE),
    },
)

HEALTHIMAGING = manners(
    "healthimaging",
    "AWS HealthImaging",
    {
        "root": _documented("/datastore/00000000000000000000000000000000", _AWS),
        "searches": _documented(
            frozenset({"studies", "studies/series", "studies/series/instances"}),
            f"{_AWS}: instances are searched in a series only; flat forms unverified",
        ),
        "default_limit": _documented(Limits(1000, 1000, 1000), _AWS),
        "max_limit": _documented(Limits(1000, 1000, 1000), _AWS),
        "over_limit": _unverified(400, _AWS),
        "max_offset": _documented(1_000_000, f"{_AWS}; older text: 9,000"),
        "max_rows": _documented(10_000, f"{_AWS}: the rest is unreachable"),
        "counts": _documented(False, _AWS),
        "more_warning": _documented("never", _AWS),
        "empty_status": _unverified(200, _AWS),
        "past_end_status": _unverified(200, _AWS),
        "unmatchable_status": _unverified(200, _AWS),
        "order": _documented("updated and number", _AWS),
        "fuzzy": _documented("prefix", _AWS),
        "unknown_key": _unverified(400, f"{_AWS}: fixed key list per level"),
        "search_types": _documented((_JSON,), _AWS),
        "retrieves": _documented(frozenset({"instance"}), f"{_AWS}: no study or series object"),
        "default_syntax": _documented("stored", f"{_AWS}: stored or Explicit VR Little Endian"),
        "unsupported_syntax": _unverified(406, _AWS),
        "metadata_types": _documented((_JSON,), _AWS),
        "frames_unique": _documented(True, _AWS),
        "rendered": _documented(frozenset({"instance", "frame"}), _AWS),
        "thumbnails": _unverified(False, _AWS),
        "max_body": _documented(1024**3, _AWS),
        "store_some": _unverified(202, _AWS),
        "store_none": _unverified(409, _AWS),
        "other_again": _documented("hidden", f"{_AWS}: goes to a non-primary image set, invisible to searches"),
        "kept": _documented("pixels", f"{_AWS}: most lossless frames are recoded on import, pixels stay equal"),
        "deletes": _documented(frozenset(), f"{_AWS}: image-set API"),
        "rate_limit": _documented((50.0, 100), f"{_AWS}: 50 per second, burst 100"),
        "error_style": _unverified("json", _AWS),
    },
)

STRICT = manners(
    "strict",
    "A small server that differs from Orthanc wherever it can",
    {
        "searches": _measured(frozenset({"studies", "studies/series", "studies/series/instances"}), _OTHER),
        "counts": _unverified(False, _OTHER),
        "limit_zero": _measured("one", _OTHER),
        "limit_negative": _measured("one", _OTHER),
        "more_warning": _unverified("never", _OTHER),
        "tag_keys": _measured(False, _OTHER),
        "includefield": _measured("ignored", _OTHER),
        "uid_separators": _measured(frozenset(), _OTHER),
        "wildcards": _measured(False, _OTHER),
        "person_names": _measured("substring", _OTHER),
        "fuzzy": _unverified("literal", _OTHER),
        "search_types": _measured((_JSON,), _OTHER),
        "transcoding": _measured(frozenset(), f"{_OTHER}: no transcoding"),
        "default_syntax": _measured("stored", _OTHER),
        "any_is_single": _measured(True, _OTHER),
        "part_headers": _measured((), _OTHER),
        "part_syntax": _measured(False, _OTHER),
        "known_length": _measured("never", _OTHER),
        "metadata": _measured(False, _OTHER),
        "metadata_types": _measured((_JSON,), _OTHER),
        "frames": _measured(False, _OTHER),
        "bulkdata": _measured(False, _OTHER),
        "rendered": _measured(frozenset(), _OTHER),
        "thumbnails": _measured(False, _OTHER),
        "store_types": _measured(frozenset({"multipart"}), _OTHER),
        "store_gzip": _measured(400, _OTHER),
        "store_empty": _measured(400, _OTHER),
        "garbage": _measured("failed", _OTHER),
        "max_body": _measured(64 * 1024 * 1024, _OTHER),
        "same_again": _measured("refused", _OTHER),
        "store_response_types": _unverified((_JSON,), _OTHER),
    },
)

DICOMCLOUD_API = manners(
    "dicomcloud-api",
    "DICOMcloud in its other layout, with one prefix for everything",
    {
        "root": _source("/api", _CLOUD),
        "qido_prefix": _source("", _CLOUD),
        "wado_prefix": _source("", _CLOUD),
        "stow_prefix": _source("", _CLOUD),
        "delete_prefix": _source("", _CLOUD),
    },
    based_on=DICOMCLOUD,
)

OFFSET_IGNORED = manners(
    "offset-ignored",
    "A server that ignores offset: every page is the first",
    {
        "offset": _seen(False, "dcmjs-org/dicomweb-server #19"),
        "default_limit": _unverified(Limits(10, 10, 10), "dcmjs-org/dicomweb-server #19"),
    },
)

MANNERS: Mapping[str, Manners] = MappingProxyType(
    {
        one.name: one
        for one in (
            GENERIC,
            ORTHANC,
            DCM4CHEE,
            DICOMCLOUD,
            DICOMCLOUD_API,
            DICOMCLOUD_SHORT,
            GOOGLE,
            AZURE,
            HEALTHIMAGING,
            STRICT,
            OFFSET_IGNORED,
        )
    }
)
"""All manners by name."""


def manners_of(value: str | Manners) -> Manners:
    """The manners of a name, or the manners themselves.

    Raises:
        ValueError: If no manners have this name.
    """
    if isinstance(value, Manners):
        return value
    try:
        return MANNERS[value]
    except KeyError:
        raise ValueError(f"there are no manners {value!r}; there are: {', '.join(MANNERS)}") from None


def evidence_table() -> list[tuple[str, str, object, Evidence, str]]:
    """Every fact as a row of server, field, value, evidence and source, for documentation."""
    return [
        (one.name, name, fact.value, fact.evidence, fact.source)
        for one in MANNERS.values()
        for name, fact in one.facts.items()
    ]
