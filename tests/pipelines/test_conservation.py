"""Conservation under load: large transfers in which one request of twenty goes wrong, by the numbers of both ends."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest
import requests

from dicomweb_io.testing.faults import FaultPlan, fault
from dicomweb_io.testing.samples import make_study
from dicomweb_io.transforms.metrics import TALLY
from pipelines.transfer import main
from tests.faults.bench import tiny_image

SHARE = 0.05
SEEDS = (20, 21)
PARTS = ("transferred", "already_there", "duplicate", "ignored", "failed", "not_tried")
TRAFFIC = ("requests", "retries", "stored", "exists")

# Above HTTP and below it: what ends well if it is tried again. Each strikes its part of all requests, or of those that
# it can strike at all, by numbers that come from the seed alone.
ANY = [
    ("status", {"status": 429}),
    ("status", {"status": 500}),
    ("status", {"status": 503, "retry_after": 0}),
    ("status", {"status": 504}),
    ("reset", {"at": "request"}),
    ("reset", {"at": "answer"}),  # a store is done, and nobody hears of it
    ("reset", {"at": "header", "position": 20}),
    ("reset", {"at": "body", "position": 7}),
    ("truncate", {"at": "body", "position": 11}),
    ("close_after", {}),
]
RETRIEVES = [("missing_closing_boundary", {}), ("cut_part", {})]


def plan(seed, kinds=ANY, method=None):
    return [
        fault(action, method=method, times=None, probability=SHARE / len(kinds), seed=seed * 100 + number, **options)
        for number, (action, options) in enumerate(kinds)
    ]


def struck(server):
    """How often each kind has struck, by action and place."""
    found = Counter()
    for layer in (server.faults, server.proxy.faults):
        for one, times in zip(layer._faults, layer.struck, strict=True):
            found[one.action, one.options.get("at", one.options.get("status"))] += times
    return found


def transfer(source, destination, tmp_path, capsys):
    """Runs the job; gives its exit code, its summary, what it printed and its traffic."""
    summary = tmp_path / "summary.json"
    before = TALLY.snapshot()
    code = main(["--source", str(source), "--destination", str(destination), "--summary", str(summary)])
    after = TALLY.snapshot()
    traffic = {name: after.get(name, 0) - before.get(name, 0) for name in TRAFFIC}
    return code, json.loads(summary.read_text()), capsys.readouterr().err, traffic


def contents(directory):
    """Digests of all files, whatever they are called: each instance must be there once."""
    return Counter(hashlib.sha256(path.read_bytes()).digest() for path in Path(directory).rglob("*") if path.is_file())


def check_summary(numbers, printed, count, size, code):
    # What is found after a refusal, when an answer was lost before, counts as there: its content is not proven.
    found_there = numbers["already_there"]
    assert {name: numbers[name] for name in ("found", *PARTS)} == {
        **dict.fromkeys(PARTS, 0),
        "found": count,
        "transferred": count - found_there,
        "already_there": found_there,
    }
    assert found_there <= count / 100
    assert numbers["search_failures"] == 0
    assert numbers["reasons"] == {}
    assert size * (1 - found_there / count) == pytest.approx(numbers["bytes"], rel=0.001)
    assert code == 0
    assert f"found          {count:>10,}" in printed
    assert f"transferred    {count - found_there:>10,}" in printed
    assert f"failed         {0:>10,}" in printed
    assert "Everything is at the destination." in printed


def kept_back(server):
    """The least and the most requests that the proxy kept from the server, from the seeds alone.

    Of several faults that strike one request one is played, so those that were struck together are uncertain.
    """
    played = server.proxy.faults
    again = FaultPlan(played._faults)
    least = maximum = 0
    for _ in range(max(played._seen.values())):
        actions = [(one.action, one.options.get("at")) for one in again.strike("GET", "/")]
        if ("reset", "request") in actions:
            maximum += 1
            least += len(actions) == 1
        # A request on a connection that is just being closed may be lost too.
        maximum += ("close_after", None) in actions
    return least, maximum


def check_records(server, traffic):
    """The job's traffic and the server's own notes are the same, apart from what the proxy kept from the server."""
    records = list(server.records.settled(60))
    hits = struck(server)
    share = sum(hits.values()) / len(records)
    assert SHARE / 2 < share < SHARE * 2, f"{share:.1%} of the requests were struck"
    least, maximum = kept_back(server)
    assert least <= traffic["requests"] - len(records) <= maximum
    return records, hits


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS[:1])
def test_ten_thousand_instances_from_a_folder(serve, tmp_path, capsys, seed):
    """All arrive once and identical, and the summary says what the server has noted."""
    count = 10_000
    # Many small series make many requests: what is whole is one.
    paths = make_study(tmp_path / "source", studies=20, series=50, instances=count // 1000, template=tiny_image())
    originals = contents(tmp_path / "source")
    size = sum(path.stat().st_size for path in paths)
    assert len(originals) == count
    server = serve(tmp_path / "archive", faults=plan(seed), proxy=True)
    print(f"seed {seed}")

    code, numbers, printed, traffic = transfer(tmp_path / "source", server.url, tmp_path, capsys)
    print(f"seed {seed}: {numbers}, {traffic}, {dict(struck(server))}")
    check_summary(numbers, printed, count, size, code)
    assert contents(tmp_path / "archive") == originals

    records, hits = check_records(server, traffic)
    assert all(hits.values()), f"some faults never struck: {hits}"
    stores = [record for record in records if record.method == "POST" and record.status == 200]
    assert sum(record.bytes_in for record in stores) >= size
    assert traffic["stored"] + traffic["exists"] == count
    assert traffic["retries"] >= hits["reset", "answer"]
    server.clear_faults()
    assert requests.get(f"{server.url}/instances/count", timeout=60).json()["count"] == count

    # What the server holds is all that a second run finds, and it moves nothing.
    received = len(server.records.of("POST"))
    code, again, printed, _ = transfer(tmp_path / "source", server.url, tmp_path, capsys)
    assert (code, again["already_there"], again["transferred"], again["bytes"]) == (0, count, 0, 0)
    assert len(server.records.of("POST")) == received
    assert contents(tmp_path / "archive") == originals


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
def test_two_thousand_instances_from_server_to_server(serve, tmp_path, capsys, seed):
    """Faults at both ends, in searches, retrieves and stores."""
    count = 2_000
    paths = make_study(tmp_path / "source", studies=10, series=40, instances=count // 400, template=tiny_image())
    originals = contents(tmp_path / "source")
    size = sum(path.stat().st_size for path in paths)
    source = serve(tmp_path / "source", faults=[*plan(seed, ANY), *plan(seed + 1, RETRIEVES, "GET")], proxy=True)
    destination = serve(tmp_path / "archive", faults=plan(seed + 2), proxy=True)

    code, numbers, printed, traffic = transfer(source.url, destination.url, tmp_path, capsys)
    print(f"seed {seed}: {numbers}, {traffic}, {dict(struck(source))}, {dict(struck(destination))}")
    check_summary(numbers, printed, count, size, code)
    assert contents(tmp_path / "archive") == originals
    records = [*source.records.settled(60), *destination.records.settled(60)]
    bounds = kept_back(source), kept_back(destination)
    # Before the pipeline starts, each server is asked once whether it is there. These requests may be kept back, too.
    before = [record for record in records if record.path.endswith("/studies") and record.query == "limit=1"]
    unseen = traffic["requests"] - (len(records) - len(before))
    assert sum(least for least, _ in bounds) - 2 <= unseen <= sum(maximum for _, maximum in bounds)
    assert traffic["stored"] + traffic["exists"] == count
