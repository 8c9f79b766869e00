"""The fault matrix: every operation of the client by every trouble, each with its declared outcome."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dicomweb_io.clients.web.client import DICOMwebClient
from dicomweb_io.elements import Resource
from dicomweb_io.testing.faults import ACTIONS
from tests.faults.bench import Bench, endpoint_of, make_bench
from tests.faults.cells import judge, perform, undisturbed
from tests.faults.expectations import RULES, expected
from tests.faults.operations import OPERATIONS
from tests.faults.troubles import TROUBLES
from tests.faults.write_matrix import PATH, columns, render


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with make_bench() as made:
        yield made


@pytest.mark.parametrize("trouble", TROUBLES)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_cell(bench: Bench, operation: str, trouble: str) -> None:
    done, struck_by = OPERATIONS[operation], TROUBLES[trouble]
    wanted = expected(operation, done.traits, struck_by)
    base = undisturbed(bench, done)
    seen = perform(bench, done, struck_by)
    if wanted.outcome != "cannot occur":
        assert seen.struck, "the trouble did not occur"
    judge(done, struck_by, wanted, seen, base)
    if wanted.outcome == "taken at its word" and trouble.startswith("missing part"):
        # What the answer cannot tell, the comparison with a search does.
        came = {item[1].rpartition("/")[2] for item in seen.items}
        lost = {item[1].rpartition("/")[2] for item in base.items} - came
        with DICOMwebClient.from_endpoint(endpoint_of(bench.server)) as client:
            first = bench.references[0]
            resource = first.series if "series" in operation else Resource(first.study_instance_uid)
            missing = client.missing_instances(resource, came)
        assert {reference.sop_instance_uid for reference in missing} == lost
        assert len(lost) == 1


def test_every_fault_of_the_server_and_the_proxy_is_tried() -> None:
    played = {fault.action for trouble in TROUBLES.values() for fault in trouble.faults("GET", "", 1)}
    assert played == set(ACTIONS)


def test_the_written_table_is_this_one() -> None:
    assert PATH.read_text(encoding="utf-8") == render(), "run python -m tests.faults.write_matrix"


def test_there_is_no_rule_without_a_cell() -> None:
    columns_by_name = columns()
    for matches, outcome in RULES:
        assert any(
            matches(name, traits, trouble) and trouble.impossible(traits) is None
            for name, traits in columns_by_name.items()
            for trouble in TROUBLES.values()
        ), outcome
