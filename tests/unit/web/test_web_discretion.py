"""What a server says about an instance is told without the patient's names."""

from __future__ import annotations

import pytest
from pydicom import dcmread

from dicomweb_io.clients.web.discretion import without_names
from dicomweb_io.dicom.part10 import encode_dataset
from dicomweb_io.elements import Instance, Resource
from dicomweb_io.testing.samples import sample_file


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
