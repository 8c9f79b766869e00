"""What a search is: its arguments, checked before anything is sent, and the level that each attribute belongs to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from typing import Any

from dicomweb_io.dicom.attributes import DECIMAL_VRS, INTEGER_VRS, lookup_tag, resolve, vr_of
from dicomweb_io.dicom.matching import check_filter, selects
from dicomweb_io.dicom.uids import check_uid
from dicomweb_io.elements import LEVELS, JSONDataset, SearchLevel, SearchQuery
from dicomweb_io.errors import FilterError


def make_query(
    level: SearchLevel,
    study_instance_uid: str | None = None,
    series_instance_uid: str | None = None,
    *,
    fuzzymatching: bool | None = None,
    fields: Sequence[str] | None = None,
    search_filters: Mapping[str, Any] | Iterable[tuple[str, Any]] | None = None,
    additional_params: Mapping[str, Any] | None = None,
    permissive_uid: bool = False,
) -> SearchQuery:
    """Checks the arguments of a search and makes a query of them.

    Args:
        level: ``"study"``, ``"series"`` or ``"instance"``.
        study_instance_uid: Search in this study only.
        series_instance_uid: Search in this series only. Without its study it becomes a filter.
        fuzzymatching: Ask for fuzzy matching; None leaves it to the server.
        fields: Further attributes to return: keywords, 8-digit tags or dotted paths, or ``"all"``.
        search_filters: Attribute to value. Values are text, numbers, or lists of them (a UID list, or any of several
            values where the server supports it). An empty value is universal matching.
        additional_params: Further query parameters. A list repeats its name, None is left out.
        permissive_uid: See `dicomweb_io.dicom.uids.is_uid`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a keyword is unknown, a UID is not one, or a date or time is not spelled as DICOM does.
    """
    if study_instance_uid is not None:
        study_instance_uid = check_uid(study_instance_uid, "study_instance_uid", permissive=permissive_uid)
    if series_instance_uid is not None:
        series_instance_uid = check_uid(series_instance_uid, "series_instance_uid", permissive=permissive_uid)
    if fuzzymatching is not None and not isinstance(fuzzymatching, bool):
        raise TypeError(f"fuzzymatching must be a bool, not {type(fuzzymatching).__name__}")
    if isinstance(fields, str):
        raise TypeError("fields must be a sequence of keywords or tags, not one str")
    names = tuple(fields or ())
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"fields must be str, but one is {type(name).__name__}")
        if name != "all":
            resolve(name)
    items = search_filters.items() if isinstance(search_filters, Mapping) else tuple(search_filters or ())
    if isinstance(search_filters, str) or not all(isinstance(item, (tuple, list)) and len(item) == 2 for item in items):
        raise TypeError("search_filters must be a mapping of attribute to value, such as {'Modality': 'CT'}")
    filters = tuple((_filter_key(key), _filter_text(key, value)) for key, value in items)
    for key, text in filters:
        check_filter(key, text)
    if level == "instance" and series_instance_uid is not None and study_instance_uid is None:
        # There is no search resource of a series without its study (PS3.18 table 10.6.1-1).
        filters = (("SeriesInstanceUID", series_instance_uid), *filters)
        series_instance_uid = None
    params = tuple(pair for key, value in (additional_params or {}).items() for pair in _parameter(key, value))
    return SearchQuery(level, study_instance_uid, series_instance_uid, filters, names, fuzzymatching, params)


# Further parameters that are no conditions: they order or widen the answer.
_NO_CONDITIONS = frozenset(
    {"fuzzymatching", "includefield", "orderby", "emptyvaluematching", "multiplevaluematching", "includedefaults"}
)


def is_restricted(query: SearchQuery) -> bool:
    """Whether a query looks for less than everything: in a study or series, or by a value of at least one attribute.

    Further parameters count too, except those that only order or widen the answer.
    """
    return (
        query.study_instance_uid is not None
        or any(selects(text) for _, text in query.search_filters)
        or any(name.lower() not in _NO_CONDITIONS and text.strip(" *") for name, text in query.additional_params)
    )


def conditions(query: SearchQuery) -> tuple[tuple[str, str], ...]:
    """What rows have to match: the filters, and further parameters that name an attribute (repeated ones as a list)."""
    given: dict[str, list[str]] = {}
    for name, text in query.additional_params:
        if _is_attribute(name):
            given.setdefault(name, []).append(text)
    return (*query.search_filters, *((name, "\\".join(texts)) for name, texts in given.items()))


def other_conditions(query: SearchQuery) -> tuple[str, ...]:
    """The further parameters that may be conditions of the server's own, such as times of reception."""
    names = dict.fromkeys(name for name, _ in query.additional_params)
    return tuple(name for name in names if name.lower() not in _NO_CONDITIONS and not _is_attribute(name))


def _is_attribute(name: str) -> bool:
    try:
        resolve(name)
    except ValueError:
        return False
    return True


