"""What is in an archive: `search`, `index` and `tree`, for people at a terminal and for pipes."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dicomweb_io.cli import main
from dicomweb_io.dicom.values import readable_name
from dicomweb_io.profiles import PROFILES
from dicomweb_io.testing import fault, serve
from dicomweb_io.testing.server.behaviours import BEHAVIOURS
from tests.answering import Reply
from tests.unit.files.making import make_bytes

Capture = pytest.CaptureFixture[str]
EVIL = "Evil\x1b[31m\nname\u202e"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> Callable[[int], None]:
    """Makes standard output a terminal of some width."""

    def watch(width: int) -> None:
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setenv("TERM", "dumb")

    return watch


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Two patients; one has two studies, of which one has two series."""
    root = tmp_path / "archive"
    root.mkdir()
    yamada = {"PatientName": "Yamada^Tarou=山田^太郎=やまだ^たろう", "PatientID": "-1", "StudyDescription": EVIL}
    doe = {"PatientName": "Doe^Jane^^Dr", "PatientID": "D2", "PatientBirthDate": "19700102", "PatientSex": "F"}
    study = {"StudyDate": "20240229", "StudyTime": "134510", "StudyDescription": "Thorax " * 8, "Modality": "CT"}
    for name, uids, attributes in (
        ("a", ("1.2.1", "1.2.1.1", "1.2.1.1.1"), {**doe, **study, "SeriesNumber": 3, "SeriesDescription": "Lung"}),
        ("b", ("1.2.1", "1.2.1.1", "1.2.1.1.2"), {**doe, **study, "SeriesNumber": 3, "Rows": 512, "Columns": 256}),
        ("c", ("1.2.1", "1.2.1.2", "1.2.1.2.1"), {**doe, **study, "SeriesNumber": 1, "Modality": "SR"}),
        ("d", ("1.2.2", "1.2.2.1", "1.2.2.1.1"), {**doe, "StudyDate": "20230101", "Modality": "MR"}),
        ("e", ("1.2.3", "1.2.3.1", "1.2.3.1.1"), {**yamada, "Modality": "US"}),
    ):
        (root / f"{name}.dcm").write_bytes(make_bytes(*uids, **attributes))
    return root


def lines(capsys: Capture) -> list[str]:
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Doe^Jane^Q^Dr^MD", "Dr Jane Q Doe, MD"),
        ("Yamada^Tarou=山田^太郎=やまだ^たろう", "Tarou Yamada (山田 太郎, やまだ たろう)"),
        ({"Ideographic": "山田^太郎"}, "山田 太郎"),
        ("DOE", "DOE"),
        ("", ""),
        (None, ""),
    ],
)
def test_names_are_read_in_order(name: object, text: str) -> None:
    assert readable_name(name) == text


def test_people_see_a_table_that_fits(archive: Path, terminal: Any, capsys: Capture) -> None:
    terminal(140)
    assert main(["--url", str(archive), "search", "studies"]) == 0
    printed = capsys.readouterr()
    shown = printed.out.splitlines()
    assert [line.split()[0] for line in shown[:3]] == ["date", "2024-02-29", "2023-01-01"]
    assert "Dr Jane Doe" in shown[1]
    assert shown[1].split()[-2:] == ["2", "3"]
    assert "…" in shown[1]
    assert "Tarou Yamada (山田 太郎, やまだ たろう)" in shown[3]
    assert "\x1b" not in shown[3]
    assert "\u202e" not in shown[3]
    assert printed.err == "3 studies (--field StudyInstanceUID: their UIDs)\n"


@pytest.mark.parametrize(
    ("level", "row"),
    [
        ("studies", ["2023-01-01", "Dr", "Jane", "Doe", "D2", "MR", "1", "1", "1.2.2"]),
        ("series", ["2023-01-01", "Dr", "Jane", "Doe", "D2", "MR", "1", "1.2.2.1"]),
        ("instances", ["MR", "Secondary", "Capture", "Image", "1.2.2.1.1"]),
    ],
)
def test_a_wide_table_has_the_uids(level: str, row: list[str], archive: Path, terminal: Any, capsys: Capture) -> None:
    terminal(300)
    assert main(["--url", str(archive), "search", level, "--filter", "StudyDate=20230101"]) == 0
    title, shown = lines(capsys)
    assert shown.split() == row
    assert title.split()[-1] in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")


