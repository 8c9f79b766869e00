from urllib.parse import unquote

import pytest
from hypothesis import given, strategies as st

from dicomweb_io.dicom.uids import check_uid, file_name, is_safe_name, is_uid, path_segment


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
        assert not set(text) & set("/\\@\0\n\r\t")
        assert text == text.strip(" \0")
        assert text not in (".", "..")
        segment = path_segment(text)
        assert segment.isascii()
        assert not set(segment) & set("/\\@?# ")
        assert unquote(segment) == text
        assert len(text) <= 64


@pytest.mark.parametrize("uid", ["a b", "Study 1 (old)", "50%?#", "a" * 64, "ü", "a:b;c", "...", "-"])
def test_permissive_uids(uid: str) -> None:
    assert is_uid(uid, permissive=True)
    for padded in (uid, f" {uid}  ", uid + "\0", uid + " \0"):
        assert check_uid(padded, "study_instance_uid", permissive=True) == uid


@pytest.mark.parametrize(
    "uid", ["", " ", ".", "..", " .. ", "a/b", "a\\b", "a@b", "a\tb", "a\0b", "a\x7f", "\ud800", "a" * 65]
)
def test_no_permissive_uids(uid: str) -> None:
    with pytest.raises(ValueError, match=r"sop_instance_uid.*64 characters"):
        check_uid(uid, "sop_instance_uid", permissive=True)


def test_the_error_names_the_option_that_helps() -> None:
    with pytest.raises(ValueError, match="permissive_uid=True"):
        check_uid("study 1", "study_instance_uid")
    for hopeless in ("", "a/b", "1" * 65):
        with pytest.raises(ValueError, match="study_instance_uid") as caught:
            check_uid(hopeless, "study_instance_uid")
        assert "permissive" not in str(caught.value)


@given(st.text(max_size=70))
def test_names_of_files_are_read_back(uid: str) -> None:
    if is_safe_name(uid):
        assert unquote(file_name(uid)) == uid
