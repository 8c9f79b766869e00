"""The grammar of the command line."""

from __future__ import annotations

import argparse
import copy
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from dicomweb_io._version import __version__
from dicomweb_io.options import (
    PASSWORD_VARIABLE,
    SERVER_KEYS,
    URL_VARIABLE,
    UsageError,
    add_archive_options,
    add_authentication_options,
    add_comparison_options,
    add_filter_option,
    add_further_credentials,
    add_policy_options,
    add_report_option,
    add_table_options,
    add_transfer_options,
    add_watch_options,
    check_given_once,
)
from dicomweb_io.servers import suggestion

Command = Callable[[argparse.Namespace], int]

_WITHOUT_ARCHIVE = ("serve", "completion")
_MORE = "verbosity of "
_SAVED = {key.replace("-", "_") for key in SERVER_KEYS}
_SECRETS = ("--password", "--token", "--bearer-token")


class Parser(argparse.ArgumentParser):
    """A parser of one command. Its errors suggest what may have been meant, and repeat nothing that may be a secret.

    Args:
        example: A command line, without ``dicomweb-io``, that the help shows.
        options: See `argparse.ArgumentParser`.
    """

    def __init__(self, *, example: str = "", **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        if "\n" not in (options.get("description") or "\n"):
            options["description"] = textwrap.fill(options["description"], 80)
        if example:
            options["epilog"] = f"Example:\n  dicomweb-io {example}"
        super().__init__(allow_abbrev=False, **options)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if isinstance(action, argparse._SubParsersAction) and value not in action.choices:
            what = f"expected one of {', '.join(action.choices)}{suggestion(value, action.choices, '; did you mean ')}"
            raise argparse.ArgumentError(action, what)
        super()._check_value(action, value)

    def error(self, message: str) -> NoReturn:
        """Ends with exit code 2 and a message."""
        # It repeats what was given.
        message = re.sub(r"ignored explicit argument .*", "takes no value", message, flags=re.DOTALL)
        if "expected one argument" in message:
            message += "; a value that begins with a hyphen is written after an equals sign"
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction) and message.endswith(f"required: {action.metavar}"):
                message += f" (one of {', '.join(action.choices)})"
        self.exit(2, f"{self.prog}: {message}\n{self.prog} --help shows what is possible\n")


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses a command line; a wrong one ends the process, as in `argparse`.

    Args:
        argv: The arguments; by default those of the process.

    Raises:
        UsageError: If an option is given twice, is not known, or a password is given.
    """
    parser = build_parser()
    words = list(sys.argv[1:] if argv is None else argv)
    _check_words(parser, words)
    args, rest = parser.parse_known_args(words)
    command = " ".join(word for _, word in _command(parser, words))
    for word in rest:
        if word.startswith("--"):
            raise UsageError(f"{command} has no option {word.partition('=')[0]}; dicomweb-io {command} --help")
    if rest:
        # It is not repeated: it may be a value of an option that takes none.
        place = f"number {words.index(rest[-1]) + 1}" if words.count(rest[-1]) == 1 else "one"
        hint = "" if args.url or {"archive", "source"} & vars(args).keys() else "; --url names the archive"
        raise UsageError(f"{command} takes fewer arguments: {place} of the command line is too many{hint}")
    check_given_once(parser, words)
    args.verbosity += sum(number for name, number in vars(args).items() if name.startswith(_MORE))
    return args


def _command(parser: argparse.ArgumentParser, words: Sequence[str]) -> Iterator[tuple[argparse.ArgumentParser, str]]:
    """The command that words name, and what comes after it, as far as it is one."""
    for word in words:
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction) and word in action.choices:
                parser = action.choices[word]
                yield parser, word
                break


def _check_words(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Rejects passwords and unknown options before anything is parsed: what follows them is not to be repeated."""
    takes_value: dict[str, bool] = {}
    commands: set[str] = set()
    for each in all_parsers(parser):
        for action in each._actions:
            takes_value.update(dict.fromkeys(action.option_strings, action.nargs != 0))
            if isinstance(action, argparse._SubParsersAction):
                commands.update(action.choices)
    before = ""
    for word in words:
        name = word.partition("=")[0]
        asks = before in ("-p", "--password")
        if word == "--":
            return
        if (asks and not word.startswith("-") and word not in commands) or (
            name == "--password" if "=" in word else re.match("-v*p(?!v*$)", word)
        ):
            raise UsageError(
                "-p and --password take no value: they ask for the password, because other users of a machine can read "
                f"its command lines. Programs set {PASSWORD_VARIABLE}, or name a variable with --password-env. An "
                "argument that is no password stands before them."
            )
        if not takes_value.get(before) and re.match("-[^-0-9. ]|--", word) and " " not in name:
            name = name if word.startswith("--") else word[:2]
            if name not in takes_value:
                raise UsageError(f"unknown option{_shown(name)}{suggestion(name, takes_value)}")
        before = word


