"""Folders whose files have readable names."""

from __future__ import annotations

import io
import os
import pickle
import re
import struct
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given, settings, strategies as st

from dicomweb_io.dicom.header_scan import scan_header
from dicomweb_io.elements import Failure, Resource, StoredInstance
from dicomweb_io.endpoint import Endpoint
from dicomweb_io.files.client import DICOMfileClient
from dicomweb_io.files.layout import Layout, NamesInUse, folded
from dicomweb_io.files.local import LocalFolder
from dicomweb_io.files.places import is_temporary, temporary_name
from dicomweb_io.files.remote import RemoteFolder
from dicomweb_io.files.store import Downloaded, InstanceDownloader
from tests.unit.files.making import REFERENCE, make_bytes, make_dataset, saved

EXAMPLE = "{PatientID}/{StudyDate}_{StudyDescription}/{SeriesNumber}_{Modality}/{InstanceNumber:04}.dcm"
HASH = re.compile(r"_[0-9a-f]{16}(?=\.|\Z)")


def paths(template: str, *uids: str, **attributes: Any) -> tuple[str, ...]:
    """The paths of an instance with these attributes."""
    content = make_bytes(*uids, **attributes)
    scan = scan_header(content, large_value=1024, first_read=16384)
    return Layout(template).paths_of(scan, Resource(*(uids or REFERENCE.uids.values())), content)


def path(template: str, **attributes: Any) -> str:
    """The first of them, with ``#`` for the hash."""
    return HASH.sub("#", paths(template, **attributes)[0])


