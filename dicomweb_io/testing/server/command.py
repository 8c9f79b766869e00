"""The test server as a command, ``dicomweb-io serve``, and what it tells about the behaviour of known servers."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from collections.abc import Mapping
from typing import Any, get_args

from dicomweb_io.testing.faults import Fault, faults_of_json
from dicomweb_io.testing.server.auth import (
    Authentication,
    BasicAuthentication,
    BearerAuthentication,
    OAuth2Authentication,
    SigV4Authentication,
)
from dicomweb_io.testing.server.behaviour import Behaviour, Evidence, meanings
from dicomweb_io.testing.server.behaviours import BEHAVIOURS, GENERIC, VARIANTS, behaviour_of
from dicomweb_io.testing.server.server import NOTICE, TLS, serve


def print_behaviours(options: argparse.Namespace) -> None:
    """Prints what ``--describe`` and ``--behaviours`` ask for.

    Raises:
        ValueError: If no behaviour has the name.
    """
    if options.behaviours:
        for one in (*BEHAVIOURS.values(), *VARIANTS.values()):
            print(f"{one.name}: {one.title}")
        return
    print(json.dumps(as_data(options.behaviour), indent=2) if options.json else describe(options.behaviour))


def run(options: argparse.Namespace) -> int:
    """Serves a folder until SIGINT or SIGTERM; SIGHUP makes the server look at the folder again.

    The URL is printed as the first line of standard output.

    Args:
        options: The arguments of the command.

    Returns:
        The exit code: 0 after an interrupt, 1 if the server had a defect.

    Raises:
        ValueError: If an argument is wrong.
        OSError: If the port is taken, or a file cannot be read.
    """
    faults, auth, tls = _faults(options), authentication_for(options), _tls(options)
    with serve(
        options.path,
        host=options.host,
        port=options.port,
        behaviour=options.behaviour,
        auth=auth,
        faults=faults,
        tls=tls,
        allow_remote=options.allow_remote,
        allow_hosts=options.allow_host,
    ) as server:
        over, again = threading.Event(), threading.Event()
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, lambda number, frame: over.set())
        if hasattr(signal, "SIGHUP"):
            signal.signal(signal.SIGHUP, lambda number, frame: again.set())
        print(server.url, flush=True)
        if isinstance(auth, OAuth2Authentication):
            print(f"Tokens: {server.origin}{auth.path}", file=sys.stderr)
        print(f"{NOTICE} Stop it with Ctrl-C.", file=sys.stderr, flush=True)
        while not over.wait(0.2):
            if again.is_set():
                again.clear()
                server.refresh()
        for text in server.errors:
            print(text, file=sys.stderr)
        return 1 if server.errors else 0


def _faults(options: argparse.Namespace) -> list[Fault]:
    faults = [one for text in options.fault for one in faults_of_json(f"[{text}]")]
    for path in options.faults:
        with open(path, "rb") as file:
            try:
                faults += faults_of_json(file.read())
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from None
    return faults


def authentication_for(options: argparse.Namespace) -> Authentication | None:
    """The authentication that the arguments ask for; secrets come from the environment only.

    Raises:
        ValueError: If the arguments contradict each other, or a variable does not hold what it should.
    """
    ways: dict[str, str | None] = {
        "--user-env": options.serve_user_env,
        "--token-env": options.serve_token_env,
        "--oauth2-env": options.oauth2_env,
        "--sigv4-env": options.sigv4_env,
    }
    given = [name for name, variable in ways.items() if variable]
    if len(given) > 1:
        raise ValueError(f"give one way to authenticate, not {' and '.join(given)}")
    lifetime = options.token_lifetime
    if lifetime is not None and given not in (["--token-env"], ["--oauth2-env"]):
        raise ValueError("--token-lifetime needs --token-env or --oauth2-env")
    if options.serve_user_env:
        name, password = _pair(options.serve_user_env, "NAME:PASSWORD")
        return BasicAuthentication({name: password})
    if options.serve_token_env:
        tokens = BearerAuthentication()
        tokens.accept(_secret(options.serve_token_env), lifetime)
        return tokens
    if options.oauth2_env:
        client, secret = _pair(options.oauth2_env, "CLIENT_ID:CLIENT_SECRET")
        return OAuth2Authentication(client, secret, 3600.0 if lifetime is None else lifetime)
    if options.sigv4_env:
        key, secret = _pair(options.sigv4_env, "ACCESS_KEY_ID:SECRET_ACCESS_KEY")
        return SigV4Authentication(key, secret, options.sigv4_region, options.sigv4_service)
    return None


def _secret(variable: str) -> str:
    value = os.environ.get(variable, "")
    if not value:
        raise ValueError(f"the environment variable {variable} is not set, or empty")
    return value


def _pair(variable: str, form: str) -> tuple[str, str]:
    name, separator, secret = _secret(variable).partition(":")
    if not (name and separator):
        raise ValueError(f"the environment variable {variable} does not hold {form}")
    return name, secret


def _tls(options: argparse.Namespace) -> TLS | None:
    others: Any = options.tls_key or options.tls_client_ca
    if not options.tls_cert:
        if others:
            raise ValueError("--tls-key and --tls-client-ca need --tls-cert")
        return None
    for path in filter(None, (options.tls_cert, options.tls_key, options.tls_client_ca)):
        if not os.path.isfile(path):
            raise ValueError(f"there is no file {path}")
    return TLS(options.tls_cert, options.tls_key, options.tls_client_ca)


def shown(value: object) -> str:
    """A value of a field in one line, always the same for equal values."""
    if isinstance(value, (frozenset, set)):
        return ", ".join(sorted(map(str, value))) or "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {one}" for key, one in sorted(value.items())) or "none"
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return ", ".join(f"{name} {one}" for name, one in zip(value._fields, value, strict=True))
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value) if value not in (None, "") else "none"


def describe(value: str | Behaviour) -> str:
    """What is known of a server, as text: each fact with its evidence, what is assumed, and what is not shown.

    Raises:
        ValueError: If no behaviour has this name.
    """
    behaviour, explained = behaviour_of(value), meanings()
    standard = {name: getattr(GENERIC, name) for name in explained}
    lines = [f"{behaviour.name}: {behaviour.title}", ""]
    groups: dict[str, list[str]] = {}
    for name, fact in behaviour.facts.items():
        usual = "as the standard" if fact.value == standard[name] else f"the standard: {shown(standard[name])}"
        groups.setdefault(fact.evidence, []).extend(
            (f"  {name} = {shown(fact.value)} ({usual})", f"      {explained[name]}", f"      source: {fact.source}")
        )
    for evidence in get_args(Evidence):
        if evidence in groups:
            lines += [f"{evidence.capitalize()}:", *groups[evidence], ""]
    assumed = [name for name in standard if name not in behaviour.facts]
    if behaviour.facts:
        lines += ["Not known, so as the standard says:", "  " + ", ".join(assumed), ""]
    if behaviour.gaps:
        lines += ["Not shown here:", *(f"  - {gap}" for gap in behaviour.gaps), ""]
    return "\n".join(lines)


def as_data(value: str | Behaviour) -> dict[str, Any]:
    """The same as data for JSON: name, title, facts (value, evidence, source) and gaps."""
    behaviour = behaviour_of(value)
    return {
        "name": behaviour.name,
        "title": behaviour.title,
        "facts": {
            name: {"value": shown(fact.value), "evidence": fact.evidence, "source": fact.source}
            for name, fact in behaviour.facts.items()
        },
        "gaps": list(behaviour.gaps),
    }
