"""The graphs of the jobs as Dataflow would get them: built by its runner, without network and without an account."""

from __future__ import annotations

import json
import re
import shlex
import socket
from itertools import pairwise
from pathlib import Path
from typing import Any

import fsspec
import pytest
from apache_beam.portability.api import beam_runner_api_pb2
from apache_beam.runners.dataflow.dataflow_runner import DataflowRunner
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from fsspec.implementations.memory import MemoryFileSystem
from google.cloud.dataflow_v1beta3.types import TemplateMetadata

from pipelines import export_metadata, reconcile, transfer, watch
from tests.pipelines.write_metadata import FOLDER, TEMPLATES, metadata

CLOUD = ["--runner=DataflowRunner", "--dry_run=True", "--project=project-1", "--region=europe-west1"]
CLOUD += ["--temp_location=gs://bucket-1/temp"]
SOURCE, DESTINATION = "--source=https://a.invalid/dicom-web", "--destination=https://b.invalid/dicom-web"
OUTPUT, TABLE = "--output=gs://bucket-1/differences.jsonl", "--out=gs://bucket-1/table.parquet"
BUCKETS = ["--source=gs://bucket-1/from", "--destination=gs://bucket-1/to"]
JOBS = {
    "transfer": (transfer, [SOURCE, DESTINATION, "--failures=gs://bucket-1/failures.jsonl"]),
    "transfer of folders": (transfer, BUCKETS),
    "reconcile": (reconcile, [SOURCE, DESTINATION, OUTPUT]),
    "export_metadata": (export_metadata, [SOURCE, TABLE, "--full"]),
    "export_metadata of everything": (export_metadata, [SOURCE, TABLE, "--columns=all"]),
}
THERE = {word.partition("=")[0] for word in CLOUD}
FILES = {"--metadata-file"}
STEPS = {"impulse", "pardo", "group_by_key", "flatten", "reshuffle", "combine_grouped_values", "window_into"}
"""What the steps of our graphs may be: all of it runs on the workers of Dataflow's Runner v2."""
MOST_BYTES = 150_000
"""A graph has about 60,000; Dataflow takes 10 MB."""


class Bucket(MemoryFileSystem):
    """A filesystem that workers elsewhere reach, as far as a job can tell."""

    protocol = "bucket"

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return "/" + path.removeprefix("bucket://").strip("/")


@pytest.fixture
def graph_of(monkeypatch, tmp_path):
    """Builds the graph of a job; a connection to anywhere is an error."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    coding = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    account = {
        "type": "service_account",
        "client_email": "worker@project-1.invalid",
        "token_uri": "https://token.invalid",
        "private_key": key.private_bytes(*coding).decode(),
    }
    (tmp_path / "account.json").write_text(json.dumps(account))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "account.json"))
    asked = []

    def connect(this, address):
        asked.append(address)
        raise ConnectionRefusedError(f"{address}: there is no network")

    monkeypatch.setattr(socket.socket, "connect", connect)
    built = []
    run_pipeline = DataflowRunner.run_pipeline

    def run(*args: Any, **options: Any) -> Any:
        result = run_pipeline(*args, **options)
        built.append(result.job.proto_pipeline)
        return result

    monkeypatch.setattr(DataflowRunner, "run_pipeline", run)

    def graph_of(job, *arguments):
        built.clear()
        assert job.main([*arguments, *CLOUD]) == 0
        assert asked == []
        (graph,) = built
        return graph

    return graph_of


def steps_of(graph):
    return [step for step in graph.components.transforms.values() if step.spec.urn and not step.subtransforms]


@pytest.mark.parametrize("name", JOBS)
def test_a_graph_asks_for_nothing_that_dataflow_lacks_and_is_small(graph_of, name):
    job, arguments = JOBS[name]
    graph = graph_of(job, *arguments)
    assert set(graph.requirements) <= {"beam:requirement:pardo:splittable_dofn:v1"}
    assert {environment.urn for environment in graph.components.environments.values()} == {"beam:env:docker:v1"}
    kinds = {step.spec.urn for step in steps_of(graph)}
    assert kinds <= {f"beam:transform:{kind}:v1" for kind in STEPS}
    pardos = [step for step in steps_of(graph) if step.spec.urn == "beam:transform:pardo:v1"]
    payloads = [beam_runner_api_pb2.ParDoPayload.FromString(step.spec.payload) for step in pardos]
    assert not any(payload.state_specs or payload.timer_family_specs for payload in payloads)
    assert 20 < len(graph.components.transforms) < 150
    assert graph.ByteSize() < MOST_BYTES


@pytest.mark.parametrize("name", ["transfer", "reconcile", "export_metadata"])
def test_a_list_is_no_part_of_the_graph(graph_of, name):
    """It has the same size with 10 lines and with 20,000."""
    fsspec.register_implementation("bucket", Bucket, clobber=True)
    job, arguments = JOBS[name]
    sizes = []
    for lines in (10, 20_000):
        with fsspec.open("bucket://list.csv", "w") as file:
            file.writelines(["StudyInstanceUID\n", *(f"1.2.840.99999.{number}\n" for number in range(lines))])
        sizes.append(graph_of(job, *arguments, "--input=bucket://list.csv").ByteSize())
    assert max(sizes) - min(sizes) < 200
    assert max(sizes) < MOST_BYTES


def test_a_watch_is_refused(capsys):
    assert watch.main([SOURCE, DESTINATION, "--cursor=gs://bucket-1/cursor", *CLOUD]) == 2
    assert "in rounds on this machine" in capsys.readouterr().err


@pytest.mark.parametrize("job", TEMPLATES)
def test_dataflow_knows_the_fields_of_the_metadata(job):
    text = Path(FOLDER / f"{job}.json").read_text(encoding="utf-8")
    known = TemplateMetadata.from_json(text)
    assert [item.name for item in known.parameters] == [item["name"] for item in json.loads(text)["parameters"]]
    assert all(item.label and item.help_text and item.param_type for item in known.parameters)


def blocks():
    text = (Path(__file__).parents[2] / "docs/runners/dataflow.md").read_text(encoding="utf-8")
    commands = [
        block.replace("\\\n", " ") for block in re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    ]
    return [shlex.split(line) for block in commands for line in block.splitlines()]


def test_the_commands_of_the_document_fit(graph_of):
    """The job's graph is built, what images are built of is there, and templates take the parameters."""
    programs = [command[0] for command in blocks()]
    assert programs == ["docker", "docker", "pip", "python", "docker", "docker", "gcloud", "gcloud"]
    for command in blocks():
        if command[0] == "python":
            module = {"pipelines.transfer": transfer}[command[2]]
            graph_of(module, *[word for word in command[3:] if word.partition("=")[0] not in THERE])
        files = [word.partition("=")[2] for word in command if word.partition("=")[0] in FILES]
        files += [following for word, following in pairwise(command) if word == "-f"]
        assert all((Path(__file__).parents[2] / file).exists() for file in files), command
        if "run" in command:
            (given, *_) = [word.split("=", 1)[1] for word in command if word.startswith("--parameters=")]
            names = {pair.partition("=")[0] for pair in given.split(",")}
            assert names <= {item["name"] for item in json.loads(metadata("transfer"))["parameters"]}
