"""The command line examples of docs/user-guide.rst, run by a shell against the test server, and their output.

The shell runs what the guide shows, line continuations, ``$(…)`` and ``*`` included; only the addresses and UIDs are
replaced, ``dicomweb-io`` stands for ``python -m dicomweb_io``, and ``gcloud`` prints a token.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pydicom
import pytest

from dicomweb_io.elements import Instance, Resource

GUIDE = Path(__file__).parents[2] / "docs" / "user-guide.rst"
EXAMPLES = [
    textwrap.dedent(found).strip()
    for found in re.findall(
        r"^\.\. code-block:: none\n\n((?:(?:    .*)?\n)+)", GUIDE.read_text(encoding="utf-8") + "\n", re.MULTILINE
    )
]
ORIGINAL_EXAMPLES = 6

STUDY = "1.2.826.0.1.3680043.8.1055.1.20111103111148288.98361414.79379639"
SERIES = "1.2.826.0.1.3680043.8.1055.1.20111103111208937.49685336.24517034"
INSTANCE = "1.2.826.0.1.3680043.8.1055.1.20111103111208937.40440871.13152534"
GOOGLE = (
    "https://healthcare.googleapis.com/v1beta1/projects/MYPROJECT/locations/us-central1/datasets/MYDATASET/"
    "dicomStores/MYDICOMSTORE/dicomWeb"
)


def example(*words: str) -> str:
    """The one example that has all these words."""
    (found,) = (text for text in EXAMPLES if set(words) == set(text.split()) & {*KNOWN})
    return found


KNOWN = {"search", "retrieve", "store", "metadata", "full", "frames", "--dicomize"}


def shell(command: str, folder: Path, *, more: str = "") -> subprocess.CompletedProcess[bytes]:
    """Runs an example as a user would, in a folder."""
    prepared = f'dicomweb-io() {{ "{sys.executable}" -m dicomweb_io "$@"; }}\n'
    prepared += '[ -z "$TEST_TOKEN" ] || gcloud() { [ "$*" = "auth print-access-token" ] && echo "$TEST_TOKEN"; }\n'
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "TEST_TOKEN": more}
    return subprocess.run(
        ["bash", "-c", prepared + command], cwd=folder, env=environment, capture_output=True, check=False, timeout=60
    )


@pytest.fixture
def run(serve, filled_folder, content, tmp_path) -> Any:
    """Runs an example on a server with prefixes that has the guide's study, and gives what it prints."""
    url = serve(filled_folder, behaviour="dicomcloud").url
    uids = dict(zip((STUDY, SERIES, INSTANCE), content.loop.uids, strict=True))

    def execute(command: str, more: str = "") -> bytes:
        for old, new in {"https://dicomcloud.azurewebsites.net": url, **uids}.items():
            command = command.replace(old, new)
        result = shell(f"{command} {more}", tmp_path)
        assert result.returncode == 0, result.stderr
        return result.stdout

    return execute


def test_no_example_of_the_original_guide_is_missing():
    assert len(EXAMPLES) == ORIGINAL_EXAMPLES
    assert all(text.startswith("dicomweb-io ") for text in EXAMPLES)


def test_search(run, content):
    # All of them, although this server gives twelve at once.
    rows = map(json.loads, run(example("search")).splitlines())
    assert {row["0020000D"]["Value"][0] for row in rows} == content.uids("study")


def test_metadata(run, content):
    assert [Resource.of(row) for row in json.loads(run(example("retrieve", "metadata")))] == [content.loop.reference]


def test_metadata_for_people(run, content):
    text = run(example("retrieve", "metadata", "--dicomize")).decode()
    assert f"SOP Instance UID                    UI: {content.loop.uids[2]}" in text


def test_whole_files(run, content, tmp_path):
    command = example("retrieve", "full")
    # Without a place for them nothing is retrieved: what there is is listed.
    assert json.loads(run(command)) == content.loop.reference.to_dict()
    run(command, "--save")
    (saved,) = tmp_path.glob("*.dcm")
    assert saved.name == f"{content.loop.uids[2]}.dcm"
    assert saved.read_bytes() == content.loop.content
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_frames(run, content, tmp_path):
    command = example("retrieve", "frames")
    assert json.loads(run(command)) == {**content.loop.reference.to_dict(), "frames": [1]}
    run(command, "--save")
    assert (tmp_path / f"{content.loop.uids[2]}_1.jpg").read_bytes() == content.loop.frames()[0]


def test_store(serve, make_image, tmp_path):
    files = tmp_path / "dicomfiles"
    files.mkdir()
    contents = [make_image(1, 0, number, "command line") for number in (1, 2, 3)]
    for number, one in enumerate(contents):
        (files / f"{number} with a space.dcm").write_bytes(one)
    server = serve(tmp_path / "archive", behaviour="google", auth="the-token")
    command = example("store").replace(GOOGLE, server.url)
    assert command != example("store")
    result = shell(command, tmp_path, more="the-token")
    assert result.returncode == 0, result.stderr
    outcomes = [json.loads(line) for line in result.stdout.splitlines()]
    assert [outcome["outcome"] for outcome in outcomes] == ["stored"] * 3
    references = [Resource.of(outcome["reference"]) for outcome in outcomes]
    assert references == [Instance.from_bytes(one).reference for one in contents]
    stored = [pydicom.dcmread(path) for path in (tmp_path / "archive").rglob("*.dcm")]
    assert {str(dataset.SOPInstanceUID) for dataset in stored} == {one.sop_instance_uid for one in references}
    refused = shell(command, tmp_path, more="another-token")
    assert refused.returncode == 1
    assert b"401" in refused.stderr
    assert b"another-token" not in refused.stderr + refused.stdout
