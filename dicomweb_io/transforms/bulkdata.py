"""Bulk data (WADO-RS, PS3.18 section 10.4.1.1.5): `RetrieveBulkdata`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.transforms.display import DisplayDataItem

from dicomweb_io.clients.endpoint import Endpoint, EndpointLike
from dicomweb_io.clients.pool import DEFAULT_MAX_BYTES, Room
from dicomweb_io.clients.protocol import DEFAULT_MAX_ELEMENT_BYTES, DICOMClient, MediaTypes
from dicomweb_io.dicom.attributes import resolve
from dicomweb_io.elements import Bulkdata, Failure, Resource
from dicomweb_io.transforms.base import FAILURES, FailureMode, PooledDoFn, Problem, Work, several_windows
from dicomweb_io.transforms.frames import check_sizes
from dicomweb_io.transforms.metrics import count
from dicomweb_io.transforms.retrieve import ReferenceInput, RetrieveTransform, complete_metadata
from dicomweb_io.transforms.spooling import PartSpool
from dicomweb_io.wire.errors import safe_url

_GUESS = 1024 * 1024


class RetrievedBulkdata(NamedTuple):
    """The output of `RetrieveBulkdata` with ``failures="collect"``."""

    bulkdata: Any
    failures: Any


@beam.typehints.with_input_types(ReferenceInput)
class RetrieveBulkdata(RetrieveTransform):
    """Retrieves bulk data: `Bulkdata` elements, one for each part of each BulkDataURI.

    The input is any of

    - the BulkDataURI itself, as text: absolute, or relative to the archive;
    - metadata in the DICOM JSON model: every BulkDataURI in it, at any depth;
    - a reference, a row of a search, or the URI of a study, series or instance: its metadata are asked for, and every
      BulkDataURI in them is retrieved.

    Credentials go to the archive's own origin only, also where a BulkDataURI names another host.

    Args:
        endpoint: An `Endpoint`, a URL or a path.
        attributes: Only the bulk data of these attributes (keywords or tags, at any depth) of metadata.
        media_types: Wanted types in order of preference.
        max_element_bytes: Values up to this size are elements with their bytes.
        spool_directory: A directory, shared by whoever reads the elements, for larger ones: then the element has a
            path, and the consumer owns the file. Without it a larger value is a failure.
        max_bytes: The bytes that may be read or wait at once in a process.
        keep_order: Give results in the order of the elements of a bundle.
        additional_params: Further query parameters.
        failures: ``"raise"`` or ``"collect"``; with the latter the output is a `RetrievedBulkdata`. See also
            `with_error_handler`.

    Raises:
        ValueError: If an argument is not valid.
    """

    _element_type = Bulkdata

    def __init__(
        self,
        endpoint: EndpointLike,
        *,
        attributes: Sequence[str] | None = None,
        media_types: MediaTypes | None = None,
        max_element_bytes: int = DEFAULT_MAX_ELEMENT_BYTES,
        spool_directory: str | None = None,
        max_bytes: int = DEFAULT_MAX_BYTES,
        keep_order: bool = False,
        additional_params: Mapping[str, Any] | None = None,
        failures: FailureMode = "raise",
    ) -> None:
        super().__init__(endpoint, failures=failures)
        check_sizes(max_element_bytes=max_element_bytes, max_bytes=max_bytes)
        if isinstance(attributes, str):
            raise TypeError("attributes must be a sequence of keywords or tags, not one str")
        self.tags = None if attributes is None else frozenset(resolve(name)[-1] for name in attributes)
        self.how = BulkdataOptions(
            tuple(media_types) if media_types is not None else None,
            max_element_bytes,
            spool_directory,
            dict(additional_params) if additional_params else None,
        )
        self.max_bytes = max_bytes
        self.keep_order = keep_order

    def expand(self, pcollection: Any) -> Any:
        """Builds the steps."""
        name = type(self).__name__
        how: dict[str, Any] = {
            "collect": self.collects,
            "hold": several_windows(pcollection),
            "ordered": self.keep_order,
            "max_bytes": self.max_bytes,
        }
        found = pcollection | "FindURIs" >> self._step(_FindURIs(self.endpoint, name, self.tags, **how), str)
        fetched = (
            found["main"]
            | "Reshuffle" >> beam.Reshuffle()
            | "Fetch" >> self._step(_FetchBulkdata(self.endpoint, name, self.how, **how), Bulkdata)
        )
        failures = self._report([found[FAILURES], fetched[FAILURES]])
        return RetrievedBulkdata(fetched["main"], failures) if self._failure_mode == "collect" else fetched["main"]

    def display_data(self) -> dict[str, Any]:
        """The endpoint and limits."""
        return {
            **super().display_data(),
            "attributes": DisplayDataItem(", ".join(sorted(self.tags or ())), label="Attributes").drop_if_default(""),
            "max_element_bytes": DisplayDataItem(self.how.max_element_bytes, label="Largest element"),
        }


@dataclass(frozen=True)
class BulkdataOptions:
    """How bulk data are asked for; see `RetrieveBulkdata`."""

    media_types: tuple[Any, ...] | None = None
    max_element_bytes: int = DEFAULT_MAX_ELEMENT_BYTES
    spool_directory: str | None = None
    additional_params: Mapping[str, Any] | None = None


def bulkdata_uris(dataset: Mapping[str, Any], tags: frozenset[str] | None = None) -> Iterator[str]:
    """Yields the BulkDataURIs of a dataset in the DICOM JSON model, at any depth.

    Args:
        dataset: The dataset.
        tags: Only those of these attributes; None for all.
    """
    for tag, element in dataset.items():
        if not isinstance(element, Mapping):
            continue
        uri = element.get("BulkDataURI")
        if isinstance(uri, str) and uri and (tags is None or tag.upper() in tags):
            yield uri
        for item in element.get("Value") or ():
            if isinstance(item, Mapping) and element.get("vr") == "SQ":
                yield from bulkdata_uris(item, tags)


class _FindURIs(PooledDoFn):
    """From elements to BulkDataURIs; asks for metadata where an element is only a reference."""

    def __init__(self, endpoint: Endpoint, transform: str, tags: frozenset[str] | None, **options: Any) -> None:
        super().__init__(endpoint, "retrieve", transform, **options)
        self._tags = tags

    def reference_of(self, subject: Any) -> Resource | None:
        return _reference_in(subject)

    def produce(self, subject: Any, client: DICOMClient, room: Room) -> Iterator[Any]:
        if isinstance(subject, Mapping) and next(bulkdata_uris(subject), None) is not None:
            yield from bulkdata_uris(subject, self._tags)
            return
        reference = _reference_in(subject)
        if reference is None:
            if not isinstance(subject, str):
                # Raises and says what is wrong.
                reference = Resource.of(subject)
            else:
                yield subject
                return
        for row in complete_metadata(client, reference.instance, room, transform=self._transform):
            if isinstance(row, Problem):
                yield row
            else:
                yield from bulkdata_uris(row, self._tags)


def _reference_in(subject: Any) -> Resource | None:
    """The study, series or instance that an element names; None for any other URI."""
    try:
        reference = Resource.of(subject)
    except (TypeError, ValueError):
        return None
    # A BulkDataURI may well end in /frames/1.
    return None if isinstance(subject, str) and reference.level == "frame" else reference


class _FetchBulkdata(PooledDoFn):
    def __init__(self, endpoint: Endpoint, transform: str, how: BulkdataOptions, **options: Any) -> None:
        super().__init__(endpoint, "retrieve", transform, **options)
        self._how = how

    def setup(self) -> None:
        super().setup()
        self._spool = PartSpool(self._transform, "the value", self._how.max_element_bytes, self._how.spool_directory)

    def teardown(self) -> None:
        super().teardown()
        self._spool.remove()

    def _key(self, subject: str) -> Any:
        return subject

    def taken(self, result: Bulkdata) -> None:
        count("bulkdata")
        count("bulkdata_bytes", len(result.content or b""))

    def produce(self, subject: str, client: DICOMClient, room: Room) -> Iterator[Any]:
        how = self._how
        room.reserve(_GUESS)
        found = False
        for part in client.iter_bulkdata_parts(
            subject,
            media_types=how.media_types,
            additional_params=how.additional_params,
            max_element_bytes=self._spool.threshold(room),
            spool_directory=self._spool.path,
        ):
            found = True
            yield self._spool.taken(part, None, room)
            del part
            room.reserve(_GUESS)
        if not found:
            message = f"{client.base_url} answered without the bulk data"
            yield Problem(Failure(self._transform, message, url=safe_url(subject), retryable=True))

    def _emit(self, work: Work, result: Any) -> Iterator[Any]:
        if isinstance(result, Problem):
            # What was asked for, also where a redirect led elsewhere: it is all that names the value.
            result = Problem(replace(result.failure, url=safe_url(work.subject)), result.error)
        yield from super()._emit(work, result)
