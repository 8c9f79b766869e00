"""The elements that move through clients and pipelines: references, instances, results and failures.

All are frozen dataclasses without any dependency on Apache Beam. Field names are DICOM keywords in snake case.
`dicomweb_io.transforms` registers a deterministic coder for each, so they keep their class across workers.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, cast

from dicomweb_io.dicom.part10 import Header, header_of, read_dataset
from dicomweb_io.dicom.uids import check_uid, is_uid, path_segment
from dicomweb_io.dicom.uris import URI, URIType
from dicomweb_io.errors import InvalidIdentifierError, safe_url

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

JSONDataset = dict[str, Any]
"""One dataset in the DICOM JSON model (PS3.18 Annex F): 8-digit upper-case tags to ``{"vr": …, "Value": […]}``."""

SearchLevel = Literal["study", "series", "instance"]
Level = Literal["study", "series", "instance", "frame"]

STUDY_INSTANCE_UID = "0020000D"
SERIES_INSTANCE_UID = "0020000E"
SOP_INSTANCE_UID = "00080018"

LEVELS: tuple[SearchLevel, ...] = ("study", "series", "instance")
"""The levels of what can be searched for, from the study down."""

UID_TAGS: dict[SearchLevel, str] = {
    "study": STUDY_INSTANCE_UID,
    "series": SERIES_INSTANCE_UID,
    "instance": SOP_INSTANCE_UID,
}
"""The tag of the UID that each level adds to the name of an object."""

UID_KEYWORDS: dict[SearchLevel, str] = {
    "study": "StudyInstanceUID",
    "series": "SeriesInstanceUID",
    "instance": "SOPInstanceUID",
}
"""The keyword of that UID."""

COLLECTIONS: dict[SearchLevel, str] = {"study": "studies", "series": "series", "instance": "instances"}
"""The segment of a path that stands before that UID (PS3.18 section 10.1)."""


@dataclass(frozen=True)
class Resource:
    """A reference to a study, a series, an instance or some frames of an instance. It holds no data.

    Attributes:
        study_instance_uid: The study.
        series_instance_uid: The series, for references below study level.
        sop_instance_uid: The instance, for references below series level.
        frames: Frame numbers, counted from 1, in the order wanted; empty for a reference to a whole object.

    Raises:
        TypeError, ValueError: If a UID cannot be one (see `dicomweb_io.dicom.uids.is_uid`, permissive form), if a
            level is skipped, or if a frame number is not a positive integer.
    """

    study_instance_uid: str
    series_instance_uid: str | None = None
    sop_instance_uid: str | None = None
    frames: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("study_instance_uid", "series_instance_uid", "sop_instance_uid"):
            given = getattr(self, name)
            if given is None and name != "study_instance_uid":
                continue
            uid = check_uid(given, name, permissive=True)
            if uid is not given or type(uid) is not str:
                # A UID of pydicom or a text of NumPy is the same key as plain text.
                object.__setattr__(self, name, str(uid))
        if self.sop_instance_uid is not None and self.series_instance_uid is None:
            raise InvalidIdentifierError("sop_instance_uid needs series_instance_uid")
        if not isinstance(self.frames, tuple):
            object.__setattr__(self, "frames", tuple(self.frames))
        if self.frames and self.sop_instance_uid is None:
            raise InvalidIdentifierError("frames need sop_instance_uid")
        for number in self.frames:
            if not isinstance(number, int) or isinstance(number, bool) or number < 1:
                raise InvalidIdentifierError(f"frames must be positive integers, but one is {number!r}")

    @property
    def level(self) -> Level:
        """What is referred to: ``"study"``, ``"series"``, ``"instance"`` or ``"frame"``."""
        if self.frames:
            return "frame"
        if self.sop_instance_uid is not None:
            return "instance"
        return "series" if self.series_instance_uid is not None else "study"

    @property
    def uids(self) -> dict[SearchLevel, str]:
        """The UIDs that are set, from the study down."""
        uids: dict[SearchLevel, str | None] = {
            "study": self.study_instance_uid,
            "series": self.series_instance_uid,
            "instance": self.sop_instance_uid,
        }
        return {level: uid for level, uid in uids.items() if uid is not None}

    @property
    def uri(self) -> str:
        """The path below a service's root (PS3.18 section 10.1), for example ``studies/1.2/series/1.3``."""
        path = "/".join(f"{COLLECTIONS[level]}/{path_segment(uid)}" for level, uid in self.uids.items())
        return f"{path}/frames/{','.join(map(str, self.frames))}" if self.frames else path

    @property
    def instance(self) -> Resource:
        """The same instance without frames; for study and series references the reference itself."""
        if not self.frames:
            return self
        return Resource(self.study_instance_uid, self.series_instance_uid, self.sop_instance_uid)

    @property
    def series(self) -> Resource:
        """The series that holds the instance; for a study reference the reference itself."""
        return Resource(self.study_instance_uid, self.series_instance_uid)

    def contains(self, other: Resource) -> bool:
        """Tells whether `other` is this object or lies inside it (frames are compared as sets)."""
        if self.study_instance_uid != other.study_instance_uid:
            return False
        if self.series_instance_uid is not None and self.series_instance_uid != other.series_instance_uid:
            return False
        if self.sop_instance_uid is not None and self.sop_instance_uid != other.sop_instance_uid:
            return False
        return not self.frames or (bool(other.frames) and set(other.frames) <= set(self.frames))

    def to_dict(self) -> dict[str, Any]:
        """The reference as a JSON object with the attributes that are set."""
        return {key: list(value) if key == "frames" else value for key, value in asdict(self).items() if value}

    @classmethod
    def of_header(cls, header: Header) -> Resource:
        """The instance of a file's header."""
        return cls(header.study_instance_uid, header.series_instance_uid, header.sop_instance_uid)

    @classmethod
    def of(cls, value: Any, *, level: Level | None = None) -> Resource:
        """Makes a reference from anything that names an object.

        Args:
            value: Any of

                - a `Resource`, or an element that has one as its `reference` (`Instance`, `StoredInstance`, `Frame` …);
                - the text of a DICOMweb URI, absolute (of a folder too) or from ``studies/`` on, or a `URI`;
                - a row of a search or metadata in the DICOM JSON model;
                - UIDs by keyword (``StudyInstanceUID``, ``SeriesInstanceUID``, ``SOPInstanceUID``): a mapping, or the
                  attributes of a typed row, a named tuple, a dataclass or a pydicom dataset;
                - UIDs by the attribute names of this class, likewise (as `to_dict` and `AsRows` give them);
                - a tuple of a level and the UIDs from the study down: ``("study", "1.2")``,
                  ``("series", "1.2", "1.3")``.

                The UIDs that it holds decide the level. In the DICOM JSON model and by keyword an empty one is an
                error: a row never names the whole that it is a part of. By attribute names None is a level that is not
                meant.
            level: What it has to be. With ``"study"`` the text of a UID will do.

        Raises:
            TypeError, ValueError: If the value names no study, lacks a UID above or of what it names, or is of another
                level.
        """
        found = _reference(value, level)
        if level is not None and found.level != level:
            raise InvalidIdentifierError(f"{found.uri} is a {found.level}, not a {level}")
        return found


