"""Readable names for the files of a folder: a template that is filled from the header of each instance.

    {PatientID}/{StudyDate:%Y-%m-%d}_{StudyDescription}/{SeriesNumber}_{Modality}/{InstanceNumber:04}.dcm

A field is the keyword (or the tag) of an attribute, with a format if wanted:

==========================  ===========================================================================================
``{InstanceNumber:04}``     a number with leading zeros; ``:04d``, ``:6.2f`` and the like
``{StudyDate:%Y-%m-%d}``    parts of a date, a time or both: ``%Y %m %d %H %M %S``
``{StudyDescription:.20}``  at most so many characters; ``:<20`` and the like fill up to a width
==========================  ===========================================================================================

Several values are joined by ``_``, and so are the components of a person's name. A value that is absent is ``unknown``.
What Windows, macOS, Linux or an object store does not take in a name becomes ``_``. Names are Unicode NFC. One has at
most 120 bytes, a path 600, and what is longer ends with a hash of all of it. Without an extension, the template gets
``.dcm``.

Where a number is absent or is none, where the last name lacks a value, where another instance has the name already, and
where a filesystem cannot keep two writers from one name, the name ends with a hash of the three UIDs. So an instance
has the same name in every run, apart from which of two instances has the name without a hash.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import lru_cache
from string import Formatter
from typing import Any, BinaryIO

from dicomweb_io.dicom.attributes import resolve, vr_of
from dicomweb_io.dicom.errors import InvalidIdentifierError
from dicomweb_io.dicom.header_scan import HeaderScan
from dicomweb_io.dicom.json_encode import encode
from dicomweb_io.elements import Resource
from dicomweb_io.http.retry import ProcessLock

UNKNOWN = "unknown"
"""Stands for a value that is absent, or of which nothing can be in a name."""
EXTENSION = ".dcm"

_MAX_NAME = 120
_MAX_PATH = 600
_MAX_PARTS = 12
_HASH_DIGITS = 16

_ASCII = frozenset(("AE", "AS", "CS", "DA", "DS", "DT", "IS", "TM", "UI"))
_TEXT = frozenset(("LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"))
_BINARY_NUMBERS = frozenset(("FD", "FL", "SL", "SS", "SV", "UL", "US", "UV"))
_NUMBERS = _BINARY_NUMBERS | {"DS", "IS"}
_IMPERSONAL = _NUMBERS | {"CS", "UI"}
_DIRECTIVES = {"DA": "Ymd", "TM": "HMS", "DT": "YmdHMS"}
_CLOCKS = {
    "DA": re.compile(r"(?P<Y>\d{4})\.?(?P<m>\d\d)\.?(?P<d>\d\d)\Z", re.ASCII),
    "TM": re.compile(r"(?P<H>\d\d):?(?:(?P<M>\d\d):?(?:(?P<S>\d\d).*)?)?\Z", re.ASCII),
    "DT": re.compile(
        r"(?P<Y>\d{4})(?:(?P<m>\d\d)(?:(?P<d>\d\d)(?:(?P<H>\d\d)(?:(?P<M>\d\d)(?:(?P<S>\d\d).*)?)?)?)?)?", re.ASCII
    ),
}

_NUMBER_FORMAT = re.compile(r"[+ -]?0?\d{0,2}(?:d|\.\d{1,2}f)?\Z", re.ASCII)
_SURE_NUMBER_FORMAT = re.compile(r"[+ -]?0\d|.*[df]\Z", re.ASCII)
_TEXT_FORMAT = re.compile(r"(?:[^{}]?[<^>])?\d{0,2}(?:\.\d{1,3})?\Z", re.ASCII)
_NUMBER = re.compile(r"[+-]?(?:\d{1,32}\.?\d{0,32}|\.\d{1,32})(?:[eE][+-]?\d\d?)?\Z", re.ASCII)

# What Windows refuses, and what URLs, object stores and shells read as something else.
_UNSAFE = re.compile(r'[\\/:*?"<>|%#^~`{}\[\]\x00-\x1f\x7f]')
_DEVICE = re.compile(r"(?:con|prn|aux|nul|clock\$|conin\$|conout\$|com[0-9]|lpt[0-9])\s*(?:\.|\Z)", re.IGNORECASE)
_EXTENSION = re.compile(r"\.[A-Za-z0-9]{1,8}\Z")


@dataclass(frozen=True)
class _Field:
    """A field of a template: an attribute, and how its values are written."""

    tag: str
    vr: str
    form: str

    @property
    def is_number(self) -> bool:
        """Whether the value must be a number."""
        if not self.form:
            return self.vr in _NUMBERS
        known = _NUMBER_FORMAT.match(self.form) is not None
        return known and (self.vr in _NUMBERS or _SURE_NUMBER_FORMAT.match(self.form) is not None)

    def written(self, values: Sequence[Any]) -> tuple[str, bool]:
        """The values as a part of a name, and whether they are what the field asks for."""
        pieces = [self._one(value) for value in values]
        text = "_".join(_clean(piece) for piece, _ in pieces)
        return (text, all(fits for _, fits in pieces)) if text.strip(" ._") else (UNKNOWN, False)

    def _one(self, value: Any) -> tuple[str, bool]:
        text = str(value)
        if self.is_number:
            number = _number(text)
            if number is None or ("f" not in self.form and number != number.to_integral_value()):
                return text, not self.form and number is not None
            return format(number if "f" in self.form else int(number), self.form), True
        if "%" in self.form:
            clock = _CLOCKS[self.vr].match(text)
            wanted = re.findall("%(.)", self.form)
            if clock is None or any(clock[name] is None for name in wanted):
                return text, False
            return re.sub("%(.)", lambda match: str(clock[match[1]]), self.form), True
        return format(text, self.form), True


@dataclass(frozen=True)
class Layout:
    """A template for the paths of files in a folder; see the module.

    Attributes:
        template: The template.

    Raises:
        ValueError: If it is not one.
    """

    template: str
    _parts: tuple[tuple[str | _Field, ...], ...] = field(init=False, repr=False, compare=False)
    _extension: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.template, str):
            raise TypeError(f"a layout is a text such as '{{PatientID}}/…', not {type(self.template).__name__}")
        try:
            parts, extension = _parse(self.template)
        except ValueError as error:
            raise ValueError(f"layout {self.template!r}: {error}") from None
        object.__setattr__(self, "_parts", parts)
        object.__setattr__(self, "_extension", extension)

    def paths_of(self, scan: HeaderScan, reference: Resource, file: BinaryIO | bytes | None = None) -> tuple[str, ...]:
        """The paths that an instance may have, in the order in which they are tried: the plain one, and with a hash.

        Args:
            scan: Its header.
            reference: The instance.
            file: Where long values are that the scan did not read.
        """
        values = self._values(scan, file)
        limit = min(_MAX_NAME, _MAX_PATH // len(self._parts))
        regular, names = True, []
        for part in self._parts:
            text = ""
            for piece in part:
                if isinstance(piece, str):
                    text += piece
                    continue
                written, fits = piece.written(values.get(piece.tag, ()))
                text += written
                regular = regular and (fits or not (piece.is_number or part is self._parts[-1]))
            names.append(text)
        *folders, name = names
        above = "".join(f"{_name(folder, limit)}/" for folder in folders)
        digest = hashlib.sha256("\n".join(reference.instance.uids.values()).encode("utf-8", "replace")).hexdigest()
        with_hash = f"_{digest[:_HASH_DIGITS]}{self._extension}"
        plain = above + _name(name, limit - len(self._extension)) + self._extension
        hashed = above + _name(name, limit - len(with_hash)) + with_hash
        return (plain, hashed) if regular else (hashed,)

    def masked(self, path: str) -> str:
        """A path that `paths_of` gave, for messages: names that hold a patient's attributes or free text as ``***``."""
        shown = []
        for name, part in zip(path.split("/"), self._parts, strict=True):
            personal = any(isinstance(piece, _Field) and piece.vr not in _IMPERSONAL for piece in part)
            shown.append("***" if personal else name)
        return "/".join(shown)

    def _values(self, scan: HeaderScan, file: BinaryIO | bytes | None) -> dict[str, list[Any]]:
        """The values of the fields by tag."""
        found: dict[str, list[Any]] = {}
        others = set()
        for piece in {piece for part in self._parts for piece in part if isinstance(piece, _Field)}:
            if piece.vr in _ASCII or piece.tag.startswith("0002"):
                # As they are, because the JSON model leaves out numbers that are none.
                texts = (scan.text(int(piece.tag, 16)) or "").split("\\")
                found[piece.tag] = [text.strip(" \0") for text in texts if text.strip(" \0")]
            else:
                others.add(piece.tag)
        if others:
            for tag, element in encode(scan, tags=others, file=file).items():
                found[tag] = [value for value in map(_plain, element.get("Value", ())) if value not in (None, "")]
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.template,)


