"""Addresses of DICOMweb resources (PS3.18 section 10.1): parsed and built, never requested."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from dicomweb_io.dicom.errors import InvalidIdentifierError
from dicomweb_io.dicom.uids import check_uid


class URIType(Enum):
    """What a URI names."""

    SERVICE = "service"
    STUDY = "study"
    SERIES = "series"
    INSTANCE = "instance"
    FRAME = "frame"


class URISuffix(Enum):
    """The form of a resource that a URI asks for, by its last path segment."""

    METADATA = "metadata"
    RENDERED = "rendered"
    THUMBNAIL = "thumbnail"


class ResourcePath(NamedTuple):
    """The parts of a path such as ``studies/1.2/series/1.3/instances/1.4/frames/1,2/rendered``."""

    study_instance_uid: str
    series_instance_uid: str | None = None
    sop_instance_uid: str | None = None
    frames: tuple[int, ...] | None = None
    suffix: URISuffix | None = None


_PATH = re.compile(
    r"studies/(?P<study>[^/]+)"
    r"(?:/series/(?P<series>[^/]+)(?:/instances/(?P<instance>[^/]+)(?:/frames/(?P<frames>[^/]+))?)?)?"
    r"(?:/(?P<suffix>metadata|rendered|thumbnail))?/?\Z"
)


def parse_resource_path(path: str, *, permissive: bool = False) -> ResourcePath:
    """Parses the path of a resource (PS3.18 table 10.4.1-1 and following).

    Args:
        path: From ``studies/`` on, with or without a leading slash; no query.
        permissive: See `dicomweb_io.dicom.uids.is_uid`.

    Raises:
        InvalidIdentifierError: If it is not such a path or one of its UIDs or frame numbers is not valid.
    """
    match = _PATH.match(path.lstrip("/"))
    if match is None:
        raise InvalidIdentifierError(
            f"not the path of a DICOMweb resource: {path[:200]!r} (expected "
            "studies/UID[/series/UID[/instances/UID[/frames/N,N]]][/metadata|rendered|thumbnail])"
        )
    names = {"study": "study_instance_uid", "series": "series_instance_uid", "instance": "sop_instance_uid"}
    uids = [
        None if match[group] is None else check_uid(unquote(match[group]), name, permissive=permissive)
        for group, name in names.items()
    ]
    frames = None
    if match["frames"] is not None:
        numbers = unquote(match["frames"]).split(",")
        if not all(number.isascii() and number.isdigit() for number in numbers):
            raise InvalidIdentifierError(f"not a list of frame numbers: {match['frames'][:100]!r} (expected N,N,…)")
        frames = tuple(int(number) for number in numbers)
    study, series, instance = uids
    assert study is not None  # noqa: S101 - the pattern always has a study
    return ResourcePath(study, series, instance, frames, URISuffix(match["suffix"]) if match["suffix"] else None)


class URI:
    """The address of a DICOMweb service, study, series, instance or of frames. Immutable and hashable.

    Args:
        base_url: The service's root, ``http://`` or ``https://``; a trailing slash is left out.
        study_instance_uid: The study.
        series_instance_uid: The series; needs the study.
        sop_instance_uid: The instance; needs the series.
        frames: Frame numbers, counted from 1, in the order wanted; need the instance.
        suffix: The form asked for. Frames have no metadata, and a service has none of the forms.
        permissive: Accept identifiers that are not UIDs by PS3.5 (see `dicomweb_io.dicom.uids.is_uid`), in URIs made
            from this one too.

    Raises:
        TypeError: If a part has the wrong type.
        InvalidIdentifierError: If a level is skipped, or a part is not valid.
    """

    __slots__ = ("_base_url", "_frames", "_instance", "_permissive", "_series", "_study", "_suffix")

    def __init__(
        self,
        base_url: str,
        study_instance_uid: str | None = None,
        series_instance_uid: str | None = None,
        sop_instance_uid: str | None = None,
        frames: Sequence[int] | None = None,
        suffix: URISuffix | None = None,
        permissive: bool = False,
    ) -> None:
        self._base_url = _checked_base(base_url)
        self._permissive = bool(permissive)
        if series_instance_uid is not None and study_instance_uid is None:
            raise InvalidIdentifierError("series_instance_uid needs study_instance_uid")
        if sop_instance_uid is not None and series_instance_uid is None:
            raise InvalidIdentifierError("sop_instance_uid needs series_instance_uid")
        if frames is not None and sop_instance_uid is None:
            raise InvalidIdentifierError("frames need sop_instance_uid")
        self._study = self._checked(study_instance_uid, "study_instance_uid")
        self._series = self._checked(series_instance_uid, "series_instance_uid")
        self._instance = self._checked(sop_instance_uid, "sop_instance_uid")
        self._frames = _checked_frames(frames)
        if suffix is not None:
            if not isinstance(suffix, URISuffix):
                raise TypeError(f"suffix must be a URISuffix, not {type(suffix).__name__}")
            if study_instance_uid is None:
                raise InvalidIdentifierError(f"a service has no {suffix.value} form; study_instance_uid is needed")
            if frames is not None and suffix is URISuffix.METADATA:
                raise InvalidIdentifierError("frames have no metadata form; ask for the metadata of the instance")
        self._suffix = suffix

    def _checked(self, value: str | None, name: str) -> str | None:
        return None if value is None else check_uid(value, name, permissive=self._permissive)

    @property
    def base_url(self) -> str:
        """The service's root, without trailing slash."""
        return self._base_url

    @property
    def study_instance_uid(self) -> str | None:
        """The study, or None."""
        return self._study

    @property
    def series_instance_uid(self) -> str | None:
        """The series, or None."""
        return self._series

    @property
    def sop_instance_uid(self) -> str | None:
        """The instance, or None."""
        return self._instance

    @property
    def frames(self) -> tuple[int, ...] | None:
        """The frame numbers, or None."""
        return self._frames

    @property
    def suffix(self) -> URISuffix | None:
        """The form asked for, or None."""
        return self._suffix

    @property
    def permissive(self) -> bool:
        """Whether identifiers are accepted that are not UIDs by PS3.5."""
        return self._permissive

    @property
    def type(self) -> URIType:
        """What the URI names."""
        if self._study is None:
            return URIType.SERVICE
        if self._series is None:
            return URIType.STUDY
        if self._instance is None:
            return URIType.SERIES
        return URIType.INSTANCE if self._frames is None else URIType.FRAME

    @property
    def parent(self) -> URI:
        """The next larger resource: the service of a study, the study of a series, and so on, without suffix.

        Raises:
            InvalidIdentifierError: For a service.
        """
        if self.type is URIType.SERVICE:
            raise InvalidIdentifierError("a service has no parent")
        levels = {
            URIType.STUDY: self.base_uri,
            URIType.SERIES: self.study_uri,
            URIType.INSTANCE: self.series_uri,
            URIType.FRAME: self.instance_uri,
        }
        return levels[self.type]()

    def base_uri(self) -> URI:
        """The service."""
        return URI(self._base_url, permissive=self._permissive)

    def study_uri(self) -> URI:
        """The study.

        Raises:
            InvalidIdentifierError: If this URI names none.
        """
        self._need(URIType.STUDY)
        return URI(self._base_url, self._study, permissive=self._permissive)

    def series_uri(self) -> URI:
        """The series.

        Raises:
            InvalidIdentifierError: If this URI names none.
        """
        self._need(URIType.SERIES)
        return URI(self._base_url, self._study, self._series, permissive=self._permissive)

    def instance_uri(self) -> URI:
        """The instance.

        Raises:
            InvalidIdentifierError: If this URI names none.
        """
        self._need(URIType.INSTANCE)
        return URI(self._base_url, self._study, self._series, self._instance, permissive=self._permissive)

    def frame_uri(self) -> URI:
        """The frames, without suffix.

        Raises:
            InvalidIdentifierError: If this URI names none.
        """
        self._need(URIType.FRAME)
        return URI(self._base_url, self._study, self._series, self._instance, self._frames, permissive=self._permissive)

    def _need(self, wanted: URIType) -> None:
        order = list(URIType)
        if order.index(self.type) < order.index(wanted):
            raise InvalidIdentifierError(f"a {self.type.value} URI names no {wanted.value}")

    def update(
        self,
        base_url: str | None = None,
        study_instance_uid: str | None = None,
        series_instance_uid: str | None = None,
        sop_instance_uid: str | None = None,
        frames: Sequence[int] | None = None,
        suffix: URISuffix | None = None,
        permissive: bool | None = None,
    ) -> URI:
        """A copy with other parts; None keeps a part as it is."""
        return URI(
            self._base_url if base_url is None else base_url,
            self._study if study_instance_uid is None else study_instance_uid,
            self._series if series_instance_uid is None else series_instance_uid,
            self._instance if sop_instance_uid is None else sop_instance_uid,
            self._frames if frames is None else frames,
            self._suffix if suffix is None else suffix,
            self._permissive if permissive is None else permissive,
        )

    @classmethod
    def from_string(cls, dicomweb_uri: str, uri_type: URIType | None = None, permissive: bool = False) -> URI:
        """Parses a URI.

        Args:
            dicomweb_uri: ``https://host/root[/studies/UID[/series/UID[/instances/UID[/frames/N,N]]]][/metadata|…]``.
                The last ``/studies/`` begins the resource, so that a root may hold the word too.
            uri_type: What it has to name; None accepts any.
            permissive: See the class.

        Raises:
            InvalidIdentifierError: If it is not such a URI, has a query or fragment, or is not of type `uri_type`.
        """
        if not isinstance(dicomweb_uri, str):
            raise TypeError(f"a URI must be a str, not {type(dicomweb_uri).__name__}")
        if "?" in dicomweb_uri or "#" in dicomweb_uri:
            raise InvalidIdentifierError(
                "the URI has a query or fragment, and the URI of a DICOMweb resource has neither"
            )
        base, found, rest = dicomweb_uri.rpartition("/studies/")
        if uri_type is URIType.SERVICE or not found:
            result = cls(dicomweb_uri, permissive=permissive)
        else:
            result = cls(base, *parse_resource_path("studies/" + rest, permissive=permissive), permissive=permissive)
        if uri_type is not None and result.type is not uri_type:
            raise InvalidIdentifierError(f"the URI names a {result.type.value}, not a {uri_type.value}")
        return result

    def __str__(self) -> str:
        text = self._base_url
        for name, value in (("studies", self._study), ("series", self._series), ("instances", self._instance)):
            if value is not None:
                text += f"/{name}/{value}"
        if self._frames is not None:
            text += "/frames/" + ",".join(map(str, self._frames))
        return text if self._suffix is None else f"{text}/{self._suffix.value}"

    def __repr__(self) -> str:
        return f"URI({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return str(self) == str(other) if isinstance(other, URI) else NotImplemented

    def __hash__(self) -> int:
        return hash(str(self))

    def __reduce__(self) -> tuple[Any, ...]:
        parts = (self._base_url, self._study, self._series, self._instance, self._frames, self._suffix)
        return URI, (*parts, self._permissive)


