"""Frames, images, bulk data, downloads, deletions, columns and the front doors on engines with real processes."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that, equal_to

from dicomweb_io.elements import Failure, Instance, Resource
from dicomweb_io.endpoint import Endpoint
from dicomweb_io.testing.samples import make_study
from dicomweb_io.transforms import (
    AsRows,
    DeleteResources,
    DownloadInstances,
    ReadAllFromDICOMweb,
    ReadFromDICOMweb,
    RetrieveBulkdata,
    RetrieveFrames,
    RetrieveMetadata,
    RetrieveRendered,
    SearchForInstances,
    SearchForStudies,
    WriteToDICOMweb,
)
from tests.unit.transforms.test_every_transform import KINDS


def test_the_other_transforms_give_the_same_on_every_engine(engine, serve, tmp_path):
    paths = make_study(tmp_path / "archive", studies=2, instances=3, size=2048)
    contents = {Instance.from_path(path).reference: path.read_bytes() for path in paths}
    server = serve(tmp_path / "archive")
    old = make_study(tmp_path / "old", instances=2, size=100, seed="old")
    uids = sorted(item.sop_instance_uid for item in contents)
    target, split = tmp_path / "target", str(tmp_path / "split")
    url = server.url
    with beam.Pipeline(options=PipelineOptions(engine)) as p:
        studies = p | SearchForStudies(url, split_by="StudyDate")
        frames = studies | RetrieveFrames(url, lambda row: [1] if row["00280010"]["Value"][0] else [])
        images = studies | RetrieveRendered(url, media_types=["image/png"])
        bulkdata = studies | RetrieveBulkdata(url)
        files = studies | DownloadInstances(url, target)
        again = files | WriteToDICOMweb(lambda path: split + "-" + Path(path).parts[-3])
        read = p | ReadFromDICOMweb(url)
        below = studies | ReadAllFromDICOMweb(url, limit=1)
        rows = p | SearchForInstances(url, columns=["SOPInstanceUID", "InstanceNumber"])
        gone = p | beam.Create(list(map(str, old))) | beam.Map(lambda path: Instance.from_path(path).reference)
        gone = gone | DeleteResources(str(tmp_path / "old"))
        lost = p | "L" >> beam.Create([Resource("1.2.3")]) | "Lost" >> RetrieveFrames(url, failures="collect")
        failures = lost.failures | AsRows(element_type=Failure)
        outcomes = [
            frames | "1" >> beam.Map(lambda item: ("frame", item.reference.sop_instance_uid)),
            images | "2" >> beam.Map(lambda item: ("image", item.reference.sop_instance_uid)),
            bulkdata | "3" >> beam.Map(lambda item: ("bulkdata", len(item.content))),
            again.stored | "4" >> beam.Map(lambda item: ("written", item.reference.sop_instance_uid)),
            read | "5" >> beam.Map(lambda item: ("read", item.reference.sop_instance_uid)),
            below | "6" >> beam.Map(lambda item: ("below", item.reference.study_instance_uid)),
            rows | beam.Reshuffle() | "7" >> beam.Map(lambda row: ("row", row.SOPInstanceUID)),
            gone | "8" >> beam.Map(lambda item: ("gone", item.level)),
            failures | "9" >> beam.Map(lambda row: ("lost", row.study_instance_uid)),
        ]
        expected = [(kind, uid) for kind in ("frame", "image", "written", "read", "row") for uid in uids]
        expected += [("below", uid) for uid in sorted({item.study_instance_uid for item in contents})]
        expected += [("bulkdata", 2048)] * 6 + [("gone", "instance")] * 2 + [("lost", "1.2.3")]
        assert_that(tuple(outcomes) | beam.Flatten(), equal_to(expected))
    assert sorted(path.read_bytes() for path in target.rglob("*.dcm")) == sorted(contents.values())
    assert sorted(path.read_bytes() for path in tmp_path.glob("split-*/**/*.dcm")) == sorted(contents.values())
    assert not list((tmp_path / "old").rglob("*.dcm"))


ON_THIS_MACHINE = {
    "none",
    "basic by variable",
    "basic literal",
    "token by file",
    "token literal",
    "an authentication object",
}
"""The kinds of credentials that ask no other server."""

PACKAGES = {"azure": "azure", "aws": "botocore"}
"""Those that need a package of an extra."""


def test_transforms_reach_the_workers_with_every_kind_of_credentials(engine, serve, tmp_path, monkeypatch):
    monkeypatch.setenv("PACS_PASSWORD", "a-password")
    [path] = make_study(tmp_path / "archive", instances=1, size=100)
    reference, url = Instance.from_path(path).reference, serve(tmp_path / "archive").url
    with beam.Pipeline(options=PipelineOptions(engine)) as p:
        given = p | beam.Create(["no reference"])
        here = p | "Here" >> beam.Create([reference])
        looks = []
        expected = []
        for kind, (credentials, _) in KINDS.items():
            if kind in PACKAGES and find_spec(PACKAGES[kind]) is None:
                continue
            endpoint = Endpoint(url, credentials=credentials)
            subjects = here if kind in ON_THIS_MACHINE else given
            found = subjects | kind >> RetrieveMetadata(endpoint, failures="collect")
            for name, collection in found._asdict().items():
                looks.append(collection | f"{kind} {name}" >> beam.Map(lambda _, look=(kind, name): look))
            works = kind in ON_THIS_MACHINE - {"token by file"}
            expected.append((kind, "metadata" if works else "failures"))
        assert_that(tuple(looks) | beam.Flatten(), equal_to(expected))
