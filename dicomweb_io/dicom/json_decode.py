"""The DICOM JSON model (PS3.18 Annex F): its text read (also as a stream) and written, its values, pydicom datasets.

`dicomweb_io.dicom.json_encode` makes the model from datasets.
"""

from __future__ import annotations

import base64
import json
import logging
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, wraps
from typing import TYPE_CHECKING, Any

import orjson

from dicomweb_io.dicom.attributes import resolve
from dicomweb_io.dicom.errors import DatasetError, IncompleteJSONError
from dicomweb_io.dicom.json_encode import finite, hex_tag, standard_vr
from dicomweb_io.dicom.values import name_text

if TYPE_CHECKING:
    from pydicom.dataelem import DataElement
    from pydicom.dataset import Dataset

logger = logging.getLogger("dicomweb_io")

BulkDataHandler = Callable[[str, str, str], Any]

# A whole string, a brace, or the beginning of a string whose end has not arrived.
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[{}]|"', re.DOTALL)
_BRACKET = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]]|"', re.DOTALL)
_SCALAR = re.compile(rb"[\w.+-]*")
_SPACE = re.compile(rb"[ \t\r\n]*")
_SPACE_AND_COMMAS = re.compile(rb"[ \t\r\n,]*")
_BOM = b"\xef\xbb\xbf"

_TAG = re.compile("[0-9A-Fa-f]{8}")
_SURROGATE = re.compile("[\ud800-\udfff]")
_LOWER_TAG = re.compile(r"(?=.*[a-f])[0-9A-Fa-f]{8}")
_NAMES = ("0020000D", "0020000E", "00080018")

_TEXT_VRS = frozenset(
    ["AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT"]
)
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


def encodable(value: Any) -> Any:
    """A value in which U+FFFD stands for lone surrogates, which `loads` accepts, but UTF-8 does not have.

    Values of JSON, tuples and dates are looked through. What has no lone surrogates stays the same object, nearly
    always at the cost of writing it as JSON.
    """
    try:
        orjson.dumps(value)
    except TypeError:
        return _with_replacements(value)
    return value


def _with_replacements(value: Any) -> Any:
    if isinstance(value, str):
        text = _SURROGATE.sub("\ufffd", value)
        if text != value:
            _tell_of_surrogates()
            return text
    elif isinstance(value, dict):
        items = {_with_replacements(key): _with_replacements(item) for key, item in value.items()}
        return value if items == value else items
    elif type(value) in (list, tuple):
        parts = type(value)(map(_with_replacements, value))
        return value if parts == value else parts
    return value


@cache
def _tell_of_surrogates() -> None:
    logger.warning("texts of an archive hold lone surrogates, which are no characters: U+FFFD stands for them")


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


def is_dataset(value: object) -> bool:
    """Whether a JSON value is a dataset, as far as its keys tell: an empty object, or one that has a tag."""
    return isinstance(value, dict) and (not value or any(map(_TAG.fullmatch, value)))


