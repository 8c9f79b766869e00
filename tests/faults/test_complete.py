"""That the matrix is complete: no operation, transform or fault is forgotten, and what is left out cannot occur."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import apache_beam as beam
import pytest

from dicomweb_io import transforms
from dicomweb_io.client import DICOMClient
from dicomweb_io.elements import Resource, SearchQuery
from dicomweb_io.testing.faults import FAULTS
from dicomweb_io.testing.server.exchange import Record
from dicomweb_io.web.client import DICOMwebClient
from tests.faults.bench import PATIENT, Bench, endpoint_of, make_bench
from tests.faults.cells import settings_of, undisturbed
from tests.faults.expectations import RULES
from tests.faults.failure_cases import FAILURE_CASES, FAILURE_REASONS, TRAITS
from tests.faults.observed import SHOWS, shown
from tests.faults.operations import OPERATIONS
from tests.faults.transform_operations import TRANSFORMS, undisturbed_requests
from tests.faults.write_matrix import PATH, columns, render

Call = Callable[[DICOMwebClient, Bench], Any]

COLUMNS: dict[str, str] = {
    "count": "count",
    "delete_instance": "delete instance",
    "delete_resource": "delete instance",
    "delete_series": "delete series",
    "delete_study": "delete study",
    "iter_bulkdata_parts": "bulk data",
    "iter_frames": "frames",
    "iter_instances": "stream study to files",
    "iter_metadata": "metadata of study",
    "iter_search": "page through studies",
    "iter_store_instances": "store: server, response",
    "missing_instances": "missing instances",
    "probe": "probe",
    "retrieve_instance": "retrieve instance",
    "retrieve_rendered": "rendered",
    "retrieve_series": "retrieve series",
    "retrieve_study": "retrieve study",
    "search_for_instances": "search for instances",
    "search_for_series": "search for series",
    "search_for_studies": "search for studies",
    "store_instances": "store_instances",
}
"""The methods of the client that are operations of the matrix."""


def _first(bench: Bench) -> tuple[str, str, str]:
    first = bench.references[0]
    return first.study_instance_uid, str(first.series_instance_uid), str(first.sop_instance_uid)


def _bulkdata(bench: Bench) -> str:
    return f"{bench.references[0].uri}/bulkdata/7FE00010"


SAME_AS: dict[str, tuple[str, Call]] = {
    "expected_instances": (
        "missing instances",
        lambda client, bench: list(client.expected_instances(Resource(_first(bench)[0]))),
    ),
    "iter_bulkdata": ("bulk data", lambda client, bench: list(client.iter_bulkdata(_bulkdata(bench)))),
    "iter_instance_frames": (
        "frames",
        lambda client, bench: list(client.iter_instance_frames(*_first(bench), [3, 1, 2])),
    ),
    "iter_search_for_instances": (
        "page through instances",
        lambda client, bench: list(client.iter_search_for_instances(page_size=5)),
    ),
    "iter_search_for_series": (
        "page through series",
        lambda client, bench: list(client.iter_search_for_series(page_size=2)),
    ),
    "iter_search_for_studies": (
        "page through studies",
        lambda client, bench: list(client.iter_search_for_studies(page_size=1)),
    ),
    "iter_series": ("retrieve series", lambda client, bench: list(client.iter_series(*_first(bench)[:2]))),
    "iter_series_metadata": (
        "metadata of series",
        lambda client, bench: list(client.iter_series_metadata(*_first(bench)[:2])),
    ),
    "iter_study": ("retrieve study", lambda client, bench: list(client.iter_study(_first(bench)[0]))),
    "iter_study_metadata": (
        "metadata of study",
        lambda client, bench: list(client.iter_study_metadata(_first(bench)[0])),
    ),
    "retrieve_bulkdata": ("bulk data", lambda client, bench: client.retrieve_bulkdata(_bulkdata(bench))),
    "retrieve_instance_frames": (
        "frames",
        lambda client, bench: client.retrieve_instance_frames(*_first(bench), [3, 1, 2]),
    ),
    "retrieve_instance_frames_rendered": (
        "rendered",
        lambda client, bench: client.retrieve_instance_frames_rendered(*_first(bench), [1], media_types=("image/png",)),
    ),
    "retrieve_instance_metadata": (
        "metadata of instance",
        lambda client, bench: client.retrieve_instance_metadata(*_first(bench)),
    ),
    "retrieve_instance_rendered": (
        "rendered",
        lambda client, bench: client.retrieve_instance_rendered(*_first(bench), media_types=("image/png",)),
    ),
    "retrieve_series_metadata": (
        "metadata of series",
        lambda client, bench: client.retrieve_series_metadata(*_first(bench)[:2]),
    ),
    "retrieve_series_rendered": (
        "rendered",
        lambda client, bench: client.retrieve_series_rendered(*_first(bench)[:2], media_types=("image/png",)),
    ),
    "retrieve_study_metadata": (
        "metadata of study",
        lambda client, bench: client.retrieve_study_metadata(_first(bench)[0]),
    ),
    "retrieve_study_rendered": (
        "rendered",
        lambda client, bench: client.retrieve_study_rendered(_first(bench)[0], media_types=("image/png",)),
    ),
    "search_page": (
        "search for instances",
        lambda client, bench: client.search_page(
            SearchQuery(
                "instance",
                search_filters=(
                    ("SeriesInstanceUID", str(bench.references[-1].series_instance_uid)),
                    ("PatientID", "P-1"),
                    ("PatientName", f"{PATIENT[:5]}*"),
                    ("StudyDate", "20260101-20260131"),
                ),
            ),
            limit=2,
        ),
    ),
}
"""Methods that do the same as an operation of the matrix in other words, with a call that asks the same."""

ASK_NOTHING = {
    "check_place": "a DICOMweb server is looked at by its first search",
    "close": "ends the client",
    "from_endpoint": "makes a client",
    "iter_exclusions": "servers do not tell what their searches leave out",
    "locations_of": "servers do not tell where a file lies",
    "lookup_keyword": "a table",
    "lookup_tag": "a table",
    "refresh": "servers look at their files themselves",
    "survive_outages": "it says how long the others wait",
    "size_of": "servers do not tell how large files are",
    "sizes_of": "servers do not tell how large files are",
    "set_chunk_size": "a setting",
    "set_http_retry_params": "a setting",
}
"""Names of the client that send no request, with the reason."""

ASK_NO_SERVER = {
    "AsRows": "makes rows of elements",
    "DistinctReferences": "compares references",
    "ParseNotifications": "parses messages; only what Orthanc's changes leave out is asked of Orthanc's own interface",
    "ReadReferences": "reads a list",
}
"""Transforms that send no DICOMweb request, with the reason."""


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with make_bench() as made:
        yield made


def test_every_method_of_the_client_is_in_the_matrix() -> None:
    named = {name for name in (*dir(DICOMClient), *dir(DICOMwebClient)) if not name.startswith("_")}
    methods = {name for name in named if callable(getattr(DICOMwebClient, name))}
    assert methods == {*COLUMNS, *SAME_AS, *ASK_NOTHING}
    assert {*COLUMNS.values()} | {column for column, _ in SAME_AS.values()} <= {*OPERATIONS}


@pytest.mark.parametrize("method", COLUMNS)
def test_a_method_is_called_by_its_operation(bench: Bench, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    original = getattr(DICOMwebClient, method)

    def watched(self: DICOMwebClient, *arguments: Any, **options: Any) -> Any:
        called.append(method)
        return original(self, *arguments, **options)

    monkeypatch.setattr(DICOMwebClient, method, watched)
    bench.undisturbed.pop(COLUMNS[method], None)
    undisturbed(bench, OPERATIONS[COLUMNS[method]])
    assert called


@pytest.mark.parametrize("method", SAME_AS)
def test_what_does_the_same_asks_the_same(bench: Bench, method: str) -> None:
    column, call = SAME_AS[method]
    operation = OPERATIONS[column]
    bench.server.records.clear()
    with DICOMwebClient.from_endpoint(endpoint_of(bench.server, **settings_of(operation, None))) as client:
        call(client, bench)
    asked = list(map(_question, bench.server.records.settled().of(path="/dicom-web")))
    assert asked == [_question(one) for one in undisturbed(bench, operation).requests if "/dicom-web" in one.path]


def _question(record: Record) -> tuple[str, ...]:
    # The levels above differ, and so do the UIDs.
    last = re.sub(r"[0-9]+(\.[0-9]+)+", "UID", record.path.rpartition("/")[2])
    return record.method, last, re.sub(r"[0-9]+(\.[0-9]+)+", "UID", record.query)


def test_every_transform_is_in_the_matrix() -> None:
    exported = {
        name
        for name in transforms.__all__
        if inspect.isclass(getattr(transforms, name)) and issubclass(getattr(transforms, name), beam.PTransform)
    }
    named = {name.partition(" (")[0] for name in TRANSFORMS}
    assert exported == named | {*ASK_NO_SERVER}


def test_every_fault_of_the_server_and_the_proxy_is_tried() -> None:
    played = {fault.action for failure_case in FAILURE_CASES.values() for fault in failure_case.faults("GET", "", 1)}
    assert played == set(FAULTS)


def test_every_class_of_failure_reasons_is_tried() -> None:
    tried = {
        fault.options["reason"]
        for failure_case in FAILURE_CASES.values()
        for fault in failure_case.faults("POST", "", 1)
        if fault.action == "refuse_instances"
    }
    assert all(tried & {*reasons} for reasons in FAILURE_REASONS.values())


def test_the_written_table_is_this_one() -> None:
    assert PATH.read_text(encoding="utf-8") == render(), "run python -m tests.faults.write_matrix"


def test_there_is_no_rule_without_a_cell() -> None:
    columns_by_name = columns()
    for matches, outcome in RULES:
        assert any(
            matches(name, traits, failure_case) and failure_case.impossible(traits) is None
            for name, traits in columns_by_name.items()
            for failure_case in FAILURE_CASES.values()
        ), outcome


@pytest.mark.parametrize("name", OPERATIONS)
def test_what_cannot_occur_in_an_operation_does_not(bench: Bench, name: str) -> None:
    operation = OPERATIONS[name]
    seen = undisturbed(bench, operation)
    _check(operation.method, operation.path, operation.traits, seen.requests, existing=bool(seen.before))


@pytest.mark.parametrize("name", TRANSFORMS)
def test_what_cannot_occur_in_a_transform_does_not(bench: Bench, name: str) -> None:
    operation = TRANSFORMS[name]
    path = operation.path.replace("{study}", "[^/]+")
    _check(operation.method, path, operation.traits, undisturbed_requests(bench, operation), existing=False)


def _check(method: str, path: str, traits: frozenset[str], requests: list[Record], *, existing: bool) -> None:
    assert {*TRAITS} == {*SHOWS, "existing"}
    assert [one for one in requests if one.method == method and re.search(path, one.path)]
    for trait in TRAITS:
        if trait == "existing":
            assert trait in traits or not existing or method != "POST"
        elif trait in traits:
            assert shown(trait, method, path, requests), f"no request has what is said of it: {trait}"
        else:
            assert not shown(trait, method, path, requests), f"what cannot occur in it can: {trait}"
