# A job as a Flex Template of Dataflow: the image of its workers, with the program that launches templates. So a job is
# started with exactly what its workers have. Build it in the folder of setup.py, after sdk.Dockerfile:
#
#     docker build -f pipelines/containers/flex_template.Dockerfile --build-arg JOB=transfer \
#         --build-arg SDK_IMAGE=REGISTRY/dicomweb-io-sdk:VERSION -t REGISTRY/dicomweb-io-transfer:VERSION .
ARG SDK_IMAGE
FROM ${SDK_IMAGE}

# Dataflow calls it by this path; the entry point stays that of a worker.
COPY --from=gcr.io/dataflow-templates-base/python311-template-launcher-base:flex_templates_base_image_release_20240628_RC00 \
    /opt/google/dataflow/python_template_launcher /opt/google/dataflow/python_template_launcher

ARG JOB=transfer
COPY pipelines/${JOB}.py /template/job.py
RUN cd / && python /template/job.py --help > /dev/null

ENV FLEX_TEMPLATE_PYTHON_PY_FILE=/template/job.py
