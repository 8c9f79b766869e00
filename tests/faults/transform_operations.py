"""The transforms that failures strike.

Most are tried with many failure cases at a time: each case has a study of its own and strikes the requests for it, and
one pipeline works on all of them. So each cell also shows that the others are not disturbed.
"""

from __future__ import annotations

import itertools
import logging
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apache_beam as beam

from dicomweb_io.elements import (
    Bulkdata,
    Failure,
    Frame,
    Instance,
    RenderedImage,
    Resource,
    StoredInstance,
)
from dicomweb_io.endpoint import Endpoint
from dicomweb_io.testing.samples import make_study, new_uid
from dicomweb_io.testing.server.exchange import Record
from dicomweb_io.transforms import (
    CopyInstances,
    DeleteResources,
    DownloadInstances,
    ReadAllFromDICOMweb,
    ReadFromDICOMweb,
    RetrieveBulkdata,
    RetrieveFrames,
    RetrieveInstances,
    RetrieveMetadata,
    RetrieveRendered,
    SearchForInstances,
    SearchForSeries,
    SearchForStudies,
    StoreInstances,
    WatchForInstances,
    WatchForStudies,
    WriteToDICOMweb,
)
from dicomweb_io.transforms._core import FailureMode
from tests.faults.bench import KNOWN, LONGEST, Bench, digest, endpoint_of, tiny_image, within
from tests.faults.cells import check_redaction
from tests.faults.failure_cases import FAILURE_CASES, FailureCase
from tests.faults.operations import OBJECTS, PARTS, ROOT, ROWS, STOW, Item, Seen, files_in, put, row_items

INSTANCES = 3
"""Instances of each failure case's study."""

_BATCH_DEADLINE = 3.0
"""Seconds that each of the operations of one pipeline may take, of which some wait for others."""

_SINKS: dict[int, list[Any]] = defaultdict(list)
_NUMBERS = itertools.count()


def keep(element: Any, sink: int) -> None:
    """Takes an element out of a pipeline, which runs in this process."""
    _SINKS[sink].append(element)


def study_of(failure_case: str) -> Resource:
    """The study of a failure case."""
    return Resource(new_uid("wide", "study", list(FAILURE_CASES).index(failure_case)))


def instances_of(failure_case: str) -> list[Resource]:
    """References to the instances of a failure case's study."""
    number = list(FAILURE_CASES).index(failure_case)
    series = new_uid("wide", "series", number, 0)
    return [
        Resource(study_of(failure_case).study_instance_uid, series, new_uid("wide", "instance", number, 0, index))
        for index in range(INSTANCES)
    ]


@dataclass(frozen=True)
class TransformOperation:
    """One transform as a column of the matrix.

    Attributes:
        name: Its name.
        make: Makes the transform for the endpoint of the server that is struck, and a folder.
        elements: The elements for a failure case; None for a transform that begins a pipeline.
        method: The method of the requests that are struck.
        path: A pattern for their paths; ``{study}`` stands for the failure case's study.
        traits: What such a request has.
        writes: Whether it changes the server's archive.
        together: Whether many failure cases can be tried in one pipeline.
        apart: Failure cases after which the client, which all share, asks in another way.
        settings: Further options of the endpoint.
    """

    name: str
    make: Callable[[Endpoint, Path, Bench], Any]
    elements: Callable[[str, Bench], list[Any]] | None
    method: str
    path: str
    traits: frozenset[str]
    writes: bool = False
    together: bool = True
    apart: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


def _first_instance(failure_case: str, bench: Bench) -> list[Any]:
    return instances_of(failure_case)[:1]


def _study(failure_case: str, bench: Bench) -> list[Any]:
    return [study_of(failure_case)]


def _all_instances(failure_case: str, bench: Bench) -> list[Any]:
    return instances_of(failure_case)


def _bulkdata_uris(failure_case: str, bench: Bench) -> list[Any]:
    return [f"{instances_of(failure_case)[0].uri}/bulkdata/7FE00010"]


def _files(failure_case: str, bench: Bench) -> list[Any]:
    return [path.read_bytes() for path in bench.paths[:6]]


def _references(failure_case: str, bench: Bench) -> list[Any]:
    return bench.references[:6]


def _watch(kind: Any, endpoint: Endpoint) -> Any:
    # The second poll finds what a first one that failed has missed.
    return kind(endpoint, start="all", method="list", max_polls=2, interval=0.001, failures=_COLLECT)


_OF_STUDY = ROOT + "/studies/{study}"
_COLLECT: FailureMode = "collect"

