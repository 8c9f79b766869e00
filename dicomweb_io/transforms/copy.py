"""Instances moved without their bytes being an element: `CopyInstances`, `DownloadInstances`, and what a job needs.

What moves together are instances of one series, an `InstanceGroup` (see `dicomweb_io.transforms.grouping`). Groups are
reshuffled, so that the work spreads, and each is moved by the transfer engine (`dicomweb_io.transfer`): one retrieve
for a whole series, store requests of many.

Around that a job has `MatchLines` and `ListExclusions`, which say what there is to copy, and
`WriteAccount`, `WriteCounts` and `WriteReport`, which report the result, counted from output collections.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain, repeat
from typing import Any, NamedTuple, cast

import apache_beam as beam
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.display import DisplayDataItem
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.timestamp import MIN_TIMESTAMP
from apache_beam.utils.windowed_value import WindowedValue

from dicomweb_io.account import REPORT, Account, Entry, failure_line
from dicomweb_io.client import DICOMClient, MediaTypes, OnExisting, Verify
from dicomweb_io.copier import CopyOptions, InstanceCopier, SeriesReader
from dicomweb_io.dicom.media_types import checked_media_types
from dicomweb_io.elements import Exclusion, Failure, Resource, SearchQuery, StoredInstance
from dicomweb_io.endpoint import Endpoint, EndpointLike
from dicomweb_io.files.store import Downloaded, InstanceDownloader
from dicomweb_io.listing import InstanceGroup, ListLine
from dicomweb_io.options import report_lines
from dicomweb_io.pool import Lease, Room, shared_client
from dicomweb_io.spool import MEMORY_THRESHOLD
from dicomweb_io.store_items import check_options
from dicomweb_io.transfer import TransferJob, excluded_files, match_line
from dicomweb_io.transforms._core import (
    FAILURES,
    BetweenArchives,
    DICOMwebTransform,
    FailureMode,
    PooledDoFn,
    ReferenceInput,
    Work,
    piped_by_member,
    report_lineage,
    warn_of_secrets,
)
from dicomweb_io.transforms.grouping import GroupInput, groups_of
from dicomweb_io.transforms.metrics import TALLY, count
from dicomweb_io.transforms.store import StoreResult, count_stored

# Copies ---------------------------------------------------------------------------------------------------------------


@beam.typehints.with_input_types(GroupInput)
class CopyInstances(DICOMwebTransform):
    """Copies instances from one archive to another, bytes unchanged; the core of the job `pipelines.transfer`.

    The input is any reference; studies and series are listed by a search, and retrieved series by series. Each instance
    has one result: a `StoredInstance`, or a `Failure`. What the destination has already is not moved again, so that a
    copy that was cut short can simply be started again.

    Args:
        source: The archive to copy from: an `Endpoint`, a URL or a path.
        destination: The archive to copy to.
        on_existing: ``"skip"`` leaves an instance whose UID the destination has; ``"server"`` sends it and leaves the
            decision to the destination; ``"replace"`` replaces the existing instance; ``"error"`` makes it a failure.
        verify: The evidence required: ``"response"``, ``"uid"`` or ``"content"``; see
            `dicomweb_io.copier.InstanceStorer`.
        media_types: Accepted encodings; by default the stored one.
        allow_transcoding: Take what the source re-encodes if it cannot give the original.
        spool_directory: Where larger instances wait on their way, on each worker.
        allow_other_patient: Copy into studies that the destination has under another PatientID too.
        dry_run: Say what would be copied (``outcome="planned"``), and retrieve and store nothing.
        failures: ``"raise"`` or ``"collect"``. See also `with_error_handler`.

    Returns:
        A `StoreResult`.
    """

    def __init__(
        self,
        source: EndpointLike,
        destination: EndpointLike,
        *,
        on_existing: OnExisting = "skip",
        verify: Verify = "response",
        media_types: MediaTypes | None = None,
        allow_transcoding: bool = False,
        spool_directory: str | None = None,
        allow_other_patient: bool = False,
        dry_run: bool = False,
        failures: FailureMode = "raise",
    ) -> None:
        super().__init__(source, failures=failures)
        check_options(on_existing, verify)
        self.destination = Endpoint.of(destination)
        types = checked_media_types("instances", media_types)
        places = (spool_directory, allow_other_patient, dry_run)
        self.options = CopyOptions(on_existing, verify, types, allow_transcoding, *places)

    def expand(self, pcollection: Any) -> Any:
        """Builds the steps."""
        listed = self.destination if self.options.on_existing == "skip" else None
        groups, failures = groups_of(self, pcollection, listed)
        copy = self._pooled(_Copy, pcollection, self.destination, self.options)
        copied = groups | "Reshuffle" >> beam.Reshuffle() | "Copy" >> self._step(copy, StoredInstance)
        warn_of_secrets(self, self.destination)
        return StoreResult(copied["main"], self._report([*failures, copied[FAILURES]]))

    def display_data(self) -> dict[str, Any]:
        """Both endpoints and the policies."""
        return {
            **super().display_data(),
            "destination": DisplayDataItem(self.destination.safe_url, label="Destination"),
            "on_existing": DisplayDataItem(self.options.on_existing, label="If it exists"),
            "verify": DisplayDataItem(self.options.verify, label="Verification"),
        }


class _Copy(BetweenArchives):
    """Copies groups: one task for each, one result for each instance."""

    def __init__(
        self, source: Endpoint, transform: str, destination: Endpoint, options: CopyOptions, **how: Any
    ) -> None:
        super().__init__(source, transform, destination, **how)
        self._options = options
        self._copier: InstanceCopier | None = None

    def setup(self) -> None:
        super().setup()
        source, destination = cast(Lease, self._lease).client, cast(Lease, self._receiver).client
        self._copier = InstanceCopier(source, destination, self._options, transform=self._transform)

    def teardown(self) -> None:
        # First what still runs is cancelled, then its files go.
        super().teardown()
        if self._copier is not None:
            self._copier.close()
            self._copier = None

    def start_bundle(self) -> None:
        super().start_bundle()
        report_lineage(cast(Endpoint, self._destination), "sink")

    def produce(self, subject: InstanceGroup, client: DICOMClient, room: Room) -> Iterator[Any]:
        # A group may name an instance repeatedly, as its elements did: it is copied once, with a result for each.
        times = Counter(subject.sop_instance_uids)
        for reference, result in cast(InstanceCopier, self._copier).iter_group(subject, room):
            # What its listing lacked is in no group.
            yield from repeat(result, times.get(str(reference.sop_instance_uid), 1))

    def count_result(self, result: StoredInstance) -> None:
        count_stored(result)


# Downloads ------------------------------------------------------------------------------------------------------------


@piped_by_member
class DownloadResult(NamedTuple):
    """The output of `DownloadInstances` with ``failures="collect"``."""

    paths: Any
    failures: Any


@beam.typehints.with_input_types(ReferenceInput)
class DownloadInstances(DICOMwebTransform):
    """Writes instances to ``DIRECTORY/STUDY/SERIES/INSTANCE.dcm``, bytes unchanged, and gives the paths.

    The input is any reference; studies and series are listed by a search. Instances are retrieved series by series. A
    file appears under its name when it is complete. One that is there already is not retrieved again, so that a
    download that was cut short can simply be started again; its path comes too.

    Args:
        endpoint: An `Endpoint`, a URL or a path.
        directory: Where the files go: a path, any fsspec URL, or an `Endpoint`, whose `layout` names the files by their
            attributes. All workers must reach it.
        storage_options: Arguments for the fsspec filesystem of the directory, unless it is an `Endpoint`.
        overwrite: Retrieve and replace files that are there.
        media_types: Accepted encodings; by default the stored one.
        allow_transcoding: Accept re-encoded instances if the archive cannot return the original.
        spool_directory: Where larger instances wait on their way, on each worker.
        failures: ``"raise"`` or ``"collect"``; with the latter the output is a `DownloadResult`. See also
            `with_error_handler`.

    Raises:
        ValueError: If the directory is a server, or an argument is not valid.
    """

    _element_type = str

    def __init__(
        self,
        endpoint: EndpointLike,
        directory: EndpointLike,
        *,
        storage_options: Mapping[str, Any] | None = None,
        overwrite: bool = False,
        media_types: MediaTypes | None = None,
        allow_transcoding: bool = False,
        spool_directory: str | None = None,
        failures: FailureMode = "raise",
    ) -> None:
        super().__init__(endpoint, failures=failures)
        self.directory = Endpoint.of(directory)
        if storage_options is not None:
            self.directory = self.directory.replace(storage_options=storage_options)
        if self.directory.is_web:
            raise ValueError("directory must be a path or an fsspec URL; use CopyInstances to copy to a server")
        self.options: dict[str, Any] = {
            "overwrite": overwrite,
            "media_types": checked_media_types("instances", media_types),
            "allow_transcoding": allow_transcoding,
            "spool_directory": spool_directory,
        }

    def expand(self, pcollection: Any) -> Any:
        """Builds the steps."""
        groups, failed = groups_of(self, pcollection)
        download = self._pooled(_Download, pcollection, self.directory, self.options)
        written = groups | "Reshuffle" >> beam.Reshuffle() | "Download" >> self._step(download, str)
        warn_of_secrets(self, self.directory)
        failures = self._report([*failed, written[FAILURES]])
        return DownloadResult(written["main"], failures) if self._failure_mode == "collect" else written["main"]

    def display_data(self) -> dict[str, Any]:
        """The endpoint and the directory."""
        return {
            **super().display_data(),
            "directory": DisplayDataItem(self.directory.safe_url, label="Directory"),
            "overwrite": DisplayDataItem(self.options["overwrite"], label="Overwrite"),
        }


class _Download(PooledDoFn):
    def __init__(
        self, endpoint: Endpoint, transform: str, directory: Endpoint, options: dict[str, Any], **how: Any
    ) -> None:
        super().__init__(endpoint, transform, **how)
        self._directory = directory
        self._options = options
        self._downloader: InstanceDownloader | None = None

    def setup(self) -> None:
        super().setup()
        client = cast(Lease, self._lease).client
        downloader = self._downloader = InstanceDownloader(
            client, self._directory, transform=self._transform, **self._options
        )
        self._reader = SeriesReader(
            client, lambda reference, _: downloader.retrieve(reference), downloader.discard, transform=self._transform
        )

    def teardown(self) -> None:
        super().teardown()
        if self._downloader is not None:
            self._downloader.close()
            self._downloader = None

    def start_bundle(self) -> None:
        super().start_bundle()
        report_lineage(self._directory, "sink")

    def produce(self, subject: InstanceGroup, client: DICOMClient, room: Room) -> Iterator[Any]:
        downloader = cast(InstanceDownloader, self._downloader)
        room.reserve(MEMORY_THRESHOLD)
        times = Counter(subject.sop_instance_uids)
        missing: list[Resource] = []
        for reference in dict.fromkeys(subject.references):
            known = downloader.already_there(reference)
            if known is None:
                missing.append(reference)
            else:
                yield from repeat(known, times[str(reference.sop_instance_uid)])
        for reference, item in self._reader.iter(subject, missing, room):
            outcome = item if isinstance(item, Failure) else downloader.write(item)
            # What its listing lacked is in no group.
            yield from repeat(outcome, times.get(str(reference.sop_instance_uid), 1))
            del item

    def count_result(self, result: Downloaded) -> None:
        count("exists" if result.existed else "downloaded")
        count("downloaded_bytes", result.size)

    def _emit(self, work: Work, result: Any) -> Iterator[Any]:
        for output in super()._emit(work, result):
            # Consumers get the path; the other fields were counted.
            value = getattr(output, "value", None)
            yield output.with_value(value.path) if isinstance(value, Downloaded) else output


# What there is to copy ------------------------------------------------------------------------------------------------


@beam.typehints.with_input_types(ListLine)
class MatchLines(DICOMwebTransform):
    """The instances that the lines of a list name, in groups, and as failures the lines that name none.

    Args:
        job: The transfer that the list belongs to.
    """

    def __init__(self, job: TransferJob) -> None:
        super().__init__(job.source, failures="collect")
        self._job = replace(job, wanted=None)

    def expand(self, lines: Any) -> tuple[Any, Any]:
        """Builds the step."""
        matched = lines | "Match" >> self._step(self._pooled(_MatchLines, lines, self._job), InstanceGroup)
        return matched["main"], matched[FAILURES]


class _MatchLines(PooledDoFn):
    def __init__(self, source: Endpoint, transform: str, job: TransferJob, **how: Any) -> None:
        super().__init__(source, transform, **how)
        self._job = job

    def produce(self, subject: ListLine, client: DICOMClient, room: Room) -> Iterator[Any]:
        series: dict[Resource, list[str]] = {}
        failed = False
        for item in match_line(client, self._job, subject):
            if isinstance(item, Failure):
                failed = True
                yield item
            else:
                series.setdefault(item.series, []).append(str(item.sop_instance_uid))
        # A line that names a study or series has listed all of it.
        wanted = subject.wanted
        single = isinstance(wanted, Resource) and wanted.level == "instance"
        narrowed = isinstance(wanted, SearchQuery) and wanted.level != "study"
        listed = not (failed or self._job.filters or single or narrowed)
        for one, uids in series.items():
            yield InstanceGroup(one, tuple(uids), len(uids) if listed else None, line=subject.place)


class ListExclusions(DICOMwebTransform):
    """The files that a copy from a folder leaves out; those that cannot be read as failures.

    Args:
        job: The transfer.
    """

    _is_source = True

    def __init__(self, job: TransferJob) -> None:
        super().__init__(job.source, failures="collect")
        self._job = job

    def expand(self, pipeline: Any) -> tuple[Any, Any]:
        """Builds the step."""
        folders = pipeline | "Folder" >> beam.Create([self._job], reshuffle=False)
        listed = folders | "List" >> self._step(_ListExclusions(), Exclusion)
        return listed["main"], listed[FAILURES]


class _ListExclusions(beam.DoFn):
    def process(self, element: TransferJob) -> Iterator[Any]:
        lease = shared_client(element.source)
        try:
            for item in excluded_files(lease.client, element):
                yield TaggedOutput(FAILURES, item) if isinstance(item, Failure) else item
        finally:
            lease.close()


# The account ----------------------------------------------------------------------------------------------------------


class WriteAccount(beam.PTransform[Any, Any]):
    """Counts what was found and the results, and writes the account as JSON, for `make_summary`.

    The input is a mapping: the collections whose elements are counted, by name.

    Args:
        path: A local path or an fsspec URL that the workers can write.
        with_facts: Whether a report is wanted.
    """

    def __init__(self, path: str, *, with_facts: bool = False) -> None:
        super().__init__()
        self._path = path
        self._with_facts = with_facts

    def expand(self, collections: Any) -> Any:
        """Builds the steps."""
        count = _CountEntries(self._with_facts)
        accounts = [items | f"Count_{name}" >> beam.ParDo(count) for name, items in collections.items()]
        # An account is also written of nothing.
        first = accounts[0].pipeline | "Begin" >> beam.Create([(0, Account(self._with_facts))], reshuffle=False)
        merged = (first, *accounts) | "Accounts" >> beam.Flatten() | "Merge" >> beam.GroupByKey()
        return merged | "Write" >> beam.Map(_write_account, self._path, self._with_facts)


@beam.typehints.with_output_types(tuple[int, Account])
class _CountEntries(beam.DoFn):
    """Makes an account of each bundle."""

    def __init__(self, with_facts: bool) -> None:
        self._with_facts = with_facts

    def start_bundle(self) -> None:
        self._account = Account(self._with_facts)

    def process(self, element: Entry) -> None:
        self._account.add(element)

    def finish_bundle(self) -> Iterator[WindowedValue]:
        yield WindowedValue((0, self._account), MIN_TIMESTAMP, (GlobalWindow(),))


def _write_account(accounts: tuple[int, Iterable[Account]], path: str, with_facts: bool) -> None:
    total = Account(with_facts)
    for account in accounts[1]:
        total.merge(account)
    report_lines(path, "the account of the job in", [json.dumps(total.document())])


_Lines = tuple[int, Iterable[list[str]]]


class WriteCounts(beam.PTransform[Any, Any]):
    """Sums up counts and writes them as a JSON object.

    The input is a mapping: collections by name.

    Args:
        path: A local path or an fsspec URL that the workers can write.
        counts_of: What an element of each collection adds, by its name.
    """

    def __init__(self, path: str, counts_of: Mapping[str, Callable[[Any], Iterable[tuple[str, int]]]]) -> None:
        super().__init__()
        self._path = path
        self._counts_of = counts_of

    def expand(self, collections: Any) -> Any:
        """Builds the steps."""
        counted = tuple(
            items | f"Count_{name}" >> beam.FlatMap(self._counts_of[name]).with_output_types(tuple[str, int])
            for name, items in collections.items()
        )
        totals = counted | "Counts" >> beam.Flatten() | "Sum" >> beam.CombinePerKey(sum)
        lines = totals | "Lines" >> beam.Map(json.dumps).with_output_types(str)
        return lines | "Together" >> _Together() | "Write" >> beam.Map(_write_counts, self._path)


def _write_counts(group: _Lines, path: str) -> None:
    counts = map(json.loads, chain.from_iterable(group[1]))
    report_lines(path, "the account of the job in", [json.dumps(dict(counts))])


class _Together(beam.PTransform[Any, Any]):
    """Gives all lines as one group, also if there are none.

    A side input would do the same, but not in a streaming job on Flink: it fails there when a checkpoint is taken.
    """

    def expand(self, lines: Any) -> Any:
        """Builds the steps."""
        kind = tuple[int, list[str]]
        begin = lines.pipeline | "Begin" >> beam.Create([(0, [])], reshuffle=False).with_output_types(kind)
        keyed = lines | "Key" >> beam.Map(lambda line: (0, [line])).with_output_types(kind)
        return (begin, keyed) | "Flatten" >> beam.Flatten() | "Group" >> beam.GroupByKey()


class WriteReport(beam.PTransform[Any, Any]):
    """Writes a report of all failures, one JSON object a line, to one file, complete or not at all.

    Gives a `Failure` if the file cannot be written; see `dicomweb_io.options.Report`.

    Args:
        path: A local path or an fsspec URL that the workers can write.
        option: What the user calls the report.
        line_of: Makes a line of each element, which may be something else than a failure.
    """

    def __init__(self, path: str, option: str = "--failures", line_of: Callable[[Any], str] = failure_line) -> None:
        super().__init__()
        self._how = path, option, line_of

    def expand(self, elements: Any) -> Any:
        """Builds the steps."""
        path, option, line_of = self._how
        lines = elements | "Lines" >> beam.Map(line_of).with_output_types(str) | "Together" >> _Together()
        return lines | "Write" >> beam.FlatMap(_write_report, path, option).with_output_types(Failure)


def _write_report(group: _Lines, path: str, option: str) -> Iterator[Failure]:
    problem = report_lines(path, option, chain.from_iterable(group[1]))
    if problem is not None:
        yield Failure(REPORT, problem)


def tallied() -> dict[str, int]:
    """What copies in this process have counted so far, by the names of `dicomweb_io.account.Account`."""
    now = TALLY.snapshot()
    return {
        "found": now.get("listed", 0),
        "transferred": now.get("stored", 0) + now.get("replaced", 0),
        "already_there": now.get("exists", 0),
        "to_transfer": now.get("planned", 0),
        "failed": now.get("failures", 0),
        "bytes": now.get("stored_bytes", 0),
    }
