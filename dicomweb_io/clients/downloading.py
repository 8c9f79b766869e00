"""`InstanceDownloader`: instances from an archive to files of a directory, without Beam."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from dicomweb_io.clients.copying import MEMORY_THRESHOLD, PrivateDirectory
from dicomweb_io.clients.failures import RECOVERABLE, failure_of
from dicomweb_io.clients.files.folders import folder_of
from dicomweb_io.clients.files.store import in_the_way, layout_path
from dicomweb_io.clients.protocol import DICOMClient, MediaTypes
from dicomweb_io.dicom.part10 import header_of
from dicomweb_io.elements import Failure, Instance, Resource


class Downloaded(NamedTuple):
    """A file that holds an instance.

    Attributes:
        path: Where it is: a local path or URL.
        size: Bytes that were written; 0 if the file was there before.
        existed: Whether it was there before.
    """

    path: str
    size: int
    existed: bool


class InstanceDownloader:
    """Writes instances to ``DIRECTORY/STUDY/SERIES/INSTANCE.dcm``, bytes unchanged. May be used by several threads.

    A file appears under its name when it is complete, never before, so what is there needs not be retrieved again: a
    download that was cut short is simply started again. Large instances pass through a private spool file.

    Args:
        source: The archive.
        directory: A local path, or any fsspec URL.
        storage_options: Arguments for the fsspec filesystem.
        overwrite: Retrieve and replace files that are there.
        media_types: Wanted encodings; by default the stored one.
        allow_transcoding: Take what the archive re-encodes if it cannot give the original.
        spool_directory: Where the private directory is made; by default the system's temporary directory.
        transform: The name that failures carry.

    Raises:
        ValueError: If the directory is none that can be written to.
    """

    def __init__(
        self,
        source: DICOMClient,
        directory: str,
        *,
        storage_options: Mapping[str, Any] | None = None,
        overwrite: bool = False,
        media_types: MediaTypes | None = None,
        allow_transcoding: bool = False,
        spool_directory: str | None = None,
        transform: str = "DownloadInstances",
    ) -> None:
        self._source = source
        self._folder = folder_of(directory, storage_options)
        self._overwrite = overwrite
        self._media_types = media_types
        self._allow_transcoding = allow_transcoding
        self._transform = transform
        self._spool = PrivateDirectory(spool_directory)

    def download(self, reference: Resource) -> Downloaded | Failure:
        """Downloads an instance.

        Args:
            reference: The instance.

        Returns:
            Its file, or why there is none. UIDs that cannot be names of files are a failure too.
        """
        try:
            target = layout_path(reference)
            if not self._overwrite and self._is_there(target, reference):
                return Downloaded(self._folder.location_of(target), 0, True)
            return self._retrieve(target, reference)
        except RECOVERABLE as error:
            return failure_of(error, self._transform, reference=reference)

    def close(self) -> None:
        """Removes the private directory. The client is not closed."""
        self._spool.remove()

    def _is_there(self, target: str, reference: Resource) -> bool:
        stat = self._folder.stat(target)
        if stat is None:
            return False
        with self._folder.open(target, stat.size) as file:
            found = header_of(file).sop_instance_uid
        if found != reference.sop_instance_uid:
            raise ValueError(
                f"{self._folder.location_of(target)} holds another instance ({found}); nothing was written"
            )
        return True

    def _retrieve(self, target: str, reference: Resource) -> Downloaded | Failure:
        result: Downloaded | None = None
        instances = self._source.iter_instances(
            reference,
            media_types=self._media_types,
            max_element_bytes=MEMORY_THRESHOLD,
            spool_directory=self._spool.path,
            allow_transcoding=self._allow_transcoding,
        )
        for instance in instances:
            try:
                if result is None and instance.reference == reference:
                    result = self._publish(target, instance)
            finally:
                self._spool.discard(instance)
        if result is None:
            message = f"{self._source.base_url} answered without the instance {reference.uri}; nothing was written"
            return Failure(self._transform, message, reference=reference, retryable=True)
        return result

    def _publish(self, target: str, instance: Instance) -> Downloaded:
        path = self._folder.location_of(target)
        source = instance.content
        if source is None:
            # An archive that is a folder gives the paths of its own files, perhaps of another filesystem.
            local = instance.path if "://" not in str(instance.path) else None
            source = instance.read() if local is None else None
        written = self._folder.publish(
            target, source if source is not None else str(instance.path), replace=self._overwrite
        )
        if not written and not self._is_there(target, instance.reference):
            raise ValueError(in_the_way(path))
        # Whoever came first wrote the same.
        return Downloaded(path, instance.size if written else 0, not written)
