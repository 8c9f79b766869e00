"""Any two transforms can be chained, on every engine."""

from __future__ import annotations

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from tests.chains import OF_EACH_TYPE, PAIRS, Archives, run_chains
from tests.unit.test_nothing_hangs import ends


@pytest.mark.slow
@pytest.mark.parametrize("first", OF_EACH_TYPE)
def test_all_that_fits_may_follow_at_once(engine, serve, tmp_path, first):
    archives = Archives.start(serve, tmp_path)

    def pipeline():
        return beam.Pipeline(options=PipelineOptions(engine))

    # Beam starts Prism for the first pipeline of a process, with a signal handler, which needs the main thread.
    with pipeline() as p:
        _ = p | beam.Create([None])
    ends(lambda: run_chains(archives, first, list(PAIRS[first]), pipeline))
