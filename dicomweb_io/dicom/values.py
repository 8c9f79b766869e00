"""Values of DICOM as text: dates and times, person names, character sets, words of bytes, and wildcards.

- *Dates and times* (VRs DA, TM and DT, PS3.5 section 6.2) and ranges of them (PS3.4 section C.2.2.2.5). A value with
  missing parts stands for all instants that it leaves open: the time ``1030`` for 10:30:00 to 10:30:59.999999, the
  date-time ``2024`` for that year. Instants are integers: microseconds of the day for TM, microseconds since the year 1
  for DT.
- *Person names* (VR PN, PS3.5 section 6.2.1): up to three groups of up to five components.
- *Character sets* (PS3.5 section 6.1, PS3.3 section C.12.1.1.2), as datasets name them.
- *Wildcards* (PS3.4 section C.2.2.2.4).
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections.abc import Callable, Mapping
from datetime import date
from decimal import Decimal, InvalidOperation
from functools import cache, lru_cache
from typing import Any, NamedTuple

from dicomweb_io.dicom.errors import FilterError

_DATE = re.compile(r"([0-9]{4})([0-9]{2})([0-9]{2})\Z|([0-9]{4})\.([0-9]{2})\.([0-9]{2})\Z")
_TIME = re.compile(r"([0-9]{2})(?::?([0-9]{2})(?::?([0-9]{2})(?:\.([0-9]{1,6}))?)?)?\Z")
_DATE_TIME = re.compile(
    r"([0-9]{4})(?:([0-9]{2})(?:([0-9]{2})(?:([0-9]{2})(?:([0-9]{2})(?:([0-9]{2})(?:\.([0-9]{1,6}))?)?)?)?)?)?"
    r"([+-][0-9]{4})?\Z"
)
_SECOND = 1_000_000
_MINUTE = 60 * _SECOND
_HOUR = 60 * _MINUTE
_DAY = 24 * _HOUR
_OFFSET = re.compile(r"([+-])([0-9]{2})([0-9]{2})\Z")

GROUPS = ("Alphabetic", "Ideographic", "Phonetic")

_WORDS = re.compile(r"[\s^=,]+")
_VOICE_MARKS = "\u3099\u309a"  # they make other letters of kana, not accented ones

_ESCAPE = b"\x1b"
_ASCII = b"\x1b(B"
_HIGH = (b"\x1b$)", b"\x1b-", b"\x1b)")  # the sets of bytes from 0x80 on
_FRAGMENTS = re.compile(rb"^[^\x1b]+|\x1b[^\x1b]*")
_DEFAULT = "latin-1"  # the default repertoire is ASCII; Latin-1 reads what wrongly goes beyond it without loss
_RESET = frozenset(b"\r\n\t\f\\")  # PS3.5 section 6.1.2.5.3: these end what an escape sequence began
_NAME_RESET = _RESET | frozenset(b"^=")
_READ_ESCAPES = frozenset(("iso2022_jp", "iso2022_jp_2"))  # Python codecs that know the sequences themselves
_SPELLING = re.compile(r"ISO[ _-]?(2022[ _-])?IR[ _-]?([0-9]+)\Z", re.IGNORECASE)

_WORD_CODES = {"OW": "H", "OL": "I", "OF": "I", "OD": "Q", "OV": "Q"}


class Interval(NamedTuple):
    """The instants that a value stands for.

    Attributes:
        first: The earliest.
        last: The latest.
        offset: Minutes east of UTC that a DT names; None if it names none. `first` and `last` do not count it.
    """

    first: int
    last: int
    offset: int | None = None


class Range(NamedTuple):
    """A range of values; None for an open end. A single value is a range from itself to itself."""

    low: Interval | None
    high: Interval | None


@lru_cache(maxsize=65536)
def parse_date(text: str) -> str | None:
    """A date as ``YYYYMMDD``; None if it is not a date. The form ``YYYY.MM.DD`` of older data is accepted."""
    match = _DATE.match(text.strip(" \0"))
    if match is None:
        return None
    year, month, day = match.group(1, 2, 3) if match[1] else match.group(4, 5, 6)
    try:
        date(int(year), int(month), int(day))
    except ValueError:
        return None
    return f"{year}{month}{day}"


@lru_cache(maxsize=65536)
def parse_time(text: str) -> Interval | None:
    """The part of a day that a time stands for; None if it is not a time. ``HH:MM:SS`` of older data is accepted."""
    match = _TIME.match(text.strip(" \0"))
    if match is None:
        return None
    return _time_of_day(match[1], match[2], match[3], match[4])


def _time_of_day(hour: str, minute: str | None, second: str | None, fraction: str | None) -> Interval | None:
    if int(hour) > 23 or int(minute or 0) > 59 or int(second or 0) > 60:  # 60 is a leap second
        return None
    first = int(hour) * _HOUR
    length = _HOUR
    if minute is not None:
        first += int(minute) * _MINUTE
        length = _MINUTE
        if second is not None:
            first += int(second) * _SECOND
            length = _SECOND
            if fraction is not None:
                length = 10 ** (6 - len(fraction))
                first += int(fraction) * length
    return Interval(first, first + length - 1)


@lru_cache(maxsize=65536)
def parse_date_time(text: str) -> Interval | None:
    """The time that a date-time stands for; None if it is not a date-time."""
    match = _DATE_TIME.match(text.strip(" \0"))
    if match is None:
        return None
    year, month, day = int(match[1]), int(match[2] or 1), int(match[3] or 1)
    try:
        first = date(year, month, day).toordinal()
    except ValueError:
        return None
    last = first
    if match[2] is None:
        last = date(year, 12, 31).toordinal()
    elif match[3] is None:
        last = (date(year, month + 1, 1) if month < 12 else date(year, 12, 31)).toordinal() - (month < 12)
    time = Interval(0, _DAY - 1)
    if match[4] is not None:
        parsed = _time_of_day(match[4], match[5], match[6], match[7])
        if parsed is None:
            return None
        time = parsed
    offset = None
    if match[8] is not None:
        offset = parse_offset(match[8])
        if offset is None:
            return None
    return Interval(first * _DAY + time.first, last * _DAY + time.last, offset)


@lru_cache(maxsize=65536)
def iso_date(text: str) -> str | None:
    """A date as ISO 8601 writes it: ``2024-02-29``; None if it is not a date."""
    plain = parse_date(text)
    return None if plain is None else f"{plain[:4]}-{plain[4:6]}-{plain[6:]}"


@lru_cache(maxsize=65536)
def iso_time(text: str) -> str | None:
    """A time as ISO 8601 writes it, as precise as it is: ``13:45:10.250000``, ``13:45``; None if it is not a time."""
    match = _TIME.match(text.strip(" \0"))
    return None if match is None or parse_time(text) is None else _clock(*match.groups())


@lru_cache(maxsize=65536)
def iso_date_time(text: str) -> str | None:
    """A date-time as ISO 8601 writes it, as precise as it is; None if it is not a date-time.

    Examples: ``2024-02-29T13:45:10.250000+01:00``, ``2024-02``.
    """
    match = _DATE_TIME.match(text.strip(" \0"))
    if match is None or parse_date_time(text) is None:
        return None
    *day, hour, minute, second, fraction, offset = match.groups()
    clock = "" if hour is None else "T" + _clock(hour, minute, second, fraction)
    return "-".join(part for part in day if part) + clock + (f"{offset[:3]}:{offset[3:]}" if offset else "")


def _clock(hour: str, minute: str | None, second: str | None, fraction: str | None) -> str:
    text = ":".join(part for part in (hour, minute, second) if part)
    return f"{text}.{fraction:0<6}" if fraction and int(fraction) else text


def day_of(instant: int) -> str:
    """The date, as ``YYYYMMDD``, of an instant of a DT."""
    return date.fromordinal(instant // _DAY).strftime("%Y%m%d").zfill(8)


def parse_offset(text: str) -> int | None:
    """The minutes of an offset from UTC such as ``+0130``; None if it is not one (-1200 to +1400)."""
    match = _OFFSET.match(text.strip(" \0"))
    if match is None or int(match[3]) > 59:
        return None
    minutes = int(match[2]) * 60 + int(match[3])
    minutes = -minutes if match[1] == "-" else minutes
    return minutes if -720 <= minutes <= 840 else None


def parse_date_range(text: str) -> tuple[str, str] | None:
    """The first and the last date of a range or single date as ``YYYYMMDD``; None if it is neither.

    An open end is ``"00000000"`` or ``"99999999"``.
    """
    low, separator, high = text.strip(" ").partition("-")
    if not separator:
        single = parse_date(low)
        return None if single is None else (single, single)
    if not low and not high:
        return None
    first = parse_date(low) if low else "00000000"
    last = parse_date(high) if high else "99999999"
    if first is None or last is None or first > last:
        return None
    return first, last


def parse_time_range(text: str) -> Range | None:
    """A range of times or a single time; None if it is neither, or if it crosses midnight."""
    low, separator, high = text.strip(" ").partition("-")
    if not separator:
        single = parse_time(low)
        return None if single is None else Range(single, single)
    return _checked_range(low, high, parse_time(low), parse_time(high))


def parse_date_time_range(text: str) -> Range | None:
    """A range of date-times or a single one; None if it is neither.

    A hyphen is ambiguous here: ``20240101120000-0500`` could be a range up to the year 500. What can be a date-time
    with an offset from UTC is one; otherwise the hyphen that leaves a date-time on both sides divides.
    """
    text = text.strip(" ")
    single = parse_date_time(text)
    if single is not None:
        return Range(single, single)
    for position in range(len(text) - 1, -1, -1):
        if text[position] == "-":
            low, high = text[:position], text[position + 1 :]
            found = _checked_range(low, high, parse_date_time(low), parse_date_time(high))
            if found is not None:
                return found
    return None


def _checked_range(low: str, high: str, first: Interval | None, last: Interval | None) -> Range | None:
    if (not low and not high) or (low and first is None) or (high and last is None):
        return None
    if first is not None and last is not None and _utc(first.first, first.offset) > _utc(last.last, last.offset):
        return None
    return Range(first, last)


def contains(wanted: Range, value: Interval, default_offset: int | None = None) -> bool:
    """Whether the earliest instant of a value lies in a range.

    Where only the value or only an end of the range names an offset from UTC, the other is at
    `default_offset`.

    Args:
        wanted: The range.
        value: The value.
        default_offset: Minutes east of UTC of values without an offset: the dataset's Timezone Offset From UTC
            (0008,0201); None for UTC.
    """
    low, high = wanted
    if low is not None and not _before(low.first, low.offset, value.first, value.offset, default_offset):
        return False
    return high is None or _before(value.first, value.offset, high.last, high.offset, default_offset)


def _before(first: int, first_offset: int | None, second: int, second_offset: int | None, default: int | None) -> bool:
    if first_offset != second_offset:
        first = _utc(first, default if first_offset is None else first_offset)
        second = _utc(second, default if second_offset is None else second_offset)
    return first <= second


def _utc(instant: int, offset: int | None) -> int:
    return instant - (offset or 0) * _MINUTE


def name_object(text: str) -> dict[str, str] | None:
    """The DICOM JSON object of a person name (PS3.18 section F.2.2).

    Args:
        text: The name with its groups separated by ``=``.

    Returns:
        The groups that are not empty; None if all are.
    """
    if "=" not in text:
        return {"Alphabetic": text} if text else None
    groups = {group: part.rstrip(" ") for group, part in zip(GROUPS, text.split("="), strict=False)}
    return {group: part for group, part in groups.items() if part} or None


def name_text(value: object) -> str:
    """The text of a person name: its groups separated by ``=``, without trailing separators.

    Args:
        value: A DICOM JSON object of a name; a plain string, as some servers send it, is returned unchanged; None gives
            an empty text.
    """
    if isinstance(value, Mapping):
        return "=".join(str(value.get(group) or "") for group in GROUPS).rstrip("=")
    return "" if value is None else str(value)


def readable_name(value: object) -> str:
    """A person name in reading order, its ideographic and phonetic groups in brackets.

    ``Doe^Jane^^Dr^MD`` becomes ``Dr Jane Doe, MD``; ``Yamada^Tarou=山田^太郎`` becomes ``Tarou Yamada (山田 太郎)``.

    Args:
        value: See `name_text`.
    """
    groups = name_text(value).split("=")
    family, given, middle, prefix, suffix = (part.strip() for part in f"{groups[0]}^^^^".split("^")[:5])
    name = " ".join(part for part in (prefix, given, middle, family) if part) + (f", {suffix}" if suffix else "")
    # Where names are written so, the family name is read first.
    others = [" ".join(group.replace("^", " ").split()) for group in groups[1:3]]
    written = ", ".join(dict.fromkeys(other for other in others if other))
    return f"{name} ({written})" if name and written else name or written


@lru_cache(maxsize=65536)
def canonical_group(group: str) -> str:
    """One group as groups are compared: case folded, without spaces at the ends and trailing ``^``."""
    return fold_case(group).rstrip("^ ").lstrip(" ")


def fold_case(text: str) -> str:
    """Text without case differences; composed and decomposed letters become the same."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


