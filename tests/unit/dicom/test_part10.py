"""Headers, completeness and encoding of DICOM files, on the files of the pydicom wheel and on broken forms of them."""

from __future__ import annotations

import io
import pickle
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pydicom
import pytest
from hypothesis import given, settings, strategies as st
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
)

from dicomweb_io.dicom.errors import DICOMDIRError, IncompleteDICOMError, MissingUIDError, NotDICOMError
from dicomweb_io.dicom.header_scan import UNDEFINED_LENGTH, scan_header, scan_trailing
from dicomweb_io.dicom.json_encode import encode
from dicomweb_io.dicom.part10 import (
    BYTES_BEHIND,
    ODD_VR,
    WITHOUT_DELIMITER,
    WITHOUT_PIXEL_DATA,
    Verdict,
    check_complete,
    encode_dataset,
    header_of,
    judge,
    read_dataset,
    read_range,
)
from dicomweb_io.elements import Instance

DATA = Path(pydicom.__file__).parent / "data"
FILES = sorted(
    path for path in DATA.rglob("*") if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".py"
)
CT_SMALL = (DATA / "test_files" / "CT_small.dcm").read_bytes()

NOT_DICOM = {
    "charset_files/FileInfo.txt",
    "hashes.json",
    "palettes/README.md",
    "test_files/README.txt",
    "test_files/crayons.icc",
    "test_files/dicomdirtests/README.txt",
    "test_files/dicomdirtests/TINY_ALPHA/README",
    "test_files/no_meta.dcm",  # its first byte is missing, so that no element is where it should be
    "test_files/rtplan.dump",
    "test_files/rtstruct.dump",
    "test_files/test1.json",
    "test_files/test_PN.json",
    "test_files/zipMR.gz",
    "urls.json",
}
WITHOUT_UIDS = {
    "charset_files/chrSQEncoding.dcm",
    "charset_files/chrSQEncoding1.dcm",
    "test_files/JPEGLSNearLossless_08.dcm",
    "test_files/JPEGLSNearLossless_16.dcm",
    "test_files/SC_rgb_jls_lossy_line.dcm",
    "test_files/SC_rgb_jls_lossy_sample.dcm",
    "test_files/UN_sequence.dcm",
    "test_files/empty_charset_LEI.dcm",
    "test_files/meta_missing_tsyntax.dcm",
    "test_files/nested_priv_SQ.dcm",
    "test_files/no_meta_group_length.dcm",
    "test_files/priv_SQ.dcm",
} | {path.relative_to(DATA).as_posix() for path in (DATA / "palettes").glob("*.dcm")}
TRUNCATED = {"test_files/MR_truncated.dcm", "test_files/rtplan_truncated.dcm"}
GUESSED = {
    "test_files/ExplVR_BigEndNoMeta.dcm": "1.2.840.10008.1.2.2",
    "test_files/ExplVR_LitEndNoMeta.dcm": "1.2.840.10008.1.2.1",
    "test_files/rtstruct.dcm": "1.2.840.10008.1.2",
}


