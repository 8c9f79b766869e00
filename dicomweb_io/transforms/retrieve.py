"""Retrieves (WADO-RS, PS3.18 section 10.4): `RetrieveInstances` and `RetrieveMetadata`.

References are reshuffled before they are fetched, so that the work spreads; what is fetched never is: the steps that
follow take it from the same worker. Instances that are (nearly) all of their series are fetched with one request. The
answer for a study or series is compared with a search.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import Any, NamedTuple, cast

import apache_beam as beam
from apache_beam.transforms.display import DisplayDataItem

from dicomweb_io.client import DEFAULT_MAX_ELEMENT_BYTES, DICOMClient, MediaTypes
from dicomweb_io.copier import SeriesReader
from dicomweb_io.dicom.media_types import checked_media_types
from dicomweb_io.elements import Failure, Instance, JSONDataset, Resource
from dicomweb_io.endpoint import Endpoint, EndpointLike
from dicomweb_io.errors import DeadlineExceededError, ResponseIncompleteError, log_text
from dicomweb_io.failures import RECOVERABLE, failure_of
from dicomweb_io.listing import InstanceGroup, instance_of_row, is_worth_whole, listed_instances
from dicomweb_io.pool import DEFAULT_MAX_BYTES, Lease, Room
from dicomweb_io.transforms._core import (
    FAILURES,
    AsReferences,
    D,
    DICOMwebTransform,
    FailureMode,
    PartSpool,
    PooledDoFn,
    Problem,
    ReferenceInput,
    piped_by_member,
    problem_of,
)
from dicomweb_io.transforms.grouping import packed
from dicomweb_io.transforms.metrics import count, observe

logger = logging.getLogger("dicomweb_io")

_METADATA_BYTES = 64 * 1024


@piped_by_member
class RetrievedInstances(NamedTuple):
    """The output of `RetrieveInstances` with ``failures="collect"``."""

    instances: Any
    failures: Any


@piped_by_member
class RetrievedMetadata(NamedTuple):
    """The output of `RetrieveMetadata` with ``failures="collect"``."""

    metadata: Any
    failures: Any


@dataclass(frozen=True)
class RetrieveOptions:
    """How instances, frames or values are asked for; see `RetrieveInstances`."""

    media_types: tuple[Any, ...] | None = None
    max_element_bytes: int = DEFAULT_MAX_ELEMENT_BYTES
    spool_directory: str | None = None
    additional_params: Mapping[str, Any] | None = None
    allow_transcoding: bool = False

    def __post_init__(self) -> None:
        check_size(max_element_bytes=self.max_element_bytes)
        object.__setattr__(self, "additional_params", dict(self.additional_params) if self.additional_params else None)


def check_size(**size: int) -> None:
    """Checks a limit in bytes.

    Raises:
        ValueError: If it is not positive.
    """
    for name, number in size.items():
        if number < 1:
            raise ValueError(f"{name} must be 1 or more, not {number}")


class RetrieveTransform(DICOMwebTransform):
    """What the retrieves share: references in, reshuffled, and fetched after that.

    Args:
        endpoint: An `Endpoint`, a URL or a path.
        max_bytes: The bytes that may be read or wait at once in a process.
        keep_order: Give results in the order of the references of a bundle, which are then not packed by series.
        failures: ``"raise"`` or ``"collect"``.
    """

    def __init__(self, endpoint: EndpointLike, *, max_bytes: int, keep_order: bool, failures: FailureMode) -> None:
        super().__init__(endpoint, failures=failures)
        check_size(max_bytes=max_bytes)
        self.max_bytes = max_bytes
        self.keep_order = keep_order

    def _pooled(self, kind: type[D], pcollection: Any, *arguments: Any, **options: Any) -> D:
        limits = {"ordered": self.keep_order, "max_bytes": self.max_bytes}
        return super()._pooled(kind, pcollection, *arguments, **limits, **options)

    def _fetch(
        self,
        pcollection: Any,
        dofn: PooledDoFn,
        output_type: Any,
        *,
        references: AsReferences | None = None,
        choose: PooledDoFn | None = None,
        packs: bool = False,
    ) -> tuple[Any, Any]:
        """References, reshuffled before they are chosen from and fetched; gives the results and the failures."""
        made = references or AsReferences(type(self).__name__, collect=self.collects)
        named = pcollection | "AsReferences" >> self._step(made, Resource)
        failures = [named[FAILURES]]
        if choose is not None:
            named = named["main"] | "ReshuffleReferences" >> beam.Reshuffle() | "Choose" >> self._step(choose, Resource)
            failures.append(named[FAILURES])
        if packs and not self.keep_order:
            named = packed(self, named["main"], Resource | InstanceGroup, expands=False)
            failures.append(named[FAILURES])
        fetched = named["main"] | "Reshuffle" >> beam.Reshuffle() | "Fetch" >> self._step(dofn, output_type)
        return fetched["main"], self._report([*failures, fetched[FAILURES]])


@beam.typehints.with_input_types(ReferenceInput)
class RetrieveInstances(RetrieveTransform):
    """Retrieves instances as unparsed Part 10 bytes: `Instance` elements.

    The input is any reference: `Resource`s, rows of searches or metadata, DICOMweb URIs. For a frame reference the
    whole instance is retrieved. The answer for a study or series is compared with a search; a missing instance is
    requested again by itself, and is a failure if it does not arrive.

    In each worker process the limits of the endpoint hold for all bundles and steps together: ``Limits.max_in_flight``
    requests at once, and `max_bytes` that are read or wait for the next step, so that a slow consumer holds the
    retrieves back. Each step of a bundle may run one task and hold one item beyond them, which keeps any chain of
    transforms going; memory is bounded by `max_bytes` and one item for each step of each bundle.

    Args:
        endpoint: An `Endpoint`, a URL or a path.
        media_types: Accepted encodings in order of preference; by default the stored one.
        allow_transcoding: Accept re-encoded instances if the archive cannot return the original.
        max_element_bytes: Instances up to this size are elements with their bytes.
        spool_directory: A directory for larger ones, shared with the readers of the elements: then the element has a
            path, and the consumer owns the file. Without it a larger instance is a failure.
        max_bytes: The bytes that may be read or wait at once in a process. One larger instance passes alone. The
            smallest number that any transform names for the endpoint holds for all.
        keep_order: Give results in the order of the references of a bundle.
        additional_params: Further query parameters.
        failures: ``"raise"`` or ``"collect"``; with the latter the output is a `RetrievedInstances`. See also
            `with_error_handler`.
    """

    _element_type = Instance

    def __init__(
        self,
        endpoint: EndpointLike,
        *,
        media_types: MediaTypes | None = None,
        allow_transcoding: bool = False,
        max_element_bytes: int = DEFAULT_MAX_ELEMENT_BYTES,
        spool_directory: str | None = None,
        max_bytes: int = DEFAULT_MAX_BYTES,
        keep_order: bool = False,
        additional_params: Mapping[str, Any] | None = None,
        failures: FailureMode = "raise",
    ) -> None:
        super().__init__(endpoint, max_bytes=max_bytes, keep_order=keep_order, failures=failures)
        types = checked_media_types("instances", media_types)
        self.how = RetrieveOptions(types, max_element_bytes, spool_directory, additional_params, allow_transcoding)

    def expand(self, pcollection: Any) -> Any:
        """Builds the steps."""
        dofn = self._pooled(_FetchInstances, pcollection, self.how)
        instances, failures = self._fetch(pcollection, dofn, Instance, packs=True)
        return RetrievedInstances(instances, failures) if self._failure_mode == "collect" else instances

    def display_data(self) -> dict[str, Any]:
        """The endpoint and limits."""
        return {
            **super().display_data(),
            "max_element_bytes": DisplayDataItem(self.how.max_element_bytes, label="Largest element"),
            "max_bytes": DisplayDataItem(self.max_bytes, label="Bytes in flight"),
        }


class FetchParts(PooledDoFn):
    """Retrieves instances, frames or values; each waits in a file until its size is known.

    Args:
        endpoint: The archive.
        transform: The name for failures.
        how: What is asked for.
        **options: See `PooledDoFn`.
    """

    _part: str
    """What is retrieved, for failures."""

    def __init__(self, endpoint: Endpoint, transform: str, how: RetrieveOptions, **options: Any) -> None:
        super().__init__(endpoint, transform, **options)
        self._how = how

    def setup(self) -> None:
        """Makes the place for the files."""
        super().setup()
        how = self._how
        self._spool = PartSpool(self._transform, self._part, how.max_element_bytes, how.spool_directory)

    def teardown(self) -> None:
        """Removes the files that are left."""
        super().teardown()
        # The files of emitted elements were moved out of it before.
        self._spool.remove()


class _FetchInstances(FetchParts):
    _part = "the instance"

    def setup(self) -> None:
        super().setup()
        client = cast(Lease, self._lease).client
        arriving = partial(self._arriving, client)
        self._reader = SeriesReader(client, arriving, self._spool.discard, transform=self._transform)

    def count_result(self, result: Instance) -> None:
        size = len(result.content) if result.content is not None else result.size
        count("instances")
        count("instance_bytes", size)
        observe("instance_size", size)

    def produce(self, subject: Resource | InstanceGroup, client: DICOMClient, room: Room) -> Iterator[Any]:
        if isinstance(subject, InstanceGroup):
            yield from self._of_series(subject, room)
            return
        if subject.level == "instance":
            found = False
            for item in self._stream(subject, client, room):
                found = True
                yield item
            if not found:
                yield self._missing(subject, client)
            return
        expected, incomplete = listed_instances(client, subject)
        if incomplete is not None:
            yield problem_of(incomplete, self._transform, reference=subject)
        try:
            for item in self._stream(subject, client, room):
                reference = item.reference if isinstance(item, Instance) else item.failure.reference
                expected.pop(reference, None)
                yield item
        except RECOVERABLE as error:
            # A failure that the archive would repeat for each instance is better reported once. An answer that ends
            # early in the same place again and again may do so for one instance alone.
            hopeless = isinstance(error, DeadlineExceededError) or not (
                isinstance(error, ResponseIncompleteError) or failure_of(error, self._transform).retryable
            )
            if not expected or hopeless:
                yield problem_of(error, self._transform, reference=subject)
                return
            logger.warning(
                "%s: %d instances of %s were missing from the answer and are requested one by one",
                client.base_url,
                len(expected),
                subject.uri,
            )
        for reference in expected:
            yield from self._again(reference, client, room)

    def _of_series(self, group: InstanceGroup, room: Room) -> Iterator[Any]:
        times = Counter(group.references)
        for reference, item in self._reader.iter(group, room=room):
            result = item if isinstance(item, Failure) else self._spool.as_element(item, reference, room)
            del item
            for _ in range(times[reference]):
                yield result
            del result

    def _again(self, reference: Resource, client: DICOMClient, room: Room) -> Iterator[Any]:
        """An instance that a search lists but that was missing from its study or series."""
        found = False
        try:
            for item in self._stream(reference, client, room):
                found = True
                yield item
        except RECOVERABLE as error:
            yield problem_of(error, self._transform, reference=reference)
            return
        if not found:
            yield self._missing(reference, client)

    def _stream(self, reference: Resource, client: DICOMClient, room: Room) -> Iterator[Any]:
        for instance in self._arriving(client, reference, room):
            yield self._spool.as_element(instance, instance.reference, room)
            # Nothing here may keep it in memory while the next is read.
            del instance

    def _arriving(self, client: DICOMClient, reference: Resource, room: Room) -> Iterator[Instance]:
        how = self._how
        # What is larger goes to a file first, so that its size is known before it is read into memory.
        threshold = self._spool.threshold(room)
        room.reserve(threshold)
        instances = client.iter_instances(
            reference,
            media_types=how.media_types,
            max_element_bytes=threshold,
            spool_directory=self._spool.path,
            allow_transcoding=how.allow_transcoding,
            additional_params=how.additional_params,
        )
        for instance in instances:
            yield instance
            del instance
            room.reserve(threshold)

    def _missing(self, reference: Resource, client: DICOMClient) -> Failure:
        return Failure(
            self._transform,
            f"{client.base_url} answered without the instance {reference.uri}",
            reference=reference,
            retryable=True,
        )


@beam.typehints.with_input_types(ReferenceInput)
class RetrieveMetadata(RetrieveTransform):
    """Retrieves the metadata of instances: dicts in the DICOM JSON model (PS3.18 Annex F), one for each instance.

    The input and the comparison with what a search lists are those of `RetrieveInstances`.

    Args:
        endpoint: An `Endpoint`, a URL or a path.
        max_bytes: The estimated bytes of metadata that may be read or wait at once in a process.
        keep_order: Give results in the order of the references of a bundle.
        additional_params: Further query parameters.
        failures: ``"raise"`` or ``"collect"``; with the latter the output is a `RetrievedMetadata`. See also
            `with_error_handler`.
    """

    _element_type = dict[str, Any]

    def __init__(
        self,
        endpoint: EndpointLike,
        *,
        max_bytes: int = DEFAULT_MAX_BYTES,
        keep_order: bool = False,
        additional_params: Mapping[str, Any] | None = None,
        failures: FailureMode = "raise",
    ) -> None:
        super().__init__(endpoint, max_bytes=max_bytes, keep_order=keep_order, failures=failures)
        self.additional_params = dict(additional_params) if additional_params else None

    def expand(self, pcollection: Any) -> Any:
        """Builds the steps."""
        dofn = self._pooled(_FetchMetadata, pcollection, self.additional_params)
        metadata, failures = self._fetch(pcollection, dofn, dict[str, Any], packs=True)
        return RetrievedMetadata(metadata, failures) if self._failure_mode == "collect" else metadata


class _FetchMetadata(PooledDoFn):
    def __init__(
        self, endpoint: Endpoint, transform: str, additional_params: Mapping[str, Any] | None, **options: Any
    ) -> None:
        super().__init__(endpoint, transform, **options)
        self._params = additional_params

    def count_result(self, result: JSONDataset) -> None:
        count("metadata")

    def produce(self, subject: Resource | InstanceGroup, client: DICOMClient, room: Room) -> Iterator[Any]:
        if isinstance(subject, InstanceGroup):
            yield from self._of_series(subject, client, room)
        else:
            yield from self._complete(subject, client, room)

    def _complete(self, subject: Resource, client: DICOMClient, room: Room) -> Iterator[Any]:
        return complete_metadata(client, subject, room, transform=self._transform, additional_params=self._params)

    def _of_series(self, group: InstanceGroup, client: DICOMClient, room: Room) -> Iterator[Any]:
        times = Counter(group.references)
        rest = dict.fromkeys(times)
        if group.listed is not None and is_worth_whole(len(rest), group.listed):
            room.reserve(_METADATA_BYTES)
            try:
                for row in client.iter_metadata(group.series, additional_params=self._params):
                    reference = instance_of_row(row, group.series)
                    if reference in rest:
                        del rest[reference]
                        yield from repeat(row, times[reference])
                        room.reserve(_METADATA_BYTES)
            except RECOVERABLE as error:
                logger.info("the metadata of %s ended early: %s", group.series.uri, log_text(error))
        for reference, row in room.each(rest, partial(self._alone, client)):
            room.reserve(_METADATA_BYTES)
            yield from repeat(row, times[reference])

    def _alone(self, client: DICOMClient, reference: Resource, room: Room) -> Iterator[Any]:
        try:
            yield from self._complete(reference, client, room)
        except RECOVERABLE as error:
            yield problem_of(error, self._transform, reference=reference)


def complete_metadata(
    client: DICOMClient,
    subject: Resource,
    room: Room,
    *,
    transform: str,
    additional_params: Mapping[str, Any] | None = None,
) -> Iterator[Any]:
    """Yields the metadata of every instance that a search lists for a reference, and a `Problem` for what is missing.

    Args:
        client: The archive.
        subject: A study, series or instance.
        room: Where room for each row is reserved.
        transform: The name for failures.
        additional_params: Further query parameters.
    """
    expected, incomplete = listed_instances(client, subject)
    if incomplete is not None:
        yield problem_of(incomplete, transform, reference=subject)
    room.reserve(_METADATA_BYTES)
    for row in client.iter_metadata(subject, additional_params=additional_params):
        expected.pop(instance_of_row(row, subject), None)
        yield row
        room.reserve(_METADATA_BYTES)
    for reference in expected:
        try:
            rows = [] if subject == reference else list(client.iter_metadata(reference))
        except RECOVERABLE as error:
            yield problem_of(error, transform, reference=reference)
            continue
        if rows:
            yield rows[0]
            continue
        message = f"{client.base_url} answered without the metadata of {reference.uri}"
        yield Problem(Failure(transform, message, reference=reference, retryable=True))
