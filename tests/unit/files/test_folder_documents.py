"""Pages of what is no image: reports with all kinds of content, key objects, presentation states, documents."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from dicomweb_io.elements import Instance
from dicomweb_io.files.client import DICOMfileClient
from dicomweb_io.files.documents import readable_date, readable_moment, readable_page, readable_time
from dicomweb_io.testing import serve
from dicomweb_io.testing.samples import sample_file
from dicomweb_io.web.client import DICOMwebClient
from tests.unit.files.making import REFERENCE, Put, answered, make_dataset

CT, SR, KEY_OBJECTS, STATE = (f"1.2.840.10008.5.1.4.1.1.{number}" for number in ("2", "88.33", "88.59", "11.1"))
PATIENT = {
    "PatientName": "Yamada^Tarou=山田^太郎", "PatientID": "<P&1>", "PatientBirthDate": "19500704", "PatientSex": "M",
    "StudyDate": "20240229", "StudyTime": "134510.250000",
}  # fmt: skip


def made(**attributes: Any) -> Dataset:
    dataset = Dataset()
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return dataset


def code(meaning: str, value: str = "1", scheme: str = "DCM") -> Sequence:
    return Sequence([made(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)])


def item(kind: str, name: str = "", *below: Dataset, relation: str = "CONTAINS", **attributes: Any) -> Dataset:
    dataset = made(ValueType=kind, RelationshipType=relation, **attributes)
    if name:
        dataset.ConceptNameCodeSequence = code(name)
    if below:
        dataset.ContentSequence = Sequence(below)
    return dataset


def number(name: str, value: str, unit: str, sign: str, *below: Dataset) -> Dataset:
    measured = made(NumericValue=value, MeasurementUnitsCodeSequence=code(unit, sign, "UCUM"))
    return item("NUM", name, *below, MeasuredValueSequence=Sequence([measured]))


def reference(uid: str, sop_class: str = CT, **attributes: Any) -> Dataset:
    return made(ReferencedSOPClassUID=sop_class, ReferencedSOPInstanceUID=uid, **attributes)


def image(uid: str, relation: str = "CONTAINS", **attributes: Any) -> Dataset:
    return item("IMAGE", relation=relation, ReferencedSOPSequence=Sequence([reference(uid, **attributes)]))


def report(*below: Dataset, title: str = "Imaging Measurement Report", **attributes: Any) -> dict[str, Any]:
    return {
        "SOPClassUID": SR, "Modality": "SR", "ValueType": "CONTAINER", "ConceptNameCodeSequence": code(title),
        "ContentSequence": Sequence(below), **PATIENT, **attributes,
    }  # fmt: skip


class _Checker(HTMLParser):
    """Checks that a page is well formed, has no scripts, and loads nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "iframe", "link", "img", "base", "form")
        for name, value in attrs:
            assert not name.startswith("on")
            assert name not in ("src", "href", "data", "action") or (value or "").startswith(("#", "data:"))
        if tag != "meta":
            self.open.append(tag)
        self._space(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self._space(tag)

    def _space(self, tag: str) -> None:
        if tag not in ("span", "a"):
            self.texts.append(" ")

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.texts.append(data)


def words(html: str | bytes) -> str:
    """The text of a page, spaces and lines made one."""
    page = _Checker()
    page.feed(html if isinstance(html, str) else html.decode())
    assert page.open == []
    return " ".join("".join(page.texts).split())


@pytest.fixture
def page(folder: Path, put: Put) -> Any:
    """Writes a document beside three images of another series, and gives the text of its page."""

    def render(**attributes: Any) -> str:
        for one in (1, 2, 3):
            put(
                f"{one}.dcm", "1.2.1", "1.2.1.3", f"1.2.1.3.{one}", SOPClassUID=CT, Modality="CT", SeriesNumber=3,
                SeriesDescription="Lung", InstanceNumber=10 + one, Rows=2, Columns=2, **PATIENT,
            )  # fmt: skip
        put("elsewhere.dcm", "1.2.2", "1.2.2.1", "1.2.2.1.1", SOPClassUID=CT, SeriesNumber=1, StudyDate="20230105")
        put("document.dcm", **attributes)
        with DICOMfileClient(folder, in_memory=True) as client:
            rendered = client.retrieve_rendered(REFERENCE, media_types=("text/html",))
        assert rendered.media_type == "text/html"
        return words(rendered.content)

    return render


@pytest.mark.parametrize(
    ("read", "text", "expected"),
    [
        (readable_date, "20240229", "29 February 2024"),
        (readable_date, "soon", "soon"),
        (readable_time, "134510.250000", "13:45:10.25"),
        (readable_time, "0930", "09:30"),
        (readable_moment, "20240301101500.5+0900", "1 March 2024, 10:15:00.5 (UTC+09:00)"),
        (readable_moment, "202403", "March 2024"),
        (readable_moment, "2024", "2024"),
        (readable_moment, "x", "x"),
    ],
)
def test_dates_and_times_are_read_as_in_a_letter(read: Any, text: str, expected: str) -> None:
    assert read(text) == expected


def test_the_head_of_a_report(page: Any) -> None:
    observer = made(
        VerifyingObserverName="Doe^Jane^^Dr^MD", VerifyingOrganization="Hospital", VerificationDateTime="20240301120000"
    )
    text = page(
        **report(
            CompletionFlag="PARTIAL",
            CompletionFlagDescription="more to come",
            VerificationFlag="VERIFIED",
            VerifyingObserverSequence=Sequence([observer]),
            ContentDate="20240301",
            ContentTime="1015",
        )
    )
    for part in (
        "Imaging Measurement Report partial: more to come verified",
        "Patient Tarou Yamada (山田 太郎)",
        "Patient ID <P&1>",
        "Born 4 July 1950",
        "Sex male",
        "Date of the study 29 February 2024, 13:45:10.25",
        "Written 1 March 2024, 10:15",
        "Verified by Dr Jane Doe, MD, Hospital, 1 March 2024, 12:00:00",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (item("TEXT", "Finding", TextValue="one\r\ntwo <b>"), "Finding: one two <b>"),
        (item("CODE", "Site", ConceptCodeSequence=code("Lung")), "Site: Lung"),
        (number("Axis", "12.30", "millimeter", "mm"), "Axis: 12.30 mm"),
        (number("Volume", "5", "cubic centimeter", "cm3"), "Volume: 5 cm³"),
        (number("Mean", "-1.5", "Hounsfield unit", "[hnsf'U]"), "Mean: -1.5 Hounsfield unit"),
        (number("Count", "3", "no units", "1"), "Count: 3"),
        (item("NUM", "Axis", NumericValueQualifierCodeSequence=code("Not a number")), "Axis: Not a number"),
        (item("NUM", "Axis", MeasuredValueSequence=Sequence()), "Axis: no value"),
        (item("DATE", "Day", Date="20240229"), "Day: 29 February 2024"),
        (item("TIME", "Hour", Time="0930"), "Hour: 09:30"),
        (item("DATETIME", "When", DateTime="20240229"), "When: 29 February 2024"),
        (item("PNAME", "Observer", PersonName="Doe^Jane"), "Observer: Jane Doe"),
        (item("UIDREF", "Tracking", UID="1.2.3.4"), "Tracking: 1.2.3.4"),
        (item("UIDREF", "Class", UID=CT), "Class: CT Image"),
        (
            item("SCOORD", "Path", GraphicType="POLYLINE", GraphicData=[1, 2, 3.5, 4]),
            "polyline of 2 points (1, 2) (3.5, 4)",
        ),
        (
            item("SCOORD3D", "P", GraphicType="POINT", GraphicData=[1, 2, 3], ReferencedFrameOfReferenceUID="1.9"),
            "P: point (1, 2, 3), in frame of reference 1.9",
        ),
        (
            item("TCOORD", "Beat", TemporalRangeType="SEGMENT", ReferencedSamplePositions=[1, 9]),
            "segment: samples 1 to 9",
        ),
        (item("TCOORD", "Beat", TemporalRangeType="POINT", ReferencedTimeOffsets=["1.5"]), "Beat: point: 1.5 s"),
        (item("TCOORD", "B", TemporalRangeType="POINT", ReferencedDateTime=["2024"]), "B: point: 2024"),
        (image("1.2.1.3.2"), "CT image, series 3 (Lung), instance 12"),
        (image("1.2.1.3.2", ReferencedFrameNumber=[1, 4]), "instance 12, frames 1, 4"),
        (image("1.2.2.1.1"), "CT image, series 1, of the study of 5 January 2023"),
        (image("9.9.9", ReferencedSegmentNumber=2), "CT image 9.9.9, segment 2"),
        (
            item(
                "WAVEFORM", "ECG", ReferencedSOPSequence=Sequence([reference("1.8", ReferencedWaveformChannels=[1, 2])])
            ),
            "ECG: CT image 1.8, channel 1/2",
        ),
        (
            item("COMPOSITE", "Prior", ReferencedSOPSequence=Sequence([reference("1.8", SR)])),
            "Prior: Comprehensive SR 1.8",
        ),
        (
            image("1.2.1.3.1", ReferencedSOPSequence=Sequence([reference("1.7", STATE)])),
            "instance 11, shown with Grayscale Softcopy Presentation State 1.7",
        ),
        (
            item("TABLE", "T", TabulatedValuesSequence=Sequence([made(NumberOfTableRows=2, NumberOfTableColumns=3)])),
            "T: 2 rows",
        ),
        (item("CONTAINER", "Section", item("TEXT", "", TextValue="inside")), "Section inside"),
        (
            item("TEXT", "F", image("1.2.1.3.1", "INFERRED FROM"), TextValue="t"),
            "F: t inferred from CT image, series 3",
        ),
        (
            item(
                "CODE",
                "F",
                item("TEXT", "P", relation="HAS PROPERTIES", TextValue="big"),
                ConceptCodeSequence=code("n"),
            ),
            "F: n has properties P: big",
        ),
        (
            item("TEXT", "I", item("", ReferencedContentItemIdentifier=[1, 1], relation="INFERRED FROM")),
            "inferred from I",
        ),
        (item("TEXT", "I", item("", ReferencedContentItemIdentifier=[1, 7])), "item 1.7, which is not there"),
    ],
)
def test_each_kind_of_content(content: Dataset, expected: str, page: Any) -> None:
    assert expected in page(**report(content))