@lru_cache(maxsize=65536)
def fold_accents(text: str) -> str:
    """Text without case differences and without accents."""
    decomposed = unicodedata.normalize("NFKD", text.casefold())
    plain = "".join(
        character for character in decomposed if character in _VOICE_MARKS or not unicodedata.combining(character)
    )
    return unicodedata.normalize("NFKC", plain)


def name_predicate(pattern: str) -> Callable[[Any], bool]:
    """Makes a test of names against one name, without regard to case.

    ``*`` and ``?`` are wildcards; ``^`` at the end has no meaning. A pattern without ``=`` is compared with each group
    of a name, one with ``=`` group by group, where an empty group of the pattern matches any.

    Args:
        pattern: The name, of which at least one group is not empty.
    """
    wanted = [canonical_group(part) for part in pattern.split("=")]
    tests = [name_group_test(part) for part in wanted]
    if len(tests) == 1:
        test = tests[0]
        return lambda value: any(test(canonical_group(part)) for part in name_text(value).split("=") if part)

    def matches(value: Any) -> bool:
        parts = name_text(value).split("=")
        parts += [""] * (len(tests) - len(parts))
        compared = zip(wanted, tests, parts, strict=False)
        return all(not text or test(canonical_group(part)) for text, test, part in compared)

    return matches


