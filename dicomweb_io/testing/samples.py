"""Sample data: the real DICOM files inside pydicom, clones of them with new UIDs, and synthetic ones of any size.

Nothing is downloaded. pydicom's wheel carries 176 test files of many modalities and encodings (MIT licence), some of
them damaged on purpose, some not DICOM at all, several sharing one SOP Instance UID. Clones keep every byte but the
UIDs, so that a few files make an archive of any number of instances.
"""

from __future__ import annotations

import hashlib
import io
import os
import random
import shutil
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from dicomweb_io.dicom.part10 import encode_dataset
from dicomweb_io.dicom.uids import check_uid

_EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
_IMPLICIT_LITTLE = "1.2.840.10008.1.2"
_EXPLICIT_BIG = "1.2.840.10008.1.2.2"
_DEFLATED = "1.2.840.10008.1.2.1.99"

_CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
_MULTI_FRAME_WORD_SC = "1.2.840.10008.5.1.4.1.1.7.3"
_SYNTHETIC_SIDE = 512
_LONGEST_NATIVE = 0xFFFFFFFE

_GROUP_LENGTH = 0x00020000
_META_INSTANCE = 0x00020003
_STUDY = 0x0020000D
_SERIES = 0x0020000E
_INSTANCE = 0x00080018


def sample_directory() -> Path:
    """The folder of pydicom's test files, inside the installed package; it is not to be written to."""
    import pydicom.data

    return Path(str(pydicom.data.__file__)).parent / "test_files"


def sample_files() -> list[Path]:
    """All files of pydicom's test folder, sorted by path: DICOM, damaged DICOM, DICOMDIRs, and what is not DICOM."""
    return sorted(path for path in sample_directory().rglob("*") if path.is_file())


def sample_file(name: str) -> Path:
    """One test or character set file by its name.

    Args:
        name: Such as ``"CT_small.dcm"``; for files in subfolders the path below the test folder.

    Raises:
        FileNotFoundError: If pydicom carries no such file.
    """
    for directory in (sample_directory(), sample_directory().parent / "charset_files"):
        path = directory / name
        if path.is_file():
            return path
    raise FileNotFoundError(f"pydicom carries no test file {name!r}")


def charset_files() -> list[Path]:
    """The DICOM files in many character sets, sorted by path."""
    return sorted((sample_directory().parent / "charset_files").glob("*.dcm"))


def copy_samples(directory: str | os.PathLike[str]) -> list[Path]:
    """Copies all test files into a folder, under their names and in their subfolders.

    Args:
        directory: Where to; created if it does not exist.

    Returns:
        The paths of the copies, sorted.
    """
    root = sample_directory()
    copies = []
    for path in sample_files():
        target = Path(directory) / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        copies.append(target)
    return sorted(copies)


