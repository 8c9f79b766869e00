"""What crosses from one stage to the next inside of each public transform, and how large it is.

The table is ``shuffles.txt`` beside this file; ``python -m tests.shuffles`` writes it anew. Its lines are measured:
each transform of `every_transform` does its work on FnApiRunner, which hands encoded elements from stage to stage, and
those bytes are counted where they arrive. A GroupByKey that got no elements has ``-`` in place of a number.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import apache_beam as beam
from apache_beam.coders.coder_impl import create_InputStream
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.pipeline import PipelineVisitor
from apache_beam.runners.common import DoFnSignature
from apache_beam.runners.portability.fn_api_runner import execution

from dicomweb_io.endpoint import Endpoint
from dicomweb_io.testing import serve
from dicomweb_io.testing.samples import make_study
from tests.every_transform import CASES, INSTANCES, VARIANTS, World

TABLE = Path(__file__).with_name("shuffles.txt")

PIXELS = 20_000
"""The bytes of pixel data of each instance: random, so that no encoding makes them small."""

LARGEST = 8_000
"""No reference, query or row of this archive is so large; everything with pixels is larger."""

GROWTH = 1.25
"""How much larger than in the table an element may be."""

HEADER = """\
# What crosses from one stage to the next inside of each transform, with the bytes of the largest element in a tiny
# archive. tests/unit/transforms/test_shuffles.py compares it with what happens.
#
# A new line is a new shuffle: is it one of references, and is it needed? A line that went away may be a fusion break
# that is missing. When the change is meant: python -m tests.shuffles
"""

# Their endpoint is not there, or they watch for ever.
_NOT_RUN = ("storage options", "watched by date", "notifications of an endpoint")


class Crossing(NamedTuple):
    """A place where elements go from one stage to the next.

    Attributes:
        transform: The transform, with what is special about it.
        step: The step in it.
        kind: ``"Reshuffle"``, ``"GroupByKey"``, ``"Read"`` (from the plan of a splittable DoFn to its work), or
            ``"Handover"`` (anything else that the runner does not fuse: a Flatten, a side input, state).
        element: The type of what crosses, as the pipeline declares it.
        size: The bytes of the largest element on its way, with key, window and timestamp, rounded up, because keys are
            random; None if there was none.
    """

    transform: str
    step: str
    kind: str
    element: str
    size: int | None


class _Watched:
    """What FnApiRunner hands from stage to stage while this is entered."""

    def __init__(self) -> None:
        self.sizes: dict[tuple[str, str, tuple[str, ...]], int] = {}

    def _buffer_for(self, manager: Any, buffer_id: bytes, transform_id: str) -> Any:
        buffer = self._get_buffer(manager, buffer_id, transform_id)
        kind, name = execution.split_buffer_id(buffer_id)
        if kind == "timers" or hasattr(buffer, "watched"):
            return buffer
        buffer.watched = True
        applied = manager.execution_context.pipeline_components.transforms
        if kind == "group":
            step, makers = applied[name].unique_name, ()
            coder = buffer._pre_grouped_coder.get_impl()
        else:
            [step, *_] = [item.unique_name for item in applied.values() if name in item.inputs.values()] or [name]
            makers = tuple(item.unique_name for item in applied.values() if name in item.outputs.values())
            coder = buffer._coder_impl
        self._watch(buffer, coder, (kind, step, makers))
        return buffer

    def _watch(self, buffer: Any, coder: Any, key: tuple[str, str, tuple[str, ...]]) -> None:
        append = buffer.append

        def counting(data: bytes) -> None:
            stream = create_InputStream(data)
            while (before := stream.size()) > 0:
                coder.decode_from_stream(stream, True)
                self.sizes[key] = max(self.sizes.get(key, 0), before - stream.size())
            append(data)

        buffer.append = counting

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Counts while it is entered."""
        self._get_buffer = execution.BundleContextManager.get_buffer
        watched = self

        def get_buffer(manager: Any, buffer_id: bytes, transform_id: str) -> Any:
            return watched._buffer_for(manager, buffer_id, transform_id)

        with mock.patch.object(execution.BundleContextManager, "get_buffer", get_buffer):
            yield


class _Types(PipelineVisitor):
    """The steps that shuffle, and the declared types of what goes into and out of each step."""

    def __init__(self) -> None:
        self.shuffles: dict[str, tuple[str, str]] = {}
        self.inputs: dict[str, str] = {}
        self.outputs: dict[str, str] = {}

    def enter_composite_transform(self, transform_node: Any) -> None:
        self.visit_transform(transform_node)

    def visit_transform(self, transform_node: Any) -> None:
        node, label = transform_node, transform_node.full_label
        if node.inputs:
            self.inputs[label] = _name_of(node.inputs[0].element_type)
        if node.outputs:
            self.outputs[label] = " or ".join(sorted({_name_of(one.element_type) for one in node.outputs.values()}))
        for side in node.side_inputs:
            self.shuffles[f"{label} (side input)"] = "Handover", _name_of(side.pvalue.element_type)
        transform = node.transform
        grouping = isinstance(transform, (beam.GroupByKey, beam.Reshuffle)) and "ReshufflePerKey" not in label
        stateful = isinstance(transform, beam.ParDo) and DoFnSignature(transform.fn).is_stateful_dofn()
        if grouping or stateful:
            kind = type(transform).__name__ if grouping else "Handover"
            self.shuffles[label] = kind, self.inputs[label]


