"""What the jobs share: how their options and Beam's are parsed, and which runners work on this machine."""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, cast

import apache_beam as beam
from apache_beam.options.pipeline_options import GoogleCloudOptions, PipelineOptions, StandardOptions
from apache_beam.runners.runner import PipelineRunner

from dicomweb_io.endpoint import Endpoint
from dicomweb_io.errors import plain_text
from dicomweb_io.failures import RECOVERABLE
from dicomweb_io.listing import ListFile, ListLine
from dicomweb_io.options import (
    UsageError,
    add_archive_options,
    add_authentication_options,
    check_given_once,
    endpoint_from,
)
from dicomweb_io.servers import suggestion
from dicomweb_io.transfer import TransferJob
from dicomweb_io.transforms.read_write import ReadLines

_PATIENCE = 2.0


class Arguments:
    """Adds arguments to a parser unless they are there: Beam puts those of all jobs of a process into one parser."""

    def __init__(self, parser: Any) -> None:
        self._parser = parser

    def add_argument(self, *names: str, **options: Any) -> None:
        """As `argparse.ArgumentParser.add_argument`."""
        if names[-1] not in self._parser._option_string_actions:
            self._parser.add_argument(*names, **options)


def add_endpoint_arguments(parser: Arguments, *roles: str) -> None:
    """Adds ``--source`` and ``--destination``, or the roles that are named, with the options of their endpoints.

    Secrets are never arguments: other users of a machine can read a command line. What is named, variables and files,
    is read by the workers.
    """
    whats = {"source": "where to read from", "destination": "where to copy to"}
    for role, what in ((role, whats[role]) for role in roles or whats):
        parser.add_argument(
            f"--{role}", metavar="URL_OR_PATH", help=f"{what}: a DICOMweb service, a folder, or any fsspec URL"
        )
        add_archive_options(parser, role)
        add_authentication_options(parser, role)
        parser.add_argument(
            f"--{role}-max-in-flight",
            metavar="NUMBER",
            type=int,
            default=8,
            help=f"requests at once to the {role} from each worker process (default: 8)",
        )


def endpoints_from(args: argparse.Namespace) -> tuple[Endpoint, Endpoint]:
    """The source and the destination of parsed arguments.

    Raises:
        UsageError: If one is missing, or its options contradict each other.
    """
    source, destination = (endpoint_from(args, role=role, workers_elsewhere=True) for role in ("source", "destination"))
    return source, destination


def parse(options_class: type[PipelineOptions], prog: str, description: str, argv: Sequence[str] | None) -> Any:
    """Parses the options of a job and those of Beam.

    Args:
        options_class: The job's options.
        prog: The name for messages.
        description: The help text.
        argv: The arguments, by default those of the process.

    Returns:
        The parsed options of the job, and Beam's. The runner is FnApiRunner, in process and without any download,
        unless ``--runner`` says otherwise.

    Raises:
        UsageError: If an option or the runner is unknown.
    """
    arguments = as_options(options_class, sys.argv[1:] if argv is None else argv)
    helper = argparse.ArgumentParser(
        prog=prog,
        usage="%(prog)s [options]",
        description=description,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        conflict_handler="resolve",
    )
    own = helper.add_argument_group("The job", "The runner is FnApiRunner unless --runner, below, names another.")
    for beam_options in PipelineOptions.__subclasses__():
        # The options of other jobs may be imported too.
        if beam_options.__module__.startswith("apache_beam."):
            beam_options._add_argparse_args(cast(Any, helper.add_argument_group(f"Beam: {beam_options.__name__}")))
    options_class._add_argparse_args(cast(Any, own))
    _, unknown = helper.parse_known_args(arguments)
    parser = argparse.ArgumentParser(prog=prog, allow_abbrev=False, add_help=False)
    options_class._add_argparse_args(cast(Any, parser))
    args, rest = parser.parse_known_args(arguments)
    check_given_once(parser, arguments)
    options = PipelineOptions(rest)
    standard = options.view_as(StandardOptions)
    standard.runner = "FnApiRunner" if standard.runner is None else _spelled(standard.runner)
    if unknown and is_local(options):
        # A local runner takes no options but Beam's own: any remaining option is a mistake.
        raise UsageError(f"unknown arguments: {' '.join(_shown(unknown, helper._option_string_actions))}")
    return args, options


def job_options(options_class: type[PipelineOptions]) -> dict[str, argparse.Action]:
    """The options of a job by their names with underscores: as a template's parameters, whose values are all texts.

    An option of Beam that has the same name with underscores keeps it.
    """
    parser, of_beam = argparse.ArgumentParser(add_help=False), argparse.ArgumentParser(conflict_handler="resolve")
    options_class._add_argparse_args(cast(Any, parser))
    for beam_options in PipelineOptions.__subclasses__():
        if beam_options.__module__.startswith("apache_beam."):
            beam_options._add_argparse_args(cast(Any, of_beam))
    named = {action.option_strings[-1][2:].replace("-", "_"): action for action in parser._actions}
    return {name: action for name, action in named.items() if f"--{name}" not in of_beam._option_string_actions}


def as_options(options_class: type[PipelineOptions], arguments: Sequence[str]) -> list[str]:
    """A job's arguments in its own spelling.

    Launchers of templates know only ``--NAME=VALUE``, each once. So an underscore stands for a hyphen, a flag may have
    the value ``true`` or ``false``, and what may be repeated may be a JSON list:
    ``--filter=["Modality=CT","PatientID=1"]``.

    Raises:
        UsageError: If a flag has another value.
    """
    options, result = job_options(options_class), list[str]()
    for argument in arguments:
        name, equals, value = argument.partition("=")
        action = options.get(name.removeprefix("--").replace("-", "_")) if name.startswith("--") else None
        if action is None:
            result.append(argument)
            continue
        option = action.option_strings[-1]
        if action.nargs == 0 and equals:
            if value.lower() not in ("true", "false"):
                raise UsageError(f"{option} takes no value but true or false, and {value!r} is neither")
            result += [option] if value.lower() == "true" else []
        elif isinstance(action, argparse._AppendAction) and value.startswith("["):
            result += [f"{option}={item}" for item in _listed(option, value)]
        else:
            result.append(f"{option}{equals}{value}")
    return result


