"""The operations of the client that failures strike, each with what it asks of the server and what comes out."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dicomweb_io.dicom.part10 import encode_dataset, header_of
from dicomweb_io.elements import Failure, Instance, Resource, SearchQuery, StoredInstance
from dicomweb_io.testing.server.exchange import Record
from dicomweb_io.testing.server.server import TestServer
from dicomweb_io.web.client import DICOMwebClient
from tests.faults.bench import PATIENT, Bench, digest, endpoint_of

Item = tuple[Any, ...]
"""A result as a value that can be compared: what it is, and a digest of its content."""

ROOT = "^/dicom-web"
ROWS = frozenset({"body", "json", "vrs", "rows"})
PARTS = frozenset({"body", "multipart"})
OBJECTS = PARTS | {"object"}
STOW = frozenset({"body", "json", "store"})
INSTANCE = r"/studies/[^/]+/series/[^/]+/instances/[^/]+"


@dataclass
class Seen:
    """What an operation gave.

    Attributes:
        items: Results in order.
        failures: Failures that came as results.
        error: What was raised.
        files: Digests by path of what the archive held afterwards, for operations that change it.
        before: Digests by path of what it held before.
        good: Digests of what may be there by path: what was before, and what was to be stored.
        struck: How many requests were struck.
        requests: What the server heard.
    """

    items: list[Item] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    error: Exception | None = None
    files: dict[str, str] | None = None
    before: dict[str, str] = field(default_factory=dict)
    good: dict[str, set[str]] = field(default_factory=dict)
    struck: int = 0
    requests: list[Record] = field(default_factory=list)


@dataclass(frozen=True)
class Operation:
    """One column of the matrix.

    Attributes:
        name: Its name.
        run: Does it, and notes what comes out as it comes.
        method: The method of the requests that are struck.
        path: A pattern for their paths.
        traits: What such a request has (`tests.faults.failure_cases.TRAITS`).
        first: The number of the request that is struck first.
        writes: Whether it changes the archive, which is then a new one for each cell.
        fill: Puts into that archive what it holds before.
        options: For `run`.
        with_totals: Whether the server announces totals.
    """

    name: str
    run: Callable[[DICOMwebClient, Bench, Seen, Mapping[str, Any]], None]
    method: str
    path: str
    traits: frozenset[str]
    first: int = 1
    writes: bool = False
    fill: Callable[[Bench, Path], None] = lambda bench, folder: None
    options: Mapping[str, Any] = field(default_factory=dict)
    with_totals: bool = False

    def perform(self, bench: Bench, server: TestServer, settings: Mapping[str, Any], folder: Path | None) -> Seen:
        """Does it with a client of its own."""
        seen = Seen()
        if folder is not None:
            seen.before = files_in(folder)
            for path, content in seen.before.items():
                seen.good.setdefault(path, set()).add(content)
            for sent in outgoing(bench):
                seen.good.setdefault(path_of(sent), set()).add(digest(sent))
        with DICOMwebClient.from_endpoint(endpoint_of(server, **settings)) as client:
            try:
                self.run(client, bench, seen, self.options)
            except (OSError, ValueError) as error:
                seen.error = error
        if folder is not None:
            seen.files = files_in(folder)
        return seen


def files_in(folder: Path) -> dict[str, str]:
    """Digests of all files in a folder that are not hidden, by path."""
    return {
        str(path.relative_to(folder)): digest(path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }


# Searching ------------------------------------------------------------------------------------------------------------


def row_items(rows: Iterable[Mapping[str, Any]]) -> Iterator[Item]:
    """Rows by their UIDs and a digest of everything else."""
    for row in rows:
        uids = tuple((row.get(tag, {}).get("Value") or [None])[0] for tag in ("0020000D", "0020000E", "00080018"))
        yield ("row", uids, digest(repr(sorted(row.items())).encode()))


def _search(client: DICOMwebClient, bench: Bench, seen: Seen, options: Mapping[str, Any]) -> None:
    search = getattr(client, f"search_for_{options['what']}")
    arguments = dict(options["arguments"])
    last = bench.references[-1]
    filters = {"SeriesInstanceUID": str(last.series_instance_uid)}
    if options["what"] == "studies":
        filters = {"StudyInstanceUID": last.study_instance_uid}
    patient = {"PatientID": "P-1", "PatientName": f"{PATIENT[:5]}*", "StudyDate": "20260101-20260131"}
    rows = search(search_filters={**filters, **patient}, **arguments)
    seen.items.extend(row_items(rows))


def _pages(client: DICOMwebClient, bench: Bench, seen: Seen, options: Mapping[str, Any]) -> None:
    query = SearchQuery(options["level"])
    for item in row_items(client.iter_search(query, page_size=options["page_size"])):
        seen.items.append(item)


def _count(client: DICOMwebClient, bench: Bench, seen: Seen, options: Mapping[str, Any]) -> None:
    filters = (("PatientName", f"{PATIENT[:5]}*"),)
    seen.items.append(("count", client.count(SearchQuery("instance", search_filters=filters))))


def _missing(client: DICOMwebClient, bench: Bench, seen: Seen, options: Mapping[str, Any]) -> None:
    came = bench.references[:4]
    for reference in client.missing_instances(Resource(came[0].study_instance_uid), came):
        seen.items.append(("missing", reference.uri))


def _probe(client: DICOMwebClient, bench: Bench, seen: Seen, options: Mapping[str, Any]) -> None:
    report = client.probe()
    seen.items.append(("profile", report.profile.name, repr(report.profile.with_facts(name="").__dict__)))
    seen.items.extend(("finding", one.feature, one.supported) for one in report.findings)


# Retrieving -----------------------------------------------------------------------------------------------------------


def _resource(bench: Bench, level: str) -> Resource:
    first = bench.references[0]
    return {"study": Resource(first.study_instance_uid), "series": first.series, "instance": first}[level]


def dataset_item(dataset: Any) -> Item:
    """A pydicom dataset by its UID and a digest of what it is written as."""
    return ("dataset", str(dataset.SOPInstanceUID), digest(encode_dataset(dataset)))


def _datasets(client: DICOMwebClient, bench: Bench, seen: Seen, options: Mapping[str, Any]) -> None:
    first = bench.references[0]
    study, series, instance = first.study_instance_uid, first.series_instance_uid, first.sop_instance_uid
    if options["level"] == "study":
        found = client.retrieve_study(study)
    elif options["level"] == "series":
        found = client.retrieve_series(study, str(series))
    else:
        found = [client.retrieve_instance(study, str(series), str(instance))]
    seen.items.extend(map(dataset_item, found))


def instance_item(instance: Instance) -> Item:
    """An instance by its reference, and a digest of its bytes; a file is removed."""
    content = instance.read()
    if instance.path is not None:
        Path(instance.path).unlink()
    return ("instance", instance.reference.uri, instance.transfer_syntax_uid, digest(content))


def _instances(client: DICOMwebClient, bench: Bench, seen: Seen, options: Mapping[str, Any]) -> None:
    spool = bench.folder()
    try:
        resource = _resource(bench, options["level"])
        for instance in client.iter_instances(resource, max_element_bytes=500, spool_directory=str(spool)):
            seen.items.append(instance_item(instance))
    finally:
        left = list(spool.iterdir())
        spool_is_empty = not left
        for path in left:
            path.unlink()
        spool.rmdir()
    assert spool_is_empty, f"spool files were left behind: {left}"


def _metadata(client: DICOMwebClient, bench: Bench, seen: Seen, options: Mapping[str, Any]) -> None:
    for item in row_items(client.iter_metadata(_resource(bench, options["level"]))):
        seen.items.append(item)


def _frames(client: DICOMwebClient, bench: Bench, seen: Seen, options: Mapping[str, Any]) -> None:
    first = bench.references[0]
    wanted = Resource(
        first.study_instance_uid, first.series_instance_uid, first.sop_instance_uid, tuple(options["numbers"])
    )
    for frame in client.iter_frames(wanted):
        seen.items.append(("frame", frame.reference.frames, frame.transfer_syntax_uid, digest(frame.content or b"")))


def _bulkdata(client: DICOMwebClient, bench: Bench, seen: Seen, options: Mapping[str, Any]) -> None:
    url = f"{bench.references[0].uri}/bulkdata/7FE00010"
    for item in client.iter_bulkdata_parts(url, byte_range=options["byte_range"]):
        seen.items.append(("bulk data", item.media_type, digest(item.content or b"")))


def _rendered(client: DICOMwebClient, bench: Bench, seen: Seen, options: Mapping[str, Any]) -> None:
    image = client.retrieve_rendered(
        bench.references[0], media_types=("image/png",), thumbnail=options.get("thumbnail", False)
    )
    seen.items.append(("image", image.media_type, digest(image.content)))


# Storing and deleting -------------------------------------------------------------------------------------------------


def stored_item(outcome: StoredInstance) -> Item:
    """A stored instance by its reference and what was done."""
    return ("stored", outcome.reference.uri, outcome.outcome, outcome.size)


def outgoing(bench: Bench) -> list[bytes]:
    """What is stored: six instances of one study."""
    return [path.read_bytes() for path in bench.paths[:6]]


def another(content: bytes) -> bytes:
    """An instance with the same UIDs and other pixels."""
    return content[:-8] + b"\xff" * 8


def _has_some(bench: Bench, folder: Path) -> None:
    """The first instance is there already; the second as well, with other pixels."""
    first, second = outgoing(bench)[:2]
    put(folder, first)
    put(folder, another(second))


def path_of(content: bytes) -> str:
    """Where a folder keeps an instance."""
    header = header_of(io.BytesIO(content))
    return f"{header.study_instance_uid}/{header.series_instance_uid}/{header.sop_instance_uid}.dcm"


def path_of_uri(uri: str) -> str:
    """The same of a reference's relative URI."""
    _, study, _, series, _, instance = uri.split("/")
    return f"{study}/{series}/{instance}.dcm"