def _shown(name: str) -> str:
    """The name of an unknown option, unless a secret may be a part of it."""
    hidden = any(name.startswith(secret) for secret in _SECRETS) or not re.fullmatch("--?[a-zA-Z-]{1,40}", name)
    return "" if hidden else f" {name}"


def all_parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser and those of its commands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from all_parsers(command)


def _offer(parser: argparse.ArgumentParser, *, shown: bool) -> None:
    """Lets the options of `parser`, which stand before the command, stand after it too."""
    options = [action for action in parser._actions if action.option_strings and action.dest not in ("help", "version")]
    for command in list(all_parsers(parser))[1:]:
        if command.get_default("command") in _WITHOUT_ARCHIVE:
            continue
        for option in options:
            if any(name in command._option_string_actions for name in option.option_strings):
                continue
            # What is absent after the command leaves what stands before it.
            option = copy.copy(option)
            option.default = argparse.SUPPRESS
            if not (shown or (command.get_default("saves_options") and option.dest in _SAVED)):
                option.help = argparse.SUPPRESS
            if isinstance(option, argparse._CountAction):
                option.dest = _MORE + command.prog
            command._add_action(option)
        if command.get_default("command") and not command.get_default("saves_options"):
            more = "The options of dicomweb-io --help, such as --token-env, stand before the command or after it."
            command.epilog = f"{command.epilog}\n\n{more}" if command.epilog else more


