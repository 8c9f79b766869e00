"""Person names (VR PN, PS3.5 section 6.2.1): up to three groups of up to five components."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from dicomweb_io.dicom.wildcards import wildcard_test

GROUPS = ("Alphabetic", "Ideographic", "Phonetic")

_WORDS = re.compile(r"[\s^=,]+")
_VOICE_MARKS = "\u3099\u309a"  # they make other letters of kana, not accented ones


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
        value: A DICOM JSON object of a name; a plain string, which some servers send instead, is returned as it is;
            None gives an empty text.
    """
    if isinstance(value, Mapping):
        return "=".join(str(value.get(group) or "") for group in GROUPS).rstrip("=")
    return "" if value is None else str(value)


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
    tests = [_group_predicate(part) for part in wanted]
    if len(tests) == 1:
        test = tests[0]
        return lambda value: any(test(canonical_group(part)) for part in name_text(value).split("=") if part)

    def matches(value: Any) -> bool:
        parts = name_text(value).split("=")
        parts += [""] * (len(tests) - len(parts))
        compared = zip(wanted, tests, parts, strict=False)
        return all(not text or test(canonical_group(part)) for text, test, part in compared)

    return matches


def _group_predicate(group: str) -> Callable[[str], bool]:
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
        ValueError: If there is no word.
    """
    words = [word for word in _WORDS.split(fold_accents(pattern)) if word.strip("*")]
    if not words:
        raise ValueError("it holds no name")
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
