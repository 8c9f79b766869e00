"""What a hostile archive sends: files, rows and multipart answers with any text where a UID belongs."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable

from tests.answering import Reply

STUDY, SERIES, INSTANCE = "1.2.3", "1.2.3.4", "1.2.3.4.5"
CT = "1.2.840.10008.5.1.4.1.1.2"
EXPLICIT = "1.2.840.10008.1.2.1"
DEFLATED = "1.2.840.10008.1.2.1.99"
JSON = {"Content-Type": "application/dicom+json"}
BOUNDARY = "edge"
_LONG = ("OB", "OW", "UN", "UT", "SQ")


def element(tag: int, vr: str, value: bytes | str) -> bytes:
    """One data element, explicit VR little endian, whatever the value."""
    content = value.encode() if isinstance(value, str) else value
    content += b"\0" * (len(content) % 2)
    head = struct.pack("<HH2s", tag >> 16, tag & 0xFFFF, vr.encode())
    if vr in _LONG:
        return head + struct.pack("<HI", 0, len(content)) + content
    return head + struct.pack("<H", len(content)) + content


def part10(
    study: str = STUDY, series: str = SERIES, instance: str = INSTANCE, *, more: bytes = b"", syntax: str = EXPLICIT
) -> bytes:
    """A Part 10 file with these identifiers; `more` are further elements of higher tags."""
    meta = element(0x00020002, "UI", CT) + element(0x00020003, "UI", instance) + element(0x00020010, "UI", syntax)
    dataset = b"".join(
        [
            element(0x00080016, "UI", CT),
            element(0x00080018, "UI", instance),
            element(0x00080060, "CS", "CT"),
            element(0x00100010, "PN", "Zzyzx^Quentin"),
            element(0x0020000D, "UI", study),
            element(0x0020000E, "UI", series),
            more,
        ]
    )
    if syntax == DEFLATED:
        squeeze = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
        dataset = squeeze.compress(dataset) + squeeze.flush()
    return b"\0" * 128 + b"DICM" + element(0x00020000, "UL", struct.pack("<I", len(meta))) + meta + dataset


def row(study: str = STUDY, series: str = SERIES, instance: str = INSTANCE) -> dict[str, object]:
    """A row of a search, or the metadata of an instance."""
    return {
        "00080016": {"vr": "UI", "Value": [CT]},
        "00080018": {"vr": "UI", "Value": [instance]},
        "0020000D": {"vr": "UI", "Value": [study]},
        "0020000E": {"vr": "UI", "Value": [series]},
    }


def rows(*found: dict[str, object]) -> Reply:
    """An answer to a search."""
    return Reply.json(list(found))


def multipart(parts: Iterable[bytes], *, headers: str = "", media_type: str = "application/dicom") -> Reply:
    """An answer of several parts; `headers` are further header lines of each."""
    body = b"".join(
        f"--{BOUNDARY}\r\nContent-Type: {media_type}\r\n{headers}\r\n".encode() + part + b"\r\n" for part in parts
    )
    body += f"--{BOUNDARY}--\r\n".encode()
    return Reply(200, body, f'multipart/related; type="{media_type}"; boundary={BOUNDARY}')