def name_group_test(group: str) -> Callable[[str], bool]:
    """Makes a test of groups of names against one group, in which ``*`` and ``?`` are wildcards."""
    if "*" not in group and "?" not in group:
        return group.__eq__
    matcher = wildcard_test(group)
    carets = group.count("^")

    def matches(value: str) -> bool:
        # "Doe" is "Doe^^^^": a pattern that goes on after a caret must see the carets that the value leaves out.
        missing = carets - value.count("^")
        return matcher(value) or any(matcher(value + "^" * more) for more in range(1, missing + 1))

    return matches


def fuzzy_name_predicate(pattern: str) -> Callable[[Any], bool]:
    """Makes a fuzzy test of names: each word of the pattern begins a word of the name, without regard to case, accents
    and order.

    Args:
        pattern: Words separated by spaces, ``^``, ``=`` or commas; ``*`` and ``?`` are wildcards.

    Raises:
        FilterError: If it holds no word.
    """
    words = [word for word in _WORDS.split(fold_accents(pattern)) if word.strip("*")]
    if not words:
        raise FilterError("it holds no name")
    tests = [wildcard_test(word + "*") if "*" in word or "?" in word else _prefix_predicate(word) for word in words]

    def matches(value: Any) -> bool:
        found = name_words(name_text(value))
        return bool(found) and all(any(test(word) for word in found) for test in tests)

    return matches


