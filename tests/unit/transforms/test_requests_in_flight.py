"""The numbers of "Requests in flight and memory" in docs/transforms.md: workers times what each process may do."""

from __future__ import annotations

import os
import re
import threading
import time

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from dicomweb_io.elements import Resource
from dicomweb_io.endpoint import Endpoint
from dicomweb_io.http.settings import Limits
from dicomweb_io.pool import shared_client
from dicomweb_io.transforms import CopyInstances, RetrieveInstances
from tests.answering import Reply
from tests.unit.files.making import make_bytes

IN_FLIGHT, WORKERS, LANES = 3, 2, 1
PART = 100_000
BUDGET = 3 * PART
TWO_PROCESSES = ["--direct_running_mode=multi_processing", f"--direct_num_workers={WORKERS}"]

REFERENCES = [Resource("1.2", f"1.2.{number}", f"1.2.{number}.1") for number in range(10, 34)]
"""Each in a series of its own, so that each is a request."""


class Counted:
    """Answers requests for instances and for stores, and knows how many it had at once."""

    def __init__(self):
        self.now = self.most = 0
        self.lock = threading.Lock()

    def __call__(self, request):
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            # So long that others arrive meanwhile, if they are sent.
            time.sleep(0.05)
            return self.reply(request)
        finally:
            with self.lock:
                self.now -= 1

    def reply(self, request):
        method, path = request.line.split()[:2]
        parts = path.partition("?")[0].split("/")
        if method == "POST":
            stored = {found.decode() for found in re.findall(rb"1\.2\.[0-9][0-9]\.1", request.body)}
            items = [{"00081155": {"vr": "UI", "Value": [uid]}} for uid in sorted(stored)]
            return Reply.json({"00081199": {"vr": "SQ", "Value": items}})
        if parts[-2] != "instances":
            return Reply.json([])
        study, series, instance = parts[-5::2]
        return Reply.multipart([make_bytes(study, series, instance, EncapsulatedDocument=bytes(PART))])


def held(instance, endpoint):
    """The process, and the bytes that its pool has in use while an instance is taken."""
    lease = shared_client(endpoint)
    try:
        return f"{os.getpid()} {lease.pool.bytes_in_use}"
    finally:
        lease.close()


def pipeline():
    return beam.Pipeline(options=PipelineOptions(["--runner=FnApiRunner", *TWO_PROCESSES]))


def test_retrieves_of_two_processes_keep_to_twice_the_limit_and_to_their_budgets(answering, tmp_path):
    counted = Counted()
    endpoint = Endpoint(answering(counted).url, limits=Limits(max_in_flight=IN_FLIGHT))
    with pipeline() as p:
        instances = p | beam.Create(REFERENCES) | RetrieveInstances(endpoint, max_bytes=BUDGET)
        _ = instances | beam.Map(held, endpoint) | beam.io.WriteToText(str(tmp_path / "held"))
    lines = [line for path in tmp_path.glob("held*") for line in path.read_text().splitlines()]
    assert len(lines) == len(REFERENCES)
    assert counted.most <= WORKERS * (IN_FLIGHT + LANES)
    assert max(int(line.split()[1]) for line in lines) <= BUDGET + LANES * (PART + 4096)


@pytest.mark.parametrize("at_the_source", [2, 3])
def test_copies_keep_to_the_limits_of_source_and_destination(answering, at_the_source):
    source, destination = Counted(), Counted()
    one = Endpoint(answering(source).url, limits=Limits(max_in_flight=at_the_source))
    other = Endpoint(answering(destination).url, limits=Limits(max_in_flight=1))
    with pipeline() as p:
        copied = p | beam.Create(REFERENCES) | CopyInstances(one, other, failures="collect")
        _ = copied.failures | beam.Map(fail)
    assert source.most <= WORKERS * (at_the_source + LANES)
    assert destination.most <= WORKERS * (1 + LANES)


def fail(failure):
    raise AssertionError(failure)
