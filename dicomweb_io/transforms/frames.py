"""Frames (WADO-RS, PS3.18 section 10.4.1.1.6): `RetrieveFrames`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.transforms.display import DisplayDataItem

from dicomweb_io.clients.endpoint import Endpoint, EndpointLike
from dicomweb_io.clients.failures import RECOVERABLE
from dicomweb_io.clients.pool import DEFAULT_MAX_BYTES, Room
from dicomweb_io.clients.protocol import DEFAULT_MAX_ELEMENT_BYTES, DICOMClient, MediaTypes
from dicomweb_io.elements import Failure, Frame, Resource
from dicomweb_io.transforms.base import FAILURES, FailureMode, PooledDoFn, Problem, problem_of, several_windows
from dicomweb_io.transforms.frame_choice import ChooseFrames, FrameChoice, FrameReferences, check_choice
from dicomweb_io.transforms.metrics import count, observe
from dicomweb_io.transforms.retrieve import ReferenceInput, RetrieveTransform
from dicomweb_io.transforms.spooling import PartSpool
from dicomweb_io.wire.errors import DeadlineExceededError

FRAMES_AT_ONCE = 64
"""The most frames of one piece of work. Archives are asked for fewer at once if their profile says so."""

_FIRST_GUESS = 512 * 1024


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
        media_types: Wanted encodings in order of preference; by default the stored one.
        max_element_bytes: Frames up to this size are elements with their bytes.
        spool_directory: A directory, shared by whoever reads the elements, for larger ones: then the element has a
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
        super().__init__(endpoint, failures=failures)
        check_sizes(max_element_bytes=max_element_bytes, max_bytes=max_bytes)
        self.frames: FrameChoice = check_choice(frames if frames is not None else "all")
        self.how = FrameOptions(
            tuple(media_types) if media_types is not None else None,
            max_element_bytes,
            spool_directory,
            dict(additional_params) if additional_params else None,
        )
        self.max_bytes = max_bytes
        self.keep_order = keep_order

    def expand(self, pcollection: Any) -> Any:
        """Builds the steps."""
        name, collects = type(self).__name__, self.collects
        how: dict[str, Any] = {
            "collect": collects,
            "hold": several_windows(pcollection),
            "ordered": self.keep_order,
            "max_bytes": self.max_bytes,
        }
        made = FrameReferences(name, collect=collects, count_frames=self.frames == "all")
        references = pcollection | "AsReferences" >> self._step(made, Resource)
        chosen = references["main"] | "Choose" >> self._step(
            ChooseFrames(self.endpoint, name, self.frames, piece=FRAMES_AT_ONCE, **how), Resource
        )
        fetched = (
            chosen["main"]
            | "Reshuffle" >> beam.Reshuffle()
            | "Fetch" >> self._step(_FetchFrames(self.endpoint, name, self.how, **how), Frame)
        )
        failures = self._report([references[FAILURES], chosen[FAILURES], fetched[FAILURES]])
        return RetrievedFrames(fetched["main"], failures) if self._failure_mode == "collect" else fetched["main"]

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


def check_sizes(**sizes: int) -> None:
    """Checks limits in bytes.

    Raises:
        ValueError: If one is not positive.
    """
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be 1 or more, not {size}")


@dataclass(frozen=True)
class FrameOptions:
    """How frames are asked for; see `RetrieveFrames`."""

    media_types: tuple[Any, ...] | None = None
    max_element_bytes: int = DEFAULT_MAX_ELEMENT_BYTES
    spool_directory: str | None = None
    additional_params: Mapping[str, Any] | None = None


class _FetchFrames(PooledDoFn):
    def __init__(self, endpoint: Endpoint, transform: str, how: FrameOptions, **options: Any) -> None:
        super().__init__(endpoint, "retrieve", transform, **options)
        self._how = how

    def setup(self) -> None:
        super().setup()
        self._spool = PartSpool(self._transform, "the frame", self._how.max_element_bytes, self._how.spool_directory)

    def teardown(self) -> None:
        super().teardown()
        self._spool.remove()

    def taken(self, result: Frame) -> None:
        count("frames")
        if result.content is not None:
            count("frame_bytes", len(result.content))
            observe("frame_size", len(result.content))

    def produce(self, subject: Resource, client: DICOMClient, room: Room) -> Iterator[Any]:
        left = list(subject.frames)
        guess = _FIRST_GUESS
        try:
            room.reserve(guess)
            for frame in self._frames(subject, client, room):
                del left[0]
                taken = self._spool.taken(frame, frame.reference, room)
                guess = max(len(taken.content or b"") if isinstance(taken, Frame) else 0, 1)
                yield taken
                del frame, taken
                room.reserve(guess)
        except RECOVERABLE as error:
            problem = problem_of(error, self._transform, reference=replace(subject, frames=tuple(left)))
            if len(left) < 2 or problem.failure.retryable or isinstance(error, DeadlineExceededError):
                # What concerns all of them is better told once.
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
