"""docs/streaming-yaml-runners.md: its Python, YAML and shell examples run; its links and methods exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import get_args

import pytest
import yaml
from apache_beam.yaml import main as beam_yaml

from dicomweb_io.changes import ChangeMethod
from dicomweb_io.testing.samples import make_study
from dicomweb_io.transforms import yaml as providers
from pipelines import watch

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs/streaming-yaml-runners.md").read_text(encoding="utf-8")
ADDRESS = "https://pacs.example/dicom-web"


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)


def replaced(text, values):
    """The example with other values; each must be in it."""
    for old, new in values.items():
        assert old in text
        text = text.replace(old, new)
    return text


@pytest.fixture
def archive(tmp_path):
    """A folder with two instances."""
    make_study(tmp_path / "archive", instances=2, size=200)
    return tmp_path / "archive"


def copied(folder):
    return sorted(path.read_bytes() for path in folder.rglob("*.dcm"))


def run(code):
    exec(compile(code, "example", "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize(
    ("number", "options"),
    [
        (0, {"interval=30": 'interval=30, start="all", max_polls=1', "/data/new": "PLACE"}),
        (
            1,
            {
                "quiet=600, interval=60": 'quiet=1e-6, interval=0.01, start="all", max_polls=2',
                "/data/complete": "PLACE",
            },
        ),
    ],
)
def test_watching_an_archive(serve, archive, tmp_path, number, options):
    code = replaced(
        blocks("python")[number],
        {
            '["--runner=PrismRunner", "--streaming"]': '["--runner=FnApiRunner"]',
            **options,
            ADDRESS: serve(archive).url,
        },
    ).replace("PLACE", str(tmp_path / "new"))
    run(code)
    assert copied(tmp_path / "new") == copied(archive)


def test_notifications(serve, archive, tmp_path):
    store = "projects/p/locations/l/datasets/d/dicomStores/s/dicomWeb/"
    server = serve(archive)
    paths = [f"{store}studies/{row['0020000D']['Value'][0]}" for row in server.archive.search_for_studies()]
    messages = f"beam.Create({paths!r})"
    code = replaced(
        blocks("python")[2],
        {
            'ReadFromPubSub(subscription="projects/me/subscriptions/new-instances", with_attributes=True)': messages,
            "beam.Pipeline()": 'beam.Pipeline(runner="FnApiRunner")',
            ADDRESS: server.url,
            "/data/new": str(tmp_path / "new"),
        },
    )
    run(code)
    assert copied(tmp_path / "new") == copied(archive)


@pytest.mark.parametrize(("number", "place"), [(0, "/data/ct"), (1, "/data/copy")])
def test_beam_yaml(serve, archive, tmp_path, monkeypatch, number, place):
    monkeypatch.setenv("PACS_TOKEN", "a-token")
    make_study(tmp_path / "new", instances=1, size=200)
    text = replaced(
        blocks("yaml")[number],
        {
            "PATH/dicomweb_io/transforms/yaml": providers.__path__[0],
            ADDRESS: serve(archive, auth="a-token").url,
            place: str(tmp_path / "new"),
        },
    )
    beam_yaml.run(["--runner=FnApiRunner", f"--yaml_pipeline={text}"])
    assert copied(tmp_path / "new") == copied(archive)


def test_the_types_of_the_table_are_the_providers():
    table = TEXT.partition("| type | input |")[2].partition("\n\n")[0]
    types = {name for line in table.splitlines()[2:] for name in re.findall(r"`(\w+)`", line.split("|")[1])}
    named = yaml.safe_load((Path(providers.__path__[0]) / "providers.yaml").read_text())
    assert types == {name for provider in named for name in provider["transforms"]}


def test_the_watch_job(serve, archive, tmp_path):
    command = shlex.split(blocks("sh")[0])
    assert command[:3] == ["python", "-m", "pipelines.watch"]
    values = {ADDRESS: serve(archive).url, "/data/new": str(tmp_path / "new"), "watch.json": str(tmp_path / "at.json")}
    assert set(values) <= set(command)
    assert watch.main([values.get(word, word) for word in command[3:]] + ["--start", "all", "--max-polls", "1"]) == 0
    assert copied(tmp_path / "new") == copied(archive)


def test_every_method_is_in_the_table():
    heading, *told = re.findall(r"^\| `(\w+)` \|", TEXT.partition("### Notifications")[0], re.MULTILINE)
    assert heading == "method"
    assert {*told, "auto"} == set(get_args(ChangeMethod))