def put(folder: Path, content: bytes) -> None:
    """Puts an instance where a folder keeps it."""
    path = folder / path_of(content)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _has_everything(bench: Bench, folder: Path) -> None:
    for path in bench.paths:
        put(folder, path.read_bytes())


def _store(client: DICOMwebClient, bench: Bench, seen: Seen, options: Mapping[str, Any]) -> None:
    if options["on_existing"] == "replace":
        # The way of servers without upsert: the old one is deleted, and put back if the new one is refused.
        assert client.profile.replace == "delete"
    outcomes = client.iter_store_instances(
        outgoing(bench), on_existing=options["on_existing"], verify=options["verify"]
    )
    for outcome in outcomes:
        if isinstance(outcome, Failure):
            seen.failures.append(outcome)
            seen.items.append(("failed", outcome.reference.uri if outcome.reference else None))
        else:
            seen.items.append(stored_item(outcome))


def _store_all(client: DICOMwebClient, bench: Bench, seen: Seen, options: Mapping[str, Any]) -> None:
    dataset = client.store_instances(outgoing(bench))
    for item in dataset.ReferencedSOPSequence:
        seen.items.append(("referenced", str(item.ReferencedSOPInstanceUID)))


def _delete(client: DICOMwebClient, bench: Bench, seen: Seen, options: Mapping[str, Any]) -> None:
    first = bench.references[0]
    uids = [first.study_instance_uid, first.series_instance_uid, first.sop_instance_uid]
    level = options["level"]
    getattr(client, f"delete_{level}")(*uids[: ["study", "series", "instance"].index(level) + 1])
    seen.items.append(("deleted", level))


