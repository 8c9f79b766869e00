"""The doors for Beam YAML and for other languages: the provider file, the example, and Python's expansion service."""

from __future__ import annotations

import inspect
import json
import os
import socket
import subprocess
import sys
from datetime import date, datetime, timezone
from pathlib import Path

import apache_beam as beam
import pyarrow.parquet
import pytest
import yaml
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that, equal_to, is_empty
from apache_beam.transforms.external import ExternalTransform, ImplicitSchemaPayloadBuilder
from apache_beam.yaml import yaml_provider
from apache_beam.yaml.yaml_transform import YamlTransform

from dicomweb_io import transforms
from dicomweb_io.elements import Instance, Resource
from dicomweb_io.endpoint import Endpoint
from dicomweb_io.http.auth import AWSSigV4, BasicCredentials, BearerToken, GoogleCredentials
from dicomweb_io.http.settings import TLS
from dicomweb_io.queries import make_query
from dicomweb_io.testing.samples import make_study
from dicomweb_io.transforms import yaml as doors

ROOT = Path(__file__).parents[2]
PROVIDERS = Path(doors.__path__[0]) / "providers.yaml"


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """A folder with 2 studies of 3 instances. Not to be written to."""
    directory = tmp_path_factory.mktemp("archive")
    make_study(directory, studies=2, instances=3, size=200)
    return directory


def bytes_of(directory):
    return sorted(path.read_bytes() for path in Path(directory).rglob("*.dcm"))


# Beam YAML ------------------------------------------------------------------------------------------------------------


def test_the_provider_file_names_every_provider():
    providers = yaml.safe_load(PROVIDERS.read_text())
    named = {name: path for provider in providers for name, path in provider["transforms"].items()}
    assert named == {name: f"dicomweb_io.transforms.yaml.{name}" for name in doors.__all__}


