"""The command line: ``dicomweb-io``, also ``python -m dicomweb_io``.

Nothing is imported here that takes time: Ctrl-C ends the process in one sentence from its first moment on.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

_GRACE = 5.0
_AFTERWARDS = {
    "copy": "the same command goes on with what is missing",
    "store": "with --on-existing skip, the same command goes on with what is missing",
    "retrieve": "each file that was saved is complete",
    "watch": "the same command goes on where it was",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        argv: The arguments; by default those of the process, which Ctrl-C then ends without waiting for its threads.

    Returns:
        The exit code: 0 if everything asked for was done, 1 if not, 2 for a wrong use, 130 after Ctrl-C.
    """
    before = signal.getsignal(signal.SIGINT)
    owns_process = argv is None and before is signal.default_int_handler
    words = sys.argv[1:] if argv is None else argv
    if owns_process:
        signal.signal(signal.SIGINT, lambda number, frame: _stop(words))
    try:
        from dicomweb_io.cli.run import run

        return run(argv)
    except KeyboardInterrupt as error:
        print(f"dicomweb-io: {error}" if str(error) else _sentence(words), file=sys.stderr)
        # Threads that wait for a server do not keep the process. If the module is not there yet, there are none.
        end_process = getattr(sys.modules.get("dicomweb_io.pool"), "end_process", None)
        if owns_process and end_process is not None:
            end_process(130)
        return 130
    finally:
        if owns_process:
            signal.signal(signal.SIGINT, before)


def _stop(words: Sequence[str]) -> NoReturn:
    """Ends the command: with some time to clean up, or at once if it is asked to a second time."""
    signal.signal(signal.SIGINT, lambda number, frame: _leave(words))
    timer = threading.Timer(_GRACE, _leave, (words,))
    timer.daemon = True
    timer.start()
    raise KeyboardInterrupt


def _leave(words: Sequence[str]) -> NoReturn:
    """Ends the process at once."""
    with suppress(OSError, ValueError):
        sys.stdout.flush()
    with suppress(OSError, ValueError):
        # A display of progress hides the cursor.
        sys.stderr.write(("\x1b[?25h\r\x1b[K" if sys.stderr.isatty() else "") + _sentence(words) + "\n")
        sys.stderr.flush()
    os._exit(130)


def _sentence(words: Sequence[str]) -> str:
    then = next((f"; {_AFTERWARDS[word]}" for word in words if word in _AFTERWARDS), "")
    return f"dicomweb-io: interrupted{then}"
