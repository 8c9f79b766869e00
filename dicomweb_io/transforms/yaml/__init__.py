"""The connector for Beam YAML, and for pipelines in other languages: rows in, rows out, plain parameters.

`providers.yaml` beside this module lists these transforms for Beam YAML; ``docs/streaming-yaml-runners.md`` shows how
to use them, there and through Python's expansion service. They are the transforms of `dicomweb_io.transforms` with
parameters that have a schema. Secrets are named, not given: the name of an environment variable on the workers.

With ``error_handling: {output: NAME}`` each failure becomes a row in the output ``NAME``, with the fields of
`dicomweb_io.elements.Failure`; without it, a failure fails the pipeline.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Optional

import apache_beam as beam

from dicomweb_io import transforms
from dicomweb_io.elements import Failure, Instance, StoredInstance
from dicomweb_io.endpoint import Endpoint
from dicomweb_io.options import make_endpoint
from dicomweb_io.transforms.rows import AsRows

__all__ = [
    "CopyInstances",
    "ReadFromDICOMweb",
    "SearchForInstances",
    "SearchForSeries",
    "SearchForStudies",
    "WriteToDICOMweb",
]

_STUDY = ["StudyInstanceUID", "PatientID", "AccessionNumber", "StudyDate", "StudyDescription"]
_SERIES = ["StudyInstanceUID", "SeriesInstanceUID", "Modality", "SeriesNumber", "SeriesDescription"]
_INSTANCE = ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "InstanceNumber"]

_UIDS = {
    "study_instance_uid": "StudyInstanceUID",
    "series_instance_uid": "SeriesInstanceUID",
    "sop_instance_uid": "SOPInstanceUID",
}


def _endpoint(
    url: str,
    profile: str,
    token_env: str | None,
    user: str | None,
    password_env: str | None,
    google: bool,
    filter_mismatch: str = "error",
) -> Endpoint:
    given = {"profile": profile, "token_env": token_env, "user": user, "password_env": password_env, "google": google}
    given["filter_mismatch"] = filter_mismatch
    return make_endpoint(url, given)


class _RowTransform(beam.PTransform[Any, Any]):
    """A transform of this package whose failures become rows, if Beam YAML's ``error_handling`` asks for them."""

    def __init__(
        self,
        error_handling: Mapping[str, Any] | None,
        transform: Callable[..., Any],
        *arguments: Any,
        **options: Any,
    ) -> None:
        super().__init__()
        self._failed: str | None = None
        if error_handling is not None:
            self._failed = error_handling.get("output")
            if not isinstance(self._failed, str) or self._failed in ("", "good"):
                raise ValueError("error_handling needs the name of an output: {output: failed}")
        failures = "raise" if error_handling is None else "collect"
        self._inner = transform(*arguments, failures=failures, **options)

    def _outputs(self, rows: Any, failures: Any) -> Any:
        """The rows, and the failures under the name that was asked for, if any."""
        if self._failed is None:
            return rows
        return {"good": rows, self._failed: failures | "FailuresAsRows" >> AsRows(element_type=Failure)}


class _Search(_RowTransform):
    _yaml_requires_inputs = False  # for Beam YAML, a source
    _search: Any
    _columns: list[str]

    def __init__(
        self,
        endpoint: str,
        search_filters: Optional[Mapping[str, str]] = None,  # noqa: UP045 - Beam YAML reads these annotations
        columns: Optional[Sequence[str]] = None,  # noqa: UP045
        limit: Optional[int] = None,  # noqa: UP045
        profile: str = "auto",
        token_env: Optional[str] = None,  # noqa: UP045
        user: Optional[str] = None,  # noqa: UP045
        password_env: Optional[str] = None,  # noqa: UP045
        google: bool = False,
        filter_mismatch: str = "error",
        error_handling: Optional[Mapping[str, str]] = None,  # noqa: UP045
    ) -> None:
        """Searches an archive; see `dicomweb_io.transforms.SearchForStudies`.

        Args:
            endpoint: A DICOMweb service (https://…), a folder, or an fsspec URL.
            search_filters: Attribute (keyword, tag or path) to value.
            columns: Attributes that become columns of the rows; by default the UIDs and a few others.
            limit: At most this many rows.
            profile: The server's behaviour; by default by its URL.
            token_env: The environment variable that holds a bearer token.
            user: A user name.
            password_env: The environment variable that holds the user's password.
            google: Use Google's application-default credentials.
            filter_mismatch: What becomes of rows that contradict the filters: "error" fails the search, "warn" accepts
                them.
            error_handling: Where failures go, as ``{output: NAME}``.
        """
        super().__init__(
            error_handling,
            type(self)._search,
            _endpoint(endpoint, profile, token_env, user, password_env, google, filter_mismatch),
            dict(search_filters or {}),
            limit=limit,
            columns=list(columns) if columns else self._columns,
        )

    def expand(self, pbegin: Any) -> Any:
        """Builds the steps."""
        found = pbegin | "Search" >> self._inner
        return found if self._failed is None else self._outputs(found.rows, found.failures)