def test_a_table_shows_what_is_asked_for(archive: Path, terminal: Any, capsys: Capture) -> None:
    terminal(60)
    where = ["--url", str(archive), "search", "instances", "--filter", "SOPInstanceUID=1.2.1.1.2"]
    assert main([*where, "--field", "StudyDate", "--field", "PatientName"]) == 0
    title, shown = lines(capsys)
    assert title.split()[-2:] == ["StudyDate", "PatientName"]
    assert shown.split()[-5:] == ["512x256", "2024-02-29", "Dr", "Jane", "Doe"]


def test_pipes_get_json_lines(archive: Path, capsys: Capture) -> None:
    assert main(["--url", str(archive), "search", "studies"]) == 0
    printed = capsys.readouterr()
    assert [json.loads(line)["0020000D"]["Value"] for line in printed.out.splitlines()] == [
        ["1.2.1"],
        ["1.2.2"],
        ["1.2.3"],
    ]
    assert printed.err == "3 studies\n"
    for form in (["--format", "json"], ["--prettify"]):
        assert main(["--url", str(archive), "search", "studies", *form]) == 0
        assert len(json.loads(capsys.readouterr().out)) == 3


def test_a_spreadsheet_takes_no_formula(archive: Path, capsys: Capture) -> None:
    assert main(["--url", str(archive), "search", "studies", "--format", "csv", "--field", "InstitutionName"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["PatientID"] for row in rows] == ["D2", "D2", "'-1"]
    assert rows[0]["ModalitiesInStudy"] == "CT\\SR"
    assert rows[0]["StudyDate"] == "2024-02-29"
    assert rows[2]["StudyDescription"] == EVIL
    assert rows[0]["InstitutionName"] == ""


def test_what_came_before_an_error_is_in_the_table(archive: Path, terminal: Any, capsys: Capture) -> None:
    terminal(80)
    with serve(archive, faults=[fault("lying_total", times=None, difference=3)]) as server:
        assert main(["--url", server.url, "search", "studies"]) == 1
    assert len(lines(capsys)) == 4


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["search", "studies", "--format", "csv", "--field", "all"], "no columns for csv"),
        (["search", "series", "--format", "table", "--field", "PixelData"], "is binary"),
        (["tree", "x"], "one archive"),
        (["tree", "--check", "--depth", "studies"], "leave out --depth"),
        (["tree", "--limit", "-1"], "limit"),
        (["tree", "--filter", "PatientId=1"], "did you mean 'PatientID'"),
    ],
)
def test_wrong_use_is_explained(arguments: list[str], text: str, capsys: Capture) -> None:
    assert main(["--url", "x", *arguments]) == 2
    assert text in capsys.readouterr().err


def test_index_for_people_and_pipes(archive: Path, terminal: Any, capsys: Capture) -> None:
    (archive / "twin.dcm").write_bytes((archive / "a.dcm").read_bytes())
    (archive / "note.txt").write_text("no DICOM")
    size = sum(path.stat().st_size for path in archive.glob("?.dcm"))
    assert main(["index", str(archive)]) == 0
    found = json.loads(capsys.readouterr().out)
    expected = {"studies": 3, "series": 4, "instances": 5, "bytes": size, "duplicate": 1, "ignored": 1, "unreadable": 0}
    assert found == expected
    terminal(80)
    assert main(["index", str(archive), "--list"]) == 0
    shown = lines(capsys)
    assert shown[0] == f"duplicate  {archive / 'twin.dcm'}  (identical)"
    numbers = [line.split()[:2] for line in shown[2:]]
    assert numbers == [[name, str(number)] for name, number in expected.items() if name != "bytes"]


