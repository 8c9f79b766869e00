"""Media types of DICOMweb: what to write into Accept, and what a Content-Type says (PS3.18 section 8.7.3).

Any media type passes. The known ones have the default transfer syntax that the standard gives them; a type that is new
tomorrow is sent unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from dicomweb_io.dicom.errors import InvalidIdentifierError
from dicomweb_io.dicom.uids import (
    EXPLICIT_VR_LITTLE_ENDIAN,
    HTJ2K_LOSSLESS,
    JPEG_2000_LOSSLESS,
    JPEG_LOSSLESS,
    JPEG_LS_LOSSLESS,
    RLE_LOSSLESS,
    is_uid,
)

DICOM = "application/dicom"
DICOM_JSON = "application/dicom+json"
DICOM_XML = "application/dicom+xml"
OCTET_STREAM = "application/octet-stream"

DEFAULT_TRANSFER_SYNTAXES: Mapping[str, str] = MappingProxyType(
    {
        DICOM: EXPLICIT_VR_LITTLE_ENDIAN,
        OCTET_STREAM: EXPLICIT_VR_LITTLE_ENDIAN,
        "image/jpeg": JPEG_LOSSLESS,
        "image/dicom-rle": RLE_LOSSLESS,
        "image/jls": JPEG_LS_LOSSLESS,
        "image/jp2": JPEG_2000_LOSSLESS,
        "image/jpx": "1.2.840.10008.1.2.4.92",
        "image/jphc": HTJ2K_LOSSLESS,
        "image/jxl": "1.2.840.10008.1.2.4.110",
        "video/mp4": "1.2.840.10008.1.2.4.102",
    }
)
"""The transfer syntax that a media type means when none is given (PS3.18 tables 8.7.3-4 to 8.7.3-6)."""

CURRENT_NAMES: Mapping[str, str] = MappingProxyType(
    {"image/x-jpls": "image/jls", "image/x-jls": "image/jls", "image/x-dicom-rle": "image/dicom-rle"}
)
"""Names that earlier editions or other libraries use, to the name of the current edition."""

Form = Literal["instances", "frames", "bulkdata", "rendered"]

_FORMS: dict[str, re.Pattern[str]] = {
    "instances": re.compile(r"(?:\*|application)/\*\Z|application/dicom\Z"),
    # Tables 8.7.3-3 to 8.7.3-6, and what they may hold tomorrow; the others are rendered forms (table 8.7.4-1).
    "frames": re.compile(r"(?:\*|application)/\*\Z|application/octet-stream\Z|image/(?!png\Z|gif\Z)|video/"),
    "bulkdata": re.compile(r"(?!application/dicom(?:\+|\Z)|multipart/)"),
    "rendered": re.compile(
        r"(?!application/(?:dicom(?:\+|\Z)|octet-stream\Z)|multipart/|image/(?:dicom-rle|jls|jphc|jpx)\Z)"
    ),
}
_WANTED = {
    "instances": f"request {DICOM}, or frames, bulk data or a rendered form",
    "frames": f"request {OCTET_STREAM} or the type of an encoding, or the instance, or a rendered form",
    "bulkdata": f"request {OCTET_STREAM} or the type of an encoding, or the instance",
    "rendered": "request a type such as image/jpeg, or frames",
}

_TOKEN = r"[A-Za-z0-9!#$%&'*+.^_`|~-]+"  # noqa: S105 - the token rule of RFC 9110, not a secret
_MEDIA_TYPE = re.compile(rf"{_TOKEN}/{_TOKEN}\Z")
_PARAMETER = re.compile(rf';\s*(?:({_TOKEN})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^;\s"]*)))?')


@dataclass(frozen=True)
class ContentType:
    """A parsed Content-Type, or one media range of an Accept header.

    Attributes:
        media_type: Lower-case ``type/subtype``; empty if there was none.
        parameters: Parameters by lower-case name, unquoted.
    """

    media_type: str
    parameters: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_multipart(self) -> bool:
        """Whether the message has parts."""
        return self.media_type.startswith("multipart/")

    @property
    def is_json(self) -> bool:
        """Whether it is JSON, under any of its names."""
        return self.media_type in ("application/json", "text/json") or self.media_type.endswith("+json")

    @property
    def is_xml(self) -> bool:
        """Whether it is XML, under any of its names."""
        return self.media_type in ("application/xml", "text/xml") or self.media_type.endswith("+xml")

    @property
    def root(self) -> ContentType:
        """What the parts of a multipart message are: its ``type`` parameter; for others the type itself.

        Some servers write the transfer syntax inside the quoted type (``type="image/jpeg; transfer-syntax=…"``).
        """
        if not self.is_multipart:
            return self
        inner = parse_content_type(self.parameters.get("type", ""))
        outer = {name: value for name, value in self.parameters.items() if name not in ("type", "boundary")}
        return ContentType(inner.media_type, {**outer, **inner.parameters})

    @property
    def transfer_syntax_uid(self) -> str | None:
        """The ``transfer-syntax`` parameter, if it names one."""
        value = self.root.parameters.get("transfer-syntax", "")
        return value if value != "*" and is_uid(value) else None


def parse_content_type(text: str | None) -> ContentType:
    """Parses the value of a Content-Type header leniently: quoted or not, any order, any case, broken rests ignored.

    Args:
        text: The header's value; None or an empty text gives an empty media type.
    """
    head, separator, _ = (text or "").partition(";")
    parameters: dict[str, str] = {}
    if separator and text:
        position = len(head)
        while match := _PARAMETER.search(text, position):
            position = match.end()
            if match[1]:
                value = match[3] if match[2] is None else re.sub(r"\\(.)", r"\1", match[2])
                parameters.setdefault(match[1].lower(), value)
    return ContentType(head.strip().lower(), parameters)


@dataclass(frozen=True)
class MediaType:
    """One accepted media type.

    Attributes:
        name: ``type/subtype``; either may be ``*``.
        transfer_syntax_uid: The accepted transfer syntax, ``"*"`` for any that the server has, or None for the
            standard's default.
    """

    name: str
    transfer_syntax_uid: str | None = None

    def includes(self, media_type: str) -> bool:
        """Whether its name is a media type or a range that covers it."""
        return self.name in (media_type, media_type.partition("/")[0] + "/*", "*/*")

    @property
    def default_transfer_syntax_uid(self) -> str | None:
        """The transfer syntax that the name alone means."""
        return DEFAULT_TRANSFER_SYNTAXES.get(self.name)

    @property
    def with_default(self) -> MediaType:
        """The same media type with the standard's default transfer syntax written out, where there is one."""
        return MediaType(self.name, self.transfer_syntax_uid or self.default_transfer_syntax_uid)

    def single_part(self) -> str:
        """The media range that asks for it as the whole body."""
        return (
            self.name
            if self.transfer_syntax_uid is None
            else f"{self.name}; transfer-syntax={self.transfer_syntax_uid}"
        )

    def multipart(self) -> str:
        """The media range that asks for it as parts of ``multipart/related``."""
        text = f'multipart/related; type="{self.name}"'
        return text if self.transfer_syntax_uid is None else f"{text}; transfer-syntax={self.transfer_syntax_uid}"


