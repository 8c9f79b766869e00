"""What command lines, jobs and YAML have in common: their options, endpoints and lists made of them, files for results.

A driver adds options to its parser with `add_endpoint_options` and its like, and makes an `Endpoint` of what was given
with `endpoint_from`; a driver that has no parser calls `make_endpoint`. An invalid option raises a `UsageError` that
names it as the user wrote it.
"""

from __future__ import annotations

import argparse
import getpass
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import MISSING, fields, replace
from types import TracebackType
from typing import IO, Any, Literal, Protocol

from dicomweb_io.client import DICOMClient, check_chunk_size
from dicomweb_io.endpoint import Endpoint
from dicomweb_io.errors import safe_url
from dicomweb_io.http.auth import (
    AWSSigV4,
    AzureCredentials,
    BasicCredentials,
    BearerToken,
    Credentials,
    GoogleCredentials,
    OAuth2ClientCredentials,
    variable_text,
)
from dicomweb_io.http.settings import TLS, Limits, Prefixes, Timeouts
from dicomweb_io.listing import ListLine, read_references
from dicomweb_io.servers import NAME, Server, ServersError, parse, read_text, servers_path, suggestion

PASSWORD_VARIABLE = "DICOMWEB_PASSWORD"  # noqa: S105 - a variable's name
URL_VARIABLE = "DICOMWEB_URL"
"""Names the archive if the command line does not."""


class UsageError(ValueError):
    """A wrong use of a command, a job or a step; its text is shown and the exit code is 2."""


class _Parser(Protocol):
    """What options are added to."""

    def add_argument(self, *names: str, **options: Any) -> Any: ...


# Endpoints ------------------------------------------------------------------------------------------------------------

_NUMBER: dict[str, Any] = {"type": float, "metavar": "SECONDS"}
_FLAG: dict[str, Any] = {"action": "store_true", "default": False}

_ARCHIVE: dict[str, dict[str, Any]] = {
    "qido_prefix": {"metavar": "PATH", "help": "path segment before search resources"},
    "wado_prefix": {"metavar": "PATH", "help": "path segment before retrieve resources"},
    "stow_prefix": {"metavar": "PATH", "help": "path segment before store resources"},
    "delete_prefix": {"metavar": "PATH", "help": "path segment before delete resources"},
    "internal_url": {"metavar": "URL", "help": "the root as the server writes it in addresses of bulk data"},
    "profile": {"metavar": "NAME", "help": "the server's profile; by default chosen by its URL"},
    "timeout": {**_NUMBER, "help": "for connecting and for each read"},
    "deadline": {**_NUMBER, "help": "for each operation, retries included"},
    "outage": {
        **_NUMBER,
        "help": "how long a copy or job waits for a server that answered before and cannot be reached any more "
        "(default: 120); what is left then is not tried",
    },
    "filter_mismatch": {
        "choices": ("error", "warn"),
        "help": "what becomes of a search whose rows contradict its filters (default: error)",
    },
}
_AUTHENTICATION: dict[str, dict[str, Any]] = {
    "user": {"metavar": "NAME", "help": "user name for basic authentication"},
    "password_env": {"metavar": "NAME", "help": "environment variable that holds the password"},
    "token_env": {"metavar": "NAME", "help": "environment variable that holds the bearer token"},
    "token_file": {"metavar": "FILE", "help": "file that holds the bearer token, read when needed"},
    "google": {**_FLAG, "help": "Google application-default credentials"},
    "ca": {"metavar": "FILE", "help": "bundle of certificate authorities to trust"},
    "cert": {"metavar": "FILE", "help": "client certificate with its key, PEM"},
    "insecure_no_verify": {**_FLAG, "help": "do not verify the server's certificate"},
}
# Secrets that a command line may take, and that nothing else takes: other users of a machine can read command lines.
_PERSONAL = ("password", "token")
_NAMES = (*_ARCHIVE, *_AUTHENTICATION, *_PERSONAL, "max_in_flight")
_WAYS = ("user", "token", "token_env", "token_file", "token_command")
_IDENTITIES: dict[str, type[Credentials]] = {
    "google": GoogleCredentials,
    "azure": AzureCredentials,
    "aws": AWSSigV4,
    "oauth2": OAuth2ClientCredentials,
}
_TITLES = {"google": "Google", "azure": "Azure", "aws": "AWS", "oauth2": "OAuth 2.0 client credentials"}
# Options named after the kind and its fields, such as aws_region; secrets themselves are none.
_IDENTITY_OPTIONS = {
    f"{kind}_{field.name}": (kind, field.name)
    for kind, made in _IDENTITIES.items()
    for field in fields(made)  # type: ignore[arg-type]
    if field.type in ("str", "str | None") and not field.metadata.get("secret")
}
CREDENTIAL_OPTIONS = tuple(
    dict.fromkeys((*_AUTHENTICATION, "password_file", "token_command", *_IDENTITIES, *_IDENTITY_OPTIONS))
)
"""The options of `make_endpoint` that say how to authenticate, without those that hold a secret themselves."""
_SERVICES = ("qido", "wado", "stow", "delete")
_TRUST = ("ca", "insecure_no_verify")
_PASSWORDS = ("password", "password_env", "password_file")


