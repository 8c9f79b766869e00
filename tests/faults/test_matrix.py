"""The fault matrix: every operation of the client by every failure case, each with its declared outcome."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dicomweb_io.elements import Resource
from dicomweb_io.web.client import DICOMwebClient
from tests.faults.bench import Bench, endpoint_of, make_bench
from tests.faults.cells import judge, perform, undisturbed
from tests.faults.expectations import expected
from tests.faults.failure_cases import FAILURE_CASES
from tests.faults.operations import OPERATIONS


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with make_bench() as made:
        yield made
        made.check_connections()


@pytest.mark.parametrize(
    ("operation", "failure_case"),
    [
        (operation, failure_case)
        for operation in OPERATIONS
        for failure_case in FAILURE_CASES
        if FAILURE_CASES[failure_case].impossible(OPERATIONS[operation].traits) is None
    ],
)
def test_cell(bench: Bench, operation: str, failure_case: str) -> None:
    done, struck_by = OPERATIONS[operation], FAILURE_CASES[failure_case]
    wanted = expected(operation, done.traits, struck_by)
    base = undisturbed(bench, done)
    seen = perform(bench, done, struck_by)
    assert seen.struck, "the failure did not occur"
    judge(done, struck_by, wanted, seen, base)
    if wanted.outcome == "believed" and failure_case.startswith("missing part"):
        # What the answer cannot tell, the comparison with a search does.
        came = {item[1].rpartition("/")[2] for item in seen.items}
        lost = {item[1].rpartition("/")[2] for item in base.items} - came
        with DICOMwebClient.from_endpoint(endpoint_of(bench.server)) as client:
            first = bench.references[0]
            resource = first.series if "series" in operation else Resource(first.study_instance_uid)
            missing = client.missing_instances(resource, came)
        assert {reference.sop_instance_uid for reference in missing} == lost
        assert len(lost) == 1
