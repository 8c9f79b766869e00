"""Addresses of DICOMweb resources (PS3.18 section 10.1): parsed and built, never requested."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from dicomweb_io.dicom.errors import InvalidIdentifierError
from dicomweb_io.dicom.uids import check_uid, path_segment


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
    r"studies/(?P<study>[^/?#]+)"
    r"(?:/series/(?P<series>[^/?#]+)(?:/instances/(?P<instance>[^/?#]+)(?:/frames/(?P<frames>[^/?#]+))?)?)?"
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


_PARTS = ("study_instance_uid", "series_instance_uid", "sop_instance_uid", "frames")
"""The parts of a URI below the service, from the study down."""


@dataclass(frozen=True, eq=False, repr=False)
class URI:
    """The address of a DICOMweb service, study, series, instance or of frames. Immutable and hashable.

    Attributes:
        base_url: The service's root, ``http://`` or ``https://``; without a trailing slash.
        study_instance_uid: The study.
        series_instance_uid: The series; needs the study.
        sop_instance_uid: The instance; needs the series.
        frames: A tuple of frame numbers, counted from 1, in the order wanted; they need the instance.
        suffix: The form asked for. Frames have no metadata, and a service has none of the forms.
        permissive: Accept identifiers that are not UIDs by PS3.5 (see `dicomweb_io.dicom.uids.is_uid`), in URIs made
            from this one too.

    Raises:
        TypeError: If a part has the wrong type.
        InvalidIdentifierError: If a level is skipped, or a part is not valid.
    """

    base_url: str
    study_instance_uid: str | None = None
    series_instance_uid: str | None = None
    sop_instance_uid: str | None = None
    frames: Sequence[int] | None = None
    suffix: URISuffix | None = None
    permissive: bool = False

    def __post_init__(self) -> None:
        # The parts are checked and normalized here; nothing changes them later.
        object.__setattr__(self, "base_url", _checked_base(self.base_url))
        object.__setattr__(self, "permissive", bool(self.permissive))
        object.__setattr__(self, "frames", _checked_frames(self.frames))
        needed = None
        for name in _PARTS:
            value = getattr(self, name)
            if value is not None and needed is not None and getattr(self, needed) is None:
                raise InvalidIdentifierError(f"{name} needs {needed}")
            if value is not None and name != "frames":
                object.__setattr__(self, name, check_uid(value, name, permissive=self.permissive))
            needed = name
        if self.suffix is not None:
            if not isinstance(self.suffix, URISuffix):
                raise TypeError(f"suffix must be a URISuffix, not {type(self.suffix).__name__}")
            if self.study_instance_uid is None:
                raise InvalidIdentifierError(f"a service has no {self.suffix.value} form; study_instance_uid is needed")
            if self.frames is not None and self.suffix is URISuffix.METADATA:
                raise InvalidIdentifierError("frames have no metadata form; ask for the metadata of the instance")

    @property
    def type(self) -> URIType:
        """What the URI names."""
        return list(URIType)[sum(getattr(self, name) is not None for name in _PARTS)]

    @property
    def parent(self) -> URI:
        """The next larger resource: the service of a study, the study of a series, the instance of frames.

        A resource with a suffix has the one without it as its parent, and a service is its own.
        """
        levels = list(URIType)
        above = 0 if self.suffix is not None else 1
        return self._cut_at(levels[max(0, levels.index(self.type) - above)])

    def base_uri(self) -> URI:
        """The service."""
        return self._cut_at(URIType.SERVICE)

    def study_uri(self) -> URI:
        """The study.

        Raises:
            InvalidIdentifierError: If this URI names none.
        """
        return self._cut_at(URIType.STUDY)

    def series_uri(self) -> URI:
        """The series.

        Raises:
            InvalidIdentifierError: If this URI names none.
        """
        return self._cut_at(URIType.SERIES)

    def instance_uri(self) -> URI:
        """The instance.

        Raises:
            InvalidIdentifierError: If this URI names none.
        """
        return self._cut_at(URIType.INSTANCE)

    def frame_uri(self) -> URI:
        """The frames, without suffix.

        Raises:
            InvalidIdentifierError: If this URI names none.
        """
        return self._cut_at(URIType.FRAME)

    def _cut_at(self, wanted: URIType) -> URI:
        """The URI without suffix and without what lies below a level."""
        count = list(URIType).index(wanted)
        if list(URIType).index(self.type) < count:
            raise InvalidIdentifierError(f"a {self.type.value} URI names no {wanted.value}")
        parts: dict[str, Any] = {name: getattr(self, name) for name in _PARTS[:count]}
        return URI(self.base_url, **parts, permissive=self.permissive)

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
        """A copy with other parts; None keeps a part unchanged."""
        return URI(
            self.base_url if base_url is None else base_url,
            self.study_instance_uid if study_instance_uid is None else study_instance_uid,
            self.series_instance_uid if series_instance_uid is None else series_instance_uid,
            self.sop_instance_uid if sop_instance_uid is None else sop_instance_uid,
            self.frames if frames is None else frames,
            self.suffix if suffix is None else suffix,
            self.permissive if permissive is None else permissive,
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
        resource: ResourcePath | None = None
        if found:
            try:
                resource = parse_resource_path("studies/" + rest, permissive=permissive)
            except InvalidIdentifierError:
                # The root of a service may hold the word too.
                if uri_type is not URIType.SERVICE:
                    raise
        if resource is None:
            result = cls(dicomweb_uri, permissive=permissive)
        else:
            result = cls(base, *resource, permissive=permissive)
        if uri_type is not None and result.type is not uri_type:
            raise InvalidIdentifierError(f"the URI names a {result.type.value}, not a {uri_type.value}")
        return result

    def __str__(self) -> str:
        uids = {
            "studies": self.study_instance_uid,
            "series": self.series_instance_uid,
            "instances": self.sop_instance_uid,
        }
        text = self.base_url + "".join(f"/{name}/{path_segment(uid)}" for name, uid in uids.items() if uid)
        text += f"/frames/{','.join(map(str, self.frames))}" if self.frames else ""
        return text if self.suffix is None else f"{text}/{self.suffix.value}"

    def __repr__(self) -> str:
        return f"URI({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return str(self) == str(other) if isinstance(other, URI) else NotImplemented

    def __hash__(self) -> int:
        return hash(str(self))


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
