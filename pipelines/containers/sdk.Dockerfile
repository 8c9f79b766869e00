# The image in which workers run the steps: this package, what it needs, and the program of Beam that starts workers.
# Build it in the folder of setup.py:
#
#     docker build -f pipelines/containers/sdk.Dockerfile -t REGISTRY/dicomweb-io-sdk:VERSION .
#
# It is used with --sdk_container_image=… on Dataflow, and with --environment_type=DOCKER --environment_config=… on other
# runners. The Python that starts a job must have the version of the image's.
FROM python:3.11.13-slim-bookworm

# The version of Beam is that of the requirements.
COPY --from=apache/beam_python3.11_sdk:2.77.0 /opt/apache/beam /opt/apache/beam

WORKDIR /opt/dicomweb_io
COPY pipelines/containers/requirements-3.11.txt ./
RUN pip install --no-cache-dir -r requirements-3.11.txt

COPY setup.py pyproject.toml README.md ./
COPY dicomweb_io ./dicomweb_io
COPY pipelines ./pipelines
# The requirements have what a build needs, so that nothing else is downloaded.
RUN pip install --no-cache-dir --no-deps --no-build-isolation .
RUN pip check
RUN cd / && python -c "import dicomweb_io.transforms, gcsfs, pipelines.transfer"

ENTRYPOINT ["/opt/apache/beam/boot"]
