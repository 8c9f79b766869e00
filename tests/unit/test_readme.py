"""What the README promises is what continuous integration runs."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands() -> list[str]:
    return re.findall(r"^python3 -m venv \.venv && .*$", README, re.MULTILINE)


def test_there_are_two_commands_and_both_do_all_the_set_up() -> None:
    assert [re.search(r"-e (\w+)$", command)[1] for command in commands()] == ["demo", "test"]  # type: ignore[index]


def test_continuous_integration_runs_the_test_command_word_for_word() -> None:
    assert f"\n{commands()[1]} || exit 1\n" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_continuous_integration_runs_the_oldest_and_the_newest_python_that_are_promised() -> None:
    oldest, newest = (int(minor) for minor in re.search(r"Python 3\.(\d+) to 3\.(\d+)", README).groups())  # type: ignore[union-attr]
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    classifiers = {int(minor) for minor in re.findall(r"Python :: 3\.(\d+)", setup)}
    assert classifiers == set(range(oldest, newest + 1))
    assert f'python_requires=">=3.{oldest}"' in setup
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert re.search(rf"-e py3{newest}\b", script)
    assert re.search(rf"-e py3{oldest}\b", script)
    assert f"(--python 3.{oldest} --python 3.{newest})" in script


def python_blocks() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("block", python_blocks())
def test_the_examples_compile_and_name_only_what_exists(block: str) -> None:
    compile(block, "README.md", "exec")
    for module, names in re.findall(r"^from (\S+) import (.+)$", block, re.MULTILINE):
        imported = __import__(module, fromlist=["*"])
        for name in names.split(","):
            assert hasattr(imported, name.strip()), f"{module}.{name.strip()}"


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#:]+)\)", README))
def test_links_lead_somewhere(link: str) -> None:
    assert (ROOT / link).exists()
