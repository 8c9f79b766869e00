"""The rows of the fault matrix that many instances go through: each of them arrives once, or has its failure."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.testing.util import assert_that, equal_to, is_empty

from dicomweb_io.account import adds_up
from dicomweb_io.cli import main as command_line
from dicomweb_io.elements import Failure, Instance, Resource
from dicomweb_io.endpoint import Endpoint
from dicomweb_io.http.settings import Timeouts
from dicomweb_io.testing.faults import fault
from dicomweb_io.testing.samples import make_study
from dicomweb_io.transforms import CopyInstances, RetrieveFrames, RetrieveInstances, RetrieveMetadata, StoreInstances
from pipelines.transfer import main as job
from tests.faults.many_instances import COUNT, MANY, WAYS, ManyCase

Seen = tuple[int, list[dict[str, Any]]]
"""How many arrived, and the failures as JSON objects."""

_FOUND: list[Any] = []


def _keep(item: Any) -> None:
    # By its name, which a pipeline in this process finds; a bound method would append to a copy.
    _FOUND.append(item)


@pytest.fixture
def many(tmp_path: Path) -> Path:
    make_study(tmp_path / "source", series=COUNT, instances=1, size=300)
    return tmp_path / "source"


def contents(folder: Path) -> list[bytes]:
    return sorted(path.read_bytes() for path in folder.rglob("*.dcm"))


def paths_of(folder: Path) -> list[str]:
    return sorted(map(str, folder.rglob("*.dcm")))


def references_of(folder: Path) -> list[Resource]:
    return [Instance.from_path(path).reference for path in paths_of(folder)]


def transfer(way: str, case: ManyCase, source: str, destination: str, tmp_path: Path) -> Seen:
    failures, summary = tmp_path / "failures.jsonl", tmp_path / "summary.json"
    reports, outage = ["--failures", str(failures), "--summary", str(summary)], str(case.outage)
    if way == "pipelines.transfer":
        limits = ["--source-outage", outage, "--destination-outage", outage]
        code = job(["--source", source, "--destination", destination, *reports, *limits])
    else:
        code = command_line(["--outage", outage, "copy", source, destination, *reports, "--destination-outage", outage])
    numbers = json.loads(summary.read_text())
    assert adds_up(numbers)
    # A series that was not listed, because its server was gone, is told as a search that failed.
    assert numbers["found"] + numbers["search_failures"] == COUNT
    assert (code == 0) == (case.outcome == "recovered")
    lines = [json.loads(line) for line in failures.read_text().splitlines()]
    assert len(lines) == numbers["failed"] + numbers["not_tried"] + numbers["search_failures"]
    return numbers["transferred"] + numbers["already_there"], lines


def piped(way: str, case: ManyCase, source: Path, server: str, folder: Path) -> Seen:
    endpoint = Endpoint(server, timeouts=Timeouts(outage=case.outage))
    transform: Any
    elements: list[Any] = references_of(source)
    if way == "StoreInstances":
        elements, transform = paths_of(source), StoreInstances(endpoint, failures="collect")
    elif way == "RetrieveInstances":
        transform = RetrieveInstances(endpoint, failures="collect")
    elif case.direction == "store":
        transform = CopyInstances(str(source), endpoint, failures="collect")
    else:
        transform = CopyInstances(endpoint, str(folder), failures="collect")
    _FOUND.clear()
    with beam.Pipeline("FnApiRunner") as p:
        good, bad = p | beam.Create(elements, reshuffle=False) | transform
        _ = (good, bad) | beam.Flatten() | beam.Map(_keep)
    failures = [item for item in _FOUND if isinstance(item, Failure)]
    good_items = [item for item in _FOUND if not isinstance(item, Failure)]
    if way == "RetrieveInstances":
        originals = {Instance.from_path(path).reference: Path(path).read_bytes() for path in paths_of(source)}
        assert all(item.content == originals[item.reference] for item in good_items)
    return len({item.reference for item in good_items}), [failure.to_dict() for failure in failures]


@pytest.mark.parametrize(
    ("case", "way"),
    [(case, way) for case in MANY for way in WAYS[case.direction]],
    ids=lambda item: str(getattr(item, "name", item)),
)
def test_row(
    serve: Callable[..., Any],
    many: Path,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    case: ManyCase,
    way: str,
) -> None:
    if way == "StoreInstances":
        # One for each request, or a bundle would be one request.
        monkeypatch.setattr("dicomweb_io.copier.MAX_BATCH_INSTANCES", 1)
    server = serve(folder if case.direction == "store" else many, faults=[case.fault])
    if way in ("dicomweb-io copy", "pipelines.transfer"):
        ends = (str(many), server.url) if case.direction == "store" else (server.url, str(folder))
        arrived, failures = transfer(way, case, *ends, tmp_path)
    else:
        arrived, failures = piped(way, case, many, server.url, folder)
    assert sum(server.faults.struck or server.proxy.faults.struck) > 0
    assert arrived + len(failures) == COUNT
    if case.outcome == "recovered":
        assert not failures, failures[0]["message"]
        if way != "RetrieveInstances":
            assert contents(folder) == contents(many)
        return
    assert sum(failure["attempts"] == 0 for failure in failures) > COUNT / 3
    assert all(failure["retryable"] for failure in failures)
    named = {reference.series for reference in references_of(many)}
    assert {Resource.of(failure["reference"]).series for failure in failures} <= named


@pytest.mark.parametrize("transform", [RetrieveMetadata, RetrieveFrames])
def test_other_retrieves_that_are_lost_when_they_overlap(serve: Callable[..., Any], many: Path, transform: Any) -> None:
    lost = fault("status", status=404, path="/instances/[0-9.]+/(metadata|frames)", overlapping=1, times=None)
    server = serve(many, faults=[lost])
    with beam.Pipeline("FnApiRunner") as p:
        result = p | beam.Create(references_of(many)) | transform(server.url, failures="collect")
        assert_that(result.failures, is_empty(), label="failures")
        assert_that(result[0] | beam.combiners.Count.Globally(), equal_to([COUNT]), label="retrieved")


@pytest.mark.parametrize("way", ["StoreInstances", "CopyInstances", "RetrieveInstances"])
def test_a_server_that_never_answered_is_not_waited_for(many: Path, folder: Path, way: str) -> None:
    """All but those that were under way when it turned out have a failure that says that they were not tried."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{unused.getsockname()[1]}"
        case = ManyCase("never there", "", MANY[0].fault, "store", outage=3600.0)
        arrived, failures = piped(way, case, many, nowhere, folder)
    assert (arrived, len(failures)) == (0, COUNT)
    assert sum(failure["attempts"] > 0 for failure in failures) <= 8
