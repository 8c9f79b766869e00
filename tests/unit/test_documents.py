"""The documents for readers and contributors: links and paths lead somewhere, examples run, changelog fragments fit."""

from __future__ import annotations

import configparser
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from pydicom.data import get_testdata_file

from dicomweb_io import DICOMfileClient
from dicomweb_io.cli import main

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("benchmarks/*.md")])
FRAGMENTS = sorted((ROOT / "changes").iterdir())
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
RUN_BY_CI = {
    name
    for names in re.findall(r" -e ([\w,-]+)", (ROOT / ".ci/run").read_text(encoding="utf-8"))
    for name in names.split(",")
}
KINDS = ("added", "changed", "deprecated", "removed", "fixed", "security")


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def anchors(path: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = document.parent / name if name else document
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "docs/architecture.md"])
def test_paths_and_environments_exist(name: str) -> None:
    """Each path in backticks that begins with a folder of the repository, and each tox environment."""
    text = text_of(name)
    paths = re.findall(
        r"`((?:dicomweb_io|pipelines|tests|docs|benchmarks|changes|\.ci|\.github)/[\w./*-]*)(?:::\w+)?`", text
    )
    assert len(paths) > 20
    assert [path for path in paths if "NAME" not in path and not list(ROOT.glob(path))] == []
    config = text_of("tox.ini")
    for environment in re.findall(r"tox (?:-q )?-e ([\w,-]+)", text):
        for one in environment.split(","):
            assert f"[testenv:{one}]" in config or re.fullmatch("test|(py31[0-3]-)?coverage|py31[0-3]", one), one


def test_recipes_name_what_exists() -> None:
    """Each Python name in backticks in the recipes is one of the code."""
    recipes = text_of("CONTRIBUTING.md").partition("## Recipes")[2].partition("## Documents")[0]
    names = set(re.findall(r"`(\w+_\w+|[A-Z][a-z]\w+|[A-Z_]{5,})`", recipes))
    assert len(names) > 20
    code = "".join(
        path.read_text(encoding="utf-8")
        for folder in ("dicomweb_io", "pipelines", "tests")
        for path in (ROOT / folder).rglob("*.py")
        if path != Path(__file__)
    )
    assert [name for name in sorted(names) if "NAME" not in name and not re.search(rf"\b{name}\b", code)] == []


def test_the_map_names_every_module_in_its_layer() -> None:
    """The table of docs/architecture.md has each module and folder of the package, with its layer in pyproject.toml."""
    told = {}
    for line in ARCHITECTURE.partition("| layer | module |")[2].partition("\n\n")[0].splitlines()[2:]:
        _, layer, modules, _ = line.split("|", 3)
        told |= {name: int(layer) for name in re.findall(r"`(\w+)(?:\.py|/)`", modules)}
    layers = re.search(r"^layers = \[\n(.*?)^\]", text_of("pyproject.toml"), re.DOTALL | re.MULTILINE)
    assert layers is not None
    checked = re.findall(r'"(.*)"', layers[1])
    expected = {name: number for number, names in enumerate(checked, start=1) for name in names.split(" | ")}
    assert told == {name: layer for name, layer in expected.items() if name != "_version"}


def test_the_way_to_the_socket_is_as_short_as_told() -> None:
    """The figures of docs/architecture.md are upper bounds of what docs/trace_calls.py measures."""
    command = [sys.executable, str(ROOT / "docs/trace_calls.py")]
    measured = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, timeout=120).stdout
    row = r"^\| `(\w+)` \| (\d+) \| \d+ \| \d+ \| (\d+) \|$"
    told = {name: (int(modules), int(depth)) for name, modules, depth in re.findall(row, ARCHITECTURE, re.MULTILINE)}
    lines = [line.split() for line in measured.splitlines()[1:]]
    assert {line[0] for line in lines} == set(told)
    for name, modules, _, _, depth in lines:
        assert int(modules) <= told[name][0], name
        assert int(depth) <= told[name][1], name


def test_the_examples_of_a_folder_run(tmp_path: Path) -> None:
    blocks = re.findall(r"^```(python|sh)\n(.*?)^```$", text_of("docs/file-endpoint.md"), re.DOTALL | re.MULTILINE)
    names: dict[str, object] = {}
    ct = str(get_testdata_file("CT_small.dcm"))
    source = str(Path(ct).with_name("dicomdirtests"))
    for kind, block in blocks:
        for written, meant in (("/data", str(tmp_path)), ("image.dcm", ct), ("https://pacs.example/dicom-web", source)):
            block = block.replace(written, meant)
        if kind == "python":
            exec(block, names)
        else:
            assert main(shlex.split(block.replace("\\\n", ""))[1:]) == 0
    assert isinstance(names["client"], DICOMfileClient)
    assert (tmp_path / "by-patient/1CT1/2004/CT/0001.dcm").exists()
    assert (tmp_path / "by-patient/98890234/2003-05-05_Carotids/1_MR/0001.dcm").exists()