def _kind(name: str) -> type:
    how = {**_ARCHIVE, **_AUTHENTICATION}.get(name, _FLAG if name in _IDENTITIES else {})
    return bool if how.get("action") == "store_true" else how.get("type", str)


SERVER_KEYS: dict[str, type] = {name.replace("_", "-"): _kind(name) for name in ("url", *_ARCHIVE, *CREDENTIAL_OPTIONS)}
"""What the file of servers may say of each: options by their names, and the types of their values."""


def add_archive_options(parser: _Parser, role: str = "") -> None:
    """Adds the options that describe an archive.

    Args:
        parser: The parser or a group of it.
        role: What the names of the options begin with: ``"source"`` makes ``--source-profile``.
    """
    _add(parser, role, _ARCHIVE)


def add_authentication_options(parser: _Parser, role: str = "") -> None:
    """Adds the options that say how to authenticate; they name secrets. See `add_archive_options`."""
    _add(parser, role, _AUTHENTICATION)


def add_further_credentials(parser: _Parser) -> None:
    """Adds the options that name secrets and identities and that only a server with a name can have."""
    helps = {"password_file": "file that holds the password", "token_command": "command that prints the bearer token"}
    for name in CREDENTIAL_OPTIONS:
        if name not in _AUTHENTICATION:
            kind, field = _IDENTITY_OPTIONS.get(name, (name, "identity"))
            text = helps.get(name, f"{_TITLES.get(kind)}: {field.replace('_', ' ')}")
            how = _FLAG if name in _IDENTITIES else {"metavar": "VALUE"}
            parser.add_argument(_spelled("", name), **how, help=text)


def _add(parser: _Parser, role: str, options: Mapping[str, Mapping[str, Any]]) -> None:
    for name, how in options.items():
        short = ("-u",) if name == "user" and not role else ()
        text = f"{how['help']} ({role})" if role else how["help"]
        parser.add_argument(*short, _spelled(role, name), **{**how, "help": text})


def _spelled(role: str, name: str) -> str:
    return "--" + (f"{role}_{name}" if role else name).replace("_", "-")


def endpoint_from(
    args: argparse.Namespace, url: str | None = None, *, role: str = "", workers_elsewhere: bool = False
) -> Endpoint:
    """The endpoint that parsed arguments describe.

    Args:
        args: The parsed arguments.
        url: The archive; by default that of ``--url``, or ``--ROLE``.
        role: See `add_archive_options`.
        workers_elsewhere: Whether other processes read the named files and variables.

    Raises:
        UsageError: If there is no URL, or options contradict each other.
    """
    option = f"--{role}" if role else "--url"
    url = url or getattr(args, role or "url") or (None if role else os.environ.get(URL_VARIABLE))
    if not url:
        option = f"ARCHIVE or {option}" if hasattr(args, "archive") else option
        raise UsageError(
            f"{option} is required: a DICOMweb service (https://…), a folder, an fsspec URL, or a server's name "
            "(dicomweb-io servers)" + ("" if role else f"; or set the environment variable {URL_VARIABLE}")
        )
    given = {name: getattr(args, f"{role}_{name}" if role else name, None) for name in _NAMES}
    name, server = url, named_server(url)
    if server is None:
        return make_endpoint(url, given, lambda name: _spelled(role, name), workers_elsewhere=workers_elsewhere)
    saved = _saved(server, given)
    return make_endpoint(
        server["url"],
        {**given, **saved},
        lambda option: (
            f"{option.replace('_', '-')} of the server {name}" if option in saved else _spelled(role, option)
        ),
        workers_elsewhere=workers_elsewhere,
    )


def named_server(word: str) -> Server | None:
    """What the user's file of servers says of a name; None if a path of that name exists, or it looks like none.

    Raises:
        UsageError: If the file is not valid, or has only a similar name.
    """
    if not NAME.fullmatch(word) or os.path.lexists(word):
        return None
    path = servers_path()
    try:
        servers = parse(read_text(path), path, SERVER_KEYS)
    except ServersError as error:
        raise UsageError(str(error)) from error
    if word not in servers and (close := suggestion(word, servers, "")):
        raise UsageError(
            f"{word} is neither a folder nor a server in {path}. Did you mean {close} (For a new folder: ./{word})"
        )
    return servers.get(word)


