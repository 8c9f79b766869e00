"""The connector in a minute: the client, a copy, a pipeline and the command line, each once, on the test server.

`tox -e quick` runs this and the unit tests of the rooms that need neither a server nor Beam.
"""

from __future__ import annotations

import apache_beam as beam
import pytest
from apache_beam.testing.util import assert_that, equal_to

from dicomweb_io import DICOMwebClient, Instance, Resource
from dicomweb_io.cli import main
from dicomweb_io.testing import make_study
from dicomweb_io.transforms import CopyInstances, ReadFromDICOMweb, StoreInstances


@pytest.fixture
def source(serve, tmp_path):
    """A server with a study of 4 instances."""
    make_study(tmp_path / "source", instances=4, size=500)
    return serve(tmp_path / "source")


def contents(folder):
    return sorted(path.read_bytes() for path in folder.rglob("*.dcm"))


def test_the_client(source, dicomweb_server, tmp_path, folder):
    with DICOMwebClient(source.url) as client:
        (study,) = client.search_for_studies(search_filters={"Modality": "CT"})
        reference = Resource.of(study)
        found = list(client.iter_instances(reference))
        metadata = client.retrieve_study_metadata(reference.study_instance_uid)
    assert {Resource.of(row) for row in metadata} == {instance.reference for instance in found}
    with DICOMwebClient(dicomweb_server.url) as client:
        client.store_instances([instance.content for instance in found])
    assert contents(folder) == contents(tmp_path / "source")


def test_a_pipeline(source, dicomweb_server, tmp_path, folder):
    with beam.Pipeline(runner="FnApiRunner") as p:
        found = p | ReadFromDICOMweb(source.url, {"Modality": "CT"})
        stored = (found | StoreInstances(dicomweb_server.url)).stored
        assert_that(stored | beam.Map(lambda item: item.outcome), equal_to(["stored"] * 4))
    assert contents(folder) == contents(tmp_path / "source")


def test_a_copy_in_a_pipeline_skips_what_is_there(source, tmp_path, folder):
    first, *others = sorted((tmp_path / "source").rglob("*.dcm"))
    (folder / "first.dcm").write_bytes(first.read_bytes())
    study = Resource(Instance.from_path(first).reference.study_instance_uid)
    with beam.Pipeline(runner="FnApiRunner") as p:
        copied = (p | beam.Create([study]) | CopyInstances(source.url, str(folder))).stored
        outcomes = copied | beam.Map(lambda item: item.outcome)
        assert_that(outcomes, equal_to(["exists"] + ["stored"] * len(others)))
    assert contents(folder) == contents(tmp_path / "source")


def test_the_command_line(source, tmp_path, folder, capsys):
    assert main(["--url", source.url, "search", "studies"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert main(["copy", source.url, str(folder)]) == 0
    assert contents(folder) == contents(tmp_path / "source")
