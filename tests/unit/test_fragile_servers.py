"""Servers that fail when requests overlap, that die, and that refuse the login: nothing is lost, and nothing crawls."""

from __future__ import annotations

import json
import socket
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from dicomweb_io.account import PARTS, exit_code, summary_lines
from dicomweb_io.cli import main as command_line
from dicomweb_io.copier import InstanceStorer
from dicomweb_io.elements import Instance, Resource, StoredInstance
from dicomweb_io.endpoint import Endpoint
from dicomweb_io.http.auth import BearerToken
from dicomweb_io.http.retry import RetryPolicy
from dicomweb_io.http.settings import Timeouts
from dicomweb_io.options import wanted_from
from dicomweb_io.queries import make_query
from dicomweb_io.testing.faults import fault
from dicomweb_io.testing.samples import make_study
from dicomweb_io.transfer import TransferJob, run_transfer

COUNT = 60
OVERLAPS = {
    "0110H": fault("refuse_instances", method="POST", overlapping=1, times=None),
    "409": fault("status", status=409, method="POST", overlapping=1, times=None),
    "500": fault("status", status=500, method="POST", overlapping=1, times=None),
    "503": fault("status", status=503, method="POST", overlapping=1, times=None),
    "404": fault(
        "status", status=404, method="GET", path="/instances/[0-9.]+$|/series/[0-9.]+$", overlapping=1, times=None
    ),
}


@pytest.fixture
def many(tmp_path):
    """A folder with sixty series of one instance each, which travel in separate requests."""
    make_study(tmp_path / "source", series=COUNT, instances=1, size=300)
    return tmp_path / "source"


def contents(folder):
    return sorted(path.read_bytes() for path in folder.rglob("*.dcm"))


def references_of(client):
    return [Resource.of(row) for row in client.iter_search(make_query("instance"))]


@pytest.mark.parametrize("refusal", ["0110H", "409", "500", "503"])
def test_stores_that_are_refused_when_they_overlap_all_arrive(serve, many, folder, refusal):
    server = serve(folder, faults=[OVERLAPS[refusal]])
    summary = run_transfer(TransferJob(Endpoint(str(many)), Endpoint(server.url)))
    assert (summary["transferred"], summary["failed"], summary["found"]) == (COUNT, 0, COUNT)
    assert contents(folder) == contents(many)
    assert server.faults.struck[0] > 0
    # Few are refused, because the limit stays low.
    assert len(server.records.of("POST")) < 1.7 * COUNT


def test_retrieves_that_are_lost_when_they_overlap_all_arrive(serve, many, folder):
    server = serve(many, faults=[OVERLAPS["404"]])
    summary = run_transfer(TransferJob(Endpoint(server.url), Endpoint(str(folder))))
    assert (summary["transferred"], summary["failed"], summary["found"]) == (COUNT, 0, COUNT)
    assert contents(folder) == contents(many)
    assert server.faults.struck[0] > 0


@pytest.mark.parametrize("refusal", ["0110H", "500"])
def test_a_plain_client_in_several_threads_stores_all(serve, many, folder, refusal):
    server = serve(folder, faults=[OVERLAPS[refusal]])
    with Endpoint(server.url).connect() as client, ThreadPoolExecutor(8) as threads:
        results = list(threads.map(lambda path: list(client.iter_store_instances([path])), many.rglob("*.dcm")))
    assert Counter(type(result) for one in results for result in one) == {StoredInstance: COUNT}
    assert contents(folder) == contents(many)


def test_a_plain_client_in_several_threads_retrieves_all(serve, many):
    server = serve(many, faults=[OVERLAPS["404"]])
    with Endpoint(server.url).connect() as client, ThreadPoolExecutor(8) as threads:
        references = references_of(client)
        got = list(threads.map(lambda one: next(iter(client.iter_instances(one))).read(), references))
    assert sorted(got) == contents(many)


@pytest.mark.parametrize(
    "refusal", [{"action": "refuse_instances"}, {"action": "status", "status": 409}, {"status": 500}]
)
def test_what_is_there_already_is_sent_once(serve, folder, tmp_path, refusal):
    """The profile is a guess by the address, which is that of an Orthanc; it does not permit to send things again."""
    make_study(folder, series=3, instances=50, size=300)
    make_study(tmp_path / "source", series=3, instances=50, size=300)
    server = serve(folder, faults=[fault(**{"action": "status", **refusal}, method="POST", times=None)])
    summary = run_transfer(TransferJob(Endpoint(str(tmp_path / "source")), Endpoint(server.url), on_existing="server"))
    assert (summary["found"], summary["failed"], summary["not_tried"]) == (150, 0, 0)
    assert len(server.records.of("POST")) == 3


# Dead servers ---------------------------------------------------------------------------------------------------------


def job(source, destination, tmp_path, *, outage=0.5, **options):
    failures = str(tmp_path / "failures.jsonl")
    ends = [Endpoint(str(end), timeouts=Timeouts(outage=outage)) for end in (source, destination)]
    return TransferJob(*ends, failures=failures, **options)


def lines_of(tmp_path):
    return [json.loads(line) for line in (tmp_path / "failures.jsonl").read_text().splitlines()]


@pytest.fixture
def dying(serve, folder):
    """A server that stops answering with its tenth store, for so many seconds."""

    def start(seconds):
        down = fault("down", method="POST", first=10, times=1, seconds=seconds)
        return serve(folder, faults=[down])

    return start