def _saved(server: Server, given: Mapping[str, Any]) -> dict[str, Any]:
    """What a file says of a server and the command line does not; what the latter says of a matter is all of it."""

    def is_given(*names: str) -> bool:
        return any(given.get(name) is not None and given[name] is not False for name in names)

    ways = tuple(name for name in (*CREDENTIAL_OPTIONS, "token") if name not in (*_TRUST, "cert", *_PASSWORDS))
    matters = (ways, (*ways, *_PASSWORDS)), (_PASSWORDS, _PASSWORDS), (_TRUST, _TRUST)
    replaced = {name for matter, names in matters if is_given(*matter) for name in names}
    saved = {key.replace("-", "_"): value for key, value in server.items() if key != "url"}
    return {name: value for name, value in saved.items() if name not in replaced and not is_given(name)}


def check_given_once(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> None:
    """Rejects an option that replaces its value and is given twice: the first value would be dropped without a word.

    Raises:
        UsageError: If there is one.
    """
    parsers, replacing, others, long = [parser], set[str](), set[str](), dict[str, str]()
    while parsers:
        for action in parsers.pop()._actions:
            if isinstance(action, argparse._SubParsersAction):
                parsers += action.choices.values()
            else:
                (replacing if type(action) is argparse._StoreAction else others).update(action.option_strings)
                long.update((name, action.option_strings[-1]) for name in action.option_strings)
    given = [long.get(name, name) for name in (argument.partition("=")[0] for argument in arguments)]
    twice = sorted(name for name in replacing - others if given.count(name) > 1)
    if twice:
        raise UsageError(f"{twice[0]} is given {given.count(twice[0])} times, and only the last would count")


def make_endpoint(
    url: str,
    given: Mapping[str, Any],
    spelled: Callable[[str], str] = str,
    *,
    workers_elsewhere: bool = True,
) -> Endpoint:
    """The endpoint that options describe.

    Args:
        url: The archive.
        given: Values by the names of the options; what is absent or None was not given.
        spelled: How the user spells an option, for messages.
        workers_elsewhere: See `endpoint_from`.

    Raises:
        UsageError: If options contradict each other, or have a value that is not valid.
    """
    if given.get("insecure_no_verify") and given.get("ca"):
        raise UsageError(f"{spelled('ca')} and {spelled('insecure_no_verify')} contradict each other")
    credentials = _credentials(given, spelled, workers_elsewhere=workers_elsewhere)
    for name in ("ca", "cert"):
        path = given.get(name)
        if path and not workers_elsewhere and not os.path.exists(path):
            raise UsageError(f"{spelled(name)}: there is no file {path}")
    try:
        endpoint = Endpoint(
            url,
            credentials,
            given.get("profile") or "auto",
            prefixes=Prefixes(**{service: given.get(f"{service}_prefix") for service in _SERVICES}),
            tls=TLS(given.get("ca") or not given.get("insecure_no_verify"), given.get("cert")),
            timeouts=_timeouts(given),
            internal_url=given.get("internal_url"),
            filter_mismatch=given.get("filter_mismatch") or "error",
            limits=Limits(**{name: given[name] for name in ("max_in_flight",) if given.get(name) is not None}),
        )
        if not endpoint.is_web:
            from dicomweb_io.files.local import local_path

            local_path(url)
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error
    return endpoint


def _timeouts(given: Mapping[str, Any]) -> Timeouts:
    timeouts = Timeouts()
    for names, option in ((("connect", "read"), "timeout"), (("deadline",), "deadline"), (("outage",), "outage")):
        value = given.get(option)
        if value is not None:
            timeouts = replace(timeouts, **dict.fromkeys(names, value))
    return timeouts


def _credentials(
    given: Mapping[str, Any], spelled: Callable[[str], str], *, workers_elsewhere: bool
) -> Credentials | None:
    for name in _WAYS:
        if given.get(name) == "":
            # Most likely a command failed or a variable is unset; continuing would be anonymous access.
            raise UsageError(f"{spelled(name)} is empty")
    ways = [name for name in (*_WAYS, *_IDENTITIES, *_IDENTITY_OPTIONS) if given.get(name)]
    kinds = {_IDENTITY_OPTIONS.get(name, (name,))[0]: name for name in reversed(ways)}
    if len(kinds) > 1:
        raise UsageError(f"give one way to authenticate, not {' and '.join(map(spelled, reversed(kinds.values())))}")
    for name in ("password", "password_env", "password_file"):
        if given.get(name) and not given.get("user"):
            raise UsageError(f"{spelled(name)} needs {spelled('user')}")
    if given.get("user"):
        return _basic(given, spelled)
    if given.get("token_env") and not workers_elsewhere and given["token_env"] not in os.environ:
        raise UsageError(f"{spelled('token_env')}: the environment {variable_text(given['token_env'])} is not set")
    for name, field in (("token", "token"), ("token_env", "env"), ("token_file", "file"), ("token_command", "command")):
        if given.get(name):
            return BearerToken(**{field: given[name]})
    return _identity(next(iter(kinds)), given, spelled) if kinds else None


def _identity(kind: str, given: Mapping[str, Any], spelled: Callable[[str], str]) -> Credentials:
    made = _IDENTITIES[kind]
    values = {
        field: given[name] for name, (owner, field) in _IDENTITY_OPTIONS.items() if owner == kind and given.get(name)
    }
    required = [field.name for field in fields(made) if field.default is MISSING]  # type: ignore[arg-type]
    missing = [spelled(f"{kind}_{name}") for name in required if name not in values]
    if missing:
        raise UsageError(f"{spelled(kind)} needs {' and '.join(missing)}")
    try:
        return made(**values)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _basic(given: Mapping[str, Any], spelled: Callable[[str], str]) -> BasicCredentials:
    user = given["user"]
    named = {name: given[name] for name in ("password_env", "password_file") if given.get(name)}
    if len(named) > 1:
        raise UsageError(f"give {' or '.join(map(spelled, named))}, not both")
    if named:
        return BasicCredentials(user, **named)
    if given.get("password") is None:
        # Only where a person may be asked there is such an option, and a default for the variable.
        raise UsageError(f"{spelled('user')} needs {spelled('password_env')}")
    if given["password"] or (PASSWORD_VARIABLE not in os.environ and sys.stdin.isatty()):
        return BasicCredentials(user, getpass.getpass(f"Password of {user}: "))
    if PASSWORD_VARIABLE not in os.environ:
        raise UsageError(
            f"{spelled('user')} needs a password: {spelled('password')} asks for it, or set {PASSWORD_VARIABLE}"
        )
    return BasicCredentials(user, password_env=PASSWORD_VARIABLE)


def connect(args: argparse.Namespace, endpoint: Endpoint) -> DICOMClient:
    """A client of an endpoint, set up as the connection options say.

    Raises:
        UsageError: If an option has a value that clients reject.
    """
    try:
        chunk_size = None if args.chunk_size is None else check_chunk_size(args.chunk_size)
        client = endpoint.connect()
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from error
    if chunk_size is not None:
        client.set_chunk_size(chunk_size)
    return client


# What is wanted -------------------------------------------------------------------------------------------------------


def add_filter_option(parser: _Parser, what: str = "copy") -> None:
    """Adds ``--filter``, which may be repeated."""
    parser.add_argument(
        "--filter",
        dest="filters",
        metavar="KEY=VALUE",
        action="append",
        help=f"{what} only what matches: an attribute's keyword or tag, and its value (repeatable)",
    )


def add_policy_options(parser: _Parser, *, on_existing: str) -> None:
    """Adds ``--on-existing`` and ``--verify``."""
    parser.add_argument(
        "--on-existing",
        choices=("skip", "server", "replace", "error"),
        default=on_existing,
        help=f"what to do with instances whose UID the destination has (default: {on_existing})",
    )
    parser.add_argument(
        "--verify",
        choices=("response", "uid", "content"),
        default="response",
        help="the evidence required for each instance: the destination's answer, a search for its UID, or its content",
    )


def add_report_option(parser: _Parser) -> None:
    """Adds ``--report``, which may be repeated."""
    parser.add_argument(
        "--report",
        metavar="PATH",
        action="append",
        help="write a report here: a page (.html) or a JSON document (.json); repeatable",
    )


def add_selection_options(parser: _Parser, what: str = "copy") -> None:
    """Adds what is copied or compared: ``--filter``, ``--input``, and what a list may name."""
    add_filter_option(parser, what)
    parser.add_argument(
        "--input",
        metavar="PATH",
        help=f"{what} only what this list names: UIDs, accession numbers, patient IDs or references, as CSV or JSON "
        "lines, the --failures file of an earlier run, or the differences of a comparison",
    )
    parser.add_argument(
        "--allow-patterns",
        action="store_true",
        default=False,
        help="accession numbers and patient IDs of the list may hold the wildcards * and ?",
    )
    parser.add_argument(
        "--allow-several-patients",
        action="store_true",
        default=False,
        help=f"{what} what a line of the list names even if it belongs to several patients",
    )


def add_transfer_options(parser: _Parser) -> None:
    """Adds what a transfer copies and how, and where it reports."""
    add_selection_options(parser)
    parser.add_argument(
        "--allow-other-patient",
        action="store_true",
        default=False,
        help="copy studies that the destination has under another PatientID too",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        default=False,
        help="write nothing, and say what would be copied, what is there already, and what the list's lines match",
    )
    parser.add_argument("--failures", metavar="PATH", help="write what failed here, one JSON object a line")
    parser.add_argument("--summary", metavar="PATH", help="write the summary here too, as JSON")
    add_report_option(parser)
    add_policy_options(parser, on_existing="skip")
    parser.add_argument(
        "--allow-transcoding",
        action="store_true",
        default=False,
        help="accept re-encoded instances if the source cannot return the original",
    )
    parser.add_argument("--spool-directory", metavar="PATH", help="folder for temporary files of large instances")
    add_layout_option(parser)


def add_layout_option(parser: _Parser) -> None:
    """Adds ``--layout``."""
    parser.add_argument(
        "--layout",
        metavar="TEMPLATE",
        # Percent signs are doubled because argparse formats the text, and it breaks lines at blanks and hyphens.
        help="name the files of the destination, a folder, by attributes instead of UIDs, for example "
        "'{PatientID}/{StudyDate}/{InstanceNumber:04}.dcm'; formats are :04 for numbers, :%%Y%%m%%d for dates, :.20 "
        "for the longest text",
    )


def add_table_options(parser: _Parser) -> None:
    """Adds what a table holds, and where it is written; see `dicomweb_io.tables.TableJob`."""
    flag: dict[str, Any] = {"action": "store_true", "default": False}
    options: dict[str, dict[str, Any]] = {
        "--level": {
            "choices": ("study", "series", "instance"),
            "default": "series",
            "help": "what a row of the table is (default: series)",
        },
        "--columns": {
            "metavar": "A,B,…",
            "help": "keywords, tags, paths into sequences (SEQUENCE[0].KEYWORD), private attributes as "
            '(0009,"CREATOR",10), or all; by default what people look for first',
        },
        "--out": {
            "metavar": "PATH",
            "help": "the table (required): a .parquet, .csv or .jsonl file, or an fsspec URL; the job also writes to "
            "bq:PROJECT.DATASET.TABLE",
        },
        "--full": {**flag, "help": "read the metadata, which have attributes that searches do not return"},
        "--explode": {"metavar": "SEQUENCE", "help": "a row for each item of this sequence"},
        "--typed-dates": {**flag, "help": "dates and times as types of their own instead of text"},
        "--partition-by": {
            "metavar": "COLUMN",
            "help": "a folder for each value of this column, as StudyDate=2024-02-29",
        },
        "--rows-per-file": {"metavar": "N", "type": int, "help": "several files of at most this many rows"},
        "--bom": {**flag, "help": "begin CSV with a byte order mark, so that Excel reads names as UTF-8"},
        "--limit": {"metavar": "N", "type": int, "help": "at most this many studies, series or instances"},
        "--since": {
            "metavar": "DATE|last",
            "help": "refresh the table: write the studies anew that came or grew since a day (YYYY-MM-DD), or since "
            "the last refresh (everything at first)",
        },
        "--cursor": {
            "metavar": "PATH",
            "help": "the file that records how far a refresh came (default: the table's name and .cursor)",
        },
        "--method": {
            "choices": ("auto", "orthanc", "azure", "receive_time", "study_date", "list"),
            "default": "auto",
            "help": "how a refresh finds out what is new (default: by the archive's profile)",
        },
        "--lookback": {
            "metavar": "SECONDS",
            "type": float,
            "help": "how late an instance may arrive after its time, and a refresh still finds it",
        },
        "--failures": {"metavar": "PATH", "help": "write what failed here, one JSON object a line"},
        "--summary": {"metavar": "PATH", "help": "write the summary here too, as JSON"},
        "--input": {
            "metavar": "PATH",
            "help": "take only what this list names: UIDs, accession numbers, patient IDs or references, as CSV or "
            "JSON lines",
        },
        "--allow-patterns": {**flag, "help": "the list may hold the wildcards * and ?"},
        "--allow-several-patients": {**flag, "help": "take what a line names even if it is of several patients"},
    }
    for name, how in options.items():
        parser.add_argument(name, **how)
    add_filter_option(parser, "take")


LIST_OPTIONS: dict[str, Any] = {
    "input": None,
    "allow_patterns": False,
    "allow_several_patients": False,
    "dry_run": False,
    "limit": None,
    "since": None,
    "out": None,
}
"""The options of a transfer or table that concern a list or a single run, with their defaults: a watch has none of
them."""


class _Other:
    """Adds options to a parser, but not those of `LIST_OPTIONS`, nor those that it has already."""

    def __init__(self, parser: _Parser) -> None:
        self._parser = parser
        self._known = {_spelled("", name) for name in LIST_OPTIONS}

    def add_argument(self, *names: str, **options: Any) -> None:
        """As `argparse.ArgumentParser.add_argument`."""
        if self._known.isdisjoint(names):
            self._known.update(names)
            self._parser.add_argument(*names, **options)


def add_watch_options(parser: _Parser) -> None:
    """Adds when and what a watch copies, where it keeps its place, and how it copies: as a transfer does."""
    other = _Other(parser)
    other.add_argument(
        "--cursor", metavar="PATH", help="the file that records the position, so that the next run goes on (required)"
    )
    other.add_argument(
        "--table",
        metavar="PATH",
        help="keep a table of the source up to date, also without a destination: a .parquet, .csv or .jsonl file; what "
        "it holds is said by --level, --columns and the other options of export table",
    )
    other.add_argument(
        "--once", action="store_true", default=False, help="copy what is new since the last run, and end: for cron"
    )
    other.add_argument(
        "--start",
        metavar="now|all|DATE",
        help="where to begin, when there is no position yet: with what arrives from now on (the default), with all "
        "that is there (the default with --once), or with a day (YYYY-MM-DD)",
    )
    other.add_argument(
        "--interval", metavar="SECONDS", type=float, default=60.0, help="seconds between polls (default: 60)"
    )
    other.add_argument("--for", metavar="TIME", help="end after this time, such as 90s, 15m, 8h or 2d")
    other.add_argument(
        "--max-polls", metavar="N", type=int, help="end after this many polls (default: run until stopped)"
    )
    other.add_argument(
        "--complete-after",
        metavar="TIME",
        help="copy studies as a whole, when nothing of them has arrived for this time, such as 10m",
    )
    other.add_argument(
        "--method",
        choices=("auto", "orthanc", "azure", "receive_time", "study_date", "list"),
        default="auto",
        help="how to find out what is new: by the archive's own log (orthanc, azure), by searches for what it received "
        "lately or for recent study dates, or by listing everything (default: by the source's profile)",
    )
    other.add_argument(
        "--lookback", metavar="SECONDS", type=float, help="how late an instance may arrive after its time"
    )
    other.add_argument("--failures", metavar="PATH", help="add what was given up here, one JSON object a line")
    other.add_argument("--summary", metavar="PATH", help="write the summary here too, as JSON, after each poll")
    add_transfer_options(other)
    add_table_options(other)


def add_comparison_options(parser: _Parser) -> None:
    """Adds what a comparison compares and how, and where it reports."""
    add_selection_options(parser, "compare")
    how: dict[str, Any] = {"dest": "compare", "action": "append_const", "default": None}
    parser.add_argument(
        "--counts",
        **how,
        const="count",
        help="compare only the numbers of instances that the archives announce for each series: quick, and weaker",
    )
    parser.add_argument(
        "--content",
        **how,
        const="content",
        help="compare contents too, at the level that both archives keep: files, datasets or pixels",
    )
    parser.add_argument(
        "--output",
        metavar="PATH",
        help="write the differences here, one JSON object a line, as copy --input takes them",
    )
    parser.add_argument("--failures", metavar="PATH", help="write what could not be compared here, likewise")
    parser.add_argument("--summary", metavar="PATH", help="write the summary here too, as JSON")
    add_report_option(parser)
    parser.add_argument("--spool-directory", metavar="PATH", help="folder for temporary files")


def parse_filters(pairs: Sequence[str] | None) -> list[tuple[str, str]]:
    """Splits ``KEY=VALUE`` at the first equals sign.

    Raises:
        UsageError: If there is none.
    """
    filters = []
    for pair in pairs or ():
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UsageError(
                f"--filter {key!r}: expected KEY=VALUE, for example Modality=CT (KEY= for universal matching)"
            )
        filters.append((key, value))
    return filters


def filters_from(pairs: Sequence[str] | None) -> dict[str, str]:
    """Makes search filters of ``KEY=VALUE`` arguments; a repeated key becomes a list of values.

    Raises:
        UsageError: If one has no ``=`` or no value: an unset variable of a shell must not mean everything.
    """
    filters: dict[str, str] = {}
    for key, value in parse_filters(pairs):
        if not value.strip():
            raise UsageError(
                f"--filter {key}= has no value, so it would match everything: give one, or leave the filter out"
            )
        filters[key] = f"{filters[key]}\\{value}" if key in filters else value
    return filters


def wanted_from(path: str, *, allow_patterns: bool = False) -> tuple[ListLine, ...]:
    """The lines of a list; see `dicomweb_io.listing.read_references`.

    Raises:
        UsageError: If it cannot be read, or has an unknown header.
    """
    try:
        return tuple(read_references(path, allow_patterns=allow_patterns))
    except (OSError, ValueError) as error:
        raise UsageError(f"--input {path}: {error}") from error


# Files for results ----------------------------------------------------------------------------------------------------


def check_writable(path: str, option: str, *, elsewhere: bool = False) -> None:
    """Checks the address of a report before the work starts; one on another filesystem see `check_remote_results`.

    Args:
        path: A local path or an fsspec URL.
        option: The option that it was given with.
        elsewhere: Whether workers on other machines are to write it.

    Raises:
        UsageError: If the folder does not exist, it or workers elsewhere cannot write there, or it is the path itself.
    """
    if elsewhere:
        check_reach(path, option)
    path = _local_path(path, option) or ""
    if not path or _is_device(path):
        return
    folder = os.path.dirname(path)
    if not os.path.isdir(folder):
        raise UsageError(f"{option} {path}: there is no folder {folder}")
    if os.path.isdir(path):
        raise UsageError(f"{option} {path}: this is a folder; name a file in it")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"{option} {path}: the folder {folder} cannot be written to")