# Templates ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "attributes", "expected"),
    [
        (
            EXAMPLE,
            {
                "PatientID": "P1", "StudyDate": "20240131", "StudyDescription": "Chest CT", "SeriesNumber": 3,
                "Modality": "CT", "InstanceNumber": 12,
            },
            "P1/20240131_Chest CT/3_CT/0012.dcm",
        ),
        (EXAMPLE, {}, "unknown/unknown_unknown/unknown_unknown/unknown#.dcm"),
        ("{StudyInstanceUID}/{SOPInstanceUID}", {}, "1.2.1/1.2.1.1.1.dcm"),
        ("{00100020}", {"PatientID": "P1"}, "P1.dcm"),
        ("{InstanceNumber:03d}.IMA", {"InstanceNumber": 7}, "007.IMA"),
        ("{InstanceNumber:04}", {"InstanceNumber": -7}, "-007.dcm"),
        ("{InstanceNumber}", {"InstanceNumber": "0007"}, "7.dcm"),
        ("{SliceThickness:.1f}mm/{SOPInstanceUID}", {"SliceThickness": "2.50"}, "2.5mm/1.2.1.1.1.dcm"),
        ("{SliceThickness}", {"SliceThickness": "2.5"}, "2.5.dcm"),
        ("{PixelSpacing}", {"PixelSpacing": [0.5, 0.25]}, "0.5_0.25.dcm"),
        ("{Rows:05}", {"Rows": 512}, "00512.dcm"),
        ("{PatientID:06}", {"PatientID": "42"}, "000042.dcm"),
        ("{PatientID:06}", {"PatientID": "X42"}, "X42#.dcm"),
        ("{ImageType}", {"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"]}, "ORIGINAL_PRIMARY_AXIAL.dcm"),
        ("{PatientName}", {"PatientName": "Doe^Jane^^Dr"}, "Doe_Jane__Dr.dcm"),
        ("{PatientName}", {"PatientName": "=山田^太郎"}, "山田_太郎.dcm"),
        ("{StudyDescription:.5}", {"StudyDescription": "Thorax abdomen"}, "Thora.dcm"),
        ("{StudyDate:%Y-%m-%d}", {"StudyDate": "20240131"}, "2024-01-31.dcm"),
        ("{StudyDate:%Y}/{StudyDate:%m}", {"StudyDate": "20240131"}, "2024/01.dcm"),
        ("{StudyTime:%H%M}", {"StudyTime": "093005.5"}, "0930.dcm"),
        ("{FrameReferenceDateTime:%Y-%m-%d_%H%M%S}", {"FrameReferenceDateTime": "20240131093005"},
         "2024-01-31_093005.dcm"),
        ("{StudyTime:%H%M}", {"StudyTime": "09"}, "09#.dcm"),
        ("{StudyDate:%Y}/{SOPInstanceUID}", {}, "unknown/1.2.1.1.1.dcm"),
        ("series {SeriesNumber}/{SOPInstanceUID}", {}, "series unknown/1.2.1.1.1#.dcm"),
        ("{TransferSyntaxUID}/{SOPInstanceUID}", {}, "1.2.840.10008.1.2.1/1.2.1.1.1.dcm"),
        ("{StudyComments}", {"StudyComments": "long " * 1000}, None),
    ],
)  # fmt: skip
def test_names_come_from_the_header(template: str, attributes: dict[str, Any], expected: str | None) -> None:
    found = path(template, **attributes)
    assert found == expected if expected else len(found) <= 120


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{PatientNam}", "did you mean 'PatientName'"),
        ("{}", "names an attribute"),
        ("{0}", "names an attribute"),
        ("{PatientName.family}", "not a path into it"),
        ("{PatientName[0]}", "not a path into it"),
        ("{PatientID!r}", "no conversion"),
        ("{PatientID", "expected '}'"),
        ("{PatientID:{Rows}}", "format"),
        ("{PixelData}", "neither text nor a number"),
        ("{ReferencedSeriesSequence}", "neither text nor a number"),
        ("{00091001}", "neither text nor a number"),
        ("/data/{PatientID}", "inside of the folder"),
        ("{PatientID}/", "names the file"),
        ("{PatientID}//{Rows}", "names the file"),
        ("{PatientID}/../{Rows}", "begins with a dot"),
        ("./{PatientID}", "begins with a dot"),
        (".hidden/{PatientID}", "begins with a dot"),
        ("{PatientID}/.dcm", "begins with a dot"),
        ("C:/{PatientID}", "':'"),
        ("a\\{PatientID}", "parts are separated by /"),
        ("~/{PatientID}", "'~'"),
        ("{{x}}/{PatientID}", "not every filesystem"),
        ("{PatientID}\0", "not every filesystem"),
        ("", "names the file"),
        ("images/one.dcm", "names no attribute"),
        ("/".join(["{PatientID}"] * 13), "at most 12"),
        ("{InstanceNumber:999999999d}", "format"),
        ("{InstanceNumber:x}", "format"),
        ("{StudyDescription:.99999}", "format"),
        ("{StudyDate:%H}", "%Y %m %d"),
        ("{StudyDate:%Y/%m}", "give each part"),
        ("{PatientID:%Y}", "no date or time"),
        ("{StudyDate:%}", "it takes"),
    ],
)  # fmt: skip
def test_a_wrong_template_is_an_error_before_anything_is_sent(template: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(problem)) as caught:
        Endpoint(str(tmp_path / "new"), layout=template)
    assert repr(template) in str(caught.value)
    with pytest.raises(ValueError, match="layout"):
        DICOMfileClient(tmp_path, layout=template)


def test_a_server_has_no_layout() -> None:
    with pytest.raises(ValueError, match=r"layout: only for folders, but https://pacs\.example"):
        Endpoint("https://pacs.example/dicom-web", layout=EXAMPLE)


def test_a_layout_travels() -> None:
    layout = pickle.loads(pickle.dumps(Layout(EXAMPLE)))
    assert (layout, layout._parts) == (Layout(EXAMPLE), Layout(EXAMPLE)._parts)
    assert pickle.loads(pickle.dumps(DICOMfileClient("x", layout=EXAMPLE)))._layout == layout


# Hostile values -------------------------------------------------------------------------------------------------------