def run_example(name, **variables):
    """Runs an example with Beam's own command."""
    command = [sys.executable, "-m", "apache_beam.yaml.main", "--runner=FnApiRunner"]
    command += [f"--yaml_pipeline_file={ROOT / 'docs/examples' / name}"]
    command += [f"--jinja_variables={json.dumps({'providers': str(PROVIDERS), **variables})}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, env={**os.environ})
    assert done.returncode == 0, done.stderr[-3000:]


def lines_of(directory, prefix):
    return [json.loads(line) for path in directory.glob(f"{prefix}*") for line in path.read_text().splitlines()]


def studies_of(archive):
    return {Instance.from_path(path).reference.study_instance_uid for path in archive.rglob("*.dcm")}


def test_the_example_of_a_copy_runs(serve, archive, folder, tmp_path):
    server = serve(archive)
    run_example("copy_ct.yaml", source=server.url, destination=str(folder), list=str(tmp_path / "studies"))
    assert bytes_of(folder) == bytes_of(archive)
    assert {line["StudyInstanceUID"] for line in lines_of(tmp_path, "studies")} == studies_of(archive)


def test_the_example_of_accession_numbers_runs(serve, archive, tmp_path):
    server = serve(archive)
    client = Endpoint(server.url).connect()
    rows = client.search_for_studies(fields=["AccessionNumber"])
    client.close()
    numbers = [row["00080050"]["Value"][0] for row in rows]
    (tmp_path / "list.csv").write_text("\n".join(["AccessionNumber", *numbers, "NONE-SUCH", ""]))
    paths = {name: str(tmp_path / name) for name in ("series", "failed")}
    run_example("accession_numbers.yaml", source=server.url, list=str(tmp_path / "list.csv"), **paths)
    tables = [pyarrow.parquet.read_table(path) for path in tmp_path.glob("series*")]
    found = [row for table in tables for row in table.to_pylist()]
    assert {row["StudyInstanceUID"] for row in found} == studies_of(archive)
    assert not lines_of(tmp_path, "failed")


def test_the_example_of_files_and_images_runs(serve, archive, folder, tmp_path):
    server = serve(archive)
    paths = {name: str(tmp_path / name) for name in ("paths", "metadata", "images")}
    run_example("files_and_images.yaml", source=server.url, directory=str(folder), **paths)
    assert bytes_of(folder) == bytes_of(archive)
    assert {Path(line["path"]).name for line in lines_of(tmp_path, "paths")} == {p.name for p in folder.rglob("*.dcm")}
    assert {line["Rows"] for line in lines_of(tmp_path, "metadata")} == {1}
    assert [line["media_type"] for line in lines_of(tmp_path, "images")] == ["image/png"] * 6


def test_the_example_of_a_watch_runs(serve, archive, folder, tmp_path):
    server = serve(archive)
    run_example("watch.yaml", source=server.url, destination=str(folder), polls=1)
    assert bytes_of(folder) == bytes_of(archive)


def test_every_example_is_tested():
    text = Path(__file__).read_text(encoding="utf-8")
    assert [path.name for path in (ROOT / "docs/examples").glob("*.yaml") if f'"{path.name}"' not in text] == []


def chain(*steps):
    """A chain of transforms in YAML."""
    return yaml.safe_dump({"type": "chain", "transforms": [{"type": name, "config": how} for name, how in steps]})


@pytest.fixture(scope="module")
def providers():
    return yaml_provider.parse_providers(str(PROVIDERS), yaml.safe_load(PROVIDERS.read_text()))


SEARCH = ("SearchForSeries", {"limit": 1})
CHAINS = {
    "search in studies": ((("SearchForStudies", {"limit": 1}), ("SearchForInstances", {})), {"InstanceNumber": int}, 3),
    "typed dates": ((("SearchForStudies", {"columns": ["StudyDate"], "typed_dates": True}),), {"StudyDate": date}, 2),
    "metadata": (
        (SEARCH, ("RetrieveMetadata", {"columns": ["Rows", "StudyDate"]})),
        {"Rows": int, "StudyDate": str},
        3,
    ),
    "metadata by default": ((SEARCH, ("RetrieveMetadata", {})), {"SOPClassUID": str}, 3),
    "instances": ((SEARCH, ("RetrieveInstances", {})), {"content": bytes, "sop_instance_uid": str}, 3),
    "read all": ((SEARCH, ("ReadAllFromDICOMweb", {})), {"content": bytes}, 3),
    "frames": ((SEARCH, ("RetrieveFrames", {"frames": [1]})), {"content": bytes, "frames": list}, 3),
    "frames of frames": (
        (SEARCH, ("RetrieveFrames", {}), ("RetrieveRendered", {"media_types": ["image/png"]})),
        {"media_type": str},
        3,
    ),
    "rendered": (
        (SEARCH, ("RetrieveRendered", {"media_types": ["image/jpeg"], "params": {"quality": 90}})),
        {"content": bytes},
        3,
    ),
    "bulk data": ((SEARCH, ("RetrieveBulkdata", {"attributes": ["PixelData"]})), {"uri": str, "content": bytes}, 3),
    "watch": ((("WatchForStudies", {"start": "all", "max_polls": 1}),), {"study_instance_uid": str}, 2),
    "watch for complete studies": (
        (
            (
                "WatchForCompleteStudies",
                {"start": "all", "max_polls": 2, "interval": 0.02, "quiet": 0.001},
            ),
        ),
        {"study_instance_uid": str},
        2,
    ),
    "watch and retrieve": (
        (("WatchForInstances", {"start": "all", "max_polls": 1}), ("RetrieveMetadata", {})),
        {"SOPInstanceUID": str},
        6,
    ),
}


@pytest.mark.parametrize("name", CHAINS)
def test_chains_in_yaml(serve, archive, providers, name):
    server = serve(archive)
    steps, types, number = CHAINS[name]
    steps = [(step, {"endpoint": server.url, **how}) for step, how in steps]
    with beam.Pipeline(runner="FnApiRunner") as p:
        rows = p | YamlTransform(chain(*steps), providers=providers)
        seen = rows | beam.Map(lambda row: [isinstance(getattr(row, key), kind) for key, kind in types.items()])
        assert_that(seen, equal_to([[True] * len(types)] * number))


@pytest.mark.parametrize("sink", ["WriteToJson", "WriteToParquet", "WriteToAvro", "WriteToCsv", "LogForTesting"])
@pytest.mark.parametrize("search", ["SearchForStudies", "SearchForInstances"])
def test_default_columns_go_to_sinks_of_yaml(archive, tmp_path, providers, search, sink):
    how = {} if sink == "LogForTesting" else {"path": str(tmp_path / "rows")}
    with beam.Pipeline(runner="FnApiRunner") as p:
        _ = p | YamlTransform(chain((search, {"endpoint": str(archive)}), (sink, how)), providers=providers)
    assert not how or list(tmp_path.glob("rows*"))


def test_files_in_yaml(serve, archive, folder, providers):
    server = serve(archive)
    download = ("DownloadInstances", {"endpoint": server.url, "directory": str(folder)})
    with beam.Pipeline(runner="FnApiRunner") as p:
        written = p | YamlTransform(
            chain(("SearchForStudies", {"endpoint": server.url}), download), providers=providers
        )
        assert_that(written | beam.Map(lambda row: Path(row.path).suffix), equal_to([".dcm"] * 6))
    assert bytes_of(folder) == bytes_of(archive)
    # From there on to another place, and away with the studies.
    copy = ("CopyInstances", {"source": str(folder), "destination": str(folder) + "-copy"})
    delete = ("DeleteResources", {"endpoint": str(folder)})
    search = ("SearchForStudies", {"endpoint": str(folder), "exact": True})
    for step, number in ((copy, 6), (delete, 2)):
        with beam.Pipeline(runner="FnApiRunner") as p:
            done = p | YamlTransform(chain(search, step), providers=providers)
            assert_that(done | beam.combiners.Count.Globally(), equal_to([number]))
    assert bytes_of(folder) == []
    assert bytes_of(str(folder) + "-copy") == bytes_of(archive)
    with pytest.raises(ValueError, match="search with exact=True"):
        _ = beam.Pipeline() | YamlTransform(chain((search[0], {"endpoint": str(folder)}), delete), providers=providers)


@pytest.mark.parametrize("step", ["DeleteResources", "RetrieveMetadata", "SearchForInstances", "CopyInstances"])
def test_rows_of_series_without_their_uid_are_no_studies_in_yaml(archive, providers, step):
    endpoint = {"endpoint": str(archive)}
    search = ("SearchForSeries", {**endpoint, "exact": True, "columns": ["StudyInstanceUID", "Modality"]})
    how = {"source": str(archive), "destination": str(archive)} if step == "CopyInstances" else endpoint
    with pytest.raises(ValueError, match="lack the column SeriesInstanceUID"):
        _ = beam.Pipeline() | YamlTransform(chain(search, (step, how)), providers=providers)


def test_rows_of_a_table_are_not_deleted_without_consent_in_yaml(archive, folder, providers):
    study = Instance.from_path(next(archive.rglob("*.dcm"))).reference.study_instance_uid
    rows = ("Create", {"elements": [{"StudyInstanceUID": study, "Modality": "CT"}]})
    how = {"endpoint": str(folder), "error_handling": {"output": "failed"}}
    steps = [{"type": name, "config": config} for name, config in (rows, ("DeleteResources", how))]
    steps[1]["input"] = "Create"
    with beam.Pipeline(runner="FnApiRunner") as p:
        done = p | YamlTransform(
            yaml.safe_dump({"type": "composite", "transforms": steps, "output": "DeleteResources.failed"}),
            providers=providers,
        )
        assert_that(done | beam.Map(lambda row: "no exact search" in row.message), equal_to([True]))


NAMELESS = {
    "CopyInstances": {"source": "/source", "destination": "/destination"},
    "DownloadInstances": {"directory": "/destination"},
    "SearchForStudies": {},
}


@pytest.mark.parametrize("name", [name for name in doors.__all__ if getattr(doors, name)._yaml_requires_inputs])
def test_rows_that_name_nothing_are_failures(name, providers, archive):
    how = NAMELESS.get(name, {}) if name == "CopyInstances" else {"endpoint": str(archive), **NAMELESS.get(name, {})}
    kind = getattr(doors, name)
    with beam.Pipeline(runner="FnApiRunner") as p:
        rows = p | beam.Create([beam.Row(PatientName="Doe^Jane", other=1)])
        outputs = rows | kind(**how, error_handling={"output": "failed"})
        told = outputs["failed"] | beam.Map(lambda row: (row.transform, row.element is not None, "Doe" in str(row)))
        assert_that(told, equal_to([(name, True, False)]), label="failed")
        assert_that(outputs["good"], is_empty(), label="good")
    with pytest.raises(Exception, match=r" failed for .*other"), beam.Pipeline(runner="FnApiRunner") as p:
        _ = p | beam.Create([beam.Row(other=1)]) | kind(**how)


def test_failures_are_rows(archive):
    with beam.Pipeline(runner="FnApiRunner") as p:
        uids = {"StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.3.4", "SOPInstanceUID": "1.2.3.4.5"}
        rows = p | beam.Create([beam.Row(**uids)])
        outputs = rows | doors.CopyInstances(str(archive), str(archive) + "-none", error_handling={"output": "failed"})
        told = outputs["failed"] | beam.Map(lambda row: (row.transform, row.study_instance_uid))
        assert_that(told, equal_to([("CopyInstances", "1.2.3")]))


CREDENTIALS = {
    "token": ({"token_env": "T"}, BearerToken(env="T")),
    "command": ({"token_command": "print token"}, BearerToken(command="print token")),
    "password": ({"user": "me", "password_file": "/p"}, BasicCredentials("me", password_file="/p")),
    "google": ({"google": True}, GoogleCredentials()),
    "text": ({"google": "true", "azure": "false"}, GoogleCredentials()),
    "aws": ({"aws_region": "us-east-1"}, AWSSigV4("us-east-1")),
}


@pytest.mark.parametrize("kind", CREDENTIALS)
def test_credentials_are_named_for_each_archive(kind):
    given, credentials = CREDENTIALS[kind]
    read = doors.ReadFromDICOMweb("https://pacs.example/rs", credentials=given)
    assert read._inner.endpoint.credentials == credentials
    copy = doors.CopyInstances(
        "https://a.example/rs", "https://b.example/rs", source_credentials=given, destination_token_env="OTHER"
    )
    assert copy._inner.endpoint.credentials == credentials
    assert copy._inner.destination.credentials == BearerToken(env="OTHER")


def test_a_client_certificate_is_named():
    read = doors.ReadFromDICOMweb("https://pacs.example/rs", credentials={"cert": "c.pem", "ca": "ca.pem"})
    assert read._inner.endpoint.tls == TLS("ca.pem", "c.pem")


@pytest.mark.parametrize("name", doors.__all__)
def test_beam_sees_the_parameters(name):
    kind = getattr(doors, name)
    schema = yaml_provider.InlineProvider.config_schema_from_callable(kind)
    assert {"error_handling"} < {field.name for field in schema.fields}
    assert [field.name for field in schema.fields if not field.description] == []
    assert all(field.type.WhichOneof("type_info") != "logical_type" for field in schema.fields), "plain types"
    assert yaml_provider.InlineProvider.description_from_callable(kind)
    own = inspect.signature(getattr(transforms, name).__init__).parameters
    others = {"error_handling", "source", "destination", *doors._OF_ARCHIVE, "columns", "typed_dates"}
    named = [field.name for field in schema.fields if not field.name.startswith(("source_", "destination_"))]
    if "options" not in own:
        assert [parameter for parameter in named if parameter not in own and parameter not in others] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"token_env": "T", "google": True}, "one way to authenticate"),
        ({"user": "me"}, "user needs password_env"),
        ({"credentials": {"token": "secret"}}, "credentials has no token: it names how to authenticate by user"),
        ({"credentials": {"token_env": "T", "google": True}}, "one way to authenticate"),
        ({"credentials": {"aws_profile": "p"}}, "aws needs aws_region"),
        ({"error_handling": {}}, "needs the name of an output"),
        ({"search_filters": {"Modalit": "CT"}}, "Modalit"),
        ({"columns": ["Nonsense"]}, "Nonsense"),
        ({"columns": [0o100010]}, "text of a keyword"),
        ({"credentials": "secret"}, "^credentials must be a mapping, such as {token_env: NAME}$"),
        ({"credentials": {"google": "no"}}, "credentials: google must be true or false"),
        ({"exact": "false"}, "exact must be true or false"),
        ({"search_filters": {"AccessionNumber": 0o123}}, "value of AccessionNumber in quotes"),
        ({"search_filters": {"StudyTime": ["0700", 0o700]}}, "value of StudyTime in quotes"),
        ({"search_filters": {"Modality": False}}, "value of Modality in quotes"),
        ({"search_filters": {"StudyDate": date(2026, 1, 2)}}, "a date is written YYYYMMDD"),
        ({"profile": "orthank"}, "no profile 'orthank'"),
    ],
)
def test_wrong_parameters_are_refused(arguments, message):
    """Such as what YAML makes of 00123, NO and "false", which says the opposite of what counts as true."""
    with pytest.raises((TypeError, ValueError), match=message):
        doors.SearchForStudies("https://pacs.example/rs", **arguments)


