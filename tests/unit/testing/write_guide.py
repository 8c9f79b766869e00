"""Writes the tables of docs/test-server.md: ``python -m tests.unit.testing.write_guide [PATH]``."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

from dicomweb_io.testing.faults import FAULTS, WireFault
from dicomweb_io.testing.server.behaviour import Behaviour, Evidence, meanings
from dicomweb_io.testing.server.behaviours import BEHAVIOURS, GENERIC, VARIANTS
from dicomweb_io.testing.server.command import shown

PATH = Path(__file__).parents[3] / "docs" / "test-server.md"
_EVIDENCE = get_args(Evidence)


def behaviour_table() -> Iterator[str]:
    """What there is, with the number of facts by evidence."""
    yield "| behaviour | server | " + " | ".join(_EVIDENCE) + " |"
    yield "|---|---" * 1 + "|---" * len(_EVIDENCE) + "|"
    for one in (*BEHAVIOURS.values(), *VARIANTS.values()):
        counts = Counter(str(fact.evidence) for fact in one.facts.values())
        numbers = " | ".join(str(counts[evidence] or "") for evidence in _EVIDENCE)
        yield f"| `{one.name}` | {_text(one.title)} | {numbers} |"


def behaviour_facts() -> Iterator[str]:
    """Every fact of every behaviour."""
    for one in (*BEHAVIOURS.values(), *VARIANTS.values()):
        if not one.facts:
            continue
        yield from (f"### {one.name}", "", f"{_text(one.title)}.", "")
        yield "| what | value | the standard | how it is known |"
        yield "|---|---|---|---|"
        base = _base(one)
        for name, fact in sorted(one.facts.items(), key=lambda item: _EVIDENCE.index(item[1].evidence)):
            if base is not None and name in base.facts and base.facts[name].value == fact.value:
                continue
            usual = _text(shown(getattr(GENERIC, name)))
            yield f"| `{name}` | {_text(shown(fact.value))} | {usual} | {fact.evidence}: {_text(fact.source)} |"
        yield ""
        if base is not None:
            known = all(
                one.facts[name] == fact for name, fact in base.facts.items() if one.facts[name].value == fact.value
            )
            yield from (f"All else as `{base.name}`{'' if known else ', unverified'}.", "")
        gaps = [gap for gap in one.gaps if base is None or gap not in base.gaps]
        if gaps:
            yield from ("Not shown here:", "", *(f"- {_text(gap)}" for gap in gaps), "")


def fields_list() -> Iterator[str]:
    """What each field means."""
    for name, text in meanings().items():
        yield f"- `{name}`: {_text(text)}"


def faults_table() -> Iterator[str]:
    """All faults with their options."""
    yield "| action | played by | what happens | options |"
    yield "|---|---|---|---|"
    for name, kind in FAULTS.items():
        player = "the proxy" if issubclass(kind, WireFault) else "the server"
        options = ", ".join(f"`{key}={value!r}`" for key, value in kind.defaults().items())
        yield f"| `{name}` | {player} | {_text(' '.join(str(kind.__doc__).split()))} | {options} |"


SECTIONS = {
    "behaviour": behaviour_table,
    "facts": behaviour_facts,
    "fields": fields_list,
    "faults": faults_table,
}
"""The generated sections by the name in their markers."""


def updated(text: str) -> str:
    """The document with its generated sections made anew.

    Raises:
        ValueError: If a section is missing.
    """
    for name, make in SECTIONS.items():
        begin, end = f"<!-- {name}: generated -->", f"<!-- {name}: end -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise ValueError(f"the document has not exactly one section between {begin} and {end}")
        content = "\n".join(make()).strip()
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}\n\n{content}\n\n{end}{rest.partition(end)[2]}"
    return text


def main(arguments: Sequence[str]) -> int:
    """Makes the sections of the document anew."""
    path = Path(arguments[0]) if arguments else PATH
    path.write_text(updated(path.read_text("utf-8")), "utf-8")
    return 0


def _base(one: Behaviour) -> Behaviour | None:
    """The behaviour that a variant mostly agrees with."""
    for other in BEHAVIOURS.values():
        if other is not one and other.facts and one.name.startswith(f"{other.name}-"):
            return other
    return None


def _text(text: str) -> str:
    return text.replace("``", "`").replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