def _prefix_predicate(prefix: str) -> Callable[[str], bool]:
    return lambda word: word.startswith(prefix)


@lru_cache(maxsize=65536)
def name_words(name: str) -> tuple[str, ...]:
    """The words of a name's components in the form in which fuzzy matching compares them."""
    return tuple(word for word in _WORDS.split(fold_accents(name)) if word)


class CharacterSet:
    """The character sets of a dataset by its Specific Character Set (0008,0005).

    Args:
        names: The values of the attribute; none at all means the default repertoire.

    Attributes:
        names: The values.
        codecs: The Python codecs, the first one being what a value starts in.
        unknown: Those of the values that are no character set; Latin-1 stands in for them.
    """

    __slots__ = ("codecs", "names", "unknown")

    def __init__(self, names: tuple[str, ...] = ()) -> None:
        self.names = names
        self.codecs = _codecs_of(names)
        self.unknown = tuple(name for name in names if name and _codec(name) is None)

    def decode(self, value: bytes, *, person_name: bool = False) -> str:
        """Decodes a value. Invalid bytes become U+FFFD, so that a reader sees that something is missing.

        Args:
            value: One value or several with their backslashes.
            person_name: Whether it is of VR PN, where ``^`` and ``=`` also end an escape.
        """
        if _ESCAPE not in value:
            return value.decode(self.codecs[0], "replace")
        return self._decode(value, person_name, self.codecs[0], "replace")

    def reads(self, value: bytes, *, person_name: bool = False) -> bool:
        """Whether all bytes of a value belong to the character sets, so that `decode` loses and guesses nothing."""
        first = "ascii" if self.codecs[0] == _DEFAULT else self.codecs[0]
        try:
            self._decode(value, person_name, first, "strict")
        except UnicodeDecodeError:
            return False
        return True

    def _decode(self, value: bytes, person_name: bool, first: str, errors: str) -> str:
        reset = _NAME_RESET if person_name else _RESET
        pieces = []
        high = None
        for fragment in _FRAGMENTS.findall(value):
            text, high = _fragment(fragment, reset, first, errors, high)
            pieces.append(text)
        return "".join(pieces)


