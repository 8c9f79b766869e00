"""Reports: the numbers of the summary, facts that can be merged in any order, and a page that stands alone."""

from __future__ import annotations

import importlib.util
import json
import random
import re
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from dicomweb_io.account import MAX_EXAMPLES, MAX_SLICES, MAX_SLOW_SERIES, SIZES, Account, Facts, Timeline, make_summary
from dicomweb_io.cli import main
from dicomweb_io.elements import Exclusion, Failure, Resource, StoredInstance
from dicomweb_io.endpoint import Endpoint
from dicomweb_io.listing import InstanceGroup
from dicomweb_io.options import UsageError
from dicomweb_io.report import (
    RoundsFacts,
    check_report,
    make_document,
    render_page,
    write_report,
    write_reports,
    write_transfer_reports,
)
from dicomweb_io.testing.faults import fault
from dicomweb_io.testing.samples import make_study
from dicomweb_io.transfer import TransferJob, run_transfer
from pipelines.reconcile import main as run_comparison_job
from pipelines.transfer import main as run_job

CT = "1.2.840.10008.5.1.4.1.1.2"
BEGIN = 1_795_896_000.0
SCRIPT = "<script>alert('1')</script> & \"quoted\""
VOID = {"meta", "link", "br", "img", "hr", "input"}


def stored(number=0, **facts):
    reference = Resource("1.2", f"1.2.{number // 100}", f"1.2.3.{number}")
    return StoredInstance(reference, **{"at": BEGIN + number / 10, "seconds": 0.5, "size": 5000, **facts})


def account_of(*entries):
    account = Account(with_facts=True)
    for entry in entries:
        account.add(entry)
    return account


def document_of(account, seconds=2.0, **facts):
    made = account.document()
    return make_document(make_summary(made, seconds), {**made["facts"], **facts})


