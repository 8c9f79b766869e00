"""Text of DICOM values in whatever character sets they are encoded (PS3.5 section 6.1, PS3.3 section C.12.1.1.2)."""

from __future__ import annotations

import re
from functools import lru_cache

from pydicom.charset import CODES_TO_ENCODINGS, STAND_ALONE_ENCODINGS, handled_encodings, python_encoding

_ESCAPE = b"\x1b"
_FRAGMENTS = re.compile(rb"^[^\x1b]+|\x1b[^\x1b]*")
_DEFAULT = "latin-1"  # the default repertoire is ASCII; Latin-1 reads what wrongly goes beyond it without loss
_RESET = frozenset(b"\r\n\t\f\\")  # PS3.5 section 6.1.2.5.3: these end what an escape sequence began
_RESET_NAMES = _RESET | frozenset(b"^=")
_SPELLING = re.compile(r"ISO[ _-]?(2022[ _-])?IR[ _-]?([0-9]+)\Z", re.IGNORECASE)


class CharacterSet:
    """The character sets of a dataset, as its Specific Character Set (0008,0005) names them.

    Args:
        names: The values of the attribute; none at all means the default repertoire.

    Attributes:
        names: The values.
        codecs: The Python codecs, the first one being what a value starts in.
    """

    __slots__ = ("codecs", "names")

    def __init__(self, names: tuple[str, ...] = ()) -> None:
        self.names = names
        self.codecs = _codecs_of(names)

    def decode(self, value: bytes, *, person_name: bool = False) -> str:
        """Decodes a value. Bytes that are invalid become U+FFFD, so that a reader sees that something is missing.

        Args:
            value: One value or several with their backslashes.
            person_name: Whether it is of VR PN, where ``^`` and ``=`` also end an escape.
        """
        if _ESCAPE not in value:
            return value.decode(self.codecs[0], "replace")
        reset = _RESET_NAMES if person_name else _RESET
        return "".join(self._fragment(fragment, reset) for fragment in _FRAGMENTS.findall(value))

    def _fragment(self, fragment: bytes, reset: frozenset[int]) -> str:
        first = self.codecs[0]
        if not fragment.startswith(_ESCAPE):
            return fragment.decode(first, "replace")
        length = 4 if fragment.startswith((b"\x1b$(", b"\x1b$)")) else 3
        codec = CODES_TO_ENCODINGS.get(fragment[:length])
        if codec is None:
            return fragment.decode(first, "replace")
        if codec in handled_encodings:
            # These Python codecs know the escape sequences themselves.
            return fragment.decode(codec, "replace")
        text = fragment[length:]
        end = next((index for index, byte in enumerate(text) if byte in reset), len(text))
        return text[:end].decode(codec, "replace") + text[end:].decode(first, "replace")


@lru_cache(maxsize=512)
def character_set(names: tuple[str, ...]) -> CharacterSet:
    """The `CharacterSet` of values of (0008,0005), from a cache."""
    return CharacterSet(names)


@lru_cache(maxsize=512)
def character_set_of(value: bytes) -> CharacterSet:
    """The `CharacterSet` of the encoded value of (0008,0005)."""
    text = value.decode("latin-1").rstrip(" \0")
    return character_set(tuple(name.strip(" \0") for name in text.split("\\")) if text else ())


def _codecs_of(names: tuple[str, ...]) -> tuple[str, ...]:
    if not any(names):
        return (_DEFAULT,)
    if names[0] in STAND_ALONE_ENCODINGS:
        # PS3.5 section 6.1.2.5.4 d: no code extension with these; what follows is ignored.
        names = names[:1]
    known = [names[0], *(name for name in names[1:] if name not in STAND_ALONE_ENCODINGS)]
    return tuple(_codec(name) for name in known)


def _codec(name: str) -> str:
    codec = python_encoding.get(name)
    if codec is None:
        match = _SPELLING.match(name)
        if match:
            codec = python_encoding.get(f"ISO 2022 IR {match[2]}" if match[1] else f"ISO_IR {match[2]}")
        else:
            # Some writers put the name of a codec here.
            codec = name or None
    if codec is None or codec == "iso8859":
        return _DEFAULT
    try:
        # Only what decodes texts, and damage with marks: no codec of bytes, and none that knows no such marks.
        b"A".decode(codec, "replace")
    except (LookupError, ValueError):
        return _DEFAULT
    return codec
