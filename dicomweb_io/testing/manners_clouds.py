"""The manners of cloud services, each fact with its evidence.

Written from what the servers and their documents show, not from what a client expects: a wrong belief of the client
must not be confirmed by its own test server. Facts marked ``"unverified"`` are guesses to be checked.
"""

from __future__ import annotations

from dicomweb_io.testing.manners_model import Limits, documented, manners, read_in_source, seen, unverified

_GOOGLE = "Google Cloud Healthcare API: quotas and DICOM pages, issues of its adapter and samples"
_AZURE = "Azure DICOM service conformance statement v2"
_AWS = "AWS HealthImaging guide"

_JSON = "application/dicom+json"
_XML = "application/dicom+xml"
_EXPLICIT = "1.2.840.10008.1.2.1"
_JPEG_2000 = "1.2.840.10008.1.2.4.90"

GOOGLE = manners(
    "google",
    "Google Cloud Healthcare API",
    {
        "root": documented("/v1/projects/P/locations/L/datasets/D/dicomStores/S/dicomWeb", _GOOGLE),
        "default_limit": documented(Limits(100, 100, 1000), f"{_GOOGLE}; series 100 or 1,000 unverified"),
        "max_limit": documented(Limits(5000, 5000, 50_000), _GOOGLE),
        "over_limit": unverified("clamp", _GOOGLE),
        "max_offset": documented(1_000_000, _GOOGLE),
        "counts": documented(False, _GOOGLE),
        "more_warning": seen("never", "Weasis #653, dicom-fuse #27"),
        "empty_status": unverified(204, "204 in practice"),
        "past_end_status": unverified(204, "204 in practice"),
        "order": unverified("archive", _GOOGLE),
        "fuzzy": documented("prefix", _GOOGLE),
        "unknown_key": unverified(400, f"{_GOOGLE}: the list of search attributes was not read"),
        "unsupported_syntax": unverified(406, _GOOGLE),
        "frames_limit": unverified(None, "clients keep to 400 frames a request; that it is the server's limit is open"),
        "rendered": documented(frozenset({"instance", "frame"}), _GOOGLE),
        "thumbnails": documented(False, _GOOGLE),
        "transcoding_limit": documented(1024**3, f"{_GOOGLE}: file up to 1 GB"),
        "store_response": seen(_XML, "dcmjs #249: XML unless JSON is asked for"),
        "store_some": unverified(202, _GOOGLE),
        "other_again": seen("refused", "its adapter deletes and retries on 409; dicom-fuse #20"),
        "failure_detail": documented("private", f"{_GOOGLE}: (0009,0097) of creator GOOGLE"),
        "upsert": documented(True, f"{_GOOGLE}: updateInstances, beta"),
        "deletes": documented(frozenset({"study", "series", "instance"}), _GOOGLE),
        "error_style": unverified("json", _GOOGLE),
        "kept": unverified("file", _GOOGLE),
        "refused_filters": seen(frozenset({"SOPClassUID"}), "wsidicom #141, #149: answered 400"),
        "refused_fields": seen(frozenset({"AvailableTransferSyntaxUID"}), "wsidicom #141, #149: answered 400"),
        "bulkdata_levels": unverified(False, _GOOGLE),
        "byte_ranges": unverified(False, _GOOGLE),
    },
    gaps=(
        "frames as PNG, and stores of JSON with JPEG",
        "the limits of frames (150 MB to transcode, 50 MB to render) and the 30 minutes after which requests end",
        "notifications by Pub/Sub: `dicomweb_io.transforms.ParseNotifications` reads them",
    ),
)

GOOGLE_LAGGING = manners(
    "google-lagging",
    "Google Cloud Healthcare API at a moment when its searches lag behind",
    {"delete_lag": seen(2.0, "rows may lag some seconds behind a delete; how many is unverified")},
    based_on=GOOGLE,
)