# The table ------------------------------------------------------------------------------------------------------------


def _searches() -> Iterator[Operation]:
    for what in ("studies", "series", "instances"):
        arguments: dict[str, Any] = {"limit": 2} if what == "instances" else {}
        traits = ROWS | {"matched"} | ({"limited"} if arguments else set())
        yield Operation(
            f"search for {what}",
            _search,
            "GET",
            f"{ROOT}/{what}$",
            traits,
            options={"what": what, "arguments": arguments},
        )
    for level, size in (("study", 1), ("series", 2), ("instance", 5)):
        name = {"study": "studies", "series": "series", "instance": "instances"}[level]
        yield Operation(
            f"page through {name}",
            _pages,
            "GET",
            f"{ROOT}/{name}$",
            ROWS | {"paged", "limited"},
            first=2,
            options={"level": level, "page_size": size},
        )
    yield Operation(
        "page with totals",
        _pages,
        "GET",
        f"{ROOT}/instances$",
        ROWS | {"paged", "limited", "total"},
        first=2,
        options={"level": "instance", "page_size": 4},
        with_totals=True,
    )
    yield Operation("count", _count, "GET", f"{ROOT}/instances/count$", frozenset({"body", "json", "total"}))
    yield Operation(
        "missing instances",
        _missing,
        "GET",
        ROOT + "/studies/[^/]+/instances$",
        ROWS | {"paged", "limited"},
    )
    yield Operation("probe", _probe, "GET", f"{ROOT}/studies$", ROWS | {"limited", "paged"})


