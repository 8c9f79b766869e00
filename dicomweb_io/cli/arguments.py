"""The grammar of the command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from dicomweb_io._version import __version__
from dicomweb_io.options import (
    PASSWORD_VARIABLE,
    add_archive_options,
    add_authentication_options,
    add_comparison_options,
    add_filter_option,
    add_policy_options,
    add_transfer_options,
)

Command = Callable[[argparse.Namespace], int]


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


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``dicomweb-io``: connection options, then a method and its arguments."""
    parser = argparse.ArgumentParser(
        prog="dicomweb-io",
        description="Search, retrieve, store and copy DICOM objects on DICOMweb servers and in folders of files.",
        epilog="The exit code is 0 only if everything asked for was done.",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    parser.add_argument("-v", "--verbosity", action="count", default=0, help="log more; repeat for even more")
    add_connection_options(parser)
    methods = parser.add_subparsers(dest="method", metavar="METHOD", required=True)
    _add_search(methods)
    _add_retrieve(methods)
    _add_store(methods)
    _add_delete(methods)
    _add_copy(methods)
    _add_compare(methods)
    _add_other_commands(methods)
    return parser


def add_connection_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options that describe the archive and how to authenticate."""
    group = parser.add_argument_group("archive")
    group.add_argument("--url", help="a DICOMweb service (https://…), a folder, or an fsspec URL (gs://, s3://, …)")
    add_archive_options(group)
    group.add_argument("--chunk-size", type=int, metavar="BYTES", help="most bytes to read from the network at once")
    auth = parser.add_argument_group("authentication")
    add_authentication_options(auth)
    auth.add_argument(
        "-p",
        "--password",
        action="store_true",
        help=f"ask for the password, also if the environment variable {PASSWORD_VARIABLE} is set",
    )
    auth.add_argument(
        "--token",
        "--bearer-token",
        dest="token",
        metavar="TOKEN",
        help="bearer token (visible in the list of processes: prefer --token-env or --token-file)",
    )


def _add_search(methods: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    search = methods.add_parser("search", help="search for studies, series or instances (QIDO-RS)")
    kinds = search.add_subparsers(dest="information_entity", metavar="WHAT", required=True)
    for above, kind in enumerate(("studies", "series", "instances")):
        parser = kinds.add_parser(kind, help=f"search for {kind}")
        _add_uids(parser, above, required=False)
        add_filter_option(parser, "return")
        parser.add_argument(
            "--field", metavar="NAME", action="append", default=[], dest="fields", help="further attribute to return"
        )
        parser.add_argument("--limit", type=int, metavar="N", help="at most this many rows (default: all)")
        parser.add_argument("--offset", type=int, default=0, metavar="N", help="rows to skip")
        parser.add_argument("--fuzzy", action="store_true", default=None, help="fuzzy matching of person names")
        _add_format(parser)
        parser.set_defaults(command="search")


def _add_retrieve(methods: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    retrieve = methods.add_parser("retrieve", help="retrieve objects, metadata, frames, images, bulk data (WADO-RS)")
    kinds = retrieve.add_subparsers(dest="information_entity", metavar="WHAT", required=True)
    for depth, kind in enumerate(("studies", "series", "instances"), start=1):
        parser = kinds.add_parser(kind, help=f"retrieve {kind}")
        _add_uids(parser, depth)
        forms = parser.add_subparsers(dest="form", metavar="FORM", required=True)
        metadata = forms.add_parser("metadata", help="the metadata in the DICOM JSON model")
        _add_format(metadata)
        _add_save(metadata)
        full = forms.add_parser("full", help="the complete Part 10 files")
        _add_save(full)
        _add_media_type(full)
        rendered = forms.add_parser("rendered", help="an image for viewing")
        _add_save(rendered)
        _add_media_type(rendered)
        rendered.add_argument("--quality", type=int, metavar="1-100")
        rendered.add_argument("--window", metavar="CENTER,WIDTH[,SHAPE]")
        rendered.add_argument("--viewport", metavar="W,H[,SX,SY,SW,SH]")
        rendered.add_argument("--thumbnail", action="store_true")
        forms_with = [metadata, full, rendered]
        if kind == "instances":
            frames = forms.add_parser("frames", help="frames of the pixel data")
            frames.add_argument("--numbers", type=int, nargs="+", required=True, metavar="N", help="counted from 1")
            frames.add_argument("--show", action="store_true", help="open each frame in the system's image viewer")
            _add_save(frames)
            _add_media_type(frames)
            forms_with.append(frames)
        for form in forms_with:
            form.set_defaults(command="retrieve")
    bulkdata = kinds.add_parser("bulkdata", help="retrieve bulk data by its URI")
    bulkdata.add_argument("--uri", required=True, dest="bulkdata_uri", metavar="URI")
    _add_media_type(bulkdata)
    _add_save(bulkdata)
    bulkdata.set_defaults(command="retrieve", form="bulkdata")


def _add_store(methods: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    store = methods.add_parser("store", help="store Part 10 files (STOW-RS)")
    kinds = store.add_subparsers(dest="information_entity", metavar="WHAT", required=True)
    parser = kinds.add_parser("instances", help="store instances")
    parser.add_argument("files", nargs="+", metavar="PATH", help="files, or folders with all files below them")
    parser.add_argument("--study", metavar="UID", dest="study_instance_uid", help="accept instances of this study only")
    add_policy_options(parser, on_existing="server")
    parser.set_defaults(command="store")


def _add_delete(methods: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    delete = methods.add_parser("delete", help="delete a study, series or instance")
    kinds = delete.add_subparsers(dest="information_entity", metavar="WHAT", required=True)
    for depth, kind in enumerate(("study", "series", "instance"), start=1):
        parser = kinds.add_parser(kind, help=f"delete one {kind}")
        _add_uids(parser, depth)
        parser.add_argument(
            "--yes", action="store_true", required=True, help="required, because a deletion cannot be undone"
        )
        parser.set_defaults(command="delete")


def _add_copy(methods: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = methods.add_parser("copy", help="copy what matches from one archive to another; resumable")
    parser.add_argument("source", help="URL or folder to read (the options before the method apply to it)")
    parser.add_argument("destination", help="URL or folder to write")
    add_transfer_options(parser)
    parser.add_argument("--jobs", type=int, default=8, metavar="N", help="series at once (default: %(default)s)")
    there = parser.add_argument_group("destination")
    add_archive_options(there, "destination")
    add_authentication_options(there, "destination")
    parser.set_defaults(command="copy")


def _add_compare(methods: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = methods.add_parser("compare", help="say what one archive has and another has not; changes nothing")
    parser.add_argument("source", help="URL or folder that is to be there again (the options before the method apply)")
    parser.add_argument("destination", help="URL or folder that is held against it")
    add_comparison_options(parser)
    parser.add_argument("--jobs", type=int, default=8, metavar="N", help="studies at once (default: %(default)s)")
    there = parser.add_argument_group("destination")
    add_archive_options(there, "destination")
    add_authentication_options(there, "destination")
    parser.set_defaults(command="compare")


def _add_other_commands(methods: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = methods.add_parser("doctor", help="ask an archive what it supports; changes nothing")
    parser.add_argument("--json", action="store_true", help="a JSON object instead of a table")
    parser.set_defaults(command="doctor")
    parser = methods.add_parser("serve", help="serve a folder as a DICOMweb server, for tests")
    add_serve_arguments(parser)
    parser.set_defaults(command="serve")
    parser = methods.add_parser("index", help="read a folder and count what is in it")
    parser.add_argument("path", help="the folder")
    parser.add_argument("--list", action="store_true", help="list duplicate, ignored and unreadable files")
    parser.set_defaults(command="index")


def _add_uids(parser: argparse.ArgumentParser, depth: int, *, required: bool = True) -> None:
    """The UIDs of a study, of a series in it, and of an instance in that: the first so many."""
    names = {"study": "study_instance_uid", "series": "series_instance_uid", "instance": "sop_instance_uid"}
    for option, name in list(names.items())[:depth]:
        parser.add_argument(f"--{option}", metavar="UID", dest=name, required=required)


def _add_format(parser: argparse.ArgumentParser) -> None:
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--prettify", action="store_true", help="indented JSON")
    group.add_argument("--dicomize", action="store_true", help="text for people, not JSON")
    group.add_argument("--json-lines", action="store_true", help="one JSON object a line")


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