def check_limits(limit: int | None, offset: int | None, page_size: int | None = None) -> None:
    """Checks the limit and offset of a search, and the rows that it asks for at once.

    Raises:
        TypeError: If one is not an integer.
        ValueError: If one is negative, or the page size is not a positive integer.
    """
    if page_size is not None and (not isinstance(page_size, int) or isinstance(page_size, bool) or page_size < 1):
        raise ValueError(f"page_size must be a positive integer or None, not {page_size!r}")
    for name, value in (("limit", limit), ("offset", offset)):
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool):
            raise TypeError(f"{name} must be an int, not {type(value).__name__}")
        if value < 0:
            raise ValueError(f"{name} must be 0 or more, not {value}")


def _filter_key(key: object) -> str:
    if not isinstance(key, str):
        raise TypeError(f"the keys of search_filters must be str, but one is {type(key).__name__}")
    resolve(key)
    return key


def _parameter(key: object, value: object) -> list[tuple[str, str]]:
    if not isinstance(key, str):
        raise TypeError(f"the keys of additional_params must be str, but one is {type(key).__name__}")
    if key.lower() in ("limit", "offset"):
        raise ValueError(f"{key} is a separate argument and must not be in additional_params")
    values = value if isinstance(value, (list, tuple)) else (value,)
    return [(key, _text(key, item)) for item in values if item is not None]


def _filter_text(key: str, value: object) -> str:
    """One filter value as text; a list is joined by backslashes, DICOM's own separator of values."""
    values = value if isinstance(value, (list, tuple, set, frozenset)) else (value,)
    if any(isinstance(item, float) for item in values) and vr_of(resolve(key)[-1]) not in {*INTEGER_VRS, *DECIMAL_VRS}:
        # A table with an empty cell makes 123.0 of 123, and nan of the empty one.
        raise TypeError(f"the value of {key} must be text, not a float: read tables as text (dtype=str)")
    if isinstance(value, (list, tuple, set, frozenset)):
        parts = [_text(key, item) for item in (sorted(value) if isinstance(value, (set, frozenset)) else value)]
        if not parts:
            raise FilterError(f"the list for {key} in search_filters is empty: it would match everything")
        return "\\".join(parts)
    return _text(key, value)


def _text(key: object, value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (str, int, float)):
        return str(value)
    hint = " (a date is written YYYYMMDD, such as '20040131')" if isinstance(value, date) else ""
    raise TypeError(f"the value of {key} must be text, a number or a list of them, not {type(value).__name__}{hint}")


# Which attribute belongs to which level -------------------------------------------------------------------------------


def _tags(keywords: str) -> tuple[str, ...]:
    return tuple(lookup_tag(keyword) for keyword in keywords.split())


_STUDY_TAGS = frozenset(
    _tags(
        "StudyDate StudyTime AccessionNumber IssuerOfAccessionNumberSequence ModalitiesInStudy SOPClassesInStudy "
        "ReferringPhysicianName ReferringPhysicianIdentificationSequence ConsultingPhysicianName StudyDescription "
        "ProcedureCodeSequence PhysiciansOfRecord PhysiciansOfRecordIdentificationSequence "
        "NameOfPhysiciansReadingStudy AdmittingDiagnosesDescription AdmittingDiagnosesCodeSequence "
        "ReferencedStudySequence ReferencedPatientSequence StudyInstanceUID StudyID OtherStudyNumbers "
        "NumberOfPatientRelatedStudies NumberOfPatientRelatedSeries NumberOfPatientRelatedInstances "
        "NumberOfStudyRelatedSeries NumberOfStudyRelatedInstances"
    )
)
_STUDY_GROUPS = ("0010", "0032", "0038")
_SERIES_TAGS = frozenset(
    _tags(
        "SeriesDate SeriesTime Modality Manufacturer InstitutionName InstitutionAddress StationName SeriesDescription "
        "SeriesDescriptionCodeSequence InstitutionalDepartmentName PerformingPhysicianName OperatorsName "
        "ManufacturerModelName ReferencedPerformedProcedureStepSequence BodyPartExamined DeviceSerialNumber "
        "SoftwareVersions ProtocolName PatientPosition SeriesInstanceUID SeriesNumber FrameOfReferenceUID Laterality "
        "PositionReferenceIndicator NumberOfSeriesRelatedInstances PerformedProcedureStepStartDate "
        "PerformedProcedureStepStartTime PerformedProcedureStepID PerformedProcedureStepDescription "
        "PerformedProtocolCodeSequence RequestAttributesSequence"
    )
)


def level_of(attribute: str) -> SearchLevel:
    """The level that an attribute belongs to: ``"study"`` (and its patient), ``"series"``, else ``"instance"``.

    By the modules of composite objects (PS3.3 section A.1) and the keys of the query models (PS3.4 section C.6.2).

    Args:
        attribute: A keyword, 8-digit tag or dotted path; a path belongs to where it begins.
    """
    tag = resolve(attribute)[0]
    if tag in _STUDY_TAGS or tag[:4] in _STUDY_GROUPS:
        return "study"
    return "series" if tag in _SERIES_TAGS else "instance"


