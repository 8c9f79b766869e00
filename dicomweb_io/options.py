"""From command line options to endpoints."""

from __future__ import annotations

import argparse
import getpass
import os
import sys
from typing import Any

from dicomweb_io.client import DICOMClient, check_chunk_size
from dicomweb_io.endpoint import Endpoint
from dicomweb_io.http.settings import TLS, Prefixes, Timeouts


class UsageError(Exception):
    """A wrong use of the command line; its text is shown and the exit code is 2."""


def endpoint_from(args: argparse.Namespace, url: str | None = None) -> Endpoint:
    """The endpoint that the connection options describe.

    Args:
        args: The parsed arguments.
        url: The archive; by default that of ``--url``.

    Raises:
        UsageError: If there is no URL, or options contradict each other.
    """
    url = url or args.url
    if not url:
        raise UsageError("--url is required: a DICOMweb service (https://…), a folder, or an fsspec URL")
    if args.insecure_no_verify and args.ca:
        raise UsageError("--ca and --insecure-no-verify contradict each other")
    credentials = _credentials(args)
    times = {"connect": args.timeout, "read": args.timeout, "deadline": args.deadline}
    for name in ("ca", "cert"):
        path = getattr(args, name)
        if path and not os.path.exists(path):
            raise UsageError(f"--{name}: there is no file {path}")
    try:
        return Endpoint(
            url,
            credentials=credentials,
            profile=args.profile,
            prefixes=Prefixes(args.qido_prefix, args.wado_prefix, args.stow_prefix, args.delete_prefix),
            tls=TLS(args.ca or not args.insecure_no_verify, args.cert),
            timeouts=Timeouts(**{name: seconds for name, seconds in times.items() if seconds is not None}),
        )
    except ValueError as error:
        raise UsageError(str(error)) from error


def connect(args: argparse.Namespace, endpoint: Endpoint) -> DICOMClient:
    """A client of an endpoint, set up as the connection options say.

    Raises:
        UsageError: If an option has a value that clients refuse.
    """
    try:
        chunk_size = None if args.chunk_size is None else check_chunk_size(args.chunk_size)
        client = endpoint.connect()
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from error
    if chunk_size is not None:
        client.set_chunk_size(chunk_size)
    return client


def _credentials(args: argparse.Namespace) -> Any:
    from dicomweb_io.http.auth import BasicCredentials, BearerToken, GoogleCredentials

    for name in ("user", "token", "token_env", "token_file"):
        if getattr(args, name) == "":
            # Most likely what a command or variable should have given; going on without would be anonymous access.
            raise UsageError(f"--{name.replace('_', '-')} is empty")
    ways = [name for name in ("user", "token", "token_env", "token_file", "google") if getattr(args, name)]
    if len(ways) > 1:
        given = " and ".join("--" + way.replace("_", "-") for way in ways)
        raise UsageError(f"give one way to authenticate, not {given}")
    if args.password and not args.user:
        raise UsageError("--password needs --user")
    if args.user:
        if args.password or ("DICOMWEB_PASSWORD" not in os.environ and sys.stdin.isatty()):
            return BasicCredentials(args.user, getpass.getpass(f"Password of {args.user}: "))
        if "DICOMWEB_PASSWORD" not in os.environ:
            raise UsageError("--user needs a password: --password asks for it, or set DICOMWEB_PASSWORD")
        return BasicCredentials(args.user, password_env="DICOMWEB_PASSWORD")  # noqa: S106 - a variable's name
    if args.token:
        return BearerToken(token=args.token)
    if args.token_env:
        if args.token_env not in os.environ:
            raise UsageError(f"--token-env: the environment variable {args.token_env} is not set")
        return BearerToken(env=args.token_env)
    if args.token_file:
        return BearerToken(file=args.token_file)
    return GoogleCredentials() if args.google else None


def destination_from(args: argparse.Namespace) -> Endpoint:
    """The endpoint that a copy writes to, with its own authentication options."""
    from dicomweb_io.http.auth import BasicCredentials, BearerToken

    options: dict[str, Any] = {}
    if args.destination_token_env:
        options["credentials"] = BearerToken(env=args.destination_token_env)
    elif args.destination_user:
        if not args.destination_password_env:
            raise UsageError("--destination-user needs --destination-password-env")
        options["credentials"] = BasicCredentials(args.destination_user, password_env=args.destination_password_env)
    try:
        return Endpoint(args.destination, **options)
    except ValueError as error:
        raise UsageError(str(error)) from error


def parse_filters(pairs: list[str]) -> list[tuple[str, str]]:
    """Splits ``KEY=VALUE`` at the first equals sign.

    Raises:
        UsageError: If there is none.
    """
    filters = []
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UsageError(f"--filter needs KEY=VALUE, but got {key!r} (use KEY= for universal matching)")
        filters.append((key, value))
    return filters