def test_measurements_are_a_table_except_in_running_text(page: Any) -> None:
    axes = [number("Long", "12", "millimeter", "mm"), number("Short", "8", "millimeter", "mm")]
    text = page(**report(item("CONTAINER", "Group", *axes)))
    assert "Measurement Value Unit Long 12 mm Short 8 mm" in text
    text = page(**report(item("CONTAINER", "Group", *axes, ContinuityOfContent="CONTINUOUS")))
    assert "Measurement Value" not in text


def test_key_objects_are_a_list(page: Any) -> None:
    images = [image(f"1.2.1.3.{one}") for one in (1, 2, 3)]
    text = page(**report(*images, title="Of Interest", SOPClassUID=KEY_OBJECTS, Modality="KO"))
    assert text.count("CT image, series 3 (Lung), instance 1") == 3


def test_a_presentation_state_says_what_it_shows(page: Any) -> None:
    series = made(SeriesInstanceUID="1.2.1.3", ReferencedImageSequence=Sequence([reference("1.2.1.3.1")]))
    annotation = made(
        GraphicLayer="L1",
        TextObjectSequence=Sequence([made(UnformattedTextValue="<i>here")]),
        GraphicObjectSequence=Sequence([made(GraphicType="POLYLINE", GraphicData=[1, 2, 3, 4])]),
    )
    area = made(
        DisplayedAreaTopLeftHandCorner=[1, 1], DisplayedAreaBottomRightHandCorner=[9, 9],
        PresentationSizeMode="MAGNIFY", PresentationPixelMagnificationRatio=2.0,
    )  # fmt: skip
    text = page(
        SOPClassUID=STATE, Modality="PR", ContentLabel="KEY", ContentDescription="Nodule",
        ContentCreatorName="Doe^Jane",
        ReferencedSeriesSequence=Sequence([series]), GraphicAnnotationSequence=Sequence([annotation]),
        SoftcopyVOILUTSequence=Sequence([made(WindowCenter="40", WindowWidth="400")]), ImageRotation=90,
        ImageHorizontalFlip="Y", PresentationLUTShape="INVERSE", DisplayedAreaSelectionSequence=Sequence([area]),
        ShutterShape="CIRCULAR",
    )  # fmt: skip
    for part in (
        "CT image, series 3 (Lung), instance 11", "Text in layer L1: <i>here", "polyline (1, 2) (3, 4)", "Jane Doe",
        "Window: center 40, width 400", "by 90 degrees", "Mirrored", "Inverted", "magnified 2 times", "circular",
    ):  # fmt: skip
        assert part in text