class SearchForStudies(_Search):
    """Searches for studies."""

    _search = transforms.SearchForStudies
    _columns = _STUDY


class SearchForSeries(_Search):
    """Searches for series."""

    _search = transforms.SearchForSeries
    _columns = _SERIES


class SearchForInstances(_Search):
    """Searches for instances."""

    _search = transforms.SearchForInstances
    _columns = _INSTANCE


class ReadFromDICOMweb(_RowTransform):
    """Reads the instances that match a search: rows with their UIDs, their transfer syntax and their bytes."""

    _yaml_requires_inputs = False

    def __init__(
        self,
        endpoint: str,
        search_filters: Optional[Mapping[str, str]] = None,  # noqa: UP045
        limit: Optional[int] = None,  # noqa: UP045
        spool_directory: Optional[str] = None,  # noqa: UP045
        profile: str = "auto",
        token_env: Optional[str] = None,  # noqa: UP045
        user: Optional[str] = None,  # noqa: UP045
        password_env: Optional[str] = None,  # noqa: UP045
        google: bool = False,
        error_handling: Optional[Mapping[str, str]] = None,  # noqa: UP045
    ) -> None:
        """Reads instances; see `dicomweb_io.transforms.ReadFromDICOMweb`.

        Args:
            endpoint: A DICOMweb service (https://…), a folder, or an fsspec URL.
            search_filters: Attribute (keyword, tag or path) to value.
            limit: At most this many instances.
            spool_directory: Where instances above 64 MiB go; their rows have a path.
            profile: The server's behaviour; by default by its URL.
            token_env: The environment variable that holds a bearer token.
            user: A user name.
            password_env: The environment variable that holds the user's password.
            google: Use Google's application-default credentials.
            error_handling: Where failures go, as ``{output: NAME}``.
        """
        super().__init__(
            error_handling,
            transforms.ReadFromDICOMweb,
            _endpoint(endpoint, profile, token_env, user, password_env, google),
            dict(search_filters or {}),
            limit=limit,
            spool_directory=spool_directory,
        )

    def expand(self, pbegin: Any) -> Any:
        """Builds the steps."""
        read = pbegin | "Read" >> self._inner
        instances, failures = (read, None) if self._failed is None else (read.instances, read.failures)
        return self._outputs(instances | "AsRows" >> AsRows(element_type=Instance), failures)


