"""Fixtures for tests of folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.unit.files.making import Put, make_bytes


@pytest.fixture
def put(folder: Path) -> Put:
    """Writes a small object to a path of the folder."""

    def write(name: str, *uids: str, **attributes: Any) -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(make_bytes(*uids, **attributes))
        return path

    return write