HOSTILE = [
    "../../etc/passwd", "/etc/passwd", "..", ".", "...", " ", "", ".hidden", "a\0b", "a%00b", "x" * 10_000, "é" * 5_000,
    "CON", "nul.txt", "com1", "COM¹", "LPT9 ", "aux .x", "C:\\x", "a:b", "trailing. . ", "\u202egnp.exe", "\u200d",
    "👩‍👩‍👧", "\ud800", "a\u0301", "`", "\u1fef", "*?<>|\"", "{PatientID}", "-rf", "~root", "#1", "ﬁ", "\ufffe",
]  # fmt: skip
_WINDOWS_DEVICES = re.compile(r"(?:con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])\s*(?:\.|\Z)", re.IGNORECASE)


def with_value(value: str, uids: tuple[str, ...] = ("1.2.1", "1.2.1.1", "1.2.1.1.1")) -> bytes:
    """An object whose PatientID, StudyDescription and InstanceNumber are this text, however odd it is."""
    base = make_bytes()
    start = base[: scan_header(base).dataset_offset]
    study, series, sop = (uid.encode() for uid in uids)
    odd = value.encode("utf-8", "surrogatepass")
    elements = [
        (0x00080005, b"CS", b"ISO_IR 192"), (0x00080016, b"UI", b"1.2.840.10008.5.1.4.1.1.7"), (0x00080018, b"UI", sop),
        (0x00081030, b"LO", odd), (0x00100020, b"LO", odd), (0x0020000D, b"UI", study), (0x0020000E, b"UI", series),
        (0x00200013, b"IS", odd),
    ]  # fmt: skip
    for tag, vr, content in elements:
        padded = content + (b"\0" if vr == b"UI" else b" ") * (len(content) % 2)
        start += struct.pack("<HH2sH", tag >> 16, tag & 0xFFFF, vr, len(padded)) + padded
    return start


