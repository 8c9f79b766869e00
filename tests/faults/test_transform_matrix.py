"""The fault matrix: every transform by every failure case, each with its declared outcome."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.bench import Bench, make_bench
from tests.faults.cells import judge_transform
from tests.faults.expectations import expected
from tests.faults.failure_cases import FAILURE_CASES
from tests.faults.operations import Seen
from tests.faults.transform_operations import TRANSFORMS, batches, run_alone, run_together


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with make_bench() as made:
        yield made


def _judge(transform: str, failure_case: str, seen: Seen, base: Seen) -> None:
    operation, struck_by = TRANSFORMS[transform], FAILURE_CASES[failure_case]
    assert not base.failures, base.failures[0].message
    assert base.items
    assert seen.struck, "the failure did not occur"
    judge_transform(transform, struck_by, expected(transform, operation.traits, struck_by), seen, base)


@pytest.mark.parametrize(
    ("transform", "failure_case"),
    [
        (transform, failure_case)
        for transform, operation in TRANSFORMS.items()
        for failure_case in FAILURE_CASES
        if not operation.together and FAILURE_CASES[failure_case].impossible(operation.traits) is None
    ],
)
def test_cell(bench: Bench, transform: str, failure_case: str) -> None:
    operation = TRANSFORMS[transform]
    if operation.name not in bench.undisturbed:
        bench.undisturbed[operation.name] = run_alone(bench, operation, None)
    _judge(
        transform,
        failure_case,
        run_alone(bench, operation, FAILURE_CASES[failure_case]),
        bench.undisturbed[operation.name],
    )


@pytest.mark.parametrize(
    ("transform", "batch"),
    [
        (transform, batch)
        for transform, operation in TRANSFORMS.items()
        if operation.together
        for batch in batches(operation)
    ],
)
def test_cells_of_one_pipeline(bench: Bench, transform: str, batch: str) -> None:
    operation = TRANSFORMS[transform]
    failure_cases = batches(operation)[batch]
    base = run_together(bench, operation, failure_cases, disturb=False)
    disturbed = run_together(bench, operation, failure_cases, disturb=True)
    for found in (base, disturbed):
        assert None not in found.seen, f"these belong to no failure case: {found.seen[None]}"
    wrong = []
    for failure_case in failure_cases:
        try:
            _judge(transform, failure_case.name, disturbed.seen[failure_case.name], base.seen[failure_case.name])
        except AssertionError as error:
            wrong.append(f"{transform} / {failure_case.name}: {error}")
    assert not wrong, "\n".join(wrong)
