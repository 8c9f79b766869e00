"""A DICOMweb server for tests, with the behaviour of real servers and faults on demand, and sample data.

Needs the extra `testing` (``pip install dicomweb_io[testing]``). Never put this server on a network: it is made to
misbehave, and it serves any folder it is given.

    with serve("some/folder", behaviour="orthanc", faults=[fault("status", status=503)]) as server:
        client = DICOMwebClient(server.url)

The names below are loaded when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dicomweb_io.testing.faults import Fault as Fault, fault as fault, faults_of_json as faults_of_json
    from dicomweb_io.testing.orthanc import Orthanc as Orthanc, OrthancUnavailable as OrthancUnavailable
    from dicomweb_io.testing.proxy import FaultyProxy as FaultyProxy
    from dicomweb_io.testing.samples import (
        charset_files as charset_files,
        clone as clone,
        copy_samples as copy_samples,
        make_study as make_study,
        sample_file as sample_file,
        sample_files as sample_files,
        synthetic_instance as synthetic_instance,
    )
    from dicomweb_io.testing.server.auth import (
        BasicAuthentication as BasicAuthentication,
        BearerAuthentication as BearerAuthentication,
        OAuth2Authentication as OAuth2Authentication,
        SigV4Authentication as SigV4Authentication,
    )
    from dicomweb_io.testing.server.behaviour import Behaviour as Behaviour, Limits as Limits
    from dicomweb_io.testing.server.behaviours import BEHAVIOURS as BEHAVIOURS
    from dicomweb_io.testing.server.exchange import Record as Record
    from dicomweb_io.testing.server.server import TLS as TLS, TestServer as TestServer, serve as serve

_ROOMS = {
    "faults": ("Fault", "fault", "faults_of_json"),
    "orthanc": ("Orthanc", "OrthancUnavailable"),
    "proxy": ("FaultyProxy",),
    "samples": (
        "charset_files",
        "clone",
        "copy_samples",
        "make_study",
        "sample_file",
        "sample_files",
        "synthetic_instance",
    ),
    "server.auth": ("BasicAuthentication", "BearerAuthentication", "OAuth2Authentication", "SigV4Authentication"),
    "server.behaviour": ("Behaviour", "Limits"),
    "server.behaviours": ("BEHAVIOURS",),
    "server.exchange": ("Record",),
    "server.server": ("TLS", "TestServer", "serve"),
}
_HOMES = {name: f"{__name__}.{room}" for room, names in _ROOMS.items() for name in names}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home), name)
