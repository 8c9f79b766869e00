"""What holds for every public transform: type hints, windows, timestamps, one fetch for several windows."""

from __future__ import annotations

import base64
import bz2
import logging
import sys
from collections import Counter

import apache_beam as beam
import pytest
from apache_beam.internal import pickler
from apache_beam.metrics.metric import Lineage
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms.window import FixedWindows, SlidingWindows, TimestampedValue
from apache_beam.typehints.decorators import TypeCheckError
from requests.auth import HTTPBasicAuth

from dicomweb_io import transforms
from dicomweb_io.elements import Failure
from dicomweb_io.endpoint import Endpoint
from dicomweb_io.http.auth import (
    AWSSigV4,
    AzureCredentials,
    BasicCredentials,
    BearerToken,
    GoogleCredentials,
    OAuth2ClientCredentials,
)
from dicomweb_io.http.settings import TLS
from dicomweb_io.testing.samples import make_study
from tests.every_transform import CASES, INSTANCES, VARIANTS, WITH_ARCHIVE, World
from tests.windows import WINDOWINGS, check_windows, make_worlds

CHECKED = ["--runner=FnApiRunner", "--performance_runtime_type_check"]
FED = [name for name, case in CASES.items() if case.elements is not None]
SOURCES = [name for name, case in CASES.items() if case.elements is None]


