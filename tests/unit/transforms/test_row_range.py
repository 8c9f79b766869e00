"""Trackers, exhaustively and without a runner."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, strategies as st

from dicomweb_io.transforms.row_range import END, RowRange, RowRangeProvider, RowTracker

FRACTIONS = (0, 0.001, 0.25, 0.5, 0.75, 0.999, 1.0)


def finish(tracker: RowTracker, position: int, rows_in_archive: int) -> list[int]:
    """Claims as the DoFn does: one row after another, then the end."""
    claimed = []
    while position < rows_in_archive:
        if not tracker.try_claim(position):
            break
        claimed.append(position)
        position += 1
    else:
        assert not tracker.try_claim(END)
    tracker.check_done()
    return claimed


@pytest.mark.parametrize("stop", [None, 7])
@pytest.mark.parametrize("total", [None, 5, 7, 20])
@pytest.mark.parametrize("fraction", FRACTIONS)
@pytest.mark.parametrize("before", range(9))
def test_a_split_at_any_moment_loses_nothing_and_doubles_nothing(stop, total, fraction, before):
    """An archive of 7 rows, whatever total was announced; split after any number of claims, at any fraction."""
    tracker = RowTracker(RowRange(0, stop, total))
    claimed = []
    for position in range(before):
        if position >= 7:
            tracker.try_claim(END)
            break
        if not tracker.try_claim(position):
            break
        claimed.append(position)
    ended = before > 7
    parts = tracker.try_split(fraction)
    if parts is None:
        rest = [] if ended else finish(tracker, before, 7)
        assert claimed + rest == list(range(7))
        return
    assert not ended
    primary, residual = parts
    assert tracker.current_restriction() == primary
    assert primary.stop == residual.start
    assert (residual.stop, residual.total) == (stop, total)
    claimed += finish(tracker, before, 7)
    other = finish(RowTracker(residual), residual.start, 7)
    assert claimed + other == list(range(7))


def test_fraction_zero_is_a_checkpoint_right_behind_the_last_claim_and_happens_once():
    tracker = RowTracker(RowRange(10))
    assert tracker.try_claim(10)
    assert tracker.try_split(0) == (RowRange(10, 11), RowRange(11))
    assert tracker.try_split(0) is None
    assert tracker.try_split(0.5) is None
    assert not tracker.try_claim(11)
    tracker.check_done()


def test_a_checkpoint_before_the_first_claim_leaves_an_empty_range():
    tracker = RowTracker(RowRange(10, None, 99))
    assert tracker.try_split(0) == (RowRange(10, 10), RowRange(10, None, 99))
    assert not tracker.try_claim(10)
    tracker.check_done()


def test_an_unknown_end_is_split_only_at_checkpoints():
    for fraction in FRACTIONS[1:]:
        tracker = RowTracker(RowRange(0))
        tracker.try_claim(0)
        assert tracker.try_split(fraction) is None


def test_a_whole_range_is_split_only_at_checkpoints():
    tracker = RowTracker(RowRange(0, 1000, whole=True))
    tracker.try_claim(0)
    assert tracker.try_split(0.5) is None
    assert tracker.try_split(0) == (RowRange(0, 1), RowRange(1, 1000, whole=True))


def test_nothing_is_split_after_the_end_was_claimed():
    for rows in (RowRange(0), RowRange(0, 5), RowRange(0, None, 5)):
        tracker = RowTracker(rows)
        tracker.try_claim(0)
        assert not tracker.try_claim(END)
        assert [tracker.try_split(fraction) for fraction in FRACTIONS] == [None] * len(FRACTIONS)
        tracker.check_done()


def test_check_done_notices_what_was_left_out():
    tracker = RowTracker(RowRange(0, 3))
    with pytest.raises(ValueError, match="rows from 0 to 3 are unclaimed"):
        tracker.check_done()
    tracker.try_claim(0)
    tracker.try_claim(1)
    with pytest.raises(ValueError, match="rows from 2 to 3"):
        tracker.check_done()
    tracker.try_claim(2)
    tracker.check_done()
    tracker = RowTracker(RowRange(0))
    tracker.try_claim(0)
    with pytest.raises(ValueError, match="rows from 1 to the end"):
        tracker.check_done()


def test_claims_must_increase_and_lie_in_the_range():
    tracker = RowTracker(RowRange(5, 10))
    with pytest.raises(ValueError, match="before the range"):
        tracker.try_claim(4)
    tracker.try_claim(5)
    with pytest.raises(ValueError, match="must increase"):
        tracker.try_claim(5)


@given(
    start=st.integers(0, 50_000),
    length=st.integers(0, 200_000),
    known=st.sampled_from(["stop", "total", "neither"]),
    whole=st.booleans(),
)
def test_pieces_are_the_range(start, length, known, whole):
    stop = start + length if known == "stop" else None
    total = start + length if known == "total" else None
    rows = RowRange(start, stop, total, whole)
    pieces = list(rows.pieces())
    assert pieces[0].start == start
    assert pieces[-1].stop == stop
    for one, two in itertools.pairwise(pieces):
        assert one.stop == two.start
    if len(pieces) > 1:
        assert not whole
        assert all(piece.stop is None or piece.stop - piece.start >= 10_000 for piece in pieces)


def test_sizes_and_progress_are_bytes_and_stay_so_in_every_part():
    rows, provider = RowRange(0, 50_000, row_bytes=2000), RowRangeProvider()
    assert provider.restriction_size(None, rows) == 100_000_000
    parts = list(provider.split_and_size(None, rows))
    assert [size for _, size in parts] == [20_000_000] * 5
    assert {part.row_bytes for part, _ in parts} == {2000}
    tracker = RowTracker(RowRange(0, None, 100, row_bytes=2000))
    assert tracker.try_claim(9)
    primary, residual = tracker.try_split(0.5)
    assert primary.row_bytes == residual.row_bytes == 2000
    assert primary.size + residual.size == 200_000
    progress = tracker.current_progress()
    assert (progress.completed_work, progress.completed_work + progress.remaining_work) == (20_000, primary.size)


@given(
    stop=st.one_of(st.none(), st.integers(1, 1000)),
    total=st.one_of(st.none(), st.integers(1, 1000)),
    claims=st.integers(0, 1000),
)
def test_progress_never_goes_outside_its_bounds(stop, total, claims):
    tracker = RowTracker(RowRange(0, stop, total))
    for position in range(claims):
        if not tracker.try_claim(position):
            break
    progress = tracker.current_progress()
    assert 0 <= progress.fraction_completed <= 1
    assert 0 <= progress.fraction_remaining <= 1
    assert tracker.current_restriction().size >= 0


def test_a_range_is_checked():
    with pytest.raises(ValueError, match="start must be 0 or more"):
        RowRange(-1)
    with pytest.raises(ValueError, match="must not be before start"):
        RowRange(5, 4)
