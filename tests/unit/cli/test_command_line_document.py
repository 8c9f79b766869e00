"""The examples of docs/command-line.md and of the README run, in order, against the test server and a folder."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path

import pydicom
import pytest
from pydicom.data import get_testdata_file

from dicomweb_io.cli import main
from dicomweb_io.cli.arguments import all_parsers, build_parser
from dicomweb_io.testing import serve

TEXT = (Path(__file__).parents[3] / "docs/command-line.md").read_text(encoding="utf-8")
CT = Path(str(get_testdata_file("CT_small.dcm")))
DATASET = pydicom.dcmread(CT)
UIDS = {
    "1.2.3": str(DATASET.StudyInstanceUID),
    "1.2.4": str(DATASET.SeriesInstanceUID),
    "1.2.5": str(DATASET.SOPInstanceUID),
}
README = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(
    r"^```sh\n(.*?)^```$", TEXT + README.partition("## On the command line")[2], re.DOTALL | re.MULTILINE
)


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """What the addresses of the page stand for: a server that asks for a token, and folders."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PACS_TOKEN", "secret")
    monkeypatch.setenv("DICOMWEB_IO_SERVERS", str(tmp_path / "servers.toml"))
    for name in ("archive", "data/dicom", "new"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "ct.dcm").write_bytes(CT.read_bytes())
    (tmp_path / "data/dicom/notes.txt").write_text("not DICOM")
    with serve(tmp_path / "archive", auth="secret") as server:
        saved = f'[pacs]\nurl = "{server.url}"\ntoken-env = "PACS_TOKEN"\n'
        (tmp_path / "servers.toml").write_text(saved)
        yield {"https://pacs.example/dicom-web": server.url, "/data/": f"{tmp_path}/data/"}


@pytest.mark.parametrize("block", BLOCKS, ids=[block.split()[1] for block in BLOCKS])
def test_the_examples_run(block, places, monkeypatch, tmp_path, capsys):
    if "servers add pacs" in block:
        (tmp_path / "servers.toml").unlink()
    for line in block.replace("\\\n", " ").splitlines():
        for old, new in places.items():
            line = line.replace(old, new)
        words = [UIDS.get(word, word) for word in shlex.split(line)]
        if words[0] == "export":
            monkeypatch.setenv(*words[1].split("=", 1))
            continue
        assert words.pop(0) == "dicomweb-io", line
        if ">" in words:
            words = words[: words.index(">")]
        if words[0] == "watch" and "--once" not in words:
            words += ["--max-polls", "1"]
        assert main(words) == 0, (line, capsys.readouterr().err)


def test_a_nightly_refresh_runs(places, tmp_path, capsys):
    """The lines for cron and systemd, three nights each."""
    (cron,) = re.findall(r"^```crontab\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
    service, timer = re.findall(r"^```ini\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
    assert re.fullmatch(r"(\S+ ){5}dicomweb-io .* >> \S+ 2>&1\n", cron)
    for text in (service, timer):
        ConfigParser(delimiters=("=",)).read_string(text)
    (tmp_path / "token").write_text("secret")
    lines = (
        cron.partition("dicomweb-io ")[2].partition(" >>")[0],
        re.findall(r"^ExecStart=dicomweb-io (.*)$", service, re.M)[0],
    )
    for number, line in enumerate(lines):
        for old, new in {**places, "/etc/mirror/token": str(tmp_path / "token")}.items():
            line = line.replace(old, new)
        words = [word.replace("mirror", f"mirror{number}") for word in shlex.split(line)]
        for transferred in (1, 0, 0):
            assert main(words) == 0
            assert json.loads(capsys.readouterr().out)["transferred"] == transferred
        assert len(list((tmp_path / f"data/mirror{number}").rglob("*.dcm"))) == 1


def test_the_page_names_every_command():
    cells = re.findall(r"^\| (.*?) \|", TEXT, re.MULTILINE)
    told = {word for cell in cells for word in re.findall(r"`(\w+)", cell)}
    known = {parser.prog.split()[1] for parser in list(all_parsers(build_parser()))[1:]}
    assert told == known


def test_the_help_of_each_command_has_an_example(capsys):
    for parser in all_parsers(build_parser()):
        if parser.get_default("command") is not None:
            example = re.search(r"Example:\n  dicomweb-io (.+)$", parser.format_help(), re.MULTILINE)
            assert example, f"{parser.prog} --help has no example"
            # It is a command line of this command.
            args = build_parser().parse_args(shlex.split(example[1].partition(" > ")[0]))
            assert args.command == parser.get_default("command")
