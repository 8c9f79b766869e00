"""Server profiles: chosen by address, with sources, as data that travels."""

from __future__ import annotations

import dataclasses
import pickle

import pytest

from dicomweb_io.profiles import GENERIC, PROFILES, ServerProfile, profile_for, resolve_profile

GOOGLE = "https://healthcare.googleapis.com/v1/projects/p/locations/l/datasets/d/dicomStores/s/dicomWeb"


@pytest.mark.parametrize(
    ("url", "name"),
    [
        (GOOGLE, "google"),
        ("https://ws-dicom.dicom.azurehealthcareapis.com/v2", "azure"),
        ("https://dicom-medical-imaging.us-east-1.amazonaws.com/datastore/abc", "healthimaging"),
        ("https://pacs.example/dcm4chee-arc/aets/DCM4CHEE/rs", "dcm4chee"),
        ("http://10.0.0.1:8080/dcm4chee-arc/aets/AS_RECEIVED/rs/", "dcm4chee"),
        ("https://dicomcloud.azurewebsites.net", "dicomcloud"),
        ("https://dicomcloud.azurewebsites.net/api", "dicomcloud"),
        ("http://localhost:8042/dicom-web", "orthanc"),
        ("HTTPS://pacs.example/orthanc/dicom-web/", "orthanc"),
        ("https://pacs.example/", "generic"),
        ("https://pacs.example/dicom-web/service", "generic"),
        ("https://evil.example/healthcare.googleapis.com", "generic"),
        ("https://evil.example/?x=.dicom.azurehealthcareapis.com/", "generic"),
    ],
)
def test_by_address(url, name):
    assert profile_for(url).name == name
    assert resolve_profile("auto", url).name == name


def test_by_name_and_as_is():
    assert resolve_profile("azure", "https://any.example") is PROFILES["azure"]
    mine = ServerProfile("mine")
    assert resolve_profile(mine, GOOGLE) is mine
    with pytest.raises(ValueError, match=r"no profile 'pacs'.*orthanc"):
        resolve_profile("pacs", GOOGLE)
    with pytest.raises(TypeError):
        resolve_profile(5, GOOGLE)


@pytest.mark.parametrize("profile", PROFILES.values(), ids=str)
def test_every_profile_is_sound(profile):
    assert profile.sources
    assert all(len(source) > 20 for source in profile.sources)
    assert pickle.loads(pickle.dumps(profile)) == profile
    for size, maximum in zip(profile.page_sizes, profile.max_limits, strict=False):
        assert size >= 1
        assert maximum is None or size <= maximum
    assert all("transfer-syntax=" in accept or accept == "*/*" for accept in profile.original_accepts)
    assert not set(profile.original_accepts) & set(profile.transcoding_accepts)
    assert profile.store_batch_bytes <= (profile.max_request_bytes or profile.store_batch_bytes)
    assert repr(profile) == f"<ServerProfile {profile.name}>"


def test_what_is_unknown_has_the_careful_value():
    assert GENERIC.max_limits == (None, None, None)
    assert GENERIC.flat_instances is None
    assert GENERIC.replace is None
    assert GENERIC.max_limit("study") is None
    assert GENERIC.page_size("instance") == 200


def test_profiles_are_frozen_and_can_be_changed_by_copy():
    changed = PROFILES["orthanc"].with_facts(max_limits=(50, 50, 50))
    assert changed.max_limit("series") == 50
    assert PROFILES["orthanc"].max_limit("series") is None
    with pytest.raises(dataclasses.FrozenInstanceError):
        changed.name = "x"


def test_known_limits_of_the_services():
    assert PROFILES["azure"].max_limits == (200, 200, 200)
    assert PROFILES["google"].max_limits == (5000, 5000, 50_000)
    assert PROFILES["dicomcloud"].max_limits == (12, 12, 12)
    assert PROFILES["healthimaging"].max_rows == 10_000
    assert PROFILES["healthimaging"].delete is None
    assert PROFILES["dcm4chee"].max_offset == 99_999
    assert [PROFILES[name].replace for name in ("google", "azure", "orthanc", "dicomcloud")] == [
        "upsert",
        "upsert",
        "delete",
        "delete",
    ]
    assert [PROFILES[name].comparison_level for name in ("orthanc", "azure", "dcm4chee", "dicomcloud")] == [
        "file",
        "dataset",
        "pixels",
        "none",
    ]
