"""The connector for Beam YAML, and for pipelines in other languages: rows in, rows out, plain parameters.

`providers.yaml` beside this module lists these transforms for Beam YAML; ``docs/streaming-yaml-runners.md`` shows how
to use them, there and through Python's expansion service. They are the transforms of `dicomweb_io.transforms`, of the
same names, with parameters that have a schema. Secrets are named, not given: by ``credentials``, whose keys are the
options of the command line (``dicomweb_io.options.CREDENTIAL_OPTIONS``).

What comes in are rows that name something by their UIDs (``StudyInstanceUID`` … or ``study_instance_uid`` …). With
``error_handling: {output: NAME}`` each failure becomes a row in the output ``NAME``, with the fields of
`dicomweb_io.elements.Failure`, also for rows that name nothing; without it, a failure fails the pipeline.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Optional

import apache_beam as beam
from apache_beam.pvalue import PBegin

from dicomweb_io import transforms
from dicomweb_io.changes import parse_moment
from dicomweb_io.dicom.attributes import DECIMAL_VRS, INTEGER_VRS, resolve, vr_of
from dicomweb_io.elements import (
    UID_KEYWORDS,
    Bulkdata,
    Difference,
    Failure,
    Frame,
    Instance,
    RenderedImage,
    Resource,
    StoredInstance,
)
from dicomweb_io.endpoint import Endpoint
from dicomweb_io.failures import attributes_of
from dicomweb_io.options import CREDENTIAL_OPTIONS, UsageError, make_endpoint
from dicomweb_io.transforms._core import FAILURES, Converting, FailingTransform, check_uid_columns, columns_of_type
from dicomweb_io.transforms.rows import AsRows

__all__ = [
    "CompareArchives",
    "CopyInstances",
    "DeleteResources",
    "DownloadInstances",
    "ReadAllFromDICOMweb",
    "ReadFromDICOMweb",
    "ReadReferences",
    "RetrieveBulkdata",
    "RetrieveFrames",
    "RetrieveInstances",
    "RetrieveMetadata",
    "RetrieveRendered",
    "SearchForInstances",
    "SearchForSeries",
    "SearchForStudies",
    "WatchForCompleteStudies",
    "WatchForInstances",
    "WatchForStudies",
    "WriteToDICOMweb",
]

_STUDY = ["StudyInstanceUID", "PatientID", "AccessionNumber", "StudyDate", "StudyDescription"]
_SERIES = ["StudyInstanceUID", "SeriesInstanceUID", "Modality", "SeriesNumber", "SeriesDescription"]
_INSTANCE = ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "InstanceNumber"]

_UIDS = (*UID_KEYWORDS.values(), "study_instance_uid", "series_instance_uid", "sop_instance_uid")

# Parameters -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Parameter:
    """A parameter: its type, which Beam makes a schema of, what it is, and its default."""

    kind: Any
    text: str
    default: Any = None


_FLAG = Optional[bool]  # noqa: UP045
_TEXT, _NUMBER, _TEXTS, _MAPPING = Optional[str], Optional[int], Optional[Sequence[str]], Optional[Mapping[str, str]]  # noqa: UP045

_OWN = {
    "search_filters": _Parameter(_MAPPING, "Attribute (keyword, tag or path) to value."),
    "columns": _Parameter(_TEXTS, "Attributes that become columns of the rows; by default the UIDs and a few others."),
    "typed_dates": _Parameter(bool, "Make dates values of Beam's type, which SQL knows, instead of text.", False),
    "limit": _Parameter(_NUMBER, "At most this many, for each search."),
    "exact": _Parameter(bool, "Take only rows that prove that they match, as DeleteResources demands.", False),
    "allow_all": _Parameter(bool, "Let a row ask for everything.", False),
    "require_match": _Parameter(_FLAG, "Make a search, or each row, that finds nothing a failure."),
    "spool_directory": _Parameter(_TEXT, "Where those above 64 MiB go; their rows have a path."),
    "frames": _Parameter(Optional[Sequence[int]], "Frame numbers, counted from 1; by default all."),  # noqa: UP045
    "media_types": _Parameter(_TEXTS, "Accepted media types, in order of preference."),
    "allow_transcoding": _Parameter(bool, "Accept what the archive re-encodes if it has no original.", False),
    "thumbnail": _Parameter(bool, "Ask for thumbnails.", False),
    "params": _Parameter(_MAPPING, "Rendering parameters: quality, window, viewport …"),
    "attributes": _Parameter(_TEXTS, "Only the bulk data of these attributes."),
    "path": _Parameter(str, "The list: a path or an fsspec URL that the workers can read.", inspect.Parameter.empty),
    "level": _Parameter(str, "What each line names: study, series or instance.", inspect.Parameter.empty),
    "directory": _Parameter(str, "Where the files go: a path or an fsspec URL.", inspect.Parameter.empty),
    "overwrite": _Parameter(bool, "Retrieve and replace files that are there.", False),
    "on_existing": _Parameter(
        _TEXT,
        "What to do with instances whose UID is there: server (default of stores), skip (default of copies), replace "
        "or error.",
    ),
    "verify": _Parameter(str, "How to prove that they are stored: response, uid or content.", "response"),
    "compare": _Parameter(str, "What is compared: uid, content or count.", "uid"),
    "allow_unproven_rows": _Parameter(bool, "Delete also what a search found that is not exact.", False),
    "interval": _Parameter(float, "Seconds between polls.", 60.0),
    "quiet": _Parameter(float, "How many seconds nothing may have arrived.", 300.0),
    "start": _Parameter(str, "now, all, or a date or time (ISO 8601, quoted in YAML).", "now"),
    "max_polls": _Parameter(_NUMBER, "At most this many polls; without it the watch does not end."),
    "method": _Parameter(str, "How to find out what is new.", "auto"),
}
_OF_ARCHIVE = {
    "credentials": _Parameter(
        _MAPPING,
        "How to authenticate; names secrets: token_env, token_file, token_command; user with password_env or "
        "password_file; google, azure, aws_region, oauth2_token_url …; ca, cert.",
    ),
    "profile": _Parameter(str, "The server's behaviour; by default by its URL.", "auto"),
    "filter_mismatch": _Parameter(
        str, 'What becomes of rows that contradict the filters: "error" fails the search, "warn" accepts them.', "error"
    ),
    "token_env": _Parameter(_TEXT, "Short for credentials of this name, as the next three."),
    "user": _Parameter(_TEXT, "A user name."),
    "password_env": _Parameter(_TEXT, "The environment variable that holds the user's password."),
    "google": _Parameter(bool, "Use Google's application-default credentials.", False),
}
_ERRORS = _Parameter(_MAPPING, "Where failures go, as {output: NAME}.")


def _parameters(archives: Sequence[str], takes: Sequence[str]) -> dict[str, _Parameter]:
    """All parameters of a transform, in order."""
    made = {
        name: _Parameter(str, "A DICOMweb service (https://…), a folder, or an fsspec URL.", inspect.Parameter.empty)
        for name in archives
    }
    needed = sorted(takes, key=lambda name: _OWN[name].default is not inspect.Parameter.empty)
    made |= {name: _OWN[name] for name in needed}
    for archive in archives:
        made |= {_of(archive, name): parameter for name, parameter in _OF_ARCHIVE.items()}
    return made | {"error_handling": _ERRORS}


def _of(archive: str, name: str) -> str:
    return name if archive == "endpoint" else f"{archive}_{name}"


# The options of credentials that only say yes.
_FLAGS = {"google", "azure", "aws", "oauth2", "insecure_no_verify"}


def _check_flag(name: str, value: Any) -> None:
    """Rejects a text, which would count as true whatever it says."""
    if value is not None and not isinstance(value, bool):
        raise UsageError(f"{name} must be true or false, without quotes")


def _check_filters(filters: Any) -> None:
    """Rejects values that YAML does not read as they are written: 00123 is the number 83, and NO is false."""
    for name, value in filters.items() if isinstance(filters, Mapping) else ():
        numeric = isinstance(name, str) and vr_of(resolve(name)[-1]) in {*INTEGER_VRS, *DECIMAL_VRS, "DA"}
        for one in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(one, bool) or (isinstance(one, (int, float)) and not numeric):
                raise UsageError(f"search_filters: write the value of {name} in quotes")


def _endpoint(archive: str, given: Mapping[str, Any]) -> Endpoint:
    """The archive that parameters describe.

    Raises:
        UsageError: If they contradict each other.
    """
    options = {name: given[_of(archive, name)] for name in _OF_ARCHIVE}
    credentials = options.pop("credentials") or {}
    if not isinstance(credentials, Mapping):
        raise UsageError(f"{_of(archive, 'credentials')} must be a mapping, such as {{token_env: NAME}}")
    unknown = sorted(set(credentials) - set(CREDENTIAL_OPTIONS))
    if unknown:
        raise UsageError(
            f"{_of(archive, 'credentials')} has no {' and no '.join(unknown)}: it names how to authenticate by "
            f"{', '.join(CREDENTIAL_OPTIONS)}"
        )
    flags = {"true": True, "false": False}
    named = {
        name: flags.get(value, value) if isinstance(value, str) and name in _FLAGS else value
        for name, value in credentials.items()
    }
    for name in _FLAGS & named.keys():
        _check_flag(f"{_of(archive, 'credentials')}: {name}", named[name])
    return make_endpoint(given[archive], {**options, **named}, lambda name: _of(archive, name))


# Rows -----------------------------------------------------------------------------------------------------------------


def storable_of_row(row: Any) -> Any:
    """The bytes or the path that a row holds.

    Raises:
        ValueError: If it has neither.
    """
    fields = attributes_of(row)
    content, path = fields.get("content"), fields.get("path")
    if content is None and path is None:
        raise ValueError(f"a row to be stored needs content or path; this one has {', '.join(fields) or 'nothing'}")
    return bytes(content) if content is not None else path


def query_of_row(row: Any) -> Resource | dict[str, Any]:
    """What a row asks for: what its UIDs name, or what matches its columns, which are attributes.

    Columns that are None, or not a number (an empty cell of a CSV file), are left out.
    """
    fields = attributes_of(row)
    if not fields.keys().isdisjoint(_UIDS):
        return Resource.of(row)
    present = {name: value for name, value in fields.items() if value is not None and value == value}
    return {name: value if isinstance(value, float) else str(value) for name, value in present.items()}


def _as_it_is(row: Any) -> Any:
    return row


class _OfRows(Converting):
    """Makes of rows what a transform takes."""

    def __init__(self, convert: Callable[[Any], Any], transform: str, *, collect: bool) -> None:
        super().__init__(transform, collect=collect)
        self._of_row = convert

    def convert(self, element: Any) -> Any:
        return self._of_row(element)


# Transforms -----------------------------------------------------------------------------------------------------------


class _OnRows(FailingTransform):
    """A transform of this package from rows to rows. Its parameters are those of its class statement.

    Beam reads the signature of ``__init__`` for the schema of the parameters and the docstring of the class for their
    descriptions; both are made here.
    """

    _yaml_requires_inputs: ClassVar[bool] = True
    _transform: ClassVar[Any]
    _convert: ClassVar[Any] = staticmethod(Resource.of)
    _converted: ClassVar[Any] = Resource
    _takes_references: ClassVar[bool] = True
    _element_class: ClassVar[type | None] = None
    _archives: ClassVar[Sequence[str]]
    _flags: ClassVar[Sequence[str]]

    def __init_subclass__(
        cls, *, takes: Sequence[str] = (), gives: type | None = None, archives: Sequence[str] = ("endpoint",)
    ) -> None:
        super().__init_subclass__()
        if cls.__name__.startswith("_"):
            return
        parameters = _parameters(archives, takes)
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        signature = inspect.Signature(
            [
                inspect.Parameter("self", kind),
                *(
                    inspect.Parameter(name, kind, default=item.default, annotation=item.kind)
                    for name, item in parameters.items()
                ),
            ]
        )

        def __init__(self: _OnRows, *arguments: Any, **options: Any) -> None:
            bound = signature.bind(self, *arguments, **options)
            bound.apply_defaults()
            self._build(bound.arguments, takes)

        __init__.__signature__ = signature  # type: ignore[attr-defined]
        cls.__init__ = __init__  # type: ignore[assignment, method-assign]
        cls._archives = archives
        cls._flags = [name for name, item in parameters.items() if item.kind in (bool, _FLAG)]
        cls._element_class = gives or cls._element_class
        described = "\n".join(f"    {name}: {item.text}" for name, item in parameters.items())
        cls.__doc__ = f"{inspect.cleandoc(cls.__doc__ or '')}\n\nArgs:\n{described}\n"

    def _build(self, given: Mapping[str, Any], takes: Sequence[str]) -> None:
        handling = given["error_handling"]
        self._failed: str | None = None
        if handling is not None:
            self._failed = handling.get("output")
            if not isinstance(self._failed, str) or self._failed in ("", "good"):
                raise ValueError("error_handling needs the name of an output: {output: failed}")
        for name in self._flags:
            _check_flag(name, given[name])
        _check_filters(given.get("search_filters"))
        FailingTransform.__init__(self, failures="raise" if handling is None else "collect")
        options = {name: given[name] for name in takes if given[name] is not None}
        endpoints = [_endpoint(archive, given) for archive in self._archives]
        self._inner = self._transform(*endpoints, failures=self._failure_mode, **self._options(options))

    def _options(self, options: dict[str, Any]) -> dict[str, Any]:
        """The arguments of the transform."""
        return options

    def expand(self, pvalue: Any) -> Any:
        """Builds the steps."""
        failures = []
        if not isinstance(pvalue, PBegin):
            columns = columns_of_type(pvalue.element_type)
            if UID_KEYWORDS["study"] in columns and self._takes_references:
                check_uid_columns(type(self).__name__, columns, pvalue)
            convert = _OfRows(self._convert, type(self).__name__, collect=self.collects)
            made = pvalue | "OfRows" >> self._step(convert, self._converted)
            pvalue = made["main"]
            failures.append(made[FAILURES])
        result = pvalue | type(self).__name__ >> self._inner
        main, lost = result if isinstance(result, tuple) else (result, None)
        rows = self._as_rows(main)
        if self._failed is None:
            return rows
        lost = self._report([*failures, lost])
        return {"good": rows, self._failed: lost | "FailuresAsRows" >> AsRows(element_type=Failure)}

    def _as_rows(self, main: Any) -> Any:
        return main if self._element_class is None else main | "AsRows" >> AsRows(element_type=self._element_class)


class _Search(_OnRows):
    _yaml_requires_inputs = False  # for Beam YAML, a source too
    _convert = staticmethod(query_of_row)
    _converted = Resource | dict[str, Any]
    _columns: list[str]

    def _options(self, options: dict[str, Any]) -> dict[str, Any]:
        return {"columns": self._columns, **options}


_SEARCH = ("search_filters", "columns", "limit", "typed_dates", "exact", "allow_all", "require_match")


class SearchForStudies(_Search, takes=_SEARCH):
    """Searches for studies: once, or for each row that comes in, by its UIDs or else by its columns."""

    _transform = transforms.SearchForStudies
    _columns = _STUDY


class SearchForSeries(_Search, takes=_SEARCH):
    """Searches for series: once, or for each row that comes in, by its UIDs or else by its columns."""

    _transform = transforms.SearchForSeries
    _columns = _SERIES


class SearchForInstances(_Search, takes=_SEARCH):
    """Searches for instances: once, or for each row that comes in, by its UIDs or else by its columns."""

    _transform = transforms.SearchForInstances
    _columns = _INSTANCE


class ReadFromDICOMweb(_OnRows, takes=("search_filters", "limit", "require_match", "spool_directory"), gives=Instance):
    """Reads the instances that match a search: rows with their UIDs, their transfer syntax and their bytes."""

    _yaml_requires_inputs = False
    _transform = transforms.ReadFromDICOMweb


class ReadAllFromDICOMweb(
    _OnRows, takes=("search_filters", "limit", "allow_all", "require_match", "spool_directory"), gives=Instance
):
    """Reads the instances of each row that comes in, by its UIDs or else by its columns, as ReadFromDICOMweb."""

    _transform = transforms.ReadAllFromDICOMweb
    _convert = staticmethod(query_of_row)
    _converted = Resource | dict[str, Any]


class ReadReferences(_OnRows, takes=("path", "level"), gives=Resource, archives=()):
    """Reads a list of UIDs or references (CSV, JSON lines, one a line): rows with the UIDs."""

    _yaml_requires_inputs = False
    _transform = transforms.ReadReferences


class RetrieveInstances(_OnRows, takes=("spool_directory", "media_types", "allow_transcoding"), gives=Instance):
    """Retrieves what rows name: a row with its bytes, or a path, for each instance."""

    _transform = transforms.RetrieveInstances


class RetrieveMetadata(_OnRows, takes=("columns", "typed_dates")):
    """Retrieves the metadata of what rows name: a row of the columns for each instance."""

    _transform = transforms.RetrieveMetadata

    def _options(self, options: dict[str, Any]) -> dict[str, Any]:
        self._columns = AsRows(options.pop("columns", _INSTANCE), typed_dates=options.pop("typed_dates"))
        return options

    def _as_rows(self, main: Any) -> Any:
        return main | "AsRows" >> self._columns


class RetrieveFrames(_OnRows, takes=("frames", "media_types", "spool_directory"), gives=Frame):
    """Retrieves the frames of what rows name: a row with the bytes, or a path, for each frame."""

    _transform = transforms.RetrieveFrames


class RetrieveRendered(_OnRows, takes=("frames", "media_types", "params", "thumbnail"), gives=RenderedImage):
    """Retrieves rendered images of what rows name: a row with the bytes for each image."""

    _transform = transforms.RetrieveRendered


class RetrieveBulkdata(_OnRows, takes=("attributes", "media_types", "spool_directory"), gives=Bulkdata):
    """Retrieves the bulk data of what rows name: a row with the bytes, or a path, for each value."""

    _transform = transforms.RetrieveBulkdata


class DownloadInstances(_OnRows, takes=("directory", "overwrite", "media_types", "allow_transcoding")):
    """Writes what rows name to files: a row with the path for each instance. The bytes never become rows."""

    _transform = transforms.DownloadInstances

    def _as_rows(self, main: Any) -> Any:
        return main | "AsRows" >> beam.Select(path=lambda path: path).with_output_types(
            beam.typehints.row_type.RowTypeConstraint.from_fields([("path", str)])
        )


class WriteToDICOMweb(_OnRows, takes=("on_existing", "verify"), gives=StoredInstance):
    """Stores instances: rows with ``content`` (Part 10 bytes) or ``path``. A row comes out for each stored one."""

    _transform = transforms.WriteToDICOMweb
    _convert = staticmethod(storable_of_row)
    _converted = bytes | str
    _takes_references = False


class CopyInstances(
    _OnRows,
    takes=("on_existing", "verify", "allow_transcoding"),
    gives=StoredInstance,
    archives=("source", "destination"),
):
    """Copies what rows name from one archive to another: a row for each instance. The bytes never become rows."""

    _transform = transforms.CopyInstances


class CompareArchives(
    _OnRows, takes=("search_filters", "compare"), gives=Difference, archives=("source", "destination")
):
    """Compares two archives: a row with the UIDs for what is missing in the destination, extra in it, or different."""

    _yaml_requires_inputs = False
    _transform = transforms.CompareArchives


class DeleteResources(_OnRows, takes=("allow_unproven_rows",), gives=Resource):
    """Deletes what rows name: a row with the UIDs for each. Searches before it need ``exact: true``."""

    _transform = transforms.DeleteResources
    # It takes fewer rows than others.
    _convert = staticmethod(_as_it_is)
    _converted = Any


_WATCH = ("search_filters", "interval", "start", "max_polls", "method")


class _Watch(_OnRows):
    _yaml_requires_inputs = False

    def _options(self, options: dict[str, Any]) -> dict[str, Any]:
        start = options["start"]
        moment = parse_moment(start) if isinstance(start, str) and start not in ("now", "all") else start
        return {**options, "start": moment}


class WatchForStudies(_Watch, takes=_WATCH, gives=Resource):
    """Reports the studies that arrive in an archive, each once: rows with the UID."""

    _transform = transforms.WatchForStudies


class WatchForInstances(_Watch, takes=_WATCH, gives=Resource):
    """Reports the instances that arrive in an archive, each once: rows with the UIDs."""

    _transform = transforms.WatchForInstances


class WatchForCompleteStudies(_Watch, takes=("quiet", *_WATCH), gives=Resource):
    """Reports the studies of which nothing has arrived for a while: rows with the UID."""

    _transform = transforms.WatchForCompleteStudies
