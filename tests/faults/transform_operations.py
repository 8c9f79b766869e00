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

from dicomweb_io import transforms
from dicomweb_io.elements import Bulkdata, Difference, Failure, Frame, Instance, RenderedImage, Resource, StoredInstance
from dicomweb_io.endpoint import Endpoint
from dicomweb_io.testing.samples import make_study, new_uid
from dicomweb_io.testing.server.exchange import Record
from dicomweb_io.transforms._core import FailureMode
from tests.faults.bench import KNOWN, LONGEST, Bench, digest, endpoint_of, tiny_image, within
from tests.faults.cells import check_redaction
from tests.faults.failure_cases import FAILURE_CASES, FailureCase
from tests.faults.operations import OBJECTS, PARTS, ROOT, ROWS, STOW, Item, Seen, files_in, put, row_items

Make = Callable[[Endpoint, Path, Bench], Any]
Elements = Callable[[str, Bench], list[Any]]

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
    make: Make
    elements: Elements | None
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


def _with(kind: Any, *arguments: Any, **options: Any) -> Make:
    """Makes a transform of the endpoint with these arguments."""
    return lambda endpoint, folder, bench: kind(endpoint, *arguments, **options, failures=_COLLECT)


def _watch(kind: Any, max_polls: int = 2, **options: Any) -> Make:
    # The second poll finds what a first one that failed has missed.
    return _with(kind, start="all", method="list", max_polls=max_polls, interval=0.001, **options)


def _pages_of(rows: int) -> dict[str, Any]:
    """Settings with pages of that many rows."""
    return {"profile": KNOWN.with_facts(page_sizes=(rows, rows, rows))}


def _copied(endpoint: Endpoint, folder: Path, bench: Bench) -> Any:
    copies = Endpoint(str(folder / "copies"), index=str(folder / "index"))
    return transforms.CopyInstances(endpoint, copies, failures=_COLLECT)


def _compared(endpoint: Endpoint, folder: Path, bench: Bench) -> Any:
    """With a folder that has nothing, so that each series is a difference."""
    (folder / "compared").mkdir(exist_ok=True)
    return transforms.CompareArchives(endpoint, folder / "compared", failures=_COLLECT)


def _copied_from(place: str) -> Make:
    """Copies from a folder of the bench."""
    return lambda endpoint, folder, bench: transforms.CopyInstances(getattr(bench, place), endpoint, failures=_COLLECT)


def _downloaded(endpoint: Endpoint, folder: Path, bench: Bench) -> Any:
    return transforms.DownloadInstances(endpoint, folder / "copies", failures=_COLLECT)


def _get(
    name: str, make: Make, elements: Elements, path: str, traits: frozenset[str], **options: Any
) -> TransformOperation:
    """A transform that reads something of each failure case's study."""
    return TransformOperation(name, make, elements, "GET", f"{ROOT}/studies/{{study}}{path}$", traits, **options)


def _search(name: str, make: Make, path: str, settings: Mapping[str, Any]) -> TransformOperation:
    """A transform that begins a pipeline with a search of the whole archive."""
    return TransformOperation(name, make, None, "GET", ROOT + path, _ROWS, together=False, settings=settings)


def _store(name: str, make: Make, elements: Elements) -> TransformOperation:
    """A transform that stores."""
    return TransformOperation(name, make, elements, "POST", f"{ROOT}/studies$", STOW, writes=True, together=False)


_ROWS = ROWS | {"paged", "limited"}
_INSTANCE = "/series/[^/]+/instances/[^/]+"
_COLLECT: FailureMode = "collect"

_ALL = (
    # Nothing is read ahead, so that it is known which request is the second.
    _search("SearchForStudies", _with(transforms.SearchForStudies, page_size=1), "/studies$", {"max_in_flight": 1}),
    _get("SearchForSeries", _with(transforms.SearchForSeries), _study, "/series", _ROWS),
    _get(
        "SearchForInstances",
        _with(transforms.SearchForInstances, page_size=2),
        _study,
        "/instances",
        _ROWS,
        apart=("status 404", "status 405", "status 501", "status 404 always", "status 501 always"),
    ),
    _search("ReadFromDICOMweb (search)", _with(transforms.ReadFromDICOMweb), "/series$", {}),
    _get(
        "ReadAllFromDICOMweb",
        _with(transforms.ReadAllFromDICOMweb),
        _study,
        "/series/[^/]+",
        OBJECTS | {"several", "long"},
    ),
    _search("CompareArchives", _compared, "/studies$", {}),
    _search("WatchForStudies", _watch(transforms.WatchForStudies), "/studies$", _pages_of(1)),
    _search("WatchForInstances", _watch(transforms.WatchForInstances), "/instances$", _pages_of(7)),
    _search(
        "WatchForCompleteStudies",
        # The third one finds what has come to rest.
        _watch(transforms.WatchForCompleteStudies, max_polls=3, quiet=1e-6),
        "/studies$",
        _pages_of(1),
    ),
    _get("RetrieveInstances (studies)", _with(transforms.RetrieveInstances), _study, "", OBJECTS | {"several", "long"}),
    _get("RetrieveInstances (instances)", _with(transforms.RetrieveInstances), _first_instance, _INSTANCE, OBJECTS),
    _get(
        "RetrieveMetadata", _with(transforms.RetrieveMetadata), _study, "/metadata", frozenset({"body", "json", "vrs"})
    ),
    _get(
        "RetrieveFrames",
        _with(transforms.RetrieveFrames, (1, 3)),
        _first_instance,
        _INSTANCE + "/frames/.*",
        PARTS | {"several"},
        apart=tuple(f"status {code}{always}" for code in (400, 406, 413, 415) for always in ("", " always")),
    ),
    _get(
        "RetrieveRendered",
        _with(transforms.RetrieveRendered, media_types=("image/png",)),
        _first_instance,
        _INSTANCE + "/rendered",
        frozenset({"body"}),
    ),
    _get("RetrieveBulkdata", _with(transforms.RetrieveBulkdata), _bulkdata_uris, _INSTANCE + "/bulkdata/.*", PARTS),
    _get("CopyInstances (source)", _copied, _first_instance, _INSTANCE, OBJECTS),
    _get("CopyInstances (listing)", _copied_from("wide_folder"), _all_instances, "/series/[^/]+/instances", _ROWS),
    _store("CopyInstances (store)", _copied_from("archive_folder"), _references),
    _get("DownloadInstances", _downloaded, _first_instance, _INSTANCE, OBJECTS),
    _store("StoreInstances", _with(transforms.StoreInstances), _files),
    _store("WriteToDICOMweb", _with(transforms.WriteToDICOMweb, on_existing="skip", verify="content"), _files),
    TransformOperation(
        "DeleteResources",
        _with(transforms.DeleteResources),
        _first_instance,
        "DELETE",
        f"{ROOT}/studies/{{study}}{_INSTANCE}$",
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
    if isinstance(result, Difference):
        return ("difference", result.kind, result.reference.uri, result.instances)
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
