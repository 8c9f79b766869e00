"""Which attribute belongs to which level of the query model, and what a search returns (PS3.18 section 10.6.3)."""

from __future__ import annotations

from collections.abc import Iterable

from dicomweb_io.clients.queries import level_of
from dicomweb_io.dicom.attributes import lookup_tag, vr_of
from dicomweb_io.elements import SearchLevel

STUDY_INSTANCE_UID = "0020000D"
SERIES_INSTANCE_UID = "0020000E"
SOP_INSTANCE_UID = "00080018"
SOP_CLASS_UID = "00080016"
MODALITY = "00080060"
INSTANCE_NUMBER = "00200013"
SERIES_NUMBER = "00200011"
RETRIEVE_URL = "00081190"
INSTANCE_AVAILABILITY = "00080056"
MODALITIES_IN_STUDY = "00080061"
STUDY_RELATED_SERIES = "00201206"
STUDY_RELATED_INSTANCES = "00201208"
SERIES_RELATED_INSTANCES = "00201209"
TIMEZONE = "00080201"
CHARACTER_SET = "00080005"
AVAILABLE_TRANSFER_SYNTAX_UID = "00083002"


def _tags(keywords: str) -> tuple[str, ...]:
    return tuple(lookup_tag(keyword) for keyword in keywords.split())


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

COMPUTED: dict[SearchLevel, frozenset[str]] = {
    "study": frozenset(
        (MODALITIES_IN_STUDY, STUDY_RELATED_SERIES, STUDY_RELATED_INSTANCES, INSTANCE_AVAILABILITY, RETRIEVE_URL)
    ),
    "series": frozenset((SERIES_RELATED_INSTANCES, RETRIEVE_URL)),
    "instance": frozenset((INSTANCE_AVAILABILITY, RETRIEVE_URL, AVAILABLE_TRANSFER_SYNTAX_UID)),
}
"""What is not in the files but follows from the folder."""

_ORDER: dict[str, int] = {"study": 0, "series": 1, "instance": 2}


def matching_level(tag: str, target: SearchLevel) -> SearchLevel:
    """The level whose dataset a filter is compared with in a search for `target`.

    Attributes of a study or series are compared once, with the instance that represents it; everything else with the
    objects that are searched for.
    """
    level = level_of(tag)
    return level if _ORDER[level] < _ORDER[target] else target


def is_returnable(tag: str, target: SearchLevel) -> bool:
    """Whether ``includefield`` of an attribute has an effect: attributes of lower levels are not returned."""
    return _ORDER[level_of(tag)] <= _ORDER[target] or tag in (TIMEZONE, CHARACTER_SET) or tag in COMPUTED[target]


def fields_of_all(tags: Iterable[str], target: SearchLevel) -> list[str]:
    """The attributes that ``includefield=all`` adds at a level, out of those that the dataset has.

    Bulk data of binary representations is left out: metadata and bulk data resources are made for it.
    """
    binary = ("OB", "OD", "OF", "OL", "OV", "OW", "UN")
    if target == "instance":
        return [tag for tag in tags if vr_of(tag) not in binary]
    wanted = ("study",) if target == "study" else ("study", "series")
    return [tag for tag in tags if level_of(tag) in wanted and vr_of(tag) not in binary]