def check_path(found: str) -> None:
    """Holds for every path on every system, whatever it was made of."""
    assert os.path.normpath(os.path.join("/root", found)) == f"/root/{found}"
    assert len(found.encode()) <= 620
    assert unicodedata.is_normalized("NFC", found)
    for name in found.split("/"):
        assert 0 < len(name.encode()) <= 120
        assert not {name[0], name[-1]} & {".", " "}
        assert not re.search(r'[\\:*?"<>|%\x00-\x1f\x7f]', name)
        assert not any(unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Cn", "Zl", "Zp") for letter in name)
        assert not _WINDOWS_DEVICES.match(name)
        assert not is_temporary(name)


TEMPLATES = (
    "{PatientID}/{InstanceNumber:04}.dcm",
    "{StudyDescription}.dcm",
    "a{PatientID}b/c",
    "/".join(["{PatientID}"] * 12),
)


@pytest.mark.parametrize("value", HOSTILE)
def test_hostile_values_stay_inside(value: str) -> None:
    content = with_value(value)
    scan = scan_header(content, large_value=1024, first_read=16384)
    for template in TEMPLATES[:2] + ("a{PatientID}b/{SOPInstanceUID}", TEMPLATES[3]):
        for found in Layout(template).paths_of(scan, REFERENCE, content):
            check_path(found)


@settings(max_examples=40)
@given(value=st.text(max_size=200), other=st.text(max_size=200))
def test_every_path_is_inside_stable_and_its_own(value: str, other: str) -> None:
    for template in (TEMPLATES[0], TEMPLATES[1], TEMPLATES[3]):
        found = []
        for text, uids in ((value, ("1.1", "1.2", "1.3")), (other, ("1.1", "1.2", "1.4"))):
            content = with_value(text, uids)
            scan = scan_header(content, large_value=1024, first_read=16384)
            names = Layout(template).paths_of(scan, Resource(*uids), content)
            assert names == Layout(template).paths_of(scan, Resource(*uids), io.BytesIO(content))
            for name in names:
                check_path(name)
            found.append(names)
        # The names with a hash are never alike, not even where case and Unicode form are ignored.
        assert folded(found[0][-1]) != folded(found[1][-1])


def test_character_sets_are_decoded() -> None:
    dataset = make_dataset(PatientID="1")
    dataset.SpecificCharacterSet = ["", "ISO 2022 IR 87"]
    dataset.PatientName = "Yamada^Tarou=山田^太郎"
    latin = make_dataset(StudyDescription="Schädel")
    latin.SpecificCharacterSet = "ISO_IR 100"
    for made, template, expected in (
        (dataset, "{PatientName}", "Yamada_Tarou.dcm"),
        (latin, "{StudyDescription}", "Schädel.dcm"),
    ):
        content = saved(made)
        assert Layout(template).paths_of(scan_header(content), REFERENCE, content)[0] == expected


# Stores ---------------------------------------------------------------------------------------------------------------

LAYOUT = "{PatientID}/{Modality}/{InstanceNumber:04}"
Connect = Callable[..., DICOMfileClient]


@pytest.fixture(params=["local", "memory"])
def connect(request: pytest.FixtureRequest, tmp_path: Path) -> Connect:
    """Makes clients of one folder."""
    place = tmp_path / "readable"
    name = request.node.name.translate(str.maketrans("[]", "__"))
    url = str(place) if request.param == "local" else f"memory://layout/{name}"

    def make(layout: str | None = LAYOUT) -> DICOMfileClient:
        return DICOMfileClient(url, layout=layout, index=tmp_path / "index")

    return make


def made(number: int | None = 1, sop: str = "1.2.1.1.1", series: str = "1.2.1.1", **attributes: Any) -> bytes:
    given = {"PatientID": "Doe", "Modality": "CT", "InstanceNumber": number, **attributes}
    return make_bytes("1.2.1", series, sop, **given)


def files_of(client: DICOMfileClient) -> list[str]:
    return sorted(HASH.sub("#", found.path) for found in client._folder.walk())


def one(client: DICOMfileClient, content: bytes, **options: Any) -> StoredInstance | Failure:
    (outcome,) = client.iter_store_instances([content], **options)
    return outcome


def outcome_of(client: DICOMfileClient, content: bytes, **options: Any) -> str:
    return getattr(one(client, content, **options), "outcome", "failed")


def test_a_readable_folder_is_written_and_known_again(connect: Connect) -> None:
    contents = [made(number, f"1.2.1.1.{number}") for number in (1, 2, 3)]
    assert [outcome_of(connect(), content) for content in contents] == ["stored"] * 3
    assert files_of(connect()) == ["Doe/CT/0001.dcm", "Doe/CT/0002.dcm", "Doe/CT/0003.dcm"]
    for layout in (LAYOUT, None, "{SOPInstanceUID}", "{PatientID}"):
        client = connect(layout)
        assert [outcome_of(client, content) for content in contents] == ["exists"] * 3
        assert [instance.read() for instance in client.iter_instances(Resource("1.2.1"))] == contents
    assert [row["00100020"]["Value"] for row in connect().search_for_studies()] == [["Doe"]]
    client.delete_study("1.2.1")
    assert files_of(client) == []
    assert outcome_of(client, contents[0]) == "stored"


@pytest.mark.parametrize("order", [1, -1])
def test_instances_with_one_name_are_told_apart_by_their_uids(order: int, connect: Connect) -> None:
    contents = [made(1, "1.2.1.1.1"), made(1, "1.2.1.9.1", series="1.2.1.9"), made(1, "1.2.1.1.2")][::order]
    for _ in range(2):
        client = connect()
        list(client.iter_store_instances(contents))
        names = {found.path for found in client._folder.walk()}
        hashed = {paths(LAYOUT, *uids, PatientID="Doe", Modality="CT", InstanceNumber=1)[1] for uids in (
            ("1.2.1", "1.2.1.1", "1.2.1.1.1"), ("1.2.1", "1.2.1.9", "1.2.1.9.1"), ("1.2.1", "1.2.1.1", "1.2.1.1.2")
        )}  # fmt: skip
        assert "Doe/CT/0001.dcm" in names
        assert len(names) == 3
        assert len(names & hashed) == 2
    assert sorted(instance.read() for instance in connect().iter_instances(Resource("1.2.1"))) == sorted(contents)


def test_a_name_without_its_number_never_depends_on_what_came_first(connect: Connect) -> None:
    contents = [made(None, f"1.2.1.1.{number}") for number in range(5)]
    list(connect().iter_store_instances(contents))
    expected = sorted(
        paths(LAYOUT, "1.2.1", "1.2.1.1", f"1.2.1.1.{number}", PatientID="Doe", Modality="CT")[0] for number in range(5)
    )
    assert sorted(found.path for found in connect()._folder.walk()) == expected


@pytest.mark.parametrize(("first", "second"), [("doe", "DOE"), ("Jose\u0301", "JOS\u00c9"), ("stra\u00dfe", "STRASSE")])
@pytest.mark.parametrize("new_client", [False, True])
def test_names_differ_by_more_than_case_and_unicode_form(
    first: str, second: str, new_client: bool, connect: Connect
) -> None:
    client = connect()
    assert outcome_of(client, made(PatientID=first)) == "stored"
    client = connect() if new_client else client
    assert outcome_of(client, made(PatientID=second, sop="1.2.1.1.2")) == "stored"
    names = [found.path for found in client._folder.walk()]
    assert len({folded(name) for name in names}) == 2
    # The directories may be one; what has the name already stays.
    assert [
        outcome_of(connect(), made(PatientID=value, sop=sop))
        for value, sop in ((first, "1.2.1.1.1"), (second, "1.2.1.1.2"))
    ] == ["exists"] * 2


def test_a_filesystem_that_ignores_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = LocalFolder._path
    monkeypatch.setattr(LocalFolder, "_path", lambda self, path: place(self, path.lower()))
    for _ in range(2):
        client = DICOMfileClient(tmp_path / "x", layout="{PatientID}", in_memory=True)
        list(client.iter_store_instances([made(PatientID="doe"), made(PatientID="DOE", sop="1.2.1.1.2")]))
        assert files_of(client) == ["doe#.dcm", "doe.dcm"]
        assert len(client.search_for_instances()) == 2


def test_the_only_file_is_not_removed_by_another_of_its_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = LocalFolder._path
    content = made(StudyDescription="new")
    list(DICOMfileClient(tmp_path / "x", in_memory=True).iter_store_instances([made()]))
    (tmp_path / "x" / "link").symlink_to(tmp_path / "x" / "1.2.1")
    client = DICOMfileClient(tmp_path / "x", in_memory=True)
    assert outcome_of(client, content, on_existing="replace") == "replaced"
    assert client._folder.read("1.2.1/1.2.1.1/1.2.1.1.1.dcm") == content
    monkeypatch.setattr(LocalFolder, "_path", lambda self, path: place(self, path.lower()))
    for patient in ("doe", "DOE"):
        client = DICOMfileClient(tmp_path / "y", layout="{PatientID}/{InstanceNumber}", in_memory=True)
        assert outcome_of(client, made(PatientID=patient), on_existing="replace") in ("stored", "replaced")
    assert client._folder.read("DOE/1.dcm") == made(PatientID="DOE")


def test_writers_that_cannot_exclude_each_other_have_names_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    clients = [
        DICOMfileClient("memory://no-exclusion", layout="{PatientID}/{InstanceNumber}", in_memory=True)
        for _ in range(2)
    ]
    write, others = MemoryFileSystem.pipe_file, [made(1, "1.2.1.1.2")]

    def overwrite(self: MemoryFileSystem, path: str, value: bytes, **options: Any) -> None:
        # Another writer comes between the look-up and the writing.
        while others:
            one(clients[1], others.pop())
        write(self, path, value)

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", overwrite)
    assert outcome_of(clients[0], made(1)) == "stored"
    assert files_of(clients[0]) == ["Doe/1#.dcm"] * 2
    assert len(clients[0].search_for_instances()) == 2
    assert outcome_of(clients[0], made(1)) == "exists"


@pytest.mark.parametrize("late", [False, True])
def test_an_instance_that_two_writers_name_differently_is_one_file(
    late: bool, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One of them has another instance under a name that differs by case only, which the other does not see.
    informed, other = connect(), connect()
    one(informed, made(1, "1.2.1.1.2", PatientID="DOE"))
    other._names = NamesInUse(())
    publish = LocalFolder.publish if informed._folder.is_local else RemoteFolder.publish
    between = [lambda: one(informed if late else other, made(1))]

    def publish_later(self: Any, *args: Any, **options: Any) -> bool:
        if between:
            between.pop()()
        return publish(self, *args, **options)

    monkeypatch.setattr(type(informed._folder), "publish", publish_later)
    assert outcome_of(other if late else informed, made(1)) == ("stored" if late else "exists")
    assert files_of(connect()) == ["DOE/CT/0001.dcm", "Doe/CT/0001.dcm"]
    assert outcome_of(connect(), made(1)) == "exists"


def test_a_name_that_another_writer_claims_is_left_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: Any, **__: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    rename = os.rename

    def meanwhile(source: Any, target: Any) -> None:
        monkeypatch.setattr(os, "rename", rename)
        assert outcome_of(clients[1], made(1, "1.2.1.1.2")) == "stored"
        rename(source, target)

    monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setattr(os, "rename", meanwhile)
    clients = [DICOMfileClient(tmp_path / "x", layout=LAYOUT, in_memory=True) for _ in range(2)]
    assert outcome_of(clients[0], made(1)) == "stored"
    assert files_of(clients[0]) == ["Doe/CT/0001#.dcm", "Doe/CT/0001.dcm"]


def test_many_writers_at_once(connect: Connect) -> None:
    contents = [made(number % 3, f"1.2.1.1.{number}") for number in range(12)] * 2
    clients = [connect(), connect()]
    with ThreadPoolExecutor(6) as pool:
        found = list(
            pool.map(lambda item: outcome_of(clients[item[0] % 2], item[1]), enumerate([*contents, *contents]))
        )
    assert (found.count("stored"), found.count("exists")) == (12, 36)
    assert len(files_of(connect())) == 12
    assert len(connect().search_for_instances()) == 12


def test_a_file_that_was_moved_is_known(connect: Connect) -> None:
    first = connect()
    list(first.iter_store_instances([made(1), made(2, "1.2.1.1.2")]))
    folder = first._folder
    folder.publish("kept/here.dcm", folder.read("Doe/CT/0001.dcm"), replace=False)
    folder.remove("Doe/CT/0001.dcm")
    assert outcome_of(connect(), made(1)) == "exists"
    assert files_of(connect()) == ["Doe/CT/0002.dcm", "kept/here.dcm"]
    assert outcome_of(connect(), made(1, StudyDescription="new"), on_existing="replace") == "replaced"
    assert files_of(connect()) == ["Doe/CT/0001.dcm", "Doe/CT/0002.dcm"]


@pytest.mark.parametrize("pause", [0, 1])
@pytest.mark.parametrize(
    ("on_existing", "expected"),
    [("server", "failed"), ("skip", "exists"), ("replace", "replaced"), ("error", "failed")],
)
def test_an_instance_with_another_header_is_the_same_instance(
    on_existing: str, expected: str, pause: int, connect: Connect
) -> None:
    client = connect()
    assert outcome_of(client, made(1)) == "stored"
    client = connect() if pause else client
    assert outcome_of(client, made(7, PatientID="Roe"), on_existing=on_existing) == expected
    assert files_of(client) == ["Roe/CT/0007.dcm" if expected == "replaced" else "Doe/CT/0001.dcm"]
    assert outcome_of(client, made(7, PatientID="Roe"), on_existing="skip", verify="content") == (
        "exists" if expected == "replaced" else "failed"
    )


def test_the_index_takes_what_was_written_in_between(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dicomweb_io.files.client._MAX_OWN", 2)
    client = connect()
    contents = [made(number, f"1.2.1.1.{number}") for number in range(9)]
    list(client.iter_store_instances(contents))
    assert len(client._own) < 4
    assert {outcome_of(client, content) for content in contents} == {"exists"}


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        (b"the user's own notes", ["Doe/CT/0001#.dcm", "Doe/CT/0001.dcm"]),
        (b"", ["Doe/CT/0001#.dcm", "Doe/CT/0001.dcm"]),
        (made(1, "1.2.1.1.7", EncapsulatedDocument=b"x" * 300)[:-100], ["Doe/CT/0001#.dcm", "Doe/CT/0001.dcm"]),
        (made(1, EncapsulatedDocument=b"x" * 300)[:-100], ["Doe/CT/0001.dcm"]),
    ],
    ids=["no DICOM", "empty", "a part of another", "a part of the same"],
)
def test_what_is_in_the_way_is_not_overwritten(there: bytes, expected: list[str], connect: Connect) -> None:
    client = connect()
    client._folder.publish("Doe/CT/0001.dcm", there, replace=False)
    assert outcome_of(client, made(1)) == "stored"
    assert files_of(client) == expected
    assert (client._folder.read("Doe/CT/0001.dcm") == there) == (len(expected) == 2)
    assert outcome_of(connect(), made(1)) == "exists"


def test_messages_name_no_patient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client = DICOMfileClient(
        tmp_path / "x", layout="{PatientID}/{SeriesNumber}/{InstanceNumber:04}.dcm", in_memory=True
    )
    hashed = paths(
        "{PatientID}/{SeriesNumber}/{InstanceNumber:04}.dcm", PatientID="Doe", SeriesNumber=1, InstanceNumber=1
    )
    one(client, made(1, SeriesNumber=1))
    messages = [one(client, made(1, SeriesNumber=1), on_existing="error"), one(client, made(2, SeriesNumber=1))]
    for name in hashed:
        (tmp_path / "y" / name).mkdir(parents=True)
    other = DICOMfileClient(tmp_path / "y", layout="{PatientID}/{SeriesNumber}/{InstanceNumber:04}.dcm", in_memory=True)
    messages.append(one(other, made(1, SeriesNumber=1)))

    def full(self: LocalFolder, path: str, *args: Any, **options: Any) -> bool:
        raise OSError(28, "No space left on device", self._path(path))

    monkeypatch.setattr(LocalFolder, "publish", full)
    messages.append(one(other, made(3, "1.2.1.1.3", SeriesNumber=1)))
    memory = DICOMfileClient("memory://messages", layout=LAYOUT, in_memory=True)
    memory._folder.publish("Doe", b"a file", replace=False)
    messages.append(one(memory, made(1)))
    for failure, words in zip(
        messages,
        ("already in", "another file", "***/1/0001.dcm is not a file", "No space left", "cannot be written"),
        strict=True,
    ):
        assert isinstance(failure, Failure)
        assert words in failure.message
        assert "Doe" not in str(failure)


def test_temporary_names_fit_into_255_bytes() -> None:
    assert len(temporary_name("\U0001f469" * 63).encode()) <= 255
    assert is_temporary(temporary_name("\U0001f469" * 63))


def test_downloads_follow_a_layout(connect: Connect, folder: Path) -> None:
    source = DICOMfileClient(folder)
    list(source.iter_store_instances([made(1), made(2, "1.2.1.1.2")]))
    for existed in (False, True):
        target = connect()
        downloader = InstanceDownloader(source, Endpoint(target._folder.url, layout=LAYOUT))
        try:
            for number in (1, 2):
                found = downloader.download(Resource("1.2.1", "1.2.1.1", f"1.2.1.1.{number}"))
                assert isinstance(found, Downloaded)
                assert (found.existed, found.path) == (existed, target._folder.location_of(f"Doe/CT/000{number}.dcm"))
        finally:
            downloader.close()