def add_serve_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds them to a parser."""
    parser.add_argument("path", nargs="?", metavar="PATH", help="the folder to serve: a path, or any fsspec URL")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8042, help="the port; 0 for any free one (default: %(default)s)")
    parser.add_argument("--allow-remote", action="store_true", help="allow an address that other computers can reach")
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="a name, beside localhost and addresses, by which the server may be asked for; repeatable",
    )
    behaviour = parser.add_argument_group("behaviour")
    behaviour.add_argument("--behaviour", default="generic", metavar="NAME", help="behave like this kind of server")
    behaviour.add_argument("--behaviours", action="store_true", help="list the behaviours and exit")
    behaviour.add_argument("--describe", action="store_true", help="describe the behaviour and exit")
    behaviour.add_argument("--json", action="store_true", help="with --describe: as JSON")
    behaviour.add_argument(
        "--fault",
        action="append",
        default=[],
        metavar="JSON",
        help='a fault, such as \'{"action": "status", "status": 503, "times": 2}\'; repeatable',
    )
    behaviour.add_argument(
        "--faults", action="append", default=[], metavar="FILE", help="a file with a JSON list of faults; repeatable"
    )
    access = parser.add_argument_group("authentication (secrets come from environment variables)")
    access.add_argument("--user-env", metavar="NAME", dest="serve_user_env", help="holds NAME:PASSWORD (basic)")
    access.add_argument("--token-env", metavar="NAME", dest="serve_token_env", help="holds a bearer token")
    access.add_argument("--oauth2-env", metavar="NAME", help="holds CLIENT_ID:CLIENT_SECRET (client credentials)")
    access.add_argument("--token-lifetime", type=float, metavar="SECONDS", help="lifetime of bearer tokens")
    access.add_argument("--sigv4-env", metavar="NAME", help="holds ACCESS_KEY_ID:SECRET_ACCESS_KEY (AWS)")
    access.add_argument("--sigv4-region", default="us-east-1", metavar="REGION", help="default: %(default)s")
    access.add_argument("--sigv4-service", default="medical-imaging", metavar="NAME", help="default: %(default)s")
    access.add_argument("--tls-cert", metavar="FILE", help="the server's certificate chain, PEM: serve https")
    access.add_argument("--tls-key", metavar="FILE", help="its key, if it is not in the same file")
    access.add_argument("--tls-client-ca", metavar="FILE", help="the authority that clients' certificates come from")


def build_parser(*, all_shown: bool = False) -> Parser:
    """The parser of ``dicomweb-io``: connection options, then a method and its arguments.

    Args:
        all_shown: Whether the options that may also stand before the command are in the help of each command.
    """
    parser = Parser(
        prog="dicomweb-io",
        usage="%(prog)s [options] METHOD ...",
        description="Search, retrieve, store and copy DICOM objects on DICOMweb servers and in folders of files.",
        epilog="The exit code is 0 only if everything asked for was done, 2 for a wrong command line.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument("-v", "--verbosity", action="count", default=0, help="log more; repeat for even more")
    add_connection_options(parser)
    methods = parser.add_subparsers(dest="method", metavar="METHOD", required=True, prog="dicomweb-io")
    _add_search(methods)
    _add_retrieve(methods)
    _add_store(methods)
    _add_delete(methods)
    _add_copy(methods)
    _add_compare(methods)
    _add_export(methods)
    _add_watch(methods)
    _add_servers(methods)
    _add_index(methods)
    _add_tree(methods)
    _add_other_commands(methods)
    _offer(parser, shown=all_shown)
    return parser


def add_connection_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that describe the archive and how to authenticate."""
    group = parser.add_argument_group("archive")
    group.add_argument(
        "--url",
        help="a DICOMweb service (https://…), a folder, an fsspec URL (gs://, s3://, …), or the name of a server "
        "(see the method servers; a file or folder of that name comes first); by default that of the environment "
        f"variable {URL_VARIABLE}",
    )
    add_archive_options(group)
    group.add_argument("--chunk-size", type=int, metavar="BYTES", help="most bytes to read from the network at once")
    auth = parser.add_argument_group("authentication")
    add_authentication_options(auth)
    auth.add_argument(
        "-p",
        "--password",
        action="store_true",
        help=f"ask for the password, also if the environment variable {PASSWORD_VARIABLE} is set; takes no value",
    )
    auth.add_argument(
        "--token",
        "--bearer-token",
        dest="token",
        metavar="TOKEN",
        help="bearer token (visible in the list of processes: prefer --token-env or --token-file)",
    )


_SEARCHES = {
    "studies": "search studies --url https://pacs.example/dicom-web --filter StudyDate=20260101-",
    "series": "search series --url pacs --study 1.2.3 --filter Modality=CT --format csv",
    "instances": "search instances --url /data/dicom --study 1.2.3 --field Rows --field Columns",
}


def _add_search(methods: argparse._SubParsersAction[Parser]) -> None:
    search = methods.add_parser("search", help="search for studies, series or instances (QIDO-RS)")
    kinds = search.add_subparsers(dest="information_entity", metavar="WHAT", required=True)
    for above, kind in enumerate(("studies", "series", "instances")):
        parser = kinds.add_parser(kind, help=f"search for {kind}", example=_SEARCHES[kind])
        _add_uids(parser, above, required=False)
        add_filter_option(parser, "return")
        parser.add_argument(
            "--field", metavar="NAME", action="append", default=[], dest="fields", help="further attribute to return"
        )
        parser.add_argument("--limit", type=int, metavar="N", help="at most this many rows (default: all)")
        parser.add_argument("--offset", type=int, default=0, metavar="N", help="rows to skip")
        parser.add_argument("--fuzzy", action="store_true", default=None, help="fuzzy matching of person names")
        _add_format(parser).add_argument(
            "--format",
            choices=("table", "json", "jsonl", "csv"),
            help="a table (the default at a terminal), a JSON list, JSON lines (the default for a pipe), or CSV",
        )
        parser.set_defaults(command="search")


_UID_EXAMPLES = ("--study 1.2.3", "--series 1.2.4", "--instance 1.2.5")


