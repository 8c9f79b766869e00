"""Any two transforms can be chained: each pair that fits ends with all of its results, however narrow the limits."""

from __future__ import annotations

import apache_beam as beam
import pytest

from tests.chains import FIRST, OF_EACH_TYPE, PAIRS, Archives, run_chains
from tests.unit.test_nothing_hangs import ends


def pipeline():
    return beam.Pipeline(runner="FnApiRunner")


OFTEN = {*OF_EACH_TYPE, "SearchForStudies", "WatchForCompleteStudies", "RetrieveMetadata"}


@pytest.mark.parametrize(
    "first", [first if first in OFTEN else pytest.param(first, marks=pytest.mark.slow) for first in FIRST]
)
def test_all_that_fits_may_follow_at_once(serve, tmp_path, first):
    archives = Archives.start(serve, tmp_path)
    ends(lambda: run_chains(archives, first, list(PAIRS[first]), pipeline))
