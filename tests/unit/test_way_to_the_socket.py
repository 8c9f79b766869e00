"""How far it is from a call to the socket, measured as `docs/trace_calls.py` shows it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "docs" / "trace_calls.py"


@pytest.fixture(scope="module")
def measured() -> dict[str, tuple[int, int]]:
    done = subprocess.run([sys.executable, str(SCRIPT)], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()[1:]]
    return {name: (int(modules), int(depth)) for name, modules, _, _, depth in rows}


@pytest.mark.parametrize(
    ("call", "most_modules", "most_depth"),
    [("search_for_studies", 16, 9), ("iter_search_for_studies", 17, 12), ("retrieve_instance_frames", 18, 12)],
)
def test_few_modules_and_calls_lie_between_a_call_and_the_socket(measured, call, most_modules, most_depth):
    modules, depth = measured[call]
    assert 5 < modules <= most_modules
    assert 5 < depth <= most_depth