class Page(HTMLParser):
    """Reads a page: checks that its elements are closed, and collects them."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.text = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)

    def names(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def check_page(text):
    """The page stands alone, can be read aloud, and is well-formed; returns its text."""
    page = Page(text)
    assert text.startswith("<!DOCTYPE html>")
    assert not page.names("script")
    for _, attributes in page.elements:
        assert not {"src", "href", "xlink:href", "action", "data", "onload", "onclick"} & set(attributes)
    assert "@import" not in text
    assert "url(" not in text
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert len(page.names("h1")) == 1
    assert len(page.names("caption")) == len(page.names("table"))
    assert all(attributes.get("role") == "img" and attributes.get("aria-label") for attributes in page.names("svg"))
    for drawing in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        ElementTree.fromstring(drawing)
        assert set(re.findall(r"#[0-9a-f]{6}", drawing)) <= {"#ffffff"}
    return " ".join(" ".join(page.text).split())


# Facts --------------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 2e9), st.sampled_from(Timeline.COLUMNS[:3]), st.integers(0, 1000))), st.randoms()
)
def test_timelines_merge_to_the_same_in_any_order_and_stay_small(events, order):
    whole, parts = Timeline(), [Timeline() for _ in range(4)]
    for at, column, size in events:
        whole.add(at, column, size)
        order.choice(parts).add(at, column, size)
    order.shuffle(parts)
    merged = Timeline()
    for part in parts:
        merged.merge(part)
    restored = Facts()
    restored.timeline = merged
    assert Facts.of(restored.document()).document() == restored.document()
    assert (merged.width, merged.slices) == (whole.width, whole.slices)
    slices = merged.document()["slices"]
    assert len(slices) <= MAX_SLICES
    for column in Timeline.COLUMNS[:3]:
        assert sum(item[column] for item in slices) == sum(name == column for _, name, _ in events)
    assert sum(item["bytes"] for item in slices) == sum(size for _, _, size in events)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 900), max_size=60), st.randoms())
def test_accounts_merge_to_the_same_facts_in_any_order(numbers, order):
    entries = [
        Failure("CopyInstances", f"refused {number % 3}", reference=stored(number).reference, status=500)
        if number % 7 == 0
        else stored(number, size=number * 10_000, outcome="exists" if number % 5 == 0 else "stored", sop_class_uid=CT)
        for number in numbers
    ]
    parts = [Account(with_facts=True) for _ in range(3)]
    for entry in entries:
        order.choice(parts).add(entry)
    documents = []
    for _ in range(2):
        order.shuffle(parts)
        merged = Account(with_facts=True)
        for part in parts:
            merged.merge(part)
        documents.append(merged.document()["facts"])
    whole = account_of(*entries).document()["facts"]
    for facts in (*documents, whole):
        # Failures bear no time; they are noted when they are counted.
        facts["timeline"]["slices"].clear()
        assert all(len(examples) <= MAX_EXAMPLES for examples in facts["examples"].values())
    assert documents[0] == documents[1]
    assert Facts.of(whole).document() == whole
    for facts in (documents[0], whole):
        facts["examples"] = {reason: len(examples) for reason, examples in facts["examples"].items()}
    assert documents[0] == whole


def test_facts_take_bounded_memory():
    account = Account(with_facts=True)
    for number in range(8000):
        reference = Resource("1.2", f"1.2.{number}", f"1.2.3.{number}")
        account.add(StoredInstance(reference, size=number, at=BEGIN + 60 * number, seconds=number % 7919 / 10))
        account.add(Failure("CopyInstances", f"cause {number}", reference=reference))
    facts = account.document()["facts"]
    assert [series["seconds"] for series in facts["slow_series"]][:3] == [791.8, 791.7, 791.6]
    assert len(facts["slow_series"]) == MAX_SLOW_SERIES
    assert len(facts["timeline"]["slices"]) <= MAX_SLICES
    assert len(facts["sizes"]) <= len(SIZES) + 1
    assert len(json.dumps(facts)) < 100_000


def test_a_series_in_progress_is_not_forgotten_for_quick_ones():
    account = Account(with_facts=True)
    for number in range(1000):
        account.add(stored(0, seconds=number / 10))
        account.add(stored(100 * (number + 1), seconds=0.5))
    slowest = account.document()["facts"]["slow_series"][0]
    assert (slowest["reference"]["series_instance_uid"], slowest["instances"]) == ("1.2.0", 1000)


# The document -------------------------------------------------------------------------------------------------------


def test_the_document_has_the_numbers_of_the_summary():
    failure = Failure(
        "CopyInstances", "refused: full", reference=stored(1).reference, source="a.csv line 2", status=507
    )
    kept = {"sop_class_uid": CT, "transfer_syntax_uid": "1.2.840.10008.1.2.1"}
    entries = [
        InstanceGroup(Resource("1.2", "1.2.0"), tuple(f"1.2.3.{number}" for number in range(4))),
        stored(0, **kept),
        stored(2, size=20_000, **kept),
        stored(3, outcome="exists", size=0),
        failure,
        Exclusion("ignored", "/a/readme.txt", "not DICOM"),
    ]
    document = json.loads(json.dumps(document_of(account_of(*entries), kind="transfer")))
    summary = document["summary"]
    assert (document["schema_version"], document["kind"], document["complete"]) == (1, "transfer", False)
    assert (summary["found"], summary["transferred"], summary["failed"]) == (5, 2, 1)
    (cause,) = document["failures"]
    assert (cause["reason"], cause["number"]) == ("refused: full", 1)
    assert cause["examples"][0]["source"] == "a.csv line 2"
    assert cause["examples"][0]["reference"] == stored(1).reference.to_dict()
    assert document["sizes"][0] == {"from": 5000, "below": 10_000, "instances": 1}
    assert sum(size["instances"] for size in document["sizes"]) == summary["transferred"]
    for kind in ("sop_classes", "transfer_syntaxes"):
        assert sum(item["instances"] for item in document[kind]) == summary["transferred"]
        assert sum(item["bytes"] for item in document[kind]) == summary["bytes"]
    assert document["sop_classes"][0]["name"] == "CT Image Storage"
    slices = document["timeline"]["slices"]
    for name in ("transferred", "already_there", "failed", "bytes"):
        assert sum(item[name] for item in slices) == summary[name]


def test_words_of_servers_and_values_of_patients_stay_out(tmp_path):
    failure = Failure(
        "CopyInstances",
        "refused: DOE^JANE has no room",
        reference=stored().reference,
        server_message="DOE^JANE has no room",
    )
    path = str(tmp_path / "report.json")
    filters = {"PatientName": "DOE^JANE", "00100020": "4711", "AccessionNumber": "A-815", "Modality": "CT"}
    job = TransferJob(Endpoint("/a"), Endpoint("https://user:secret@pacs.example/dicom"), filters, report=(path,))
    made = account_of(failure).document()
    write_transfer_reports(job, make_summary(made, 1.0), made["facts"])
    text = (tmp_path / "report.json").read_text()
    for secret in ("JANE", "4711", "A-815", "secret"):
        assert secret not in text
    options = json.loads(text)["options"]
    assert options["filters"] == {"PatientName": "…", "00100020": "…", "AccessionNumber": "…", "Modality": "CT"}


# The page -----------------------------------------------------------------------------------------------------------


def test_a_page_of_nothing_and_of_one_instance():
    nothing = check_page(render_page(document_of(Account(with_facts=True))))
    assert "Nothing was found." in nothing
    one = check_page(
        render_page(document_of(account_of(InstanceGroup(Resource("1.2", "1.2.0"), ("1.2.3.0",)), stored())))
    )
    assert "Everything that was asked for is done." in one
    assert "transferred 1" in one


def test_a_page_of_very_much_is_short():
    account = Account(with_facts=True)
    for number in range(5000):
        account.add(stored(number, size=random.Random(number).randrange(10**8), warnings=(f"odd {SCRIPT}",)))
        account.add(
            Failure(
                "CopyInstances",
                f"cause {number % 70} {SCRIPT}",
                reference=stored().reference,
                source="/a/" + "long/" * 100 + str(number),
            )
        )
        account.add(Exclusion("ignored", f"/a/{SCRIPT}/{number}", "not DICOM"))
    page = render_page(document_of(account, source={"url": "https://pacs.example/" + "x" * 500}))
    text = check_page(page)
    assert len(page) < 500_000
    assert "Not everything is done: 5,000 failed." in text
    assert "The first 100 of 5,000 files." in text
    assert SCRIPT in text
    assert page.count("<svg") == 2


def test_other_commands_write_reports_too(tmp_path):
    """What compares or stores has other numbers, and tables."""
    facts = {
        "kind": "compare",
        "source": {"url": "/a"},
        "complete": False,
        "tables": [{"title": "Differences", "columns": ["what", "bytes"], "rows": [["missing", 5], [SCRIPT, None]]}],
    }
    for form in ("json", "html"):
        assert write_report(str(tmp_path / f"report.{form}"), {"missing": 1, "seconds": 0.5}, facts) is None
    text = check_page((tmp_path / "report.html").read_text())
    assert "Compare report" in text
    assert "missing 1" in text
    assert SCRIPT in text
    assert json.loads((tmp_path / "report.json").read_text())["tables"] == facts["tables"]


def test_rounds_are_added_up(tmp_path):
    """What watches copies in rounds, which report each."""
    path = tmp_path / "report.html"
    facts = RoundsFacts()
    traffic = {"requests": 3, "retries": 1, "bytes_in": 5, "bytes_out": 6, "throttled_seconds": 0.5, "max_seconds": 2.0}
    for number in range(3):
        failure = Failure("CopyInstances", "refused", reference=stored(number).reference)
        account = account_of(stored(number, sop_class_uid=CT), failure)
        facts.add(document_of(account, requests=[{"archive": "source", **traffic}]))
    totals = {"polls": 3, "transferred": 3, "found": 6, "pending": 3, "reasons": {"refused": 3}, "last_error": SCRIPT}
    paths = [str(path), str(tmp_path / "report.json")]
    write_reports(paths, totals, {**facts.document(), "kind": "watch", "source": {"url": "/a"}, "complete": False})
    text = check_page(path.read_text())
    assert "Watch report" in text
    assert "Not everything is done: 3 to be tried again." in text
    assert SCRIPT not in text
    document = json.loads((tmp_path / "report.json").read_text())
    assert document["requests"] == [
        {
            "archive": "source",
            **traffic,
            "requests": 9,
            "retries": 3,
            "bytes_in": 15,
            "bytes_out": 18,
            "throttled_seconds": 1.5,
        }
    ]
    assert [(cause["number"], len(cause["examples"])) for cause in document["failures"]] == [(3, 3)]
    assert sum(item["transferred"] for item in document["timeline"]["slices"]) == 3
    assert document["sop_classes"][0]["instances"] == 3


# As a user meets them -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("driver", ["copy", "job"])
def test_a_copy_reports(driver, serve, tmp_path, capsys):
    """The command and the job, which refuse one instance of a server, tell the same."""
    make_study(tmp_path / "source", series=2, instances=12, size=2000)
    server = serve(tmp_path / "source", faults=[fault("status", path="/series$", method="GET", status=503, times=1)])
    target = str(tmp_path / "target")
    reports = [tmp_path / "report.html", tmp_path / "report.json"]
    options = [argument for path in reports for argument in ("--report", str(path))]
    if driver == "copy":
        assert main(["copy", server.url, target, *options]) == 0
    else:
        assert run_job(["--source", server.url, "--destination", target, *options]) == 0
    assert [path.stat().st_mode & 0o777 for path in reports] == [0o600, 0o600]
    document = json.loads(reports[1].read_text())
    assert document["complete"]
    assert document["source"] == {"url": server.url}
    assert (document["summary"]["found"], document["summary"]["transferred"]) == (24, 24)
    assert sum(item["transferred"] for item in document["timeline"]["slices"]) == 24
    assert sum(item["bytes"] for item in document["timeline"]["slices"]) == document["summary"]["bytes"]
    assert [item["instances"] for item in document["slow_series"]] == [12, 12]
    assert document["transfer_syntaxes"][0]["instances"] == 24
    (traffic,) = document["requests"]
    assert traffic["archive"] == ("source" if driver == "copy" else "both")
    # The job asks both archives before it begins; that is no work of its transforms.
    assert len(server.records) - traffic["requests"] in ((0,) if driver == "copy" else (0, 1, 2))
    assert traffic["retries"] == 1
    assert traffic["max_seconds"] > 0
    check_page(reports[0].read_text())


@pytest.mark.parametrize("driver", ["compare", "job"])
def test_a_comparison_reports(driver, serve, tmp_path, capsys):
    make_study(tmp_path / "source", series=2, instances=3, size=100)
    server = serve(tmp_path / "archive")
    paths = [str(tmp_path / "report.json"), str(tmp_path / "report.html")]
    options = [argument for path in paths for argument in ("--report", path)]
    if driver == "compare":
        assert main(["compare", str(tmp_path / "source"), server.url, *options]) == 1
    else:
        assert run_comparison_job(["--source", str(tmp_path / "source"), "--destination", server.url, *options]) == 1
    document = json.loads(Path(paths[0]).read_text())
    assert (document["kind"], document["complete"]) == ("comparison", False)
    assert document["verdict"] == "The archives differ."
    assert document["summary"]["missing"] == 6
    assert document["requests"][0]["requests"] > 0
    text = check_page(Path(paths[1]).read_text())
    assert "The archives differ." in text
    assert "instances, source 6" in text
    if driver == "compare":
        assert document["tables"][0]["rows"][0][:1] == ["missing"]


def test_a_store_reports(serve, tmp_path, capsys):
    make_study(tmp_path / "files", series=1, instances=3, size=100)
    (tmp_path / "files/readme.txt").write_text("not DICOM")
    server, path = serve(tmp_path / "archive"), tmp_path / "report.json"
    (tmp_path / "broken.dcm").write_bytes(b"no DICOM")
    files = [str(tmp_path / "files"), str(tmp_path / "broken.dcm")]
    assert main(["store", "instances", *files, "--url", server.url, "--report", str(path)]) == 1
    document = json.loads(path.read_text())
    summary = {name: document["summary"][name] for name in ("found", "transferred", "ignored", "failed")}
    assert summary == {"found": 5, "transferred": 3, "ignored": 1, "failed": 1}
    assert (document["kind"], document["destination"]) == ("store", {"url": server.url})
    assert document["failures"][0]["examples"][0]["source"] == str(tmp_path / "broken.dcm")
    assert document["requests"][0]["requests"] == len(server.records)
    assert main(["store", "instances", *files, "--url", server.url, "--report", "a.pdf"]) == 2


def test_a_dry_run_reports_what_it_would_copy(tmp_path):
    make_study(tmp_path / "source", series=2, instances=2, size=100)
    path = tmp_path / "report.html"
    job = TransferJob(Endpoint(str(tmp_path / "source")), Endpoint(str(tmp_path / "target")), report=(str(path),))
    run_transfer(replace(job, dry_run=True))
    text = check_page(path.read_text())
    assert "This was a dry run, and nothing was written. 4 are to be transferred." in text
    assert "to transfer 4" in text


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("report.pdf", "a report is a page (.html) or a JSON document (.json)"),
        ("nowhere/report.html", "there is no folder"),
        ("report.HTML", "pip install 'dicomweb_io[report]'"),
    ],
)
def test_what_cannot_be_written_is_wrong_use_before_anything_is_copied(path, text, tmp_path, capsys, monkeypatch):
    make_study(tmp_path / "source", series=1, instances=1, size=100)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    given_path = str(tmp_path / path)
    arguments = ["--report", str(tmp_path / "fine.json"), "--report", given_path]
    assert main(["copy", str(tmp_path / "source"), str(tmp_path / "target"), *arguments]) == 2
    assert f"--report {given_path}: " in (printed := capsys.readouterr().err)
    assert text in printed
    assert not (tmp_path / "target").exists()
    with pytest.raises(UsageError):
        check_report(given_path)


def test_a_report_that_fails_at_the_end_is_counted(tmp_path, capsys):
    make_study(tmp_path / "source", series=1, instances=1, size=100)
    folder = tmp_path / "reports"
    job = TransferJob(
        Endpoint(str(tmp_path / "source")), Endpoint(str(tmp_path / "target")), report=(f"{folder}/a.json",)
    )
    summary = run_transfer(job)
    assert (summary["transferred"], summary["unwritten"]) == (1, 1)
    assert f"--report {folder}/a.json cannot be written: No such file or directory" in capsys.readouterr().err


def test_a_json_report_needs_no_drawings(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert importlib.util.find_spec("matplotlib") is None
    check_report(str(tmp_path / "report.json"))
    assert write_report(str(tmp_path / "report.json"), {"seconds": 1}, {}) is None