def _name_of(hint: Any) -> str:
    name = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", str(hint))
    name = re.sub(r"\b(?:\w+\.)+(\w+)", r"\1", name).replace("Dict[", "dict[").replace("Tuple[", "tuple[")
    return re.sub(r"^Union\[(.*)\]$", lambda found: found[1].replace(", ", " | "), name)


def crossings_of(name: str, transform: Any, given: Any, *options: str) -> list[Crossing]:
    """Runs a transform and gives what crossed.

    Args:
        name: Its name in the table.
        transform: The transform.
        given: Its elements; None for a source.
        *options: Options of the pipeline.
    """
    types, watched = _Types(), _Watched()
    p = beam.Pipeline(options=PipelineOptions(["--runner=FnApiRunner", *options]))
    _ = (p if given is None else p | "Given" >> beam.Create(given)) | "It" >> transform
    p.visit(types)
    with watched.watching():
        p.run().wait_until_finish()
    found = []
    silent = {label: shuffle for label, shuffle in types.shuffles.items() if label.startswith("It/")}
    for (kind, step, makers), size in watched.sizes.items():
        if not step.startswith("It/"):
            continue
        if kind == "group":
            label = step.removesuffix("/ReshufflePerKey/GroupByKey")
            what, element = ("GroupByKey" if label == step else "Reshuffle"), types.inputs[label]
        elif step.endswith("/Process"):
            label = step.removesuffix("/Process")
            what, element = "Read", types.inputs[label]
        else:
            label = step
            declared = {types.outputs[maker] for maker in makers if maker in types.outputs} or {types.inputs.get(label)}
            what, element = "Handover", " or ".join(sorted(map(str, declared)))
        silent.pop(label, None)
        found.append(Crossing(name, _short(label), what, element, -(-size // 50) * 50))
    for label, (what, element) in silent.items():
        found.append(Crossing(name, _short(label), what, element, None))
    return sorted(found)


def _short(label: str) -> str:
    # A step with several outputs contains its ParDo, whose name is that of the DoFn.
    return re.sub(r"(/ParDo\(\w+\))+$", "", label.removeprefix("It/"))


def all_crossings(directory: Path) -> list[Crossing]:
    """Runs every transform, with its variants, and gives what crossed in each."""
    files, target = directory / "files", directory / "target"
    paths = make_study(files, instances=INSTANCES, size=PIXELS)
    target.mkdir()
    found: list[Crossing] = []
    with serve(files) as source, serve(target) as destination:
        world = World(Endpoint(source.url), Endpoint(destination.url), paths, directory)
        for name, case in CASES.items():
            given = case.elements(world) if case.elements is not None else None
            batch: list[Crossing] = []
            for title, options in ((name, ()), (f"{name}, streaming", ("--streaming",))):
                case.prepare(world)
                how = {"failures": "collect"} if case.fails else {}
                crossed = crossings_of(title, case.make(world, **how), given, *options)
                if [item[1:4] for item in crossed] != [item[1:4] for item in batch]:
                    found += crossed
                batch = crossed
        for title, make in VARIANTS.items():
            if title in _NOT_RUN:
                continue
            transform = make(world)
            name = type(transform).__name__
            elements = None if name.startswith("Search") else CASES[name].elements
            given = elements(world) if elements is not None else None
            found += crossings_of(f"{name}, {title}", transform, given)
    return found


def table_of(crossings: list[Crossing]) -> str:
    """The table as text."""
    rows = [("# transform", "step", "kind", "what crosses", "bytes")]
    rows += [(*item[:4], "-" if item.size is None else str(item.size)) for item in crossings]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        "  ".join((*(f"{cell:{width}}" for cell, width in zip(row, widths, strict=False)), row[4])) for row in rows
    ]
    return HEADER + "".join(f"{line}\n" for line in lines)


def read_table() -> list[Crossing]:
    """What the table says."""
    lines = [line for line in TABLE.read_text().splitlines() if not line.startswith("#")]
    rows = [re.split(r" {2,}", line) for line in lines]
    return [Crossing(*row[:4], None if row[4] == "-" else int(row[4])) for row in rows]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        TABLE.write_text(table_of(all_crossings(Path(scratch))))