def check_reach(path: str, option: str) -> None:
    """Checks that workers on other machines reach a place.

    Raises:
        UsageError: If it is on this machine.
    """
    from dicomweb_io.files.local import is_on_this_machine

    if is_on_this_machine(path):
        raise UsageError(
            f"{option} {safe_url(path)}: the workers of this runner are on other machines and do not reach this one's "
            "disks: give a URL that they reach (gs://…, s3://…), or --shared-filesystem if they see the same paths"
        )


def check_remote_results(args: Any, *more: str) -> None:
    """Writes and removes an empty file beside each result that goes to another filesystem, before the work starts.

    Args:
        args: The parsed arguments.
        more: Further files.

    Raises:
        UsageError: If a filesystem's package is not installed, or nothing can be written there.
    """
    results = {name: getattr(args, name, None) for name in ("out", "table", "output", "failures", "summary", "report")}
    places = [(f"--{name}", path) for name, given in results.items() for path in listed(given)]
    for option, path in (*places, *(("--temp_location", path) for path in more)):
        if "://" not in path or _local_path(path, option) is not None:
            continue
        import fsspec

        from dicomweb_io.files.places import temporary_name
        from dicomweb_io.files.remote import missing_package

        try:
            filesystem, name = fsspec.core.url_to_fs(path)
        except ImportError as error:
            raise UsageError(f"{option} {safe_url(path)}: {missing_package(error)}") from error
        except Exception as error:
            raise UsageError(f"{option} {safe_url(path)}: {brief_error(error)}") from error
        above, _, last = str(name).rstrip("/").rpartition("/")
        probe = f"{above}/{temporary_name(last)}"
        try:
            filesystem.pipe_file(probe, b"")
        except Exception as error:
            # Libraries of object stores raise exceptions of their own.
            raise UsageError(f"{option} {safe_url(path)} cannot be written: {brief_error(error)}") from error
        with suppress(Exception):
            # Where nothing may be removed, it stays, and listings leave it out.
            filesystem.rm_file(probe)


