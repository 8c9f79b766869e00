"""Retrieves of parts of instances (WADO-RS, PS3.18 sections 8.3.5 and 10.4.1.1).

`RetrieveFrames`, `RetrieveRendered` and `RetrieveBulkdata`. Which frames of which instances are wanted is found out
first: from references at any level to references to frames, in pieces of a size, which are reshuffled and then fetched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import apache_beam as beam
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.display import DisplayDataItem

from dicomweb_io.client import DEFAULT_MAX_ELEMENT_BYTES, DICOMClient, MediaTypes
from dicomweb_io.dicom.attributes import resolve
from dicomweb_io.dicom.frames import NUMBER_OF_FRAMES, first, number_of_frames
from dicomweb_io.dicom.media_types import checked_media_types
from dicomweb_io.dicom.pixels import is_video
from dicomweb_io.elements import Bulkdata, Failure, Frame, JSONDataset, RenderedImage, Resource
from dicomweb_io.endpoint import Endpoint, EndpointLike
from dicomweb_io.errors import DatasetError, DeadlineExceededError, FrameError, safe_url
from dicomweb_io.failures import RECOVERABLE, failure_of
from dicomweb_io.listing import expand_reference
from dicomweb_io.pool import DEFAULT_MAX_BYTES, Room
from dicomweb_io.transforms._core import (
    FAILURES,
    AsReferences,
    Converting,
    FailureMode,
    PooledDoFn,
    Problem,
    ReferenceInput,
    Work,
    call_user,
    piped_by_member,
    problem_of,
)
from dicomweb_io.transforms.metrics import count, observe
from dicomweb_io.transforms.retrieve import (
    FetchParts,
    RetrieveOptions,
    RetrieveTransform,
    complete_metadata,
)
from dicomweb_io.web.frames import check_rendering_params

FrameChoice = Literal["all"] | Sequence[int] | Callable[[JSONDataset], Iterable[int]] | None
"""Frame numbers, all of them, or a function that chooses them by the metadata of their instance."""

# The transfer syntaxes that an archive has an instance in, and what is in the file meta information.
_TRANSFER_SYNTAXES = ("00083002", "00020010")

FRAMES_AT_ONCE = 64
"""The maximum number of frames of one piece of work. Archives are asked for fewer at once if their profile says so."""

MANY_FRAMES = 1000
"""Beyond this number, metadata are believed only if the last frame is there."""

_FRAME_GUESS = 512 * 1024
_RENDERED_GUESS = 256 * 1024
_BULKDATA_GUESS = 1024 * 1024


def check_choice(frames: FrameChoice) -> FrameChoice:
    """Checks a choice of frames; lists become tuples.

    Raises:
        ValueError: If it is not valid, or a number is not a positive integer.
    """
    if frames is None or callable(frames):
        return frames
    if isinstance(frames, str):
        if frames == "all":
            return "all"
        raise ValueError(f"frames must be 'all', frame numbers, or a function of the metadata, not {frames!r}")
    if not isinstance(frames, (list, tuple, range)):
        raise ValueError(f"frames must be 'all', frame numbers, or a function of the metadata, not {frames!r}")
    numbers: tuple[int, ...] = tuple(frames)
    for number in numbers:
        _check_number(number)
    if not numbers:
        raise ValueError("frames is empty: name at least one")
    return numbers


def _check_number(number: Any) -> None:
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise ValueError(f"frames must be positive integers, but one is {number!r}")


def _video(row: Mapping[str, Any]) -> str | None:
    """The transfer syntax of an instance whose metadata say that it is stored as video."""
    syntaxes = (first(row, tag) for tag in _TRANSFER_SYNTAXES)
    return next((syntax for syntax in syntaxes if isinstance(syntax, str) and is_video(syntax)), None)


class FrameReferences(AsReferences):
    """Makes references of whatever names objects; frames stay frames.

    Args:
        transform: The name for failures.
        collect: Whether what names nothing becomes a `Failure`.
        count_frames: Make references to all frames of rows that contain the number of frames, which saves asking for
            it.
    """

    _whole = False

    def __init__(self, transform: str, *, collect: bool, count_frames: bool = False) -> None:
        super().__init__(transform, collect=collect)
        self._count_frames = count_frames

    def reference_of(self, element: Any) -> Resource:
        """The reference; of a row with Number of Frames (0028,0008) one to all its frames."""
        reference: Resource = super().reference_of(element)
        if self._count_frames and reference.level == "instance" and isinstance(element, Mapping):
            number = number_of_frames(element) if first(element, NUMBER_OF_FRAMES) is not None else 0
            # The metadata tell more of what is doubtful.
            if 0 < number <= MANY_FRAMES and _video(element) is None:
                return replace(reference, frames=tuple(range(1, number + 1)))
        return reference


class ChooseFrames(PooledDoFn):
    """Makes references to frames of references at any level.

    Args:
        endpoint: The archive.
        transform: The name for failures.
        frames: The choice; None leaves instances as they are. What an element names itself is not chosen again.
        piece: The maximum number of frames of one reference.
        **options: See `PooledDoFn`.
    """

    def __init__(self, endpoint: Endpoint, transform: str, frames: FrameChoice, *, piece: int, **options: Any) -> None:
        super().__init__(endpoint, transform, **options)
        self._frames = frames
        self._piece = piece

    def produce(self, subject: Resource, client: DICOMClient, room: Room) -> Iterator[Any]:
        """Yields references, or `Problem`s."""
        choice = self._frames
        if subject.frames:
            yield from self._pieces(subject, subject.frames)
        elif choice is None:
            yield from expand_reference(client, subject)
        elif choice == "all" or callable(choice):
            for row in complete_metadata(client, subject, room, transform=self._transform):
                if isinstance(row, Problem):
                    yield row
                    continue
                try:
                    yield from self._chosen(row, choice, client)
                except (*RECOVERABLE, ValueError) as error:
                    # Numbers that are none are the user's mistake in one instance.
                    yield problem_of(error, self._transform, reference=Resource.of(row).instance)
        else:
            for instance in expand_reference(client, subject):
                yield from self._pieces(instance, choice)

    def _chosen(self, row: JSONDataset, choice: Any, client: DICOMClient) -> Iterator[Any]:
        instance = Resource.of(row).instance
        self._check(row)
        maximum = number_of_frames(row)
        if maximum > MANY_FRAMES:
            # A number that is far too large would be as many requests that fail.
            try:
                self._retrieve_last(replace(instance, frames=(maximum,)), client)
            except RECOVERABLE as error:
                if failure_of(error, self._transform).retryable:
                    raise
                raise DatasetError(
                    f"NumberOfFrames (0028,0008) is {maximum}, but there is no frame {maximum}: {error}"
                ) from error
        if choice == "all":
            yield from self._pieces(instance, range(1, maximum + 1))
            return
        numbers = call_user(choice, row, then=list)
        for number in numbers:
            _check_number(number)
        beyond = tuple(number for number in numbers if number > maximum)
        if beyond:
            message = f"{instance.uri} has {maximum} frames, but the function chose " + ", ".join(map(str, beyond[:10]))
            yield Problem(Failure(self._transform, message, reference=replace(instance, frames=beyond)))
        yield from self._pieces(instance, [number for number in numbers if number <= maximum])

    def _check(self, row: JSONDataset) -> None:
        syntax = _video(row)
        if syntax is not None:
            raise FrameError(
                f"it is a video ({syntax}), one stream without single frames: retrieve the instance or its bulk data"
            )

    def _retrieve_last(self, reference: Resource, client: DICOMClient) -> None:
        for _ in client.iter_frames(reference):
            pass

    def _pieces(self, instance: Resource, numbers: Sequence[int]) -> Iterator[Resource]:
        for start in range(0, len(numbers), self._piece):
            yield replace(instance, frames=tuple(numbers[start : start + self._piece]))


@piped_by_member
class RetrievedFrames(NamedTuple):
    """The output of `RetrieveFrames` with ``failures="collect"``."""

    frames: Any
    failures: Any


@beam.typehints.with_input_types(ReferenceInput)
class RetrieveFrames(RetrieveTransform):
    """Retrieves frames: `Frame` elements, each with its transfer syntax.

    The input is any reference. One to frames means those frames, in their order; of instances, series and studies
    `frames` says which. As many frames come as were asked for; a frame that does not come is a failure that names it.
    Instances without an image have no frames.

    Requests are batched as far as the archive allows. Frames of one instance are retrieved in pieces, which different
    workers may take.

    Args:
        endpoint: An `Endpoint`, a URL or a path.
        frames: ``"all"``; frame numbers, counted from 1; or a function that is given the metadata of an instance (a
            dict in the DICOM JSON model) and returns frame numbers. Only numbers need no request for metadata; rows
            that hold Number of Frames (0028,0008) need none for ``"all"`` either.
        media_types: Accepted encodings in order of preference; by default the stored one.
        max_element_bytes: Frames up to this size are elements with their bytes.
        spool_directory: A directory for larger ones, shared with the readers of the elements: then the element has a
            path, and the consumer owns the file. Without it a larger frame is a failure.
        max_bytes: The bytes that may be read or wait at once in a process.
        keep_order: Give results in the order of the references of a bundle.
        additional_params: Further query parameters.
        failures: ``"raise"`` or ``"collect"``; with the latter the output is a `RetrievedFrames`. See also
            `with_error_handler`.

    Raises:
        ValueError: If an argument is not valid.
    """

    _element_type = Frame

    def __init__(
        self,
        endpoint: EndpointLike,
        frames: FrameChoice = "all",
        *,
        media_types: MediaTypes | None = None,
        max_element_bytes: int = DEFAULT_MAX_ELEMENT_BYTES,
        spool_directory: str | None = None,
        max_bytes: int = DEFAULT_MAX_BYTES,
        keep_order: bool = False,
        additional_params: Mapping[str, Any] | None = None,
        failures: FailureMode = "raise",
    ) -> None:
        super().__init__(endpoint, max_bytes=max_bytes, keep_order=keep_order, failures=failures)
        self.frames: FrameChoice = check_choice(frames if frames is not None else "all")
        types = checked_media_types("frames", media_types)
        self.how = RetrieveOptions(types, max_element_bytes, spool_directory, additional_params)

    def expand(self, pcollection: Any) -> Any:
        """Builds the steps."""
        name, collects = type(self).__name__, self.collects
        frames, failures = self._fetch(
            pcollection,
            self._pooled(_FetchFrames, pcollection, self.how),
            Frame,
            references=FrameReferences(name, collect=collects, count_frames=self.frames == "all"),
            choose=self._pooled(ChooseFrames, pcollection, self.frames, piece=FRAMES_AT_ONCE),
        )
        return RetrievedFrames(frames, failures) if self._failure_mode == "collect" else frames

    def display_data(self) -> dict[str, Any]:
        """The endpoint, the choice and limits."""
        chosen = getattr(self.frames, "__name__", None) or type(self.frames).__name__
        if not callable(self.frames):
            chosen = self.frames if isinstance(self.frames, str) else ", ".join(map(str, self.frames or ()))
        return {
            **super().display_data(),
            "frames": DisplayDataItem(chosen, label="Frames"),
            "max_element_bytes": DisplayDataItem(self.how.max_element_bytes, label="Largest element"),
            "max_bytes": DisplayDataItem(self.max_bytes, label="Bytes in flight"),
        }


class _FetchFrames(FetchParts):
    _part = "the frame"

    def count_result(self, result: Frame) -> None:
        count("frames")
        if result.content is not None:
            count("frame_bytes", len(result.content))
            observe("frame_size", len(result.content))

    def produce(self, subject: Resource, client: DICOMClient, room: Room) -> Iterator[Any]:
        left = list(subject.frames)
        guess = _FRAME_GUESS
        try:
            room.reserve(guess)
            for frame in self._frames(subject, client, room):
                del left[0]
                element = self._spool.as_element(frame, frame.reference, room)
                guess = max(len(element.content or b"") if isinstance(element, Frame) else 0, 1)
                yield element
                # Nothing here may keep it in memory while the next is read.
                del frame, element
                room.reserve(guess)
        except RECOVERABLE as error:
            problem = problem_of(error, self._transform, reference=replace(subject, frames=tuple(left)))
            if len(left) < 2 or problem.failure.retryable or isinstance(error, DeadlineExceededError):
                # A failure that concerns all of them is better reported once.
                yield problem
                return
        else:
            if left:
                missing = replace(subject, frames=tuple(left))
                message = f"{client.base_url} answered without the frames {missing.uri}"
                yield Problem(Failure(self._transform, message, reference=missing, retryable=True))
            return
        # One that does not exist must not cost the others.
        for number in left:
            yield from self.produce(replace(subject, frames=(number,)), client, room)

    def _frames(self, subject: Resource, client: DICOMClient, room: Room) -> Iterator[Frame]:
        how = self._how
        return client.iter_frames(
            subject,
            media_types=how.media_types,
            additional_params=how.additional_params,
            max_element_bytes=self._spool.threshold(room),
            spool_directory=self._spool.path,
        )


@piped_by_member
class RetrievedRendered(NamedTuple):
    """The output of `RetrieveRendered` with ``failures="collect"``."""

    images: Any
    failures: Any


@beam.typehints.with_input_types(ReferenceInput)
class RetrieveRendered(RetrieveTransform):
    """Retrieves rendered images: `RenderedImage` elements in a consumer format such as JPEG or PNG.

    The input is any reference. Studies and series become their instances, as a search lists them, because few archives
    render whole ones; a reference to several frames becomes one image for each frame. Only thumbnails are asked for at
    the level of the reference. An instance that has no image is a failure.

    Args:
        endpoint: An `Endpoint`, a URL or a path.
        frames: None renders instances as the archive does (of several frames often the first, or a film); else as in
            `RetrieveFrames`, one image for each frame.
        media_types: Accepted types in order of preference; by default what the archive prefers.
        params: Rendering parameters: ``quality``, ``window``, ``viewport``, ``annotation``, ``iccprofile`` …
        thumbnail: Ask for thumbnails.
        max_bytes: The bytes that may be read or wait at once in a process.
        keep_order: Give results in the order of the references of a bundle.
        failures: ``"raise"`` or ``"collect"``; with the latter the output is a `RetrievedRendered`. See also
            `with_error_handler`.

    Raises:
        ValueError: If an argument is not valid.
    """

    _element_type = RenderedImage

    def __init__(
        self,
        endpoint: EndpointLike,
        frames: FrameChoice = None,
        *,
        media_types: MediaTypes | None = None,
        params: Mapping[str, Any] | None = None,
        thumbnail: bool = False,
        max_bytes: int = DEFAULT_MAX_BYTES,
        keep_order: bool = False,
        failures: FailureMode = "raise",
    ) -> None:
        super().__init__(endpoint, max_bytes=max_bytes, keep_order=keep_order, failures=failures)
        check_rendering_params(params, thumbnail=thumbnail)
        self.frames = check_choice(frames)
        self.options: dict[str, Any] = {
            "media_types": checked_media_types("rendered", media_types),
            "params": dict(params) if params else None,
            "thumbnail": thumbnail,
        }

    def expand(self, pcollection: Any) -> Any:
        """Builds the steps."""
        name, collects = type(self).__name__, self.collects
        thumbnail = bool(self.options["thumbnail"])
        images, failures = self._fetch(
            pcollection,
            self._pooled(_FetchRendered, pcollection, self.options),
            RenderedImage,
            references=FrameReferences(name, collect=collects, count_frames=self.frames == "all"),
            choose=self._pooled(_ChooseRendered, pcollection, self.frames, piece=1, thumbnail=thumbnail),
        )
        return RetrievedRendered(images, failures) if self._failure_mode == "collect" else images

    def display_data(self) -> dict[str, Any]:
        """The endpoint and what is asked for."""
        types = [item if isinstance(item, str) else item[0] for item in self.options["media_types"] or ()]
        return {
            **super().display_data(),
            "media_types": DisplayDataItem(", ".join(types), label="Media types").drop_if_default(""),
            "thumbnail": DisplayDataItem(self.options["thumbnail"], label="Thumbnails"),
        }


class _ChooseRendered(ChooseFrames):
    def __init__(self, *arguments: Any, thumbnail: bool, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._thumbnail = thumbnail

    def produce(self, subject: Resource, client: DICOMClient, room: Room) -> Iterator[Any]:
        if self._thumbnail and self._frames is None and not subject.frames:
            yield subject
            return
        yield from super().produce(subject, client, room)

    def _check(self, row: JSONDataset) -> None:
        """An archive may render the frames of a video."""

    def _retrieve_last(self, reference: Resource, client: DICOMClient) -> None:
        client.retrieve_rendered(reference)


class _FetchRendered(PooledDoFn):
    def __init__(self, endpoint: Endpoint, transform: str, options: dict[str, Any], **how: Any) -> None:
        super().__init__(endpoint, transform, **how)
        self._options = options

    def count_result(self, result: RenderedImage) -> None:
        count("rendered_images")
        count("rendered_bytes", len(result.content))

    def produce(self, subject: Resource, client: DICOMClient, room: Room) -> Iterator[Any]:
        room.reserve(_RENDERED_GUESS)
        image = client.retrieve_rendered(subject, **self._options)
        room.reserve(len(image.content))
        yield image


@piped_by_member
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
        media_types: Accepted types in order of preference.
        max_element_bytes: Values up to this size are elements with their bytes.
        spool_directory: A directory for larger ones, shared with the readers of the elements: then the element has a
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
        super().__init__(endpoint, max_bytes=max_bytes, keep_order=keep_order, failures=failures)
        if isinstance(attributes, str):
            raise TypeError("attributes must be a sequence of keywords or tags, not one str")
        self.tags = None if attributes is None else frozenset(resolve(name)[-1] for name in attributes)
        types = checked_media_types("bulkdata", media_types)
        self.how = RetrieveOptions(types, max_element_bytes, spool_directory, additional_params)

    def expand(self, pcollection: Any) -> Any:
        """Builds the steps."""
        named = _NameURIs(type(self).__name__, self.tags, collect=self.collects)
        find = self._pooled(_FindURIs, pcollection, self.tags)
        fetch = self._pooled(_FetchBulkdata, pcollection, self.how)
        given = pcollection | "NameURIs" >> self._step(named, str, **{_REFERENCES: Resource})
        spread = given[_REFERENCES] | "ReshuffleReferences" >> beam.Reshuffle()
        found = spread | "FindURIs" >> self._step(find, str)
        uris = (given["main"], found["main"]) | "JoinURIs" >> beam.Flatten()
        fetched = uris | "Reshuffle" >> beam.Reshuffle() | "Fetch" >> self._step(fetch, Bulkdata)
        failures = self._report([given[FAILURES], found[FAILURES], fetched[FAILURES]])
        return RetrievedBulkdata(fetched["main"], failures) if self._failure_mode == "collect" else fetched["main"]

    def display_data(self) -> dict[str, Any]:
        """The endpoint and limits."""
        return {
            **super().display_data(),
            "attributes": DisplayDataItem(", ".join(sorted(self.tags or ())), label="Attributes").drop_if_default(""),
            "max_element_bytes": DisplayDataItem(self.how.max_element_bytes, label="Largest element"),
        }


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
        items = element.get("Value") if element.get("vr") == "SQ" else None
        for item in items if isinstance(items, (list, tuple)) else ():
            if isinstance(item, Mapping):
                yield from bulkdata_uris(item, tags)


_REFERENCES = "references"


class _NameURIs(Converting):
    """From elements to BulkDataURIs, or to references whose metadata are to be asked for."""

    def __init__(self, transform: str, tags: frozenset[str] | None, *, collect: bool) -> None:
        super().__init__(transform, collect=collect)
        self._tags = tags

    def process(self, element: Any) -> Iterator[Any]:
        if isinstance(element, Mapping) and next(bulkdata_uris(element), None) is not None:
            yield from bulkdata_uris(element, self._tags)
        else:
            yield from super().process(element)

    def convert(self, element: Any) -> Any:
        reference = _reference_in(element)
        if reference is None:
            if isinstance(element, str):
                return element
            # Raises and says what is wrong.
            reference = Resource.of(element)
        return TaggedOutput(_REFERENCES, reference.instance)


class _FindURIs(PooledDoFn):
    """Finds the BulkDataURIs in the metadata of references."""

    def __init__(self, endpoint: Endpoint, transform: str, tags: frozenset[str] | None, **options: Any) -> None:
        super().__init__(endpoint, transform, **options)
        self._tags = tags

    def produce(self, subject: Resource, client: DICOMClient, room: Room) -> Iterator[Any]:
        for row in complete_metadata(client, subject, room, transform=self._transform):
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


class _FetchBulkdata(FetchParts):
    _part = "the value"

    def _key(self, subject: str) -> Any:
        return subject

    def count_result(self, result: Bulkdata) -> None:
        count("bulkdata")
        count("bulkdata_bytes", len(result.content or b""))

    def produce(self, subject: str, client: DICOMClient, room: Room) -> Iterator[Any]:
        how = self._how
        room.reserve(_BULKDATA_GUESS)
        found = False
        for part in client.iter_bulkdata_parts(
            subject,
            media_types=how.media_types,
            additional_params=how.additional_params,
            max_element_bytes=self._spool.threshold(room),
            spool_directory=self._spool.path,
        ):
            found = True
            yield self._spool.as_element(part, None, room)
            del part
            room.reserve(_BULKDATA_GUESS)
        if not found:
            message = f"{client.base_url} answered without the bulk data"
            yield Problem(Failure(self._transform, message, url=safe_url(subject), retryable=True))

    def _emit(self, work: Work, result: Any) -> Iterator[Any]:
        if isinstance(result, Problem):
            # What was asked for, also where a redirect led elsewhere: it is all that names the value.
            result = Problem(replace(result.failure, url=safe_url(work.subject)), result.error)
        yield from super()._emit(work, result)