def test_a_list_of_references_in_yaml(providers, tmp_path):
    (tmp_path / "list.csv").write_text("StudyInstanceUID,SeriesInstanceUID\n1.2,1.3\n")
    step = f"{{type: ReadReferences, config: {{path: {tmp_path}/list.csv, level: series}}}}"
    with beam.Pipeline(runner="FnApiRunner") as p:
        rows = p | YamlTransform(step, providers=providers) | beam.Map(Resource.of)
        assert_that(rows, equal_to([Resource("1.2", "1.3")]))


def test_a_watch_starts_at_a_time():
    watch = doors.WatchForStudies("https://pacs.example/rs", start="2026-01-31")
    assert watch._inner.start == datetime(2026, 1, 31, tzinfo=timezone.utc)
    unquoted = doors.WatchForStudies("https://pacs.example/rs", start=date(2026, 1, 31))
    assert unquoted._inner.start == date(2026, 1, 31)
    with pytest.raises(ValueError, match="yesterday"):
        doors.WatchForStudies("https://pacs.example/rs", start="yesterday")


def test_what_rows_name():
    series = {"StudyInstanceUID": "1.2", "SeriesInstanceUID": "1.3"}
    assert doors.query_of_row(beam.Row(**series)) == Resource("1.2", "1.3")
    with pytest.raises(ValueError, match="lacks its SOPInstanceUID"):
        doors.query_of_row(beam.Row(**series, SOPInstanceUID=None))
    query = beam.Row(AccessionNumber=17, PatientID=None, StudyDate=float("nan"), Modality="")
    assert doors.query_of_row(query) == {"AccessionNumber": "17", "Modality": ""}
    with pytest.raises(TypeError, match="AccessionNumber must be text, not a float"):
        make_query("study", search_filters=doors.query_of_row(beam.Row(AccessionNumber=17.0)))
    assert doors.storable_of_row(beam.Row(content=None, path="/a")) == "/a"
    assert doors.storable_of_row(beam.Row(content=b"x", path=None)) == b"x"
    with pytest.raises(ValueError, match="has other"):
        doors.storable_of_row(beam.Row(other=1))


