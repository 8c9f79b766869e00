"""Writes docs/fault-matrix.md from the declared cells: ``python -m tests.faults.write_matrix [PATH]``.

The tests of this folder check every declared cell against what really happens, and that the written table is this one.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from tests.faults.expectations import Expected, Outcome, expected
from tests.faults.failure_cases import FAILURE_CASES
from tests.faults.many_instances import COUNT, MANY, WAYS
from tests.faults.operations import OPERATIONS
from tests.faults.transform_operations import TRANSFORMS

PATH = Path(__file__).parents[2] / "docs" / "fault-matrix.md"
SIGNS: Mapping[Outcome, str] = {"recovered": "✓", "reported": "!", "believed": "b", "cannot occur": "·"}

_GROUPS: Mapping[str, tuple[str, ...]] = {
    "Searching": ("search for *", "page *", "count", "missing *", "probe"),
    "Retrieving": (
        "retrieve *",
        "stream *",
        "metadata *",
        "frames",
        "one frame",
        "*bulk data",
        "rendered",
        "thumbnail",
    ),
    "Storing, by policy and proof": ("store: server*", "store: skip*", "store: replace*", "store: error*"),
    "Storing, what is asked besides; deleting": ("store: the*", "store: reading*", "store_instances", "delete *"),
    "Transforms: searching and retrieving": ("SearchFor*", "Compare*", "Watch*", "Read*", "Retrieve*"),
    "Transforms: copying, storing, deleting": ("Copy*", "Download*", "StoreInstances", "Write*", "Delete*"),
}

_TEXT = """# The fault matrix

Every operation of the client and every transform is tried with everything that can go wrong between it and a server.
Each cell that can occur is a test (`tests/faults`): the test server (`dicomweb_io.testing`), or a TCP proxy in front of
it, makes the failure happen, and the outcome is compared with that of an undisturbed run. A test also fails if

- the failure did not occur, or a result comes twice;
- a secret, a patient's name or a query shows in an error, a failure or a log, or credentials reach another host;
- an instance that is called stored is not there, or a file under its final name is not whole or is gone;
- a connection stays open.

This page is written by `python -m tests.faults.write_matrix`.

{counts}

- **✓ recovered**: the results are those of an undisturbed run.
- **! reported**: one clear error, or a `Failure` for exactly what was affected; everything else is undisturbed. The
  declared cell says which error, which HTTP status, and whether trying again later could help.
- **b believed**: the answer is wrong, but it is whole and valid, and nothing in it tells; the notes say what does.
- **· cannot occur**: for the reason in the notes; a test shows that no request or answer of the operation has what the
  failure needs.

No outcome is a hang: where only the deadline can end an operation, the cell expects the error that names it.
"""


def columns() -> dict[str, frozenset[str]]:
    """All operations and transforms with what their requests have."""
    clients = {name: operation.traits for name, operation in OPERATIONS.items()}
    return clients | {name: transform.traits for name, transform in TRANSFORMS.items()}


def cells() -> dict[tuple[str, str], Expected]:
    """All declared cells by operation and failure case."""
    return {
        (column, name): expected(column, traits, failure_case)
        for column, traits in columns().items()
        for name, failure_case in FAILURE_CASES.items()
    }


def render() -> str:
    """The page."""
    declared = cells()
    names = list(columns())
    parts = [_TEXT.format(counts=_counts(declared, names))]
    for title, patterns in _GROUPS.items():
        chosen = [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
        names = [name for name in names if name not in chosen]
        parts.append(f"## {title}\n\n{_table(declared, chosen)}\n")
    assert not names, f"these are in no group: {names}"
    parts.append(f"## Many instances\n\n{_many()}\n")
    parts.append("## Notes\n\n" + _notes(declared))
    return "\n".join(parts)


def _counts(declared: Mapping[tuple[str, str], Expected], names: list[str]) -> str:
    total = Counter(cell.outcome for cell in declared.values())
    lines = ["| | operations | cells | ✓ recovered | ! reported | b believed | · cannot occur |", "|" + "---|" * 7]
    for title, chosen in (("client", [*OPERATIONS]), ("transforms", [*TRANSFORMS]), ("all", names)):
        found = Counter(cell.outcome for (column, _), cell in declared.items() if column in chosen)
        numbers = " | ".join(f"{found[outcome]:,}" for outcome in SIGNS)
        lines.append(f"| {title} | {len(chosen)} | {sum(found.values()):,} | {numbers} |")
    assert sum(total.values()) == len(names) * len(FAILURE_CASES)
    return f"{len(FAILURE_CASES)} failure cases by {len(names)} operations:\n\n" + "\n".join(lines)


def _table(declared: Mapping[tuple[str, str], Expected], chosen: list[str]) -> str:
    lines = ["| | " + " | ".join(chosen) + " |", "|---|" + ":-:|" * len(chosen)]
    for name, failure_case in FAILURE_CASES.items():
        signs = [SIGNS[declared[column, name].outcome] for column in chosen]
        if set(signs) != {"·"}:
            lines.append(f"| **{name}**: {failure_case.words} | " + " | ".join(signs) + " |")
    silent = [
        name for name in FAILURE_CASES if all(declared[column, name].outcome == "cannot occur" for column in chosen)
    ]
    text = "\n".join(lines)
    return f"{text}\n\nCannot occur in any of these: {', '.join(silent)}." if silent else text


def _many() -> str:
    rows = [
        f"| **{case.name}**: {case.words} | {', '.join(WAYS[case.direction])} | {SIGNS[case.outcome]} |"
        for case in MANY
    ]
    text = f"{COUNT} instances that travel in separate requests: each arrives once, or has its failure."
    return "\n".join([text, "", "| | through | outcome |", "|---|---|:-:|", *rows])


def _notes(declared: Mapping[tuple[str, str], Expected]) -> str:
    lines = []
    for title, outcome in (("Believed", "believed"), ("Cannot occur", "cannot occur")):
        reasons: dict[str, dict[str, list[str]]] = {}
        for (column, name), cell in declared.items():
            if cell.outcome == outcome:
                reasons.setdefault(cell.why, {}).setdefault(name, []).append(column)
        lines += [f"### {title}", "", "| reason | cells | failure cases | operations |", "|---|---|---|---|"]
        for why, by_failure_case in sorted(reasons.items(), key=lambda item: item[0]):
            touched = list(dict.fromkeys(column for found in by_failure_case.values() for column in found))
            number = sum(map(len, by_failure_case.values()))
            operations = ", ".join(touched) if len(touched) <= 12 else f"{len(touched)} operations"
            lines.append(f"| {why} | {number} | {', '.join(by_failure_case)} | {operations} |")
        lines.append("")
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """Writes the page and prints where."""
    path = Path(argv[0]) if argv else PATH
    path.write_text(render(), encoding="utf-8")
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
