"""What can be stored, how it is read, and how it is packed for one archive or many."""

from __future__ import annotations

import bz2
import gzip
import lzma
import shutil
import threading
import tracemalloc
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import apache_beam as beam
import fsspec
import pydicom
import pytest
import zstandard
from apache_beam.io import fileio
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that, equal_to, is_empty
from apache_beam.transforms.window import FixedWindows, SlidingWindows, TimestampedValue
from fsspec.implementations.memory import MemoryFileSystem

from dicomweb_io import pool as pools
from dicomweb_io.elements import Instance
from dicomweb_io.endpoint import Endpoint
from dicomweb_io.http.auth import BearerToken
from dicomweb_io.http.settings import Limits
from dicomweb_io.testing.samples import make_study, synthetic_instance
from dicomweb_io.transforms import StoreInstances, store

TOGETHER = 4


def pipeline():
    return beam.Pipeline(runner="FnApiRunner")


def in_one_bundle(elements):
    """The elements, one after the other in one bundle."""
    return beam.Create([0]) | beam.FlatMap(lambda _: elements)


def bytes_of(directory):
    return sorted(path.read_bytes() for path in Path(directory).rglob("*.dcm"))


class Gate:
    """Lets openings through when `TOGETHER` of them wait, or none came for long."""

    def __init__(self):
        self.lock, self.arrived = threading.Condition(), 0
        self.together = 0
        self.opened = 0
        self.given_up = False

    @contextmanager
    def counted(self):
        with self.lock:
            self.opened += 1
            self.arrived += 1
            self.together = max(self.together, self.arrived)
            self.lock.notify_all()
            if not self.given_up and not self.lock.wait_for(lambda: self.together >= TOGETHER, timeout=10):
                self.given_up = True
        yield
        with self.lock:
            self.arrived -= 1


class Remote(MemoryFileSystem):
    """Files in memory that are opened through a gate."""

    protocol = "remote"
    store, pseudo_dirs = {}, [""]
    gate = Gate()

    def _open(self, path, mode="rb", **options):
        if "r" not in mode:
            return super()._open(path, mode, **options)
        with Remote.gate.counted():
            return super()._open(path, mode, **options)


@pytest.fixture
def gate(monkeypatch):
    fsspec.register_implementation("remote", Remote, clobber=True)
    monkeypatch.setattr(Remote, "gate", Gate())
    Remote.store.clear()
    opening = FileSystems.open

    def gated(path, *arguments, **options):
        with Remote.gate.counted():
            return opening(path, *arguments, **options)

    monkeypatch.setattr(FileSystems, "open", gated)
    return Remote.gate


# Reading --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["paths", "readable files", "function"])
def test_files_are_opened_together_and_once(serve, archive, folder, gate, kind):
    """Each opening of a remote file takes as long as a request."""
    server = serve(folder)
    files = sorted(archive.rglob("*.dcm"))[:24]
    for number, path in enumerate(files):
        with fsspec.open(f"remote://a/{number:02}.dcm", "wb") as file:
            file.write(path.read_bytes())
    remote = [f"remote://a/{number:02}.dcm" for number in range(len(files))]
    url = server.url
    with pipeline() as p:
        if kind == "readable files":
            elements = p | in_one_bundle([str(path) for path in files]) | fileio.ReadMatches()
        else:
            elements = p | in_one_bundle(remote)
        stored = (elements | StoreInstances((lambda _: url) if kind == "function" else url)).stored
        assert_that(stored | beam.combiners.Count.Globally(), equal_to([len(files)]))
    assert bytes_of(folder) == sorted(path.read_bytes() for path in files)
    assert gate.together >= TOGETHER, "one after the other"
    assert gate.opened == len(files), "more than once"


def test_the_failure_of_a_remote_file_names_it(gate, archive, folder):
    with fsspec.open("remote://a/junk", "wb") as file:
        file.write(b"no DICOM" * 1000)
    gate.given_up = True
    with pipeline() as p:
        result = p | beam.Create(["remote://a/junk", "remote://a/none"]) | StoreInstances(folder, failures="collect")
        told = result.failures | beam.Map(lambda failure: (failure.source, failure.reference))
        assert_that(told, equal_to([("remote://a/junk", None), ("remote://a/none", None)]))