def test_a_tree_answers_what_is_in_a_folder(archive: Path, terminal: Any, capsys: Capture) -> None:
    (archive / "twin.dcm").write_bytes((archive / "a.dcm").read_bytes() + b"other")
    (archive / "cut.dcm").write_bytes((archive / "e.dcm").read_bytes()[:-2])
    (archive / "note.txt").write_text("no DICOM")
    terminal(100)
    assert main(["tree", str(archive)]) == 0
    shown = lines(capsys)
    assert shown[0].startswith(f"{archive}: 2 patients, 3 studies, 4 series, 5 instances, ")
    assert shown[1] == "Dr Jane Doe  D2  born 1970-01-02  F"
    assert shown[2].startswith("├── 2023-01-01        MR ")
    assert shown[4].startswith("└── 2024-02-29 13:45  CT, SR  Thorax Thorax")
    assert shown[5].startswith("    ├── 1  SR ")
    assert shown[6].startswith("    └── 3  CT  Lung  2 instances")
    assert shown[6].endswith("! 1 conflicting file")
    assert shown[7] == "Tarou Yamada (山田 太郎, やまだ たろう)  -1"
    assert shown[-2] == "! 1 conflicting file, 1 ignored file, 1 unreadable file"
    assert "index ARCHIVE --list" in shown[-1]
    assert max(map(len, shown[1:])) <= 100
    assert main(["tree", str(archive), "--check"]) == 1


def test_a_tree_shows_the_first_and_counts_the_rest(archive: Path, terminal: Any, capsys: Capture) -> None:
    terminal(100)
    assert main(["--url", str(archive), "tree", "--limit", "1", "--depth", "studies"]) == 0
    shown = lines(capsys)
    assert len(shown) == 4
    assert "3 studies" in shown[0]
    assert shown[3].startswith("… and 2 more studies: --limit 3 shows all")
    assert main(["--url", str(archive), "tree", "--filter", "PatientID=D2", "--filter", "StudyDate=2023"]) == 2
    assert main(["--url", str(archive), "tree", "--filter", "StudyDate=20230101"]) == 0
    assert "1 patient, 1 study, 1 series, 1 instance" in lines(capsys)[0]


def test_a_tree_tells_of_patients_with_one_id(archive: Path, terminal: Any, capsys: Capture) -> None:
    terminal(100)
    for number, name in enumerate(("DOE^JANE^^Dr^", "Roe^Richard")):
        uids = (f"1.3.{number}", f"1.3.{number}.1", f"1.3.{number}.1.1")
        (archive / f"{number}.dcm").write_bytes(make_bytes(*uids, PatientID="D2", PatientName=name))
    assert main(["tree", str(archive)]) == 0
    shown = lines(capsys)
    assert "3 patients, 5 studies" in shown[0]
    assert shown[-1] == "! 1 patient with the ID of a patient of another name"


@pytest.mark.parametrize("form", ["json", "jsonl"])
def test_a_tree_for_programs(form: str, archive: Path, capsys: Capture) -> None:
    assert main(["tree", str(archive), "--format", form]) == 0
    text = capsys.readouterr().out
    studies = json.loads(text) if form == "json" else [json.loads(line) for line in text.splitlines()]
    assert [study["StudyInstanceUID"] for study in studies] == ["1.2.1", "1.2.2", "1.2.3"]
    assert [series["NumberOfSeriesRelatedInstances"] for series in studies[0]["series"]] == [1, 2]
    assert studies[1]["bytes"] == (archive / "d.dcm").stat().st_size
    assert main(["tree", str(archive), "--format", form, "--filter", "PatientID=nobody"]) == 0
    assert capsys.readouterr().out == ("[]\n" if form == "json" else "")


