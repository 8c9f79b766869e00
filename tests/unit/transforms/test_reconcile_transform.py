"""`CompareArchives`: the differences are those of the command."""

from __future__ import annotations

import shutil

import apache_beam as beam
import pydicom
import pytest
from apache_beam.testing.util import assert_that, equal_to

from dicomweb_io.endpoint import Endpoint
from dicomweb_io.reconcile import ComparisonJob, run_comparison
from dicomweb_io.testing import fault, make_study
from dicomweb_io.transforms import CompareArchives, CopyInstances


@pytest.fixture
def archives(tmp_path, serve):
    """A server; a folder that lacks a series and an instance, has one in another series and one with other bytes."""
    make_study(tmp_path / "one", studies=2, series=2, instances=3)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    files = sorted((tmp_path / "two").rglob("*.dcm"))
    shutil.rmtree(files[0].parent)
    into = pydicom.dcmread(files[6])
    for path, values in (
        (files[3], {"SeriesInstanceUID": into.SeriesInstanceUID, "StudyInstanceUID": into.StudyInstanceUID}),
        (files[9], {"PatientComments": "other"}),
    ):
        dataset = pydicom.dcmread(path)
        for keyword, value in values.items():
            setattr(dataset, keyword, value)
        dataset.save_as(path)
    files[4].unlink()
    return Endpoint(serve(tmp_path / "one").url), Endpoint(str(tmp_path / "two"))


@pytest.mark.parametrize("compare", ["uid", "content", "count"])
def test_the_differences_are_those_of_the_command(archives, compare):
    expected = []
    run_comparison(ComparisonJob(*archives, compare=compare), on_difference=expected.append)
    assert len(expected) == {"uid": 4, "content": 5, "count": 3}[compare]
    assert compare == "count" or sum(bool(one.elsewhere) for one in expected) == 2
    with beam.Pipeline(runner="FnApiRunner") as p:
        assert_that(p | CompareArchives(*archives, compare=compare), equal_to(expected))


def test_what_is_missing_is_copied(archives):
    with beam.Pipeline(runner="FnApiRunner") as p:
        missing = p | CompareArchives(*archives) | beam.Filter(lambda one: one.kind == "missing")
        copied = missing | CopyInstances(*archives)
        assert_that(copied.stored | beam.combiners.Count.Globally(), equal_to([5]))
    found = []
    run_comparison(ComparisonJob(*archives), on_difference=found.append)
    assert [one.kind for one in found] == ["extra"]


def test_a_search_that_fails_is_a_failure_and_no_difference(archives, tmp_path, serve):
    source = archives[0]
    broken = Endpoint(serve(tmp_path / "two", faults=[fault("status", status=401, times=None)]).url)
    with beam.Pipeline(runner="FnApiRunner") as p:
        result = p | CompareArchives(source, broken, failures="collect")
        assert_that(result.differences, equal_to([]))
        kinds = result.failures | beam.Map(lambda one: one.transform) | beam.Distinct()
        assert_that(kinds, equal_to(["SearchForStudies", "CompareArchives"]), label="failures")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"compare": "size"}, "compare must be"),
        ({"compare": "count", "search_filters": {"InstanceNumber": "1"}}, "UID"),
    ],
)
def test_wrong_arguments(options, text):
    with pytest.raises(ValueError, match=text):
        CompareArchives("/one", "/two", **options)