# Other languages ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def expansion_service():
    """Python's expansion service in a process of its own, with workers in that process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "apache_beam.runners.portability.expansion_service_main", "-p", str(port)]
    command += ["--fully_qualified_name_glob=dicomweb_io.*", "--serve_loopback_worker"]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ}
    )
    try:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if "Listening for expansion requests" in line:
                break
        else:
            pytest.fail("the expansion service did not start:\n" + "".join(lines)[-3000:])
        yield f"localhost:{port}"
    finally:
        process.terminate()
        process.communicate(timeout=30)


def external(service, name, **kwargs):
    payload = ImplicitSchemaPayloadBuilder({"constructor": f"dicomweb_io.transforms.yaml.{name}", "kwargs": kwargs})
    return ExternalTransform("beam:transforms:python:fully_qualified_named", payload.payload(), service)


def test_other_languages_read_and_write(expansion_service, serve, archive, folder):
    server = serve(archive)
    options = PipelineOptions(["--runner=PortableRunner", "--job_endpoint=embed", "--environment_type=LOOPBACK"])
    with beam.Pipeline(options=options) as p:
        found = p | "Search" >> external(
            expansion_service, "SearchForInstances", endpoint=server.url, columns=["SOPInstanceUID"]
        )
        uids = [str(Instance.from_path(path).reference.sop_instance_uid) for path in archive.rglob("*.dcm")]
        assert_that(found | beam.Map(lambda row: row.SOPInstanceUID), equal_to(uids), label="found")
        read = p | "Read" >> external(expansion_service, "ReadFromDICOMweb", endpoint=server.url)
        written = read | "Write" >> external(expansion_service, "WriteToDICOMweb", endpoint=str(folder))
        assert_that(written | beam.Map(lambda row: row.outcome), equal_to(["stored"] * 6), label="written")
    assert bytes_of(folder) == bytes_of(archive)


def test_other_languages_get_failures(expansion_service, serve, archive, folder):
    server = serve(archive)
    one = Instance.from_path(next(archive.rglob("*.dcm"))).reference
    how = {"source": server.url, "destination": str(folder), "error_handling": {"output": "failed"}}
    credentials = {"user": "me", "password_env": "PATH"}
    options = PipelineOptions(["--runner=PortableRunner", "--job_endpoint=embed", "--environment_type=LOOPBACK"])
    with beam.Pipeline(options=options) as p:
        rows = p | beam.Create([beam.Row(study_instance_uid=uid) for uid in (one.study_instance_uid, "1.2.3")])
        outputs = rows | "Copy" >> external(expansion_service, "CopyInstances", source_credentials=credentials, **how)
        assert_that(outputs["good"] | beam.Map(lambda row: row.outcome), equal_to(["stored"] * 3), label="copied")
        told = outputs["failed"] | beam.Map(lambda row: (row.transform, row.study_instance_uid))
        assert_that(told, equal_to([("CopyInstances", "1.2.3")]), label="failed")
        nameless = p | "Nameless" >> beam.Create([beam.Row(person="Doe^Jane")])
        outputs = nameless | "CopyNameless" >> external(expansion_service, "CopyInstances", **how)
        told = outputs["failed"] | "Tell" >> beam.Map(lambda row: row.element)
        assert_that(told, equal_to(["Row with person"]), label="nameless")
    assert len(bytes_of(folder)) == 3


def test_the_providers_are_the_transforms():
    assert set(doors.__all__) <= set(transforms.__all__)