_UID_NAMES: dict[SearchLevel, str] = {
    "study": "study_instance_uid",
    "series": "series_instance_uid",
    "instance": "sop_instance_uid",
}


def _reference(value: Any, level: Level | None) -> Resource:
    if isinstance(value, Resource):
        return value
    if isinstance(value, (str, URI)):
        return _of_text(value, level)
    if isinstance(value, (tuple, list)) and not hasattr(value, "_fields"):
        return _of_pair(value)
    reference = getattr(value, "reference", None)
    if isinstance(reference, Resource):
        return reference
    if isinstance(value, Mapping):
        return _of_names(value, "mapping" if any(name in value for name in UID_KEYWORDS.values()) else "row")
    kind = type(value).__name__
    names = [name for name in (*_UID_NAMES.values(), *UID_KEYWORDS.values()) if hasattr(value, name)]
    if names:
        frames = {"frames": value.frames} if hasattr(value, "frames") else {}
        return _of_names({name: getattr(value, name) for name in names} | frames, kind)
    raise TypeError(
        f"a reference is a Resource, a row with a StudyInstanceUID, a mapping of UIDs or a URI, but this is {kind}"
    )


def _of_names(row: Mapping[str, Any], kind: str) -> Resource:
    forms = [
        [name for name in names.values() if name in row or name.lower() in row]
        for names in (_UID_NAMES, UID_KEYWORDS, UID_TAGS)
    ]
    if sum(map(bool, forms)) > 1:
        # What one form leaves out the other may name: it must not become the whole.
        mixed = " and ".join(found[0] for found in forms if found)
        raise InvalidIdentifierError(f"the {kind} names UIDs in several forms ({mixed}): give all in one form")
    if any(name in row for name in _UID_NAMES.values()):
        # An empty text is a UID that is missing; None is a level that is not meant.
        given = {name: row[name] for name in (*_UID_NAMES.values(), "frames") if row.get(name) not in (None, ())}
        return Resource(given.pop("study_instance_uid", None), **given)
    by_keyword = any(name in row for name in UID_KEYWORDS.values())
    names = UID_KEYWORDS if by_keyword else UID_TAGS
    uids = {level: _text_of(row.get(name)) if by_keyword else _uid_of(row, name) for level, name in names.items()}
    has = {level: name in row or name.lower() in row for level, name in names.items()}
    study, series, instance = (uids[level] for level in LEVELS)
    if study is None:
        raise InvalidIdentifierError(
            f"a reference needs a StudyInstanceUID (0020000D) as text; the {kind} has {shown_keys(row) or 'nothing'}"
        )
    # A row never names more than what it is a row of: an instance without its series is not its study.
    if series is None and (has["series"] or has["instance"]):
        raise InvalidIdentifierError(f"the {kind} of study {study} lacks its SeriesInstanceUID (0020000E)")
    if instance is None and has["instance"]:
        raise InvalidIdentifierError(f"the {kind} of series {series} lacks its SOPInstanceUID (00080018)")
    return Resource(study, series, instance, tuple(row.get("frames") or ()))


