"""Rendered images and thumbnails (WADO-RS, PS3.18 sections 8.3.5 and 10.4.1.1.3): `RetrieveRendered`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.transforms.display import DisplayDataItem

from dicomweb_io.clients.endpoint import Endpoint, EndpointLike
from dicomweb_io.clients.pool import DEFAULT_MAX_BYTES, Room
from dicomweb_io.clients.protocol import DICOMClient, MediaTypes
from dicomweb_io.clients.web.rendered import check_rendering_params
from dicomweb_io.elements import RenderedImage, Resource
from dicomweb_io.transforms.base import FAILURES, FailureMode, PooledDoFn, several_windows
from dicomweb_io.transforms.frame_choice import ChooseFrames, FrameChoice, FrameReferences, check_choice
from dicomweb_io.transforms.frames import check_sizes
from dicomweb_io.transforms.metrics import count
from dicomweb_io.transforms.retrieve import ReferenceInput, RetrieveTransform

_GUESS = 256 * 1024


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
        media_types: Wanted types in order of preference; by default what the archive prefers.
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
        super().__init__(endpoint, failures=failures)
        check_sizes(max_bytes=max_bytes)
        check_rendering_params(params, thumbnail=thumbnail)
        self.frames = check_choice(frames)
        self.options: dict[str, Any] = {
            "media_types": tuple(media_types) if media_types is not None else None,
            "params": dict(params) if params else None,
            "thumbnail": thumbnail,
        }
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
        choose = _ChooseRendered(
            self.endpoint, name, self.frames, piece=1, thumbnail=bool(self.options["thumbnail"]), **how
        )
        chosen = references["main"] | "Choose" >> self._step(choose, Resource)
        fetched = (
            chosen["main"]
            | "Reshuffle" >> beam.Reshuffle()
            | "Fetch" >> self._step(_FetchRendered(self.endpoint, name, self.options, **how), RenderedImage)
        )
        failures = self._report([references[FAILURES], chosen[FAILURES], fetched[FAILURES]])
        return RetrievedRendered(fetched["main"], failures) if self._failure_mode == "collect" else fetched["main"]

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


class _FetchRendered(PooledDoFn):
    def __init__(self, endpoint: Endpoint, transform: str, options: dict[str, Any], **how: Any) -> None:
        super().__init__(endpoint, "retrieve", transform, **how)
        self._options = options

    def taken(self, result: RenderedImage) -> None:
        count("rendered_images")
        count("rendered_bytes", len(result.content))

    def produce(self, subject: Resource, client: DICOMClient, room: Room) -> Iterator[Any]:
        room.reserve(_GUESS)
        image = client.retrieve_rendered(subject, **self._options)
        room.reserve(len(image.content))
        yield image
