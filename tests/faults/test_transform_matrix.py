"""The fault matrix: every transform by every trouble, each with its declared outcome."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.bench import Bench, make_bench
from tests.faults.cells import judge_transform
from tests.faults.expectations import expected
from tests.faults.operations import Seen
from tests.faults.transform_operations import TRANSFORMS, batches, run_alone, run_together
from tests.faults.troubles import TROUBLES


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with make_bench() as made:
        yield made


def _judge(transform: str, trouble: str, seen: Seen, base: Seen) -> None:
    operation, struck_by = TRANSFORMS[transform], TROUBLES[trouble]
    assert not base.failures, base.failures[0].message
    assert base.items
    assert seen.struck, "the trouble did not occur"
    judge_transform(transform, struck_by, expected(transform, operation.traits, struck_by), seen, base)


@pytest.mark.parametrize(
    ("transform", "trouble"),
    [
        (transform, trouble)
        for transform, operation in TRANSFORMS.items()
        for trouble in TROUBLES
        if not operation.together and TROUBLES[trouble].impossible(operation.traits) is None
    ],
)
def test_cell(bench: Bench, transform: str, trouble: str) -> None:
    operation = TRANSFORMS[transform]
    if operation.name not in bench.undisturbed:
        bench.undisturbed[operation.name] = run_alone(bench, operation, None)
    _judge(transform, trouble, run_alone(bench, operation, TROUBLES[trouble]), bench.undisturbed[operation.name])


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
    troubles = batches(operation)[batch]
    base = run_together(bench, operation, troubles, disturb=False)
    disturbed = run_together(bench, operation, troubles, disturb=True)
    for found in (base, disturbed):
        assert None not in found.seen, f"these belong to no trouble: {found.seen[None]}"
    wrong = []
    for trouble in troubles:
        try:
            _judge(transform, trouble.name, disturbed.seen[trouble.name], base.seen[trouble.name])
        except AssertionError as error:
            wrong.append(f"{transform} / {trouble.name}: {error}")
    assert not wrong, "\n".join(wrong)