_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,63}|[0-9A-Fa-f]{8}")
_SHOWN_KEYS = 20


def shown_keys(keys: Iterable[Any]) -> str:
    """The names among some keys, for messages; other texts may be values, and are not shown."""
    names = [key if isinstance(key, str) and _KEY.fullmatch(key) else "…" for key in keys]
    more = f" and {len(names) - _SHOWN_KEYS} more" if len(names) > _SHOWN_KEYS else ""
    return ", ".join(names[:_SHOWN_KEYS]) + more


def _text_of(value: Any) -> str | None:
    """A UID that is given by itself, or as the only one of a list."""
    one = value[0] if isinstance(value, (list, tuple)) and len(value) == 1 else value
    return str(one).strip(" \0") or None if isinstance(one, str) else None


def _of_pair(value: Sequence[Any]) -> Resource:
    level, *uids = value or ("",)
    number = LEVELS.index(level) + 1 if isinstance(level, str) and level in LEVELS else 0
    if not number or len(uids) != number or None in uids:
        raise InvalidIdentifierError(
            'a tuple names an object by its level and the UIDs from the study down: ("study", STUDY), '
            '("series", STUDY, SERIES) or ("instance", STUDY, SERIES, INSTANCE)'
        )
    return Resource(*uids)


def _of_text(value: str | URI, level: Level | None) -> Resource:
    if isinstance(value, str) and "." in value and is_uid(value.strip(" \0")):
        if level == "study":
            return Resource(value)
        raise InvalidIdentifierError(
            f'the UID {value.strip()} alone does not say what it names: give ("study", UID), '
            f'("series", STUDY, SERIES), a mapping such as {{"StudyInstanceUID": UID}}, or a URI (studies/UID)'
        )
    uri = value if isinstance(value, URI) else URI.from_string(_web_uri(value), permissive=True)
    if uri.type is URIType.SERVICE or uri.study_instance_uid is None:
        raise InvalidIdentifierError(
            "the text is no URI of a study, series, instance or frame (studies/UID); what else it may be is said by a "
            'mapping, such as {"AccessionNumber": "123"} for a search'
        )
    return Resource(uri.study_instance_uid, uri.series_instance_uid, uri.sop_instance_uid, tuple(uri.frames or ()))


