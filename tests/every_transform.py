"""Every public transform with something to do: what tests of all transforms go through.

A new public transform has to be added to `CASES`, or `unit/transforms/test_every_transform.py` fails.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apache_beam as beam

from dicomweb_io.elements import Bulkdata, Difference, Frame, Instance, RenderedImage, Resource, StoredInstance
from dicomweb_io.endpoint import Endpoint
from dicomweb_io.transforms import (
    AsRows,
    CompareArchives,
    CopyInstances,
    DeleteResources,
    DistinctReferences,
    DownloadInstances,
    ParseNotifications,
    ReadAllFromDICOMweb,
    ReadFromDICOMweb,
    ReadReferences,
    RetrieveBulkdata,
    RetrieveFrames,
    RetrieveInstances,
    RetrieveMetadata,
    RetrieveRendered,
    SearchForInstances,
    SearchForSeries,
    SearchForStudies,
    StoreInstances,
    WatchForCompleteStudies,
    WatchForInstances,
    WatchForStudies,
    WriteToDICOMweb,
)


@dataclass
class World:
    """What there is to work on.

    Attributes:
        source: An archive with one series of `instances` images; not to be changed.
        target: An archive that may be changed, empty unless the case fills it.
        paths: The files of `source`.
        directory: A directory for anything.
    """

    source: Endpoint
    target: Endpoint
    paths: list[Path]
    directory: Path
    references: list[Resource] = field(init=False)

    def __post_init__(self) -> None:
        self.references = [Instance.from_path(path).reference for path in self.paths]

    @property
    def series(self) -> Resource:
        """The one series."""
        return self.references[0].series

    @property
    def instances(self) -> list[Instance]:
        """The instances, as elements."""
        return [Instance.from_bytes(path.read_bytes()) for path in self.paths]

    def fill_target(self) -> None:
        """Puts the instances into `target`."""
        client = self.target.connect()
        client.store_instances([str(path) for path in self.paths])
        client.close()


@dataclass(frozen=True)
class Case:
    """A transform at work.

    Attributes:
        make: Makes the transform; further arguments are handed on to it.
        elements: The elements that it is applied to; None for a source, which is applied to a pipeline.
        main: The name of its output where it has several.
        count: How many elements come out of one (of a source: in all) for a series of `World.references`.
        bad: An element that it cannot do anything with, which must become a `Failure`; None if there is none.
        prepare: What has to be done before.
        fails: Whether it takes ``failures=``.
        keeps_times: Whether results have the timestamp of their element.
        output: The Python type of what comes out.
        level: What comes out stands for: ``"study"``, ``"series"`` or ``"instance"``; None: what its element does.
    """

    make: Callable[..., Any]
    elements: Callable[[World], list[Any]] | None
    main: str
    count: int
    output: type
    bad: Any = "no reference"
    prepare: Callable[[World], None] = lambda world: None
    fails: bool = True
    keeps_times: bool = True
    level: str | None = "instance"


INSTANCES = 3
COLUMNS = ["StudyInstanceUID", "SeriesInstanceUID", "Modality"]


def _series(world: World) -> list[Any]:
    return [world.series]


def _write_each(world: World, **options: Any) -> Any:
    target = world.target
    return WriteToDICOMweb(lambda element: target, **options)


def notification_of(reference: Resource) -> str:
    """The notification of Google's archive that an object is new."""
    return f"//healthcare.googleapis.com/projects/p/locations/l/datasets/d/dicomStores/s/dicomWeb/{reference.uri}"


def _compare(world: World, **options: Any) -> Any:
    """With a folder that lacks everything."""
    with suppress(FileNotFoundError):
        (world.directory / "empty").mkdir(exist_ok=True)
    return CompareArchives(world.source, world.directory / "empty", **options)


def _row_of(world: World) -> dict[str, Any]:
    row = {"0020000D": {"vr": "UI", "Value": [world.series.study_instance_uid]}}
    return row | {"0020000E": {"vr": "UI", "Value": [world.series.series_instance_uid]}}


def _list_of(world: World) -> Path:
    path = world.directory / "list.jsonl"
    path.write_text("".join(f"{json.dumps(reference.to_dict())}\n" for reference in world.references))
    return path


def _watch(kind: Any, count: int, level: str) -> Case:
    options = {"start": "all", "max_polls": 1, "method": "list"}
    if kind is WatchForCompleteStudies:
        options |= {"max_polls": 2, "interval": 0.02, "quiet": 1e-9}
    return Case(lambda w, **o: kind(w.source, **options, **o), None, "references", count, Resource, level=level)