def without_padding(row: dict[str, Any]) -> dict[str, Any]:
    """The row with tags in upper case, and with UIDs as lists without padding.

    Servers send tags in lower case, UIDs with the blank or null character that fills them in files, and single values
    in place of lists.
    """
    text = "".join(row)
    if text != text.upper():
        row = _upper(row)
    try:
        # Fast: there may be millions of rows.
        named = [tag for tag, element in row.items() if element.get("vr") == "UI" or tag in _NAMES]
    except AttributeError:
        named = [tag for tag, element in row.items() if isinstance(element, dict)]
        named = [tag for tag in named if row[tag].get("vr") == "UI" or tag in _NAMES]
    for tag in named:
        given = row[tag].get("Value")
        uids = given if isinstance(given, list) else [given] if isinstance(given, str) else []
        bare = [uid.strip(" \0") if isinstance(uid, str) else uid for uid in uids]
        if bare and bare != given:
            row[tag] = {**row[tag], "Value": bare}
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

    A value that its value representation does not allow costs nothing but itself: it is kept as text where the value
    representation is one of texts (a DS of ``abc``), else its element is left out. A warning in the log names the
    instance and the tag. An element without a value representation has that of the dictionary.

    Args:
        dataset: The dataset.
        bulk_data_handler: Called with tag, VR and BulkDataURI for each value that is given by reference; returns the
            value. Without it such elements stay empty. What it raises is raised.

    Raises:
        TypeError: If it is not a JSON object.
    """
    from pydicom import dataelem

    if not isinstance(dataset, Mapping):
        raise TypeError(f"a dataset in the DICOM JSON model is an object, not a {type(dataset).__name__}")

    def no_data(tag: str, vr: str, uri: str) -> Any:
        return dataelem.empty_value_for_VR(vr)

    uids = (first_text(dataset, tag) for tag in ("00080018", "0020000E", "0020000D"))
    return _Loader(bulk_data_handler or no_data, next(filter(None, uids), "a dataset")).dataset(dataset, "")


class _Loader:
    """Makes pydicom datasets, element by element.

    Args:
        handler: Gives bulk data.
        name: The instance, for warnings.
    """

    def __init__(self, handler: BulkDataHandler, name: str) -> None:
        self._wanted = handler
        self._name = name
        self._raised: Exception | None = None

        @wraps(handler)  # pydicom counts its arguments
        def noting(*arguments: Any) -> Any:
            try:
                return self._wanted(*arguments)
            except Exception as error:
                self._raised = error
                raise

        self._handler = noting

    def dataset(self, dataset: Mapping[str, Any], path: str) -> Dataset:
        """The dataset of an instance, or of an item at a path."""
        from pydicom import Dataset as PydicomDataset

        loaded = PydicomDataset()
        for tag, element in dataset.items():
            try:
                loaded.add(self._element(str(tag), element, f"{path}{tag}"))
            except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
                if self._raised is not None and self._raised in (error, error.__cause__):
                    raise
                kept = _text_element(str(tag), element)
                if kept is not None:
                    loaded[kept.tag] = kept
                # The texts of pydicom's errors can hold values.
                action = "is kept as text" if kept is not None else "is left out"
                logger.warning(
                    "%s: the element %s does not follow the DICOM JSON model (%s) and %s",
                    self._name, f"{path}{tag}", type(error).__name__, action,
                )  # fmt: skip
        return loaded

    def _element(self, tag: str, element: Any, path: str) -> DataElement:
        from pydicom import DataElement, Dataset as PydicomDataset

        vr = element.get("vr") or standard_vr(int(tag, 16))
        if "InlineBinary" in element:
            # pydicom skips what is not base64. An example of the standard (PS3.18 F.4) has the text in a list.
            given = element["InlineBinary"]
            text = "".join(given if isinstance(given, list) else [given])
            return DataElement(int(tag, 16), vr, base64.b64decode("".join(text.split()), validate=True))
        content = element.get("Value")
        if vr == "SQ" and content:
            if not isinstance(content, list) or not all(
                isinstance(item, Mapping) for item in content if item is not None
            ):
                raise TypeError("a sequence consists of objects")
            items = (self.dataset(item or {}, f"{path}/{number}/") for number, item in enumerate(content, 1))
            return DataElement(int(tag, 16), "SQ", list(items))
        if vr == "AT" and content:
            # It skips what is no tag, too.
            content = [item and hex_tag(int(item, 16)) for item in content]
        key = next((name for name in ("Value", "BulkDataURI") if name in element), None)
        # It looks at the signature of a handler each time.
        value, handler = (element[key], self._handler) if key == "BulkDataURI" else (content, None)
        made: DataElement = DataElement.from_json(PydicomDataset, tag, vr, value, key, handler)
        return made


def _text_element(tag: str, element: Any) -> DataElement | None:
    """An element with the texts of its values, whatever they are; None if its VR is not one of texts."""
    from pydicom import DataElement

    vr = element.get("vr") if isinstance(element, Mapping) else None
    content = element.get("Value") if isinstance(vr, str) and vr in _TEXT_VRS else None
    found = content if isinstance(content, list) else [content]
    if not _TAG.fullmatch(tag) or not all(isinstance(item, (str, int, float)) for item in found):
        return None
    texts = [str(item) for item in found]
    return DataElement(int(tag, 16), str(vr), texts[0] if len(texts) == 1 else texts, already_converted=True)


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
