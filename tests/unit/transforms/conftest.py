"""Archives for the tests of the transforms."""

from __future__ import annotations

import pytest

from dicomweb_io.testing.samples import make_study


@pytest.fixture(scope="session")
def archive(tmp_path_factory):
    """A folder with 3 studies of 2 series of 10 small instances. Not to be written to."""
    directory = tmp_path_factory.mktemp("archive")
    make_study(directory, studies=3, series=2, instances=10, size=500)
    return directory
