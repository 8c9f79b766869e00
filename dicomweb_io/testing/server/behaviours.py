"""The behaviour of known servers by name, each fact with its evidence.

The facts are written from what the servers and their documents show, not from what a client expects: a wrong belief of
the client must not be confirmed by its own test server. Facts marked ``"unverified"`` are guesses to be checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from dicomweb_io.testing.server.behaviour import (
    Behaviour,
    Limits,
    behaviour,
    documented,
    measured,
    read_in_source,
    seen,
    unverified,
)

_ORTHANC = "Orthanc 1.10.1, DICOMweb plugin 1.7 (Debian bookworm)"
_PLUGIN = "orthanc-dicomweb, newer sources"
_ARC = "dcm4chee-arc-light at 674a8642 and its issues"
_CLOUD = "DICOMcloud at 0eb7773 and its issues"
_OTHER = "contrasts to Orthanc measured on another server"

_JSON = "application/dicom+json"
_XML = "application/dicom+xml"
_IMPLICIT = "1.2.840.10008.1.2"
_EXPLICIT = "1.2.840.10008.1.2.1"
_DEFLATED = "1.2.840.10008.1.2.1.99"
_RLE = "1.2.840.10008.1.2.5"
_JPEG_LS = "1.2.840.10008.1.2.4.80"
_JPEG_LS_LOSSY = "1.2.840.10008.1.2.4.81"
_JPEG_2000 = "1.2.840.10008.1.2.4.90"
_JPEG_2000_LOSSY = "1.2.840.10008.1.2.4.91"
_JPEG_2000_ALL = frozenset({_JPEG_2000, _JPEG_2000_LOSSY, "1.2.840.10008.1.2.4.92", "1.2.840.10008.1.2.4.93"})

ORTHANC = behaviour(
    "orthanc",
    _ORTHANC,
    {
        "decodes_query": measured(False, f"{_ORTHANC}: '%2A', '%5E' and '+' are taken literally, raw UTF-8 is 400"),
        "counts": measured(False, _ORTHANC),
        "empty_status": measured(200, _ORTHANC),
        "past_end_status": measured(200, _ORTHANC),
        "unmatchable_status": measured(200, _ORTHANC),
        "limit_zero": measured("all", _ORTHANC),
        "limit_negative": measured(500, _ORTHANC),
        "more_warning": measured("never", _ORTHANC),
        "sequence_keys": measured("ignore", _ORTHANC),
        "lower_level_keys": measured("none", _ORTHANC),
        "uid_separators": measured(frozenset({","}), _ORTHANC),
        "value_separators": measured(frozenset({","}), _ORTHANC),
        "ignore_case": measured(True, _ORTHANC),
        "fuzzy": measured("literal", _ORTHANC),
        "search_unacceptable": measured("json", _ORTHANC),
        "xml_search_multipart": measured(True, _ORTHANC),
        "unsupported_syntax": measured(400, _ORTHANC),
        "undecodable": measured(500, _ORTHANC),
        "transcoding": measured(
            frozenset({_EXPLICIT, _IMPLICIT, _DEFLATED, _JPEG_LS}),
            f"{_ORTHANC}; Big Endian, JPEG Baseline and JPEG Lossless too, which this server cannot write",
        ),
        "refused_syntaxes": measured(
            MappingProxyType(dict.fromkeys((_JPEG_2000, _JPEG_2000_LOSSY, _RLE, _JPEG_LS_LOSSY), 500)), _ORTHANC
        ),
        "undecodable_syntaxes": measured(_JPEG_2000_ALL, f"{_ORTHANC}: no codec for JPEG 2000"),
        "single_part": measured(False, _ORTHANC),
        "unacceptable": measured(400, _ORTHANC),
        "accepts_alternatives": measured(False, _ORTHANC),
        "plain_json": measured(False, _ORTHANC),
        "undated_before": measured(True, _ORTHANC),
        "quoted_boundary": measured(False, _ORTHANC),
        "part_headers": measured(("length", "mime"), _ORTHANC),
        "part_syntax": measured(False, _ORTHANC),
        "root_syntax": measured(True, f'{_ORTHANC}: type="image/jpeg; transfer-syntax=1.2.840.10008.1.2.4.50"'),
        "close_delimited": measured(True, _ORTHANC),
        "metadata_syntax": measured(False, _ORTHANC),
        "frames_missing": measured(400, _ORTHANC),
        "rendered_types": measured(("image/jpeg", "image/png"), _ORTHANC),
        "thumbnails": measured(False, _ORTHANC),
        "store_types": measured(frozenset({"multipart"}), _ORTHANC),
        "store_gzip": measured("swallowed", _ORTHANC),
        "store_empty": measured(200, _ORTHANC),
        "store_some": measured(400, _ORTHANC),
        "store_none": measured(400, _ORTHANC),
        "garbage_status": measured(400, _ORTHANC),
        "garbage": measured("nowhere", _ORTHANC),
        "missing_uids_reason": measured(0xC000, _ORTHANC),
        "wrong_study_reason": measured(0x0110, _ORTHANC),
        "other_again": measured("keep_old", _ORTHANC),
        "empty_failed_sequence": measured(True, _ORTHANC),
        "deletes": measured(frozenset(), _ORTHANC),
        "head": measured(False, _ORTHANC),
        "gzip": measured(True, _ORTHANC),
        "error_style": measured("orthanc", _ORTHANC),
        "keep_alive": measured(1, _ORTHANC),
        "all_fields": measured(False, _ORTHANC),
        "character_set": measured("ISO_IR 192", f"{_ORTHANC} with DefaultEncoding Utf8; by default ISO_IR 100"),
        "boundary_length": measured(70, _ORTHANC),
        "frame_headers": measured(("location", "length", "mime"), _ORTHANC),
        "frame_syntax": measured(True, _ORTHANC),
        "frames_without_pixels": measured(500, _ORTHANC),
        "metadata_compressed": measured(False, _ORTHANC),
        "bulkdata_segment": measured("bulk", _ORTHANC),
        "bulkdata_fragments": measured(True, _ORTHANC),
        "bulkdata_of_all": measured(True, _ORTHANC),
        "bulkdata_levels": measured(False, _ORTHANC),
        "byte_ranges": measured(False, _ORTHANC),
        "rendered_parameters": measured(frozenset({"window", "viewport", "quality"}), _ORTHANC),
        "rendered_window_of_three": measured(True, _ORTHANC),
        "unrenderable": measured(400, _ORTHANC),
        "feed": measured("orthanc", _ORTHANC),
        "options": measured(404, _ORTHANC),
        "keep_alive_header": measured(True, _ORTHANC),
    },
    gaps=(
        "frames as image/jpeg are transcoded to JPEG Lossless there, and 400 here",
        "decoded frames of YBR images are RGB there, and as the image says here",
        "big-endian frames with transfer-syntax=* are 500 there, and little-endian octets here",
        "metadata there have DS and IS values as numbers of the text as it is, and no InlineBinary",
        "of its native interface there are here: /changes, /tools/lookup, /tools/bulk-content, /system, and the "
        "studies, series and instances with their deletion, simplified tags, file and md5",
    ),
)

ORTHANC_NEWER = behaviour(
    "orthanc-newer",
    "Newer releases of Orthanc's DICOMweb plugin, by their source",
    {
        "limit_negative": read_in_source("all", _PLUGIN),
        "study_modality": read_in_source(True, f"{_PLUGIN}: Modality searches studies as ModalitiesInStudy"),
        "lower_level_keys": unverified("none", f"{_PLUGIN}: of other lower-level attributes"),
        "accepts_alternatives": read_in_source(True, _PLUGIN),
        "xml_search_multipart": read_in_source(False, _PLUGIN),
        "search_unacceptable": unverified("json", _PLUGIN),
        "metadata_compressed": read_in_source(True, _PLUGIN),
        "thumbnails": read_in_source(True, _PLUGIN),
        "empty_failed_sequence": read_in_source(False, _PLUGIN),
        "error_style": read_in_source("text", f"{_PLUGIN}: text/plain, failed stores too"),
        "gzip": read_in_source(False, f"{_PLUGIN}: unless configured"),
        "store_some": read_in_source(202, _PLUGIN),
        "garbage_status": unverified(None, _PLUGIN),
    },
    based_on=ORTHANC,
    same_release=False,
    gaps=("paging with tags that are not kept as main DICOM tags is 400 there", "A700H when its storage is full"),
)

DCM4CHEE = behaviour(
    "dcm4chee",
    "dcm4chee-arc-light",
    {
        "root": documented("/dcm4chee-arc/aets/DCM4CHEE/rs", _ARC),
        "default_limit": read_in_source(Limits(1000, 1000, 1000), f"{_ARC}: dcmQidoMaxNumberOfResults"),
        "max_limit": read_in_source(Limits(1000, 1000, 1000), f"{_ARC}: dcmQidoMaxNumberOfResults"),
        "limit_zero": read_in_source(400, _ARC),
        "limit_negative": read_in_source(400, _ARC),
        "limit_refused": read_in_source(99_999, _ARC),
        "max_offset": read_in_source(99_999, _ARC),
        "empty_status": read_in_source(204, _ARC),
        "past_end_status": read_in_source(204, _ARC),
        "unmatchable_status": seen(200, "dcm4chee-arc-light #477: 200 [] where a query cannot match"),
        "store_warning": read_in_source(True, _ARC),
        "more_warning": read_in_source("server limit", _ARC),
        "value_separators": read_in_source(frozenset({","}), f"{_ARC}: splits at raw commas before percent-decoding"),
        "uid_separators": read_in_source(frozenset({","}), f"{_ARC}: splits at raw commas before percent-decoding"),
        "own_parameters": read_in_source(
            frozenset({"orderby", "includedefaults", "modified", "incomplete", "onlyWithStudies", "StudySizeInKB"}),
            _ARC,
        ),
        "unknown_key": unverified(400, f"{_ARC}: an exception, 400 or 500"),
        "single_part": read_in_source(False, f"{_ARC}: multipart or zip only"),
        "unsupported_syntax": read_in_source(406, _ARC),
        "frames_missing": read_in_source("drop", _ARC),
        "other_again": read_in_source(
            "keep_old", f"{_ARC}: another source's duplicate is ignored yet reported stored, #3469"
        ),
        "kept": read_in_source("pixels", f"{_ARC}: attributes of the database are merged into what is served"),
        "max_body": unverified(None, _ARC),
        "fuzzy": read_in_source("soundex", _ARC),
        "search_types": read_in_source((_JSON, _XML), f"{_ARC}; also CSV"),
        "receive_times": read_in_source(True, _ARC),
        "partial": read_in_source(True, f"{_ARC}: some 206 with Warning 299"),
        "metadata_parameters": read_in_source(True, f"{_ARC}: includefield, excludeprivate"),
        "bulkdata_levels": read_in_source(True, f"{_ARC}: /bulkdata and /pixeldata at every level"),
        "byte_ranges": read_in_source(True, f"{_ARC}: Accept-Ranges"),
        "frames_without_pixels": read_in_source(404, _ARC),
    },
    gaps=(
        "stores of metadata as XML or JSON with bulk data are 415 here",
        "attribute sets that includefield may name by a name of their own are configured, and unknown attributes here",
        "the source of a duplicate decides there whether it overwrites; here all come from another source",
        "403 for a role that may not use the AE title, 410 for inaccessible objects, UPS-RS",
        "searches as CSV, /studies/size, objects as ZIP, ETags, rejection of objects",
    ),
)

DCM4CHEE_OLDER = behaviour(
    "dcm4chee-older",
    "Older dcm4chee builds: rows in no order unless orderby is given, short pages although rows remain",
    {
        "order": seen("undefined", "dcm4chee-arc-light #4796: paging without orderby could miss rows"),
        "short_page": seen(2, "dcm4chee-arc-light #418, #18: rejected studies were removed after LIMIT"),
    },
    based_on=DCM4CHEE,
)

DICOMCLOUD = behaviour(
    "dicomcloud",
    "DICOMcloud",
    {
        "root": read_in_source("", _CLOUD),
        "qido_prefix": read_in_source("qidors", _CLOUD),
        "wado_prefix": read_in_source("wadors", _CLOUD),
        "stow_prefix": read_in_source("stowrs", _CLOUD),
        "delete_prefix": read_in_source("delowrs", _CLOUD),
        "default_limit": read_in_source(Limits(12, 12, 12), _CLOUD),
        "max_limit": read_in_source(Limits(12, 12, 12), _CLOUD),
        "counts": read_in_source(False, _CLOUD),
        "empty_status": read_in_source(200, _CLOUD),
        "past_end_status": read_in_source(200, _CLOUD),
        "unmatchable_status": read_in_source(200, _CLOUD),
        "total_header": read_in_source(True, _CLOUD),
        "link_header": read_in_source(True, _CLOUD),
        "unknown_key": read_in_source(500, _CLOUD),
        "tag_keys": read_in_source(False, f"{_CLOUD}: keywords only"),
        "fuzzy": read_in_source("literal", f"{_CLOUD}: 'always supported'"),
        "includefield": read_in_source("everything", _CLOUD),
        "default_syntax": read_in_source("stored", f"{_CLOUD}: stored renditions"),
        "star_syntax": read_in_source(False, _CLOUD),
        "unsupported_syntax": unverified(406, _CLOUD),
        "single_part": read_in_source(False, f"{_CLOUD}: by WADO-URI only"),
        "part_headers": read_in_source((), f"{_CLOUD}: bulk data without Content-Location"),
        "store_types": read_in_source(frozenset({"multipart"}), _CLOUD),
        "max_body": read_in_source(100 * 1024 * 1024, f"{_CLOUD}: IIS setting"),
        "garbage_reason": read_in_source(0x0110, f"{_CLOUD}: always 272"),
        "missing_uids_reason": read_in_source(0x0110, f"{_CLOUD}: always 272"),
        "same_again": read_in_source("refused", f"{_CLOUD}: 409 already exists"),
        "kept": read_in_source("anonymized", f"{_CLOUD}: by default"),
        "reason_phrase": read_in_source(True, f"{_CLOUD}: the text stands in the reason phrase"),
        "byte_ranges": unverified(False, _CLOUD),
        "bulkdata_levels": unverified(False, _CLOUD),
    },
    gaps=(
        "stores of metadata as XML or JSON with bulk data are 415 here",
        "WADO-URI, by which alone a single object comes without parts",
    ),
)

DICOMCLOUD_API = behaviour(
    "dicomcloud-api",
    "DICOMcloud in its other layout, with one prefix for everything",
    {
        "root": read_in_source("/api", _CLOUD),
        "qido_prefix": read_in_source("", _CLOUD),
        "wado_prefix": read_in_source("", _CLOUD),
        "stow_prefix": read_in_source("", _CLOUD),
        "delete_prefix": read_in_source("", _CLOUD),
    },
    based_on=DICOMCLOUD,
)

DICOMCLOUD_SHORT = behaviour(
    "dicomcloud-short-pages",
    "Older DICOMcloud builds, whose pages are short although rows remain",
    {"short_page": seen(2, "DICOMcloud #25")},
    based_on=DICOMCLOUD,
)

DICOMCLOUD_OLDER = behaviour(
    "dicomcloud-older",
    "Older DICOMcloud builds, whose store answers name stored instances in another sequence, and one failure only",
    {
        "stored_sequence": seen("0008114A", "DICOMcloud #43: ReferencedInstanceSequence"),
        "one_failure": seen(True, "DICOMcloud #15"),
    },
    based_on=DICOMCLOUD,
)

STRICT = behaviour(
    "strict",
    "A small server that differs from Orthanc wherever it can",
    {
        "bulkdata_levels": measured(False, _OTHER),
        "byte_ranges": measured(False, _OTHER),
        "searches": measured(frozenset({"studies", "studies/series", "studies/series/instances"}), _OTHER),
        "counts": unverified(False, _OTHER),
        "limit_zero": measured("one", _OTHER),
        "limit_negative": measured("one", _OTHER),
        "more_warning": unverified("never", _OTHER),
        "tag_keys": measured(False, _OTHER),
        "includefield": measured("ignored", _OTHER),
        "uid_separators": measured(frozenset(), _OTHER),
        "wildcards": measured(False, _OTHER),
        "person_names": measured("substring", _OTHER),
        "fuzzy": unverified("literal", _OTHER),
        "search_types": measured((_JSON,), _OTHER),
        "transcoding": measured(frozenset(), f"{_OTHER}: no transcoding"),
        "default_syntax": measured("stored", _OTHER),
        "any_is_single": measured(True, _OTHER),
        "part_headers": measured((), _OTHER),
        "part_syntax": measured(False, _OTHER),
        "known_length": measured("never", _OTHER),
        "metadata": measured(False, _OTHER),
        "metadata_types": measured((_JSON,), _OTHER),
        "frames": measured(False, _OTHER),
        "bulkdata": measured(False, _OTHER),
        "rendered": measured(frozenset(), _OTHER),
        "thumbnails": measured(False, _OTHER),
        "store_types": measured(frozenset({"multipart"}), _OTHER),
        "store_gzip": measured(400, _OTHER),
        "store_empty": measured(400, _OTHER),
        "garbage": measured("failed", _OTHER),
        "max_body": measured(64 * 1024 * 1024, _OTHER),
        "same_again": measured("refused", _OTHER),
        "store_response_types": unverified((_JSON,), _OTHER),
    },
)

OFFSET_IGNORED = behaviour(
    "offset-ignored",
    "A server that ignores offset: every page is the first",
    {
        "offset": seen(False, "dcmjs-org/dicomweb-server #19"),
        "default_limit": unverified(Limits(10, 10, 10), "dcmjs-org/dicomweb-server #19"),
    },
)

_GOOGLE = "Google Cloud Healthcare API: quotas and DICOM pages, issues of its adapter and samples"
_AZURE = "Azure DICOM service conformance statement v2"
_AWS = "AWS HealthImaging guide"


GOOGLE = behaviour(
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
        "a limit of frames in a request: clients keep to 400, and whether more are refused is open",
        "the limits of frames (150 MB to transcode, 50 MB to render) and the 30 minutes after which requests end",
        "notifications by Pub/Sub: `dicomweb_io.transforms.ParseNotifications` reads them",
    ),
)

GOOGLE_LAGGING = behaviour(
    "google-lagging",
    "Google Cloud Healthcare API at a moment when its searches lag behind",
    {"delete_lag": seen(2.0, "rows may lag some seconds behind a delete; how many is unverified")},
    based_on=GOOGLE,
)

AZURE = behaviour(
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
        "extended query tags: make a behaviour of your own with more `searchable` keywords",
        "store results 424 and 503, reasons 45071 (pending) and 45063, ETags of metadata and objects",
        "the feed tells of an update nowhere, as nothing updates attributes",
    ),
)

HEALTHIMAGING = behaviour(
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

GENERIC = Behaviour("generic", "What PS3.18 says, and nothing else")

BEHAVIOURS: Mapping[str, Behaviour] = MappingProxyType(
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
"""The behaviour of today's servers by name."""

VARIANTS: Mapping[str, Behaviour] = MappingProxyType(
    {one.name: one for one in (ORTHANC_NEWER, DCM4CHEE_OLDER, DICOMCLOUD_OLDER, GOOGLE_LAGGING)}
)
"""Other releases of the same servers: those whose faults were corrected since, or that were only read in source."""


def behaviour_of(value: str | Behaviour) -> Behaviour:
    """The behaviour of a name, or the behaviour that is given.

    Raises:
        ValueError: If no behaviour has this name.
    """
    if isinstance(value, Behaviour):
        return value
    found = BEHAVIOURS.get(value) or VARIANTS.get(value)
    if found is None:
        raise ValueError(f"there is no behaviour {value!r}; there are: {', '.join([*BEHAVIOURS, *VARIANTS])}")
    return found