def _web_uri(text: str) -> str:
    scheme, absolute, _ = text.partition("://")
    if not absolute:
        return "http://localhost/" + text.lstrip("/")
    if scheme.lower() in ("http", "https"):
        return text
    # The Retrieve URL of a folder.
    _, found, rest = text.rpartition("/studies/")
    return f"http://localhost/studies/{rest}" if found else text


def open_path(path: str) -> BinaryIO:
    """Opens a local path or a URL of fsspec for reading bytes.

    Raises:
        InvalidIdentifierError: If it cannot be a path.
        OSError: If it cannot be read.
    """
    try:
        if "://" not in path:
            return open(path, "rb")
        import fsspec

        return cast(BinaryIO, fsspec.open(path, "rb").open())
    except ValueError as error:
        # A null character, or a protocol that fsspec does not know.
        raise InvalidIdentifierError(f"{safe_url(path)!r} cannot be opened: {error}") from None


def _uid_of(row: Mapping[str, Any], tag: str) -> str | None:
    element = row.get(tag) or row.get(tag.lower())
    value = element.get("Value") if isinstance(element, Mapping) else None
    first = value[0] if value and isinstance(value, (list, tuple)) else value
    if not isinstance(first, str):
        return None
    # Servers pad as files do, and write one UID in place of a list.
    uid = first.strip(" \0")
    return uid if uid and (first is not value or is_uid(uid)) else None