@cache
def _escapes() -> dict[bytes, str]:
    """The codecs by escape sequence (PS3.3 section C.12.1.1.2); old writers use ESC $ @, the JIS X 0208 of 1978."""
    from pydicom import charset

    return charset.CODES_TO_ENCODINGS | {b"\x1b$)A": "gb2312", b"\x1b-b": "iso8859_15", b"\x1b$@": "iso2022_jp"}


@cache
def _terms() -> dict[str, str]:
    """The codecs by defined term."""
    from pydicom import charset

    return charset.python_encoding | {
        **dict.fromkeys(("ISO 2022 IR 58", "ISO 2022 58", "ISO_IR 58"), "gb2312"),
        **dict.fromkeys(("ISO_IR 203", "ISO 2022 IR 203"), "iso8859_15"),
        **dict.fromkeys(("ISO_IR 87", "ISO_IR 159"), "iso2022_jp_2"),
        "ISO_IR 149": "euc_kr",
    }


def _fragment(
    fragment: bytes, reset: frozenset[int], first: str, errors: str, high: str | None
) -> tuple[str, str | None]:
    """The text of bytes up to the next escape sequence, and the codec of high bytes behind it (G1), if one is named."""
    if not fragment.startswith(_ESCAPE):
        return fragment.decode(first, errors), None
    length = 4 if fragment.startswith((b"\x1b$(", b"\x1b$)")) else 3
    codec = _escapes().get(fragment[:length])
    if codec is None:
        if errors == "strict":
            raise UnicodeDecodeError(first, fragment, 0, length, "unknown escape sequence")
        return fragment.decode(first, errors), None
    if codec in _READ_ESCAPES:
        return fragment.decode(codec, errors), high
    if fragment.startswith(_HIGH):
        high = codec
    elif fragment.startswith(_ASCII):
        # It says nothing of high bytes.
        codec = high or first
    text = fragment[length:]
    end = next((index for index, byte in enumerate(text) if byte in reset), len(text))
    decoded = text[:end].decode(codec, errors) + text[end:].decode(first, errors)
    return decoded, high if end == len(text) else None


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
    from pydicom import charset

    alone = charset.STAND_ALONE_ENCODINGS
    if names[0] in alone:
        # PS3.5 section 6.1.2.5.4 d: these allow no code extension; what follows is ignored.
        names = names[:1]
    known = [names[0], *(name for name in names[1:] if name not in alone)]
    return tuple(_codec(name) or _DEFAULT for name in known)


