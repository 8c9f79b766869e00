"""What a container of Beam's does, without a container: becomes an SDK worker in this virtual environment.

A runner starts it for ``--environment_type=PROCESS``, with the addresses of its services. It asks for the options of
the pipeline, fetches the files that belong to it, and becomes the worker. Packages for the worker (``--setup_file``)
are not installed: it has those of this environment.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile

import grpc
from apache_beam.portability.api import (
    beam_artifact_api_pb2,
    beam_artifact_api_pb2_grpc,
    beam_provision_api_pb2,
    beam_provision_api_pb2_grpc,
    beam_runner_api_pb2,
    endpoints_pb2,
)
from google.protobuf import json_format, text_format

SECONDS = 60


def main() -> None:
    """Becomes the worker."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("id", "logging_endpoint", "artifact_endpoint", "provision_endpoint", "control_endpoint"):
        # A runner leaves out what the provision service says.
        parser.add_argument(f"--{name}", default="")
    arguments, _ = parser.parse_known_args()
    worker = (("worker_id", arguments.id),)
    with grpc.insecure_channel(arguments.provision_endpoint) as channel:
        provision = beam_provision_api_pb2_grpc.ProvisionServiceStub(channel)
        request = beam_provision_api_pb2.GetProvisionInfoRequest()
        info = provision.GetProvisionInfo(request, metadata=worker, timeout=SECONDS).info

    directory = tempfile.mkdtemp(prefix="worker-", dir=os.getcwd())
    staged = os.path.join(directory, "staged")
    os.mkdir(staged)
    with grpc.insecure_channel(info.artifact_endpoint.url or arguments.artifact_endpoint) as channel:
        artifacts = beam_artifact_api_pb2_grpc.ArtifactRetrievalServiceStub(channel)
        for artifact in info.dependencies:
            role = beam_runner_api_pb2.ArtifactStagingToRolePayload.FromString(artifact.role_payload)
            wanted = beam_artifact_api_pb2.GetArtifactRequest(artifact=artifact)
            with open(os.path.join(staged, os.path.basename(role.staged_name)), "wb") as file:
                for part in artifacts.GetArtifact(wanted, metadata=worker):
                    file.write(part.data)

    def descriptor(given: endpoints_pb2.ApiServiceDescriptor, default: str = "") -> str:
        service = endpoints_pb2.ApiServiceDescriptor(url=given.url or default)
        return str(text_format.MessageToString(service))

    environment = {
        **os.environ,
        "WORKER_ID": arguments.id,
        "PIPELINE_OPTIONS": json_format.MessageToJson(info.pipeline_options),
        "SEMI_PERSISTENT_DIRECTORY": directory,
        "RUNNER_CAPABILITIES": " ".join(info.runner_capabilities),
        "CONTROL_API_SERVICE_DESCRIPTOR": descriptor(info.control_endpoint, arguments.control_endpoint),
        "LOGGING_API_SERVICE_DESCRIPTOR": descriptor(info.logging_endpoint, arguments.logging_endpoint),
    }
    if info.status_endpoint.url:
        environment["STATUS_API_SERVICE_DESCRIPTOR"] = descriptor(info.status_endpoint)
    # The runner ends the process that it started.
    os.execve(sys.executable, [sys.executable, "-m", "apache_beam.runners.worker.sdk_worker_main"], environment)


if __name__ == "__main__":
    main()