def _parse(template: str) -> tuple[tuple[tuple[str | _Field, ...], ...], str]:
    """The parts of a template, as texts and fields, and the extension of the last."""
    parts: list[list[str | _Field]] = [[]]
    for literal, name, form, conversion in Formatter().parse(template):
        first, *following = literal.split("/")
        for text in (first, *following):
            _check_literal(text)
        parts[-1] += [first] if first else []
        parts += [[text] if text else [] for text in following]
        if name is not None:
            if conversion:
                raise ValueError(f"{{{name}!{conversion}}}: a field has a format at most, no conversion")
            parts[-1].append(_field(name, form or ""))
    if any(not part for part in parts):
        what = "it must be a path inside of the folder" if not parts[0] else "it must not end with /, nor have //"
        raise ValueError(f"{what}; its last part names the file, such as {{InstanceNumber:04}}.dcm")
    if not any(isinstance(piece, _Field) for part in parts for piece in part):
        raise ValueError("it names no attribute, such as {PatientID}, so all files would have one name")
    if len(parts) > _MAX_PARTS:
        raise ValueError(f"it has {len(parts)} parts, and at most {_MAX_PARTS} are possible")
    for part in parts:
        if all(isinstance(piece, str) for piece in part):
            text = "".join(map(str, part))
            if text.startswith(".") or text != text.strip(" ."):
                raise ValueError(f"the name {text!r} begins with a dot or a blank, or ends with one")
    last = parts[-1]
    match = _EXTENSION.search(last[-1]) if isinstance(last[-1], str) else None
    if match is None:
        return tuple(map(tuple, parts)), EXTENSION
    stem = match.string[: match.start()]
    last[-1:] = [stem] if stem else []
    return tuple(map(tuple, parts)), match[0]