def pipeline():
    return beam.Pipeline(options=PipelineOptions(CHECKED))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with one series. Not to be written to."""
    directory = tmp_path_factory.mktemp("every")
    make_study(directory, instances=INSTANCES, size=300)
    return directory


@pytest.fixture
def world(serve, files, tmp_path):
    (tmp_path / "target").mkdir()
    source, target = serve(files), serve(tmp_path / "target")
    made = World(Endpoint(source.url), Endpoint(target.url), sorted(files.rglob("*.dcm")), tmp_path)
    made.servers = [source, target]
    return made


def seen(element, time=beam.DoFn.TimestampParam, window=beam.DoFn.WindowParam):
    return type(element), int(time), int(window.start)


def test_every_public_transform_has_a_case():
    public = {
        name
        for name in transforms.__all__
        if isinstance(getattr(transforms, name), type) and issubclass(getattr(transforms, name), beam.PTransform)
    }
    assert set(CASES) == public, "add the new transform to tests/every_transform.py"


RESULTS = [kind for kind in map(transforms.__dict__.get, transforms.__all__) if hasattr(kind, "_fields")]


@pytest.mark.parametrize("kind", RESULTS)
def test_a_result_that_is_piped_names_its_members(kind):
    main, *others = kind._fields
    assert others == ["failures"], "all results look alike"
    assert {case.main for case in CASES.values()} > {main}
    p = pipeline()
    ones, twos = p | "1" >> beam.Create([1]), p | "2" >> beam.Create([2])
    result = kind(ones, twos)
    for transform in (beam.Map(str), "Label" >> beam.GroupByKey(), transforms.RetrieveInstances("x"), beam.Create([3])):
        with pytest.raises(TypeError, match=rf"take result\.{main} \(there is also result\.failures") as caught:
            _ = result | transform
        assert kind.__name__ in str(caught.value)
    joined = (result | beam.Flatten(), result | "Labelled" >> beam.Flatten(), tuple(result) | "T" >> beam.Flatten())
    for number, collection in enumerate(joined):
        assert_that(collection, equal_to([1, 2]), label=str(number))
    pairs = kind(ones | "A" >> beam.Map(lambda x: (0, x)), twos | "B" >> beam.Map(lambda x: (0, x)))
    assert_that(pairs | beam.CoGroupByKey(), equal_to([(0, ([1], [2]))]))
    p.run()


@pytest.mark.parametrize(
    "make",
    [
        lambda: transforms.RetrieveInstances("/a", media_types="application/dicom"),
        lambda: transforms.RetrieveInstances("/a", media_types=["image/png"]),
        lambda: transforms.RetrieveFrames("/a", media_types="image/jls"),
        lambda: transforms.RetrieveRendered("/a", media_types="image/png"),
        lambda: transforms.RetrieveRendered("/a", media_types=["png"]),
        lambda: transforms.RetrieveBulkdata("/a", media_types="image/png"),
        lambda: transforms.DownloadInstances("/a", "/b", media_types="application/dicom"),
        lambda: transforms.CopyInstances("/a", "/b", media_types=["image/png"]),
        lambda: transforms.RetrieveRendered("/a", params="window=1"),
        lambda: transforms.SearchForStudies("/a", "Modality=CT"),
        lambda: transforms.SearchForStudies("/a", ["Modality"]),
        lambda: transforms.ReadFromDICOMweb("/a", {"Modality"}),
    ],
)
def test_a_wrong_argument_is_an_error_before_the_pipeline_runs(make):
    with pytest.raises(
        (TypeError, ValueError), match=r"must be a (sequence|mapping)|not available as|not a media type"
    ):
        make()


@pytest.mark.parametrize("name", [name for name in FED if not name.startswith("SearchFor")])
def test_a_step_is_no_source(name, world):
    with pytest.raises((TypeError, TypeCheckError), match=r"is no source|expects a PCollection"):
        _ = pipeline() | "It" >> CASES[name].make(world)


@pytest.mark.parametrize("name", [name for name in CASES if name not in FED])
def test_a_source_is_no_step(name, world):
    """A whole series would come, for example, where an element names an instance."""
    with pytest.raises(TypeError, match="is a source"):
        _ = pipeline() | beam.Create(["studies/1.2/series/1.3/instances/1.4"]) | "It" >> CASES[name].make(world)


def test_the_runtime_check_of_types_finds_a_wrong_hint():
    """The option that the tests below rely on does something."""
    p = pipeline()
    wrong = p | beam.Create([1]) | "Wrong" >> beam.Map(str).with_output_types(int)
    _ = wrong | "Taker" >> beam.Map(lambda number: number).with_input_types(int)
    with pytest.raises(Exception, match="Runtime type violation"):
        p.run()


@pytest.mark.slow
@pytest.mark.parametrize("name", FED)
def test_types_windows_and_timestamps_hold_also_for_failures(name, world):
    """An element in a fixed window, and one that nothing can be done with."""
    case = CASES[name]
    case.prepare(world)
    elements = case.elements(world)
    bad = [] if case.bad is None else [case.bad]
    with pipeline() as p:
        given = (
            p
            | beam.Create([*elements, *bad])
            | beam.Map(lambda item: TimestampedValue(item, 65))
            | beam.WindowInto(FixedWindows(60))
        )
        options = {"failures": "collect"} if case.fails else {}
        result = given | "It" >> case.make(world, **options)
        main = getattr(result, case.main) if case.main else result
        looks = main | "Look" >> beam.Map(seen) | beam.Map(lambda look: (issubclass(look[0], case.output), *look[1:]))
        time = 65 if case.keeps_times else 119
        assert_that(looks, equal_to([(True, time, 60)] * case.count))
        if case.fails:
            lost = result.failures | "LookAtFailures" >> beam.Map(seen)
            assert_that(lost, equal_to([(Failure, 65, 60)] * len(bad)), label="failures")


@pytest.mark.slow
@pytest.mark.parametrize("name", FED)
def test_an_element_in_three_windows_is_done_once_and_comes_in_each(name, world):
    case = CASES[name]
    case.prepare(world)
    for server in world.servers:
        server.records.clear()
    with pipeline() as p:
        given = p | beam.Create(case.elements(world)) | beam.Map(lambda item: TimestampedValue(item, 65))
        result = given | beam.WindowInto(SlidingWindows(30, 10)) | "It" >> case.make(world)
        main = getattr(result, case.main) if hasattr(result, "failures") else result
        looks = main | "Look" >> beam.Map(seen) | beam.Map(lambda look: (issubclass(look[0], case.output), look[2]))
        assert_that(looks, equal_to([(True, start) for start in (40, 50, 60)] * case.count))
    asked = Counter(
        (server.url, item.method, item.path, item.query) for server in world.servers for item in server.records
    )
    assert {item: number for item, number in asked.items() if number > 1} == {}
    assert asked or name in ("ParseNotifications", "DistinctReferences", "AsRows")


@pytest.mark.slow
@pytest.mark.parametrize("name", SOURCES)
def test_types_hold_for_sources(name, world):
    case = CASES[name]
    p = pipeline()
    result = p | "It" >> case.make(world, failures="collect")
    main = getattr(result, case.main)
    looks = main | "Look" >> beam.Map(seen) | beam.Map(lambda look: issubclass(look[0], case.output))
    assert_that(looks, equal_to([True] * case.count))
    done = p.run()
    done.wait_until_finish()
    host = world.source.url.split("/")[2]
    archives = {f"dicomweb:`{host}`.dicom-web"} if name in WITH_ARCHIVE else set()
    if name == "CompareArchives":
        archives |= {f"filesystem:{world.directory / 'empty'}"}
    assert Lineage.query(done.metrics(), Lineage.SOURCE) == archives


@pytest.mark.parametrize("how", WINDOWINGS)
def test_results_and_failures_are_where_their_elements_are(how, serve, files, tmp_path):
    """In the same windows, at the same time, in the same pane, once for each."""
    worlds = make_worlds(Endpoint(serve(files).url), sorted(files.rglob("*.dcm")), tmp_path)
    with beam.Pipeline(runner="FnApiRunner") as p:
        check_windows(p, worlds, WINDOWINGS[how])


KINDS = {
    "none": (None, False),
    "basic by variable": (BasicCredentials("me", password_env="PACS_PASSWORD"), False),
    "basic literal": (BasicCredentials("me", "literal-secret"), True),
    "token by file": (BearerToken(file="/run/there/is/none"), False),
    "token literal": (BearerToken("literal-secret"), True),
    "oauth2": (OAuth2ClientCredentials("https://login.example/token", "me", client_secret_env="PACS_PASSWORD"), False),
    "oauth2 literal": (OAuth2ClientCredentials("https://login.example/token", "me", "literal-secret"), True),
    "google": (GoogleCredentials(), False),
    "azure": (AzureCredentials(), False),
    "aws": (AWSSigV4("eu-central-1"), False),
    "an authentication object": (HTTPBasicAuth("me", "literal-secret"), True),
}


def world_with(kind, directory, **headers):
    """An archive to read and one to write, both with these credentials."""
    credentials = KINDS[kind][0]
    source, target = (
        Endpoint(f"https://{name}.example/rs", credentials=credentials, headers=headers)
        for name in ("source", "target")
    )
    return World(source, target, [], directory)


@pytest.mark.parametrize("lacking", ["a package", "a file"])
def test_a_worker_that_lacks_what_an_archive_needs_says_so_for_each_element(lacking, files, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "azure.identity", None)
    monkeypatch.setattr(World, "fill_target", lambda world: None)
    options = {"a package": {"credentials": AzureCredentials()}, "a file": {"tls": TLS(str(tmp_path / "no.pem"))}}
    archive = Endpoint("https://127.0.0.1:9/dicom", **options[lacking])
    world = World(archive, archive, sorted(files.rglob("*.dcm")), tmp_path)
    with pipeline() as p:
        failures = []
        for name in WITH_ARCHIVE:
            case = CASES[name]
            given = p if case.elements is None else p | f"Create {name}" >> beam.Create(case.elements(world))
            options = {"allow_unproven_rows": True} if name == "DeleteResources" else {}
            result = given | name >> case.make(world, failures="collect", **options)
            failures.append(result.failures | f"Name {name}" >> beam.Map(lambda x, name=name: (name, x.message)))
        told = failures | beam.Flatten() | beam.Filter(lambda x: "azure" in x[1] or "there is no file" in x[1])
        assert_that(told | beam.Keys() | beam.Distinct(), equal_to(WITH_ARCHIVE))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_pickled_is_the_same_transform_and_shows_no_secret(kind, tmp_path):
    world = world_with(kind, tmp_path, key="header-secret")
    for make in (*(CASES[name].make for name in WITH_ARCHIVE), *VARIANTS.values()):
        transform = make(world)
        copy = pickler.loads(pickler.dumps(transform))
        assert type(copy) is type(transform)
        if transform.endpoint is not None:
            assert copy.endpoint.url == transform.endpoint.url
            assert repr(copy.endpoint) == repr(transform.endpoint)
        shown = repr(vars(copy)) + repr(copy.endpoint) + repr(copy.display_data()) + repr(copy)
        assert "literal-secret" not in shown
        assert "header-secret" not in shown


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_holds_no_secret_by_reference_and_a_literal_one_is_warned_of(kind, tmp_path, caplog, monkeypatch):
    """What the workers get holds no secret that was given by reference; a literal one is told when the job is built."""
    monkeypatch.setenv("PACS_PASSWORD", "secret-of-the-environment")
    literal, world = KINDS[kind][1], world_with(kind, tmp_path)
    p = beam.Pipeline(runner="FnApiRunner")
    given = p | beam.Create(["studies/1.2"])
    with caplog.at_level(logging.WARNING, "dicomweb_io"):
        for name in WITH_ARCHIVE:
            _ = (p if CASES[name].elements is None else given) | name >> CASES[name].make(world)
    assert "literal-secret" not in caplog.text
    told = Counter(item.getMessage().split(":")[0] for item in caplog.records if item.name == "dicomweb_io")
    # Of each archive once: a copy has two. A function that chooses archives is not asked before there are elements.
    expected = Counter(WITH_ARCHIVE) + Counter(["CopyInstances"]) - Counter(["WriteToDICOMweb"])
    assert told == (expected if literal else Counter())
    graph = pickled_functions(p)
    assert b"secret-of-the-environment" not in graph
    assert (b"literal-secret" in graph) is literal


def pickled_functions(p):
    """The functions of a pipeline as they travel to the workers, unpacked."""
    components = p.to_runner_api(return_context=False).components
    functions = []
    for transform in components.transforms.values():
        if transform.spec.urn == "beam:transform:pardo:v1":
            payload = beam_runner_api_pb2.ParDoPayload.FromString(transform.spec.payload)
            functions.append(bz2.decompress(base64.b64decode(payload.do_fn.payload)))
    assert functions
    return b"".join(functions)
