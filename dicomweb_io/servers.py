"""Servers with names: a TOML file of the user, with a table for each.

    [pacs]
    url = "https://pacs.example/dicom-web"
    token-env = "PACS_TOKEN"

The keys are ``url`` and the names of options. Secrets are named (``token-env``, ``password-file``, …), never written.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import re
import sys
from collections.abc import Mapping
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

VARIABLE = "DICOMWEB_IO_SERVERS"
"""The environment variable that names another file."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
"""What a name consists of: nothing that makes it look like a path or a URL."""

Server = dict[str, Any]
"""Values by the names of options."""

_SECRETS = ("token", "bearer-token", "password", "secret", "api-key")
_WORDS: dict[type, str] = {str: "text in quotes", float: "a number", bool: "true or false"}


class ServersError(ValueError):
    """The file of servers is not valid, or cannot be read or changed."""


def servers_path() -> str:
    """The file of the user's servers."""
    given = os.environ.get(VARIABLE)
    if given:
        return given
    from platformdirs import user_config_dir

    return os.path.join(user_config_dir("dicomweb-io", appauthor=False), "servers.toml")


def read_text(path: str) -> str:
    """The text of the file; none if there is no file.

    Raises:
        ServersError: If it cannot be read.
    """
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise ServersError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ServersError(f"{path} is not text in UTF-8") from error


def parse(text: str, path: str, kinds: Mapping[str, type]) -> dict[str, Server]:
    """The servers of a file, by name.

    Args:
        text: Its content.
        path: Where it is, for messages.
        kinds: The keys that a server may have, and the types of their values.

    Raises:
        ServersError: If it is not TOML, or has unknown keys or values; the text names the line, and no values.
    """
    try:
        document: dict[str, Server] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ServersError(f"{path} is not valid TOML: {error}") from error
    for name, server in document.items():
        if not isinstance(server, dict) or not NAME.fullmatch(name):
            what = "names have letters, digits, - and _" if isinstance(server, dict) else "expected a table: [NAME]"
            raise ServersError(f"{_place(text, path, name)}: {what}")
        for key, value in server.items():
            problem = _problem(key, value, kinds)
            if problem is not None:
                raise ServersError(f"{_place(text, path, name, key)}: [{name}] {problem}")
        if not server.get("url"):
            raise ServersError(f"{_place(text, path, name)}: [{name}] has no url")
        if re.match("[^/]*//[^/]*@", server["url"]):
            what = "the url holds a name or password: use user with password-env or password-file"
            raise ServersError(f"{_place(text, path, name, 'url')}: [{name}] {what}")
    return document


def _problem(key: str, value: Any, kinds: Mapping[str, type]) -> str | None:
    if key in _SECRETS:
        return f"{key}: secrets are not written here but named: use token-env, token-file, password-env or their like"
    kind = kinds.get(key)
    if kind is None:
        return f"unknown key {key!r}{suggestion(key, kinds)}"
    numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
    if (numeric and math.isfinite(value)) if kind is float else isinstance(value, kind):
        return None
    return f"{key}: expected {_WORDS[kind]}"


def suggestion(word: str, known: Any, before: str = ": did you mean ") -> str:
    """What to add to a message about an unknown word: what may have been meant; empty if nothing is close."""
    close = difflib.get_close_matches(word, list(known), 1)
    return f"{before}{close[0]}?" if close else ""


def _place(text: str, path: str, name: str, key: str | None = None) -> str:
    """The path, and the number of the line where a server or one of its keys is written, if it can be found."""
    inside = False
    for number, line in enumerate(text.splitlines(), 1):
        header = re.match(r"\s*\[\s*(.*?)\s*\]", line)
        if header:
            inside = header[1].strip("\"'") == name
        written = re.match(r"\s*[\"']?([^\"'=]*?)[\"']?\s*=", line)
        if (key is None and (inside or (written and written[1] == name))) or (
            key is not None and inside and written and written[1] == key
        ):
            return f"{path}, line {number}"
    return path


def as_toml(name: str, server: Mapping[str, Any]) -> str:
    """A server as a table of TOML."""
    return "".join([f"[{name}]\n", *(f"{key} = {_value(value)}\n" for key, value in server.items())])


def _value(value: str | float | bool) -> str:
    if not isinstance(value, str):
        return str(value).lower()
    # A string of JSON is one of TOML, but for this character.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def changed(text: str, servers: Mapping[str, Server], name: str, server: Server | None) -> str:
    """The text of the file with a server added, or without one that it has; all else stays as it is written.

    Args:
        text: The text.
        servers: The servers that it describes.
        name: Which server is new or goes.
        server: What is new; None to remove it.
    """
    if server is not None:
        expected = {**servers, name: server}
        text = (f"{text.rstrip()}\n\n" if text.strip() else "") + as_toml(name, server)
    else:
        expected = {other: value for other, value in servers.items() if other != name}
        text = re.sub(
            rf"^\[{name}\].*\n(?:(?!\s*\[).*\n?)*", "", text if text.endswith("\n") else text + "\n", flags=re.M
        )
    try:
        if tomllib.loads(text) == expected:
            return text.lstrip("\n")
    except tomllib.TOMLDecodeError:
        pass
    # The user wrote it in another form of TOML, such as an inline table.
    return "\n".join(as_toml(*item) for item in expected.items())
