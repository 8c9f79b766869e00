"""Which frames of which instances: from references at any level to references to frames, in pieces of a size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from dicomweb_io.clients.copying import expand_reference
from dicomweb_io.clients.endpoint import Endpoint
from dicomweb_io.clients.pool import Room
from dicomweb_io.clients.protocol import DICOMClient
from dicomweb_io.elements import Failure, JSONDataset, Resource
from dicomweb_io.transforms.base import AsReferences, PooledDoFn, Problem
from dicomweb_io.transforms.retrieve import complete_metadata

FrameChoice = Literal["all"] | Sequence[int] | Callable[[JSONDataset], Iterable[int]] | None
"""Frame numbers, all of them, or a function that chooses them by the metadata of their instance."""

_NUMBER_OF_FRAMES, _ROWS = "00280008", "00280010"


def check_choice(frames: FrameChoice) -> FrameChoice:
    """Checks a choice of frames; lists become tuples.

    Raises:
        ValueError: If it is none, or a number is not a positive integer.
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


def number_of_frames(row: Mapping[str, Any]) -> int:
    """The number of frames of an instance by its metadata (PS3.3 section C.7.6.6); 0 if it has no image."""
    value = _first(row, _NUMBER_OF_FRAMES)
    if value is None:
        return 0 if _first(row, _ROWS) is None else 1
    return int(value)


def _first(row: Mapping[str, Any], tag: str) -> Any:
    element = row.get(tag)
    values = element.get("Value") if isinstance(element, Mapping) else None
    return values[0] if values else None


class FrameReferences(AsReferences):
    """Makes references of whatever names objects; frames stay frames.

    Args:
        transform: The name for failures.
        collect: Whether what names nothing becomes a `Failure`.
        count_frames: Make references to all frames of rows that tell the number of frames, which saves asking for it.
    """

    def __init__(self, transform: str, *, collect: bool, count_frames: bool = False) -> None:
        super().__init__(transform, collect=collect, whole=False)
        self._count_frames = count_frames

    def reference_of(self, element: Any) -> Resource:
        """The reference; of a row with Number of Frames (0028,0008) one to all its frames."""
        reference = super().reference_of(element)
        if self._count_frames and reference.level == "instance" and isinstance(element, Mapping):
            number = _first(element, _NUMBER_OF_FRAMES)
            if number is not None and int(number) > 0:
                return replace(reference, frames=tuple(range(1, int(number) + 1)))
        return reference


class ChooseFrames(PooledDoFn):
    """Makes references to frames of references at any level.

    Args:
        endpoint: The archive.
        transform: The name for failures.
        frames: The choice; None leaves instances as they are. What an element names itself is not chosen again.
        piece: The most frames of one reference.
        **options: See `PooledDoFn`.
    """

    def __init__(self, endpoint: Endpoint, transform: str, frames: FrameChoice, *, piece: int, **options: Any) -> None:
        super().__init__(endpoint, "retrieve", transform, **options)
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
                else:
                    yield from self._chosen(row, choice)
        else:
            for instance in expand_reference(client, subject):
                yield from self._pieces(instance, choice)

    def _chosen(self, row: JSONDataset, choice: Any) -> Iterator[Any]:
        instance = Resource.of(row).instance
        most = number_of_frames(row)
        if choice == "all":
            yield from self._pieces(instance, range(1, most + 1))
            return
        numbers = list(choice(row))
        for number in numbers:
            _check_number(number)
        beyond = tuple(number for number in numbers if number > most)
        if beyond:
            message = f"{instance.uri} has {most} frames, but the function chose " + ", ".join(map(str, beyond[:10]))
            yield Problem(Failure(self._transform, message, reference=replace(instance, frames=beyond)))
        yield from self._pieces(instance, [number for number in numbers if number <= most])

    def _pieces(self, instance: Resource, numbers: Sequence[int]) -> Iterator[Resource]:
        for start in range(0, len(numbers), self._piece):
            yield replace(instance, frames=tuple(numbers[start : start + self._piece]))