def _codec(name: str) -> str | None:
    """The Python codec of a defined term, however it is spelt; None if there is none."""
    codec = _terms().get(name) or _terms().get(name.upper())
    match = _SPELLING.match(name)
    if codec is None and match:
        codec = _terms().get(f"ISO 2022 IR {match[2]}" if match[1] else f"ISO_IR {match[2]}")
    elif codec is None:
        # Some writers put the name of a codec here.
        codec = name
    if codec is None or codec == "iso8859":
        return _DEFAULT if codec else None
    try:
        # Not every codec of Python decodes bytes to text and marks damage.
        b"A".decode(codec, "replace")
    except (LookupError, ValueError):
        return None
    return codec


def swap_words(value: bytes, vr: str) -> bytes:
    """The value with the bytes of each of its words reversed; as it is for VRs without words and odd lengths."""
    code = _WORD_CODES.get(vr)
    if code is None:
        return value
    words = array(code)
    if len(value) % words.itemsize:
        return value
    words.frombytes(value)
    words.byteswap()
    return words.tobytes()


def parse_decimal(text: str) -> Decimal | None:
    """A number of VR DS or IS; None if it is not a number, not finite, or has an exponent beyond 400."""
    if "_" in text:
        return None
    try:
        number = Decimal(text)
    except InvalidOperation:
        return None
    return number if number.is_finite() and abs(number.adjusted()) <= 400 else None


@lru_cache(maxsize=1024)
def wildcard_test(pattern: str) -> Callable[[str], bool]:
    """Makes a test of whole texts against a pattern.

    The test takes time in proportion to the text, whatever the pattern.

    Args:
        pattern: ``*`` stands for any run of characters, also none, ``?`` for any one character.
    """
    pieces = [_Piece(piece) for piece in re.split(r"\*+", pattern)]
    if len(pieces) == 1:
        return pieces[0].is_whole
    head, *middle, tail = pieces
    shortest = sum(piece.length for piece in pieces)

    def matches(text: str) -> bool:
        if len(text) < shortest or not head.is_at(text, 0):
            return False
        end = len(text) - tail.length
        if not tail.is_at(text, end):
            return False
        # The leftmost place leaves the most room for what follows, so no other one needs to be tried.
        position = head.length
        for piece in middle:
            found = piece.find(text, position, end)
            if found < 0:
                return False
            position = found + piece.length
        return True

    return matches


class _Piece:
    """The text between two ``*`` of a pattern."""

    __slots__ = ("_expression", "_text", "length")

    def __init__(self, text: str) -> None:
        self._text = text
        self.length = len(text)
        self._expression: re.Pattern[str] | None = None
        if "?" in text:
            self._expression = re.compile(
                "".join("." if letter == "?" else re.escape(letter) for letter in text), re.DOTALL
            )

    def is_whole(self, text: str) -> bool:
        return len(text) == self.length and self.is_at(text, 0)

    def is_at(self, text: str, position: int) -> bool:
        if self._expression is None:
            return text.startswith(self._text, position)
        return self._expression.match(text, position) is not None

    def find(self, text: str, start: int, end: int) -> int:
        if self._expression is None:
            return text.find(self._text, start, end)
        found = self._expression.search(text, start, end)
        return -1 if found is None else found.start()