def _check_literal(text: str) -> None:
    unsafe = _UNSAFE.search(text)
    if unsafe is not None or text != _clean(text, blanks=False):
        shown = f"the character {unsafe[0]!r}" if unsafe else "a character"
        raise ValueError(f"{text!r} holds {shown} that not every filesystem takes in a name (parts are separated by /)")


def _field(name: str, form: str) -> _Field:
    shown = f"{{{name}:{form}}}" if form else f"{{{name}}}"
    if not name or (name.isdigit() and len(name) != 8):
        raise ValueError(f"{shown}: a field names an attribute, such as {{PatientID}}")
    if "." in name or "[" in name:
        raise ValueError(f"{shown}: a field is one attribute of the header, not a path into it")
    try:
        (tag,) = resolve(name)
    except InvalidIdentifierError as error:
        raise ValueError(f"{shown}: {error}") from None
    vr = vr_of(tag)
    if vr not in _ASCII | _TEXT | _BINARY_NUMBERS:
        raise ValueError(f"{shown}: this attribute is neither text nor a number (its VR is {vr})")
    if "/" in form:
        raise ValueError(
            f"{shown}: a format has no /: give each part of the path a field, as in {{StudyDate:%Y}}/{{…}}"
        )
    found = _Field(tag, vr, form)
    if "%" in form:
        directives = _DIRECTIVES.get(vr, "")
        if not directives or re.search(f"%(?![{directives}])", form):
            takes = " ".join(f"%{letter}" for letter in directives) or "no such format, because it is no date or time"
            raise ValueError(f"{shown}: it takes {takes}")
        _check_literal(re.sub("%.", "", form))
    elif not (_NUMBER_FORMAT.match(form) or _TEXT_FORMAT.match(form)):
        raise ValueError(f"{shown}: the format is none of :04, :04d, :6.2f, :.20, :<20, :%Y-%m-%d and their like")
    return found


