"""The table of engines: every engine has a column, every test a row; the document holds what the command writes."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.runners.write_table import BEGIN, DOCUMENT, END, FEATURES, Outcomes, base_name, engines, main, table_of

ON_ENGINES = re.compile(r"^def (test_\w+)\((?=[^)]*\b(?:engine|streaming_engine|prism|spark)\b)", re.MULTILINE)


def test_every_test_of_the_engines_has_a_row_and_every_row_a_test():
    sources = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    told = [test for tests in FEATURES.values() for test in tests]
    assert len(told) == len(set(told))
    assert {base_name(name) for name in ON_ENGINES.findall(sources)} <= set(told)
    assert set(told) <= {base_name(name) for name in re.findall(r"^def (test_\w+)\(", sources, re.MULTILINE)}


def test_the_document_has_every_row_and_every_column():
    table = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    expected = table_of({}).splitlines()
    rows = re.findall(r"^\| ([^|]+) \|", table, re.MULTILINE)
    assert [line for line in table.splitlines() if line.startswith("| |")] == expected[:1]
    assert rows == list(FEATURES)


def test_a_cell_says_what_was_seen():
    feature = next(iter(FEATURES))
    first, second, third, *_ = engines()
    outcomes = {
        (feature, first): {"passed", "its parameters make no sense"},
        (feature, second): {"passed", f"{second}: it has no timers"},
        (feature, third): {"passed", "failed"},
    }
    table = table_of(outcomes)
    assert f"| {feature} | ✓ | [1] | **fails** | – |" in table
    assert table.endswith("[1] it has no timers.")


@pytest.mark.parametrize(("code", "written"), [(0, True), (1, True), (2, False), (3, False), (5, False)])
def test_a_run_that_was_cut_short_leaves_the_table_as_it_was(code, written, tmp_path, monkeypatch, capsys):
    document = tmp_path / "README.md"
    document.write_text(f"{BEGIN}before{END}")
    monkeypatch.setattr("tests.runners.write_table.DOCUMENT", document)
    monkeypatch.setattr(pytest, "main", lambda *args, **options: code)
    assert main(["in memory"]) == code
    assert ("before" not in document.read_text(), "was not written" in capsys.readouterr().err) == (
        written,
        not written,
    )


def test_what_has_no_row_does_not_run():
    """The kills are no part of the table, and take half an hour."""
    names = "test_nothing_is_lost_or_doubled", "test_a_search_and_a_transfer_both_ways_on_spark"
    items = [SimpleNamespace(originalname=name, nodeid=name, path=Path("test_spark.py")) for name in names]
    outcomes = Outcomes(engines())
    outcomes.pytest_collection_modifyitems(items)
    assert [item.nodeid for item in items] == [names[1]]
