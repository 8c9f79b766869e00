"""References packed by series: one request for a series that is wanted whole, one listing of a series and job.

`PackBySeries` brings the instances of a series together, `ListSeries` asks once what the archives hold of it and cuts
large ones into groups, and a reshuffle spreads the groups. Nothing of that changes what comes out: every reference
keeps its timestamp, windows and pane.

In a batch pipeline the references of the whole job meet in a GroupByKey. In a streaming pipeline, which does not wait
for more to come, only those of a bundle do.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple, cast

import apache_beam as beam
from apache_beam.options.pipeline_options import StandardOptions
from apache_beam.transforms.core import Windowing
from apache_beam.transforms.trigger import AccumulationMode, Always
from apache_beam.transforms.window import BoundedWindow, GlobalWindow, GlobalWindows, TimestampCombiner
from apache_beam.utils.timestamp import MIN_TIMESTAMP, Timestamp
from apache_beam.utils.windowed_value import PANE_INFO_UNKNOWN, PaneInfo, WindowedValue

from dicomweb_io.client import DICOMClient
from dicomweb_io.elements import Resource
from dicomweb_io.endpoint import Endpoint, EndpointLike
from dicomweb_io.failures import RECOVERABLE
from dicomweb_io.listing import (
    ASK_FROM,
    MAX_PART,
    MAX_WHOLE,
    InstanceGroup,
    SeriesListing,
    is_worth_whole,
    list_groups,
    parts_of,
)
from dicomweb_io.pool import Lease, Room
from dicomweb_io.transfer import nothing_listed
from dicomweb_io.transforms._core import (
    FAILURES,
    AsReferences,
    BetweenArchives,
    DICOMwebTransform,
    FailureMode,
    Place,
    ReferenceInput,
    Work,
    grouped_places,
    piped_by_member,
)
from dicomweb_io.transforms.metrics import count

GroupInput = ReferenceInput | InstanceGroup
"""What names something to be moved: any reference, or a group that was made before."""

BUCKETS = 256
"""Keys of the GroupByKey. One for each series takes four times as long (FnApiRunner, 100,000 references)."""

_MAX_GATHERED = 20_000
_MAX_MERGED = 100_000

# What `PackBySeries` shuffles: UIDs as text, which is smaller than the objects.
_Packed = tuple[str, str | None, tuple[str, ...], int | None]
_PackedPlace = tuple[int, tuple[BoundedWindow, ...], PaneInfo]
_Shuffled = tuple[int, tuple[_Packed, _PackedPlace | None]]


@piped_by_member
class GroupedInstances(NamedTuple):
    """The output of `GroupBySeries`.

    Attributes:
        groups: A collection of `InstanceGroup`.
        failures: A collection of `Failure`; empty unless failures are collected.
    """

    groups: Any
    failures: Any


@beam.typehints.with_input_types(GroupInput)
class GroupBySeries(DICOMwebTransform):
    """Makes groups of instances of one series of references.

    Studies and series are listed: each series becomes one group, however large. Single instances are grouped with
    others of their series: in a batch pipeline all of them, in a streaming pipeline those of the same bundle. What has
    another timestamp or window is another group.

    Args:
        endpoint: An `Endpoint`, a URL or a path.
        destination: An archive where the groups go. In a batch pipeline it is listed, once for each series.
        distinct: Name each instance once (batch pipelines).
        failures: ``"raise"`` or ``"collect"``. See also `with_error_handler`.

    Returns:
        A `GroupedInstances`.
    """

    def __init__(
        self,
        endpoint: EndpointLike,
        destination: EndpointLike | None = None,
        *,
        distinct: bool = False,
        failures: FailureMode = "raise",
    ) -> None:
        super().__init__(endpoint, failures=failures)
        self._destination = Endpoint.of(destination) if destination is not None else None
        self._distinct = distinct

    def expand(self, pcollection: Any) -> GroupedInstances:
        """Builds the steps."""
        groups, failures = _grouped(self, pcollection, self._destination, distinct=self._distinct)
        return GroupedInstances(groups, self._report(failures))


def groups_of(
    transform: DICOMwebTransform, pcollection: Any, destination: Endpoint | None = None
) -> tuple[Any, list[Any]]:
    """The groups of whatever names instances, as steps of a transform; also their failures.

    A collection of groups stays as it is.
    """
    if pcollection.element_type is InstanceGroup:
        return pcollection, []
    return _grouped(transform, pcollection, destination)


def _grouped(
    transform: DICOMwebTransform, pcollection: Any, destination: Endpoint | None, *, distinct: bool = False
) -> tuple[Any, list[Any]]:
    made = _AsGroups(type(transform).__name__, collect=transform.collects)
    named = pcollection | "AsReferences" >> transform._step(made, Resource | InstanceGroup)
    listed = packed(transform, named["main"], InstanceGroup, destination=destination, distinct=distinct)
    return listed["main"], [named[FAILURES], listed[FAILURES]]


def packed(
    transform: DICOMwebTransform,
    references: Any,
    output_type: Any,
    *,
    expands: bool = True,
    destination: Endpoint | None = None,
    distinct: bool = False,
) -> Any:
    """The steps that pack references and list what they name.

    Args:
        transform: The transform that they belong to.
        references: References and groups.
        output_type: What comes out, `InstanceGroup`; with references if studies and series stay references.
        expands: Whether studies and series are listed.
        destination: See `GroupBySeries`.
        distinct: See `GroupBySeries`.

    Returns:
        The outputs of the last step by tag.
    """
    # What a streaming pipeline has sent on since, a listing of long ago would not show.
    asked = destination if is_batch(references) else None
    dofn = transform._pooled(ListSeries, references, asked, expands=expands)
    pack = PackBySeries(distinct=distinct)
    return references | "PackBySeries" >> pack | "ListSeries" >> transform._step(dofn, output_type)


def is_batch(pcollection: Any) -> bool:
    """Whether all of a collection may be waited for."""
    options = pcollection.pipeline.options.view_as(StandardOptions)
    return bool(pcollection.is_bounded) and not options.streaming


class _AsGroups(AsReferences):
    """References to whole objects; lets groups pass."""

    _whole = False

    def reference_of(self, element: Any) -> Any:
        return element if isinstance(element, InstanceGroup) else super().reference_of(element).instance


# Packing --------------------------------------------------------------------------------------------------------------


@beam.typehints.with_input_types(Resource | InstanceGroup)
class PackBySeries(beam.PTransform[Any, Any]):
    """Makes groups of the instances of a series that have the same timestamp, windows and pane.

    References to studies and series stay references. It is a fusion break. A plain GroupByKey would move timestamps to
    the end of their window, merge sessions, and repeat what an accumulating trigger fires again, so the places of the
    references travel as values, as those of `beam.Reshuffle` do.

    Args:
        distinct: Name each instance once (batch pipelines).
    """

    def __init__(self, *, distinct: bool = False) -> None:
        super().__init__()
        self._distinct = distinct

    def expand(self, references: Any) -> Any:
        """Builds the steps."""
        output_type = Resource | InstanceGroup
        if not is_batch(references):
            gathered = references | "Gather" >> beam.ParDo(_Gather(by_bucket=False)).with_output_types(output_type)
            return gathered | "Reshuffle" >> beam.Reshuffle()
        windowing = references.windowing
        gather = beam.ParDo(_Gather(by_bucket=True)).with_output_types(_Shuffled)
        gathered = references | "Gather" >> gather
        gathered._windowing = Windowing(
            GlobalWindows(),
            triggerfn=Always(),
            accumulation_mode=AccumulationMode.DISCARDING,
            timestamp_combiner=TimestampCombiner.OUTPUT_AT_EARLIEST,
        )
        merge = beam.ParDo(_Merge(self._distinct)).with_output_types(output_type)
        merged = gathered | "GroupByBucket" >> beam.GroupByKey() | "Merge" >> merge
        merged._windowing = windowing
        return merged


class _Gather(beam.DoFn):
    """Makes groups of the instances of a bundle.

    Args:
        by_bucket: Whether they are about to be shuffled, with their places as values.
    """

    def __init__(self, *, by_bucket: bool) -> None:
        self._by_bucket = by_bucket

    def start_bundle(self) -> None:
        """Begins with nothing."""
        self._gathered: dict[tuple[Any, ...], list[str]] = {}
        self._count = 0

    def process(
        self,
        element: Resource | InstanceGroup,
        timestamp: Any = beam.DoFn.TimestampParam,
        window: Any = beam.DoFn.WindowParam,
        pane: Any = beam.DoFn.PaneInfoParam,
    ) -> Iterator[Any]:
        """Keeps an instance; gives on what is no single instance."""
        if isinstance(element, InstanceGroup) or element.level != "instance":
            yield self._output(element, timestamp, (window,), pane)
            return
        uids = self._gathered.setdefault((element.series, timestamp, window, pane), [])
        uids.append(str(element.sop_instance_uid))
        self._count += 1
        if self._count >= _MAX_GATHERED:
            yield from self.finish_bundle()

    def finish_bundle(self) -> Iterator[Any]:
        """Gives the groups."""
        # The same instances in several windows are one group in several windows, so that they are moved once.
        places: dict[tuple[Any, ...], list[Place]] = {}
        for (series, timestamp, window, pane), uids in self._gathered.items():
            group = InstanceGroup(series, tuple(uids))
            places.setdefault((group, timestamp), []).append((timestamp, window, pane))
        self.start_bundle()
        for (group, _), several in places.items():
            for place in grouped_places(several):
                yield self._output(group, *place)

    def _output(self, element: Resource | InstanceGroup, timestamp: Any, windows: tuple[Any, ...], pane: Any) -> Any:
        if not self._by_bucket:
            return WindowedValue(element, timestamp, windows, pane)
        value = _packed_element(element), _packed_place(timestamp, windows, pane)
        return WindowedValue((bucket_of(element), value), MIN_TIMESTAMP, (GlobalWindow(),))


class _Merge(beam.DoFn):
    """Makes one group of the groups of a series, bucket by bucket.

    Args:
        distinct: Name each instance once.
    """

    def __init__(self, distinct: bool) -> None:
        self._distinct = distinct

    def process(self, bucket: tuple[int, Iterable[tuple[_Packed, _PackedPlace | None]]]) -> Iterator[Any]:
        """Gives groups and references in their places."""
        merged: dict[tuple[Any, ...], tuple[list[str], list[int]]] = {}
        whole: set[Any] = set()
        gathered = 0
        for (study, series, uids, listed), place in bucket[1]:
            if not uids:
                if not self._distinct or (study, series, place) not in whole:
                    yield _placed(Resource(study, series), place)
                if self._distinct:
                    whole.add((study, series, place))
                continue
            known, numbers = merged.setdefault((study, series, place), ([], []))
            known += uids
            numbers += [] if listed is None else [listed]
            gathered += len(uids)
            # What is to be named once must all be there; it has fewer instances in a bucket than the archive in all.
            if gathered >= _MAX_MERGED and not self._distinct:
                yield from self._groups(merged)
                gathered = 0
        yield from self._groups(merged)

    def _groups(self, merged: dict[tuple[Any, ...], tuple[list[str], list[int]]]) -> Iterator[Any]:
        while merged:
            (study, series, place), (uids, numbers) = merged.popitem()
            named = tuple(dict.fromkeys(uids) if self._distinct else uids)
            yield _placed(InstanceGroup(Resource(study, series), named, max(numbers, default=None)), place)


def bucket_of(element: Resource | InstanceGroup) -> int:
    """The bucket of a series; the same in every process and release."""
    series = element.series if isinstance(element, InstanceGroup) else element
    name = f"{series.study_instance_uid}/{series.series_instance_uid or ''}"
    return zlib.crc32(name.encode("utf-8", "surrogatepass")) % BUCKETS


def _packed_element(element: Resource | InstanceGroup) -> _Packed:
    if isinstance(element, InstanceGroup):
        return (*_uids_of(element.series), element.sop_instance_uids, element.listed)
    return (*_uids_of(element), (), None)


def _uids_of(series: Resource) -> tuple[str, str | None]:
    uid = series.series_instance_uid
    return str(series.study_instance_uid), None if uid is None else str(uid)


def _packed_place(timestamp: Any, windows: tuple[Any, ...], pane: Any) -> _PackedPlace | None:
    """The place of an element; None for the usual one."""
    if timestamp == MIN_TIMESTAMP and windows == (GlobalWindow(),) and pane == PANE_INFO_UNKNOWN:
        return None
    return timestamp.micros, windows, pane


def _placed(element: Resource | InstanceGroup, place: _PackedPlace | None) -> WindowedValue:
    if place is None:
        return WindowedValue(element, MIN_TIMESTAMP, (GlobalWindow(),))
    micros, windows, pane = place
    return WindowedValue(element, Timestamp(micros=micros), windows, pane)


# Listing --------------------------------------------------------------------------------------------------------------


class ListSeries(BetweenArchives):
    """Makes groups of references to studies and series, and says of each group what the archives hold.

    A group that is (nearly) all that the destination lacks of its series stays one, because one request moves it many
    times as fast as a request for each instance. Another, or a very large one, is cut into parts, which spread.

    Args:
        source: The archive.
        transform: The name for failures.
        destination: An archive that is asked what it has of each series.
        expands: Whether studies and series are listed.
        **how: See `PooledDoFn`.
    """

    def __init__(
        self, source: Endpoint, transform: str, destination: Endpoint | None = None, *, expands: bool, **how: Any
    ) -> None:
        super().__init__(source, transform, destination, **how)
        self._expands = expands

    def start_bundle(self) -> None:
        """Forgets what other bundles were told."""
        super().start_bundle()
        self._listing = SeriesListing(cast(Lease, self._lease).client)
        self._there = SeriesListing(self._receiver.client) if self._receiver is not None else None

    def _start(self, work: Work) -> Iterator[Any]:
        subject = work.subject
        grouped = isinstance(subject, InstanceGroup)
        if (not grouped and not self._expands) or (grouped and self._is_known(subject)):
            yield from self._emit(work, subject)
        else:
            yield from super()._start(work)

    def _is_known(self, group: InstanceGroup) -> bool:
        """Whether a group needs no look at an archive."""
        few = len(group.sop_instance_uids) < ASK_FROM or group.listed is not None
        return few and len(group.sop_instance_uids) <= MAX_PART and self._there is None

    def produce(self, subject: Resource | InstanceGroup, client: DICOMClient, room: Room) -> Iterator[Any]:
        """Yields groups, or a `Failure` if the archive lists nothing: a reference must not vanish."""
        if isinstance(subject, InstanceGroup):
            yield from self._parts(subject)
            return
        found = False
        for group in list_groups(client, subject):
            found = True
            yield from self._parts(group)
        if not found:
            yield nothing_listed(client, subject, self._transform)

    def count_result(self, result: Resource | InstanceGroup) -> None:
        """Counts the instances."""
        if isinstance(result, InstanceGroup) and self._expands:
            count("listed", len(result.sop_instance_uids))

    def _parts(self, group: InstanceGroup) -> Iterator[InstanceGroup]:
        wanted = set(group.sop_instance_uids)
        there = self._uids_there(group.series)
        missing = len(wanted - (there or set()))
        listed = group.listed
        if listed is None and missing >= ASK_FROM:
            listed = self._size(group.series)
        held = None if there is None else tuple(sorted(there))
        asked = replace(group, listed=listed, held=held, named=group.named or group.listed is None)
        if listed is not None and len(wanted) <= MAX_WHOLE and is_worth_whole(missing, listed):
            yield asked
        else:
            yield from parts_of(asked)

    def _uids_there(self, series: Resource) -> set[str] | None:
        try:
            return None if self._there is None else self._there.uids(series)
        except RECOVERABLE:
            # The copy asks again, and reports what comes of it for each instance.
            return None

    def _size(self, series: Resource) -> int | None:
        try:
            return self._listing.size(series)
        except RECOVERABLE:
            return None
