"""`ClientBase`: the named methods of the user guide, written once over the few primitives of a client.

A client implements what `dicomweb_io.clients.primitives.Primitives` lists; everything else follows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dicomweb_io.clients.named_retrieves import NamedRetrieves
from dicomweb_io.clients.named_searches import NamedSearches

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self


class ClientBase(NamedSearches, NamedRetrieves):
    """The methods that all clients share. See `dicomweb_io.clients.protocol.DICOMClient` for what each does."""

    # Delete -----------------------------------------------------------------------------------------------------------

    def delete_study(self, study_instance_uid: str, additional_params: Mapping[str, Any] | None = None) -> None:
        """Deletes a study.

        Raises:
            requests.HTTPError: If the archive refuses, or does not have it (404).
        """
        self._delete(self._resource(study_instance_uid, level="study"), additional_params)

    def delete_series(
        self,
        study_instance_uid: str,
        series_instance_uid: str,
        additional_params: Mapping[str, Any] | None = None,
    ) -> None:
        """Deletes a series. Errors as in `delete_study`."""
        self._delete(self._resource(study_instance_uid, series_instance_uid, level="series"), additional_params)

    def delete_instance(
        self,
        study_instance_uid: str,
        series_instance_uid: str,
        sop_instance_uid: str,
        additional_params: Mapping[str, Any] | None = None,
    ) -> None:
        """Deletes an instance. Errors as in `delete_study`."""
        resource = self._resource(study_instance_uid, series_instance_uid, sop_instance_uid, level="instance")
        self._delete(resource, additional_params)

    # Settings ---------------------------------------------------------------------------------------------------------

    def set_chunk_size(self, chunk_size: int) -> None:
        """Sets the most bytes to read at once, where the client reads from a network.

        Raises:
            TypeError, ValueError: If it is not a positive integer.
        """
        check_chunk_size(chunk_size)

    def set_http_retry_params(
        self,
        retry: bool = True,
        max_attempts: int = 5,
        wait_exponential_multiplier: int = 1000,
        retriable_error_codes: tuple[int, ...] = (429, 408, 503, 504),
    ) -> None:
        """Sets when and how often to try again, where the client talks HTTP."""

    # Context ----------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check_chunk_size(chunk_size: object) -> int:
    """Returns `chunk_size` if it is a positive integer.

    Raises:
        TypeError, ValueError: If it is not.
    """
    if not isinstance(chunk_size, int) or isinstance(chunk_size, bool):
        raise TypeError(f"chunk_size must be an int, not {type(chunk_size).__name__}")
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be positive, not {chunk_size}")
    return chunk_size
