"""The import paths that users know."""

from __future__ import annotations

import pytest

from dicomweb_io.uri import URI, URISuffix, URIType, build_query_string, parse_query_parameters


def test_uri_names():
    assert URI("https://h", "1.2", suffix=URISuffix.METADATA).type is URIType.STUDY


def test_query_strings():
    params = parse_query_parameters(
        fuzzymatching=True,
        limit=5,
        offset=2,
        fields=["PatientID", "00081030"],
        search_filters={"StudyInstanceUID": "1.2", "PatientName": "A B*"},
    )
    assert params == {
        "limit": 5,
        "offset": 2,
        "fuzzymatching": "true",
        "includefield": ["PatientID", "00081030"],
        "StudyInstanceUID": "1.2",
        "PatientName": "A B*",
    }
    assert build_query_string(params) == (
        "?limit=5&offset=2&fuzzymatching=true&includefield=PatientID&includefield=00081030&StudyInstanceUID=1.2"
        "&PatientName=A%20B*"
    )
    assert build_query_string({}) == build_query_string(None) == ""
    with pytest.raises(ValueError, match="limit"):
        parse_query_parameters(limit=-1)


def test_the_api_module():
    from dicomweb_io import api

    for name in api.__all__:
        assert getattr(api, name) is not None
    dataset = api.load_json_dataset({"00100020": {"vr": "LO", "Value": ["1"]}})
    assert dataset.PatientID == "1"
    with pytest.raises(AttributeError):
        api.nothing  # noqa: B018
