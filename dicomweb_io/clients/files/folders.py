"""From a path or URL to the folder that it names."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

from dicomweb_io.clients.files.local import LocalFolder
from dicomweb_io.clients.files.location import Folder
from dicomweb_io.clients.files.remote import RemoteFolder


def folder_of(location: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> Folder:
    """Makes a folder of a path or URL.

    Args:
        location: A local path (``~`` is expanded), ``file:///a%20b``, or an fsspec URL such as ``memory://x`` or
            ``gs://bucket/prefix``.
        storage_options: Arguments for the fsspec filesystem; of no use for local paths.

    Raises:
        TypeError: If it is neither text nor a path.
        ValueError: If it is empty, an ``http`` URL, or a ``file`` URL of another host.
    """
    if not isinstance(location, (str, os.PathLike)):
        raise TypeError(f"a folder is given as a path or URL, but this is {type(location).__name__}")
    text = os.fspath(location)
    if not text:
        raise ValueError("the folder is empty (expected a path, or a URL such as file:///data or gs://bucket/data)")
    options = dict(storage_options) if storage_options else None
    if re.match(r"https?:", text, re.IGNORECASE):
        raise ValueError("http and https URLs are DICOMweb servers: use DICOMwebClient for them")
    if re.match(r"file:", text, re.IGNORECASE):
        return LocalFolder(_path_of_file_url(text), options)
    if re.match(r"local://", text, re.IGNORECASE):
        return LocalFolder(os.path.abspath(text[len("local://") :]), options)
    if "://" in text or "::" in text:
        return RemoteFolder(text, options)
    return LocalFolder(os.path.abspath(os.path.expanduser(text)), options)


def _path_of_file_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.netloc not in ("", "localhost", "127.0.0.1"):
        raise ValueError(
            "a file URL names a file of this computer, but this one names the host "
            f"{parts.netloc.rpartition('@')[2]!r} (three slashes: file:///path)"
        )
    # A question mark or hash in a file URL is meant as a character of the name when it is not quoted.
    path = parts.path + (f"?{parts.query}" if parts.query else "") + (f"#{parts.fragment}" if parts.fragment else "")
    path = unquote(path, errors="surrogateescape")
    if os.name == "nt":
        path = re.sub(r"\A/([A-Za-z]:)", r"\1", path)
    if not path:
        raise ValueError("the file URL has no path (expected file:///path)")
    return os.path.abspath(path)