SUFFIXES = {".gz": gzip.open, ".bz2": bz2.open, ".xz": partial(lzma.open, preset=0), ".zst": zstandard.open}


@pytest.mark.parametrize("kind", ["readable", "remote", *SUFFIXES])
def test_a_large_file_is_never_in_memory(tmp_path, folder, monkeypatch, kind):
    """It is sent from a temporary file, which does not remain, or from where it is."""
    path = synthetic_instance(1_000_000, tmp_path / "large.dcm")
    dataset = pydicom.dcmread(path)
    size = len(dataset.PixelData) * 100
    dataset.NumberOfFrames = int(dataset.NumberOfFrames) * 100
    dataset.PixelData = bytes(size)
    dataset.save_as(path)
    expected = path.stat().st_size
    given = f"file://{path}" if kind == "remote" else str(path)
    if kind in SUFFIXES:
        given += kind
        with open(path, "rb") as plain, SUFFIXES[kind](given, "wb") as file:
            shutil.copyfileobj(plain, file, 1 << 20)
    del dataset
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    p = pipeline()
    elements = p | beam.Create([given])
    if kind != "remote":
        elements = elements | fileio.MatchAll() | fileio.ReadMatches()
    stored = (elements | StoreInstances(str(folder))).stored
    assert_that(stored | beam.Map(lambda item: (item.outcome, item.size)), equal_to([("stored", expected)]))
    tracemalloc.start()
    try:
        p.run()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < size / 4, f"{peak / 1e6:.0f} MB"
    (written,) = folder.rglob("*.dcm")
    assert written.stat().st_size == expected
    assert [item for item in (tmp_path / "temporary").rglob("*") if item.is_file()] == []


def test_of_files_with_one_instance_the_first_is_stored(archive, folder, tmp_path):
    original = next(archive.rglob("*.dcm")).read_bytes()
    paths = []
    for number in range(20):
        paths.append(tmp_path / f"{number}.dcm")
        # The first is the largest, and takes longest to read.
        paths[-1].write_bytes(original[:-1] + bytes([number]))
    with pipeline() as p:
        result = p | in_one_bundle(list(map(str, paths))) | StoreInstances(str(folder), failures="collect")
        assert_that(result.stored | beam.combiners.Count.Globally(), equal_to([1]), label="stored")
        conflicts = result.failures | beam.Map(lambda failure: failure.source)
        assert_that(conflicts, equal_to(list(map(str, paths[1:]))), label="failures")
    assert bytes_of(folder) == [paths[0].read_bytes()]


@pytest.mark.parametrize("by_function", [False, True])
@pytest.mark.parametrize(
    ("policy", "outcomes", "kept"),
    [
        ("skip", ["stored"] + 23 * ["exists"], 0),
        ("error", ["stored"] + 23 * ["failed"], 0),
        ("replace", ["stored"] + 23 * ["replaced"], 23),
    ],
)
def test_one_instance_in_several_requests_is_sent_in_order(
    serve, archive, folder, monkeypatch, policy, outcomes, kept, by_function
):
    monkeypatch.setattr("dicomweb_io.copier.MAX_BATCH_INSTANCES", 2)
    url = serve(folder, behaviour="orthanc").url
    dataset = pydicom.dcmread(next(archive.rglob("*.dcm")))
    variants = []
    for number in range(24):
        dataset.PatientComments = str(number)
        variants.append(Instance.from_dataset(dataset).content)
    with pipeline() as p:
        stores = StoreInstances((lambda _: url) if by_function else url, on_existing=policy, failures="collect")
        result = p | in_one_bundle(variants) | stores
        told = (
            result.stored | "Outcome" >> beam.Map(lambda one: one.outcome),
            result.failures | "Failed" >> beam.Map(lambda one: "failed"),
        ) | beam.Flatten()
        assert_that(told, equal_to(outcomes))
    (path,) = folder.rglob("*.dcm")
    assert pydicom.dcmread(path).PatientComments == str(kept)


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz"])
def test_broken_compressed_files_are_failures(tmp_path, folder, archive, suffix):
    """Bytes that are cut off behind the header are not an instance."""
    with SUFFIXES[suffix](tmp_path / f"whole{suffix}", "wb") as file:
        file.write(next(archive.rglob("*.dcm")).read_bytes())
    whole = (tmp_path / f"whole{suffix}").read_bytes()
    broken = {"none": b"not compressed", "changed": whole[:60] + bytes(60) + whole[120:], "cut": whole[:-20]}
    for name, content in broken.items():
        (tmp_path / f"{name}{suffix}").write_bytes(content)
    with pipeline() as p:
        names = p | beam.Create([str(tmp_path / f"*{suffix}")])
        result = names | fileio.MatchAll() | fileio.ReadMatches() | StoreInstances(str(folder), failures="collect")
        assert_that(result.stored | beam.combiners.Count.Globally(), equal_to([1]), label="stored")
        told = result.failures | beam.Map(lambda failure: Path(failure.source).stem)
        assert_that(told, equal_to(list(broken)), label="failures")


