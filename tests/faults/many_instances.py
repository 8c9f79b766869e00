"""Failures that show only when many instances go through: what a server does when requests overlap, or when it dies."""

from __future__ import annotations

from dataclasses import dataclass

from dicomweb_io.testing.faults import Fault, fault
from tests.faults.expectations import Outcome

COUNT = 60
"""Instances that go through, each in a series of its own, so that they travel in separate requests."""

OUTAGE = 0.5
"""Seconds that is waited for a server that does not return."""

WAYS = {
    "store": ("dicomweb-io copy", "pipelines.transfer", "CopyInstances", "StoreInstances"),
    "retrieve": ("dicomweb-io copy", "pipelines.transfer", "CopyInstances", "RetrieveInstances"),
}
"""What takes the instances to a server, and from there."""


@dataclass(frozen=True)
class ManyCase:
    """One row.

    Attributes:
        name: Its name.
        words: What happens.
        fault: What the server does.
        direction: ``"store"`` or ``"retrieve"``.
        outcome: All arrive (``"recovered"``), or each that does not has its failure (``"reported"``).
        outage: Seconds that are waited for the server.
    """

    name: str
    words: str
    fault: Fault
    direction: str
    outcome: Outcome = "recovered"
    outage: float = 60.0


_RETRIEVES = "/series/[0-9.]+$|/instances/[0-9.]+$"

MANY = (
    ManyCase(
        "overlapping stores refused",
        "a store that overlaps with another is refused (0110H)",
        fault("refuse_instances", method="POST", overlapping=1, times=None),
        "store",
    ),
    ManyCase(
        "overlapping stores failed",
        "a store that overlaps with another is answered with 500",
        fault("status", status=500, method="POST", overlapping=1, times=None),
        "store",
    ),
    ManyCase(
        "overlapping retrieves lost",
        "a retrieve that overlaps with another is answered with 404",
        fault("status", status=404, method="GET", path=_RETRIEVES, overlapping=1, times=None),
        "retrieve",
    ),
    *(
        ManyCase(
            f"server restarts ({direction})",
            "all connections are reset, and for a second every new one is refused",
            fault("down", method=method, path=path, first=10, seconds=1.0),
            direction,
        )
        for direction, method, path in (("store", "POST", None), ("retrieve", "GET", _RETRIEVES))
    ),
    *(
        ManyCase(
            f"refused for good ({direction})",
            "all connections are reset, and every new one is refused: what is left is not tried",
            fault("down", method=method, path=path, first=10, seconds=3600.0),
            direction,
            "reported",
            OUTAGE,
        )
        for direction, method, path in (("store", "POST", None), ("retrieve", "GET", _RETRIEVES))
    ),
)
