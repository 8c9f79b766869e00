"""Windows, timestamps and panes that elements are in, and a pipeline that sends them through every transform."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.testing.util import BeamAssertException, assert_that
from apache_beam.transforms import trigger, window
from apache_beam.utils.timestamp import Timestamp
from apache_beam.utils.windowed_value import PaneInfo, PaneInfoTiming, WindowedValue

from dicomweb_io.endpoint import Endpoint
from tests.every_transform import CASES, World

KEEPING = [name for name, case in CASES.items() if case.elements is not None and case.keeps_times]
"""The transforms whose results are where their elements are."""

UNKNOWN = PaneInfo(True, True, PaneInfoTiming.UNKNOWN, 0, 0)

Place = tuple[float, tuple[float, float], PaneInfo]
"""A timestamp, the ends of a window, and a pane."""


@dataclass(frozen=True)
class Windowing:
    """How a collection is windowed.

    Attributes:
        apply: Makes the step that gives a collection its windows.
        places: Where each element of it is, once for each.
    """

    apply: Callable[[], beam.WindowInto]
    places: tuple[Place, ...]


def early_and_late() -> beam.WindowInto:
    """Windows of a minute that give what they hold early, on time and late, each time with what they gave before."""
    return beam.WindowInto(
        window.FixedWindows(60),
        trigger=trigger.AfterWatermark(early=trigger.AfterCount(1), late=trigger.AfterCount(1)),
        accumulation_mode=trigger.AccumulationMode.ACCUMULATING,
        allowed_lateness=600,
    )


_EARLY = PaneInfo(True, False, PaneInfoTiming.EARLY, 0, -1)
_ON_TIME = PaneInfo(False, False, PaneInfoTiming.ON_TIME, 1, 0)
_LATE = PaneInfo(False, True, PaneInfoTiming.LATE, 2, 1)

WINDOWINGS = {
    "fixed": Windowing(
        lambda: beam.WindowInto(window.FixedWindows(60)), ((65, (60, 120), UNKNOWN), (130, (120, 180), UNKNOWN))
    ),
    "sliding": Windowing(
        lambda: beam.WindowInto(window.SlidingWindows(30, 10)),
        tuple((65, (start, start + 30), UNKNOWN) for start in (40, 50, 60)),
    ),
    # A grouping would merge them.
    "sessions": Windowing(
        lambda: beam.WindowInto(window.Sessions(10)), ((65, (65, 75), UNKNOWN), (70, (70, 80), UNKNOWN))
    ),
    # What an accumulating trigger gives: the same again in each pane.
    "accumulating": Windowing(early_and_late, tuple((65, (60, 120), pane) for pane in (_EARLY, _ON_TIME, _LATE))),
}


class _Put(beam.DoFn):
    """Puts each element, which is at time zero, in some places."""

    def __init__(self, places: Iterable[Place]) -> None:
        self._places = tuple(places)

    def process(self, element: Any, at: Any = beam.DoFn.WindowParam) -> Iterator[Any]:
        if at.start != 0:
            # Another one of its windows.
            return
        for time, ends, pane in self._places:
            yield WindowedValue(element, Timestamp(time), (window.IntervalWindow(*ends),), pane)


def _same(element: Any) -> Any:
    return element


def _look(
    element: Any,
    time: Any = beam.DoFn.TimestampParam,
    at: Any = beam.DoFn.WindowParam,
    pane: Any = beam.DoFn.PaneInfoParam,
) -> tuple[Any, ...]:
    return float(time), (float(at.start), float(at.end)), pane.timing, pane.index, pane.nonspeculative_index


def _looks(places: Iterable[Place], times: int) -> list[tuple[Any, ...]]:
    looks = [(time, ends, pane.timing, pane.index, pane.nonspeculative_index) for time, ends, pane in places]
    return looks * times


def _counted(expected: list[tuple[str, tuple[Any, ...]]]) -> Callable[[list[Any]], None]:
    def check(seen: list[Any]) -> None:
        missing, more = Counter(expected) - Counter(seen), Counter(seen) - Counter(expected)
        if missing or more:
            raise BeamAssertException(f"missing: {sorted(missing.items())}\nunexpected: {sorted(more.items())}")

    return check


def make_worlds(source: Endpoint, paths: list[Path], directory: Path) -> dict[str, World]:
    """What there is to work on for each transform: a common source, and a folder of its own."""
    worlds = {}
    for name in KEEPING:
        (directory / name / "target").mkdir(parents=True)
        worlds[name] = World(source, Endpoint(str(directory / name / "target")), paths, directory / name)
    return worlds


def check_windows(p: Any, worlds: dict[str, World], windowing: Windowing) -> None:
    """Adds every transform to a pipeline, and the check that results and failures are where their elements are.

    Args:
        p: The pipeline.
        worlds: What there is to work on for each transform.
        windowing: Where the elements are.
    """
    looked, expected = [], []
    for name, world in worlds.items():
        case = CASES[name]
        case.prepare(world)
        bad = [] if case.bad is None else [case.bad]
        elements = [window.TimestampedValue(element, 0) for element in (*case.elements(world), *bad)]  # type: ignore[misc]
        timed = p | f"Create {name}" >> beam.Create(elements) | f"Time {name}" >> beam.Map(_same)
        put = timed | f"Window {name}" >> windowing.apply() | f"Put {name}" >> beam.ParDo(_Put(windowing.places))
        result = put | name >> case.make(world, **({"failures": "collect"} if case.fails else {}))
        for member, number in ((case.main, case.count), ("failures", len(bad))):
            if not case.fails and member == "failures":
                continue
            output = getattr(result, member) if member else result
            label = f"{name}.{member}"
            looked.append(output | label >> beam.Map(_look) | f"Name {label}" >> beam.Map(lambda x, y=label: (y, x)))
            expected += [(label, look) for look in _looks(windowing.places, number)]
    gathered = [
        one | f"Global {number}" >> beam.WindowInto(window.GlobalWindows()) for number, one in enumerate(looked)
    ]
    assert_that(tuple(gathered) | beam.Flatten(), _counted(expected))
