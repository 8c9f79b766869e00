"""The Dockerfiles of workers and templates: read here, their steps run here without Docker, and built where it is."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.pipelines.write_metadata import TEMPLATES

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "pipelines" / "containers"
PINNED = dict(
    line.split("==") for line in (FOLDER / "requirements-3.11.txt").read_text().splitlines() if line[0] != "#"
)


def instructions(name: str, **arguments: str) -> Iterator[tuple[str, list[str], str]]:
    """The instructions of a Dockerfile, with its arguments in place: their names, words and texts."""
    text = re.sub(r"^#.*\n", "", (FOLDER / f"{name}.Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    for line in filter(None, text.replace("\\\n", " ").splitlines()):
        instruction, _, rest = line.partition(" ")
        rest = re.sub(r"\$\{(\w+)\}", lambda found: arguments[found[1]], rest)
        yield instruction, shlex.split(rest), rest


IMAGES = [("sdk", {}), *[("flex_template", {"JOB": job, "SDK_IMAGE": "registry/sdk:1"}) for job in TEMPLATES]]


@pytest.mark.parametrize(("name", "arguments"), IMAGES)
def test_what_a_dockerfile_names_is_there_and_pinned(name, arguments):
    found = list(instructions(name, **arguments))
    images = [words[0] for instruction, words, _ in found if instruction == "FROM"]
    images += [
        words[0].partition("=")[2] for kind, words, _ in found if kind == "COPY" and words[0].startswith("--from")
    ]
    for image in images:
        assert re.search(r":(?!latest$)[\w.-]*\d[\w.-]*$", image), f"{image} has no version"
    for instruction, words, _ in found:
        assert instruction in ("FROM", "ARG", "WORKDIR", "COPY", "RUN", "ENV", "ENTRYPOINT")
        if instruction == "COPY" and not words[0].startswith("--from"):
            assert all((ROOT / source).exists() for source in words[:-1]), words
    assert not re.search("secret|password|token|credential", str(found), re.IGNORECASE)


def test_the_images_have_what_the_package_requires_and_beam_of_one_version():
    for text in requires("dicomweb_io") or ():
        requirement = Requirement(text)
        if requirement.marker is None or requirement.marker.evaluate({"extra": "", "python_version": "3.11"}):
            assert requirement.specifier.contains(PINNED[requirement.name]), text
    (beam,) = (words[0] for _, words, _ in instructions("sdk") if "_sdk:" in words[0])
    assert beam.endswith(f"beam_python3.11_sdk:{PINNED['apache-beam']}")


def built_here(name: str, root: Path, python: Path, **arguments: str) -> dict[str, str]:
    """Does what a Dockerfile says in a folder, without its base images; gives its environment."""
    current, environment = root, dict[str, str]()
    for instruction, words, text in instructions(name, **arguments):
        if instruction == "WORKDIR":
            current = root / words[0].lstrip("/")
            current.mkdir(parents=True)
        elif instruction == "ENV":
            environment.update(word.split("=", 1) for word in words)
        elif instruction == "COPY" and not words[0].startswith("--from"):
            target = root / words[-1].lstrip("/") if words[-1].startswith("/") else current / words[-1]
            for source in words[:-1]:
                if (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, target, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    to = target / Path(source).name if words[-1].endswith("/") else target
                    to.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(ROOT / source, to)
        elif instruction == "RUN":
            step = text.replace("cd / ", f"cd {root} ").replace(" /template/", f" {root}/template/")
            path = f"{python.parent}:{os.environ['PATH']}"
            unset = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
            subprocess.run(step, shell=True, cwd=current, env={**unset, "PATH": path, **environment}, check=True)
    return environment


@pytest.mark.long
@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the images have Python 3.11")
def test_the_steps_of_the_images_run_in_an_empty_environment(tmp_path):
    venv.create(tmp_path / "python", with_pip=True)
    python = tmp_path / "python" / "bin" / "python"
    built_here("sdk", tmp_path, python)
    environment = built_here("flex_template", tmp_path, python, JOB="transfer", SDK_IMAGE="")
    job = tmp_path / environment["FLEX_TEMPLATE_PYTHON_PY_FILE"].lstrip("/")
    source, destination = tmp_path / "source", tmp_path / "destination"
    make = "import sys; from dicomweb_io.testing.samples import make_study; make_study(sys.argv[1], instances=3)"
    subprocess.run([python, "-c", make, source], cwd=tmp_path, check=True)
    subprocess.run([python, job, f"--source={source}", f"--destination={destination}"], cwd=tmp_path, check=True)
    assert len(list(destination.rglob("*.dcm"))) == 3


@pytest.mark.long
def test_docker_builds_the_images(tmp_path):
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "info"], capture_output=True).returncode != 0:
        pytest.skip("no Docker engine answers: `docker info`")
    tags = {name: f"dicomweb-io-{name.replace('_', '-')}:{os.getpid()}" for name in ("sdk", "flex_template")}
    try:
        for name, tag in tags.items():
            command = [docker, "build", "-q", "-f", FOLDER / f"{name}.Dockerfile", "-t", tag]
            if name == "flex_template":
                command += ["--build-arg", f"SDK_IMAGE={tags['sdk']}"]
            subprocess.run([*command, ROOT], check=True)
    finally:
        subprocess.run([docker, "image", "rm", *tags.values()], capture_output=True)