@pytest.mark.parametrize("behaviour", [name for name in BEHAVIOURS if name != "offset-ignored"])
def test_a_tree_of_every_server(behaviour: str, archive: Path, terminal: Any, capsys: Capture) -> None:
    terminal(100)
    with serve(archive, behaviour=behaviour) as server:
        prefixes = server.endpoint().prefixes
        where = ["--qido-prefix", prefixes.qido] if prefixes.qido else []
        kind = behaviour.partition("-")[0]
        where += ["--profile", kind if kind in PROFILES else "generic"]
        assert main(["--url", server.url, *where, "tree", "--check"]) == 0
    shown = lines(capsys)
    assert shown[0].startswith(f"{server.url}: 2 patients, 3 studies, 4 series, 5 instances")
    assert len(shown) == 1 + 2 + 3 + 4
    assert "2 instances" in shown[6]


def test_check_finds_what_is_counted_wrongly(terminal: Any, answering: Any, capsys: Capture) -> None:
    uids = {"0020000D": "1.2", "0020000E": "1.2.3", "00080018": "1.2.3.4"}
    row: dict[str, Any] = {tag: {"vr": "UI", "Value": [uid]} for tag, uid in uids.items()}
    row["00201209"] = {"vr": "IS", "Value": [5]}

    def answer(request: Any) -> Reply:
        return Reply.json([] if "offset=" in request.target and "offset=0" not in request.target else [row])

    terminal(100)
    server = answering(answer)
    assert main(["--url", server.url, "tree", "--limit", "0"]) == 0
    assert "… and 1 more study" in capsys.readouterr().out
    assert main(["--url", server.url, "tree", "--check"]) == 1
    shown = lines(capsys)
    assert shown[3].endswith("5 instances  ! lists 1 instance")
    assert shown[4] == "! 1 miscounted series"
    # What is not shown is checked, too.
    assert main(["--url", server.url, "tree", "--check", "--limit", "0"]) == 1
    assert lines(capsys)[-1] == "! 1 miscounted series"


def test_what_cannot_be_listed_is_told(archive: Path, terminal: Any, capsys: Capture) -> None:
    terminal(100)
    with serve(archive, faults=[fault("status", path="/studies/1.2.1/series$", status=403, times=None)]) as server:
        assert main(["--url", server.url, "tree"]) == 1
    shown = lines(capsys)
    assert sum("! its series cannot be listed: " in line for line in shown) == 1


def test_a_tree_ends_when_the_server_refuses_the_login(archive: Path, terminal: Any, capsys: Capture) -> None:
    terminal(100)
    with serve(archive, faults=[fault("status", path="/series$", status=401, times=None)]) as server:
        assert main(["--url", server.url, "tree"]) == 1
        asked = [record for record in server.records if record.path.endswith("/series")]
    assert len(asked) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "401" in printed.err


@pytest.mark.parametrize("form", ["csv", "jsonl"])
@pytest.mark.parametrize("level", ["studies", "series", "instances"])
def test_what_a_search_or_a_table_says_is_a_list_for_copies(
    level: str, form: str, archive: Path, tmp_path: Path, capsys: Capture
) -> None:
    assert main(["search", level, "--url", str(archive), "--format", form]) == 0
    found, table = tmp_path / f"found.{form}", tmp_path / f"table.{form}"
    found.write_text(capsys.readouterr().out)
    columns = 'StudyInstanceUID,SeriesInstanceUID,SOPInstanceUID,SeriesNumber,ModalitiesInStudy,(0009,"X",10)'
    one = level if level == "series" else level.removesuffix("s").replace("studie", "study")
    names = ["--columns", columns, "--full"] if level == "instances" else []
    assert main(["export", "table", str(archive), "--level", one, "--out", str(table), *names]) == 0
    for path in (found, table):
        capsys.readouterr()
        assert main(["copy", str(archive), str(tmp_path / "copy"), "--dry-run", "--input", str(path)]) == 0
        assert json.loads(capsys.readouterr().out)["to_transfer"] == 5


def test_a_mistyped_key_of_a_list_is_not_passed_over(archive: Path, tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "list.jsonl"
    path.write_text('{"StudyInstanceUID": "1.2.1", "SeriesInstanceUid": "1.2.1.1"}\n')
    assert main(["copy", str(archive), str(tmp_path / "copy"), "--dry-run", "--input", str(path)]) == 1
    assert "unknown keys" in capsys.readouterr().err
