"""``dicomweb-io servers``: servers with names, in a file of the user."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any
from urllib.parse import urlsplit

import requests

from dicomweb_io.cli.output import ANSWERS, print_line, print_table
from dicomweb_io.errors import safe_url
from dicomweb_io.options import (
    PASSWORD_VARIABLE,
    SERVER_KEYS,
    UsageError,
    atomic_file,
    connect,
    endpoint_from,
    make_endpoint,
)
from dicomweb_io.servers import NAME, Server, ServersError, as_toml, changed, parse, read_text, servers_path, suggestion

_FILES = ("ca", "cert", "token-file", "password-file", "google-file")


def servers(args: argparse.Namespace) -> int:
    """Adds, lists, tests or removes servers with names."""
    path = servers_path()
    try:
        text = read_text(path)
        known = parse(text, path, SERVER_KEYS)
    except ServersError as error:
        raise UsageError(str(error)) from error
    if args.action == "list":
        return _list(known, path)
    if args.action == "test":
        return _test(args)
    if args.action == "add":
        if args.name in known:
            raise UsageError(f"{path} has a server {args.name} already: remove it first, or choose another name")
        _write(path, changed(text, known, args.name, _server(args)))
        print(f"{args.name} is saved in {path}; dicomweb-io servers test {args.name} asks it", file=sys.stderr)
        return 0
    if args.name not in known:
        raise UsageError(f"{path} has no server {args.name}{suggestion(args.name, known)}")
    _write(path, changed(text, known, args.name, None))
    print(f"{args.name} is removed from {path}", file=sys.stderr)
    return 0


def _server(args: argparse.Namespace) -> Server:
    """What arguments say of a server, checked."""
    if not NAME.fullmatch(args.name):
        raise UsageError("the name has to consist of letters, digits, - and _, and to begin with a letter or digit")
    if args.token is not None or args.password:
        raise UsageError(
            "secrets are not saved: name them with --token-env, --token-file or --password-env (or save --user alone; "
            "then each command asks for the password)"
        )
    if not args.url:
        raise UsageError("--url is required: what the name stands for")
    if "@" in urlsplit(args.url).netloc:
        raise UsageError("--url holds a name or password: use --user with --password-env")
    given = {key: getattr(args, key.replace("-", "_"), None) for key in SERVER_KEYS}
    server = {key: value for key, value in given.items() if value is not None and value is not False}
    if "://" not in args.url:
        server["url"] = os.path.abspath(os.path.expanduser(args.url))
    for key in _FILES:
        if key in server:
            server[key] = os.path.abspath(os.path.expanduser(server[key]))
    options: dict[str, Any] = {key.replace("-", "_"): value for key, value in server.items()}
    if "user" in options and not any(name in options for name in ("password_env", "password_file")):
        # Each command asks for the password; here anything stands for it.
        options["password_env"] = PASSWORD_VARIABLE
    make_endpoint(server["url"], options, lambda name: "--" + name.replace("_", "-"))
    try:
        as_toml(args.name, server).encode()
    except UnicodeEncodeError as error:
        raise UsageError("an option has a value that is not text") from error
    return server


def _write(path: str, text: str) -> None:
    # A link, to a folder of configuration under version control for example, stays one.
    path = os.path.realpath(path)
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    with atomic_file(path) as file:
        file.write(text)


def _list(known: dict[str, Server], path: str) -> int:
    if sys.stdout.isatty():
        rows = [
            (name, safe_url(server["url"]), ", ".join(_option(*item) for item in server.items() if item[0] != "url"))
            for name, server in known.items()
        ]
        print_table(("name", "url", "options"), rows)
    else:
        for name, server in known.items():
            print_line({"name": name, **server, "url": safe_url(server["url"])})
    print(f"{len(known):,} {'server' if len(known) == 1 else 'servers'} in {path}", file=sys.stderr)
    return 0


def _option(key: str, value: Any) -> str:
    return f"--{key}" if value is True else f"--{key} {value}"


def _test(args: argparse.Namespace) -> int:
    """Prints what a server answers; fails if it cannot be searched."""
    endpoint = endpoint_from(args, args.name)
    login = "without credentials" if endpoint.credentials is None else f"with {endpoint.credentials!r}"
    client = connect(args, endpoint)
    rows: list[tuple[str, str, str]] = []
    works = False
    try:
        report = client.probe()
        works = True
        rows = [("login", "yes", f"accepted {login}")] if endpoint.is_web else []
        rows += [(item.feature, ANSWERS[item.supported], item.detail) for item in report.findings]
    except (requests.RequestException, OSError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        refused = status in (401, 403)
        rows = [("login", "no", f"HTTP {status} {login}")] if refused else []
        rows += [("search of studies", "no", str(error))]
    finally:
        client.close()
    print_table(("feature", "works", "answer"), rows)
    what = "answers searches" if works else "cannot be searched"
    print(f"{safe_url(args.name)} ({endpoint.safe_url}) {what}", file=sys.stderr)
    return 0 if works else 1
