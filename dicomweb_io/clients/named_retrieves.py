"""The retrieve methods of the user guide (WADO-RS, PS3.18 section 10.4), over `Primitives`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, SupportsIndex

import fsspec

from dicomweb_io.clients.primitives import Primitives
from dicomweb_io.clients.protocol import MediaTypes
from dicomweb_io.dicom.json_model import first_value
from dicomweb_io.dicom.media_types import DICOM, OCTET_STREAM, parse_media_types
from dicomweb_io.dicom.uids import check_uid
from dicomweb_io.elements import Bulkdata, Frame, JSONDataset, Resource
from dicomweb_io.wire.errors import MalformedResponseError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


class NamedRetrieves(Primitives):
    """Retrieves studies, series, instances, metadata, frames, rendered forms and bulk data by name."""

    def _resource(
        self, study: object, series: object = None, instance: object = None, *, level: str, frames: Sequence[int] = ()
    ) -> Resource:
        names = {"study": 1, "series": 2, "instance": 3}[level]
        pairs = (("study_instance_uid", study), ("series_instance_uid", series), ("sop_instance_uid", instance))
        uids = {name: check_uid(value, name, permissive=self._permissive_uid) for name, value in pairs[:names]}
        return Resource(**uids, frames=tuple(frames))

    def iter_study(
        self,
        study_instance_uid: str,
        media_types: MediaTypes | None = None,
        additional_params: Mapping[str, Any] | None = None,
    ) -> Iterator[Dataset]:
        """Yields the instances of a study as pydicom datasets, one at a time."""
        return self._datasets(self._resource(study_instance_uid, level="study"), media_types, additional_params)

    def retrieve_study(
        self,
        study_instance_uid: str,
        media_types: MediaTypes | None = None,
        additional_params: Mapping[str, Any] | None = None,
    ) -> list[Dataset]:
        """Retrieves all instances of a study as pydicom datasets (PS3.18 section 10.4)."""
        return list(self.iter_study(study_instance_uid, media_types, additional_params))

    def iter_series(
        self,
        study_instance_uid: str,
        series_instance_uid: str,
        media_types: MediaTypes | None = None,
        additional_params: Mapping[str, Any] | None = None,
    ) -> Iterator[Dataset]:
        """Yields the instances of a series as pydicom datasets, one at a time."""
        resource = self._resource(study_instance_uid, series_instance_uid, level="series")
        return self._datasets(resource, media_types, additional_params)

    def retrieve_series(
        self,
        study_instance_uid: str,
        series_instance_uid: str,
        media_types: MediaTypes | None = None,
        additional_params: Mapping[str, Any] | None = None,
    ) -> list[Dataset]:
        """Retrieves all instances of a series as pydicom datasets (PS3.18 section 10.4)."""
        return list(self.iter_series(study_instance_uid, series_instance_uid, media_types, additional_params))

    def retrieve_study_metadata(
        self, study_instance_uid: str, additional_params: Mapping[str, Any] | None = None
    ) -> list[JSONDataset]:
        """Retrieves the metadata of all instances of a study (PS3.18 section 10.4.1.1.2)."""
        resource = self._resource(study_instance_uid, level="study")
        return list(self.iter_metadata(resource, additional_params=additional_params))

    def retrieve_series_metadata(
        self,
        study_instance_uid: str,
        series_instance_uid: str,
        additional_params: Mapping[str, Any] | None = None,
    ) -> list[JSONDataset]:
        """Retrieves the metadata of all instances of a series (PS3.18 section 10.4.1.1.2)."""
        resource = self._resource(study_instance_uid, series_instance_uid, level="series")
        return list(self.iter_metadata(resource, additional_params=additional_params))

    def retrieve_instance_metadata(
        self,
        study_instance_uid: str,
        series_instance_uid: str,
        sop_instance_uid: str,
        additional_params: Mapping[str, Any] | None = None,
    ) -> JSONDataset:
        """Retrieves the metadata of an instance (PS3.18 section 10.4.1.1.2).

        Raises:
            requests.HTTPError: If the archive does not have the instance, or does not answer with one dataset.
        """
        resource = self._resource(study_instance_uid, series_instance_uid, sop_instance_uid, level="instance")
        rows = list(self.iter_metadata(resource, additional_params=additional_params))
        if len(rows) != 1:
            raise MalformedResponseError(
                f"expected the metadata of one instance, got {len(rows)} datasets",
                url=f"{self.base_url}/{resource.uri}",
            )
        return rows[0]

    def iter_study_metadata(
        self, study_instance_uid: str, additional_params: Mapping[str, Any] | None = None
    ) -> Iterator[JSONDataset]:
        """Yields the metadata of the instances of a study as they arrive."""
        return self.iter_metadata(
            self._resource(study_instance_uid, level="study"), additional_params=additional_params
        )

    def iter_series_metadata(
        self,
        study_instance_uid: str,
        series_instance_uid: str,
        additional_params: Mapping[str, Any] | None = None,
    ) -> Iterator[JSONDataset]:
        """Yields the metadata of the instances of a series as they arrive."""
        resource = self._resource(study_instance_uid, series_instance_uid, level="series")
        return self.iter_metadata(resource, additional_params=additional_params)

    def retrieve_instance(
        self,
        study_instance_uid: str,
        series_instance_uid: str,
        sop_instance_uid: str,
        media_types: MediaTypes | None = None,
        additional_params: Mapping[str, Any] | None = None,
    ) -> Any:
        """Retrieves an instance (PS3.18 section 10.4).

        Args:
            study_instance_uid: The study.
            series_instance_uid: The series.
            sop_instance_uid: The instance.
            media_types: Wanted encodings of ``application/dicom``; by default the stored one. Other media types, such
                as ``("image/jp2", "1.2.840.10008.1.2.4.90")``, ask for the instance's bulk data: its frames, for
                images.
            additional_params: Further query parameters.

        Returns:
            A pydicom `Dataset`; for bulk data `list[bytes]`.

        Raises:
            ValueError: If an instance and bulk data are asked for in one call.
            requests.HTTPError: If the archive does not have it, or cannot give it in this form.
        """
        resource = self._resource(study_instance_uid, series_instance_uid, sop_instance_uid, level="instance")
        wishes = parse_media_types(media_types)
        kinds = {wish.name == DICOM or wish.name == "*/*" for wish in wishes}
        if kinds == {False}:
            return self._instance_bulkdata(resource, media_types or (), additional_params)
        if len(kinds) > 1:
            raise ValueError(f"media_types mixes {DICOM}, which is an instance, with types of bulk data: ask for one")
        datasets = list(self._datasets(resource, media_types, additional_params))
        if len(datasets) != 1:
            raise MalformedResponseError(
                f"expected one instance, got {len(datasets)}", url=f"{self.base_url}/{resource.uri}"
            )
        return datasets[0]

    def _instance_bulkdata(
        self, resource: Resource, media_types: MediaTypes, additional_params: Mapping[str, Any] | None
    ) -> list[bytes]:
        """The bulk data of an instance: all its frames."""
        metadata = list(self.iter_metadata(resource, additional_params=additional_params))
        count = first_value(metadata[0], "NumberOfFrames", 1) if metadata else 1
        frames = tuple(range(1, max(int(count), 1) + 1))
        numbered = replace(resource, frames=frames)
        found = self.iter_frames(numbered, media_types=media_types, additional_params=additional_params)
        return [_content_of(frame) for frame in found]

    def iter_instance_frames(
        self,
        study_instance_uid: str,
        series_instance_uid: str,
        sop_instance_uid: str,
        frame_numbers: Sequence[int],
        media_types: MediaTypes | None = None,
        additional_params: Mapping[str, Any] | None = None,
    ) -> Iterator[bytes]:
        """Yields frames one at a time. Arguments as in `retrieve_instance_frames`; see also `iter_frames`."""
        resource = self._frame_reference(study_instance_uid, series_instance_uid, sop_instance_uid, frame_numbers)
        frames = self.iter_frames(
            resource, media_types=media_types or (OCTET_STREAM,), additional_params=additional_params
        )
        return map(_content_of, frames)

    def retrieve_instance_frames(
        self,
        study_instance_uid: str,
        series_instance_uid: str,
        sop_instance_uid: str,
        frame_numbers: Sequence[int],
        media_types: MediaTypes | None = None,
        additional_params: Mapping[str, Any] | None = None,
    ) -> list[bytes]:
        """Retrieves frames of an instance (PS3.18 section 10.4.1.1.6).

        Args:
            study_instance_uid: The study.
            series_instance_uid: The series.
            sop_instance_uid: The instance.
            frame_numbers: Frame numbers, counted from 1, in the order wanted; repeats are allowed.
            media_types: Wanted encodings in order of preference: media types or pairs of one and a transfer syntax UID
                (``"*"`` for the stored one). By default ``application/octet-stream``: uncompressed little-endian.
            additional_params: Further query parameters.

        Returns:
            As many frames as asked for, in the order asked for. `iter_frames` tells their transfer syntaxes too.
        """
        return list(
            self.iter_instance_frames(
                study_instance_uid,
                series_instance_uid,
                sop_instance_uid,
                frame_numbers,
                media_types,
                additional_params,
            )
        )

    def _frame_reference(
        self, study: object, series: object, instance: object, frame_numbers: Sequence[int]
    ) -> Resource:
        if isinstance(frame_numbers, (int, str, bytes)):
            raise TypeError(f"frame_numbers must be a sequence of int, not {type(frame_numbers).__name__}")
        numbers = tuple(map(_frame_number, frame_numbers))
        if not numbers:
            raise ValueError("frame_numbers is empty (expected one frame number at least, counted from 1)")
        return self._resource(study, series, instance, level="instance", frames=numbers)

    # Rendered ---------------------------------------------------------------------------------------------------------

    def retrieve_study_rendered(
        self,
        study_instance_uid: str,
        media_types: MediaTypes | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> bytes:
        """Retrieves a rendered study. Arguments as in `retrieve_instance_rendered`."""
        resource = self._resource(study_instance_uid, level="study")
        return self.retrieve_rendered(resource, media_types=media_types, params=params).content

    def retrieve_series_rendered(
        self,
        study_instance_uid: str,
        series_instance_uid: str,
        media_types: MediaTypes | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> bytes:
        """Retrieves a rendered series. Arguments as in `retrieve_instance_rendered`."""
        resource = self._resource(study_instance_uid, series_instance_uid, level="series")
        return self.retrieve_rendered(resource, media_types=media_types, params=params).content

    def retrieve_instance_rendered(
        self,
        study_instance_uid: str,
        series_instance_uid: str,
        sop_instance_uid: str,
        media_types: MediaTypes | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> bytes:
        """Retrieves a rendered instance (PS3.18 section 10.4.1.1.3).

        Args:
            study_instance_uid: The study.
            series_instance_uid: The series.
            sop_instance_uid: The instance.
            media_types: Wanted types, such as ``image/png``, in order of preference; by default the archive's choice.
            params: ``quality``, ``window``, ``viewport``, ``annotation``, ``iccprofile`` (PS3.18 table 8.3.5-1).

        Returns:
            The bytes of the image, video or text.
        """
        resource = self._resource(study_instance_uid, series_instance_uid, sop_instance_uid, level="instance")
        return self.retrieve_rendered(resource, media_types=media_types, params=params).content

    def retrieve_instance_frames_rendered(
        self,
        study_instance_uid: str,
        series_instance_uid: str,
        sop_instance_uid: str,
        frame_numbers: Sequence[int],
        media_types: MediaTypes | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> bytes:
        """Retrieves rendered frames. Further arguments as in `retrieve_instance_rendered`."""
        resource = self._frame_reference(study_instance_uid, series_instance_uid, sop_instance_uid, frame_numbers)
        return self.retrieve_rendered(resource, media_types=media_types, params=params).content

    # Bulk data --------------------------------------------------------------------------------------------------------

    def iter_bulkdata(
        self,
        url: str,
        media_types: MediaTypes | None = None,
        byte_range: tuple[int, int | None] | None = None,
        additional_params: Mapping[str, Any] | None = None,
    ) -> Iterator[bytes]:
        """Yields the parts of bulk data. Arguments as in `retrieve_bulkdata`."""
        parts = self.iter_bulkdata_parts(
            url, media_types=media_types, byte_range=byte_range, additional_params=additional_params
        )
        return map(_content_of, parts)

    def retrieve_bulkdata(
        self,
        url: str,
        media_types: MediaTypes | None = None,
        byte_range: tuple[int, int | None] | None = None,
        additional_params: Mapping[str, Any] | None = None,
    ) -> list[bytes]:
        """Retrieves bulk data (PS3.18 section 10.4.1.1.5).

        Args:
            url: A BulkDataURI, as metadata give it.
            media_types: Wanted types in order of preference.
            byte_range: First and last byte (inclusive, counted from 0); the last may be None for the end.
            additional_params: Further query parameters.

        Returns:
            The parts: one, or those that the archive keeps the value in (encapsulated pixel data: fragments).
        """
        return list(self.iter_bulkdata(url, media_types, byte_range, additional_params))

    def _datasets(
        self, resource: Resource, media_types: MediaTypes | None, additional_params: Mapping[str, Any] | None
    ) -> Iterator[Dataset]:
        # A dataset is in memory whatever its size, so nothing is gained by a spool file here.
        for instance in self.iter_instances(
            resource, media_types=media_types, max_element_bytes=sys.maxsize, additional_params=additional_params
        ):
            yield instance.dataset()


def _frame_number(value: object) -> int:
    if not isinstance(value, SupportsIndex) or isinstance(value, bool):
        raise TypeError(f"frame_numbers must be int, but one is {type(value).__name__}")
    # NumPy's integers are good too.
    return value.__index__()


def _content_of(item: Frame | Bulkdata) -> bytes:
    if item.content is not None:
        return item.content
    if item.path is None:
        raise ValueError("a frame or bulk data value has neither content nor path")
    with fsspec.open(item.path, "rb") as file:
        return bytes(file.read())
