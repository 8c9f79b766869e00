"""One target under atheris, in a process of its own: ``python -m tests.fuzz.runner TARGET CORPUS [options]``."""

from __future__ import annotations

import logging
import sys
import warnings

import atheris

with atheris.instrument_imports(include=["dicomweb_io"]):
    from tests.fuzz.targets import TARGETS


def main() -> None:
    """Fuzzes until the time is over; ends the process."""
    # pydicom tells about odd values, of which there are many here.
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    name = sys.argv.pop(1)
    atheris.Setup(sys.argv, TARGETS[name].check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
