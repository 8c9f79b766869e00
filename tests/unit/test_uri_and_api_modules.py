"""The import paths that users know."""

from __future__ import annotations

import importlib
import logging

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


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("", "DICOMClient DICOMfileClient DICOMwebClient URI URISuffix URIType __version__"),
        (".api", "DICOMClient DICOMfileClient DICOMwebClient"),
        (".web", "DICOMwebClient"),
        (".file", "DICOMfileClient"),
        (".protocol", "DICOMClient"),
        (".uri", "URI URISuffix URIType build_query_string parse_query_parameters"),
        (
            ".session_utils",
            "create_session create_session_from_auth create_session_from_user_pass add_certs_to_session "
            "create_session_from_gcp_credentials",
        ),
        (".ext.gcp.uri", "GoogleCloudHealthcareURL"),
        (".ext.gcp.session_utils", "create_session_from_gcp_credentials"),
        (".log", "configure_logging"),
    ],
)
def test_every_import_of_the_original_library_works(module, names):
    imported = importlib.import_module(f"dicomweb_io{module}")
    for name in names.split():
        assert getattr(imported, name) is not None


def test_arguments_of_uris_have_their_former_names():
    assert str(URI.from_string(dicomweb_uri="https://h/studies/1.2", uri_type=URIType.STUDY, permissive=False))


def test_logging_is_set_up_once():
    from dicomweb_io.log import configure_logging

    root, urllib3 = logging.getLogger(), logging.getLogger("urllib3")
    before, level = list(root.handlers), urllib3.level
    package = logging.getLogger("dicomweb_io")
    own = package.level
    try:
        assert configure_logging(1) is package
        assert configure_logging(2).level == logging.INFO
        assert configure_logging(0).isEnabledFor(logging.CRITICAL) is False
        assert configure_logging(9).level == logging.DEBUG
        assert len(root.handlers) == len(before) + 1
        with pytest.raises(ValueError, match="verbosity"):
            configure_logging(-1)
    finally:
        root.handlers[:] = before
        package.setLevel(own)
        urllib3.setLevel(level)