def _retrieves() -> Iterator[Operation]:
    paths = {"study": "/studies/[^/]+$", "series": "/studies/[^/]+/series/[^/]+$", "instance": INSTANCE + "$"}
    for level, path in paths.items():
        traits = OBJECTS | ({"several", "long"} if level != "instance" else set())
        yield Operation(f"retrieve {level}", _datasets, "GET", ROOT + path, traits, options={"level": level})
    for level in ("study", "instance"):
        traits = OBJECTS | ({"several", "long"} if level != "instance" else set())
        yield Operation(
            f"stream {level} to files", _instances, "GET", ROOT + paths[level], traits, options={"level": level}
        )
    for level, path in paths.items():
        yield Operation(
            f"metadata of {level}",
            _metadata,
            "GET",
            ROOT + path[:-1] + "/metadata$",
            frozenset({"body", "json", "vrs"}),
            options={"level": level},
        )
    yield Operation(
        "frames", _frames, "GET", ROOT + INSTANCE + "/frames/", PARTS | {"several"}, options={"numbers": (3, 1, 2)}
    )
    yield Operation("one frame", _frames, "GET", ROOT + INSTANCE + "/frames/", PARTS, options={"numbers": (2,)})
    for name, byte_range in (("bulk data", None), ("range of bulk data", (8, 23))):
        yield Operation(
            name, _bulkdata, "GET", ROOT + INSTANCE + "/bulkdata/", PARTS, options={"byte_range": byte_range}
        )
    yield Operation("rendered", _rendered, "GET", ROOT + INSTANCE + "/rendered$", frozenset({"body"}))
    yield Operation(
        "thumbnail",
        _rendered,
        "GET",
        ROOT + INSTANCE + "/thumbnail$",
        frozenset({"body"}),
        options={"thumbnail": True},
    )


def _stores() -> Iterator[Operation]:
    for policy in ("server", "skip", "replace", "error"):
        for verify in ("response", "uid", "content"):
            yield Operation(
                f"store: {policy}, {verify}",
                _store,
                "POST",
                f"{ROOT}/studies$",
                STOW | {"existing"},
                writes=True,
                fill=_has_some,
                options={"on_existing": policy, "verify": verify},
            )
    yield Operation(
        "store: the listing before",
        _store,
        "GET",
        ROOT + r"/studies/[^/]+/series/[^/]+/instances$",
        ROWS | {"paged", "limited"},
        writes=True,
        fill=_has_some,
        options={"on_existing": "skip", "verify": "response"},
    )
    yield Operation(
        "store: the search after",
        _store,
        "GET",
        ROOT + r"/studies/[^/]+/series/[^/]+/instances$",
        ROWS | {"limited"},
        writes=True,
        options={"on_existing": "server", "verify": "uid"},
    )
    yield Operation(
        "store: reading back",
        _store,
        "GET",
        ROOT + INSTANCE + "$",
        OBJECTS,
        writes=True,
        options={"on_existing": "server", "verify": "content"},
    )
    yield Operation(
        "store: the delete before",
        _store,
        "DELETE",
        ROOT + INSTANCE + "$",
        frozenset(),
        writes=True,
        fill=_has_some,
        options={"on_existing": "replace", "verify": "response"},
    )
    yield Operation("store_instances", _store_all, "POST", f"{ROOT}/studies$", STOW, writes=True)


def _deletes() -> Iterator[Operation]:
    for level in ("study", "series", "instance"):
        yield Operation(
            f"delete {level}",
            _delete,
            "DELETE",
            ROOT + "/studies/",
            frozenset(),
            writes=True,
            fill=_has_everything,
            options={"level": level},
        )


OPERATIONS: dict[str, Operation] = {
    operation.name: operation for operation in (*_searches(), *_retrieves(), *_stores(), *_deletes())
}
"""All operations of the client by name."""

for _operation in OPERATIONS.values():
    re.compile(_operation.path)
