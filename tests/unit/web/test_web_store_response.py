"""Reading the Store Instances Response Module: whatever comes, nothing is taken for stored that is not named."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, strategies as st

from dicomweb_io import store_response as module


def item(**values):
    return {tag.lstrip("t"): {"vr": "UI", "Value": [value]} for tag, value in values.items()}


def test_all_sequences():
    document = {
        "00081190": {"vr": "UR", "Value": ["http://x/studies/1"]},
        "00081199": {"vr": "SQ", "Value": [item(t00081155="1.1")]},
        "0008114A": {"vr": "SQ", "Value": [item(t00081155="1.2")]},
        "00081198": {"vr": "SQ", "Value": [item(t00081155="1.3", t00081197=272), item(t00081197=49152)]},
        "0008119A": {"vr": "SQ", "Value": [item(t00081197="290")]},
    }
    for text in (json.dumps(document), json.dumps([document]), "\ufeff \n" + json.dumps(document)):
        response = module.parse_store_response(text.encode())
        assert set(response.stored) == {"1.1", "1.2"}
        assert set(response.failed) == {"1.3"}
        assert [module.number_of(entry, module.FAILURE_REASON) for entry in response.nameless] == [49152, 290]
        assert response.retrieve_url == "http://x/studies/1"
        assert not response.is_empty


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"5",
        b"[]",
        b"{}",
        b"<html>stored 1.1</html>",
        b'{"HttpStatus": 400, "Message": "Bad request"}',
        b'{"00081199": {"vr": "SQ"}}',
        b'{"00081199": {"vr": "SQ", "Value": [{}]}}',
        b'{"00081199": {"vr": "SQ", "Value": "1.1"}}',
        b'{"00081199": "1.1"}',
        b'{"00081199": {"Value": [5, null, {"00081155": {"Value": []}}]}}',
        b"{broken",
    ],
)
def test_what_names_nothing_as_stored(content):
    assert module.parse_store_response(content).stored == {}


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reader(content):
    assert module.parse_store_response(content).stored == {}


JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["00081199", "00081198", "Value", "vr", "00081155", "00081197"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_no_json_breaks_the_reader(document):
    response = module.parse_store_response(json.dumps(document).encode())
    text = json.dumps(document, ensure_ascii=False)
    assert all(json.dumps(uid, ensure_ascii=False).strip('"') in text for uid in response.stored)


@pytest.mark.parametrize(
    ("code", "words", "passing"),
    [
        (None, "no reason", False),
        (0x0110, "0110H", False),
        (0xA700, "out of resources", True),
        (0xA7FF, "out of resources", True),
        (0xA901, "does not match", False),
        (0xC122, "transfer syntax", False),
        (0xC001, "cannot understand", False),
        (0x0122, "SOP class not supported", False),
        (45070, "already", False),
        (45071, "being stored", True),
        (1, "failure", False),
    ],
)
def test_reasons(code, words, passing):
    assert words in module.describe_reason(code)
    assert module.is_passing(code) is passing
    comment = {"00000902": {"vr": "LO", "Value": ["tag 00100020 is bad"]}}
    assert module.describe_reason(code, comment).endswith("tag 00100020 is bad")