def listed(given: Any) -> Sequence[str]:
    """The values of an option that may be repeatable."""
    return [given] if isinstance(given, str) else given or ()


def brief_error(error: Exception) -> str:
    """The first line of an error, without what stands in URLs after the question mark: it may be a signature."""
    lines = [*str(error).strip().splitlines(), ""]
    return re.sub(r"\?[^\s'\"]*", "", f"{type(error).__name__}: {lines[0]}")[:300]


def _local_path(path: str, option: str) -> str | None:
    if "://" not in path:
        return os.path.abspath(path)
    from dicomweb_io.files.local import local_path

    try:
        return local_path(path)
    except ValueError as error:
        raise UsageError(f"{option} {safe_url(path)}: {error}") from error


def _is_device(path: str) -> bool:
    """Whether a path is a pipe or device, such as ``/dev/null``: nothing can take its place."""
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


def check_spool_directory(path: str | None, *, elsewhere: bool = False) -> None:
    """Checks the folder for temporary files, unless workers on other machines use it.

    Raises:
        UsageError: If it does not exist, or cannot be written to.
    """
    if path and not elsewhere and not (os.path.isdir(path) and os.access(path, os.W_OK | os.X_OK)):
        raise UsageError(f"--spool-directory {path}: there is no such folder that can be written to")


