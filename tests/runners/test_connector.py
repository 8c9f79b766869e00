"""The same pipeline on every local engine: search, retrieve, store, metadata and copy over HTTP."""

from __future__ import annotations

from pathlib import Path

import apache_beam as beam
import pytest
from apache_beam.internal import pickler
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.util import assert_that, equal_to
from requests.auth import HTTPBasicAuth

from dicomweb_io.clients.endpoint import Endpoint
from dicomweb_io.elements import Instance, Resource
from dicomweb_io.testing.samples import make_study
from dicomweb_io.transforms import (
    CopyInstances,
    ReadFromDICOMweb,
    RetrieveInstances,
    RetrieveMetadata,
    SearchForInstances,
    SearchForSeries,
    SearchForStudies,
    StoreInstances,
    WriteToDICOMweb,
)
from dicomweb_io.wire.credentials import (
    AWSSigV4,
    AzureCredentials,
    BasicCredentials,
    BearerToken,
    GoogleCredentials,
    OAuth2ClientCredentials,
)

ENGINES = {
    "in memory": ["--runner=FnApiRunner"],
    "two processes": ["--runner=FnApiRunner", "--direct_running_mode=multi_processing", "--direct_num_workers=2"],
    "portable": ["--runner=PortableRunner", "--job_endpoint=embed", "--environment_type=LOOPBACK"],
}


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    directory = tmp_path_factory.mktemp("archive")
    make_study(directory, studies=2, series=2, instances=6, size=300)
    return directory


def bytes_of(directory):
    return sorted(path.read_bytes() for path in Path(directory).rglob("*.dcm"))


@pytest.mark.parametrize("engine", ENGINES)
def test_the_same_pipeline_gives_the_same_on_every_engine(serve, archive, folder, tmp_path, engine):
    source, destination = serve(archive), serve(folder)
    copy = tmp_path / "copy"
    paths = sorted(archive.rglob("*.dcm"))
    references = [Instance.from_path(path).reference for path in paths]
    with beam.Pipeline(options=PipelineOptions(ENGINES[engine])) as p:
        studies = p | SearchForStudies(source.url)
        stored = studies | RetrieveInstances(source.url) | StoreInstances(destination.url)
        assert_that(stored.stored | beam.Map(lambda item: item.reference), equal_to(references), label="stored")
        metadata = studies | SearchForSeries(source.url) | RetrieveMetadata(source.url)
        assert_that(metadata | beam.Map(Resource.of), equal_to(references), label="metadata")
        copied = p | SearchForInstances(source.url) | CopyInstances(source.url, str(copy))
        assert_that(
            copied.stored | "C" >> beam.Map(lambda x: x.reference.level), equal_to(["instance"] * 24), label="copied"
        )
        lost = p | beam.Create([Resource("1.2.3")]) | "Lost" >> RetrieveInstances(source.url, failures="collect")
        assert_that(
            lost.failures | "L" >> beam.Map(lambda x: x.reference.uri), equal_to(["studies/1.2.3"]), label="lost"
        )
    assert bytes_of(folder) == bytes_of(copy) == bytes_of(archive)


CREDENTIALS = {
    "none": None,
    "basic by variable": BasicCredentials("me", password_env="PACS_PASSWORD"),
    "basic literal": BasicCredentials("me", "literal-secret"),
    "token by file": BearerToken(file="/run/secrets/token"),
    "token literal": BearerToken("literal-secret"),
    "oauth2": OAuth2ClientCredentials("https://login.example/token", "me", client_secret_env="SECRET"),
    "google": GoogleCredentials(),
    "azure": AzureCredentials(),
    "aws": AWSSigV4("eu-central-1"),
    "requests": HTTPBasicAuth("me", "literal-secret"),
}


@pytest.mark.parametrize("name", CREDENTIALS)
def test_every_transform_pickles_with_every_kind_of_credentials(name):
    endpoint = Endpoint("https://pacs.example/rs", credentials=CREDENTIALS[name], headers={"X-Key": "header-secret"})
    made = [
        SearchForStudies(endpoint, {"Modality": "CT"}),
        SearchForSeries(endpoint),
        SearchForInstances(endpoint, distinct=True),
        RetrieveInstances(endpoint, media_types=("application/dicom",)),
        RetrieveMetadata(endpoint),
        StoreInstances(endpoint, on_existing="skip"),
        WriteToDICOMweb(endpoint),
        CopyInstances(endpoint, endpoint),
        ReadFromDICOMweb(endpoint),
    ]
    for transform in made:
        copy = pickler.loads(pickler.dumps(transform))
        assert type(copy) is type(transform)
        assert copy.endpoint.url == endpoint.url
        assert repr(copy.endpoint) == repr(endpoint)
        shown = repr(copy.endpoint) + repr(copy.display_data()) + repr(copy)
        assert "literal-secret" not in shown
        assert "header-secret" not in shown
