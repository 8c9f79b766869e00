"""DICOMweb URIs: read, written, taken apart, and as permissive as they began."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given, strategies as st

from dicomweb_io.dicom.uris import URI, GoogleCloudHealthcareURL, URISuffix, URIType, parse_resource_path

BASE = "https://pacs.example:8443/dicom-web"
UIDS = ("1.2.3", "1.2.3.4", "1.2.3.4.5")


@pytest.mark.parametrize(
    ("parts", "text", "kind"),
    [
        ((), "", URIType.SERVICE),
        (UIDS[:1], "/studies/1.2.3", URIType.STUDY),
        (UIDS[:2], "/studies/1.2.3/series/1.2.3.4", URIType.SERIES),
        (UIDS, "/studies/1.2.3/series/1.2.3.4/instances/1.2.3.4.5", URIType.INSTANCE),
        ((*UIDS, [2, 1]), "/studies/1.2.3/series/1.2.3.4/instances/1.2.3.4.5/frames/2,1", URIType.FRAME),
    ],
)
def test_every_level(parts, text, kind):
    uri = URI(BASE, *parts)
    assert (str(uri), uri.type) == (BASE + text, kind)
    assert URI.from_string(str(uri)) == uri
    assert URI.from_string(str(uri), kind) == uri
    assert hash(URI.from_string(str(uri))) == hash(uri)
    assert repr(uri) == f"URI('{BASE}{text}')"


@pytest.mark.parametrize("suffix", list(URISuffix))
def test_suffixes(suffix):
    uri = URI(BASE, *UIDS, suffix=suffix)
    assert str(uri).endswith("/" + suffix.value)
    assert URI.from_string(str(uri)).suffix is suffix
    assert uri.instance_uri().suffix is None


def test_parents_and_levels():
    uri = URI(BASE, *UIDS, frames=[1])
    levels = [uri]
    while levels[-1].type is not URIType.SERVICE:
        levels.append(levels[-1].parent)
    assert [level.type for level in levels] == list(URIType)[::-1]
    assert levels == [uri.frame_uri(), uri.instance_uri(), uri.series_uri(), uri.study_uri(), uri.base_uri()]
    assert levels[-1].parent == levels[-1]
    for name in ("study_uri", "series_uri", "instance_uri", "frame_uri"):
        with pytest.raises(ValueError, match="names no"):
            getattr(URI(BASE), name)()


@pytest.mark.parametrize("suffix", list(URISuffix))
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_parent_of_a_form_is_the_resource(suffix, depth):
    resource = URI(BASE, *UIDS[:depth])
    assert resource.update(suffix=suffix).parent == resource
    if suffix is not URISuffix.METADATA:
        frames = URI(BASE, *UIDS, frames=[1, 2])
        assert frames.update(suffix=suffix).parent == frames


def test_uids_are_escaped_in_uris():
    uri = URI(BASE, "a b ", "50%?#", "ü", [1], URISuffix.RENDERED, permissive=True)
    assert str(uri) == f"{BASE}/studies/a%20b/series/50%25%3F%23/instances/%C3%BC/frames/1/rendered"
    assert URI.from_string(str(uri), permissive=True) == uri
    assert uri.study_instance_uid == "a b"


def test_derived_uris_stay_permissive():
    uri = URI(BASE, "study-1", "series_2", "instance:3", frames=[1], permissive=True)
    derived = [uri.base_uri(), uri.study_uri(), uri.series_uri(), uri.instance_uri(), uri.frame_uri(), uri.parent]
    derived += [uri.update(suffix=URISuffix.RENDERED), pickle.loads(pickle.dumps(uri))]
    assert all(item.permissive for item in derived)
    assert uri.update(sop_instance_uid="other-4").sop_instance_uid == "other-4"
    assert uri.base_uri().update(study_instance_uid="any thing".replace(" ", "_")).permissive
    with pytest.raises(ValueError, match="study_instance_uid"):
        URI(BASE, "study-1")
    with pytest.raises(ValueError, match="study_instance_uid"):
        uri.update(permissive=False)


def test_update_keeps_what_is_not_named():
    uri = URI(BASE, *UIDS, suffix=URISuffix.METADATA)
    changed = uri.update(base_url="http://other", series_instance_uid="1.9")
    assert str(changed) == "http://other/studies/1.2.3/series/1.9/instances/1.2.3.4.5/metadata"
    assert str(uri).startswith(BASE)


def test_it_is_immutable_and_picklable():
    uri = URI(BASE, *UIDS)
    with pytest.raises(AttributeError):
        uri.base_url = "x"
    assert pickle.loads(pickle.dumps(uri)) == uri
    assert uri != str(uri)


@pytest.mark.parametrize(
    "arguments",
    [
        ("ftp://host",),
        ("host/path",),
        ("https://",),
        (BASE + "?x=1",),
        (BASE, None, "1.2"),
        (BASE, "1.2", None, "1.3"),
        (BASE, "1.2", "1.3", None, [1]),
        (BASE, "1.2/../x"),
        (BASE, ""),
        (BASE, *UIDS, []),
        (BASE, *UIDS, [0]),
        (BASE, None, None, None, None, URISuffix.METADATA),
        (BASE, *UIDS, [1], URISuffix.METADATA),
    ],
)
def test_what_is_no_uri(arguments):
    with pytest.raises(ValueError, match=r"."):
        URI(*arguments)


@pytest.mark.parametrize(
    "arguments",
    [(5,), (BASE, 12), (BASE, *UIDS, ["1"]), (BASE, *UIDS, [True]), (BASE, "1.2", None, None, None, "metadata")],
)
def test_wrong_types(arguments):
    with pytest.raises(TypeError):
        URI(*arguments)


@pytest.mark.parametrize(
    "text",
    [
        BASE + "/studies/1.2/serie/1.3",
        BASE + "/studies/1.2/instances/1.3",
        BASE + "/studies/1.2/series/1.3/instances/1.4/frames/a",
        BASE + "/studies/1.2/series/1.3/instances/1.4/frames/1,",
        BASE + "/studies/1.2/series/1.3/instances/1.4/frames/1/metadata",
        BASE + "/studies/../x",
        BASE + "/studies/1.2?x=1",
        BASE + "/studies/1.2/rendered/x",
    ],
)
def test_texts_that_name_nothing(text):
    with pytest.raises(ValueError, match=r"."):
        URI.from_string(text)


def test_reading():
    assert URI.from_string("https://h/").base_url == "https://h"
    assert URI.from_string("https://h/studies/x/studies/1.2").base_url == "https://h/studies/x"
    assert URI.from_string("https://h/studies/dicom", URIType.SERVICE).base_url == "https://h/studies/dicom"
    assert URI.from_string("https://h/studies/1.2/").study_instance_uid == "1.2"
    assert URI.from_string("https://h/studies/1.2/series/1.3/instances/1.4/frames/1%2C2").frames == (1, 2)
    for kind in (URIType.SERVICE, URIType.SERIES, URIType.INSTANCE, URIType.FRAME):
        with pytest.raises(ValueError, match=f"names a study, not a {kind.value}"):
            URI.from_string("https://h/studies/1.2", kind)
    assert URI.from_string("https://h/studies/dicomweb", URIType.SERVICE).base_url == "https://h/studies/dicomweb"


def test_relative_paths():
    path = parse_resource_path("/studies/1.2/series/1.3/instances/1.4/frames/7,1/rendered")
    assert path == ("1.2", "1.3", "1.4", (7, 1), URISuffix.RENDERED)
    assert parse_resource_path("studies/a-b", permissive=True).study_instance_uid == "a-b"
    with pytest.raises(ValueError, match="not the path"):
        parse_resource_path("https://h/studies/1.2")


@given(
    st.lists(st.from_regex(r"[0-9]{1,5}(\.[0-9]{1,5}){0,3}", fullmatch=True), max_size=3),
    st.lists(st.integers(1, 10**6), max_size=4),
)
def test_what_is_written_is_read(uids, frames):
    uri = URI(BASE, *uids, frames=frames or None) if len(uids) == 3 else URI(BASE, *uids)
    assert URI.from_string(str(uri)) == uri


def test_google_urls():
    url = GoogleCloudHealthcareURL("my-project", "us-central1", "data_set", "store.1")
    text = (
        "https://healthcare.googleapis.com/v1/projects/my-project/locations/us-central1/datasets/data_set"
        "/dicomStores/store.1/dicomWeb"
    )
    assert str(url) == text
    assert GoogleCloudHealthcareURL.from_string(text) == url
    assert GoogleCloudHealthcareURL.from_string(text.replace("/v1/", "/v1beta1/")) == url
    for wrong in (
        text + "/studies",
        text.replace("dicomWeb", "dicomweb"),
        "https://example.org",
        text.replace("https", "http"),
    ):
        with pytest.raises(ValueError, match="not the DICOMweb root"):
            GoogleCloudHealthcareURL.from_string(wrong)
    for part in ("", "a/b", "a b", None):
        with pytest.raises(ValueError, match="project_id"):
            GoogleCloudHealthcareURL(part, "l", "d", "s")
