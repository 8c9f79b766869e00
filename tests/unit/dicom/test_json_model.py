"""The DICOM JSON model: encoding compared with pydicom on the files of its wheel, reading, writing, taking values."""

from __future__ import annotations

import base64
import io
import json
import logging
import math
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
from hypothesis import given, settings, strategies as st
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dicomweb_io.dicom.errors import Part10Error
from dicomweb_io.dicom.header_scan import scan_header
from dicomweb_io.dicom.json_decode import (
    dumps,
    encodable,
    first_text,
    first_value,
    is_empty,
    load_json_dataset,
    loads,
    values,
)
from dicomweb_io.dicom.json_encode import BulkDataPlace, encode
from dicomweb_io.dicom.part10 import encode_dataset
from dicomweb_io.dicom.values import character_set, name_text

DATA = Path(pydicom.__file__).parent / "data"
PIXELS = {"7FE00008", "7FE00009", "7FE00010"}


def readable_files() -> Iterator[Path]:
    for path in sorted(DATA.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            try:
                scan_header(path.read_bytes())
            except Part10Error:
                continue
            yield path


READABLE = list(readable_files())
# pydicom delivers the items before the cut or the overrun without a word; we report the sequence.
BROKEN = ("rtplan_truncated.dcm", "DICOMDIR-nooffset")


def pydicom_json(content: bytes) -> tuple[dict[str, Any], set[str]]:
    """What pydicom makes of a file, and the tags at which it raises."""
    dataset = pydicom.dcmread(io.BytesIO(content), force=True)
    result, raised = {}, set()
    logging.disable(logging.ERROR)
    try:
        for tag in dataset._dict:
            key = f"{tag:08X}"
            if key not in PIXELS:
                try:
                    result[key] = dataset[tag].to_json_dict(None, 0)
                except Exception:
                    raised.add(key)
    finally:
        logging.disable(logging.NOTSET)
    return result, raised


def as_annex_f(dataset: dict[str, Any]) -> dict[str, Any]:
    """pydicom's result with the differences that are wanted, each with its reason."""
    result = {}
    for key, element in dataset.items():
        if key.endswith("0000"):
            continue  # F.2.2: group lengths shall not be included
        element = dict(element)
        if element.get("Value") == []:
            del element["Value"]  # F.2.5: what is empty has no Value; pydicom writes a list for empty sequences
        if element["vr"] == "SQ":
            if "Value" in element:
                element["Value"] = [as_annex_f(item) for item in element["Value"]]
        elif element["vr"] == "PN":
            names = [{group: text for group, text in name.items() if text} or None for name in element.get("Value", [])]
            if names:
                element["Value"] = names  # F.2.2: only groups that are not empty
        elif "Value" in element:
            # F.2.5: an empty value in a list is null; pydicom writes an empty string.
            element["Value"] = [None if value == "" else value for value in element["Value"]]
        result[key] = element
    return result


@pytest.mark.parametrize("path", READABLE, ids=lambda path: path.relative_to(DATA).as_posix())
@pytest.mark.filterwarnings("ignore")
def test_the_same_result_as_pydicom(path: Path) -> None:
    content = path.read_bytes()
    problems: list[tuple[Any, str]] = []
    ours = encode(content, on_problem=lambda place, reason: problems.append((place, reason)))
    theirs, raised = pydicom_json(content)
    expected = as_annex_f(theirs)
    broken = {place[0] for place, _ in problems if place}
    if path.name == "rtplan_truncated.dcm":
        # The last sequence is cut.
        assert problems[0][0] == ()
        expected.pop("300A00B0")
    elif path.name == "DICOMDIR-nooffset":
        # An item is longer than its sequence.
        assert broken == {"00041220"}
        expected.pop("00041220")
    else:
        assert broken == raised
    assert ours == expected
    assert list(ours) == sorted(ours)
    json.dumps(ours, allow_nan=False)


@pytest.mark.parametrize(
    "path", [path for path in READABLE if path.name not in BROKEN], ids=lambda path: path.relative_to(DATA).as_posix()
)
@pytest.mark.filterwarnings("ignore")
def test_a_pydicom_dataset_gives_the_same(path: Path) -> None:
    content = path.read_bytes()
    dataset = pydicom.dcmread(io.BytesIO(content), force=True)
    assert encode(dataset) == encode(content)


def test_broken_elements_are_reported_and_the_rest_delivered() -> None:
    content = (DATA / "test_files" / "badVR.dcm").read_bytes()
    problems: list[Any] = []
    row = encode(content, on_problem=lambda place, reason: problems.append((place, reason)))
    assert problems == [(("00280008",), "its value cannot be decoded as IS")]
    assert "00280008" not in row
    assert row["00280010"]["Value"] == [10]


def dataset_with(**elements: Any) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    dataset.SOPInstanceUID = "1.2.3.4"
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


def encoded(dataset: Dataset, syntax: str = ExplicitVRLittleEndian) -> bytes:
    dataset.file_meta.TransferSyntaxUID = syntax
    return encode_dataset(dataset)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_every_kind_of_value(syntax: str) -> None:
    dataset = dataset_with(
        PatientName="Doe^Jane^^^",
        SpecificCharacterSet="ISO_IR 192",
        ImageType=["ORIGINAL", "", "AXIAL "],
        InstanceNumber=7,
        SliceThickness="1.50",
        PixelSpacing=["0.5", "0.25"],
        FrameIncrementPointer=[0x00181063, 0x00181065],
        RecommendedDisplayFrameRate=25,
        RetrieveAETitle=" AE ",
        PatientComments="  keeps leading spaces  ",
        PatientAge="012Y",
        InstanceCreationDate="20240131",
        InstanceCreationTime="101112.5",
        AcquisitionDateTime="20240131101112+0100",
        Rows=512,
        PixelRepresentation=1,
        SmallestImagePixelValue=-5,
        RedPaletteColorLookupTableDescriptor=[256, 0, 8],
        ReferencePixelX0=-3,
        LossyImageCompressionRatio="2.5",
        StudyComments="é\\not two values",
    )
    dataset.add_new(0x00186028, "FD", [1.5, math.nan, math.inf, -math.inf])
    dataset.add_new(0x00189461, "FL", 0.1)
    dataset.add_new(0x00080120, "UR", "http://example.org/a  ")
    dataset.add_new(0x00080301, "US", 3)
    dataset.add_new(0x00660040, "OL", struct.pack("<I", 1))
    dataset.add_new(0x7FE00001, "OV", struct.pack("<Q", 2))
    dataset.add_new(0x00091010, "UN", b"\x01\x02\x03\x04")
    item = Dataset()
    item.CodeValue = "T-1"
    dataset.ProcedureCodeSequence = [item, Dataset()]
    row = encode(encoded(dataset, syntax))
    assert row["00080008"] == {"vr": "CS", "Value": ["ORIGINAL", None, "AXIAL"]}
    assert row["00100010"] == {"vr": "PN", "Value": [{"Alphabetic": "Doe^Jane^^^"}]}
    assert row["00200013"] == {"vr": "IS", "Value": [7]}
    assert row["00180050"] == {"vr": "DS", "Value": [1.5]}
    assert row["00280030"] == {"vr": "DS", "Value": [0.5, 0.25]}
    assert row["00280009"] == {"vr": "AT", "Value": ["00181063", "00181065"]}
    assert row["00080054"] == {"vr": "AE", "Value": ["AE"]}
    assert row["00104000"] == {"vr": "LT", "Value": ["  keeps leading spaces"]}
    assert row["0008002A"] == {"vr": "DT", "Value": ["20240131101112+0100"]}
    assert row["00280106"] == {"vr": "SS", "Value": [-5]}
    assert row["00281101"]["Value"] == [256, 0, 8]
    assert row["00186020"] == {"vr": "SL", "Value": [-3]}
    assert row["00324000"] == {"vr": "LT", "Value": ["é\\not two values"]}
    assert row["00186028"] == {"vr": "FD", "Value": [1.5, "NaN", "Infinity", "-Infinity"]}
    assert row["00189461"]["Value"] == [struct.unpack("<f", struct.pack("<f", 0.1))[0]]
    assert row["00080120"] == {"vr": "UR", "Value": ["http://example.org/a"]}
    assert row["00081032"] == {"vr": "SQ", "Value": [{"00080100": {"vr": "SH", "Value": ["T-1"]}}, {}]}
    assert row["00091010"] == {"vr": "UN", "InlineBinary": "AQIDBA=="}
    json.loads(dumps(row))


def test_binary_values_are_little_endian_whatever_the_file() -> None:
    words = struct.pack("<4H", 1, 2, 3, 4)
    for syntax, stored in ((ExplicitVRLittleEndian, words), (ExplicitVRBigEndian, struct.pack(">4H", 1, 2, 3, 4))):
        dataset = dataset_with()
        dataset.add_new(0x60003000, "OW", stored)
        content = encoded(dataset, syntax)
        for source in (content, pydicom.dcmread(io.BytesIO(content))):
            assert base64.b64decode(encode(source)["60003000"]["InlineBinary"]) == words


def test_names_with_groups_and_several_names() -> None:
    dataset = dataset_with(SpecificCharacterSet="ISO_IR 192", OperatorsName=["Yamada^Tarou=山田^太郎=", "=王", ""])
    assert encode(encoded(dataset))["00081070"]["Value"] == [
        {"Alphabetic": "Yamada^Tarou", "Ideographic": "山田^太郎"},
        {"Ideographic": "王"},
        None,
    ]


def test_bulk_data_at_any_depth() -> None:
    inner = Dataset()
    inner.add_new(0x54001010, "OW", bytes(5000))
    inner.WaveformBitsAllocated = 16
    dataset = dataset_with(WaveformSequence=[Dataset(), inner], BitsAllocated=16)
    dataset.add_new(0x00420011, "OB", bytes(100))
    dataset.add_new(0x7FE00010, "OW", bytes(2000))
    content = encoded(dataset)
    places: list[BulkDataPlace] = []

    def uri(place: BulkDataPlace) -> str | None:
        places.append(place)
        return None if place.path[0] == "00420011" else "bulk/" + "/".join(map(str, place.path))

    for source in (scan_header(content), dataset):
        places.clear()
        row = encode(source, bulk_data=uri, bulk_data_threshold=50)
        assert row["54000100"]["Value"][1]["54001010"] == {"vr": "OW", "BulkDataURI": "bulk/54000100/2/54001010"}
        assert row["7FE00010"] == {"vr": "OW", "BulkDataURI": "bulk/7FE00010"}
        assert len(base64.b64decode(row["00420011"]["InlineBinary"])) == 100
        assert {place.path: place.length for place in places} == {
            ("54000100", 2, "54001010"): 5000,
            ("00420011",): 100,
            ("7FE00010",): 2000,
        }
    encode(content, bulk_data=uri, bulk_data_threshold=50)
    for place in places:
        assert place.offset is None or content[place.offset : place.offset + place.length].strip(b"\0") == b""
    assert "7FE00010" not in encode(content)


def test_values_that_a_scan_left_in_the_file() -> None:
    inner = Dataset()
    inner.PatientComments = "x" * 5000
    dataset = dataset_with(ProcedureCodeSequence=[inner] * 20)
    dataset.add_new(0x00420011, "OB", bytes(200_000))
    content = encoded(dataset)
    scan = scan_header(content, first_read=1024, large_value=4096)
    assert len(scan.segments) > 1
    problems: list[Any] = []
    row = encode(scan, on_problem=lambda place, reason: problems.append(place))
    assert problems == [("00081032",), ("00420011",)]
    assert row["00080018"]["Value"] == ["1.2.3.4"]
    assert encode(scan, file=io.BytesIO(content)) == encode(content)
    row = encode(scan, bulk_data=lambda place: "there", file=content)
    assert row["00420011"] == {"vr": "OB", "BulkDataURI": "there"}
    assert len(row["00081032"]["Value"]) == 20


def test_selected_attributes_only() -> None:
    content = (DATA / "test_files" / "CT_small.dcm").read_bytes()
    scan = scan_header(content)
    row = encode(scan, tags=("00280010", 0x00080018, "00100010", "00880140"))
    assert list(row) == ["00080018", "00100010", "00280010"]
    assert row == {key: value for key, value in encode(content).items() if key in row}
    japanese = scan_header((DATA / "charset_files" / "chrH31.dcm").read_bytes())
    assert encode(japanese, tags=("00100010",))["00100010"]["Value"][0]["Ideographic"] == "山田^太郎"


def test_private_attributes_in_implicit_vr() -> None:
    dataset = dataset_with()
    block = dataset.private_block(0x0019, "GEMS_ACQU_01", create=True)
    block.add_new(0x02, "SL", 77)  # in pydicom's private dictionary
    unknown = dataset.private_block(0x0019, "NOT IN ANY DICTIONARY", create=True)
    unknown.add_new(0x02, "SL", 77)
    row = encode(encoded(dataset, ImplicitVRLittleEndian))
    assert row["00190010"] == {"vr": "LO", "Value": ["GEMS_ACQU_01"]}
    assert row["00191002"] == {"vr": "SL", "Value": [77]}
    assert row["00191102"] == {"vr": "UN", "InlineBinary": base64.b64encode(struct.pack("<i", 77)).decode()}


def test_sequences_nested_too_deeply_are_reported() -> None:
    # Built by hand, for pydicom recurses when it writes.
    body = b""
    for _ in range(500):
        item = struct.pack("<HHI", 0xFFFE, 0xE000, len(body)) + body
        body = struct.pack("<HH2sHI", 0x0008, 0x1032, b"SQ", 0, len(item)) + item
    content = encoded(dataset_with())
    problems: list[str] = []
    row = encode(content + body, on_problem=lambda place, reason: problems.append(reason))
    assert row["00080018"]["Value"] == ["1.2.3.4"]
    assert problems == ["sequences are nested more than 64 deep"]
    assert sys.getrecursionlimit() >= 1000


@settings(max_examples=300)
@given(st.data())
def test_damaged_files_are_encoded_or_refused(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["reportsi.dcm", "rtplan.dcm", "test-SR.dcm", "MR_small_bigendian.dcm"]))
    content = bytearray((DATA / "test_files" / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(128, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        row = encode(bytes(content[: data.draw(st.integers(0, len(content)))]))
    except Part10Error:
        return
    assert loads(dumps(row)) == json.loads(json.dumps(row))


CHARSETS = [
    ("ISO_IR 100", "Buc^Jérôme"),
    ("ISO_IR 144", "Люкceмбypг"),
    ("ISO_IR 192", "Wang^XiaoDong=王^小东"),
    ("GB18030", "Wang^XiaoDong=王^小东"),
    ("GBK", "王^小东"),
]


@pytest.mark.parametrize(("name", "text"), CHARSETS)
def test_character_sets(name: str, text: str) -> None:
    dataset = dataset_with(SpecificCharacterSet=name, PatientName=text, PatientComments=text)
    row = encode(encoded(dataset))
    assert first_text(row, "PatientName") == text
    assert first_value(row, "PatientComments") == text


@pytest.mark.parametrize(
    ("names", "value", "text"),
    [
        (("", "ISO 2022 IR 149"), b"\x1b$)C\xb1\xe8\x1b(Babc\xc8\xf1", "김abc희"),
        (("", "ISO 2022 IR 58"), b"\x1b$)A\xcd\xf5\x1b(Ba\n\x1b$)A\xd0\xa1", "王a\n小"),
        (("", "ISO 2022 IR 144"), b"\x1b-L\xb6\x1b(Ba\xb6", "ЖaЖ"),
        (("ISO 2022 IR 144", "ISO 2022 IR 87"), b"\x1b$B;3\x1b(B\xb6", "山Ж"),
        (("ISO 2022 IR 13", "ISO 2022 IR 87"), b"\x1b$B;3\x1b(B\xd4", "山ﾔ"),
    ],
)
def test_an_escape_to_ascii_leaves_high_bytes_as_they_were(names: tuple[str, ...], value: bytes, text: str) -> None:
    charset = character_set(names)
    assert charset.decode(value) == text
    assert charset.reads(value)
    assert not character_set(("", "ISO 2022 IR 149")).reads(b"\x1b$)C\xb1\xe8\r\n\x1b(B\xb6")


def test_character_sets_that_are_misspelt_unknown_or_mixed() -> None:
    for name in ("ISO_IR 100\x08\x00", "hex", "zlib", "undefined", "idna"):
        assert character_set((name,)).codecs == character_set(()).codecs
    assert character_set(("ISO IR 144",)).codecs == character_set(("ISO_IR 144",)).codecs
    assert character_set(("ISO-2022-IR 87",)).codecs == character_set(("ISO 2022 IR 87",)).codecs
    assert character_set(("nonsense",)).decode(b"\xe9") == "é"
    assert character_set(("ISO_IR 192", "ISO 2022 IR 87")).codecs == ("UTF8",)
    assert character_set(()).decode(b"a\xe9") == "aé"
    assert character_set(("ISO_IR 192",)).decode(b"a\xff") == "a\ufffd"
    katakana = character_set(("ISO_IR 13",))
    assert katakana.decode(b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3", person_name=True) == "ﾔﾏﾀﾞ^ﾀﾛｳ"
    korean = character_set(("", "ISO 2022 IR 149"))
    assert korean.decode(b"\x1b$)C\xb1\xe8^\x1b$)C\xc8\xf1\xc1\xdf", person_name=True) == "김^희중"
    assert korean.decode(b"\x1b(Zx") == "\x1b(Zx"


CT_SMALL = (DATA / "test_files" / "CT_small.dcm").read_bytes()
JAPANESE = "Yamada^Tarou=山田^太郎=やまだ^たろう"
PUBLISHED = [
    # PS3.5 sections H.3.1 and H.3.2, I.2, J.1 and J.2, K.2
    (
        ("", "ISO 2022 IR 87"),
        b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B",
        JAPANESE,
    ),
    (
        ("ISO 2022 IR 13", "ISO 2022 IR 87"),
        b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3=\x1b$B;3ED\x1b(J^\x1b$BB@O:\x1b(J=\x1b$B$d$^$@\x1b(J^\x1b$B$?$m$&\x1b(J",
        "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう",
    ),
    (
        ("", "ISO 2022 IR 149"),
        b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7=\x1b$)C\xc8\xab^\x1b$)C\xb1\xe6\xb5\xbf",
        "Hong^Gildong=洪^吉洞=홍^길동",
    ),
    (("ISO_IR 192",), "Wang^XiaoDong=王^小東".encode(), "Wang^XiaoDong=王^小東"),
    (("GB18030",), "Wang^XiaoDong=王^小东".encode("gb18030"), "Wang^XiaoDong=王^小东"),
    (
        ("", "ISO 2022 IR 58"),
        bytes.fromhex("5A68616E675E5869616F446F6E673D1B242941D5C55E1B242941D0A1B6AB"),
        "Zhang^XiaoDong=张^小东",
    ),
    (("", "ISO 2022 IR 87", "ISO 2022 IR 159"), b"a^\x1b$(D\x30\x21\x1b(B", "a^丂"),
    (("", "ISO 2022 IR 13"), b"a^\x1b)I\xd4\x1b(J", "a^ﾔ"),
    (("", "ISO 2022 IR 87"), b"\x1b$@;3ED\x1b(B", "山田"),
    (("GBK",), "王^小东".encode("gbk"), "王^小东"),
    (("ISO_IR 13",), b"\xd4\xcf", "ﾔﾏ"),
    *(
        (names, prefix + letters.encode(codec), letters)
        for number, escape, codec, letters in (
            (100, b"-A", "latin_1", "äé"),
            (101, b"-B", "iso8859_2", "łő"),
            (109, b"-C", "iso8859_3", "ġĥ"),
            (110, b"-D", "iso8859_4", "ķŗ"),
            (126, b"-F", "iso8859_7", "Διο"),
            (127, b"-G", "iso8859_6", "قبا"),
            (138, b"-H", "iso8859_8", "שרו"),
            (144, b"-L", "iso8859_5", "Люк"),
            (148, b"-M", "iso8859_9", "ğış"),
            (166, b"-T", "tis_620", "กขค"),
            (203, b"-b", "iso8859_15", "Œž€"),
        )
        for names, prefix in (
            ((f"ISO_IR {number}",), b""),
            ((f"ISO 2022 IR {number}",), b""),
            (("", f"ISO 2022 IR {number}"), b"\x1b" + escape),
            (("ISO 2022 IR 100", f"iso-2022-ir {number}"), b"\x1b" + escape),
        )
    ),
]


@pytest.mark.parametrize(("names", "value", "text"), PUBLISHED)
def test_every_defined_term_and_escape_sequence(names: tuple[str, ...], value: bytes, text: str) -> None:
    charset = character_set(names)
    assert charset.decode(value, person_name=True) == text
    assert charset.reads(value, person_name=True)
    assert charset.unknown == ()
    start = scan_header(CT_SMALL).dataset_offset
    elements = [(0x00080005, b"CS", "\\".join(names).encode()), (0x00100010, b"PN", value)]
    body = b"".join(struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr, len(item)) + item for tag, vr, item in elements)
    problems: list[Any] = []
    row = encode(CT_SMALL[:start] + body, on_problem=lambda place, reason: problems.append((place, reason)))
    assert (first_text(row, "PatientName"), problems) == (text, [])


def test_lines_in_chinese() -> None:
    """PS3.5 section K.3: each line begins with the escape sequence."""
    lines = b"".join(b"%d.\x1b$)A%s\r\n" % (number, "第一行文字。".encode("gb2312")) for number in (1, 2))
    assert character_set(("", "ISO 2022 IR 58")).decode(lines) == "1.第一行文字。\r\n2.第一行文字。\r\n"


@pytest.mark.parametrize(
    ("charset", "name", "place", "words"),
    [
        (b"ISO_IR 999", b"Smith", "00080005", "'ISO_IR 999' is no known character set"),
        (b"", b"M\xfcller", "00100010", "not in the character sets"),
        (b"ISO_IR 192", b"M\xfcller", "00100010", "not in the character sets"),
        (b"ISO_IR 100", b"a\x1b(Zb", "00100010", "not in the character sets"),
        (b"\\ISO 2022 IR 149", b"\x1b$)C\xb1\xe8^\xc8\xf1", "00100010", "not in the character sets"),
    ],
)
def test_what_character_sets_do_not_explain_is_told(charset: bytes, name: bytes, place: str, words: str) -> None:
    start = scan_header(CT_SMALL).dataset_offset
    items = [(0x00080005, b"CS", charset), (0x00100010, b"PN", name)]
    body = b"".join(struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr, len(item)) + item for tag, vr, item in items)
    problems: list[Any] = []
    row = encode(CT_SMALL[:start] + body, on_problem=lambda where, reason: problems.append((where, reason)))
    assert first_text(row, "PatientName")
    ((where, reason),) = problems
    assert where == (place,)
    assert words in reason


def test_loads_what_servers_send() -> None:
    assert loads(b'[{"a": 1}]') == [{"a": 1}]
    assert loads(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}
    assert loads('\ufeff{"a": 1}') == {"a": 1}
    assert math.isnan(loads(b"[NaN]")[0])
    assert loads(b"[1e999]") == [math.inf]
    assert loads(b'["\\ud800"]') == ["\ud800"]
    assert loads('{"a": "ä"}'.encode("utf-16")) == {"a": "ä"}
    for text in (b"<html>", b"", b"\xff\xfe\xfa{", "nonsense"):
        with pytest.raises(ValueError, match=r"."):
            loads(text)
    with pytest.raises(ValueError, match=r"."):
        loads(b"[" * 100_000)


def test_dumps_what_orjson_cannot() -> None:
    assert dumps({"b": 1, "a": [None, 1.5]}) == b'{"a":[null,1.5],"b":1}'
    assert dumps({"a": [math.nan, -math.inf, None]}) == b'{"a":["NaN","-Infinity",null]}'
    assert json.loads(dumps({"a": "\ud800", "b": 2**70, "c": math.nan})) == {"a": "\ud800", "b": 2**70, "c": "NaN"}
    dataset = pydicom.dcmread(DATA / "test_files" / "CT_small.dcm")
    assert dumps({"v": dataset.PixelSpacing}) == b'{"v":[0.661468,0.661468]}'
    with pytest.raises(TypeError):
        dumps({"a": object()})


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=20,
)


def test_lone_surrogates_are_replaced_where_texts_have_to_be_encodable(caplog: pytest.LogCaptureFixture) -> None:
    for value in ({"a": ["b", 1.5, None, 2**70, math.nan]}, ("a", b"b"), {"a": object}, "山"):
        assert encodable(value) is value
    odd = {"\udc00": [{"a": "x\ud800\ud800y"}, ("\udfff", 2**70, b"c")]}
    assert encodable(odd) == {"\ufffd": [{"a": "x\ufffd\ufffdy"}, ("\ufffd", 2**70, b"c")]}
    assert odd["\udc00"][0] == {"a": "x\ud800\ud800y"}


@given(JSON)
def test_loads_reads_what_dumps_writes(value: Any) -> None:
    assert loads(dumps(value)) == value
    assert loads(dumps(value).decode("utf-8", "surrogatepass")) == value


ROW = {
    "00100010": {"vr": "PN", "Value": [{"Alphabetic": "Doe^Jane", "Phonetic": "x"}]},
    "00080061": {"vr": "CS", "Value": ["CT", None, "PT"]},
    "00400275": {
        "vr": "SQ",
        "Value": [{"00400009": {"vr": "SH", "Value": ["a"]}}, {}, {"00400009": {"vr": "SH", "Value": ["b"]}}],
    },
    "00200010": {"vr": "SH"},
}


def test_taking_values_out() -> None:
    assert values(ROW, "ModalitiesInStudy") == ["CT", "PT"]
    assert values(ROW, 0x00080061) == ["CT", "PT"]
    assert values(ROW, "RequestAttributesSequence.ScheduledProcedureStepID") == ["a", "b"]
    assert first_value(ROW, "00400275.00400009") == "a"
    assert first_value(ROW, "StudyID") is None
    assert first_value(ROW, "StudyDate", "none") == "none"
    assert first_text(ROW, "PatientName") == "Doe^Jane==x"
    assert first_text(ROW, "StudyID", "-") == "-"
    assert name_text({"Ideographic": "王"}) == "=王"
    assert name_text("Doe^Jane") == "Doe^Jane"
    with pytest.raises(ValueError, match="ModalitiesInStudy"):
        values(ROW, "ModalitesInStudy")
    assert is_empty(ROW["00200010"])
    assert is_empty(None)
    assert is_empty({"vr": "CS", "Value": [None, ""]})
    assert not is_empty({"vr": "OB", "BulkDataURI": "x"})
    assert not is_empty({"vr": "US", "Value": [0]})


@pytest.mark.parametrize("text", ["AQA=", ["AQA="], "AQ\nA=\n"])
def test_inline_binary_is_text_or_a_list_with_a_text(text: Any) -> None:
    assert load_json_dataset({"00420011": {"vr": "OB", "InlineBinary": text}}).EncapsulatedDocument == b"\1\0"


def test_load_json_dataset() -> None:
    row: dict[str, Any] = {
        **ROW,
        "00200013": {"vr": "IS", "Value": ["12"]},
        "00186028": {"vr": "FD", "Value": ["NaN", "-Infinity", 1]},
        "7FE00010": {"vr": "OW", "BulkDataURI": "http://localhost/bulk"},
    }
    dataset = load_json_dataset(row)
    assert dataset.PatientName == "Doe^Jane==x"
    assert dataset.InstanceNumber == 12
    assert math.isnan(dataset[0x00186028].value[0])
    assert dataset.RequestAttributesSequence[2].ScheduledProcedureStepID == "b"
    assert not dataset.PixelData
    asked = []

    def handler(tag: str, vr: str, uri: str) -> bytes:
        asked.append((tag, vr, uri))
        return b"\1\0"

    assert load_json_dataset(row, handler).PixelData == b"\1\0"
    assert asked == [("7FE00010", "OW", "http://localhost/bulk")]
    with pytest.raises(TypeError, match="list"):
        load_json_dataset([])  # type: ignore[arg-type]
    assert load_json_dataset({"00100010": {"Value": ["x"]}}).PatientName == "x"


@pytest.mark.filterwarnings("ignore")
def test_datasets_survive_the_way_through_json() -> None:
    for name in ("CT_small.dcm", "reportsi.dcm", "rtplan.dcm", "examples_ybr_color.dcm"):
        row = encode((DATA / "test_files" / name).read_bytes())
        assert encode(load_json_dataset(loads(dumps(row)))) == row