def parse_media_types(media_types: Sequence[Any] | None) -> tuple[MediaType, ...]:
    """Parses the media types that a caller accepts.

    Args:
        media_types: Media types in order of preference, each a name or a pair of a name and a transfer syntax UID,
            ``"*"``, or a list of UIDs. Former names are replaced by current ones (``image/x-jpls`` by ``image/jls``).

    Returns:
        The accepted media types in the same order; empty for None.

    Raises:
        TypeError: If an item is neither a str nor such a pair.
        InvalidIdentifierError: If a media type or a UID is not one. Nothing that could break a header passes.
    """
    if media_types is None:
        return ()
    if isinstance(media_types, str):
        raise TypeError("media_types must be a sequence of media types, not one str: write (…,)")
    accepted_types: list[MediaType] = []
    for item in media_types:
        if isinstance(item, str):
            name, syntaxes = item, (None,)
        elif isinstance(item, (tuple, list)) and 1 <= len(item) <= 2 and isinstance(item[0], str):
            name = item[0]
            wanted = item[1] if len(item) == 2 else None
            syntaxes = tuple(wanted) if isinstance(wanted, (tuple, list)) else (wanted,)
        else:
            raise TypeError(
                f"a media type must be a str or a pair of media type and transfer syntax UID, not {item!r:.100}"
            )
        accepted_types.extend(MediaType(_checked_name(name), _checked_syntax(syntax, name)) for syntax in syntaxes)
    return tuple(dict.fromkeys(accepted_types))


