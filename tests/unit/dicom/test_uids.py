import pytest
from hypothesis import given, strategies as st

from dicomweb_io.dicom.uids import check_uid, is_uid


@pytest.mark.parametrize("uid", ["1", "1.2.840.10008.1.2.1", "1.02.3", "9" * 64])
def test_uids(uid: str) -> None:
    assert is_uid(uid)
    assert check_uid(uid, "study_instance_uid") == uid


@pytest.mark.parametrize("uid", ["", ".", "1..2", "1.2.", ".1", "1.2\n", "a.b", "1.2/3", "1 2", "9" * 65, "1.\u0662"])
def test_no_uids(uid: str) -> None:
    assert not is_uid(uid)
    with pytest.raises(ValueError, match="study_instance_uid"):
        check_uid(uid, "study_instance_uid")


def test_wrong_types() -> None:
    with pytest.raises(ValueError, match="required"):
        check_uid(None, "series_instance_uid")
    with pytest.raises(TypeError, match="int"):
        check_uid(12, "series_instance_uid")


@given(st.text(max_size=70))
def test_what_the_permissive_form_accepts_stays_one_path_segment(text: str) -> None:
    if is_uid(text, permissive=True):
        assert not set(text) & set("/\\@%?#\0\n\r \t")
        assert text not in (".", "..")
        assert len(text) <= 64