def _add_retrieve(methods: argparse._SubParsersAction[Parser]) -> None:
    retrieve = methods.add_parser(
        "retrieve", help="retrieve files, metadata, frames, pictures, readable reports, bulk data (WADO-RS)"
    )
    kinds = retrieve.add_subparsers(dest="information_entity", metavar="WHAT", required=True)
    for depth, kind in enumerate(("studies", "series", "instances"), start=1):
        parser = kinds.add_parser(kind, help=f"retrieve {kind}")
        _add_uids(parser, depth)
        forms = parser.add_subparsers(dest="form", metavar="FORM", required=True)
        which = " ".join(["retrieve", kind, "--url pacs", *_UID_EXAMPLES[:depth]])
        metadata = forms.add_parser(
            "metadata", help="the metadata in the DICOM JSON model", example=f"{which} metadata --dicomize"
        )
        _add_format(metadata)
        _add_save(metadata)
        full = forms.add_parser(
            "full", help="the complete DICOM files (Part 10)", example=f"{which} full --save --output-dir files"
        )
        _add_save(full)
        _add_media_type(full)
        rendered = forms.add_parser(
            "rendered",
            help="a picture (JPEG, PNG, …) of an image, a page (HTML) of a report (SR) or document",
            example=f"{which} rendered --media-type image/png --save --local",
        )
        _add_save(rendered)
        _add_media_type(rendered)
        rendered.add_argument("--quality", type=int, metavar="1-100")
        rendered.add_argument("--window", metavar="CENTER,WIDTH[,SHAPE]")
        rendered.add_argument("--viewport", metavar="W,H[,SX,SY,SW,SH]")
        rendered.add_argument("--thumbnail", action="store_true")
        rendered.add_argument(
            "--local",
            action="store_true",
            help="if the server does not render it, retrieve the instance (of a study or series the first image) and "
            "render it here",
        )
        forms_with = [metadata, full, rendered]
        if kind == "instances":
            frames = forms.add_parser(
                "frames", help="frames of the pixel data", example=f"{which} frames --numbers 1 2 --save"
            )
            frames.add_argument("--numbers", type=int, nargs="+", required=True, metavar="N", help="counted from 1")
            frames.add_argument("--show", action="store_true", help="open each frame in the system's image viewer")
            _add_save(frames)
            _add_media_type(frames)
            forms_with.append(frames)
        for form in forms_with:
            form.set_defaults(command="retrieve")
    bulkdata = kinds.add_parser(
        "bulkdata",
        help="retrieve bulk data by its URI",
        example="retrieve bulkdata --url pacs --save --uri studies/1.2.3/series/1.2.4/instances/1.2.5/bulkdata/1",
    )
    bulkdata.add_argument("--uri", required=True, dest="bulkdata_uri", metavar="URI")
    _add_media_type(bulkdata)
    _add_save(bulkdata)
    bulkdata.set_defaults(command="retrieve", form="bulkdata")


def _add_store(methods: argparse._SubParsersAction[Parser]) -> None:
    store = methods.add_parser("store", help="store Part 10 files (STOW-RS)")
    kinds = store.add_subparsers(dest="information_entity", metavar="WHAT", required=True)
    parser = kinds.add_parser(
        "instances", help="store instances", example="store instances incoming --url https://pacs.example/dicom-web"
    )
    parser.add_argument("files", nargs="+", metavar="PATH", help="files, or folders with all files below them")
    parser.add_argument("--study", metavar="UID", dest="study_instance_uid", help="accept instances of this study only")
    add_policy_options(parser, on_existing="server")
    add_report_option(parser)
    parser.set_defaults(command="store")


def _add_delete(methods: argparse._SubParsersAction[Parser]) -> None:
    delete = methods.add_parser("delete", help="delete a study, series or instance")
    kinds = delete.add_subparsers(dest="information_entity", metavar="WHAT", required=True)
    for depth, kind in enumerate(("study", "series", "instance"), start=1):
        which = " ".join(_UID_EXAMPLES[:depth])
        parser = kinds.add_parser(kind, help=f"delete one {kind}", example=f"delete {kind} --url pacs {which} --yes")
        _add_uids(parser, depth)
        parser.add_argument(
            "--yes", action="store_true", required=True, help="required, because a deletion cannot be undone"
        )
        parser.set_defaults(command="delete")


