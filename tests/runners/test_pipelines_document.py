"""The pipelines of docs/pipelines.md on every engine."""

from __future__ import annotations

import pytest

from tests.unit.transforms.test_pipelines_document import CHECKS, places, run

__all__ = ["places"]


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKS)
def test_the_pipelines_run(name, engine, places, tmp_path, capfd):
    run(name, places, engine)
    CHECKS[name](tmp_path, capfd.readouterr().out.splitlines())