CDA = b"""<?xml version="1.0"?><?xml-stylesheet type="text/xsl" href="evil.xsl"?>
<ClinicalDocument xmlns="urn:hl7-org:v3"><component><section><title>History</title><text><paragraph>Has
<content>asthma</content>.</paragraph><list><item>one</item></list><table><tr><th>Date</th><th>Height</th></tr>
<tr><td>2024</td><td>177 cm</td></tr></table><script>alert(1)</script></text></section>
</component></ClinicalDocument>"""
BOMB = b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "bomb">]><a>&b;</a>'
STL = b"\0" * 80 + (2).to_bytes(4, "little") + b"\0" * 100


@pytest.mark.parametrize(
    ("media_type", "content", "expected"),
    [
        ("application/pdf", b"%PDF-1.4 x", "application/pdf, 10 bytes"),
        ("text/XML", CDA, "History Has asthma. • one Date | Height 2024 | 177 cm"),
        ("text/xml", BOMB, "<!ENTITY"),
        ("text/xml", b"no XML", "no XML"),
        ("text/xml", b"<a>" * 5000 + b"</a>" * 5000, "<a><a>"),
        ("text/html", b"<script>alert(1)</script>", "<script>alert(1)</script>"),
        ("model/stl", STL, "2"),
        ("model/stl", b"solid\nfacet\nendfacet\nendsolid", "1"),
        ("model/obj", b"v 1 2 3\nv 1 2 4\nf 1 2 3", "2 and 1"),
        ("model/mtl", b"newmtl red", "newmtl red"),
        ("application/unknown", b"\0\1", "application/unknown, 2 bytes"),
    ],
)
def test_documents_have_a_page(media_type: str, content: bytes, expected: str, page: Any, folder: Path) -> None:
    attributes = {
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.104.1", "DocumentTitle": "The title", **PATIENT,
        "MIMETypeOfEncapsulatedDocument": media_type, "EncapsulatedDocumentLength": len(content),
        "EncapsulatedDocument": content + b"\0" * (len(content) % 2),
        "SourceInstanceSequence": Sequence([reference("1.2.1.3.1")]),
    }  # fmt: skip
    text = page(**attributes)
    assert "The title" in text
    assert expected in text
    assert "Made from" in text
    assert "CT image, series 3 (Lung), instance 11" in text
    client = DICOMfileClient(folder, in_memory=True)
    assert client.retrieve_rendered(REFERENCE).media_type == (media_type if "pdf" in media_type else "text/html")
    if media_type != "text/html":
        itself = client.retrieve_rendered(REFERENCE, media_types=(media_type.lower(),))
        assert itself.content == content
    with answered(406):
        client.retrieve_rendered(REFERENCE, media_types=("image/png",))


