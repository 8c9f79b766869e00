"""``dicomweb-io delete``."""

from __future__ import annotations

import argparse
from typing import cast

from dicomweb_io.cli.endpoints import connect, endpoint_from


def command(args: argparse.Namespace) -> int:
    """Deletes a study, series or instance."""
    client = connect(args, endpoint_from(args))
    try:
        study = cast(str, args.study_instance_uid)
        if args.information_entity == "study":
            client.delete_study(study)
        elif args.information_entity == "series":
            client.delete_series(study, args.series_instance_uid)
        else:
            client.delete_instance(study, args.series_instance_uid, args.sop_instance_uid)
    finally:
        client.close()
    return 0
