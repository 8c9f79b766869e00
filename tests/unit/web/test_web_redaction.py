"""What a server says about an instance is told without the patient's names."""

from __future__ import annotations

from dataclasses import replace

import pytest
from pydicom import dcmread

from dicomweb_io.dicom.part10 import encode_dataset
from dicomweb_io.elements import Instance, Resource
from dicomweb_io.errors import DICOMwebError
from dicomweb_io.store_items import StoreItem, without_names
from dicomweb_io.testing.samples import sample_file
from dicomweb_io.web.replace import Replacer


@pytest.fixture
def instance():
    dataset = dcmread(sample_file("CT_small.dcm"))
    dataset.SpecificCharacterSet = ["", "ISO 2022 IR 87"]
    dataset.PatientName = "Zzyzx^Quentin=山田^太郎"
    dataset.PatientID = "77"
    dataset.OtherPatientIDs = ["MRN-1", "MRN-2"]
    dataset.OperatorsName = ["Op^One", "Op^Two"]
    return Instance(
        Resource("1.77.3", "1.2.4", "1.2.5"), transfer_syntax_uid="1.2.840.10008.1.2.1", content=encode_dataset(dataset)
    )


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("cannot store QUENTIN Zzyzx", "cannot store *** ***"),
        ("Zzyzx^Quentin is another patient", "*** is another patient"),
        ("name 山田^太郎", "name ***"),
        ("no Zzyzx%5EQuentin, no ZZYZX&#94;Quentin", "no ***, no ***"),
        (r"no Zzyzx\u005equentin, no \u5c71\u7530", "no ***, no ***"),
        ("patient 77 has 770 studies in 1.77.3", "patient *** has 770 studies in 1.77.3"),
        ("(MRN-2) by one two: opera", "(***) by *** ***: opera"),
        ("the server refused it with HTTP 409", "the server refused it with HTTP 409"),
    ],
)
def test_names_and_numbers_of_the_patient_are_masked(instance, said, told):
    assert without_names(said, instance) == told


def test_an_unreadable_instance_has_no_known_names():
    instance = Instance(
        Resource("1.2.3", "1.2.4", "1.2.5"), transfer_syntax_uid="1.2.840.10008.1.2.1", content=b"no DICOM"
    )
    assert without_names("refused", instance) == "refused"


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("ZZYZX_QUENTIN.dcm", "***_***.dcm"),
        ("patient_zzyzx_1", "patient_***_1"),
        ("Quentin.Zzyzx", "***.***"),
        ("山田太郎さん", "******さん"),
        ("QuentinZzyzx", "QuentinZzyzx"),
    ],
)
def test_names_are_found_wherever_a_word_can_stand(instance, said, told):
    assert without_names(said, instance) == told


def test_words_about_an_instance_whose_names_cannot_be_read_are_left_out(instance):
    deflated = replace(instance, transfer_syntax_uid="1.2.840.10008.1.2.1.99")
    assert without_names("Zzyzx", deflated) == ""
    # A value of the wrong length for its VR makes pydicom raise what is no ValueError.
    tag = b"\x10\x00\x20\x00"
    content = instance.content.replace(tag + b"LO\x02\x0077", tag + b"FD\x02\x0077")
    assert content != instance.content
    item = StoreItem(replace(instance, content=content), len(content))
    assert item.redact("Zzyzx") == ""
    item.fail("refused")
    assert item.outcome.message == "refused"


def test_our_own_words_stay_whole(instance, tmp_path):
    """The place of the only copy of an image must be readable, whatever the patient's name."""
    item = StoreItem(instance, 1)
    item.fail("the old bytes are kept in /data/Zzyzx/77.dcm")
    assert item.outcome.message == "the old bytes are kept in /data/Zzyzx/77.dcm"
    error = DICOMwebError("Zzyzx is locked; try later", method="POST", url="http://zzyzx/studies", status=500)
    error.server_message = "Zzyzx is locked"
    item.fail_by(error)
    assert item.outcome.message == "POST http://zzyzx/studies: HTTP 500: *** is locked; try later"


def test_old_bytes_that_cannot_be_kept_end_nothing(instance, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    assert (
        Replacer(None, None)._saved(instance) == "the old bytes could not be saved either (No such file or directory)"
    )