def accepted_for(form: Form, media_types: Sequence[Any] | None) -> tuple[MediaType, ...]:
    """Parses the media types that a caller accepts for one form of a resource (see `parse_media_types`).

    Args:
        form: ``"instances"``, ``"frames"``, ``"bulkdata"`` or ``"rendered"``.
        media_types: In order of preference.

    Raises:
        TypeError: If a rendered form is asked for with a transfer syntax.
        ValueError: If the form never has one of the types.
    """
    accepted_types = parse_media_types(media_types)
    for accepted_type in accepted_types:
        name = accepted_type.name
        if form == "rendered" and accepted_type.transfer_syntax_uid is not None:
            raise TypeError(f"rendered resources have no transfer syntax, but one was asked for with {name}")
        if not _FORMS[form].match(name):
            what = {"bulkdata": "bulk data", "rendered": "rendered resources"}.get(form, form)
            raise ValueError(f"{what} are not available as {name}: {_WANTED[form]}")
    return accepted_types


def checked_media_types(form: Form, media_types: Sequence[Any] | None) -> tuple[Any, ...] | None:
    """The media types as they were given, for one form of a resource, if they are valid.

    Raises:
        TypeError, ValueError: See `accepted_for`.
    """
    accepted_for(form, media_types)
    return None if media_types is None else tuple(media_types)


def _checked_name(name: str) -> str:
    lowered = name.strip().lower()
    if not _MEDIA_TYPE.match(lowered):
        raise InvalidIdentifierError(
            f"not a media type: {name!r:.100} (expected type/subtype; a transfer syntax goes into a pair)"
        )
    return CURRENT_NAMES.get(lowered, lowered)


def _checked_syntax(syntax: object, name: str) -> str | None:
    if syntax is None or syntax == "*":
        return syntax
    if not isinstance(syntax, str):
        raise TypeError(f"the transfer syntax of {name} must be a UID or '*', not {type(syntax).__name__}")
    if not is_uid(syntax):
        raise InvalidIdentifierError(f"the transfer syntax of {name} is not a UID or '*': {syntax!r:.100}")
    return syntax


def former_names(name: str) -> tuple[str, ...]:
    """Other names of a media type that older servers may know, for a further attempt."""
    return tuple(old for old, new in CURRENT_NAMES.items() if new == name)


def accept_header(media_types: Iterable[MediaType], *, multipart: bool) -> str:
    """An Accept header that lists media types in order.

    Args:
        media_types: What to accept, one type at least.
        multipart: Ask for parts of ``multipart/related`` rather than for one body.
    """
    return ", ".join(
        accepted_type.multipart() if multipart else accepted_type.single_part() for accepted_type in media_types
    )


def accept_spellings(
    media_types: Sequence[MediaType], *, multipart: bool = True, single: bool = True
) -> tuple[str, ...]:
    """Accept headers that ask for the same in different spellings, best first: each server rejects some of them.

    (Orthanc 1.10.1 rejects single parts, other servers reject multipart.) None makes a server re-encode where the first
    would not. They are: the list; the list as single parts; and for each type in turn the transfer syntax written out
    where it is the default, the syntax left out where it is the default, former names of the type, and for ``image/*``
    the known types one by one.

    Args:
        media_types: What to accept, one type at least.
        multipart: Include forms that ask for ``multipart/related``.
        single: Include forms that ask for one body.
    """
    variants: list[tuple[MediaType, ...]] = [tuple(media_types)]
    for accepted_type in media_types:
        variants += [(accepted_type,), (accepted_type.with_default,)]
        if (
            accepted_type.transfer_syntax_uid is not None
            and accepted_type.transfer_syntax_uid == accepted_type.default_transfer_syntax_uid
        ):
            variants.append((MediaType(accepted_type.name),))
        variants += [(MediaType(name, accepted_type.transfer_syntax_uid),) for name in former_names(accepted_type.name)]
        if (
            accepted_type.name.endswith("/*")
            and accepted_type.name != "*/*"
            and accepted_type.transfer_syntax_uid is None
        ):
            kind = accepted_type.name[:-1]
            known = tuple(MediaType(name) for name in DEFAULT_TRANSFER_SYNTAXES if name.startswith(kind))
            variants += [known, *((one,) for one in known)]
    variants = [variant for variant in variants if variant]
    forms = ([True] if multipart else []) + ([False] if single else [])
    return tuple(dict.fromkeys(accept_header(variant, multipart=form) for variant in variants for form in forms))
