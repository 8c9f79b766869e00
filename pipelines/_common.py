"""What the jobs share: how their options and Beam's are parsed, where their workers are, and how they run to an end."""

from __future__ import annotations

import argparse
import importlib
import json
import logging
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, cast
from urllib.parse import urlsplit

import apache_beam as beam
from apache_beam.options.pipeline_options import (
    DirectOptions,
    GoogleCloudOptions,
    PipelineOptions,
    PortableOptions,
    StandardOptions,
    TestOptions,
)
from apache_beam.runners.runner import PipelineRunner, PipelineState

from dicomweb_io.endpoint import Endpoint
from dicomweb_io.errors import plain_text, safe_url
from dicomweb_io.failures import RECOVERABLE
from dicomweb_io.files.local import is_on_this_machine, local_path
from dicomweb_io.listing import ListFile, ListLine
from dicomweb_io.options import (
    UsageError,
    add_archive_options,
    add_authentication_options,
    brief_error,
    check_given_once,
    check_reach,
    check_remote_results,
    endpoint_from,
    listed,
)
from dicomweb_io.servers import suggestion
from dicomweb_io.spool import PrivateDirectory
from dicomweb_io.transfer import TransferJob
from dicomweb_io.transforms.read_write import ReadLines

_PATIENCE = 2.0
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_BIGQUERY = re.compile(r"bq:(?!//)")
_MAX_IN_GRAPH = 1 << 20
"""The bytes of a list of this machine that may become a part of the graph of a job elsewhere."""

_FILES = (
    *("input", "out", "table", "output", "failures", "summary", "report", "cursor", "spool_directory"),
    *(f"{role}_{file}" for role in ("source", "destination") for file in ("token_file", "ca", "cert")),
)
"""The options that name files, beside those that name archives."""


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
    """The source and the destination of parsed arguments; see `archive_from`."""
    source, destination = (archive_from(args, role) for role in ("source", "destination"))
    return source, destination


def archive_from(args: argparse.Namespace, role: str) -> Endpoint:
    """An archive of parsed arguments; for other processes a folder by its absolute path: they work in other folders.

    Raises:
        UsageError: If it is missing, its options contradict each other, or the workers cannot reach it.
    """
    endpoint = endpoint_from(args, role=role, workers_elsewhere=True)
    if not endpoint.is_web:
        if args.workers_elsewhere:
            check_reach(endpoint.url, f"--{role}")
        _check_memory(args, endpoint.url, f"--{role}")
        return endpoint if args.runs_here else endpoint.replace(url=_absolute(endpoint.url, f"--{role}"))
    if args.workers_elsewhere and (urlsplit(endpoint.url).hostname or "") in _LOOPBACK:
        print(
            f"--{role} {endpoint.safe_url}: each worker looks for this server on its own machine, unless all run here",
            file=sys.stderr,
        )
    return endpoint


def _check_memory(args: argparse.Namespace, place: str, option: str) -> None:
    """Refuses a place in memory that other processes work with: each has its own, and takes it along when it ends."""
    if not args.workers_within and place.rpartition("::")[2].lower().startswith("memory:"):
        raise UsageError(
            f"{option} {safe_url(place)}: each worker process has a memory of its own; give a folder or URL"
        )


def _absolute(place: str, option: str) -> str:
    """A place of this machine by its whole path, which workers in other folders know too; a URL as it is."""
    try:
        return place if place.lower().startswith("file:///") else local_path(place) or place
    except ValueError as error:
        raise UsageError(f"{option} {safe_url(place)}: {error}") from error


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
    own: Any = helper.add_argument_group("The job", "The runner is FnApiRunner unless --runner, below, names another.")
    for beam_options in PipelineOptions.__subclasses__():
        # The options of other jobs may be imported too.
        if beam_options.__module__.startswith("apache_beam."):
            beam_options._add_argparse_args(cast(Any, helper.add_argument_group(f"Beam: {beam_options.__name__}")))
    parser = argparse.ArgumentParser(prog=prog, allow_abbrev=False, add_help=False)
    for group in (own, parser):
        options_class._add_argparse_args(cast(Any, group))
        group.add_argument(
            "--shared-filesystem",
            action="store_true",
            help="workers on other machines see the folders and files of this one, under the same paths",
        )
    _, unknown = helper.parse_known_args(arguments)
    args, rest = parser.parse_known_args(arguments)
    check_given_once(parser, arguments)
    options = PipelineOptions(rest)
    standard = options.view_as(StandardOptions)
    standard.runner = "FnApiRunner" if standard.runner is None else _spelled(standard.runner)
    if unknown and is_in_process(options):
        # A local runner takes no options but Beam's own: any remaining option is a mistake.
        raise UsageError(f"unknown arguments: {' '.join(_shown(unknown, helper._option_string_actions))}")
    args.runs_here = is_local(options)
    args.workers_elsewhere = not (args.shared_filesystem or args.runs_here)
    args.workers_within = args.runs_here and options.view_as(DirectOptions).direct_running_mode != "multi_processing"
    _check_files(args)
    cloud = options.view_as(GoogleCloudOptions)
    if cloud.temp_location:
        cloud.temp_location = _absolute(cloud.temp_location, "--temp_location")
        if not args.workers_elsewhere:
            _check_memory(args, cloud.temp_location, "--temp_location")
    if options.view_as(TestOptions).dry_run and not _is_on(options, "DataflowRunner"):
        raise UsageError(
            "--dry_run is an option of DataflowRunner, which builds the graph and does not submit it; --dry-run of "
            "transfer writes nothing and says what would be copied"
        )
    return args, options


