"""Matching as servers do it that do not follow PS3.4 section C.2.2.2; what follows it is the archive's own work."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dicomweb_io.testing.manners_model import Manners

TEXT_VRS = frozenset({"AE", "CS", "LO", "LT", "SH", "ST", "UC", "UR", "UT", "PN"})


def element_at(row: Mapping[str, Any], path: Sequence[str]) -> list[Any]:
    """All values of an attribute, in any item where the path goes through sequences; an empty one has the value ''."""
    element = row.get(path[0])
    values = element.get("Value") or [] if isinstance(element, Mapping) else []
    if len(path) == 1:
        return list(values) if values or element is None else [""]
    return [value for item in values if isinstance(item, Mapping) for value in element_at(item, path[1:])]


def matches_text(values: Sequence[Any], wanted: Sequence[str], manners: Manners, fuzzy: bool) -> bool:
    """Whether a value matches one of the wanted texts in the way of this server."""
    texts = [text for value in values for text in _texts(value)]
    return any(_matches(text, one, _is_name(values), manners, fuzzy) for text in texts for one in wanted)


def _is_name(values: Sequence[Any]) -> bool:
    return any(isinstance(value, Mapping) for value in values)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        yield from (str(group) for group in value.values())
    elif value is not None:
        yield str(value)


def _matches(text: str, wanted: str, name: bool, manners: Manners, fuzzy: bool) -> bool:
    if name or manners.ignore_case:
        text, wanted = text.casefold(), wanted.casefold()
    if name and fuzzy and manners.fuzzy == "soundex":
        sounds = {soundex(part) for part in re.split(r"[\s^=]+", text) if part}
        return all(soundex(one) in sounds for one in re.split(r"[\s^]+", wanted.strip("*")) if one)
    if name and fuzzy:
        parts = [part for part in re.split(r"[\s^=]+", text) if part]
        return all(any(part.startswith(one) for part in parts) for one in re.split(r"[\s^]+", wanted.strip("*")) if one)
    if name and manners.person_names == "substring":
        return wanted in text
    text, wanted = text.strip(), wanted.strip()
    if not manners.wildcards:
        return text == wanted
    pattern = "".join(".*" if char == "*" else "." if char == "?" else re.escape(char) for char in wanted)
    return re.fullmatch(pattern, text, re.DOTALL) is not None


_CODES = {
    letter: code for code, letters in enumerate(("bfpv", "cgjkqsxz", "dt", "l", "mn", "r"), 1) for letter in letters
}


def soundex(word: str) -> str:
    """The American Soundex of a word: its first letter and three digits for how the rest sounds.

    Letters other than those of English are left out.
    """
    letters = [letter for letter in word.casefold() if "a" <= letter <= "z"]
    if not letters:
        return word.casefold()
    digits = ""
    before = _CODES.get(letters[0])
    for letter in letters[1:]:
        code = _CODES.get(letter)
        if code is not None and code != before:
            digits += str(code)
        if letter not in "hw":
            before = code
    return (letters[0] + digits + "000")[:4]
