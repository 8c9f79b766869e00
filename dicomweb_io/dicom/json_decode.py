"""The DICOM JSON model (PS3.18 Annex F): its text read (also as a stream) and written, its values, pydicom datasets.

`dicomweb_io.dicom.json_encode` makes the model from datasets.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import orjson

from dicomweb_io.dicom.attributes import resolve
from dicomweb_io.dicom.errors import DatasetError, IncompleteJSONError
from dicomweb_io.dicom.json_encode import finite, hex_tag
from dicomweb_io.dicom.values import name_text

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


BulkDataHandler = Callable[[str, str, str], Any]

# A whole string, a brace, or the beginning of a string whose end has not arrived.
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[{}]|"', re.DOTALL)
_BRACKET = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]]|"', re.DOTALL)
_SCALAR = re.compile(rb"[\w.+-]*")
_SPACE = re.compile(rb"[ \t\r\n]*")
_SPACE_AND_COMMAS = re.compile(rb"[ \t\r\n,]*")
_BOM = b"\xef\xbb\xbf"

_LOWER_TAG = re.compile(r"(?=.*[a-f])[0-9A-Fa-f]{8}")
_NAMES = ("0020000D", "0020000E", "00080018")

_MAX_LEVELS = 200
_FEW_LEVELS = 12
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def dumps(value: Any) -> bytes:
    """Writes JSON text in UTF-8 with sorted keys, as PS3.18 section F.2.2 asks for.

    Args:
        value: DICOM JSON, or other values of JSON; pydicom's numbers and lists too. Numbers that JSON does not
            have are written as ``"NaN"``, ``"Infinity"`` and ``"-Infinity"``.

    Raises:
        TypeError: If it holds something else.
    """
    try:
        text = orjson.dumps(value, default=_plain, option=orjson.OPT_SORT_KEYS)
    except TypeError:
        # Lone surrogates and integers of more than 64 bits.
        return json.dumps(_without_non_finite(value), default=_plain, sort_keys=True, separators=(",", ":")).encode()
    if b"null" in text and _has_non_finite(value):
        return dumps(_without_non_finite(value))
    return text


def loads(text: bytes | bytearray | memoryview | str) -> Any:
    """Reads JSON text.

    A byte order mark, the words NaN and Infinity, exponents beyond what a double holds, and lone surrogates are
    accepted: servers send them.

    Raises:
        DatasetError: If it is not JSON, or nested more than 200 levels deep (66 sequences).
    """
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError:
        try:
            value = json.loads(text.lstrip("\ufeff") if isinstance(text, str) else bytes(text))
        except UnicodeDecodeError as error:
            raise DatasetError(f"the text is neither UTF-8 nor UTF-16 nor UTF-32 JSON (byte {error.start})") from None
        except ValueError as error:
            # Also an integer of more digits than Python converts.
            raise DatasetError(f"the text is not JSON: {error}") from None
        except RecursionError:
            raise DatasetError("the JSON is nested too deeply") from None
    if not _is_flat(text) and _is_deep(value):
        raise DatasetError(f"the JSON is nested too deeply (more than {_MAX_LEVELS} levels)")
    return value


def _is_flat(text: bytes | bytearray | memoryview | str) -> bool:
    """Whether JSON is nested only a few levels, by its brackets alone: fast enough for every answer."""
    if isinstance(text, str):
        return False
    brackets = bytes(text).translate(None, _NO_BRACKETS)
    for _ in range(_FEW_LEVELS):
        if not brackets:
            return True
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
    return not brackets


def _is_deep(value: Any) -> bool:
    """Whether a value is nested so deeply that writing, copying or pickling it would exhaust the stack."""
    level = [value]
    for _ in range(_MAX_LEVELS + 1):
        level = [
            item
            for holder in level
            for item in (holder.values() if isinstance(holder, dict) else holder if isinstance(holder, list) else ())
            if isinstance(item, (dict, list))
        ]
        if not level:
            return False
    return True


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return float(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "__iter__") and hasattr(value, "__len__") and not isinstance(value, (bytes, bytearray)):
        return list(value)
    raise TypeError(f"{type(value).__name__} cannot be represented in JSON")


def _has_non_finite(value: Any) -> bool:
    if isinstance(value, float):
        return not math.isfinite(value)
    if isinstance(value, Mapping):
        return any(map(_has_non_finite, value.values()))
    return isinstance(value, (list, tuple)) and any(map(_has_non_finite, value))


def _without_non_finite(value: Any) -> Any:
    if isinstance(value, float):
        return finite(float(value))
    if isinstance(value, Mapping):
        return {key: _without_non_finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_non_finite(item) for item in value]
    return value


def without_padding(row: dict[str, Any]) -> dict[str, Any]:
    """The row with tags in upper case, and with the UIDs of its study, series and instance as lists without padding.

    Servers send tags in lower case, UIDs with the blank or null character that fills them in files, and single values
    in place of lists.
    """
    text = "".join(row)
    if text != text.upper():
        row = _upper(row)
    for tag in _NAMES:
        element = row.get(tag)
        if not isinstance(element, dict):
            continue
        value = element.get("Value")
        first = value[0] if isinstance(value, list) and value else value
        if isinstance(first, str) and (value is first or first != first.strip(" \0")):
            row[tag] = {**element, "Value": [first.strip(" \0")]}
    return row


def _upper(value: Any) -> Any:
    """A dataset with its tags in upper case, in sequences too."""
    if isinstance(value, list):
        return [_upper(item) for item in value]
    if isinstance(value, dict):
        return {key.upper() if _LOWER_TAG.fullmatch(key) else key: _upper(item) for key, item in value.items()}
    return value


def values(row: Mapping[str, Any], attribute: str | int) -> list[Any]:
    """The values of an attribute of a dataset in the DICOM JSON model.

    Args:
        row: The dataset.
        attribute: A keyword, a tag (number or 8 hexadecimal digits), or a dotted path into sequences, which gives the
            values in all items.

    Returns:
        Its values as they are in the model, names as objects, without ``null``; empty if the attribute is absent or
        has none.

    Raises:
        InvalidIdentifierError: If the keyword is unknown.
    """
    return [value for value in iter_values(row, _path(attribute)) if value is not None]


def first_value(row: Mapping[str, Any], attribute: str | int, default: Any = None) -> Any:
    """The first value of an attribute (see `values`), or `default`. Names are objects; see `first_text`."""
    return next((value for value in iter_values(row, _path(attribute)) if value is not None), default)


def _path(attribute: str | int) -> tuple[str, ...]:
    return (hex_tag(attribute),) if isinstance(attribute, int) else resolve(attribute)


def iter_values(row: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[Any]:
    """The values at a path of tags, outermost first, in all items; None where a place is empty."""
    element = row.get(path[0])
    content = element.get("Value") if isinstance(element, Mapping) else None
    if not isinstance(content, (list, tuple)):
        return
    if len(path) == 1:
        yield from content
        return
    for item in content:
        if isinstance(item, Mapping):
            yield from iter_values(item, path[1:])


def first_text(row: Mapping[str, Any], attribute: str | int, default: str = "") -> str:
    """The first value of an attribute as text, names with ``=`` between their groups."""
    value = first_value(row, attribute)
    return default if value is None else name_text(value)


def is_empty(element: Mapping[str, Any] | None) -> bool:
    """Whether an element of the DICOM JSON model is absent or has no value."""
    if not element:
        return True
    if "BulkDataURI" in element or "InlineBinary" in element:
        return not (element.get("BulkDataURI") or element.get("InlineBinary"))
    return all(value is None or value == "" for value in element.get("Value") or ())


def load_json_dataset(dataset: Mapping[str, Any], bulk_data_handler: BulkDataHandler | None = None) -> Dataset:
    """Makes a pydicom dataset of one in the DICOM JSON model.

    Args:
        dataset: The dataset.
        bulk_data_handler: Called with tag, VR and BulkDataURI for each value that is given by reference; returns the
            value. Without it such elements stay empty.

    Raises:
        TypeError: If it is not a JSON object.
        DatasetError: If it is not in the DICOM JSON model.
    """
    from pydicom.dataelem import empty_value_for_VR
    from pydicom.dataset import Dataset as PydicomDataset

    if not isinstance(dataset, Mapping):
        raise TypeError(f"a dataset in the DICOM JSON model is an object, not a {type(dataset).__name__}")

    def no_data(tag: str, vr: str, uri: str) -> Any:
        return empty_value_for_VR(vr)

    try:
        loaded: Dataset = PydicomDataset.from_json(dict(dataset), bulk_data_handler or no_data)
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        # The texts of pydicom's errors can hold values.
        raise DatasetError(f"it does not follow the DICOM JSON model ({type(error).__name__})") from None
    return loaded


def iter_json_objects(
    chunks: Iterable[bytes], *, max_bytes: int | None = None, keep_others: bool = False
) -> Iterator[bytes]:
    """Yields the text of each object of a JSON array as it arrives, or the one object that the text consists of.

    So a study's metadata is never in memory as a whole. Only the outer structure is checked; errors inside an object
    show when it is parsed.

    Args:
        chunks: The text in UTF-8, cut anywhere.
        max_bytes: The maximum size of an object.
        keep_others: Whether an item of the array that is not an object is yielded too, as ``null``.

    Raises:
        IncompleteJSONError: If the array or an object is not closed.
        DatasetError: If the text is neither an array of objects nor an object, or an object is too large.
    """
    text = _Text(chunks, max_bytes)
    text.skip_bom()
    first = text.peek(_SPACE)
    if first == b"{":
        yield text.take_object()
    elif first == b"[":
        text.position += 1
        while (character := text.peek(_SPACE_AND_COMMAS)) == b"{" or (keep_others and character not in b"]"):
            if character == b"{":
                yield text.take_object()
            else:
                text.skip_other(character)
                yield b"null"
        if not character:
            raise IncompleteJSONError("the JSON text ends before its array is closed")
        if character != b"]":
            raise DatasetError("the JSON array holds something other than objects")
        text.position += 1
    elif first:
        raise DatasetError("the text is not a JSON array of objects")
    else:
        raise IncompleteJSONError("the text is empty")
    if text.peek(_SPACE):
        raise DatasetError("the JSON text continues after its end")


class _Text:
    """The text that has arrived and is not yet consumed, from `position` on."""

    def __init__(self, chunks: Iterable[bytes], max_bytes: int | None = None) -> None:
        self._source = iter(chunks)
        self._max_bytes = max_bytes
        self._buffer = bytearray()
        self.position = 0

    def _more(self) -> bool:
        chunk = next(self._source, None)
        if chunk is None:
            return False
        self._buffer += chunk
        return True

    def skip_bom(self) -> None:
        while len(self._buffer) < len(_BOM) and _BOM.startswith(self._buffer) and self._more():
            continue
        if self._buffer.startswith(_BOM):
            self.position = len(_BOM)

    def peek(self, skipped: re.Pattern[bytes]) -> bytes:
        """The next character that is not to be skipped; empty at the end."""
        while True:
            match = skipped.match(self._buffer, self.position)
            self.position = match.end() if match else self.position
            if self.position < len(self._buffer):
                return bytes(self._buffer[self.position : self.position + 1])
            self._buffer.clear()
            self.position = 0
            if not self._more():
                return b""

    def skip_other(self, character: bytes) -> None:
        """Passes over a value that begins here and is no object."""
        if character in b'["':
            self._take(_BRACKET, b"[", b"]")
        elif _SCALAR.fullmatch(character):
            self.peek(_SCALAR)
        else:
            raise DatasetError("the text is not JSON")

    def take_object(self) -> bytes:
        """The text of the object that begins here."""
        return self._take(_TOKEN, b"{", b"}")

    def _take(self, token: re.Pattern[bytes], opening: bytes, closing: bytes) -> bytes:
        depth, scan = 0, self.position
        while True:
            unfinished = None
            for match in token.finditer(self._buffer, scan):
                kind = match[0]
                if kind == opening:
                    depth += 1
                elif kind == closing:
                    depth -= 1
                elif kind == b'"':
                    unfinished = match.start()
                    break
                if not depth:
                    item = bytes(self._buffer[self.position : match.end()])
                    self.position = match.end()
                    return item
                scan = match.end()
            if unfinished is not None:
                scan = unfinished
            del self._buffer[: self.position]
            scan -= self.position
            self.position = 0
            if self._max_bytes is not None and len(self._buffer) > self._max_bytes:
                raise DatasetError(f"an item of the JSON array is larger than {self._max_bytes} bytes")
            # A long string arrives in many chunks. Looking for its end after each would take quadratic time.
            wanted = scan + 2 * (len(self._buffer) - scan) if unfinished is not None else 0
            if not self._more():
                raise IncompleteJSONError("the JSON text ends inside an object")
            while len(self._buffer) < wanted and self._more():
                continue