def apportion(query: SearchQuery) -> dict[SearchLevel, tuple[tuple[str, str], ...]]:
    """The filters of a query by the level that their attributes belong to, in order."""
    shares: dict[SearchLevel, list[tuple[str, str]]] = {level: [] for level in LEVELS}
    for key, value in query.search_filters:
        shares[level_of(key)].append((key, value))
    return {level: tuple(filters) for level, filters in shares.items()}


# What a search returns (PS3.18 section 10.6.3) ------------------------------------------------------------------------

MODALITY = "00080060"
INSTANCE_NUMBER = "00200013"
RETRIEVE_URL = "00081190"
INSTANCE_AVAILABILITY = "00080056"
MODALITIES_IN_STUDY = "00080061"
STUDY_RELATED_SERIES = "00201206"
STUDY_RELATED_INSTANCES = "00201208"
SERIES_RELATED_INSTANCES = "00201209"
TIMEZONE = "00080201"
CHARACTER_SET = "00080005"
AVAILABLE_TRANSFER_SYNTAX_UID = "00083002"

# Tables 10.6.3-3 to 10.6.3-5, without what is computed (see `COMPUTED`).
# SpecificCharacterSet is not among them: the text of DICOM JSON is UTF-8 whatever the file's encoding was.
STUDY_DEFAULTS = _tags(
    "StudyDate StudyTime AccessionNumber ReferringPhysicianName TimezoneOffsetFromUTC PatientName "
    "PatientID PatientBirthDate PatientSex StudyInstanceUID StudyID"
)
SERIES_DEFAULTS = _tags(
    "Modality TimezoneOffsetFromUTC SeriesDescription SeriesInstanceUID SeriesNumber "
    "PerformedProcedureStepStartDate PerformedProcedureStepStartTime RequestAttributesSequence"
)
INSTANCE_DEFAULTS = _tags(
    "SOPClassUID SOPInstanceUID TimezoneOffsetFromUTC InstanceNumber Rows Columns BitsAllocated NumberOfFrames"
)

REQUIRED: dict[SearchLevel, dict[str, JSONDataset]] = {
    "study": {tag: {"vr": vr_of(tag)} for tag in STUDY_DEFAULTS if tag != TIMEZONE},
    "series": {tag: {"vr": vr_of(tag)} for tag in _tags("Modality SeriesNumber")},
    "instance": {tag: {"vr": vr_of(tag)} for tag in _tags("SOPClassUID InstanceNumber")},
}
"""Empty elements of attributes that every row has (type R there), whether they are known or not."""

DEFAULTS: dict[SearchLevel, tuple[str, ...]] = {
    "study": STUDY_DEFAULTS,
    "series": SERIES_DEFAULTS,
    "instance": INSTANCE_DEFAULTS,
}
"""What rows of each level have without being asked."""

COMPUTED: dict[SearchLevel, frozenset[str]] = {
    "study": frozenset(
        (MODALITIES_IN_STUDY, STUDY_RELATED_SERIES, STUDY_RELATED_INSTANCES, INSTANCE_AVAILABILITY, RETRIEVE_URL)
    ),
    "series": frozenset((SERIES_RELATED_INSTANCES, RETRIEVE_URL)),
    "instance": frozenset((INSTANCE_AVAILABILITY, RETRIEVE_URL, AVAILABLE_TRANSFER_SYNTAX_UID)),
}
"""Attributes that are computed from the folder."""


def matching_level(tag: str, target: SearchLevel) -> SearchLevel:
    """The level whose dataset a filter is compared with in a search for `target`.

    Attributes of a study or series are compared once, with the instance that represents it; everything else with the
    objects that are searched for.
    """
    level = level_of(tag)
    return level if LEVELS.index(level) < LEVELS.index(target) else target


def is_returnable(tag: str, target: SearchLevel) -> bool:
    """Whether ``includefield`` of an attribute has an effect: attributes of lower levels are not returned."""
    return (
        LEVELS.index(level_of(tag)) <= LEVELS.index(target)
        or tag in (TIMEZONE, CHARACTER_SET)
        or tag in COMPUTED[target]
    )


def fields_of_all(tags: Iterable[str], target: SearchLevel) -> list[str]:
    """The attributes that ``includefield=all`` adds at a level, out of those that the dataset has.

    Bulk data of binary representations is left out: metadata and bulk data resources are made for it.
    """
    binary = ("OB", "OD", "OF", "OL", "OV", "OW", "UN")
    if target == "instance":
        return [tag for tag in tags if vr_of(tag) not in binary]
    wanted = ("study",) if target == "study" else ("study", "series")
    return [tag for tag in tags if level_of(tag) in wanted and vr_of(tag) not in binary]