# Archives -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("destinations", [8, 9, 12, 40])
def test_requests_are_as_full_with_many_archives_as_with_few(serve, folder, tmp_path, destinations):
    """Elements for all archives come in turn; equal descriptions of an archive are one archive."""
    server = serve(folder)
    url = server.url
    paths = [str(path) for path in make_study(tmp_path / "source", instances=4 * destinations, size=200)]
    numbers = {path: number % destinations for number, path in enumerate(paths)}

    def choose(path):
        return Endpoint(url, headers={"X-Archive": str(numbers[path])})

    with pipeline() as p:
        result = p | in_one_bundle(paths) | StoreInstances(choose, max_destinations=4)
        assert_that(result.stored | beam.combiners.Count.Globally(), equal_to([len(paths)]))
    assert len(server.records.of("POST")) == destinations
    assert not pools._CLIENTS._entries
    assert not pools._POOLS._entries


def test_what_waits_for_many_archives_is_bounded(serve, folder, tmp_path, monkeypatch):
    server = serve(folder)
    url = server.url
    paths = make_study(tmp_path / "source", instances=40, size=2000)
    contents = [path.read_bytes() for path in paths]
    monkeypatch.setattr(store, "MAX_WAITING_MEMORY", 5 * max(map(len, contents)))
    most = []
    add = store._Store._add

    def adding(self, *arguments):
        yield from add(self, *arguments)
        most.append(self._memory)

    monkeypatch.setattr(store._Store, "_add", adding)

    def choose(content):
        return Endpoint(url, headers={"X-Archive": str(contents.index(content) % 20)})

    with pipeline() as p:
        result = p | in_one_bundle(contents) | StoreInstances(choose, max_destinations=1)
        assert_that(result.stored | beam.combiners.Count.Globally(), equal_to([len(paths)]))
    assert bytes_of(folder) == sorted(contents)
    assert max(most) <= store.MAX_WAITING_MEMORY


@pytest.mark.parametrize("trouble", ["function", "nothing", "empty", "credentials"])
def test_trouble_with_an_archive_is_a_failure_of_its_elements(archive, folder, trouble, monkeypatch):
    paths = sorted(map(str, archive.rglob("*.dcm")))[:4]
    good = str(folder)
    monkeypatch.delenv("NO_TOKEN", raising=False)
    troubles = {
        "function": (lambda path: {}[path], "raised KeyError"),
        "nothing": (lambda path: None, "NoneType"),
        "empty": (lambda path: "", "archive"),
        "credentials": (lambda path: Endpoint("http://127.0.0.1:9", credentials=BearerToken(env="NO_TOKEN")), "NO_TOK"),
    }
    bad, words = troubles[trouble]

    def choose(path):
        return bad(path) if path in paths[::2] else good

    with pipeline() as p:
        result = p | beam.Create(paths) | StoreInstances(choose, failures="collect")
        told = result.failures | beam.Map(lambda failure: (failure.source, words in failure.message))
        assert_that(told, equal_to([(path, True) for path in paths[::2]]), label="failures")
        assert_that(result.stored | beam.combiners.Count.Globally(), equal_to([2]), label="stored")