_ALL = (
    TransformOperation(
        "SearchForStudies",
        lambda endpoint, folder, bench: SearchForStudies(endpoint, page_size=1, failures=_COLLECT),
        None,
        "GET",
        f"{ROOT}/studies$",
        ROWS | {"paged", "limited"},
        together=False,
        # Nothing is read ahead, so that it is known which request is the second.
        settings={"max_in_flight": 1},
    ),
    TransformOperation(
        "SearchForSeries",
        lambda endpoint, folder, bench: SearchForSeries(endpoint, failures=_COLLECT),
        _study,
        "GET",
        _OF_STUDY + "/series$",
        ROWS | {"paged", "limited"},
    ),
    TransformOperation(
        "SearchForInstances",
        lambda endpoint, folder, bench: SearchForInstances(endpoint, page_size=2, failures=_COLLECT),
        _study,
        "GET",
        _OF_STUDY + "/instances$",
        ROWS | {"paged", "limited"},
        apart=("status 404", "status 405", "status 501", "status 404 always", "status 501 always"),
    ),
    TransformOperation(
        "ReadFromDICOMweb (search)",
        lambda endpoint, folder, bench: ReadFromDICOMweb(endpoint, failures=_COLLECT),
        None,
        "GET",
        f"{ROOT}/instances$",
        ROWS | {"paged", "limited"},
        together=False,
    ),
    TransformOperation(
        "ReadAllFromDICOMweb",
        lambda endpoint, folder, bench: ReadAllFromDICOMweb(endpoint, failures=_COLLECT),
        _study,
        "GET",
        _OF_STUDY + "/series/[^/]+/instances/[^/]+$",
        OBJECTS,
    ),
    TransformOperation(
        "WatchForStudies",
        lambda endpoint, folder, bench: _watch(WatchForStudies, endpoint),
        None,
        "GET",
        f"{ROOT}/studies$",
        ROWS | {"paged", "limited"},
        together=False,
        settings={"profile": KNOWN.with_facts(page_sizes=(1, 1, 1))},
    ),
    TransformOperation(
        "WatchForInstances",
        lambda endpoint, folder, bench: _watch(WatchForInstances, endpoint),
        None,
        "GET",
        f"{ROOT}/instances$",
        ROWS | {"paged", "limited"},
        together=False,
        settings={"profile": KNOWN.with_facts(page_sizes=(7, 7, 7))},
    ),
    TransformOperation(
        "RetrieveInstances (studies)",
        lambda endpoint, folder, bench: RetrieveInstances(endpoint, failures=_COLLECT),
        _study,
        "GET",
        _OF_STUDY + "$",
        OBJECTS | {"several", "long"},
    ),
    TransformOperation(
        "RetrieveInstances (instances)",
        lambda endpoint, folder, bench: RetrieveInstances(endpoint, failures=_COLLECT),
        _first_instance,
        "GET",
        _OF_STUDY + "/series/[^/]+/instances/[^/]+$",
        OBJECTS,
    ),
    TransformOperation(
        "RetrieveMetadata",
        lambda endpoint, folder, bench: RetrieveMetadata(endpoint, failures=_COLLECT),
        _study,
        "GET",
        _OF_STUDY + "/metadata$",
        frozenset({"body", "json", "vrs"}),
    ),
    TransformOperation(
        "RetrieveFrames",
        lambda endpoint, folder, bench: RetrieveFrames(endpoint, (1, 3), failures=_COLLECT),
        _first_instance,
        "GET",
        _OF_STUDY + "/series/[^/]+/instances/[^/]+/frames/",
        PARTS | {"several"},
    ),
    TransformOperation(
        "RetrieveRendered",
        lambda endpoint, folder, bench: RetrieveRendered(endpoint, media_types=("image/png",), failures=_COLLECT),
        _first_instance,
        "GET",
        _OF_STUDY + "/series/[^/]+/instances/[^/]+/rendered$",
        frozenset({"body"}),
    ),
    TransformOperation(
        "RetrieveBulkdata",
        lambda endpoint, folder, bench: RetrieveBulkdata(endpoint, failures=_COLLECT),
        _bulkdata_uris,
        "GET",
        _OF_STUDY + "/series/[^/]+/instances/[^/]+/bulkdata/",
        PARTS,
    ),
    TransformOperation(
        "CopyInstances (source)",
        lambda endpoint, folder, bench: CopyInstances(
            endpoint, Endpoint(str(folder / "copies"), index=str(folder / "index")), failures=_COLLECT
        ),
        _first_instance,
        "GET",
        _OF_STUDY + "/series/[^/]+/instances/[^/]+$",
        OBJECTS,
    ),
    TransformOperation(
        "CopyInstances (listing)",
        lambda endpoint, folder, bench: CopyInstances(bench.wide_folder, endpoint, failures=_COLLECT),
        _all_instances,
        "GET",
        _OF_STUDY + "/series/[^/]+/instances$",
        ROWS | {"paged", "limited"},
    ),
    TransformOperation(
        "CopyInstances (store)",
        lambda endpoint, folder, bench: CopyInstances(bench.archive_folder, endpoint, failures=_COLLECT),
        _references,
        "POST",
        f"{ROOT}/studies$",
        STOW,
        writes=True,
        together=False,
    ),
    TransformOperation(
        "DownloadInstances",
        lambda endpoint, folder, bench: DownloadInstances(endpoint, folder / "copies", failures=_COLLECT),
        _first_instance,
        "GET",
        _OF_STUDY + "/series/[^/]+/instances/[^/]+$",
        OBJECTS,
    ),
    TransformOperation(
        "StoreInstances",
        lambda endpoint, folder, bench: StoreInstances(endpoint, failures=_COLLECT),
        _files,
        "POST",
        f"{ROOT}/studies$",
        STOW,
        writes=True,
        together=False,
    ),
    TransformOperation(
        "WriteToDICOMweb",
        lambda endpoint, folder, bench: WriteToDICOMweb(
            endpoint, on_existing="skip", verify="content", failures=_COLLECT
        ),
        _files,
        "POST",
        f"{ROOT}/studies$",
        STOW,
        writes=True,
        together=False,
    ),
    TransformOperation(
        "DeleteResources",
        lambda endpoint, folder, bench: DeleteResources(endpoint, failures=_COLLECT),
        _first_instance,
        "DELETE",
        _OF_STUDY + "/series/[^/]+/instances/[^/]+$",
        frozenset(),
        writes=True,
    ),
)

