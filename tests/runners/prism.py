"""Prism, the runner that Beam's DirectRunner prefers, built from Go's module proxy and kept in the user's cache.

``python -m tests.runners.prism`` builds it and prints its path.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import apache_beam
from apache_beam.options.pipeline_options import PipelineOptions

VERSION = apache_beam.__version__
PACKAGE = "github.com/apache/beam/sdks/v2/go/cmd/prism"
BUILD_SECONDS = 1200
"""The build takes about 90 s on two cores with an empty module cache, and 10 s with a full one."""


class PrismUnavailable(Exception):
    """Prism can be neither found nor built; the text says why."""


def cache_directory() -> Path:
    """Where the binary of this Beam's version is kept."""
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(caches) / "dicomweb_io" / "prism" / VERSION


def prism_binary() -> Path:
    """The path of Prism, which is built if it is not there yet.

    Raises:
        PrismUnavailable: If there is no Go, or the build fails.
    """
    directory = cache_directory()
    binary = directory / "prism"
    if binary.exists():
        return binary
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / "lock", "wb") as lock:
        # Several test processes may want it at once.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not binary.exists():
            _build(directory)
    return binary


def _build(directory: Path) -> None:
    go = shutil.which("go")
    if go is None:
        raise PrismUnavailable("there is no 'go' on the PATH to build Prism with")
    command = [go, "install", f"{PACKAGE}@v{VERSION}"]
    environment = {**os.environ, "GOBIN": str(directory), "CGO_ENABLED": "0"}
    # GOFLAGS=-mod=vendor and the like are for modules; this is a program.
    environment.pop("GOFLAGS", None)
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=BUILD_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise PrismUnavailable(f"{' '.join(command)} did not end within {BUILD_SECONDS} s") from error
    if done.returncode != 0 or not (directory / "prism").exists():
        raise PrismUnavailable(f"{' '.join(command)} failed ({done.returncode}): {done.stderr[-2000:].strip()}")


def prism_options(*more: str) -> PipelineOptions:
    """Pipeline options that run a pipeline on Prism."""
    return PipelineOptions(["--runner=PrismRunner", f"--prism_location={prism_binary()}", *more])


if __name__ == "__main__":
    try:
        print(prism_binary())
    except PrismUnavailable as error:
        sys.exit(str(error))
