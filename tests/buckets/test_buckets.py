"""Folders in buckets: what is asked of the server, and what comes out."""

from __future__ import annotations

from pathlib import Path

from dicomweb_io.cli import main
from dicomweb_io.testing.samples import make_study
from tests.buckets.conftest import Bucket


def test_there_and_back(bucket: Bucket, folder: Path, tmp_path: Path) -> None:
    make_study(folder, series=2, instances=3)
    assert main(["copy", str(folder), f"{bucket.url}/studies"]) == 0
    back = tmp_path / "back"
    assert main(["copy", f"{bucket.url}/studies", str(back)]) == 0
    sent = sorted(path.read_bytes() for path in folder.rglob("*.dcm"))
    assert sorted(path.read_bytes() for path in back.rglob("*.dcm")) == sent
    assert len(bucket.names()) == 6