TRANSFORMS: dict[str, TransformOperation] = {operation.name: operation for operation in _ALL}
"""All transforms by name."""


def item_of(result: Any) -> Item:
    """A result as a value that can be compared."""
    if isinstance(result, Instance):
        return ("instance", result.reference.uri, digest(result.read()))
    if isinstance(result, Frame):
        return ("frame", result.reference.uri, digest(result.content or b""))
    if isinstance(result, RenderedImage):
        return ("image", result.reference.uri, result.media_type, digest(result.content))
    if isinstance(result, Bulkdata):
        return ("bulk data", result.uri.partition("/dicom-web/")[2], digest(result.content or b""))
    if isinstance(result, StoredInstance):
        return ("stored", result.reference.uri, result.outcome, result.size)
    if isinstance(result, Resource):
        return ("deleted", result.uri)
    if isinstance(result, str):
        return ("path", result.rpartition("copies/")[2])
    return next(iter(row_items([result])))


@dataclass
class Batch:
    """What one pipeline gave, by failure case; under None what belongs to none; and what the server heard."""

    requests: list[Record] = field(default_factory=list)
    seen: dict[str | None, Seen] = field(default_factory=lambda: defaultdict(Seen))


def _owner(names: Iterable[str], text: str) -> str | None:
    return next((name for name in names if study_of(name).study_instance_uid in text), None)