def _plain(value: Any) -> Any:
    """A value of the JSON model as text or number; of a name its first group."""
    if isinstance(value, dict):
        groups = (value.get(name) for name in ("Alphabetic", "Ideographic", "Phonetic"))
        return next((str(group).rstrip("^ ") for group in groups if group), None)
    return value


def _number(text: str) -> Decimal | None:
    return Decimal(text) if _NUMBER.match(text) else None


def _clean(text: str, *, blanks: bool = True) -> str:
    """A text without what cannot be in a name, as Unicode NFC."""
    if text.isascii():
        text = _UNSAFE.sub("_", text)
    else:
        kept = []
        for letter in _UNSAFE.sub("_", unicodedata.normalize("NFC", text)):
            category = unicodedata.category(letter)
            if category in ("Zs", "Zl", "Zp"):
                letter = " "
            elif category[0] == "C":
                # Marks of direction and the like cannot be seen; the rest is no text.
                letter = "" if category == "Cf" else "_"
            kept.append(letter)
        text = unicodedata.normalize("NFC", "".join(kept))
    return " ".join(text.split()) if blanks else text


@lru_cache(maxsize=1024)
def _name(text: str, limit: int) -> str:
    """A name that every filesystem takes, of at most so many bytes."""
    text = unicodedata.normalize("NFC", text).rstrip(" .").lstrip(" ")
    if text.startswith("."):
        # Hidden folders are not searched.
        text = "_" + text.lstrip(" .")
    if _DEVICE.match(unicodedata.normalize("NFKC", text)):
        text = "_" + text
    text = text or UNKNOWN
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= limit:
        return text
    digest = hashlib.sha256(encoded).hexdigest()[:_HASH_DIGITS]
    start = encoded[: limit - len(digest) - 1].decode("utf-8", "ignore").rstrip(" .")
    return f"{start}_{digest}"


# Names that are taken -------------------------------------------------------------------------------------------------


def folded(path: str) -> str:
    """A path as filesystems compare it that ignore case and Unicode form."""
    if path.isascii():
        return path.lower()
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", path).casefold())


class NamesInUse:
    """The paths of a folder that are taken, case and Unicode form ignored; safe to use from several threads.

    On a filesystem that tells ``a`` from ``A`` both could be written, but then the folder could not be copied to one
    that does not.

    Args:
        paths: Those of the files that are there.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        self._lock = ProcessLock()
        # Hashes take a fraction of the memory; a wrong match only leads to a longer name.
        self._taken = {hash(folded(path)) for path in paths}
        self._claimed: dict[int, Resource] = {}

    def claim(self, path: str, reference: Resource) -> bool:
        """Reserves a path for an instance until `settle`; False if it is taken or another instance is reserving it."""
        key = hash(folded(path))
        with self._lock:
            return key not in self._taken and self._claimed.setdefault(key, reference) == reference

    def settle(self, path: str, *, taken: bool) -> None:
        """Ends a reservation, or notes that a file was written or removed."""
        key = hash(folded(path))
        with self._lock:
            self._claimed.pop(key, None)
            if taken:
                self._taken.add(key)
            else:
                self._taken.discard(key)
