"""``dicomweb-io search``."""

from __future__ import annotations

import argparse

from dicomweb_io.cli.endpoints import UsageError, connect, endpoint_from
from dicomweb_io.cli.output import print_datasets
from dicomweb_io.clients.queries import check_limits, make_query
from dicomweb_io.elements import SearchLevel

LEVELS: dict[str, SearchLevel] = {"studies": "study", "series": "series", "instances": "instance"}


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


def command(args: argparse.Namespace) -> int:
    """Prints what a search finds, all pages of it."""
    endpoint = endpoint_from(args)
    try:
        check_limits(args.limit, args.offset)
        query = make_query(
            LEVELS[args.information_entity],
            getattr(args, "study_instance_uid", None),
            getattr(args, "series_instance_uid", None),
            fuzzymatching=args.fuzzy,
            fields=args.fields,
            search_filters=parse_filters(args.search_filters),
        )
    except (ValueError, TypeError) as error:
        raise UsageError(str(error)) from error
    client = connect(args, endpoint)
    try:
        print_datasets(client.iter_search(query, offset=args.offset, limit=args.limit), args)
    finally:
        client.close()
    return 0