def check_distinct(args: Any, *options: str) -> None:
    """Checks that no two options name the same file: one would overwrite the other.

    Raises:
        UsageError: If two do.
    """
    named: dict[str, str] = {}
    for option in options:
        path = getattr(args, option)
        if path and not _is_device(path):
            other = named.setdefault(path if "://" in path else os.path.realpath(path), option)
            if other != option:
                raise UsageError(f"--{other} and --{option} name the same file: {path}")


@contextmanager
def atomic_file(path: str, mode: Literal["w", "wb"] = "w") -> Iterator[IO[Any]]:
    """A file to write, for its owner only (mode 0600), which appears complete or not at all.

    Args:
        path: A local path, a pipe or device (which is written to), or an fsspec URL (likewise, when everything is
            there).
        mode: ``"w"`` for text in UTF-8, ``"wb"`` for bytes.
    """
    from dicomweb_io.files.local import create_nameless, give_name
    from dicomweb_io.files.places import temporary_name

    remote = "://" in path or _is_device(path)
    folder, name = (None, "upload") if remote else os.path.split(os.path.abspath(path))
    text: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape"} if mode == "w" else {}
    # Nothing is left of a file without a name if this process is killed.
    descriptor = None if folder is None else create_nameless(folder, 0o600)
    nameless = descriptor is not None
    if descriptor is None or folder is None:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{name}-", suffix=".part", dir=folder)
    else:
        temporary = os.path.join(folder, temporary_name(name))
    try:
        with os.fdopen(descriptor, mode, **text) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if nameless:
                try:
                    give_name(descriptor, temporary)
                except OSError:
                    # Some sandboxes and filesystems have files without names, and let nobody give them one.
                    copy = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                    with os.fdopen(copy, "wb") as named, open(f"/proc/self/fd/{descriptor}", "rb") as written:
                        shutil.copyfileobj(written, named)
                        named.flush()
                        os.fsync(copy)
        if remote:
            _upload(temporary, path)
        else:
            os.replace(temporary, path)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)