class CountingFile(io.BytesIO):
    """Counts the bytes that were read from it."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.bytes_read = 0

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.bytes_read += len(data)
        return data


def name_of(path: Path) -> str:
    return path.relative_to(DATA).as_posix()


def small_dataset(syntax: str = ExplicitVRLittleEndian) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    dataset.SOPInstanceUID = "1.2.3.4"
    dataset.StudyInstanceUID = "1.2.3"
    dataset.SeriesInstanceUID = "1.2.3.1"
    return dataset


@pytest.mark.filterwarnings("ignore:Expected explicit VR")
@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_file_of_the_wheel(path: Path) -> None:
    name = name_of(path)
    content = path.read_bytes()
    if name in NOT_DICOM:
        with pytest.raises(NotDICOMError) as not_dicom:
            header_of(io.BytesIO(content))
        assert not_dicom.value.reason
        return
    parsed = pydicom.dcmread(io.BytesIO(content), force=True)
    with path.open("rb") as file:
        verdict = check_complete(file)
    assert (verdict is not None) == (name in TRUNCATED)
    assert check_complete(content) == verdict
    scan = scan_header(content)
    if "PixelData" in parsed:
        assert scan.pixel_data is not None
        _, offset, length = scan.pixel_data
        if length == UNDEFINED_LENGTH:
            # What pydicom calls the value ends before the delimiter.
            assert content[offset:].startswith(parsed.PixelData)
        elif verdict is None:
            assert read_range(content, scan, offset, length) == parsed.PixelData
    if "DICOMDIR" in name:
        with pytest.raises(DICOMDIRError):
            header_of(io.BytesIO(content))
        return
    if name in WITHOUT_UIDS:
        with pytest.raises(MissingUIDError) as missing:
            header_of(io.BytesIO(content))
        assert set(missing.value.missing) | set(missing.value.uids) == {
            "StudyInstanceUID",
            "SeriesInstanceUID",
            "SOPInstanceUID",
        }
        assert all(parsed[keyword].value == uid for keyword, uid in missing.value.uids.items())
        return
    header = header_of(io.BytesIO(content))
    assert header.study_instance_uid == parsed.StudyInstanceUID
    assert header.series_instance_uid == parsed.SeriesInstanceUID
    assert header.sop_instance_uid == parsed.SOPInstanceUID
    assert header.sop_class_uid == parsed.SOPClassUID
    assert header.transfer_syntax_uid == parsed.file_meta.get("TransferSyntaxUID", GUESSED.get(name))
    assert header.transfer_syntax_guessed == (name in GUESSED)
    assert header.transfer_syntax_uid


@pytest.mark.filterwarnings("ignore:Expected explicit VR")
def test_the_scan_finds_the_elements_that_pydicom_finds() -> None:
    for path in FILES:
        name = name_of(path)
        if name in NOT_DICOM or name in TRUNCATED:
            continue
        content = path.read_bytes()
        parsed = pydicom.dcmread(io.BytesIO(content), force=True)
        scan = scan_header(content)
        found = set(scan.elements)
        if scan.pixel_data_tag is not None:
            found |= {scan.pixel_data_tag, *scan_trailing(content, scan).elements}
        assert found == set(map(int, parsed._dict)), name


def test_an_unknown_size_and_short_reads_make_no_difference() -> None:
    class Dripping(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(min(size, 700) if size and size > 0 else size)

    assert header_of(Dripping(CT_SMALL)) == header_of(io.BytesIO(CT_SMALL), size=len(CT_SMALL))
    assert scan_header(Dripping(CT_SMALL)).elements == scan_header(CT_SMALL).elements


def test_pixel_data_are_not_read() -> None:
    dataset = small_dataset()
    dataset.BitsAllocated = 16
    dataset.PixelData = bytes(8 << 20)
    dataset["PixelData"].VR = "OW"
    file = CountingFile(encode_dataset(dataset))
    header_of(file)
    assert check_complete(file) is None
    assert file.bytes_read < 300_000


def test_large_values_are_skipped_but_known() -> None:
    dataset = small_dataset()
    dataset.EncapsulatedDocument = bytes(5 << 20)
    dataset.add_new(0x00420012, "LO", "application/pdf")
    item = Dataset()
    item.add_new(0x00660037, "OW", bytes(1 << 20))
    dataset.add_new(0x00660002, "SQ", [item])
    dataset["00660002"].is_undefined_length = True
    dataset.add_new(0x00880140, "UI", "1.2.3.5")
    content = encode_dataset(dataset)
    file = CountingFile(content)
    scan = scan_header(file)
    assert file.bytes_read < 400_000
    assert scan.problem is None
    assert len(scan.segments) == 3
    assert scan.text(0x00880140) == "1.2.3.5"
    assert scan.text(0x00420012) == "application/pdf"
    assert scan.value(0x00420011) is None
    whole = scan_header(content, large_value=None)
    assert whole.elements == scan.elements
    assert len(whole.segments) == 1
    vr, offset, length = scan.elements[0x00660002]
    assert vr == "SQ"
    assert content[offset : offset + 4] == b"\xfe\xff\x00\xe0"
    assert content[offset + length - 8 : offset + length] == b"\xfe\xff\xdd\xe0\0\0\0\0"
    assert check_complete(file) is None
    assert check_complete(content[: offset + length - 100]) is not None


@pytest.mark.parametrize(
    "name", ["CT_small.dcm", "MR_small_bigendian.dcm", "MR_small_implicit.dcm", "MR_small_RLE.dcm"]
)
def test_any_cut_is_noticed(name: str) -> None:
    content = (DATA / "test_files" / name).read_bytes()
    scan = scan_header(content)
    assert scan.pixel_data is not None
    end = len(content)
    if scan.pixel_data[2] != UNDEFINED_LENGTH:
        end = scan.pixel_data[1] + scan.pixel_data[2]
    boundaries = sorted(place[1] + place[2] for place in scan.elements.values())
    for cut in [*range(scan.dataset_offset, scan.pixel_data[1] + 20, 3), end - 1, end - 9]:
        before = max((boundary for boundary in boundaries if boundary <= cut), default=None)
        if before is not None and not content[before:cut].strip(b"\0"):
            continue  # what ends after an element, or after zeros that follow one, is whole as far as PS3.10 goes
        assert check_complete(content[:cut]), cut
        assert check_complete(io.BytesIO(content[:cut])), cut


def test_a_file_cut_before_its_uids_says_so() -> None:
    offset = scan_header(CT_SMALL).elements[0x0020000D][1]
    with pytest.raises(IncompleteDICOMError, match="SeriesInstanceUID") as incomplete:
        header_of(io.BytesIO(CT_SMALL[: offset + 10]))
    assert "0020,000D" in incomplete.value.reason
    with pytest.raises(IncompleteDICOMError, match="file meta"):
        header_of(io.BytesIO(CT_SMALL[:200]))


@pytest.mark.parametrize("padding", [b"\0", bytes(7), bytes(12), bytes(3000)])
def test_zeros_at_the_end_are_padding(padding: bytes) -> None:
    assert check_complete(CT_SMALL + padding) is None
    assert check_complete((DATA / "test_files" / "MR_small_RLE.dcm").read_bytes() + padding) is None
    assert check_complete((DATA / "test_files" / "rtplan.dcm").read_bytes() + padding) is None


def test_a_cut_deflated_stream_is_noticed_and_memory_stays_bounded() -> None:
    content = (DATA / "test_files" / "image_dfl.dcm").read_bytes()
    assert check_complete(content) is None
    assert "cut off" in str(check_complete(content[:-200]))
    damaged = bytearray(content)
    damaged[2000:2100] = bytes(100)
    assert check_complete(bytes(damaged)) is not None
    start = scan_header(content).dataset_offset
    bomb = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    head = struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, 1 << 27)
    packed = bomb.compress(head) + b"".join(bomb.compress(bytes(1 << 20)) for _ in range(1 << 7)) + bomb.flush()
    script = (
        "import resource, sys\n"
        "from dicomweb_io.dicom.part10 import check_complete\n"
        "content = sys.stdin.buffer.read()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "assert check_complete(content) is None\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=content[:start] + packed,
        capture_output=True,
        check=True,
        cwd=Path(__file__).parents[3],
    )
    assert int(done.stdout) < 40 << 10  # KiB, for 128 MiB inflated


def test_unsorted_elements_are_found() -> None:
    meta_end = scan_header(CT_SMALL).dataset_offset
    uids = [(0x0020000E, "1.2.2"), (0x0020000D, "1.2.1"), (0x00080018, "1.2.3.6")]
    body = b"".join(
        struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, b"UI", 8) + uid.encode().ljust(8, b"\0") for tag, uid in uids
    )
    header = header_of(io.BytesIO(CT_SMALL[:meta_end] + body))
    assert (header.study_instance_uid, header.series_instance_uid, header.sop_instance_uid) == (
        "1.2.1",
        "1.2.2",
        "1.2.3.6",
    )


@pytest.mark.parametrize("content", [b"", b"x", bytes(200), b"\x08\x00" * 50, b"\x89PNG\r\n\x1a\n" + bytes(200)])
def test_what_is_not_dicom(content: bytes) -> None:
    with pytest.raises(NotDICOMError):
        header_of(io.BytesIO(content))


@settings(max_examples=300)
@given(st.data())
def test_damaged_files_end_in_an_answer_or_a_part10_error(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(["MR_small_RLE.dcm", "reportsi.dcm", "rtplan.dcm", "SC_rgb_small_odd.dcm"]))
    content = bytearray((DATA / "test_files" / name).read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(128, len(content) - 1))] = data.draw(st.integers(0, 255))
    broken = bytes(content[: data.draw(st.integers(0, len(content)))])
    for form in (broken, io.BytesIO(broken)):
        reason: str | None
        try:
            reason = check_complete(form)
        except (NotDICOMError, IncompleteDICOMError) as error:
            reason = error.reason
        assert reason is None or reason


def test_errors_pickle() -> None:
    error = pickle.loads(pickle.dumps(MissingUIDError("no", ("StudyInstanceUID",), {"SOPInstanceUID": "1.2"})))
    assert (error.reason, error.missing, error.uids) == ("no", ("StudyInstanceUID",), {"SOPInstanceUID": "1.2"})
    assert pickle.loads(pickle.dumps(NotDICOMError("because"))).reason == "because"


def test_importing_the_module_does_not_import_pydicom() -> None:
    script = "import sys, dicomweb_io.dicom.part10; sys.exit('pydicom' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[3], check=False).returncode == 0


def test_encode_dataset_gives_a_complete_file() -> None:
    for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian):
        dataset = small_dataset(syntax)
        del dataset.file_meta.TransferSyntaxUID
        dataset.file_meta.TransferSyntaxUID = syntax
        content = encode_dataset(dataset)
        assert check_complete(content) is None
        assert content[128:132] == b"DICM"
        header = header_of(io.BytesIO(content))
        assert header.transfer_syntax_uid == syntax
        read = pydicom.dcmread(io.BytesIO(content))
        assert read == dataset
        assert read.file_meta.MediaStorageSOPInstanceUID == "1.2.3.4"
        assert read.file_meta.MediaStorageSOPClassUID == dataset.SOPClassUID


def test_encode_dataset_keeps_what_was_read() -> None:
    for name in ("CT_small.dcm", "rtplan.dcm", "MR_small_bigendian.dcm", "MR_small_RLE.dcm", "liver_1frame.dcm"):
        content = (DATA / "test_files" / name).read_bytes()
        dataset = pydicom.dcmread(io.BytesIO(content))
        encoded = encode_dataset(dataset)
        assert check_complete(encoded) is None
        again = pydicom.dcmread(io.BytesIO(encoded))
        assert again == dataset
        assert again.file_meta.TransferSyntaxUID == dataset.file_meta.TransferSyntaxUID


def test_encode_dataset_does_not_change_the_dataset() -> None:
    dataset = pydicom.dcmread(DATA / "test_files" / "MR_small_implicit.dcm")
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    item = Dataset()
    item.add_new(0x00280106, "US or SS", b"\x01\x00")
    dataset.add_new(0x00081140, "SQ", [item])
    dataset.add_new(0x00280107, "US or SS", b"\x01\x00")
    meta_before = dataset.file_meta.to_json_dict()
    content = encode_dataset(dataset)
    assert pydicom.dcmread(io.BytesIO(content)).LargestImagePixelValue == 1
    assert dataset["LargestImagePixelValue"].VR == "US or SS"
    assert item[0x00280106].VR == "US or SS"
    assert item[0x00280106].value == b"\x01\x00"
    assert dataset.file_meta.to_json_dict() == meta_before
    assert dataset["PixelData"].is_undefined_length is False


def test_encode_dataset_needs_to_know_the_transfer_syntax() -> None:
    dataset = small_dataset()
    del dataset.file_meta
    with pytest.raises(ValueError, match="TransferSyntaxUID"):
        encode_dataset(dataset)
    read = pydicom.dcmread(DATA / "test_files" / "rtstruct.dcm", force=True)
    assert header_of(io.BytesIO(encode_dataset(read))).transfer_syntax_uid == ImplicitVRLittleEndian
    compressed = small_dataset(JPEGBaseline8Bit)
    compressed.BitsAllocated = 8
    compressed.PixelData = encapsulate([b"\xff\xd8\xff\xd9"])
    compressed["PixelData"].is_undefined_length = True
    compressed["PixelData"].VR = "OB"
    stored = pydicom.dcmread(io.BytesIO(encode_dataset(compressed)))
    del stored.file_meta.TransferSyntaxUID
    with pytest.raises(ValueError, match="TransferSyntaxUID"):
        encode_dataset(stored)


@pytest.mark.filterwarnings("ignore:A value of type 'str'")
def test_encode_dataset_errors_name_tags_and_no_values() -> None:
    dataset = small_dataset()
    del dataset.SOPInstanceUID
    with pytest.raises(ValueError, match="SOPInstanceUID"):
        encode_dataset(dataset)
    with pytest.raises(TypeError, match="dict"):
        encode_dataset({})  # type: ignore[arg-type]
    dataset = small_dataset()
    dataset.add_new(0x00280010, "US", "Secret^Name")
    with pytest.raises(ValueError, match=r"0028,\s?0010") as failed:
        encode_dataset(dataset)
    assert "Secret" not in str(failed.value)
    assert failed.value.__cause__ is None


# Odd is not broken, and broken is not odd -----------------------------------------------------------------------------

RLE_2_FRAMES = (DATA / "test_files" / "SC_rgb_rle_2frame.dcm").read_bytes()
JPEG_FRAMES = (DATA / "test_files" / "examples_ybr_color.dcm").read_bytes()


def element(tag: int, vr: bytes, value: bytes, *, wide: bool = False) -> bytes:
    head = struct.pack("<HH", tag >> 16, tag & 0xFFFF) + vr
    return head + (struct.pack("<HI", 0, len(value)) if wide else struct.pack("<H", len(value))) + value


def with_element(content: bytes, added: bytes, before: int = 0x00280002) -> bytes:
    """CT_small with an element before one of its own."""
    place = scan_header(content).elements[before][1] - 8
    return content[:place] + added + content[place:]


def before_pixels(content: bytes) -> bytes:
    return content[: scan_header(content).end]


@pytest.mark.parametrize(
    "name", ["CT_small.dcm", "MR_small_implicit.dcm", "MR_small_bigendian.dcm", "MR_small_RLE.dcm"]
)
def test_a_file_that_ends_before_its_pixels_is_whole_with_a_warning(name: str) -> None:
    verdict = judge(before_pixels((DATA / "test_files" / name).read_bytes()))
    assert verdict == Verdict(warnings=(WITHOUT_PIXEL_DATA,))
    assert check_complete(before_pixels(CT_SMALL)) is None


def test_pixels_that_are_lawfully_elsewhere_or_absent_cause_no_warning() -> None:
    assert judge(CT_SMALL).warnings == ()
    assert judge((DATA / "test_files" / "rtplan.dcm").read_bytes()).warnings == ()
    url = element(0x00287FE0, b"UR", b"http://127.0.0.1", wide=True)
    assert judge(before_pixels(CT_SMALL) + url).warnings == ()


def test_an_element_behind_where_pixels_stand_proves_that_none_were_cut_off() -> None:
    behind = element(0xFFFCFFFC, b"OB", bytes(8), wide=True)
    assert judge(before_pixels(CT_SMALL) + behind) == Verdict(proves_end=True, warnings=(WITHOUT_PIXEL_DATA,))


def test_the_end_mark_of_a_deflated_stream_proves_its_end() -> None:
    start = scan_header(CT_SMALL).dataset_offset
    uid = b"1.2.840.10008.1.2.1.99"
    squeeze = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    body = squeeze.compress(before_pixels(CT_SMALL)[start:])
    whole = bytes(128) + b"DICM" + element(0x00020010, b"UI", uid) + body + squeeze.flush()
    assert judge(whole) == Verdict(proves_end=True, warnings=(WITHOUT_PIXEL_DATA,))
    # All the elements, and no end mark.
    squeeze = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    body = squeeze.compress(before_pixels(CT_SMALL)[start:]) + squeeze.flush(zlib.Z_SYNC_FLUSH)
    verdict = judge(bytes(128) + b"DICM" + element(0x00020010, b"UI", uid) + body)
    assert verdict.problem == "the deflated dataset is cut off"


def encapsulated(fragments: list[bytes], *, frames: int, table: bytes = b"", syntax: str = JPEGBaseline8Bit) -> bytes:
    """An image with these fragments and without the delimiter behind them."""
    dataset = small_dataset(syntax)
    dataset.NumberOfFrames = frames
    dataset.Rows = dataset.Columns = dataset.BitsAllocated = 8
    items = b"".join(struct.pack("<HHI", 0xFFFE, 0xE000, len(item)) + item for item in [table, *fragments])
    return encode_dataset(dataset) + struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, 0xFFFFFFFF) + items


JPEG = b"\xff\xd8frame\xff\xd9\x00"
OPEN = b"\xff\xd8frames"
OFFSETS = struct.pack("<2I", 0, 16 + 18)


@pytest.mark.parametrize(
    ("content", "proven"),
    [
        (RLE_2_FRAMES[:-8], True),
        (JPEG_FRAMES[:-8], True),
        (encapsulated([JPEG, JPEG], frames=2), True),
        (encapsulated([JPEG, JPEG], frames=2) + bytes(20), True),
        (encapsulated([JPEG], frames=250, syntax="1.2.840.10008.1.2.4.102"), False),
        (encapsulated([JPEG], frames=1), True),
        (encapsulated([OPEN], frames=1), False),
        (encapsulated([OPEN, JPEG, OPEN, JPEG], frames=2, table=OFFSETS), True),
        (encapsulated([OPEN, JPEG, OPEN], frames=2, table=OFFSETS), False),
        (encapsulated([OPEN, JPEG, JPEG], frames=2), False),
        (encapsulated([JPEG], frames=0), False),
    ],
)
def test_a_missing_delimiter_is_odd_where_all_frames_are_there(content: bytes, proven: bool) -> None:
    if content[-8:-4] == b"\xfe\xff\xdd\xe0":
        content = content[:-8]
    verdict = judge(content)
    assert (verdict.problem, verdict.warnings) == (None, (WITHOUT_DELIMITER,))
    assert read_dataset(io.BytesIO(content)).PixelData
    assert (verdict.open_end is None) == proven
    assert (check_complete(io.BytesIO(content)) is None) == proven
    content = content.rstrip(b"\0")
    assert judge(content[:-1]).problem  # a fragment that is cut off
    assert judge(content[:-1]).warnings == ()


def test_fewer_fragments_than_frames_are_a_count_that_is_not_met() -> None:
    assert "2 fragments cannot hold 3 frames" in str(judge(encapsulated([JPEG, JPEG], frames=3)).problem)
    assert "0 fragments cannot hold 1 frames" in str(judge(encapsulated([], frames=1)).problem)


def test_an_extended_offset_table_proves_the_frames() -> None:
    content = encapsulated([OPEN, OPEN], frames=2)
    tables = element(0x7FE00001, b"OV", struct.pack("<2Q", 0, 16), wide=True)
    lengths = element(0x7FE00002, b"OV", struct.pack("<2Q", 8, 7), wide=True)
    pixels = scan_header(content).end
    assert judge(content[:pixels] + tables + lengths + content[pixels:]).open_end is None
    assert judge(content[:pixels] + tables + lengths + content[pixels:-16]).problem


def test_a_sequence_without_its_delimiter_may_be_cut_off() -> None:
    item = struct.pack("<HHI", 0xFFFE, 0xE000, 0) + struct.pack("<HHI", 0xFFFE, 0xE000, 0)
    report = encode_dataset(small_dataset()) + struct.pack("<HH2sHI", 0x0040, 0xA730, b"SQ", 0, 0xFFFFFFFF) + item
    verdict = judge(report)
    assert (verdict.problem, verdict.warnings) == (None, (WITHOUT_DELIMITER,))
    assert "0040,A730" in str(verdict.open_end)
    assert len(Instance.from_bytes(report).dataset().ContentSequence) == 2
    assert judge(report[:-4]).problem


@pytest.mark.parametrize("behind", [b"\r\n", b"\r\n--boundary--\r\n", b"x" * 100, b"\n"])
@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small_implicit.dcm", "MR_small_RLE.dcm"])
def test_bytes_behind_complete_pixels_are_odd(name: str, behind: bytes) -> None:
    content = (DATA / "test_files" / name).read_bytes()
    scan = scan_header(content)
    assert scan.pixel_data is not None
    _, offset, length = scan.pixel_data
    whole = content if length == UNDEFINED_LENGTH else content[: offset + length]
    assert judge(whole + behind) == Verdict(warnings=(BYTES_BEHIND,))


def test_an_element_behind_the_pixels_that_is_cut_off_is_no_oddity() -> None:
    signature = struct.pack("<HH2sHI", 0xFFFA, 0xFFFA, b"SQ", 0, 100) + bytes(20)
    _, offset, length = scan_header(CT_SMALL).pixel_data or (None, 0, 0)
    for cut in (2, 4, 7, 10, 30):
        assert judge(CT_SMALL[: offset + length] + signature[:cut]).problem, cut


@pytest.mark.parametrize("vr", [b"--", b"??", b"  ", b"ob", b"XX", b"\0\0", b"-\0"])
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("value", [b"", b"1234", bytes(range(200))])
def test_an_odd_vr_does_not_hide_what_follows(vr: bytes, wide: bool, value: bytes) -> None:
    private = element(0x00190010, b"LO", b"ACME") + element(0x00191001, vr, value, wide=wide)
    content = with_element(CT_SMALL, private + element(0x00191002, b"--", b"ab"))
    verdict = judge(content)
    assert (verdict.problem, verdict.warnings) == (None, (ODD_VR,))
    scan = scan_header(content)
    assert scan.elements.keys() >= scan_header(CT_SMALL).elements.keys() | {0x00191001, 0x00191002}
    assert scan.value(0x00191001) == value
    assert header_of(io.BytesIO(content)).sop_instance_uid == header_of(io.BytesIO(CT_SMALL)).sop_instance_uid


def test_an_odd_vr_before_the_uids_and_inside_a_sequence() -> None:
    private = element(0x00090010, b"LO", b"ACME") + element(0x00091001, b"--", b"12")
    early = with_element(CT_SMALL, private, 0x00100010)
    assert header_of(io.BytesIO(early)).study_instance_uid == header_of(io.BytesIO(CT_SMALL)).study_instance_uid
    private = element(0x00190010, b"LO", b"ACME") + element(0x00191001, b"--", b"abcdef")
    inside = private + element(0x00400001, b"AE", b"")
    undefined = [struct.pack("<HHI", 0xFFFE, number, length) for number, length in ((0xE000, 0xFFFFFFFF), (0xE00D, 0))]
    value = undefined[0] + inside + undefined[1] + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    content = with_element(CT_SMALL, struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF) + value, 0x00100010)
    assert check_complete(content) is None
    found = encode(content)["00081140"]["Value"]
    assert found[0].keys() == {"00190010", "00191001", "00400001"}


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("vr", [b"--", b"??"])
def test_an_odd_vr_may_come_first_in_an_item_or_in_no_order(vr: bytes, wide: bool) -> None:
    odd = element(0x00191001, vr, b"abcdef", wide=wide)
    items = [struct.pack("<HHI", 0xFFFE, number, length) for number, length in ((0xE000, 0xFFFFFFFF), (0xE00D, 0))]
    value = items[0] + odd + items[1] + struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    content = with_element(CT_SMALL, struct.pack("<HH2sHI", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF) + value, 0x00100010)
    assert check_complete(content) is None
    assert encode(content)["00081140"]["Value"][0].keys() == {"00191001"}
    undefined = struct.pack("<HH2sHI", 0x0019, 0x1002, vr, 0, 0xFFFFFFFF) + value
    assert judge(with_element(CT_SMALL, odd + undefined)) == Verdict(warnings=(ODD_VR,))
    unsorted = with_element(CT_SMALL, odd + element(0x00190010, b"LO", b"ACME"))
    assert judge(unsorted) == Verdict(warnings=(ODD_VR,))


def test_a_file_with_the_prefix_alone_is_dicom() -> None:
    bare = CT_SMALL[128:]
    header = header_of(io.BytesIO(bare))
    assert header.sop_instance_uid == header_of(io.BytesIO(CT_SMALL)).sop_instance_uid
    assert header.transfer_syntax_uid == "1.2.840.10008.1.2.1"
    assert judge(bare) == Verdict()
    instance = Instance.from_bytes(bare)
    assert instance.dataset().pixel_array.shape == (128, 128)
    assert instance.read() == bare
