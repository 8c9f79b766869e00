"""docs/test-server.md: its tables are current, and its examples work."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

from dicomweb_io.cli.arguments import build_parser
from dicomweb_io.testing.faults import faults_of_json
from tests.unit.testing.write_guide import PATH, main, updated


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PATH.read_text("utf-8"), re.DOTALL | re.MULTILINE)


def test_the_tables_are_current(tmp_path):
    text = PATH.read_text("utf-8")
    assert updated(text) == text, "run: python -m tests.unit.testing.write_guide"
    copy = tmp_path / "guide.md"
    copy.write_text(text.replace("| `status` |", "| `outdated` |"), "utf-8")
    assert main([str(copy)]) == 0
    assert copy.read_text("utf-8") == text
    with pytest.raises(ValueError, match="exactly one section"):
        updated("nothing")


def test_the_fixture_and_the_tests_with_it_work(tmp_path):
    for block in blocks("python"):
        name = re.match(r"# (\S+)\n", block)[1]
        (tmp_path / name).write_text(block, "utf-8")
    assert {path.name for path in tmp_path.iterdir()} == {"conftest.py", "test_my_code.py"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={tmp_path}", str(tmp_path)]
    own = {"DICOMWEB_IO_CACHE": f"{tmp_path}/cache", "PYTEST_ADDOPTS": "", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    options = {"capture_output": True, "text": True, "cwd": tmp_path, "timeout": 300}
    result = subprocess.run(command, env={**os.environ, **own}, **options)
    assert result.returncode == 0, result.stdout
    assert "5 passed" in result.stdout


def test_the_faults_file_is_one():
    (text,) = blocks("json")
    faults = faults_of_json(text)
    assert [one.action for one in faults] == [entry["action"] for entry in json.loads(text)]


def test_the_commands_are_understood():
    parser = build_parser()
    commands = [line.partition("#")[0].split()[1:] for line in "".join(blocks("sh")).splitlines() if line]
    assert len(commands) == 5
    for command in commands:
        assert parser.parse_args(command).method == "serve"
    text = PATH.read_text("utf-8")
    known = {option for action in _serve_actions(parser) for option in action.option_strings}
    told = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", text))
    assert told <= known
    unexplained = known - told - {"--help", "-h", "--host", "--fault"}
    assert unexplained == set()


def _serve_actions(parser):
    (methods,) = [action for action in parser._actions if action.dest == "method"]
    return methods.choices["serve"]._actions
