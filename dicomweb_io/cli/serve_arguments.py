"""The arguments of ``dicomweb-io serve``."""

from __future__ import annotations

import argparse


def add_serve_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds them to a parser."""
    parser.add_argument("path", nargs="?", metavar="PATH", help="the folder to serve: a path, or any fsspec URL")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8042, help="the port; 0 for any free one (default: %(default)s)")
    parser.add_argument("--allow-remote", action="store_true", help="allow an address that other computers can reach")
    behaviour = parser.add_argument_group("behaviour")
    behaviour.add_argument("--manner", default="generic", metavar="NAME", help="behave like this kind of server")
    behaviour.add_argument("--manners", action="store_true", help="list the manners and end")
    behaviour.add_argument("--describe", action="store_true", help="tell what is known of the manner and end")
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
    access = parser.add_argument_group("who may ask (secrets come from environment variables)")
    access.add_argument("--user-env", metavar="NAME", dest="serve_user_env", help="holds NAME:PASSWORD (basic)")
    access.add_argument("--token-env", metavar="NAME", dest="serve_token_env", help="holds a bearer token")
    access.add_argument("--oauth2-env", metavar="NAME", help="holds CLIENT_ID:CLIENT_SECRET (client credentials)")
    access.add_argument("--token-lifetime", type=float, metavar="SECONDS", help="after which bearer tokens expire")
    access.add_argument("--sigv4-env", metavar="NAME", help="holds ACCESS_KEY_ID:SECRET_ACCESS_KEY (AWS)")
    access.add_argument("--sigv4-region", default="us-east-1", metavar="REGION", help="default: %(default)s")
    access.add_argument("--sigv4-service", default="medical-imaging", metavar="NAME", help="default: %(default)s")
    access.add_argument("--tls-cert", metavar="FILE", help="the server's certificate chain, PEM: serve https")
    access.add_argument("--tls-key", metavar="FILE", help="its key, if it is not in the same file")
    access.add_argument("--tls-client-ca", metavar="FILE", help="the authority that clients' certificates come from")
