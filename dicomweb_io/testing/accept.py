"""Accept headers as a server reads them (RFC 9110 section 12.5.1, PS3.18 section 8.7.5)."""

from __future__ import annotations

from dataclasses import dataclass

from dicomweb_io.dicom.media_types import ContentType, parse_content_type
from dicomweb_io.testing.exchange import Exchange, Refusal
from dicomweb_io.testing.manners_model import Manners


@dataclass(frozen=True)
class MediaRange:
    """One acceptable media range.

    Attributes:
        media_type: What the content may be: for ``multipart/related`` its ``type`` parameter; ``*/*`` for anything.
        transfer_syntax: The wanted transfer syntax, ``"*"``, or None.
        multipart: True if parts were asked for, False for a single body, None if either will do.
        quality: The weight, 0 to 1.
        explicit: Whether it was asked for in so many words, not by a header that is absent.
    """

    media_type: str
    transfer_syntax: str | None = None
    multipart: bool | None = None
    quality: float = 1.0
    explicit: bool = True

    def covers(self, media_type: str) -> bool:
        """Whether a media type lies in the range."""
        if self.media_type in ("*/*", media_type):
            return True
        return self.media_type.endswith("/*") and media_type.startswith(self.media_type[:-1])


def media_ranges(manners: Manners, exchange: Exchange) -> list[MediaRange]:
    """What a request accepts, as this server reads it.

    Raises:
        Refusal: If the server cannot make sense of it.
    """
    header = exchange.headers.get("accept")
    if manners.accepts_alternatives:
        return parse_accept(header, exchange.parameter("accept"))
    ranges = parse_as_one(header)
    if ranges is None:
        raise Refusal(manners.unacceptable, "A list of media types is not understood.")
    return ranges


def parse_accept(header: str | None, parameter: str | None = None) -> list[MediaRange]:
    """Reads an Accept header, or the query parameter ``accept`` that overrides it (PS3.18 section 8.3.3.1).

    Args:
        header: The header's value; None or empty accepts anything.
        parameter: The value of the query parameter, if it was given.

    Returns:
        The media ranges, best first; those with weight 0 are left out.
    """
    text = parameter or header or ""
    ranges = [_range(parse_content_type(piece)) for piece in split_list(text)]
    if not ranges:
        return [MediaRange("*/*", explicit=False)]
    return sorted((one for one in ranges if one.quality > 0), key=lambda one: -one.quality)


def parse_as_one(header: str | None) -> list[MediaRange] | None:
    """Reads an Accept header as a server does that knows nothing of lists: all of it is one media range.

    Parameters are what stands between semicolons, of repeated ones the last counts, and a comma ends a ``type`` but is
    part of a transfer syntax.

    Returns:
        One range; None if such a server cannot make sense of it.
    """
    first, *rest = (header or "*/*").split(";")
    name = first.strip().lower()
    parameters = {}
    for piece in rest:
        key, _, value = piece.partition("=")
        parameters[key.strip().lower()] = value.strip()
    inner = parameters.get("type", "*/*").partition(",")[0].strip(' "').lower()
    syntax = parameters["transfer-syntax"].strip('"') if "transfer-syntax" in parameters else None
    if "," in name or (syntax is not None and "," in syntax):
        return None
    if name == "multipart/related":
        return [MediaRange(inner, syntax, True)]
    return [MediaRange(name, syntax, None if name == "*/*" else False)]


def split_list(text: str) -> list[str]:
    """Splits a header's list at commas that are not inside quotes."""
    pieces, start, quoted, position = [], 0, False, 0
    while position < len(text):
        character = text[position]
        if quoted and character == "\\":
            position += 1
        elif character == '"':
            quoted = not quoted
        elif character == "," and not quoted:
            pieces.append(text[start:position])
            start = position + 1
        position += 1
    return [piece.strip() for piece in [*pieces, text[start:]] if piece.strip()]


def _range(content_type: ContentType) -> MediaRange:
    try:
        quality = min(1.0, max(0.0, float(content_type.parameters.get("q", "1"))))
    except ValueError:
        quality = 1.0
    name = content_type.media_type
    inner = content_type.root
    syntax = inner.parameters.get("transfer-syntax")
    if name.startswith("multipart/"):
        return MediaRange(inner.media_type or "*/*", syntax, True, quality)
    return MediaRange(name or "*/*", syntax, None if name in ("*/*", "") else False, quality)
