"""Measures the way from a call to the socket: how many modules, functions and nested calls of this package it passes.

The test server runs in another process, so that nothing of it is counted. Run it with ``python docs/trace_calls.py``.
"""

from __future__ import annotations

import multiprocessing
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import dicomweb_io

PACKAGE = str(Path(dicomweb_io.__file__).parent)


class Trace:
    """Counts the calls of a ``with`` block on its own thread, by the frames that belong to the package.

    Attributes:
        calls: Calls of functions of the package.
        functions: The functions that were called.
        depth: Calls of the package that are on the stack when the first byte is written to a socket.
        path: Their names, from the outermost to the socket.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.functions: set[CodeType] = set()
        self.depth = 0
        self.path: list[str] = []

    @property
    def modules(self) -> list[str]:
        """The modules that the functions belong to."""
        return sorted({module_of(code) for code in self.functions})

    def __enter__(self) -> Trace:
        sys.setprofile(self._event)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _event(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            self.calls += 1
            self.functions.add(frame.f_code)
        elif event == "c_call" and not self.depth and is_write(argument):
            self.path = [
                f"{module_of(code)}.{code.co_qualname if sys.version_info >= (3, 11) else code.co_name}"
                for code in reversed(list(stack_of(frame)))
                if code.co_filename.startswith(PACKAGE)
            ]
            self.depth = len(self.path)


def is_write(function: Any) -> bool:
    """Whether a built-in function writes to a socket."""
    return function.__name__ in ("send", "sendall") and isinstance(getattr(function, "__self__", None), socket.socket)


def stack_of(frame: FrameType | None) -> Iterator[CodeType]:
    """The code of a frame and of those that called it."""
    while frame is not None:
        yield frame.f_code
        frame = frame.f_back


def module_of(code: CodeType) -> str:
    """The module of a function of the package, such as ``web.search``."""
    return ".".join(Path(code.co_filename).relative_to(PACKAGE).with_suffix("").parts)


@contextmanager
def server_elsewhere() -> Iterator[tuple[str, dicomweb_io.Resource]]:
    """A test server in another process: its URL, and a reference to an image that it has."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(there,), daemon=True)
    process.start()
    # Then a server that fails to start is the end of the pipe, not a wait without end.
    there.close()
    try:
        yield here.recv()
        here.send(None)
    finally:
        process.join(20)


def _serve(connection: Connection) -> None:
    from dicomweb_io.testing import make_study, serve

    with tempfile.TemporaryDirectory() as folder:
        paths = make_study(folder, instances=3)
        with serve(folder) as server:
            connection.send((server.url, dicomweb_io.Instance.from_path(paths[0]).reference))
            connection.recv()


def ways(url: str, image: dicomweb_io.Resource) -> dict[str, Callable[[dicomweb_io.DICOMwebClient], object]]:
    """The calls to measure, by name."""
    uids = (image.study_instance_uid, str(image.series_instance_uid), str(image.sop_instance_uid))
    return {
        "search_for_studies": lambda client: client.search_for_studies(),
        "iter_search_for_studies": lambda client: list(client.iter_search_for_studies()),
        "retrieve_instance_metadata": lambda client: client.retrieve_instance_metadata(*uids),
        "iter_instances": lambda client: list(client.iter_instances(image)),
        "retrieve_instance_frames": lambda client: client.retrieve_instance_frames(*uids, [1]),
    }


def main() -> None:
    """Prints a table, and the path to the socket for each call that is named on the command line."""
    wanted = sys.argv[1:]
    print(f"{'call':32}{'modules':>8}{'functions':>10}{'calls':>7}{'depth':>6}")
    with server_elsewhere() as (url, image):
        for name, call in ways(url, image).items():
            if wanted and name not in wanted:
                continue
            # A first client loads what is loaded late; the second has its own connections.
            for measured in (False, True):
                with Trace() if measured else contextmanager(lambda: iter([None]))() as trace:
                    client = dicomweb_io.DICOMwebClient(url)
                    call(client)
                client.close()
            print(f"{name:32}{len(trace.modules):8}{len(trace.functions):10}{trace.calls:7}{trace.depth:6}")
            if wanted:
                print(*(f"  module {module}" for module in trace.modules), sep="\n")
                print(*(f"  {step}" for step in trace.path), sep="\n")


if __name__ == "__main__":
    assert threading.current_thread() is threading.main_thread()  # noqa: S101 - sys.setprofile is of one thread
    main()
