"""Installs a built sdist and wheel into empty environments and does a little with each: `tox -e release` runs this.

For every Python: import of all public names, the command's version, and a copy from folder to folder. An interpreter
that is not installed is an error if it was asked for by name, or in CI; otherwise it is left out with a word.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from virtualenv import cli_run

PYTHONS = ("3.10", "3.11", "3.12", "3.13")

CHECK = """
import sys
from importlib.metadata import version
from pathlib import Path

import dicomweb_io
from dicomweb_io.testing.samples import make_study

where = Path(dicomweb_io.__file__).parent
assert "site-packages" in where.parts, f"{where} is not what was installed"
assert version("dicomweb_io") == dicomweb_io.__version__
for name in dicomweb_io.__all__:
    getattr(dicomweb_io, name)

import dicomweb_io.ext.gcp, dicomweb_io.transforms, pipelines.transfer, pipelines.watch

assert (where / "py.typed").is_file()
assert list((where / "transforms" / "yaml").glob("*.yaml"))
for name in ("*.Dockerfile", "metadata/*.json", "requirements-*.txt"):
    assert list((where.parent / "pipelines" / "containers").glob(name)), name
make_study(sys.argv[1], instances=3)
"""


def run(*command: str | Path, cwd: Path) -> str:
    """Runs a command outside of the source tree; a failure shows all that it wrote."""
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}\nended with {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def check(distribution: Path, python: str, version: str) -> None:
    """Installs one file for one Python into an empty environment and uses it."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        session = cli_run(["--python", python, "--no-periodic-update", str(folder / "environment")])
        programs = Path(session.creator.script_dir)
        run(programs / "python", "-m", "pip", "install", "-q", distribution.resolve(), cwd=folder)
        run(programs / "python", "-m", "pip", "check", cwd=folder)
        run(programs / "python", "-c", CHECK, folder / "source", cwd=folder)
        told = run(programs / "dicomweb-io", "--version", cwd=folder)
        assert told.split()[-1] == version, told
        run(programs / "dicomweb-io", "copy", folder / "source", folder / "copy", cwd=folder)
        before, after = (
            sorted(path.read_bytes() for path in (folder / name).rglob("*.dcm")) for name in ("source", "copy")
        )
        assert before == after, "the copy differs"
        assert len(after) == 3


def main() -> int:
    """Checks all files of a folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where the sdist and the wheel are")
    parser.add_argument("--python", action="append", metavar="VERSION", help=f"default: {', '.join(PYTHONS)}")
    options = parser.parse_args()
    required = bool(options.python) or os.environ.get("CI", "").lower() not in ("", "0", "false")
    distributions = sorted(path for path in options.folder.iterdir() if path.name.endswith((".whl", ".tar.gz")))
    if [path.suffix for path in distributions] != [".whl", ".gz"] and len(distributions) != 2:
        raise SystemExit(f"{options.folder} should hold one sdist and one wheel, not {distributions}")
    version = distributions[0].name.split("-")[1].removesuffix(".tar.gz")
    passed = 0
    for python in options.python or PYTHONS:
        for distribution in distributions:
            try:
                check(distribution, python, version)
            except RuntimeError as error:
                if required or "failed to find interpreter" not in str(error):
                    raise
                print(f"{python}: left out, since it is not installed ({error})")
                break
            passed += 1
            print(f"{python}: {distribution.name} is installed, imported, and copies", flush=True)
    print(f"{passed} passed, 0 failed")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