# Elements -------------------------------------------------------------------------------------------------------------


def test_a_tiny_budget_and_one_request_at_a_time(serve, archive, folder):
    server = serve(folder)
    paths = sorted(map(str, archive.rglob("*.dcm")))
    endpoint = Endpoint(server.url, limits=Limits(1))
    with pipeline() as p:
        stored = (p | in_one_bundle(paths) | fileio.ReadMatches() | StoreInstances(endpoint)).stored
        assert_that(stored | beam.combiners.Count.Globally(), equal_to([len(paths)]))


def test_a_changed_dataset_is_stored_as_it_is_now(archive, folder):
    dataset = pydicom.dcmread(next(archive.rglob("*.dcm")))
    pixels = dataset.pixel_array.copy()
    pixels[:] = 7
    dataset.PixelData = pixels.tobytes()
    with pipeline() as p:
        _ = p | beam.Create([dataset]) | StoreInstances(str(folder))
    assert (pydicom.dcmread(next(folder.rglob("*.dcm"))).pixel_array == 7).all()


def test_paths_may_be_path_objects_and_nothing_at_all(archive, folder):
    paths = sorted(archive.rglob("*.dcm"))[:3]
    with pipeline() as p:
        stored = (p | beam.Create(paths) | StoreInstances(folder)).stored
        assert_that(
            stored | beam.Map(lambda item: item.reference), equal_to([Instance.from_path(x).reference for x in paths])
        )
        nothing = p | "None" >> beam.Create([]) | "Store" >> StoreInstances(folder)
        assert_that(nothing.stored, is_empty(), label="nothing")


# Waiting --------------------------------------------------------------------------------------------------------------


def test_waiting_is_refused_where_timers_do_not_wait(archive, folder):
    paths = sorted(map(str, archive.rglob("*.dcm")))
    waiting = StoreInstances(str(folder), max_batch_delay=1)
    with pytest.raises(ValueError, match="on FnApiRunner timers fire at once"):
        _ = pipeline() | beam.Create(paths) | waiting
    embedded = beam.Pipeline(options=PipelineOptions(["--runner=PortableRunner", "--job_endpoint=embed"]))
    with pytest.raises(ValueError, match="needs a streaming runner"):
        _ = embedded | beam.Create(paths) | waiting
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="max_batch_delay must be more than 0"):
            StoreInstances(str(folder), max_batch_delay=wrong)


def test_what_waits_keeps_its_place_and_content_does_not_wait(archive, folder, monkeypatch):
    """On this runner the timers fire at once, and all else is as on others."""
    monkeypatch.setattr(store, "_WITHOUT_WAITING", ())
    paths = sorted(archive.rglob("*.dcm"))[:6]
    elements = [str(paths[0]), paths[1], *(path.read_bytes() for path in paths[2:4]), "missing", b"junk"]
    with pipeline() as p:
        timed = p | in_one_bundle(elements) | beam.Map(lambda item: TimestampedValue(item, 65))
        with pytest.raises(ValueError, match="do not overlap"):
            _ = (
                timed
                | "Over" >> beam.WindowInto(SlidingWindows(30, 10))
                | "No" >> StoreInstances(folder, max_batch_delay=1)
            )
        fixed = timed | "Fixed" >> beam.WindowInto(FixedWindows(60))
        result = fixed | StoreInstances(lambda _: str(folder), max_batch_delay=1, failures="collect")
        places = [
            outcomes
            | f"Places{number}"
            >> beam.Map(
                lambda item, time=beam.DoFn.TimestampParam, window=beam.DoFn.WindowParam: (
                    int(time),
                    int(window.start),
                )
            )
            for number, outcomes in enumerate(result)
        ]
        assert_that(places[0], equal_to([(65, 60)] * 4), label="stored")
        assert_that(places[1], equal_to([(65, 60)] * 2), label="failures")
    assert bytes_of(folder) == sorted(path.read_bytes() for path in paths[:4])