def _check_files(args: argparse.Namespace) -> None:
    """Refuses files that other processes cannot share, and makes paths absolute for workers in other folders."""
    for name in _FILES:
        given, option = getattr(args, name, None), f"--{name.replace('_', '-')}"
        for path in listed(given):
            _check_memory(args, path, option)
        if given and not args.runs_here:
            whole = [_absolute(path, option) if "://" in path else path for path in listed(given)]
            whole = [path if "://" in path or _BIGQUERY.match(path) else os.path.abspath(path) for path in whole]
            setattr(args, name, whole[0] if isinstance(given, str) else whole)


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


def check_run(args: argparse.Namespace, options: PipelineOptions, *, ends_here: bool = False) -> None:
    """Checks, before anything is sent, that the account and the results of a job can be written where they are to be.

    Args:
        args: The job's options.
        options: Beam's options.
        ends_here: Whether this process makes the result of what the workers wrote.

    Raises:
        UsageError: If the job is to run as a stream, or without the process that makes its result; it has no job
            server; workers on other machines have no place for the account; or nothing can be written to another
            filesystem; see `check_remote_results`.
    """
    if _is_on(options, "PortableRunner") and not options.view_as(PortableOptions).job_endpoint:
        raise UsageError("--runner PortableRunner needs its job server: --job_endpoint HOST:PORT")
    no_wait = options.view_as(StandardOptions).no_wait_until_finish and not is_local(options)
    if ends_here and (no_wait or _written_graph(options)):
        raise UsageError(
            "this job's result is put together by the process that starts it, which has to wait for the workers: "
            "leave out --no_wait_until_finish, --template_location and --output_executable_path"
        )
    if options.view_as(StandardOptions).streaming:
        # On Flink with checkpoints the results do not reach the last step, so that the account would be an empty one.
        raise UsageError(
            "--streaming: this job comes to an end, and its account is complete in batch mode only; for a stream use "
            "the transforms WatchForInstances and CopyInstances in your own pipeline"
        )
    temp = options.view_as(GoogleCloudOptions).temp_location
    if not (is_local(options) or temp):
        raise UsageError(
            "the workers of this runner write the account of the job: give --temp_location, a URL that they and this "
            "machine reach (gs://…, s3://…), or a folder with --shared-filesystem"
        )
    if args.workers_elsewhere:
        check_reach(temp, "--temp_location")
    if not (options.view_as(TestOptions).dry_run or _written_graph(options)):
        check_remote_results(args, *([] if is_local(options) else [f"{temp.rstrip('/')}/account"]))


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


def new_pipeline(options: PipelineOptions) -> beam.Pipeline:
    """A pipeline for a job.

    Raises:
        UsageError: If its runner does not accept Beam's options.
    """
    try:
        return beam.Pipeline(options=options)
    except ValueError as error:
        raise UsageError(" ".join(str(error).split())) from error


class NoAccountError(OSError):
    """A job that ends here without an account, in one sentence.

    Attributes:
        code: The exit code: 0 if this is what was asked for.
        goes_on: Whether its workers are still to write one.
    """

    def __init__(self, message: str, code: int = 1, *, goes_on: bool = False) -> None:
        super().__init__(f"{message}; there is no summary")
        self.code = code
        self.goes_on = goes_on


def run_to_end(pipeline: beam.Pipeline) -> Any:
    """Runs a pipeline, waits for its end, and returns Beam's result. On Ctrl-C the job is cancelled on its runner too.

    Raises:
        NoAccountError: If it did not come to its end, or was not to.
    """
    options = pipeline.options
    result: Any = None
    try:
        with interruptible(), _without_traceback_of_messages():
            result = pipeline.run()
            if options.view_as(TestOptions).dry_run:
                raise NoAccountError("the graph was built, and nothing was submitted (--dry_run)", 0)
            if graph := _written_graph(options):
                raise NoAccountError(f"the graph was written to {safe_url(graph)}, and nothing was run", 0)
            if options.view_as(StandardOptions).no_wait_until_finish and not is_local(options):
                raise NoAccountError("the job was submitted and goes on (--no_wait_until_finish)", 0, goes_on=True)
            state = result.wait_until_finish()
    except KeyboardInterrupt:
        if result is not None:
            # Whatever a runner says now, the interrupt is what has to be told.
            with suppress(Exception):
                result.cancel()
        raise
    except (NoAccountError, *RECOVERABLE):
        raise
    except Exception as error:
        if is_in_process(options):
            raise
        logging.getLogger("dicomweb_io").debug("the job on its runner", exc_info=error)
        if type(error).__name__ == "FutureTimeoutError":
            # An error of gRPC without words.
            where = options.view_as(PortableOptions).job_endpoint
            raise NoAccountError(f"the job server {where} does not answer, so nothing was run") from error
        details = getattr(error, "details", None)
        if result is not None and callable(details):
            # An error of gRPC.
            why = plain_text(str(details()))
            message = f"the job server does not answer any more ({why}), and the job may go on without it"
            raise NoAccountError(message, goes_on=True) from error
        raise NoAccountError(f"the job failed on its runner: {brief_error(error)}") from error
    if state not in (None, PipelineState.DONE):
        raise NoAccountError(f"the job ended on its runner as {state}")
    return result


