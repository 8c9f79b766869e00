"""From an archive to files, without the bytes ever being an element: `DownloadInstances`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, cast

import apache_beam as beam
from apache_beam.transforms.display import DisplayDataItem

from dicomweb_io.client import DICOMClient, MediaTypes
from dicomweb_io.elements import Failure, Resource
from dicomweb_io.endpoint import Endpoint, EndpointLike
from dicomweb_io.files.store import Downloaded, InstanceDownloader
from dicomweb_io.pool import Lease, Room
from dicomweb_io.spool import MEMORY_THRESHOLD
from dicomweb_io.transforms._core import (
    FAILURES,
    AsReferences,
    DICOMwebTransform,
    ExpandReferences,
    FailureMode,
    PooledDoFn,
    Problem,
    Work,
    piped_by_member,
    report_lineage,
    warn_of_secrets,
)
from dicomweb_io.transforms.metrics import count
from dicomweb_io.transforms.retrieve import ReferenceInput


@piped_by_member
class DownloadResult(NamedTuple):
    """The output of `DownloadInstances` with ``failures="collect"``."""

    paths: Any
    failures: Any


@beam.typehints.with_input_types(ReferenceInput)
class DownloadInstances(DICOMwebTransform):
    """Writes instances to ``DIRECTORY/STUDY/SERIES/INSTANCE.dcm``, bytes unchanged, and gives the paths.

    The input is any reference; studies and series are expanded by a search. A file appears under its name when it is
    complete. One that is there already is not retrieved again, so that a download that was cut short can simply be
    started again; its path comes too.

    Args:
        endpoint: An `Endpoint`, a URL or a path.
        directory: Where the files go: a path, or any fsspec URL. All workers must reach it.
        storage_options: Arguments for the fsspec filesystem of the directory.
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
        directory: str | os.PathLike[str],
        *,
        storage_options: Mapping[str, Any] | None = None,
        overwrite: bool = False,
        media_types: MediaTypes | None = None,
        allow_transcoding: bool = False,
        spool_directory: str | None = None,
        failures: FailureMode = "raise",
    ) -> None:
        super().__init__(endpoint, failures=failures)
        self.directory = Endpoint(os.fspath(directory), storage_options=storage_options)
        if self.directory.is_web:
            raise ValueError("directory must be a path or an fsspec URL; use CopyInstances to copy to a server")
        self.options: dict[str, Any] = {
            "overwrite": overwrite,
            "media_types": tuple(media_types) if media_types is not None else None,
            "allow_transcoding": allow_transcoding,
            "spool_directory": spool_directory,
        }

    def expand(self, pcollection: Any) -> Any:
        """Builds the steps."""
        named = AsReferences(type(self).__name__, collect=self.collects)
        references = pcollection | "AsReferences" >> self._step(named, Resource)
        expanded = references["main"] | "Expand" >> self._step(self._pooled(ExpandReferences, pcollection), Resource)
        download = self._pooled(_Download, pcollection, self.directory, self.options)
        written = expanded["main"] | "Reshuffle" >> beam.Reshuffle() | "Download" >> self._step(download, str)
        warn_of_secrets(self, self.directory)
        failures = self._report([references[FAILURES], expanded[FAILURES], written[FAILURES]])
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
        self._downloader = InstanceDownloader(
            cast(Lease, self._lease).client,
            self._directory.url,
            storage_options=self._directory.storage_options,
            transform=self._transform,
            **self._options,
        )

    def teardown(self) -> None:
        super().teardown()
        if self._downloader is not None:
            self._downloader.close()
            self._downloader = None

    def start_bundle(self) -> None:
        super().start_bundle()
        report_lineage(self._directory, "sink")

    def produce(self, subject: Resource, client: DICOMClient, room: Room) -> Iterator[Any]:
        room.reserve(MEMORY_THRESHOLD)
        outcome = cast(InstanceDownloader, self._downloader).download(subject)
        yield Problem(outcome) if isinstance(outcome, Failure) else outcome

    def count_result(self, result: Downloaded) -> None:
        count("exists" if result.existed else "downloaded")
        count("downloaded_bytes", result.size)

    def _emit(self, work: Work, result: Any) -> Iterator[Any]:
        for output in super()._emit(work, result):
            # Consumers get the path; the other fields were counted.
            value = getattr(output, "value", None)
            yield output.with_value(value.path) if isinstance(value, Downloaded) else output
