"""The errors of the web client beyond those of the HTTP layer. All are `requests.HTTPError`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dicomweb_io.wire.errors import DICOMwebError, MalformedResponseError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from dicomweb_io.elements import Failure, StoredInstance


class FilterIgnoredError(MalformedResponseError):
    """A search returned rows that contradict its filters: the server ignored a filter and would return everything."""


class PagingError(MalformedResponseError):
    """A search cannot be paged to its end: ``offset`` is ignored, pages repeat, or a cap of the server is reached."""


class TooManyResultsError(DICOMwebError):
    """A search finds more than the server is willing to return; it has to be narrowed."""


class StoreError(DICOMwebError):
    """Some instances were not stored.

    Attributes:
        dataset: The Store Instances Response Module of all answers together, as a pydicom dataset (PS3.18 Annex I).
        outcomes: A `StoredInstance` or `Failure` for each instance, in the order they were given.
    """

    def __init__(
        self,
        detail: str = "",
        *,
        dataset: Dataset | None = None,
        outcomes: Sequence[StoredInstance | Failure] = (),
        **context: Any,
    ) -> None:
        super().__init__(detail, **context)
        self.dataset = dataset
        self.outcomes = tuple(outcomes)