@dataclass(frozen=True)
class Instance:
    """One DICOM object as its Part 10 bytes (PS3.10), in memory or in a file, unparsed.

    Exactly one of `content` and `path` is set.

    Attributes:
        reference: The instance.
        transfer_syntax_uid: The transfer syntax of the bytes, from the file meta information.
        content: The bytes.
        path: A local path or fsspec URL of a file that holds the bytes. The receiver of the element owns a spooled
            file.
        sop_class_uid: The SOP class, where known.
        warnings: What is odd about the bytes, which are whole and unchanged all the same, such as
            ``"without pixel data"`` (`dicomweb_io.dicom.part10.Verdict`).
    """

    reference: Resource
    transfer_syntax_uid: str
    content: bytes | None = field(default=None, repr=False)
    path: str | None = None
    sop_class_uid: str | None = None
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.reference.level != "instance":
            raise InvalidIdentifierError(
                f"an Instance needs a reference to an instance, not to a {self.reference.level}"
            )
        if (self.content is None) == (self.path is None):
            raise ValueError("an Instance has either content or path")
        if self.content is not None and not isinstance(self.content, bytes):
            object.__setattr__(self, "content", bytes(self.content))

    @property
    def size(self) -> int:
        """The number of bytes of the file."""
        if self.content is not None:
            return len(self.content)
        path = cast(str, self.path)
        if "://" not in path:
            return os.stat(path).st_size
        import fsspec

        filesystem, name = fsspec.core.url_to_fs(path)
        return int(filesystem.size(name))

    def open(self) -> BinaryIO:
        """Opens the bytes for reading from the start; the caller closes the file."""
        return io.BytesIO(self.content) if self.content is not None else open_path(cast(str, self.path))

    def read(self) -> bytes:
        """All bytes, wherever they are."""
        if self.content is not None:
            return self.content
        with self.open() as file:
            return file.read()

    def dataset(self, **options: Any) -> Dataset:
        """Parses the bytes with pydicom.

        Args:
            **options: Arguments of `pydicom.dcmread`, such as ``stop_before_pixels=True``.
        """
        with self.open() as file:
            return read_dataset(file, **options)

    @classmethod
    def from_bytes(cls, content: bytes) -> Instance:
        """Makes an instance of the bytes of a Part 10 file, reading only its header.

        Raises:
            ValueError: If they are not a DICOM object, or lack a UID.
        """
        header = header_of(io.BytesIO(content))
        return cls(
            Resource.of_header(header),
            header.transfer_syntax_uid,
            content=content,
            sop_class_uid=header.sop_class_uid,
        )

    @classmethod
    def from_path(cls, path: str | os.PathLike[str]) -> Instance:
        """Makes an instance of a Part 10 file, which stays where it is; only its header is read.

        Raises:
            OSError: If it cannot be read.
            ValueError: If it is not a DICOM object, or lacks a UID.
        """
        name = os.fspath(path)
        with open_path(name) as file:
            header = header_of(file)
        return cls(
            Resource.of_header(header),
            header.transfer_syntax_uid,
            path=name,
            sop_class_uid=header.sop_class_uid,
        )

    @classmethod
    def from_dataset(cls, dataset: Dataset) -> Instance:
        """Encodes a pydicom dataset as a Part 10 file.

        The bytes are pydicom's encoding, which need not equal those of the file the dataset was read from; pass
        paths or bytes where identity matters.

        Raises:
            ValueError: If the dataset lacks a UID or its transfer syntax.
        """
        from dicomweb_io.dicom.part10 import encode_dataset

        return cls.from_bytes(encode_dataset(dataset))


@dataclass(frozen=True)
class SearchQuery:
    """One QIDO-RS search, as plain data (PS3.18 section 10.6).

    Attributes:
        level: What the rows are: ``"study"``, ``"series"`` or ``"instance"``.
        study_instance_uid: Search within this study only.
        series_instance_uid: Search within this series only (instances; needs the study).
        search_filters: Pairs of attribute (keyword, 8-digit tag, or a dotted path of them) and value, in order.
        fields: Further attributes to return, by keyword or tag, or ``("all",)``.
        fuzzymatching: Ask for fuzzy matching of person names; None sends no parameter.
        additional_params: Further query parameters, sent unchanged.
        source: The list and the line that asks for it, for failures.
    """

    level: SearchLevel
    study_instance_uid: str | None = None
    series_instance_uid: str | None = None
    search_filters: tuple[tuple[str, str], ...] = ()
    fields: tuple[str, ...] = ()
    fuzzymatching: bool | None = None
    additional_params: tuple[tuple[str, str], ...] = ()
    source: str | None = None

    def __post_init__(self) -> None:
        if self.level not in ("study", "series", "instance"):
            raise ValueError(f"level must be 'study', 'series' or 'instance', not {self.level!r}")
        if self.series_instance_uid is not None and self.study_instance_uid is None:
            raise ValueError("a search within a series needs study_instance_uid too")
        if self.level == "study" and self.study_instance_uid is not None:
            raise ValueError("a search for studies is not made within a study; filter by StudyInstanceUID instead")
        if self.level == "series" and self.series_instance_uid is not None:
            raise ValueError("a search for series is not made within a series; filter by SeriesInstanceUID instead")


