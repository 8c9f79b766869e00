"""Accept headers as the test server reads them."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from dicomweb_io.testing.server.exchange import MediaRange, parse_accept, split_list


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, [MediaRange("*/*", explicit=False)]),
        ("", [MediaRange("*/*", explicit=False)]),
        ("*/*", [MediaRange("*/*")]),
        ("application/dicom", [MediaRange("application/dicom", multipart=False)]),
        (
            'multipart/related; type="application/dicom"; transfer-syntax=*',
            [MediaRange("application/dicom", "*", True)],
        ),
        ("multipart/related", [MediaRange("*/*", None, True)]),
        (
            'multipart/related; type="image/jpeg;transfer-syntax=1.2", */*;q=0.1',
            [MediaRange("image/jpeg", "1.2", True), MediaRange("*/*", quality=0.1)],
        ),
        (
            "image/png;q=0.2, image/jpeg;q=0.9, image/gif;q=0",
            [MediaRange("image/jpeg", None, False, 0.9), MediaRange("image/png", None, False, 0.2)],
        ),
    ],
)
def test_accept_headers(header, expected):
    assert parse_accept(header) == expected


def test_the_parameter_wins():
    assert parse_accept("image/png", "text/html")[0].media_type == "text/html"


@pytest.mark.parametrize(
    ("wanted", "offered", "covered"),
    [
        ("*/*", "image/png", True),
        ("image/*", "image/png", True),
        ("image/*", "application/dicom", False),
        ("image/png", "image/png", True),
    ],
)
def test_ranges(wanted, offered, covered):
    assert MediaRange(wanted).covers(offered) is covered


@given(st.lists(st.text(st.characters(exclude_characters='",\\', exclude_categories=["Cc", "Cs", "Z"]), min_size=1)))
def test_lists_are_split_at_their_commas(items):
    assert split_list(", ".join(items)) == [item.strip() for item in items]
    assert split_list(", ".join(f'a="{item},"' for item in items)) == [f'a="{item},"' for item in items]


@given(st.text())
def test_nothing_breaks_the_reader(text):
    assert all(0 < one.quality <= 1 for one in parse_accept(text))