def _upload(local: str, url: str) -> None:
    import fsspec

    with open(local, "rb") as content, fsspec.open(url, "wb") if "://" in url else open(url, "wb") as file:
        shutil.copyfileobj(content, file)


def write_lines(path: str, lines: Iterable[str]) -> None:
    """Writes a text file; see `atomic_file`. Each text becomes a line."""
    with atomic_file(path) as file:
        file.writelines(line + "\n" for line in lines)


class Report:
    """A report of many lines: a file that appears complete or not at all; see `atomic_file`.

    When it cannot be written, for example on a full disk, all its lines go to standard error: they are the only account
    of what happened.

    Args:
        path: A local path or an fsspec URL; None for a report that nobody wants.
        name: What the user calls it.

    Attributes:
        problem: Why it cannot be written; None while it can.
    """

    def __init__(self, path: str | None, name: str) -> None:
        self._path = path
        self._name = name
        self._stack = ExitStack()
        self._file: IO[str] | None = None
        self._written: IO[bytes] | None = None
        self.problem: str | None = None

    def __enter__(self) -> Report:
        if self._path is not None:
            try:
                self._file = self._stack.enter_context(atomic_file(self._path))
                # It can still be read when it has lost its name.
                self._written = os.fdopen(os.dup(self._file.fileno()), "rb")
            except OSError as error:
                self._give_up(error)
        return self

    def write(self, line: str) -> None:
        """Adds a line."""
        if self._file is not None:
            try:
                self._file.write(line + "\n")
                self._file.flush()
                return
            except OSError as error:
                self._give_up(error)
        if self._path is not None:
            print(line, file=sys.stderr)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        file, self._file = self._file, None
        try:
            if file is not None:
                self._stack.__exit__(kind, error, traceback)
        except Exception as failed:
            # Libraries of object stores raise exceptions of their own.
            if failed is error:
                raise
            self._give_up(failed)
        finally:
            if self._written is not None:
                self._written.close()

    def _give_up(self, error: Exception) -> None:
        file, self._file = self._file, None
        reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        self.problem = f"{self._name} {safe_url(str(self._path))} cannot be written: {reason}"
        print(f"{self.problem}; its lines follow", file=sys.stderr)
        if self._written is not None:
            self._written.seek(0)
            # What follows the last line end is the beginning of the line that is printed next.
            complete = self._written.read().decode("utf-8", "replace").rpartition("\n")
            sys.stderr.write(complete[0] + complete[1])
        if file is not None:
            with suppress(Exception):
                self._stack.__exit__(type(error), error, error.__traceback__)


def report_lines(path: str, name: str, lines: Iterable[str]) -> str | None:
    """Writes a whole `Report`, and returns its problem."""
    with Report(path, name) as report:
        for line in lines:
            report.write(line)
    return report.problem


def append_lines(path: str, lines: Iterable[str]) -> None:
    """Adds lines to a local file that only its owner can read, and waits until they are on the disk."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "a", encoding="utf-8") as file:
        device = _is_device(path)
        if not device:
            # It may be there already, for all to read.
            with suppress(PermissionError):
                os.chmod(path, 0o600)
        file.writelines(line + "\n" for line in lines)
        file.flush()
        if not device:
            os.fsync(file.fileno())


def read_json(path: str) -> Any:
    """Reads a JSON document from a local path or an fsspec URL."""
    import fsspec

    with fsspec.open(path, "r", encoding="utf-8") if "://" in path else open(path, encoding="utf-8") as file:
        return json.load(file)