@dataclass(frozen=True)
class SearchPage:
    """One answer to a search.

    Attributes:
        rows: The rows, in the archive's order.
        offset: The offset that was asked for.
        limit: The limit that was sent; None if none was.
        total: The number of all rows of the query, where the archive announced it.
        more: True if the archive says that rows follow, False if it is known that none do, None if it cannot be known
            from this page.
        warnings: Texts of the answer's Warning headers.
        unreadable: The number of further rows, which are not datasets.
    """

    rows: Sequence[JSONDataset]
    offset: int
    limit: int | None = None
    total: int | None = None
    more: bool | None = None
    warnings: tuple[str, ...] = ()
    unreadable: int = 0

    @property
    def number(self) -> int:
        """The number of rows, also of those that cannot be read."""
        return len(self.rows) + self.unreadable


@dataclass(frozen=True)
class Frame:
    """One frame of an instance, as encoded by its transfer syntax.

    Attributes:
        reference: The instance with this one frame number in `frames`.
        transfer_syntax_uid: The encoding of `content`; None if the server did not say.
        media_type: The media type of the part, such as ``application/octet-stream`` or ``image/jpeg``.
        content: The bytes.
        path: A local path or fsspec URL that holds the bytes, for frames larger than an element may be.
    """

    reference: Resource
    transfer_syntax_uid: str | None
    media_type: str
    content: bytes | None = field(default=None, repr=False)
    path: str | None = None


@dataclass(frozen=True)
class RenderedImage:
    """A rendered study, series, instance or frame in a consumer format (PS3.18 section 8.7.4).

    Attributes:
        reference: What was rendered.
        media_type: For example ``image/jpeg``, ``image/png`` or ``text/html``.
        content: The bytes.
    """

    reference: Resource
    media_type: str
    content: bytes = field(repr=False)


@dataclass(frozen=True)
class Bulkdata:
    """One bulk data value (PS3.18 section 10.4.1.1.5).

    Attributes:
        uri: Where it was, without query.
        media_type: The media type of the part.
        content: The bytes.
        path: A local path or fsspec URL that holds the bytes, for values larger than an element may be.
    """

    uri: str
    media_type: str
    content: bytes | None = field(default=None, repr=False)
    path: str | None = None


StoreOutcome = Literal["stored", "exists", "replaced", "planned"]


