"""Programs that tests start: built from Go's module proxy, or installed by npm, and kept in the user's cache.

``python -m tests.go_programs PACKAGE VERSION`` builds one of Go's and prints its path.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

BUILD_SECONDS = 1200
"""The largest builds take about 90 s on two cores with an empty module cache, and 10 s with a full one."""


class ProgramUnavailable(Exception):
    """A program can be neither found nor built; the text says why."""


def cache_directory() -> Path:
    """Where all of them are kept: ``NAME/VERSION`` for each."""
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(caches) / "dicomweb_io"


def go_program(package: str, version: str) -> Path:
    """The path of a program of Go, named after the last part of its package, built if it is not there yet.

    Args:
        package: What ``go install`` takes, without the version.
        version: A version with its ``v``.

    Raises:
        ProgramUnavailable: If there is no Go, or the build fails.
    """
    name = package.rpartition("/")[2]
    directory = cache_directory() / name / version.removeprefix("v")
    # GOFLAGS=-mod=vendor and the like are for modules; this is a program.
    environment = {"GOBIN": str(directory), "CGO_ENABLED": "0", "GOFLAGS": ""}
    return built(directory / name, ["go", "install", f"{package}@{version}"], environment)


def built(program: Path, command: Sequence[str], environment: Mapping[str, str] | None = None) -> Path:
    """The path of a program, which a command puts there if it is not there yet.

    Args:
        program: The path.
        command: Builds it; its first word is looked for on the PATH.
        environment: Is added to that of this process.

    Raises:
        ProgramUnavailable: If the command is not there, or fails.
    """
    if program.exists():
        return program
    tool = shutil.which(command[0])
    if tool is None:
        raise ProgramUnavailable(f"there is no '{command[0]}' on the PATH to build {program.name} with")
    said = " ".join(command)
    program.parent.mkdir(parents=True, exist_ok=True)
    with open(cache_directory() / f"{program.name}.lock", "wb") as lock:
        # Several test processes may want it at once.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if program.exists():
            return program
        try:
            done = subprocess.run(
                [tool, *command[1:]],
                env={**os.environ, **(environment or {})},
                capture_output=True,
                text=True,
                timeout=BUILD_SECONDS,
            )
        except subprocess.TimeoutExpired as error:
            raise ProgramUnavailable(f"{said} did not end within {BUILD_SECONDS} s") from error
    if done.returncode != 0 or not program.exists():
        raise ProgramUnavailable(f"{said} failed ({done.returncode}): {done.stderr[-2000:].strip()}")
    return program


if __name__ == "__main__":
    try:
        print(go_program(*sys.argv[1:]))
    except ProgramUnavailable as reason:
        sys.exit(str(reason))
