"""Search, retrieve, store and copy in every combination, with the narrowest limits: all of it ends, and limits hold.

One throttle and one budget serve a process and an endpoint, whatever the purpose, so that each step of a chain may wait
for what another step of the same chain holds. A watchdog ends what hangs; nothing here depends on how long things take.
"""

from __future__ import annotations

import faulthandler
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import apache_beam as beam
import pytest
from apache_beam.testing.util import assert_that, equal_to

from dicomweb_io.elements import Resource, StoredInstance
from dicomweb_io.endpoint import Endpoint
from dicomweb_io.http.settings import Limits
from dicomweb_io.testing import serve
from dicomweb_io.testing.samples import make_study
from dicomweb_io.transforms import (
    CopyInstances,
    RetrieveBulkdata,
    RetrieveFrames,
    RetrieveInstances,
    RetrieveMetadata,
    RetrieveRendered,
    SearchForInstances,
    SearchForSeries,
    SearchForStudies,
    StoreInstances,
)

PATIENCE = 180
STUDIES, SERIES, INSTANCES = 2, 3, 8
LANES = 8
"""More lanes than any pipeline here opens: answers that wait for their reader are with the server still."""


def ends(*works, patience=PATIENCE):
    """Does some things in threads of their own and fails, with all threads' stacks, if one does not end."""
    errors = []

    def run(work):
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(patience)
        if thread.is_alive():
            faulthandler.dump_traceback(sys.__stderr__)
            pytest.fail("it hangs")
    if errors:
        raise errors[0]


def most_at_once(server):
    """The largest number of requests that a server worked on at the same time."""
    events = []
    for record in server.records.settled():
        events += [(record.started, 1), (record.ended, -1)]
    now = maximum = 0
    for _, change in sorted(events):
        now += change
        maximum = max(maximum, now)
    return maximum


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """A server that holds a few small series, and another one."""
    directory = tmp_path_factory.mktemp("archives")
    files = make_study(directory / "files", studies=STUDIES, series=SERIES, instances=INSTANCES, size=20_000)
    for name in ("first", "second"):
        (directory / name).mkdir()
    with serve(directory / "first") as first, serve(directory / "second") as second:
        with Endpoint(first.url).connect() as client:
            client.store_instances([str(path) for path in files])
        yield first, second
        assert not first.errors + second.errors


@pytest.fixture
def archives(running):
    """Both servers, with no request noted."""
    for server in running:
        server.records.settled().clear()
    return running


# Chains of transforms -------------------------------------------------------------------------------------------------

TINY, AMPLE = 1, 256 * 1024 * 1024


def _retrieve_store(source, target, cut, budget):
    found = SearchForSeries(source) | RetrieveInstances(source, max_bytes=budget)
    return found | cut | StoreInstances(target) | "Both" >> beam.Flatten()


def _copy(source, target, cut, budget):
    found = SearchForInstances(source) | cut
    return found | CopyInstances(source, target, on_existing="server") | "Both" >> beam.Flatten()


def _retrieve_copy(source, target, cut, budget):
    found = SearchForSeries(source) | RetrieveInstances(source, max_bytes=budget)
    references = found | cut | beam.Map(lambda instance: instance.reference)
    return references | CopyInstances(source, target, on_existing="server") | "Both" >> beam.Flatten()


def _metadata_frames(source, target, cut, budget):
    rows = SearchForStudies(source) | RetrieveMetadata(source, max_bytes=budget)
    return rows | cut | RetrieveFrames(target, max_bytes=budget)


def _metadata_searches(source, target, cut, budget):
    rows = SearchForStudies(source) | RetrieveMetadata(source, max_bytes=budget)
    return rows | "Again" >> SearchForInstances(target) | cut | "Rows" >> RetrieveMetadata(source, max_bytes=budget)


CHAINS = {
    ("retrieve and store", "itself"): _retrieve_store,
    ("retrieve and store", "another"): _retrieve_store,
    ("copy", "itself"): _copy,
    ("copy", "another"): _copy,
    ("retrieve and copy", "itself"): _retrieve_copy,
    ("retrieve and copy", "another"): _retrieve_copy,
    ("metadata and frames", "itself"): _metadata_frames,
    ("metadata and searches", "itself"): _metadata_searches,
}
CUTS = {"one stage": beam.Map(lambda element: element), "two stages": beam.Reshuffle()}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize(
    ("in_flight", "budget"), [(1, TINY), (2, TINY), (1, AMPLE)], ids=["1-tiny", "2-tiny", "1-ample"]
)
@pytest.mark.parametrize(("chain", "where"), CHAINS)
def test_a_chain_ends_and_keeps_the_limits(archives, chain, where, in_flight, budget, cut):
    first, second = (Endpoint(server.url, limits=Limits(in_flight)) for server in archives)
    target = first if where == "itself" else second

    def work():
        with beam.Pipeline(runner="FnApiRunner") as p:
            results = p | CHAINS[chain, where](first, target, "Cut" >> CUTS[cut], budget)
            assert_that(results | beam.combiners.Count.Globally(), equal_to([STUDIES * SERIES * INSTANCES]))

    ends(work)
    for server in archives:
        assert most_at_once(server) <= in_flight + LANES


