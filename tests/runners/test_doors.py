"""The doors for Beam YAML and for other languages: the provider file, the example, and Python's expansion service."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import apache_beam as beam
import pytest
import yaml
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms.external import ExternalTransform, ImplicitSchemaPayloadBuilder
from apache_beam.yaml import yaml_provider
from apache_beam.yaml.yaml_transform import YamlTransform

from dicomweb_io import transforms
from dicomweb_io.elements import Instance, Resource
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


def test_the_example_runs(serve, archive, folder, tmp_path):
    server = serve(archive)
    variables = {
        "providers": str(PROVIDERS),
        "source": server.url,
        "destination": str(folder),
        "list": str(tmp_path / "studies"),
    }
    command = [sys.executable, "-m", "apache_beam.yaml.main", "--runner=FnApiRunner"]
    command += [f"--yaml_pipeline_file={ROOT / 'docs/examples/copy_ct.yaml'}"]
    command += [f"--jinja_variables={json.dumps(variables)}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, env={**os.environ})
    assert done.returncode == 0, done.stderr[-3000:]
    assert bytes_of(folder) == bytes_of(archive)
    lines = [json.loads(line) for path in tmp_path.glob("studies*") for line in path.read_text().splitlines()]
    studies = {Instance.from_path(path).reference.study_instance_uid for path in archive.rglob("*.dcm")}
    assert {line["StudyInstanceUID"] for line in lines} == studies


def chain(*steps):
    """A chain of transforms in YAML with the providers."""
    return yaml.safe_dump({"type": "chain", "transforms": list(steps)})


def test_search_and_copy_in_yaml(archive, folder):
    providers = yaml_provider.parse_providers(str(PROVIDERS), yaml.safe_load(PROVIDERS.read_text()))
    with beam.Pipeline(runner="FnApiRunner") as p:
        copied = p | YamlTransform(
            chain(
                {"type": "SearchForSeries", "config": {"endpoint": str(archive), "limit": 1}},
                {"type": "CopyInstances", "config": {"source": str(archive), "destination": str(folder)}},
            ),
            providers=providers,
        )
        assert_that(copied | beam.Map(lambda row: row.outcome), equal_to(["stored"] * 3))
    assert len(bytes_of(folder)) == 3


def test_failures_are_rows(archive):
    with beam.Pipeline(runner="FnApiRunner") as p:
        uids = {"StudyInstanceUID": "1.2.3", "SeriesInstanceUID": "1.2.3.4", "SOPInstanceUID": "1.2.3.4.5"}
        rows = p | beam.Create([beam.Row(**uids)])
        outputs = rows | doors.CopyInstances(str(archive), str(archive) + "-none", error_handling={"output": "failed"})
        told = outputs["failed"] | beam.Map(lambda row: (row.transform, row.study_instance_uid))
        assert_that(told, equal_to([("CopyInstances", "1.2.3")]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"token_env": "T", "google": True}, "one way to authenticate"),
        ({"user": "me"}, "user needs password_env"),
        ({"error_handling": {}}, "needs the name of an output"),
        ({"search_filters": {"Modalit": "CT"}}, "Modalit"),
        ({"columns": ["Nonsense"]}, "Nonsense"),
    ],
)
def test_wrong_parameters_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        doors.SearchForStudies("https://pacs.example/rs", **arguments)


def test_what_rows_name():
    row = beam.Row(study_instance_uid="1.2", series_instance_uid=None)
    assert doors.reference_of_row(row) == Resource("1.2")
    series = {"StudyInstanceUID": "1.2", "SeriesInstanceUID": "1.3"}
    assert doors.reference_of_row(series) == doors.query_of_row(series) == Resource("1.2", "1.3")
    frames = {"study_instance_uid": "1.2", "series_instance_uid": "1.3", "sop_instance_uid": "1.4", "frames": [2, 1]}
    assert doors.reference_of_row(frames) == Resource("1.2", "1.3", "1.4", (2, 1))
    for missing in ({"SOPInstanceUID": None}, {"SOPInstanceUID": ""}, {"SeriesInstanceUID": None}):
        with pytest.raises(ValueError, match="valid UID: ''"):
            doors.reference_of_row(series | missing)
    query = beam.Row(AccessionNumber=17, PatientID=None, StudyDate=float("nan"), Modality="")
    assert doors.query_of_row(query) == {"AccessionNumber": "17", "Modality": ""}
    assert doors.storable_of_row(beam.Row(content=None, path="/a")) == "/a"
    assert doors.storable_of_row(beam.Row(content=b"x", path=None)) == b"x"
    for function in (doors.reference_of_row, doors.storable_of_row):
        with pytest.raises(ValueError, match="has other"):
            function(beam.Row(other=1))


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


def test_the_providers_are_the_transforms():
    assert set(doors.__all__) <= set(transforms.__all__)
