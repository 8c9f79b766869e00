"""The checks of the fuzzer on its seeds, on all that it ever found, and on some mutations of both."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from dicomweb_io.http.multipart import MultipartReader
from tests.fuzz.__main__ import INPUTS, NAMES
from tests.fuzz.targets import TARGETS, Finding, check_multipart

FOUND = sorted(path for path in INPUTS.glob("*/*") if path.is_file())


def mutations(seeds, count, chance):
    """Bytes with some changed, left out, doubled or put together anew."""
    for _ in range(count):
        content = bytearray(chance.choice(seeds))
        for _ in range(chance.randrange(1, 6)):
            place = chance.randrange(len(content) + 1)
            kind = chance.randrange(4)
            if kind == 0 and place < len(content):
                content[place] = chance.choice(b'\r\n-:;="{}[]\\,/.%\0\xff' + bytes([chance.randrange(256)]))
            elif kind == 1:
                del content[place : place + chance.randrange(1, 20)]
            elif kind == 2:
                content[place:place] = content[place : place + chance.randrange(1, 20)]
            else:
                other = chance.choice(seeds)
                start = chance.randrange(len(other) + 1)
                content[place:place] = other[start : start + chance.randrange(40)]
        yield bytes(content)


def test_the_names_are_those_of_the_targets():
    assert tuple(TARGETS) == NAMES


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_seeds_and_mutations(name):
    target = TARGETS[name]
    for seed in target.seeds():
        target.check(seed)
    for content in mutations(target.seeds(), 300, random.Random(f"mutations of {name}")):
        target.check(content)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", FOUND, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_was_found_once(path: Path):
    TARGETS[path.parent.name].check(path.read_bytes())


def test_a_broken_promise_is_noticed(monkeypatch):
    """A reader that loses a byte at the edge of a chunk."""
    more = MultipartReader._more

    def lossy(self):
        found = more(self)
        if self._buffer.endswith(b"ten"):
            self._buffer = self._buffer[:-1]
        return found

    monkeypatch.setattr(MultipartReader, "_more", lossy)
    seed = TARGETS["multipart"].seeds()[0]
    with pytest.raises(Finding):
        check_multipart(seed)
