"""Every pair of public transforms that fit together: what the tests of chains run, on every engine.

Which pairs there are follows from `every_transform.CASES`: the type of what the first gives and the type hint of what
the second takes. Both work on the same archive, with one request at a time and no budget to speak of, so that each step
waits for what another step of the chain holds.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.testing.util import assert_that, equal_to

from dicomweb_io import transforms
from dicomweb_io.elements import Bulkdata, Frame, Instance, RenderedImage, Resource
from dicomweb_io.endpoint import Endpoint
from dicomweb_io.http.settings import Limits
from dicomweb_io.testing.samples import make_study
from dicomweb_io.testing.server.behaviour import Limits as Caps
from dicomweb_io.testing.server.behaviours import behaviour_of
from tests.every_transform import CASES, INSTANCES, WITH_ARCHIVE, World, notification_of

STUDIES, SERIES = 2, 2
NUMBERS = {"study": STUDIES, "series": STUDIES * SERIES, "instance": STUDIES * SERIES * INSTANCES}
"""How many of each level the archive holds."""

STORES = ("StoreInstances", "WriteToDICOMweb")

Link = Callable[[Any], Any]


@dataclass
class Archives:
    """One archive to read and to store to, and another one to delete from.

    Attributes:
        source: Holds `NUMBERS`.
        other: Empty at first.
        paths: The files of `source`, series by series.
        directory: For anything.
    """

    source: Endpoint
    other: Endpoint
    paths: list[Path]
    directory: Path

    @classmethod
    def start(cls, serve: Callable[..., Any], directory: Path) -> Archives:
        """Serves both. Pages have few rows, so that searches go on while their rows are used."""
        caps = Caps(2, 2, 2)
        behaviour = replace(behaviour_of("generic"), max_limit=caps, default_limit=caps)
        paths = make_study(directory / "source", studies=STUDIES, series=SERIES, instances=INSTANCES, size=300)
        (directory / "other").mkdir()
        servers = serve(directory / "source", behaviour=behaviour), serve(directory / "other")
        source, other = (Endpoint(server.url, limits=Limits(1)) for server in servers)
        return cls(source, other, paths, directory)

    def world(self, name: str, paths: Sequence[Path] = ()) -> World:
        """The archives for a transform."""
        target = self.other if name == "DeleteResources" else self.source
        return World(self.source, target, list(paths or self.paths), self.directory)

    def elements(self, name: str) -> list[Any]:
        """What a transform is applied to: its elements for each series."""
        elements: list[Any] = []
        for start in range(0, len(self.paths), INSTANCES):
            made = CASES[name].elements(self.world(name, self.paths[start : start + INSTANCES]))  # type: ignore[misc]
            elements += [element for element in made if element not in elements]
        return elements


def _same(element: Any) -> Any:
    return element


def _instance_of(element: Any) -> Resource:
    reference: Resource = element.reference.instance
    return reference


def link(first: str, second: str) -> Link | None:
    """How what one transform gives becomes what another one takes; None if they do not fit."""
    given = CASES[first].output
    if CASES[second].elements is None:
        return None
    if second in STORES:
        return _same if given in (Instance, str) else None
    if second == "ParseNotifications":
        return notification_of if given is Resource else None
    # Paths are for stores, and a value does not say which instance it is of.
    if given in (str, Bulkdata):
        return None
    if second == "DeleteResources" and given in (Frame, RenderedImage):
        # Frames are not deleted.
        return _instance_of
    hints = getattr(getattr(transforms, second), "_type_hints", None)
    if hints is not None and hints.input_types and hints.input_types[0][0] is not Resource:
        # Whatever names something: also elements with a reference, and typed rows.
        return _same
    return Resource.of


PAIRS: dict[str, dict[str, Link]] = {
    first: {second: step for second in CASES if (step := link(first, second)) is not None} for first in CASES
}
"""What may follow each transform, and how."""

FIRST = [name for name, following in PAIRS.items() if following]
"""The transforms that another one may follow."""

OF_EACH_TYPE = sorted({CASES[name].output: name for name in FIRST if name in WITH_ARCHIVE}.values())
"""One of those that ask an archive for each type of what they give: enough where starting a pipeline takes long."""


def _number_of(name: str) -> int:
    """How many elements the first transform of a chain gives."""
    case = CASES[name]
    whole = {"study": 1, "series": 1, "instance": INSTANCES}
    if case.level is not None and case.count == whole[case.level]:
        return NUMBERS[case.level]
    # It makes of each element one of another kind.
    return NUMBERS["series"]


def _number_from(first: str, second: str) -> int:
    """How many elements the second transform gives."""
    level, wanted = CASES[first].level or "series", CASES[second].level
    each = 1 if wanted is None or second in STORES else max(1, NUMBERS[wanted] // NUMBERS[level])
    if second == "ParseNotifications":
        each = 1
    return _number_of(first) * each


def _made(archives: Archives, name: str) -> Any:
    """The transform, with no room for more than one thing at a time."""
    options: dict[str, Any] = {}
    parameters = inspect.signature(getattr(transforms, name)).parameters
    # `ReadFromDICOMweb` and `ReadAllFromDICOMweb` hand it on.
    if "max_bytes" in parameters or (name.startswith("Read") and "options" in parameters):
        options["max_bytes"] = 1
    if name == "DeleteResources":
        options["allow_unproven_rows"] = True
    return CASES[name].make(archives.world(name), **options)


def _main(name: str, result: Any) -> Any:
    return getattr(result, CASES[name].main) if hasattr(result, "failures") else result


def run_chains(archives: Archives, first: str, seconds: Sequence[str], pipeline: Callable[[], Any]) -> None:
    """Runs a pipeline in which some transforms follow another one, and checks the number of results of each.

    Args:
        archives: What there is to work on.
        first: The transform that the others follow.
        seconds: Those that follow it, side by side.
        pipeline: Makes the pipeline.
    """
    for name in (first, *seconds):
        CASES[name].prepare(archives.world(name))
    with pipeline() as p:
        given = p
        if CASES[first].elements is not None:
            given = p | beam.Create(archives.elements(first))
        results = _main(first, given | "First" >> _made(archives, first))
        counted = []
        for second in seconds:
            linked = results | f"Link {second}" >> beam.Map(PAIRS[first][second])
            output = _main(second, linked | second >> _made(archives, second))
            counted.append(output | f"Name {second}" >> beam.Map(lambda _, name=second: name))
        numbers = tuple(counted) | beam.Flatten() | beam.combiners.Count.PerElement()
        assert_that(numbers, equal_to([(second, _number_from(first, second)) for second in seconds]))