CASES: dict[str, Case] = {
    "SearchForStudies": Case(
        lambda w, **o: SearchForStudies(w.source, **o), lambda w: [{"Modality": "CT"}], "rows", 1, dict, level="study"
    ),
    "SearchForSeries": Case(
        lambda w, **o: SearchForSeries(w.source, columns=COLUMNS, **o), _series, "rows", 1, beam.Row, level="series"
    ),
    "SearchForInstances": Case(lambda w, **o: SearchForInstances(w.source, **o), _series, "rows", INSTANCES, dict),
    "RetrieveInstances": Case(
        lambda w, **o: RetrieveInstances(w.source, **o), _series, "instances", INSTANCES, Instance
    ),
    "RetrieveMetadata": Case(lambda w, **o: RetrieveMetadata(w.source, **o), _series, "metadata", INSTANCES, dict),
    "RetrieveFrames": Case(lambda w, **o: RetrieveFrames(w.source, **o), _series, "frames", INSTANCES, Frame),
    "RetrieveRendered": Case(
        lambda w, **o: RetrieveRendered(w.source, media_types=["image/png"], **o),
        _series,
        "images",
        INSTANCES,
        RenderedImage,
    ),
    "RetrieveBulkdata": Case(
        lambda w, **o: RetrieveBulkdata(w.source, **o), _series, "bulkdata", INSTANCES, Bulkdata, bad={"a": 1}
    ),
    "DownloadInstances": Case(
        lambda w, **o: DownloadInstances(w.source, w.directory / "files", **o), _series, "paths", INSTANCES, str
    ),
    "CopyInstances": Case(
        lambda w, **o: CopyInstances(w.source, w.target, **o), _series, "stored", INSTANCES, StoredInstance
    ),
    "StoreInstances": Case(
        lambda w, **o: StoreInstances(w.target, **o),
        lambda w: w.instances[:1],
        "stored",
        1,
        StoredInstance,
        bad=b"not DICOM",
    ),
    "WriteToDICOMweb": Case(
        _write_each, lambda w: [str(w.paths[0])], "stored", 1, StoredInstance, bad="/there/is/no.dcm"
    ),
    "DeleteResources": Case(
        lambda w, **o: DeleteResources(w.target, **o),
        _series,
        "deleted",
        1,
        Resource,
        prepare=World.fill_target,
        level=None,
    ),
    "ReadFromDICOMweb": Case(
        lambda w, search_filters={"Modality": "CT"}, **o: ReadFromDICOMweb(w.source, search_filters, **o),
        None,
        "instances",
        INSTANCES,
        Instance,
    ),
    "ReadAllFromDICOMweb": Case(
        lambda w, **o: ReadAllFromDICOMweb(w.source, **o), lambda w: [_row_of(w)], "instances", INSTANCES, Instance
    ),
    "CompareArchives": Case(_compare, None, "differences", 1, Difference, level="series"),
    "ReadReferences": Case(
        lambda w, **o: ReadReferences(_list_of(w), **o), None, "references", INSTANCES, Resource, bad=None
    ),
    "ParseNotifications": Case(
        lambda w, **o: ParseNotifications(**o), lambda w: [notification_of(w.references[0])], "references", 1, Resource
    ),
    "WatchForStudies": _watch(WatchForStudies, 1, "study"),
    "WatchForInstances": _watch(WatchForInstances, INSTANCES, "instance"),
    "WatchForCompleteStudies": _watch(WatchForCompleteStudies, 1, "study"),
    "DistinctReferences": Case(
        lambda w: DistinctReferences(), _series, "", 1, Resource, bad=None, fails=False, keeps_times=False, level=None
    ),
    "AsRows": Case(
        lambda w: AsRows(element_type=Resource), _series, "", 1, beam.Row, bad=None, fails=False, level=None
    ),
}

WITH_ARCHIVE = sorted(set(CASES) - {"AsRows", "DistinctReferences", "ParseNotifications", "ReadReferences"})
"""Those that are given an endpoint."""

VARIANTS: dict[str, Callable[[World], Any]] = {
    "split by date": lambda w: SearchForStudies(w.source, {"Modality": "CT"}, split_by="StudyDate"),
    "distinct": lambda w: SearchForInstances(w.source, distinct=True),
    "columns": lambda w: SearchForInstances(w.source, columns=["PatientID"]),
    "media types": lambda w: RetrieveInstances(w.source, media_types=("application/dicom",)),
    "a function of frames": lambda w: RetrieveFrames(w.source, lambda row: [1]),
    "parameters": lambda w: RetrieveRendered(w.source, params={"quality": 90}),
    "attributes": lambda w: RetrieveBulkdata(w.source, attributes=["PixelData"]),
    "storage options": lambda w: DownloadInstances(w.source, "s3://bucket/x", storage_options={"s": "literal-secret"}),
    "from and to the same": lambda w: CopyInstances(w.source, w.source),
    "skip": lambda w: StoreInstances(w.target, on_existing="skip"),
    "one endpoint": lambda w: WriteToDICOMweb(w.target),
    "contents": lambda w: CompareArchives(w.source, w.target, compare="content"),
    "watched by date": lambda w: WatchForInstances(w.source, method="study_date"),
    "notifications of an endpoint": lambda w: ParseNotifications(w.source),
}
"""Transforms with options that travel to the workers."""