class WriteToDICOMweb(_RowTransform):
    """Stores instances: rows with ``content`` (Part 10 bytes) or ``path``. A row comes out for each stored one."""

    def __init__(
        self,
        endpoint: str,
        on_existing: str = "server",
        verify: str = "response",
        profile: str = "auto",
        token_env: Optional[str] = None,  # noqa: UP045
        user: Optional[str] = None,  # noqa: UP045
        password_env: Optional[str] = None,  # noqa: UP045
        google: bool = False,
        error_handling: Optional[Mapping[str, str]] = None,  # noqa: UP045
    ) -> None:
        """Stores instances; see `dicomweb_io.transforms.StoreInstances`.

        Args:
            endpoint: A DICOMweb service (https://…), a folder, or an fsspec URL.
            on_existing: What to do with instances whose UID is there: server, skip, replace or error.
            verify: How to prove that they are stored: response, uid or content.
            profile: The server's behaviour; by default by its URL.
            token_env: The environment variable that holds a bearer token.
            user: A user name.
            password_env: The environment variable that holds the user's password.
            google: Use Google's application-default credentials.
            error_handling: Where failures go, as ``{output: NAME}``.
        """
        super().__init__(
            error_handling,
            transforms.WriteToDICOMweb,
            _endpoint(endpoint, profile, token_env, user, password_env, google),
            on_existing=on_existing,
            verify=verify,
        )

    def expand(self, pcollection: Any) -> Any:
        """Builds the steps."""
        written = pcollection | "Content" >> beam.Map(storable_of_row) | "Write" >> self._inner
        return self._outputs(written.stored | "AsRows" >> AsRows(element_type=StoredInstance), written.failures)


class CopyInstances(_RowTransform):
    """Copies what rows name by their UIDs from one archive to another. The bytes never become rows."""

    def __init__(
        self,
        source: str,
        destination: str,
        on_existing: str = "skip",
        verify: str = "response",
        source_profile: str = "auto",
        source_token_env: Optional[str] = None,  # noqa: UP045
        destination_profile: str = "auto",
        destination_token_env: Optional[str] = None,  # noqa: UP045
        error_handling: Optional[Mapping[str, str]] = None,  # noqa: UP045
    ) -> None:
        """Copies instances; see `dicomweb_io.transforms.CopyInstances`.

        Args:
            source: Where to copy from.
            destination: Where to copy to.
            on_existing: What to do with instances whose UID is there: skip, server, replace or error.
            verify: How to prove that they are stored: response, uid or content.
            source_profile: The source's behaviour; by default by its URL.
            source_token_env: The environment variable that holds a bearer token for the source.
            destination_profile: The destination's behaviour; by default by its URL.
            destination_token_env: The environment variable that holds a bearer token for the destination.
            error_handling: Where failures go, as ``{output: NAME}``.
        """
        super().__init__(
            error_handling,
            transforms.CopyInstances,
            _endpoint(source, source_profile, source_token_env, None, None, False),
            _endpoint(destination, destination_profile, destination_token_env, None, None, False),
            on_existing=on_existing,
            verify=verify,
        )

    def expand(self, pcollection: Any) -> Any:
        """Builds the steps."""
        references = pcollection | "References" >> beam.Map(uids_of_row).with_output_types(dict[str, str])
        copied = references | "Copy" >> self._inner
        return self._outputs(copied.stored | "AsRows" >> AsRows(element_type=StoredInstance), copied.failures)


def _fields_of(row: Any) -> dict[str, Any]:
    fields = getattr(row, "_asdict", None) or getattr(row, "as_dict", None)
    return dict(fields() if fields is not None else row)


def storable_of_row(row: Any) -> Any:
    """The bytes or the path that a row holds.

    Raises:
        ValueError: If it has neither.
    """
    fields = _fields_of(row)
    content, path = fields.get("content"), fields.get("path")
    if content is None and path is None:
        raise ValueError(f"a row to be stored needs content or path; this one has {', '.join(fields) or 'nothing'}")
    return bytes(content) if content is not None else path


def uids_of_row(row: Any) -> dict[str, str]:
    """The UIDs that a row names, by DICOM keywords or by names in snake case, as `Resource.of` takes them.

    A column named by a keyword comes from a search: where it is empty the row lacks that UID, and is a failure. In the
    other columns, those of references, it is a level that is not meant.

    Raises:
        ValueError: If the row has no column for the study.
    """
    fields = _fields_of(row)
    found: dict[str, str] = {}
    for name, keyword in _UIDS.items():
        uid = fields.get(name) or fields.get(keyword)
        if uid or keyword in fields:
            found[name] = uid or ""
    if "study_instance_uid" not in found:
        raise ValueError(f"a row to be copied needs StudyInstanceUID; this one has {', '.join(fields) or 'nothing'}")
    return found