def test_the_objects_for_kubernetes_fit_together() -> None:
    """The command submits to the service, whose jobs go to the cluster, whose pods have a pool of workers."""
    text = re.sub(r"^   ", "", text_of("docs/runners/kubernetes.md"), flags=re.MULTILINE)
    blocks = dict(re.findall(r"^```(yaml|sh)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE))
    cluster, server, service = yaml.safe_load_all(blocks["yaml"])
    main, workers = cluster["spec"]["taskManager"]["podTemplate"]["spec"]["containers"]
    assert (main["name"], workers["args"]) == ("flink-main-container", ["--worker_pool"])
    assert workers["image"] in text.partition("```")[0]
    [job_server] = server["spec"]["template"]["spec"]["containers"]
    assert cluster["spec"]["image"].startswith(f"flink:{re.findall('flink(1[.][0-9]+)', job_server['image'])[0]}-")
    assert f"--flink-master={cluster['metadata']['name']}-rest:8081" in job_server["args"]
    ports = {port["containerPort"] for port in job_server["ports"]}
    assert {port["port"] for port in service["spec"]["ports"]} == ports
    assert service["spec"]["selector"] == server["spec"]["template"]["metadata"]["labels"]
    words = shlex.split(blocks["sh"].replace("\\\n", ""))
    options = dict(zip(words[3::2], words[4::2], strict=True))
    name, _, port = options["--job_endpoint"].partition(":")
    assert name == service["metadata"]["name"]
    assert int(port) in ports
    assert options["--environment_config"] == f"localhost:{workers['ports'][0]['containerPort']}"
    assert options["--source-token-env"] in [variable["name"] for variable in workers["env"]]


@pytest.mark.parametrize("path", FRAGMENTS, ids=lambda path: path.name)
def test_changelog_fragments_fit(path: Path) -> None:
    """CONTRIBUTING.md says how a fragment is named and written."""
    assert re.fullmatch(rf"[a-z0-9-]+\.({'|'.join(KINDS)})\.md", path.name), f"expected NAME.KIND.md, KIND of {KINDS}"
    text = path.read_text(encoding="utf-8")
    assert re.fullmatch(r"[A-Z`].*\.\n", text, re.DOTALL), "expected sentences, without a heading or a list"
    assert max(map(len, text.splitlines())) <= 120


def test_hooks_run_what_continuous_integration_runs() -> None:
    (repository,) = yaml.safe_load(text_of(".pre-commit-config.yaml"))["repos"]
    for hook in repository["hooks"]:
        assert hook["entry"].removeprefix(".venv/bin/tox -q -e ") in RUN_BY_CI


# A part of others, the parts of `hard`, and what takes half an hour.
NOT_BY_CI = {"quick", "coverage", "security", "faults", "slow", "long"}


def test_continuous_integration_runs_every_environment() -> None:
    config = configparser.ConfigParser(interpolation=None)
    config.read(ROOT / "tox.ini", encoding="utf-8")
    environments = {name.partition(":")[2] for name in config.sections()} - {"", "py3{10,11,12,13}"}
    assert environments - NOT_BY_CI == RUN_BY_CI - {"test", "py310", "py313"}
    told = re.findall(r"^\| `tox -e ([\w,-]+)", text_of("CONTRIBUTING.md"), re.MULTILINE)
    assert environments - set(told) == {"hard"}
    # Tests of the cloud are collected where its packages are.
    with_cloud = {name: options for name, options in config.items() if " tests/cloud " in options.get("commands", "")}
    assert set(with_cloud) == {"testenv:dataflow", "testenv:long"}
    assert all("gcp" in options["deps"] or "testenv:dataflow" in options["deps"] for options in with_cloud.values())


@pytest.mark.parametrize("path", sorted(ROOT.glob(".github/ISSUE_TEMPLATE/*_*.yml")), ids=lambda path: path.name)
def test_issue_forms_are_forms(path: Path) -> None:
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert set(form) == {"name", "description", "labels", "body"}
    for item in form["body"]:
        assert item["type"] in ("markdown", "textarea", "input", "dropdown")
        assert item["attributes"].get("value" if item["type"] == "markdown" else "label")


def test_the_examples_of_sizing_give_what_stands_below_them(capsys: pytest.CaptureFixture[str]) -> None:
    examples = re.findall(
        r"^```python\n(.*?)^```\n\n```text\n(.*?)^```", text_of("docs/runners/sizing.md"), re.M | re.S
    )
    assert len(examples) == 2
    for code, printed in examples:
        exec(code, {})
        assert capsys.readouterr().out == printed