def run_together(
    bench: Bench, operation: TransformOperation, failure_cases: list[FailureCase], *, disturb: bool
) -> Batch:
    """One pipeline over the studies of several failure cases that need the same settings."""
    settings = {"profile": KNOWN, **operation.settings, **(failure_cases[0].settings if disturb else {})}
    if "deadline" in settings and not failure_cases[0].alone:
        settings["deadline"] = _BATCH_DEADLINE
    names = [failure_case.name for failure_case in failure_cases]
    batch = Batch()
    with ExitStack() as stack:
        folder = bench.folder()
        stack.callback(shutil.rmtree, folder, True)
        server = bench.wide
        archive: Path | None = None
        if operation.writes:
            archive = bench.folder()
            for name in names:
                study = study_of(name).study_instance_uid
                shutil.copytree(Path(bench.wide_folder) / study, archive / study)
            for path, content in files_in(archive).items():
                batch.seen[_owner(names, path)].before[path] = content
            server = stack.enter_context(bench.archive(archive))
        if disturb:
            for failure_case in failure_cases:
                path = operation.path.replace("{study}", study_of(failure_case.name).study_instance_uid)
                bench.inject(server, failure_case.faults(operation.method, path, failure_case.first(1)))
        server.records.clear()
        bench.listener.texts.clear()
        elements = [one for name in names for one in (operation.elements or _study)(name, bench)]
        try:
            results, failures = _piped(operation, endpoint_of(server, **settings), folder, bench, elements)
            plans = (*zip(server.faults._faults, server.faults.struck, strict=True),) + (
                *zip(server.proxy.faults._faults, server.proxy.faults.struck, strict=True),
            )
        finally:
            server.clear_faults()
        if not disturb:
            batch.requests = list(server.records.settled())
        for one, struck in plans:
            owner = _owner(names, str(one.path))
            batch.seen[owner].struck += struck
        for result in results:
            item = item_of(result)
            batch.seen[_owner(names, str(item))].items.append(item)
        for failure in failures:
            batch.seen[_owner(names, repr(failure))].failures.append(failure)
        for directory in (folder / "copies", archive):
            if directory is not None:
                for path, content in files_in(directory).items() if directory.exists() else ():
                    seen = batch.seen[_owner(names, path)]
                    seen.files = {**(seen.files or {}), path: content}
        said = Seen(failures=list(failures))
        check_redaction(bench, said, server)
    for seen in batch.seen.values():
        seen.items.sort(key=repr)
    return batch


def run_alone(bench: Bench, operation: TransformOperation, failure_case: FailureCase | None) -> Seen:
    """One pipeline for one failure case."""
    settings = {"profile": KNOWN, **operation.settings, **(failure_case.settings if failure_case is not None else {})}
    with ExitStack() as stack:
        folder = bench.folder()
        stack.callback(shutil.rmtree, folder, True)
        server = bench.server
        archive: Path | None = None
        if operation.writes:
            archive = bench.folder()
            server = stack.enter_context(bench.archive(archive))
        if failure_case is not None:
            bench.inject(server, failure_case.faults(operation.method, operation.path, failure_case.first(1)))
        server.records.clear()
        bench.listener.texts.clear()
        elements = operation.elements("", bench) if operation.elements is not None else None
        try:
            results, failures = _piped(operation, endpoint_of(server, **settings), folder, bench, elements)
            struck = sum(server.faults.struck) + sum(server.proxy.faults.struck)
        finally:
            server.clear_faults()
        seen = Seen(sorted(map(item_of, results), key=repr), failures, struck=struck)
        if archive is not None:
            seen.files = files_in(archive)
        if failure_case is None:
            seen.requests = list(server.records.settled())
        check_redaction(bench, seen, server)
        return seen


def batches(operation: TransformOperation) -> dict[str, list[FailureCase]]:
    """The failure cases that can occur in a transform, by pipeline: those that need the same settings share one."""
    found: dict[str, list[FailureCase]] = {}
    for failure_case in FAILURE_CASES.values():
        if failure_case.impossible(operation.traits) is None:
            words = " and ".join(f"{name} {value}" for name, value in failure_case.settings.items()) or "all others"
            alone = failure_case.alone or failure_case.name in operation.apart
            found.setdefault(failure_case.name if alone else words, []).append(failure_case)
    return found


def undisturbed_requests(bench: Bench, operation: TransformOperation) -> list[Record]:
    """What the server hears of an undisturbed transform."""
    if operation.together:
        return run_together(bench, operation, list(FAILURE_CASES.values())[:2], disturb=False).requests
    return run_alone(bench, operation, None).requests


def _piped(
    operation: TransformOperation, endpoint: Endpoint, folder: Path, bench: Bench, elements: list[Any] | None
) -> tuple[list[Any], list[Failure]]:
    good, bad = next(_NUMBERS), next(_NUMBERS)

    def run() -> None:
        with beam.Pipeline("FnApiRunner") as pipeline:
            begin = pipeline if elements is None else pipeline | beam.Create(elements, reshuffle=False)
            results, failures = begin | operation.make(endpoint, folder, bench)
            _ = results | "KeepResults" >> beam.Map(keep, good)
            _ = failures | "KeepFailures" >> beam.Map(keep, bad)

    logging.getLogger("apache_beam").setLevel(logging.ERROR)
    within(LONGEST, run)
    return _SINKS.pop(good, []), _SINKS.pop(bad, [])


def make_wide(root: Path) -> Path:
    """The archive with a study for each failure case."""
    folder = root / "wide"
    for path in make_study(root / "made", len(FAILURE_CASES), 1, INSTANCES, seed="wide", template=tiny_image()):
        put(folder, path.read_bytes())
    shutil.rmtree(root / "made")
    return folder
