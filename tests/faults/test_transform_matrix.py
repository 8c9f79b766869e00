"""The fault matrix: every transform by every trouble, each with its declared outcome."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.bench import Bench, make_bench
from tests.faults.cells import judge_transform
from tests.faults.expectations import expected
from tests.faults.operations import Seen
from tests.faults.transform_operations import TRANSFORMS, Batch, TransformOperation, run_alone, run_together
from tests.faults.troubles import TROUBLES, Trouble


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with make_bench() as made:
        yield made


def _outcomes(bench: Bench, operation: TransformOperation, trouble: Trouble) -> tuple[Seen, Seen]:
    """What came with and without the trouble."""
    if operation.together:
        kin = [trouble]
        if not trouble.alone:
            kin = [one for one in TROUBLES.values() if not one.alone and one.settings == trouble.settings]
        key = f"{operation.name}/{kin[0].name}/{len(kin)}"
        if key not in bench.undisturbed:
            bench.undisturbed[key] = run_together(bench, operation, kin, disturb=True)
        if operation.name not in bench.undisturbed:
            everything = list(TROUBLES.values())
            bench.undisturbed[operation.name] = run_together(bench, operation, everything, disturb=False)
        base: Batch = bench.undisturbed[operation.name]
        batch: Batch = bench.undisturbed[key]
        assert None not in batch.seen, f"these belong to no trouble: {batch.seen[None]}"
        return batch.seen[trouble.name], base.seen[trouble.name]
    if operation.name not in bench.undisturbed:
        bench.undisturbed[operation.name] = run_alone(bench, operation, None)
    return run_alone(bench, operation, trouble), bench.undisturbed[operation.name]


@pytest.mark.parametrize(
    ("transform", "trouble"),
    [
        pytest.param(
            transform,
            trouble,
            # Their pipelines work on many troubles at once.
            marks=[pytest.mark.xdist_group(transform)] if TRANSFORMS[transform].together else [],
        )
        for transform in TRANSFORMS
        for trouble in TROUBLES
    ],
)
def test_cell(bench: Bench, transform: str, trouble: str) -> None:
    operation, struck_by = TRANSFORMS[transform], TROUBLES[trouble]
    wanted = expected(transform, operation.traits, struck_by)
    seen, base = _outcomes(bench, operation, struck_by)
    assert not base.failures, base.failures[0].message
    assert base.items
    if wanted.outcome != "cannot occur":
        assert seen.struck, "the trouble did not occur"
    judge_transform(struck_by, wanted, seen, base)