@pytest.mark.parametrize("where", ["itself", "another"])
def test_search_retrieve_and_store_end_with_their_defaults(archives, where):
    first, second = archives
    target = (first if where == "itself" else second).url

    def work():
        with beam.Pipeline(runner="FnApiRunner") as p:
            results = p | SearchForSeries(first.url) | RetrieveInstances(first.url) | StoreInstances(target)
            assert_that(results.stored | beam.combiners.Count.Globally(), equal_to([STUDIES * SERIES * INSTANCES]))

    ends(work)


@pytest.mark.slow
@pytest.mark.parametrize(
    "retrieve",
    [RetrieveFrames, lambda url: RetrieveRendered(url, media_types=["image/png"]), RetrieveBulkdata],
    ids=["frames", "rendered", "bulk data"],
)
def test_large_studies_go_through_two_retrieves_with_their_defaults(retrieve, many_instances):
    """More metadata than may wait at once, of more studies than may be asked for at once."""
    studies, instances, url = many_instances

    def work():
        with beam.Pipeline(runner="FnApiRunner") as p:
            found = p | SearchForStudies(url) | RetrieveMetadata(url) | retrieve(url)
            assert_that(found | beam.combiners.Count.Globally(), equal_to([studies * instances]))

    ends(work, patience=900)


@pytest.fixture(scope="module")
def many_instances(tmp_path_factory):
    """Eight studies of a thousand instances, on a server."""
    directory = tmp_path_factory.mktemp("instances")
    make_study(directory, studies=8, instances=1000, size=100)
    with serve(directory) as server:
        yield 8, 1000, server.url


@pytest.mark.slow
def test_the_rows_of_a_large_page_are_searched_below_with_the_defaults(tmp_path):
    """Each row of a page that is still being read starts a search of its own."""
    studies = 6000
    make_study(tmp_path, studies=studies, instances=1, size=2)

    def work():
        with beam.Pipeline(runner="FnApiRunner") as p:
            found = p | SearchForStudies(server.url, page_size=5000) | SearchForSeries(server.url)
            assert_that(found | beam.combiners.Count.Globally(), equal_to([studies]))

    with serve(tmp_path) as server:
        ends(work, patience=900)


# Threads --------------------------------------------------------------------------------------------------------------


def clients_of(server, number, in_flight):
    """Clients of one endpoint: of one description, though each is an object of its own."""
    return [Endpoint(server.url, limits=Limits(in_flight)).connect() for _ in range(number)]


@pytest.mark.parametrize("in_flight", [1, 2])
def test_clients_in_several_threads_search_and_store(archives, in_flight):
    first, _ = archives
    clients = clients_of(first, 4, in_flight)
    [row] = clients[0].search_for_series(limit=1)
    series = Resource.of(row)
    contents = [instance.content for instance in clients[0].iter_instances(series)]

    def search(client):
        for _ in range(10):
            assert client.search_for_series(series.study_instance_uid)

    def store(client):
        for content in contents:
            client.store_instances([content])

    kinds = (search, store)
    ends(*(partial(kinds[number % 2], client) for number, client in enumerate(clients)))


@pytest.mark.parametrize("where", ["itself", "another"])
@pytest.mark.parametrize("in_flight", [1, 2])
def test_a_store_is_submitted_for_each_instance_of_open_iterators(archives, in_flight, where):
    """The iterators' answers are open while the stores are waited for, by other threads and by their own."""
    first, second = archives
    source, target = clients_of(first, 1, in_flight)[0], first if where == "itself" else second
    [receiver] = clients_of(target, 1, in_flight)
    series = [Resource.of(row) for row in source.search_for_series()]

    def copy(reference):
        with ThreadPoolExecutor(2) as executor:
            for number, instance in enumerate(source.iter_instances(reference)):
                if number % 2:
                    receiver.store_instances([instance.content])
                else:
                    executor.submit(receiver.store_instances, [instance.content]).result()

    ends(*(partial(copy, reference) for reference in series))


def test_archives_that_are_copied_into_each_other(archives):
    """Each copy reads from the archive that the other stores to, and each archive takes one request at a time."""
    clients = [clients_of(server, 1, 1)[0] for server in archives]
    series = [Resource.of(row) for row in clients[0].search_for_series()]
    for reference in series:
        clients[1].store_instances([instance.content for instance in clients[0].iter_instances(reference)])

    def copy(source, target, reference):
        for outcome in target.iter_store_instances(source.iter_instances(reference)):
            assert isinstance(outcome, StoredInstance)

    ends(*(partial(copy, *order, reference) for reference in series for order in (clients, clients[::-1])))


# Rates ----------------------------------------------------------------------------------------------------------------


def test_the_rate_holds_for_all_purposes_together(archives):
    first, _ = archives
    rate = 15
    endpoint = Endpoint(first.url, limits=Limits(requests_per_second=rate))
    begun = time.monotonic()

    def work():
        with beam.Pipeline(runner="FnApiRunner") as p:
            found = p | SearchForInstances(endpoint, page_size=8)
            rows = found | RetrieveMetadata(endpoint)
            stored = rows | RetrieveInstances(endpoint) | StoreInstances(endpoint)
            assert_that(stored.stored | beam.combiners.Count.Globally(), equal_to([STUDIES * SERIES * INSTANCES]))

    ends(work)
    times = sorted(record.started for record in first.records.settled())
    assert len(times) > 2 * rate, "too few requests to prove anything"
    # A second's worth may pass at once. A request may arrive late, never early.
    assert all(number <= rate + (moment - begun) * rate for number, moment in enumerate(times, 1))