def _listed(option: str, text: str) -> list[str]:
    with suppress(ValueError):
        items = json.loads(text)
        if all(isinstance(item, str) for item in items):
            return cast(list[str], items)
    raise UsageError(f"{option}: a value that begins with [ is a JSON list of texts, and this one is not valid")


def _shown(unknown: Sequence[str], known: Iterable[str]) -> Iterator[str]:
    """Unknown arguments, with what may have been meant, and without values: one may be a secret."""
    before = ""
    for word in unknown:
        if word.startswith("-"):
            name = word.partition("=")[0]
            close = suggestion(name, known, "(did you mean ").removesuffix("?")
            yield f"{name} {close}?)" if close else name
        elif not before.startswith("-") or "=" in before:
            yield word
        before = word


@contextmanager
def interruptible() -> Iterator[None]:
    """Lets Ctrl-C end a pipeline as a `KeyboardInterrupt`: Beam logs its traceback and makes a RuntimeError of it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    interrupted = threading.Event()

    def stop(number: int, frame: Any) -> None:
        interrupted.set()
        logging.disable()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    except Exception as error:
        if interrupted.is_set():
            raise KeyboardInterrupt from error
        raise
    finally:
        signal.signal(signal.SIGINT, before)
        logging.disable(logging.NOTSET)


def run_job(name: str, work: Callable[[], int], argv: Sequence[str] | None, *, then: str = "", left: str = "") -> int:
    """Runs what a job does, tells what ends it before its time in one line, and returns the exit code.

    Args:
        name: The name of the job.
        work: Does all of it, and returns the exit code.
        argv: The arguments of the job; if they are those of the process, Ctrl-C ends that without waiting for threads.
        then: What can be done after an interrupt.
        left: What an error leaves behind.
    """
    try:
        with interruptible():
            return work()
    except UsageError as error:
        print(f"{name}: {plain_text(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: interrupted{then and '; '}{then}", file=sys.stderr)
        if argv is None:
            end_process(130)
        return 130
    except RECOVERABLE as error:
        print(f"{name}: {left or 'there is no summary'}: {plain_text(str(error))}", file=sys.stderr)
        return 1


def wanted_by(args: argparse.Namespace, options: PipelineOptions, wanted: Any) -> Any:
    """What a job's list names, or the list itself: the workers read it, so that it is no part of the job's graph."""
    if args.input and ("://" in args.input or (is_local(options) and os.path.isfile(args.input))):
        return ListFile(args.input, args.allow_patterns)
    return wanted


def lines_of(pipeline: beam.Pipeline, job: TransferJob) -> Any:
    """The lines of a job's list: read by the workers, or in the job's graph."""
    if isinstance(job.wanted, ListFile):
        return pipeline | "Lines" >> ReadLines(job.wanted)
    return pipeline | "Lines" >> beam.Create(list(job.lines)).with_output_types(ListLine)


def end_process(code: int) -> None:
    """Ends an interrupted process also while its threads wait for a server: Python itself would wait for them.

    What the threads are writing they have a moment to complete.

    Args:
        code: The exit code.
    """
    until = time.monotonic() + _PATIENCE
    mine = threading.current_thread()
    others = [thread for thread in threading.enumerate() if thread is not mine and not thread.daemon]
    with suppress(KeyboardInterrupt):
        for thread in others:
            thread.join(max(0.0, until - time.monotonic()))
    if any(thread.is_alive() for thread in others):
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


def _spelled(runner: str) -> str:
    """The name of a runner as Beam spells it, or the full name of a class; Beam takes ``direct`` for DirectRunner."""
    known = {path.rpartition(".")[2].lower(): path for path in StandardOptions.ALL_KNOWN_RUNNERS}
    path = known.get(runner.lower()) or known.get(f"{runner.lower()}runner") or runner
    module, _, name = path.rpartition(".")
    if not module:
        names = ", ".join(StandardOptions.KNOWN_RUNNER_NAMES)
        raise UsageError(f"--runner {runner!r}: unknown runner (known: {names}, or the full name of a class)")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, TypeError) as error:
        raise UsageError(f"--runner {runner!r}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, PipelineRunner)):
        raise UsageError(f"--runner {runner!r}: {name} is no runner")
    return runner if path is runner else name


def account_path(options: PipelineOptions, scratch: str, job: str) -> str:
    """Where the workers of a job write its account.

    Args:
        options: Beam's options.
        scratch: A directory of this machine.
        job: The name of the job.

    Raises:
        UsageError: If they cannot write to this machine, and there is no other place.
    """
    if is_local(options):
        return os.path.join(scratch, "account.json")
    folder = options.view_as(GoogleCloudOptions).temp_location
    if not folder:
        raise UsageError("this runner's workers cannot write to this machine: give --temp_location (an fsspec URL)")
    return f"{folder.rstrip('/')}/{job}-{os.urandom(8).hex()}-account.json"


def is_local(options: PipelineOptions) -> bool:
    """Whether the job's workers run on this machine."""
    runner = str(options.view_as(StandardOptions).runner).rpartition(".")[2]
    if runner in StandardOptions.LOCAL_RUNNERS:
        return True
    values = options.get_all_options()
    return runner == "PortableRunner" and values.get("job_endpoint") in (None, "embed")