@contextmanager
def _without_traceback_of_messages() -> Iterator[None]:
    """Keeps quiet about Beam's thread that reads a job's messages: why it fails, the thread that waits tells."""
    name, before = "wait_until_finish_read", threading.excepthook
    threading.excepthook = lambda error: None if error.thread and error.thread.name == name else before(error)
    try:
        yield
    finally:
        for thread in threading.enumerate():
            if thread.name == name:
                thread.join(_PATIENCE)
        threading.excepthook = before


def _written_graph(options: PipelineOptions) -> str | None:
    """Where the runner writes the graph instead of running it."""
    portable: str | None = options.view_as(PortableOptions).output_executable_path
    template: str | None = options.view_as(GoogleCloudOptions).template_location
    return template if _is_on(options, "DataflowRunner") else portable


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
    except NoAccountError as error:
        print(f"{name}: {plain_text(str(error))}", file=sys.stderr)
        return error.code
    except RECOVERABLE as error:
        print(f"{name}: {left or 'there is no summary'}: {plain_text(str(error))}", file=sys.stderr)
        return 1


def wanted_by(args: argparse.Namespace, options: PipelineOptions, wanted: Any) -> Any:
    """What a job's list names, or the list itself: the workers read it, so that it is no part of the job's graph.

    Raises:
        UsageError: If the workers cannot read it, and it is too long for the graph.
    """
    if not args.input:
        return wanted
    here = is_on_this_machine(args.input)
    path = local_path(args.input)
    if (not here or not args.workers_elsewhere) and (path is None or os.path.isfile(path)):
        return ListFile(args.input, args.allow_patterns)
    if args.workers_elsewhere and path is not None and os.path.isfile(path) and os.path.getsize(path) > _MAX_IN_GRAPH:
        check_reach(args.input, "--input")
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


@contextmanager
def scratch_folder(options: PipelineOptions, job: str) -> Iterator[str]:
    """A folder that the workers of a job and this process reach, for the account. It is removed when the job has ended.

    Elsewhere it is ``TEMP_LOCATION/JOB-`` and 16 digits, so that jobs do not meet; it stays if this process is killed.

    Args:
        options: Beam's options.
        job: The name of the job.
    """
    if is_local(options):
        with PrivateDirectory(prefix=f"dicomweb_io-{job}-") as directory:
            yield directory
        return
    place = str(options.view_as(GoogleCloudOptions).temp_location)
    folder = f"{(local_path(place) or place).rstrip('/')}/{job}-{os.urandom(8).hex()}"
    if "://" not in folder:
        os.makedirs(folder, mode=0o700)
    try:
        yield folder
    except NoAccountError as error:
        if error.goes_on:
            print(f"{job}: its account will be {safe_url(folder)}/account.json", file=sys.stderr)
        else:
            _remove(folder)
        raise
    except BaseException:
        _remove(folder)
        raise
    _remove(folder)


def _remove(folder: str) -> None:
    import fsspec

    # What is left behind does not change the result; libraries of object stores raise exceptions of their own.
    with suppress(Exception):
        filesystem, path = fsspec.core.url_to_fs(folder)
        filesystem.invalidate_cache()
        filesystem.rm(path, recursive=True)


def is_local(options: PipelineOptions) -> bool:
    """Whether the job's workers run on this machine, in the submitter's process or started by it."""
    values = options.get_all_options()
    environment = str(values.get("environment_type") or "").upper()
    if _is_on(options, "DataflowRunner") or environment == "DOCKER":
        return False
    if environment == "LOOPBACK" or is_in_process(options):
        return True
    if environment or values.get("output_executable_path"):
        return False
    # As these runners choose their environment themselves.
    flink, spark = str(values.get("flink_master")), str(values.get("spark_master_url"))
    return (_is_on(options, "FlinkRunner") and flink.strip() in ("[local]", "[auto]")) or (
        _is_on(options, "SparkRunner") and re.match(r"local(\[.+\])?$", spark) is not None
    )


def is_in_process(options: PipelineOptions) -> bool:
    """Whether the runner itself is a part of this process, or started by it."""
    embedded = options.get_all_options().get("job_endpoint") in (None, "embed")
    return _is_on(options, *StandardOptions.LOCAL_RUNNERS) or (_is_on(options, "PortableRunner") and embedded)


def _is_on(options: PipelineOptions, *runners: str) -> bool:
    return str(options.view_as(StandardOptions).runner).rpartition(".")[2] in runners
