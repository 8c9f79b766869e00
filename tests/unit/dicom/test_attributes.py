import pytest

from dicomweb_io.dicom.attributes import lookup_keyword, lookup_tag, resolve, vr_of


def test_lookups() -> None:
    assert lookup_tag("StudyInstanceUID") == "0020000D"
    assert lookup_keyword("0020000D") == lookup_keyword(0x0020000D) == "StudyInstanceUID"
    for unknown in ("StudyInstanceUid", ""):
        with pytest.raises(KeyError):
            lookup_tag(unknown)
    with pytest.raises(KeyError):
        lookup_keyword("00091001")


@pytest.mark.parametrize(
    ("attribute", "tags"),
    [
        ("PatientID", ("00100020",)),
        ("0020000d", ("0020000D",)),
        ("00091001", ("00091001",)),
        ("RequestAttributesSequence.ScheduledProcedureStepID", ("00400275", "00400009")),
        ("00400275.ScheduledProcedureStepID", ("00400275", "00400009")),
    ],
)
def test_resolve(attribute: str, tags: tuple[str, ...]) -> None:
    assert resolve(attribute) == tags


def test_a_misspelt_keyword_is_refused_with_a_hint() -> None:
    with pytest.raises(ValueError, match="did you mean 'PatientID'"):
        resolve("PatientId")
    for wrong in ("", "PatientID.", "0010002", "limit"):
        with pytest.raises(ValueError, match=r"attribute|keyword"):
            resolve(wrong)


def test_vr() -> None:
    assert vr_of("00100010") == "PN"
    assert vr_of("7FE00010") == "OB"
    assert vr_of("00091001") == "UN"
