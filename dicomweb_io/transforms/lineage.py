"""Which archives a pipeline read from and wrote to, as Beam's lineage metrics."""

from __future__ import annotations

from typing import Literal
from urllib.parse import urlsplit

from apache_beam.metrics.metric import Lineage

from dicomweb_io.clients.endpoint import Endpoint

Role = Literal["source", "sink"]

# The systems under which Beam's own file systems report what they read; everything behind them is a path.
_SYSTEMS = {"gs": "gcs", "gcs": "gcs", "s3": "s3", "s3a": "s3"}


def report_lineage(endpoint: Endpoint, role: Role) -> None:
    """Notes that an archive is a source or a sink. To be called on a bundle's own thread.

    A server is ``dicomweb:HOST.PATH``; a folder in an object store is what Beam calls it there (``gcs:BUCKET.PATH``);
    another folder is ``filesystem:PATH``.
    """
    lineage = Lineage.sources() if role == "source" else Lineage.sinks()
    system, segments = name_of(endpoint)
    lineage.add(system, *map(Lineage.wrap_segment, segments))


def name_of(endpoint: Endpoint) -> tuple[str, tuple[str, ...]]:
    """The system and the segments under which an archive is known; no user information, no query."""
    if "://" not in endpoint.url or "::" in endpoint.url:
        return "filesystem", (endpoint.url.rpartition("::")[2] if "::" in endpoint.url else endpoint.url,)
    parts = urlsplit(endpoint.safe_url)
    path = parts.path.strip("/")
    system = "dicomweb" if endpoint.is_web else _SYSTEMS.get(parts.scheme.lower())
    if system is None:
        return "filesystem", (endpoint.safe_url,)
    return system, (parts.netloc, path) if path else (parts.netloc,)
