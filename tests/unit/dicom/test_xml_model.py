"""Datasets in XML become DICOM JSON, and hostile XML becomes an error."""

from __future__ import annotations

import pytest

from dicomweb_io.dicom.xml_model import parse_native_model


def attribute(tag, vr, inner=""):
    return f'<DicomAttribute tag="{tag}" vr="{vr}" keyword="X">{inner}</DicomAttribute>'


def native(*attributes, namespace=""):
    return f"<NativeDicomModel{namespace}>{''.join(attributes)}</NativeDicomModel>".encode()


def value(*texts):
    return "".join(f'<Value number="{number}">{text}</Value>' for number, text in enumerate(texts, 1))


@pytest.mark.parametrize("namespace", ["", ' xmlns="http://dicom.nema.org/PS3.19/models/NativeDICOM"'])
def test_values(namespace):
    document = native(
        attribute("00200013", "IS", value("5")),
        attribute("00080018", "UI", value("1.2")),
        attribute("00280030", "DS", value("0.5", "1")),
        attribute("00080060", "CS"),
        attribute("00280106", "US", value("7")),
        attribute("00200032", "DS", value("nan", "x")),
        attribute("0008103e", "LO", value("ä &amp; b", "")),
        namespace=namespace,
    )
    assert parse_native_model(document) == {
        "00080018": {"vr": "UI", "Value": ["1.2"]},
        "00080060": {"vr": "CS"},
        "0008103E": {"vr": "LO", "Value": ["ä & b", None]},
        "00200013": {"vr": "IS", "Value": [5]},
        "00200032": {"vr": "DS", "Value": ["nan", "x"]},
        "00280030": {"vr": "DS", "Value": [0.5, 1.0]},
        "00280106": {"vr": "US", "Value": [7]},
    }


def test_names_sequences_and_bulk_data():
    name = (
        '<PersonName number="1"><Alphabetic><FamilyName>Doe</FamilyName><GivenName>J</GivenName>'
        "<NameSuffix>Jr</NameSuffix></Alphabetic><Ideographic><FamilyName>山</FamilyName></Ideographic></PersonName>"
    )
    item = f'<Item number="1">{attribute("00081155", "UI", value("1.2"))}</Item><Item number="2"/>'
    found = parse_native_model(
        native(
            attribute("00100010", "PN", name),
            attribute("00081199", "SQ", item),
            attribute("7FE00010", "OW", '<BulkData uri="https://x/y"/>'),
            attribute("00420011", "OB", "<InlineBinary>QUJD\n RA==</InlineBinary>"),
        )
    )
    assert found["00100010"]["Value"] == [{"Alphabetic": "Doe^J^^^Jr", "Ideographic": "山"}]
    assert found["00081199"]["Value"] == [{"00081155": {"vr": "UI", "Value": ["1.2"]}}, {}]
    assert found["7FE00010"] == {"vr": "OW", "BulkDataURI": "https://x/y"}
    assert found["00420011"] == {"vr": "OB", "InlineBinary": "QUJDRA=="}


def test_numbers_left_out_are_empty_values():
    text = '<Value number="3">c</Value><Value number="1">a</Value>'
    assert parse_native_model(native(attribute("00080008", "CS", text)))["00080008"]["Value"] == ["a", None, "c"]


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"<NativeDicomModel>",
        b"<html/>",
        b"no xml",
        b'<!DOCTYPE x [<!ENTITY a "b">]><NativeDicomModel/>',
        b'<!DOCTYPE x SYSTEM "file:///etc/passwd"><NativeDicomModel/>',
        native('<DicomAttribute tag="0008" vr="UI"/>'),
        native('<DicomAttribute tag="ZZZZZZZZ" vr="UI"/>'),
    ],
)
def test_what_is_refused(document):
    with pytest.raises(ValueError, match=r"."):
        parse_native_model(document)


def test_hostile_sizes():
    huge = native(attribute("00080008", "CS", '<Value number="4000000000">a</Value>'))
    assert parse_native_model(huge)["00080008"]["Value"] == ["a"]
    deep = b'<DicomAttribute tag="00081199" vr="SQ"><Item number="1">' * 100 + b"</Item></DicomAttribute>" * 100
    with pytest.raises(ValueError, match="deeply"):
        parse_native_model(b"<NativeDicomModel>" + deep + b"</NativeDicomModel>")
