"""Media types: what is asked for, and what an answer says it is."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from dicomweb_io.dicom.media_types import (
    MediaType,
    accept_header,
    accept_spellings,
    parse_content_type,
    parse_media_types,
)


@pytest.mark.parametrize(
    ("text", "media_type", "parameters"),
    [
        (None, "", {}),
        ("", "", {}),
        ("application/dicom", "application/dicom", {}),
        ("Application/DICOM+JSON; Charset=UTF-8", "application/dicom+json", {"charset": "UTF-8"}),
        ('multipart/related;type="a/b" ; boundary=x', "multipart/related", {"type": "a/b", "boundary": "x"}),
        ('multipart/related; boundary="a;b\\"c"; type=t/s', "multipart/related", {"boundary": 'a;b"c', "type": "t/s"}),
        ("a/b;;x=1;", "a/b", {"x": "1"}),
        ("a/b; broken; x=1", "a/b", {"x": "1"}),
        ("a/b; x=1; x=2", "a/b", {"x": "1"}),
    ],
)
def test_content_types(text, media_type, parameters):
    parsed = parse_content_type(text)
    assert parsed.media_type == media_type
    assert {name: parsed.parameters[name] for name in parameters} == parameters


@given(st.text(max_size=60))
def test_no_text_breaks_the_parser(text):
    parsed = parse_content_type(text)
    assert parsed.media_type == text.partition(";")[0].strip().lower()
    assert parsed.transfer_syntax_uid is None or parsed.transfer_syntax_uid in text


@given(
    st.dictionaries(
        st.from_regex(r"[a-z]{1,6}", fullmatch=True),
        st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=10),
        max_size=4,
    )
)
def test_quoted_parameters_come_back(parameters):
    quoted = {name: value.replace("\\", "\\\\").replace('"', '\\"') for name, value in parameters.items()}
    text = "a/b" + "".join(f'; {name}="{value}"' for name, value in quoted.items())
    assert parse_content_type(text).parameters == parameters


def test_kinds():
    assert parse_content_type("application/dicom+json").is_json
    assert parse_content_type("application/json; charset=utf-8").is_json
    assert parse_content_type("application/dicom+xml").is_xml
    assert parse_content_type("text/xml").is_xml
    assert parse_content_type("multipart/related").is_multipart
    assert not parse_content_type("text/html").is_json


def test_transfer_syntaxes_wherever_they_are():
    for text in (
        "application/dicom; transfer-syntax=1.2.840.10008.1.2.1",
        'multipart/related; type="application/dicom"; transfer-syntax=1.2.840.10008.1.2.1; boundary=x',
        'multipart/related; type="image/jpeg; transfer-syntax=1.2.840.10008.1.2.1"; boundary=x',
        'image/jpeg; transfer-syntax="1.2.840.10008.1.2.1"',
    ):
        assert parse_content_type(text).transfer_syntax_uid == "1.2.840.10008.1.2.1"
    assert parse_content_type("application/dicom; transfer-syntax=*").transfer_syntax_uid is None
    assert parse_content_type("application/dicom; transfer-syntax=junk").transfer_syntax_uid is None


def test_media_types():
    assert parse_media_types(None) == ()
    assert parse_media_types(("image/jpeg", ("image/x-jpls", "1.2"), ["image/jp2", "*"], ("a/b", ["1.1", "1.2"]))) == (
        MediaType("image/jpeg"),
        MediaType("image/jls", "1.2"),
        MediaType("image/jp2", "*"),
        MediaType("a/b", "1.1"),
        MediaType("a/b", "1.2"),
    )
    assert parse_media_types((("video/mp4",), "*/*", "image/*")) == tuple(
        map(MediaType, ("video/mp4", "*/*", "image/*"))
    )


@pytest.mark.parametrize(
    ("accepted_type", "error"),
    [
        ("image/jpeg", TypeError),
        ((5,), TypeError),
        ((("image/jpeg", 5),), TypeError),
        ((("a/b", "1.2", "x"),), TypeError),
        (("image",), ValueError),
        (("image/jpeg; transfer-syntax=1.2",), ValueError),
        (("image/jpeg\r\nX-Evil: 1",), ValueError),
        ((("image/jpeg", "1.2\r\nX: 1"),), ValueError),
        ((("image/jpeg", "Explicit"),), ValueError),
    ],
)
def test_invalid_media_types(accepted_type, error):
    with pytest.raises(error):
        parse_media_types(accepted_type)


def test_defaults_of_the_standard():
    for name, syntax in {
        "application/octet-stream": "1.2.840.10008.1.2.1",
        "image/jpeg": "1.2.840.10008.1.2.4.70",
        "image/dicom-rle": "1.2.840.10008.1.2.5",
        "image/jls": "1.2.840.10008.1.2.4.80",
        "image/jp2": "1.2.840.10008.1.2.4.90",
        "image/jphc": "1.2.840.10008.1.2.4.201",
    }.items():
        assert MediaType(name).default_transfer_syntax_uid == syntax
        assert MediaType(name).with_default == MediaType(name, syntax)
    assert MediaType("image/unknown").with_default == MediaType("image/unknown")
    assert MediaType("image/jpeg", "1.2").with_default == MediaType("image/jpeg", "1.2")


def test_accept():
    accepted_types = parse_media_types((("image/jpeg", "1.2.3"), "image/jls"))
    assert accept_header(accepted_types, multipart=True) == (
        'multipart/related; type="image/jpeg"; transfer-syntax=1.2.3, multipart/related; type="image/jls"'
    )
    assert accept_header(accepted_types, multipart=False) == "image/jpeg; transfer-syntax=1.2.3, image/jls"


def test_spellings_ask_for_the_same():
    spellings = accept_spellings(parse_media_types(("image/jls",)))
    assert spellings[0] == 'multipart/related; type="image/jls"'
    assert 'multipart/related; type="image/jls"; transfer-syntax=1.2.840.10008.1.2.4.80' in spellings
    assert 'multipart/related; type="image/x-jpls"' in spellings
    assert "image/jls" in spellings
    assert len(set(spellings)) == len(spellings)
    assert all("application/" not in spelling for spelling in spellings)
    exact = accept_spellings(parse_media_types((("image/jpeg", "1.2.840.10008.1.2.4.50"),)))
    # Without its transfer syntax it would be another media type: JPEG lossless.
    assert all("1.2.840.10008.1.2.4.50" in spelling for spelling in exact)
    assert accept_spellings(parse_media_types(("a/b",)), single=False) == ('multipart/related; type="a/b"',)
    anything = accept_spellings(parse_media_types(("image/*",)))
    assert any('type="image/jpeg", ' in spelling and 'type="image/jp2"' in spelling for spelling in anything)