def _add_copy(methods: argparse._SubParsersAction[Parser]) -> None:
    parser = methods.add_parser(
        "copy",
        help="copy what matches from one archive to another; resumable",
        example="copy /data/dicom https://pacs.example/dicom-web --filter Modality=CT --failures failures.jsonl",
    )
    parser.add_argument(
        "source", metavar="SOURCE", help="URL, folder or server to read (the options of dicomweb-io --help apply to it)"
    )
    parser.add_argument("destination", metavar="DESTINATION", help="URL, folder or server to write")
    add_transfer_options(parser)
    _add_jobs_and_destination(parser, "series")
    parser.set_defaults(command="copy")


def _add_jobs_and_destination(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--jobs", type=int, default=8, metavar="N", help=f"{what} at once (default: %(default)s)")
    there = parser.add_argument_group("destination")
    add_archive_options(there, "destination")
    add_authentication_options(there, "destination")


def _add_compare(methods: argparse._SubParsersAction[Parser]) -> None:
    parser = methods.add_parser(
        "compare",
        help="say what one archive has and another has not; changes nothing",
        description="Compares the instances of two archives by UID, by announced numbers, or by content.\n"
        "The differences are JSON lines, which copy --input takes. The exit code is 0 if both hold the same,\n"
        "1 if they differ or something could not be compared.",
        example="compare /data/ct https://pacs.example/dicom-web --output missing.jsonl",
    )
    parser.add_argument("source", metavar="SOURCE", help="URL or folder that is to be there again")
    parser.add_argument("destination", metavar="DESTINATION", help="URL or folder that is held against it")
    add_comparison_options(parser)
    _add_jobs_and_destination(parser, "studies")
    parser.set_defaults(command="compare")


def _add_watch(methods: argparse._SubParsersAction[Parser]) -> None:
    parser = methods.add_parser(
        "watch",
        help="copy what is new in an archive, or keep a table of it, continuously or once a night",
        description="Copies what is new in one archive to another, in rounds. The position is kept in a file, so that\n"
        "the same command goes on where it ended: nothing is missed, and nothing is stored twice.",
        example="watch https://pacs.example/dicom-web /data/new --cursor watch.json --once",
    )
    parser.add_argument(
        "source", metavar="SOURCE", help="URL or folder to watch (the options of the archive apply to it)"
    )
    parser.add_argument(
        "destination", metavar="DESTINATION", nargs="?", help="URL or folder to write; without it, --table is kept"
    )
    add_watch_options(parser)
    _add_jobs_and_destination(parser, "series")
    parser.set_defaults(command="watch")


def _add_servers(methods: argparse._SubParsersAction[Parser]) -> None:
    servers = methods.add_parser("servers", help="give servers names, with the way to log in to each")
    actions = servers.add_subparsers(dest="action", metavar="ACTION", required=True)
    parser = actions.add_parser(
        "add",
        help="save a server: --url and the options for it",
        usage="%(prog)s NAME --url URL [options]",
        description="Saves --url and the options for it under a name that then stands for them.\n"
        "Secrets are named, not saved.",
        example="servers add pacs --url https://pacs.example/dicom-web --token-env PACS_TOKEN",
    )
    add_further_credentials(parser.add_argument_group("further ways to authenticate"))
    parser.set_defaults(saves_options=True)
    known = actions.add_parser("list", help="list the servers, and how each is asked", example="servers list")
    test = actions.add_parser(
        "test", help="ask a server whether it lets you in and what works", example="servers test pacs"
    )
    remove = actions.add_parser("remove", help="forget a server", example="servers remove pacs")
    for named in (parser, test, remove):
        named.add_argument("name", metavar="NAME", help="letters, digits, - and _")
    for action in (parser, known, test, remove):
        action.set_defaults(command="servers")


def _add_export(methods: argparse._SubParsersAction[Parser]) -> None:
    export = methods.add_parser("export", help="write what an archive holds as a table")
    kinds = export.add_subparsers(dest="what", metavar="WHAT", required=True)
    parser = kinds.add_parser(
        "table",
        help="chosen attributes of studies, series or instances as Parquet, CSV or JSON lines",
        description="Writes a row for each study, series or instance. The file appears when it is complete; it holds "
        "what the columns name, also names of patients, and only its owner can read it.",
        example="export table https://pacs.example/dicom-web --level series --filter Modality=CT --out series.parquet",
    )
    parser.add_argument("archive", nargs="?", metavar="ARCHIVE", help="the archive (or --url)")
    add_table_options(parser)
    parser.add_argument("--jobs", type=int, default=8, metavar="N", help="requests at once (default: %(default)s)")
    parser.set_defaults(command="export table")


def _add_other_commands(methods: argparse._SubParsersAction[Parser]) -> None:
    parser = methods.add_parser(
        "doctor",
        help="ask an archive what it supports; changes nothing",
        example="doctor --url https://pacs.example/dicom-web",
    )
    parser.add_argument("--json", action="store_true", help="a JSON object instead of a table")
    parser.set_defaults(command="doctor")
    parser = methods.add_parser(
        "serve", help="serve a folder as a DICOMweb server, for tests", example="serve /data/dicom --port 8042"
    )
    add_serve_arguments(parser)
    parser.set_defaults(command="serve")
    parser = methods.add_parser(
        "completion",
        help="print a script that completes commands and options in your shell",
        example="completion bash > ~/.local/share/bash-completion/completions/dicomweb-io",
    )
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"), help="the shell")
    parser.set_defaults(command="completion")


def _add_index(methods: argparse._SubParsersAction[Parser]) -> None:
    parser = methods.add_parser(
        "index", help="read a folder and count what is in it", example="index /data/dicom --list"
    )
    parser.add_argument("path", help="the folder")
    parser.add_argument("--list", action="store_true", help="list duplicate, ignored and unreadable files")
    parser.set_defaults(command="index")


def _add_tree(methods: argparse._SubParsersAction[Parser]) -> None:
    parser = methods.add_parser(
        "tree",
        help="show what is in an archive: patients, studies, series, and what is wrong",
        example="tree /data/dicom --check",
    )
    parser.add_argument("archive", nargs="?", metavar="ARCHIVE", help="a server or a folder; or use --url")
    add_filter_option(parser, "show")
    parser.add_argument(
        "--depth", choices=("studies", "series"), help="how deep (default: series, for people only if few)"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="at most this many studies (default: 100 in a table)")
    parser.add_argument(
        "--check", action="store_true", help="list the instances of each series too; exit code 1 if anything is wrong"
    )
    parser.add_argument(
        "--format",
        choices=("table", "json", "jsonl"),
        help="a table (the default at a terminal), a JSON list, or JSON lines (the default for a pipe)",
    )
    parser.set_defaults(command="tree")


def _add_uids(parser: argparse.ArgumentParser, depth: int, *, required: bool = True) -> None:
    """The UIDs of a study, of a series in it, and of an instance in that: the first so many."""
    names = {"study": "study_instance_uid", "series": "series_instance_uid", "instance": "sop_instance_uid"}
    for option, name in list(names.items())[:depth]:
        parser.add_argument(f"--{option}", metavar="UID", dest=name, required=required)


def _add_format(parser: argparse.ArgumentParser) -> argparse._MutuallyExclusiveGroup:
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--prettify", action="store_true", help="indented JSON")
    group.add_argument("--dicomize", action="store_true", help="text for people, not JSON")
    group.add_argument("--json-lines", action="store_true", help="one JSON object a line")
    return group


def _add_save(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--save", action="store_true", help="write files instead of printing")
    parser.add_argument(
        "--output-dir", metavar="PATH", default=".", help="folder to write to (default: the current one)"
    )
    parser.add_argument("--stdout", action="store_true", help="write the bytes to standard output")


def _add_media_type(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--media-type",
        metavar=("TYPE", "TRANSFER_SYNTAX_UID"),
        action="append",
        nargs="+",
        default=[],
        dest="media_types",
        help="accepted media type and optionally its transfer syntax; repeatable, best first",
    )