def _checked_base(base_url: object) -> str:
    if not isinstance(base_url, str):
        raise TypeError(f"base_url must be a str, not {type(base_url).__name__}")
    parts = urlsplit(base_url)
    if parts.scheme.lower() not in ("http", "https"):
        raise InvalidIdentifierError(
            f"only http and https URLs are DICOMweb URIs, not {parts.scheme or base_url[:40]!r}"
        )
    if not parts.hostname:
        raise InvalidIdentifierError("base_url has no host (expected https://host[:port][/path])")
    if parts.query or parts.fragment:
        raise InvalidIdentifierError("base_url has a query or fragment")
    return base_url.rstrip("/")


def _checked_frames(frames: Sequence[int] | None) -> tuple[int, ...] | None:
    if frames is None:
        return None
    numbers = tuple(frames)
    if not numbers:
        raise InvalidIdentifierError("frames is empty (expected one frame number at least, counted from 1)")
    for number in numbers:
        if not isinstance(number, int) or isinstance(number, bool):
            raise TypeError(f"frames must be int, but one is {type(number).__name__}")
        if number < 1:
            raise InvalidIdentifierError(f"frame numbers are counted from 1, but one is {number}")
    return numbers


_GOOGLE = re.compile(
    r"https://healthcare\.googleapis\.com/v1(?:beta1)?"
    r"/projects/(?P<project_id>[^/]+)/locations/(?P<location>[^/]+)/datasets/(?P<dataset_id>[^/]+)"
    r"/dicomStores/(?P<dicom_store_id>[^/]+)/dicomWeb\Z"
)
_GOOGLE_PART = re.compile(r"[A-Za-z0-9_.:\-]+\Z")