def test_a_deep_or_odd_report_has_a_page(page: Any) -> None:
    deep = item("TEXT", "deep", TextValue="bottom")
    for _ in range(60):
        deep = item("CONTAINER", "level", deep)
    assert "… more is not shown here" in page(**report(deep))
    odd = item("NUM", "N", MeasuredValueSequence=Sequence([made(MeasurementUnitsCodeSequence=Sequence())]))
    assert "N: no value" in page(**report(odd, item("NEW KIND", "K"), made()))


def test_a_server_gives_the_page_and_the_document(folder: Path, put: Put) -> None:
    put("a.dcm", EncapsulatedDocument=b"%PDF-1.4", MIMETypeOfEncapsulatedDocument="application/pdf")
    with serve(folder) as server, DICOMwebClient(server.url) as client:
        for media_type, begin in (("text/html", b"<!DOCTYPE html>"), ("application/pdf", b"%PDF-1.4")):
            rendered = client.retrieve_rendered(REFERENCE, media_types=(media_type,))
            assert (rendered.media_type, rendered.content[: len(begin)]) == (media_type, begin)


def test_what_has_no_page_is_refused(folder: Path, put: Put) -> None:
    put("plan.dcm", SOPClassUID="1.2.840.10008.5.1.4.1.1.481.5", Modality="RTPLAN")
    with answered(406, "not an image, a report or a document"):
        DICOMfileClient(folder, in_memory=True).retrieve_rendered(REFERENCE)


@pytest.mark.parametrize("name", ["reportsi.dcm", "test-SR.dcm", "reportsi_with_empty_number_tags.dcm"])
def test_real_reports(name: str, folder: Path) -> None:
    path = sample_file(name)
    (folder / name).write_bytes(path.read_bytes())
    rendered = DICOMfileClient(folder, in_memory=True).retrieve_rendered(Instance.from_path(path).reference)
    text = words(rendered.content)
    assert pydicom.dcmread(path).ConceptNameCodeSequence[0].CodeMeaning in text
    if name == "test-SR.dcm":
        for part in (
            "Jörg Riesmeier, OFFIS e.V.",
            "has properties SCoord Code: circle (0, 0) (255, 255)",
            "selected from",
        ):
            assert part in text


def test_a_page_can_be_made_of_a_dataset() -> None:
    assert "CT image 1.2.1.3.1" in words(readable_page(make_dataset(**report(image("1.2.1.3.1")))))