def new_uid(*parts: object) -> str:
    """A UID below ``2.25`` (PS3.5 section B.2) made from any values: the same values give the same UID."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return f"2.25.{int.from_bytes(digest[:16], 'big')}"


@dataclass(frozen=True)
class _Slot:
    """Where a UID stands: from its length field to the end of its value."""

    kind: int
    start: int
    end: int
    length_format: str


class Template:
    """A Part 10 file prepared for being cloned many times: only UIDs are exchanged, every other byte is kept.

    Args:
        content: The file.

    Raises:
        ValueError: If a study, series or SOP Instance UID is missing, or the file cannot be read.
    """

    def __init__(self, content: bytes) -> None:
        import pydicom

        try:
            dataset = pydicom.dcmread(
                io.BytesIO(content), stop_before_pixels=True, force=True, specific_tags=[_STUDY, _SERIES, _INSTANCE]
            )
        except Exception as error:  # pydicom raises almost anything on damaged files
            raise ValueError(f"the file cannot be cloned, because it cannot be read: {type(error).__name__}") from error
        syntax = str(dataset.file_meta.get("TransferSyntaxUID", "")) or _assumed_syntax(dataset)
        self.study_instance_uid = str(dataset.get("StudyInstanceUID", ""))
        self.series_instance_uid = str(dataset.get("SeriesInstanceUID", ""))
        self.sop_instance_uid = str(dataset.get("SOPInstanceUID", ""))
        if not (self.study_instance_uid and self.series_instance_uid and self.sop_instance_uid):
            raise ValueError("the file cannot be cloned, because it lacks a study, series or SOP Instance UID")
        self._deflated = syntax == _DEFLATED
        little = syntax != _EXPLICIT_BIG
        length_format = "<I" if syntax == _IMPLICIT_LITTLE else "<H" if little else ">H"
        meta, body = _split(content)
        if self._deflated:
            body = zlib.decompress(body, wbits=-zlib.MAX_WBITS)
        self._meta, self._body = meta, body
        self._meta_slots = list(_meta_slots(meta))
        self._body_slots = sorted(
            (
                _find(body, tag, value, length_format)
                for tag, value in (
                    (_STUDY, self.study_instance_uid),
                    (_SERIES, self.series_instance_uid),
                    (_INSTANCE, self.sop_instance_uid),
                )
            ),
            key=lambda slot: slot.start,
        )

    def make(self, study_instance_uid: str, series_instance_uid: str, sop_instance_uid: str) -> bytes:
        """The file with these UIDs."""
        uids = {
            _STUDY: check_uid(study_instance_uid, "study_instance_uid"),
            _SERIES: check_uid(series_instance_uid, "series_instance_uid"),
            _INSTANCE: check_uid(sop_instance_uid, "sop_instance_uid"),
        }
        uids[_META_INSTANCE] = uids[_INSTANCE]
        meta = bytearray(_splice(self._meta, [slot for slot in self._meta_slots if slot.kind != _GROUP_LENGTH], uids))
        for slot in self._meta_slots:
            if slot.kind == _GROUP_LENGTH:
                meta[slot.start : slot.end] = struct.pack("<I", len(meta) - slot.end)
        body = _splice(self._body, self._body_slots, uids)
        if self._deflated:
            deflate = zlib.compressobj(wbits=-zlib.MAX_WBITS)
            body = deflate.compress(body) + deflate.flush()
            body += b"\0" * (len(body) % 2)
        return bytes(meta) + body


@lru_cache(maxsize=32)
def _template(content: bytes) -> Template:
    return Template(content)


def clone(
    content: bytes,
    seed: object = 0,
    *,
    study_instance_uid: str | None = None,
    series_instance_uid: str | None = None,
    sop_instance_uid: str | None = None,
) -> bytes:
    """Gives a Part 10 file new UIDs and keeps every other byte (a deflated dataset is deflated anew).

    Args:
        content: The file.
        seed: Anything printable. The new UIDs follow from it and the old UIDs: files of one study that are cloned with
            the same seed stay in one study.
        study_instance_uid: The study of the clone, instead of a new one.
        series_instance_uid: The series of the clone, instead of a new one.
        sop_instance_uid: The SOP Instance UID of the clone, instead of a new one.

    Raises:
        ValueError: If the file lacks a UID or cannot be read.
    """
    template = _template(content)
    study = study_instance_uid or new_uid(seed, template.study_instance_uid)
    series = series_instance_uid or new_uid(seed, template.study_instance_uid, template.series_instance_uid)
    instance = sop_instance_uid or new_uid(seed, "instance", template.sop_instance_uid)
    return template.make(study, series, instance)


def encapsulate_frames(content: bytes) -> bytes:
    """Encapsulates native pixel data, a fragment for each frame, as RLE, which they are not; else changes nothing."""
    import pydicom
    from pydicom.encaps import encapsulate

    dataset = pydicom.dcmread(io.BytesIO(content))
    pixels = dataset.get("PixelData")
    if not pixels or dataset.file_meta.TransferSyntaxUID.is_compressed:
        return content
    frames = int(dataset.get("NumberOfFrames", 1))
    size = len(pixels) // frames
    dataset.PixelData = encapsulate([pixels[number * size : (number + 1) * size] for number in range(frames)])
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.RLELossless
    return encode_dataset(dataset)


def synthetic_instance(
    size: int,
    path: str | os.PathLike[str],
    *,
    seed: object = 0,
    study_instance_uid: str | None = None,
    series_instance_uid: str | None = None,
    sop_instance_uid: str | None = None,
    number: int = 1,
) -> Path:
    """Writes a valid image of any size in Explicit VR Little Endian, frame by frame, with little memory.

    Up to 512 KiB it is a CT image of one frame, above that a multi-frame secondary capture with 512 by 512 pixels in
    each frame. The pixels look random, differ from frame to frame, and follow from the seed.

    Args:
        size: Bytes of pixel data, from 2 to just below 4 GiB, rounded up to whole rows and frames.
        path: The file to write; its folder must exist.
        seed: Anything printable, for the UIDs and the pixels.
        study_instance_uid: The study, instead of one made from the seed.
        series_instance_uid: The series, instead of one made from the seed.
        sop_instance_uid: The instance, instead of one made from the seed and `number`.
        number: The InstanceNumber.

    Returns:
        The path.

    Raises:
        ValueError: If `size` is out of range.
    """
    if size < 2:
        raise ValueError(f"size must be at least 2 bytes, not {size}")
    columns = min(_SYNTHETIC_SIDE, (size + 1) // 2)
    rows = min(_SYNTHETIC_SIDE, -(-size // (2 * columns)))
    frame_bytes = 2 * rows * columns
    frames = -(-size // frame_bytes)
    if frames * frame_bytes > _LONGEST_NATIVE:
        raise ValueError(f"size must be below 4 GiB, because native pixel data cannot be longer; it is {size}")
    uids = (
        study_instance_uid or new_uid(seed, "study"),
        series_instance_uid or new_uid(seed, "series"),
        sop_instance_uid or new_uid(seed, "instance", number),
    )
    header = _synthetic_header(rows, columns, frames, number, *uids)
    generator = random.Random(f"{seed}/{number}")  # noqa: S311 - pixels, not secrets
    noise = bytearray(generator.randbytes(frame_bytes))
    with open(path, "wb") as file:
        file.write(header)
        file.write(struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OW", 0, frames * frame_bytes))
        for frame in range(frames):
            # A rotation of the noise and a counter make each frame differ at the cost of a copy.
            cut = 2 * ((frame * 7919) % (rows * columns))
            file.write(noise[cut:])
            file.write(noise[:cut])
            noise[0:2] = struct.pack("<H", frame & 0xFFFF)
    return Path(path)


def make_study(
    directory: str | os.PathLike[str],
    studies: int = 1,
    series: int = 1,
    instances: int = 10,
    size: int = 2048,
    *,
    seed: object = 0,
    template: bytes | None = None,
) -> list[Path]:
    """Writes an archive of studies by series by instances, in folders ``study-0000/series-0000``.

    Args:
        directory: Where to; created if it does not exist.
        studies: Number of studies.
        series: Number of series in each study.
        instances: Number of instances in each series.
        size: Bytes of pixel data of each instance.
        seed: Anything printable, for the UIDs and the pixels.
        template: A Part 10 file to clone instead of synthetic images; `size` is then not used.

    Returns:
        The paths, study by study, series by series, in order of InstanceNumber.
    """
    paths = []
    for study in range(studies):
        for one_series in range(series):
            folder = Path(directory) / f"study-{study:04d}" / f"series-{one_series:04d}"
            folder.mkdir(parents=True, exist_ok=True)
            uids = (new_uid(seed, "study", study), new_uid(seed, "series", study, one_series))
            for number in range(instances):
                path = folder / f"instance-{number:06d}.dcm"
                instance = new_uid(seed, "instance", study, one_series, number)
                if template is not None:
                    path.write_bytes(_template(template).make(*uids, instance))
                else:
                    synthetic_instance(
                        size,
                        path,
                        seed=f"{seed}/{study}/{one_series}",
                        study_instance_uid=uids[0],
                        series_instance_uid=uids[1],
                        sop_instance_uid=instance,
                        number=number + 1,
                    )
                paths.append(path)
    return paths


def _synthetic_header(
    rows: int, columns: int, frames: int, number: int, study: str, series: str, instance: str
) -> bytes:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID

    values: dict[str, object] = {
        "SOPClassUID": UID(_MULTI_FRAME_WORD_SC if frames > 1 else _CT_IMAGE_STORAGE),
        "SOPInstanceUID": UID(instance),
        "StudyDate": "20260102",
        "StudyTime": "030405",
        "AccessionNumber": new_uid(study)[-12:],
        "Modality": "OT" if frames > 1 else "CT",
        "Manufacturer": "dicomweb_io",
        "ReferringPhysicianName": "",
        "StudyDescription": "Synthetic",
        "PatientName": "Synthetic^Sample",
        "PatientID": "SYNTHETIC",
        "PatientBirthDate": "",
        "PatientSex": "",
        "StudyInstanceUID": study,
        "SeriesInstanceUID": series,
        "StudyID": "1",
        "SeriesNumber": 1,
        "InstanceNumber": number,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": rows,
        "Columns": columns,
        "BitsAllocated": 16,
        "BitsStored": 16,
        "HighBit": 15,
        "PixelRepresentation": 0,
    }
    if frames > 1:
        values |= {
            "ConversionType": "SYN",
            "NumberOfFrames": frames,
            "FrameIncrementPointer": 0x00181063,
            "FrameTime": "40",
        }
    else:
        values |= {
            "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
            "KVP": "120",
            "RescaleIntercept": "-1024",
            "RescaleSlope": "1",
            "ImagePositionPatient": [0, 0, number],
            "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
            "PixelSpacing": [1, 1],
            "SliceThickness": "1",
            "FrameOfReferenceUID": new_uid(study, "frame of reference"),
        }
    dataset = Dataset()
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = dataset.SOPClassUID, UID(instance)
    meta.TransferSyntaxUID = UID(_EXPLICIT_LITTLE)
    dataset.file_meta = meta
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _assumed_syntax(dataset: object) -> str:
    """The syntax pydicom found for a file without file meta information."""
    implicit, little = getattr(dataset, "original_encoding", (False, True))
    if implicit:
        return _IMPLICIT_LITTLE
    return _EXPLICIT_LITTLE if little else _EXPLICIT_BIG


def _split(content: bytes) -> tuple[bytes, bytes]:
    """The preamble with the file meta information, and the dataset after it."""
    position = 132 if content[128:132] == b"DICM" else 0
    while content[position : position + 2] == b"\x02\x00":
        position += _meta_element(content, position)[0]
    return content[:position], content[position:]


def _meta_element(content: bytes, position: int) -> tuple[int, int]:
    """The length of an element of the file meta information with its header, and of the header alone."""
    if content[position + 4 : position + 6] in (b"OB", b"OW", b"UN", b"SQ", b"UT", b"UC", b"UR"):
        return 12 + int(struct.unpack_from("<I", content, position + 8)[0]), 12
    return 8 + int(struct.unpack_from("<H", content, position + 6)[0]), 8


def _meta_slots(meta: bytes) -> Iterator[_Slot]:
    position = 132 if meta[128:132] == b"DICM" else 0
    while position < len(meta):
        length, header = _meta_element(meta, position)
        group, element = struct.unpack_from("<HH", meta, position)
        tag = group << 16 | element
        if tag == _GROUP_LENGTH:
            yield _Slot(tag, position + header, position + length, "")
        elif tag == _META_INSTANCE:
            yield _Slot(tag, position + 6, position + length, "<H")
        position += length


def _find(body: bytes, tag: int, value: str, length_format: str) -> _Slot:
    """Finds an element of the top level; no real file has the same UID at the same tag in a sequence before it."""
    order = length_format[0]
    padded = value.encode("ascii")
    for tail in (padded + b"\0" * (len(padded) % 2), padded + b" " * (len(padded) % 2), padded):
        explicit = b"UI" if length_format[1] == "H" else b""
        start = struct.pack(f"{order}HH", tag >> 16, tag & 0xFFFF) + explicit
        at = body.find(start + struct.pack(length_format, len(tail)) + tail)
        if at >= 0:
            begin = at + len(start)
            return _Slot(tag, begin, begin + struct.calcsize(length_format) + len(tail), length_format)
    raise ValueError(f"the file cannot be cloned: the element {tag:08X} is encoded in an unusual way")


def _splice(content: bytes, slots: list[_Slot], uids: dict[int, str]) -> bytes:
    pieces = []
    position = 0
    for slot in slots:
        value = uids[slot.kind].encode("ascii")
        value += b"\0" * (len(value) % 2)
        pieces += [content[position : slot.start], struct.pack(slot.length_format, len(value)), value]
        position = slot.end
    return b"".join([*pieces, content[position:]])
