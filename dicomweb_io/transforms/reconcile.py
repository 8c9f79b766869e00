"""Archives compared in a pipeline: `CompareArchives`, and what a job needs around it.

What either archive lists is brought together by study in a GroupByKey, and each study is compared by the engine
(`dicomweb_io.comparer`). References cross, and UIDs: what is missing or extra meets, by SOP Instance UID, what the
other archive has, to say where else it is.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple, cast

import apache_beam as beam
from apache_beam.transforms.display import DisplayDataItem

from dicomweb_io.client import DICOMClient
from dicomweb_io.comparer import (
    ArchiveComparer,
    Compared,
    NumberComparison,
    Selected,
    SeriesComparison,
    StudyComparison,
    selected_of_row,
)
from dicomweb_io.elements import Difference, Failure, JSONDataset, Resource, SearchLevel
from dicomweb_io.endpoint import Endpoint, EndpointLike
from dicomweb_io.listing import ListLine
from dicomweb_io.pool import Lease, Room
from dicomweb_io.reconcile import MAX_ELSEWHERE, Comparison, ComparisonJob, search_line
from dicomweb_io.transforms._core import (
    FAILURES,
    BetweenArchives,
    DICOMwebTransform,
    FailureMode,
    Problem,
    piped_by_member,
    reported,
    warn_of_secrets,
)
from dicomweb_io.transforms.coders import register
from dicomweb_io.transforms.search import SearchForInstances, SearchForSeries, SearchForStudies, SearchResult

register(Selected, StudyComparison, SeriesComparison, NumberComparison)

_SEARCHES: dict[SearchLevel, Any] = {
    "study": SearchForStudies,
    "series": SearchForSeries,
    "instance": SearchForInstances,
}

_BUCKETS = 256
"""Keys under which equal SOP Instance UIDs meet."""

_Held = tuple[str, str, bool, tuple[str, ...]]
"""The series, the side that has the instances, whether they make a line of the series, and their UIDs."""


@piped_by_member
class ComparedArchives(NamedTuple):
    """The output of `CompareArchives` with ``failures="collect"``."""

    differences: Any
    failures: Any


class CompareArchives(DICOMwebTransform):
    """Compares two archives, and gives what is missing in the destination, extra in it, or different.

    An instance is its study, series and SOP Instance UID together. Both archives are searched, and each study that one
    of them has is listed in both. A series of which one archive has nothing is one `Difference`, with the number of its
    instances; everything else is one for each instance. To copy what is missing, apply `CopyInstances` to those whose
    `kind` is ``"missing"``.

    It is a source, for batch pipelines.

    Args:
        source: The archive that is to be there again: an `Endpoint`, a URL or a path.
        destination: The archive that is held against it.
        search_filters: Only what matches in one of them is compared.
        compare: ``"uid"``; ``"content"`` also compares the contents of what both have, at the level that both keep
            (file, dataset or pixels); ``"count"`` compares only the numbers of instances that they announce for each
            series, which is quick and weaker.
        spool_directory: Where larger instances wait while they are compared, on each worker.
        failures: ``"raise"`` or ``"collect"``; with the latter the output is a `ComparedArchives`. See also
            `with_error_handler`. What could not be compared is no difference, and no proof that there is none.

    Raises:
        ValueError: If a filter is not valid, or the archives cannot be compared in this way.
    """

    _element_type = Difference
    _is_source = True

    def __init__(
        self,
        source: EndpointLike,
        destination: EndpointLike,
        search_filters: Mapping[str, str] | None = None,
        *,
        compare: Comparison = "uid",
        spool_directory: str | None = None,
        failures: FailureMode = "raise",
    ) -> None:
        super().__init__(source, failures=failures)
        if compare not in ("count", "uid", "content"):
            raise ValueError(f"compare must be 'count', 'uid' or 'content', not {compare!r}")
        self.job = ComparisonJob(
            self.endpoint,
            Endpoint.of(destination),
            dict(search_filters or {}),
            compare=compare,
            spool_directory=spool_directory,
        )

    def expand(self, pipeline: Any) -> Any:
        """Builds the steps."""
        self._check_begins(pipeline)
        selected, failures = pipeline | "Search" >> SearchBoth(self.job).inside(self)
        compared = selected | "Compare" >> CompareSelected(self.job).inside(self)
        warn_of_secrets(self, self.job.destination)
        lost = self._report([failures, compared.failures])
        return ComparedArchives(compared.differences, lost) if self._failure_mode == "collect" else compared.differences

    def display_data(self) -> dict[str, Any]:
        """Both endpoints and what is compared."""
        return {
            **super().display_data(),
            "destination": DisplayDataItem(self.job.destination.safe_url, label="Destination"),
            "compare": DisplayDataItem(self.job.compare, label="Compared"),
        }


class SearchBoth(DICOMwebTransform):
    """What the searches of a comparison select in both archives, and what fails of them.

    Args:
        job: The comparison.
        failures: See `FailingTransform`.
    """

    _is_source = True

    def __init__(self, job: ComparisonJob, *, failures: FailureMode = "collect") -> None:
        super().__init__(job.source, failures=failures)
        self._job = job

    def expand(self, pipeline: Any) -> tuple[Any, Any]:
        """Builds the steps."""
        level = self._job.search_level
        selected, failures = [], []
        for side, endpoint in enumerate((self._job.source, self._job.destination)):
            name = ("Source", "Destination")[side]
            found = pipeline | name >> _SEARCHES[level](endpoint, self._job.filters, failures="collect").inside(self)
            rows = found
            if isinstance(found, SearchResult):
                rows = found.rows
                failures.append(found.failures)
            made = rows | f"Select{name}" >> self._step(_Select(level, side, collect=self.collects), Selected)
            selected.append(made["main"])
            failures.append(made[FAILURES])
        return tuple(selected) | "Selected" >> beam.Flatten(), self._report(failures)


class _Select(beam.DoFn):
    def __init__(self, level: SearchLevel, side: int, *, collect: bool) -> None:
        self._level: SearchLevel = level
        self._side = side
        self._collect = collect

    def process(self, row: JSONDataset) -> Iterator[Any]:
        found = selected_of_row(row, self._level, self._side)
        yield reported(Problem(found), self._collect) if isinstance(found, Failure) else found


class ComparedStudies(NamedTuple):
    """The output of `CompareSelected`.

    Attributes:
        differences: All differences.
        results: What the numbers are counted from.
        failures: What could not be compared.
    """

    differences: Any
    results: Any
    failures: Any


class CompareSelected(DICOMwebTransform):
    """Compares what was selected in two archives, study by study.

    Args:
        job: The comparison.
        failures: See `FailingTransform`.
    """

    def __init__(self, job: ComparisonJob, *, failures: FailureMode = "raise") -> None:
        super().__init__(job.source, failures=failures)
        self._job = job

    def expand(self, selected: Any) -> ComparedStudies:
        """Builds the steps."""
        keyed = selected | "ByStudy" >> beam.Map(_by_study).with_output_types(tuple[str, Selected])
        # The values are read here: threads of the pool may not ask the runner for them.
        grouped = keyed | "Group" >> beam.GroupByKey() | "List" >> beam.MapTuple(_listed)
        compare = self._pooled(_Compare, grouped, self._job)
        compared = grouped | "Compare" >> self._step(compare, Compared)
        results = compared["main"]
        found = results | "Differences" >> beam.FlatMap(_differences_of).with_output_types(Difference)
        if self._job.compare != "count":
            found = _located(results, found)
        return ComparedStudies(found, results, self._report([compared[FAILURES]]))


def _by_study(one: Selected) -> tuple[str, Selected]:
    return one.reference.study_instance_uid, one


def _listed(study: str, selected: Iterable[Selected]) -> tuple[str, list[Selected]]:
    return study, list(selected)


def _differences_of(result: Compared) -> Iterator[Difference]:
    return result.differences()


class _Compare(BetweenArchives):
    """Compares one study for each element."""

    def __init__(self, source: Endpoint, transform: str, job: ComparisonJob, **how: Any) -> None:
        super().__init__(source, transform, job.destination, **how)
        self._job = job
        self._comparer: ArchiveComparer | None = None

    def setup(self) -> None:
        super().setup()
        clients = cast(Lease, self._lease).client, cast(Lease, self._receiver).client
        self._comparer = ArchiveComparer(*clients, self._job.level, spool_directory=self._job.spool_directory)

    def teardown(self) -> None:
        # First what still runs is cancelled, then its files go.
        super().teardown()
        if self._comparer is not None:
            self._comparer.close()
            self._comparer = None

    def reference_of(self, subject: tuple[str, Iterable[Selected]]) -> Resource:
        return Resource(subject[0])

    def produce(self, subject: tuple[str, Iterable[Selected]], client: DICOMClient, room: Room) -> Iterator[Any]:
        yield from cast(ArchiveComparer, self._comparer).compare(*subject, room)


# Where else -----------------------------------------------------------------------------------------------------------


def _located(results: Any, found: Any) -> Any:
    """The differences with the series of the other archive that have their SOP Instance UIDs."""
    held = results | "Held" >> beam.FlatMap(_held_of).with_output_types(tuple[int, _Held])
    met = held | "MeetByUID" >> beam.GroupByKey()
    kind = tuple[str, Difference | str]
    places = met | "Places" >> beam.FlatMap(_places_in).with_output_types(kind)
    lines = found | "ByLine" >> beam.Map(_by_line).with_output_types(kind)
    joined = (lines, places) | "Join" >> beam.Flatten() | "GroupByLine" >> beam.GroupByKey()
    return joined | "Locate" >> beam.FlatMap(_locate).with_output_types(Difference)


def _by_line(one: Difference) -> tuple[str, Difference]:
    return one.reference.uri, one


def _held_of(result: Compared) -> Iterator[tuple[int, _Held]]:
    """The instances of a series, in packs of those whose UIDs fall into one bucket."""
    if not isinstance(result, SeriesComparison):
        return
    both = (*result.equal, *result.failed, *(uid for uid, _ in result.different))
    for side, uids in (("missing", result.missing), ("extra", result.extra), ("both", both)):
        packs: dict[int, list[str]] = {}
        for uid in uids:
            packs.setdefault(zlib.crc32(uid.encode("utf-8", "surrogatepass")) % _BUCKETS, []).append(uid)
        for bucket, pack in packs.items():
            yield bucket, (result.series.uri, side, result.whole, tuple(pack))


def _places_in(bucket: tuple[int, Iterable[_Held]]) -> Iterator[tuple[str, str]]:
    """The lines of a bucket whose instances the other archive has in another series, with that series."""
    lines: dict[tuple[str, str], set[str]] = {}
    for series, side, whole, uids in bucket[1]:
        if side != "both":
            for uid in uids:
                line = series if whole else Resource(*_uids_of(series), uid).uri
                lines.setdefault((side, uid), set()).add(line)
    told: set[tuple[str, str]] = set()
    for series, side, _, uids in bucket[1] if lines else ():
        for other in ("missing", "extra"):
            # What is missing is looked for where the destination has it, what is extra in the source.
            for uid in uids if side != other else ():
                for line in lines.get((other, uid), ()):
                    if (line, series) not in told:
                        told.add((line, series))
                        yield line, series


def _uids_of(series: str) -> tuple[str, str]:
    reference = Resource.of(series)
    return reference.study_instance_uid, str(reference.series_instance_uid)


def _locate(joined: tuple[str, Iterable[Difference | str]]) -> Iterator[Difference]:
    """The difference of a line, with the places that were found for it."""
    found: list[Difference] = []
    places: set[str] = set()
    for item in joined[1]:
        if isinstance(item, str):
            places.add(item)
        else:
            found.append(item)
    elsewhere = tuple(sorted(places)[:MAX_ELSEWHERE])
    yield from (replace(one, elsewhere=elsewhere) for one in found)


# What a job needs -----------------------------------------------------------------------------------------------------


@beam.typehints.with_input_types(ListLine)
class SelectLines(DICOMwebTransform):
    """What the lines of a list select in both archives, and as failures the lines that select nothing.

    Args:
        job: The comparison that the list belongs to.
    """

    def __init__(self, job: ComparisonJob) -> None:
        super().__init__(job.source, failures="collect")
        self._job = replace(job, wanted=None)

    def expand(self, lines: Any) -> tuple[Any, Any]:
        """Builds the step."""
        selected = lines | "Select" >> self._step(self._pooled(_SelectLines, lines, self._job), Selected)
        return selected["main"], selected[FAILURES]


class _SelectLines(BetweenArchives):
    def __init__(self, source: Endpoint, transform: str, job: ComparisonJob, **how: Any) -> None:
        super().__init__(source, transform, job.destination, **how)
        self._job = job

    def produce(self, subject: ListLine, client: DICOMClient, room: Room) -> Iterator[Any]:
        yield from search_line((client, cast(Lease, self._receiver).client), self._job.sides, subject)
