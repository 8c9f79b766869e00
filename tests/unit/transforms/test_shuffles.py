"""References cross shuffles, pixels never do: each transform has the shuffles that a table lists, and no others."""

from __future__ import annotations

import re

import apache_beam as beam
import pytest

from dicomweb_io.elements import Instance
from dicomweb_io.testing.samples import make_study
from tests.shuffles import GROWTH, LARGEST, PIXELS, TABLE, all_crossings, crossings_of, read_table, table_of

HOW = "If the change is meant, 'python -m tests.shuffles' writes the table anew; its diff shows what has changed."

# What may hold pixels, by itself or in a tuple. (A key may be a digest.)
_PIXELS = re.compile(r"\b(Instance|Frame|RenderedImage|Bulkdata)\b|^(bytes|object)$|, (bytes|object)\b")


def has_pixels(crossing):
    return bool(_PIXELS.search(crossing.element)) or (crossing.size or 0) > LARGEST


def _number(_, items):
    return len(list(items))


def test_what_crosses_is_what_the_table_says(tmp_path):
    crossings = all_crossings(tmp_path)
    assert [item for item in crossings if has_pixels(item)] == [], "pixels cross"
    was, now = ({item[:4] for item in items} for items in (read_table(), crossings))
    assert now - was == set(), f"new shuffles. {HOW}"
    assert was - now == set(), f"missing shuffles. {HOW}"
    known = {item[:4]: item.size for item in read_table()}
    grown = [item for item in crossings if item.size and item.size > GROWTH * (known[item[:4]] or item.size)]
    assert grown == [], f"elements have grown. {HOW}"


def test_the_table_is_as_it_is_written():
    assert table_of(read_table()) == TABLE.read_text()


@pytest.mark.parametrize(
    ("name", "breaks"),
    [
        ("Reshuffle", lambda items: items | beam.Reshuffle()),
        ("GroupByKey", lambda items: items | beam.Map(lambda item: (1, item)) | beam.GroupByKey()),
        ("Handover", lambda items: (items, items | beam.Reshuffle()) | beam.Flatten()),
        ("Handover", lambda items: items.pipeline | beam.Create([0]) | beam.Map(_number, beam.pvalue.AsIter(items))),
    ],
)
def test_pixels_that_cross_are_seen(tmp_path, name, breaks):
    """A shuffle, a Flatten of two branches, a side input: whatever keeps a fetch from its consumer."""
    [path] = make_study(tmp_path, instances=1, size=PIXELS)

    @beam.ptransform_fn
    def work(paths):
        return breaks(paths | "Fetch" >> beam.Map(Instance.from_path).with_output_types(Instance))

    found = crossings_of("it", work(), [str(path)])
    assert name in {item.kind for item in found if has_pixels(item)}
