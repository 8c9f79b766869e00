"""Prism, the runner that Beam's DirectRunner prefers, built from Go's module proxy and kept in the user's cache.

``python -m tests.runners.prism`` builds it and prints its path.
"""

from __future__ import annotations

import sys
from pathlib import Path

import apache_beam

from tests.go_programs import ProgramUnavailable, go_program


def prism_binary() -> Path:
    """The path of Prism, which is built if it is not there yet.

    Raises:
        ProgramUnavailable: If there is no Go, or the build fails.
    """
    return go_program("github.com/apache/beam/sdks/v2/go/cmd/prism", f"v{apache_beam.__version__}")


if __name__ == "__main__":
    try:
        print(prism_binary())
    except ProgramUnavailable as error:
        sys.exit(str(error))