@dataclass(frozen=True)
class StoredInstance:
    """The proof that an instance is at its destination.

    Attributes:
        reference: The instance.
        outcome: ``"stored"``: sent now and confirmed; ``"exists"``: was already there, nothing was sent or nothing
            was changed; ``"replaced"``: replaced another object with the same UID; ``"planned"``: a dry run says that
            it would be sent.
        size: Bytes of the Part 10 file that were moved; 0 for ``"exists"``, and for ``"planned"`` where it is unknown.
        sop_class_uid: The SOP class, where known.
        retrieve_url: Where the archive says that the instance can be retrieved, without query.
        warning_reason: The Warning Reason (0008,1196) the archive gave, such as 45056 (coerced data elements).
        verified: The evidence: ``"response"`` (named as stored in the answer), ``"uid"`` (found there afterwards), or
            the level at which the content was compared: ``"file"``, ``"dataset"``, ``"pixels"``.
        warnings: Those of the `Instance` that was moved.
        transfer_syntax_uid: The transfer syntax of what was moved, where known.
        at: When a copy had this result, in seconds since 1970.
        seconds: How long the copy of the instances of its series had taken until then.
    """

    reference: Resource
    outcome: StoreOutcome = "stored"
    size: int = 0
    sop_class_uid: str | None = None
    retrieve_url: str | None = None
    warning_reason: int | None = None
    verified: str = "response"
    warnings: tuple[str, ...] = ()
    transfer_syntax_uid: str | None = field(default=None, compare=False)
    at: float | None = field(default=None, compare=False)
    seconds: float | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Failure:
    """A failed operation on one object, with everything needed to understand and repeat it.

    It holds UIDs, paths and reasons, never payload bytes or patient names of ours (a path or a server's message may
    contain a name, so failure files are readable by their owner only).

    Attributes:
        transform: The operation that failed, such as ``"RetrieveInstances"``.
        message: What was tried, what came back, and what can be done.
        reference: The study, series, instance or frames concerned.
        rows: The half-open row range of a search that was lost, or None.
        source: The path of the file concerned.
        url: The address of the failed request, without query.
        status: The HTTP status.
        reason_code: The DICOM Failure Reason (0008,1197).
        attempts: How many times it was tried.
        retryable: Whether trying again later could help.
        server_message: The part of `message` that the server wrote, which may name a patient: it is left out of
            summaries.
        element: What the element is, if nothing else names it: its type, its size or keys, and the UIDs in it, without
            other values.
        line: The line of the user's list that named it.
        wanted: What that line asks for, a JSON object of names and values, where no reference says it: a later run can
            take it from there. It may be the identifier of a patient.
    """

    transform: str
    message: str
    reference: Resource | None = None
    rows: tuple[int, int] | None = None
    source: str | None = None
    url: str | None = None
    status: int | None = None
    reason_code: int | None = None
    attempts: int = 1
    retryable: bool = False
    server_message: str | None = None
    element: str | None = None
    line: str | None = None
    wanted: str | None = field(default=None, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """The failure as a JSON object; absent values are left out."""
        result = {key: value for key, value in asdict(self).items() if value is not None}
        if self.reference is not None:
            result["reference"] = self.reference.to_dict()
        if self.rows is not None:
            result["rows"] = list(self.rows)
        if self.wanted is not None:
            result["wanted"] = json.loads(self.wanted)
        return result


DifferenceKind = Literal["missing", "extra", "different"]


@dataclass(frozen=True)
class Difference:
    """Something that two archives do not have in common; a line of the output, and of a list for a copy.

    Attributes:
        kind: ``"missing"``: in the source only; ``"extra"``: in the destination only; ``"different"``: in both, with
            other contents, under another patient, or with other announced numbers.
        reference: The instance; a series of which one archive has nothing; or a study that belongs to another patient.
        instances: How many instances that are.
        reason: What differs, in words.
        elsewhere: Series of the other archive that have these SOP Instance UIDs (ten at most).
    """

    kind: DifferenceKind
    reference: Resource
    instances: int = 1
    reason: str = ""
    elsewhere: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The difference as a JSON object."""
        uids = {UID_KEYWORDS[level]: uid for level, uid in self.reference.uids.items()}
        more = {"reason": self.reason, "elsewhere": list(self.elsewhere)}
        return {
            "difference": self.kind,
            **uids,
            "instances": self.instances,
            **{name: value for name, value in more.items() if value},
        }


BEGINS_ALIKE = "and the chosen file begins with the same bytes"
"""The reason given for a duplicate that is cut off: nothing of it is lost."""


@dataclass(frozen=True)
class Exclusion:
    """A file of a folder that does not represent an instance, and why.

    Attributes:
        kind: ``"duplicate"``: a further file of an instance that another file represents; ``"ignored"``: not
            DICOM, or a DICOMDIR; ``"unreadable"``: DICOM that cannot be served (truncated, no UIDs, cannot be read).
        path: The file.
        reason: Why, in words; for duplicates ``"identical"`` or ``"conflicting"`` comes first.
        reference: The instance, where the file has its UIDs.
        chosen: For a duplicate the file that represents the instance.
    """

    kind: Literal["duplicate", "ignored", "unreadable"]
    path: str
    reason: str
    reference: Resource | None = None
    chosen: str | None = None

    @property
    def conflicts(self) -> bool:
        """Whether it is a duplicate whose content is not in the file that represents the instance."""
        return self.kind == "duplicate" and self.reason.startswith("conflicting") and BEGINS_ALIKE not in self.reason