AZURE = manners(
    "azure",
    "Azure DICOM service",
    {
        "root": documented("/v2", _AZURE),
        "default_limit": documented(Limits(100, 100, 100), _AZURE),
        "max_limit": documented(Limits(200, 200, 200), _AZURE),
        "over_limit": documented(400, _AZURE),
        "counts": documented(False, _AZURE),
        "more_warning": documented("never", _AZURE),
        "order": documented("newest", f"{_AZURE}: rows may repeat across pages while data arrives"),
        "wildcards": documented(False, _AZURE),
        "ignore_case": documented(True, _AZURE),
        "searchable": documented(
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
        "unknown_key": documented(400, _AZURE),
        "sequence_keys": documented(400, _AZURE),
        "empty_value": documented(400, _AZURE),
        "lower_level_keys": documented(400, _AZURE),
        "fuzzy": documented("prefix", f"{_AZURE}: prefix of any part of a name"),
        "search_types": documented((_JSON,), f"{_AZURE}: JSON only, else 406"),
        "any_is_stored": documented(True, _AZURE),
        "transcoding": documented(frozenset({_EXPLICIT, _JPEG_2000}), _AZURE),
        "transcoding_limit": read_in_source(100 * 1024 * 1024, "microsoft/dicom-server PR #1364"),
        "metadata_types": documented((_JSON,), _AZURE),
        "metadata_bulkdata": documented("omitted", f"{_AZURE}: no BulkDataURI, no bulk data resource"),
        "metadata_syntax": unverified(True, _AZURE),
        "bulkdata": documented(False, _AZURE),
        "rendered": documented(frozenset({"instance", "frame"}), _AZURE),
        "rendered_types": documented(("image/jpeg", "image/png"), _AZURE),
        "thumbnails": documented(False, _AZURE),
        "etags": documented(True, _AZURE),
        "max_body": documented(4 * 1024**3, _AZURE),
        "store_empty": documented(204, _AZURE),
        "garbage_reason": documented(0x0110, _AZURE),
        "missing_uids_reason": documented(43264, _AZURE),
        "wrong_study_reason": documented(43265, _AZURE),
        "same_again": documented("refused", f"{_AZURE}: 409, reason 45070"),
        "duplicate_reason": documented(45070, _AZURE),
        "store_response_types": documented((_JSON,), _AZURE),
        "failure_detail": documented("attributes", f"{_AZURE}: (0074,1048) with ErrorComment"),
        "only_if_asked": documented(frozenset({"NumberOfStudyRelatedInstances"}), _AZURE),
        "explicit_only": documented(True, _AZURE),
        "kept": documented("dataset", f"{_AZURE}: the preamble is zeroed"),
        "upsert": documented(True, _AZURE),
        "error_style": unverified("json", _AZURE),
        "frame_types": documented(("application/octet-stream", "image/jp2"), _AZURE),
        "bulkdata_levels": documented(False, _AZURE),
        "rendered_parameters": documented(frozenset({"quality"}), _AZURE),
        "erroneous_header": documented(True, f"{_AZURE}: erroneous-dicom-attributes"),
        "invalid_value_warning": documented(1, f"{_AZURE}: stored with a warning, 202"),
        "feed": documented("azure", f"{_AZURE} and change feed"),
    },
    gaps=(
        "extended query tags: make manners of your own with more `searchable` keywords",
        "store results 424 and 503, reasons 45071 (pending) and 45063, ETags of objects",
        "the feed tells of an update nowhere, as nothing updates attributes",
    ),
)

HEALTHIMAGING = manners(
    "healthimaging",
    "AWS HealthImaging",
    {
        "root": documented("/datastore/00000000000000000000000000000000", _AWS),
        "searches": documented(
            frozenset({"studies", "studies/series", "studies/series/instances"}),
            f"{_AWS}: instances are searched in a series only; flat forms unverified",
        ),
        "default_limit": documented(Limits(1000, 1000, 1000), _AWS),
        "max_limit": documented(Limits(1000, 1000, 1000), _AWS),
        "over_limit": unverified(400, _AWS),
        "max_offset": documented(1_000_000, f"{_AWS}; older text: 9,000"),
        "max_rows": documented(10_000, f"{_AWS}: the rest is unreachable"),
        "counts": documented(False, _AWS),
        "more_warning": documented("never", _AWS),
        "empty_status": unverified(200, _AWS),
        "past_end_status": unverified(200, _AWS),
        "unmatchable_status": unverified(200, _AWS),
        "order": documented("updated and number", _AWS),
        "fuzzy": documented("prefix", _AWS),
        "unknown_key": unverified(400, f"{_AWS}: fixed key list per level"),
        "search_types": documented((_JSON,), _AWS),
        "retrieves": documented(frozenset({"instance"}), f"{_AWS}: no study or series object"),
        "default_syntax": documented("stored", f"{_AWS}: stored or Explicit VR Little Endian"),
        "unsupported_syntax": unverified(406, _AWS),
        "metadata_types": documented((_JSON,), _AWS),
        "frames_unique": documented(True, _AWS),
        "rendered": documented(frozenset({"instance", "frame"}), _AWS),
        "thumbnails": unverified(False, _AWS),
        "max_body": documented(1024**3, _AWS),
        "store_some": unverified(202, _AWS),
        "store_none": unverified(409, _AWS),
        "other_again": documented("hidden", f"{_AWS}: goes to a non-primary image set, invisible to searches"),
        "kept": documented("pixels", f"{_AWS}: most lossless frames are recoded on import, pixels stay equal"),
        "deletes": documented(frozenset(), f"{_AWS}: image-set API"),
        "rate_limit": documented((50.0, 100), f"{_AWS}: 50 per second, burst 100"),
        "error_style": unverified("json", _AWS),
        "max_fields": documented(50, f"{_AWS}; the status of more is unverified"),
        "bulkdata_levels": unverified(False, _AWS),
        "byte_ranges": unverified(False, _AWS),
    },
    gaps=(
        "the fixed list of search attributes: every known attribute can be searched here",
        "values up to 1 MB come inline there; here they have a BulkDataURI above 1 KiB",
        "frames keep their transfer syntax here; there most lossless ones become HTJ2K on import",
        "stores of metadata as JSON with bulk data, image-set API, EventBridge; 50 requests a second are for all",
    ),
)