@dataclass(frozen=True)
class GoogleCloudHealthcareURL:
    """The DICOMweb root of a DICOM store of the Google Cloud Healthcare API; `str` gives the URL.

    Attributes:
        project_id: The project.
        location: The region, such as ``us-central1``.
        dataset_id: The healthcare dataset.
        dicom_store_id: The DICOM store.

    Raises:
        InvalidIdentifierError: If a part is empty or has a character that such identifiers never have.
    """

    project_id: str
    location: str
    dataset_id: str
    dicom_store_id: str

    def __post_init__(self) -> None:
        for name in ("project_id", "location", "dataset_id", "dicom_store_id"):
            value = getattr(self, name)
            if not isinstance(value, str) or not _GOOGLE_PART.match(value):
                raise InvalidIdentifierError(
                    f"{name} must be letters, digits, dots, colons, hyphens or underscores, not {value!r}"
                )

    def __str__(self) -> str:
        return (
            f"https://healthcare.googleapis.com/v1/projects/{self.project_id}/locations/{self.location}"
            f"/datasets/{self.dataset_id}/dicomStores/{self.dicom_store_id}/dicomWeb"
        )

    @classmethod
    def from_string(cls, base_url: str) -> GoogleCloudHealthcareURL:
        """Parses the DICOMweb root of a store.

        Raises:
            InvalidIdentifierError: If it is another URL.
        """
        match = _GOOGLE.match(base_url)
        if match is None:
            raise InvalidIdentifierError(
                "not the DICOMweb root of a Google DICOM store (expected https://healthcare.googleapis.com/v1/"
                "projects/P/locations/L/datasets/D/dicomStores/S/dicomWeb)"
            )
        return cls(**match.groupdict())