def test_what_is_left_when_a_server_dies_is_not_tried_and_a_later_run_does_it(dying, many, folder, tmp_path, serve):
    server = dying(3600)
    summary = run_transfer(job(many, server.url, tmp_path))
    assert summary["found"] == COUNT == sum(summary[part] for part in PARTS)
    assert summary["not_tried"] > 30
    assert exit_code(summary) == 1
    lines = lines_of(tmp_path)
    assert len(lines) == summary["not_tried"] + summary["failed"]
    assert sum(line["attempts"] == 0 and line["message"].startswith("not tried: ") for line in lines) > 30
    assert any("not tried" in line for line in summary_lines(summary, job(many, server.url, tmp_path)))

    (tmp_path / "failures.jsonl").rename(tmp_path / "list.jsonl")
    again = serve(folder)
    rest = run_transfer(job(many, again.url, tmp_path, wanted=wanted_from(str(tmp_path / "list.jsonl"))))
    assert rest["found"] == len(lines)
    assert exit_code(rest) == 0
    assert contents(folder) == contents(many)


def test_a_server_that_restarts_is_survived(dying, many, folder, tmp_path):
    server = dying(1.0)
    summary = run_transfer(job(many, server.url, tmp_path, outage=60))
    assert (summary["transferred"] + summary["already_there"], exit_code(summary)) == (COUNT, 0)
    assert contents(folder) == contents(many)


def test_a_server_that_never_answered_is_not_waited_for(many, tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{unused.getsockname()[1]}"
        summary = run_transfer(job(many, nowhere, tmp_path, outage=3600))
    assert summary["found"] == summary["not_tried"] == COUNT
    (reason,) = summary["reasons"]
    assert reason.startswith("not tried: ")


@pytest.mark.parametrize("status", [401, 403, 404])
def test_only_a_refused_login_ends_a_job(serve, many, folder, tmp_path, status):
    """A refusal concerns one object, unless it concerns who asks."""
    server = serve(
        folder, faults=[fault("status", status=status, method="POST", first=5, times=None if status == 401 else 1)]
    )
    summary = run_transfer(job(many, server.url, tmp_path), max_in_flight=1)
    assert summary["found"] == COUNT == sum(summary[part] for part in PARTS)
    if status == 401:
        assert (summary["transferred"], summary["failed"], summary["not_tried"]) == (4, 1, 55)
        assert len(server.records.of("POST")) == 5
    else:
        assert (summary["transferred"], summary["failed"], summary["not_tried"]) == (59, 1, 0)


@pytest.mark.parametrize("status", [502, 503, 504])
def test_a_job_ends_when_only_a_proxy_still_answers(serve, many, folder, tmp_path, status):
    server = serve(folder, faults=[fault("status", status=status, first=40, times=None)])
    ends = [
        Endpoint(str(many)),
        Endpoint(server.url, timeouts=Timeouts(outage=0.2), retry=RetryPolicy(initial_delay=0.05)),
    ]
    summary = run_transfer(TransferJob(*ends, failures=str(tmp_path / "failures.jsonl")))
    assert summary["found"] == COUNT == sum(summary[part] for part in PARTS)
    assert summary["transferred"] > 5
    assert summary["not_tried"] > 10
    assert len(lines_of(tmp_path)) == summary["not_tried"] + summary["failed"]


def test_one_kind_of_request_that_always_fails_ends_no_job(serve, many, folder):
    server = serve(folder, faults=[fault("status", status=503, method="POST", times=None)])
    endpoint = Endpoint(server.url, timeouts=Timeouts(outage=0.1), retry=RetryPolicy(initial_delay=0.02))
    summary = run_transfer(TransferJob(Endpoint(str(many)), endpoint))
    assert (summary["failed"], summary["not_tried"]) == (COUNT, 0)


def test_a_missing_secret_ends_a_job(serve, many, folder, tmp_path, monkeypatch):
    monkeypatch.delenv("NO_SUCH_TOKEN", raising=False)
    server = serve(folder)
    destination = Endpoint(server.url, BearerToken(env="NO_SUCH_TOKEN"))
    summary = run_transfer(TransferJob(Endpoint(str(many)), destination))
    assert summary["not_tried"] + summary["failed"] == COUNT == summary["found"]
    assert summary["failed"] <= 8
    assert len(server.records) == 0


def test_a_series_that_cannot_be_listed_is_asked_for_once(serve, folder, tmp_path):
    make_study(tmp_path / "source", instances=12, size=300)
    server = serve(folder, faults=[fault("status", status=400, method="GET", times=None)])
    with Endpoint(server.url).connect() as client:
        storer = InstanceStorer(client)
        for path in (tmp_path / "source").rglob("*.dcm"):
            assert storer.already_there(Instance.from_path(path).reference).status == 400
    assert len(server.records.of("GET")) < 5


def test_one_request_probes_a_server_that_is_down_and_the_others_wait(serve, folder):
    server = serve(folder, proxy=True)
    endpoint = Endpoint(server.url, timeouts=Timeouts(outage=60), retry=RetryPolicy.none())
    with endpoint.connect() as client, ThreadPoolExecutor(8) as threads:
        client.survive_outages(60)
        client.search_for_studies()
        before = client.stats.requests
        server.proxy.down(1.0)
        list(threads.map(lambda _: client.search_for_studies(), range(8)))
        # Eight searches; a few were on their way when it went down; and probes with growing waits.
        assert client.stats.requests - before < 8 + 8 + 8


@pytest.mark.parametrize("status", [401, 403, 404, 501])
def test_the_command_accounts_for_files_that_it_did_not_try(serve, many, folder, capsys, status):
    server = serve(folder, faults=[fault("status", status=status, method="POST", first=2, times=None)])
    assert command_line(["--url", server.url, "store", "instances", str(many)]) == 1
    printed = capsys.readouterr()
    outcomes = Counter(json.loads(line)["outcome"] for line in printed.out.splitlines())
    assert outcomes == {"stored": 50, "not tried": 10}
    assert f"HTTP {status}" in printed.err
    assert "60 files: 50 stored, 10 not tried" in printed.err
