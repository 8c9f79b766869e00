"""``dicomweb-io retrieve``."""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from typing import Any
from urllib.parse import urlsplit

from dicomweb_io.cli.output import (
    FileNames,
    Saved,
    extension,
    json_text,
    names_of,
    print_datasets,
    print_line,
    progress,
    readable_text,
    save_beside,
    save_bytes,
    write_bytes,
)
from dicomweb_io.client import DICOMClient, MediaTypes
from dicomweb_io.dicom.json_decode import first_value
from dicomweb_io.elements import Instance, RenderedImage, Resource, SearchQuery
from dicomweb_io.errors import DICOMwebError
from dicomweb_io.failures import RECOVERABLE
from dicomweb_io.files.client import DICOMfileClient
from dicomweb_io.listing import resource_of_row
from dicomweb_io.options import UsageError, connect, endpoint_from
from dicomweb_io.spool import PrivateDirectory

logger = logging.getLogger("dicomweb_io")

_CHUNK = 1024 * 1024
_IN_MEMORY = 16 * 1024 * 1024
_MOST_ROWS = 1000
# Who is refused altogether, or comes too often, is not answered by other means.
_NOT_RENDERING = (401, 403, 429)


_IMAGE = ("Rows",)


def retrieve(args: argparse.Namespace) -> int:
    """Retrieves what was asked for and prints or saves it."""
    if args.save and args.stdout:
        raise UsageError("--save and --stdout contradict each other")
    takes = args.save or args.stdout or getattr(args, "show", False)
    if not takes and args.form in ("rendered", "bulkdata"):
        raise UsageError("say what becomes of it: --save writes files (see --output-dir), --stdout the bytes")
    endpoint = endpoint_from(args)
    reference = None
    if args.form != "bulkdata":
        try:
            reference = Resource(
                args.study_instance_uid,
                getattr(args, "series_instance_uid", None),
                getattr(args, "sop_instance_uid", None),
                tuple(getattr(args, "numbers", None) or ()),
            )
        except ValueError as error:
            raise UsageError(str(error)) from error
    saved = Saved(args.output_dir)
    client = connect(args, endpoint)
    try:
        if reference is None:
            _bulkdata(client, args, saved)
        elif not takes and args.form in ("full", "frames"):
            return _list(client, reference)
        else:
            {"metadata": _metadata, "full": _full, "frames": _frames, "rendered": _rendered}[args.form](
                client, reference, args, saved
            )
    except Exception:
        if args.save and saved.files:
            saved.tell(", and then it failed")
        raise
    finally:
        client.close()
    if args.save:
        saved.tell()
    return 0


def _list(client: DICOMClient, reference: Resource) -> int:
    """Lists what would be retrieved, from the metadata: what nobody takes is not sent."""
    whole = replace(reference, frames=())
    rows = client.iter_metadata(whole)
    if reference.frames:
        there = max((int(first_value(row, "NumberOfFrames") or 1) for row in rows), default=0)
        found: Iterable[Resource] = (replace(whole, frames=(one,)) for one in reference.frames if one <= there)
    else:
        found = (resource_of_row(row, "instance", reference) for row in rows)
    expected = max(len(reference.frames), 1)
    count = 0
    for item in found:
        print_line(item.to_dict())
        count += 1
    what = "frame" if reference.frames else "instance"
    noun = what if count == 1 else f"{what}s"
    print(
        f"{count:,} {noun} listed, nothing retrieved: --save writes files (see --output-dir), --stdout the bytes",
        file=sys.stderr,
    )
    return 0 if count >= expected else 1


def _metadata(client: DICOMClient, reference: Resource, args: argparse.Namespace, saved: Saved) -> None:
    rows = client.iter_metadata(reference)
    if not args.save:
        print_datasets(rows, args)
        return
    names = FileNames(args.output_dir, "txt" if args.dicomize else "json")
    with progress("metadata", _total(client, reference)) as shown:
        for row in rows:
            text = readable_text(row) if args.dicomize else json_text(row, indent=args.prettify)
            content = text.encode("utf-8", "backslashreplace")
            save_bytes(args.output_dir, names.of(resource_of_row(row, "instance", reference)), [content])
            saved.add(len(content))
            shown.advance(len(content))


def _total(client: DICOMClient, reference: Resource) -> int | None:
    """How many instances a person who watches waits for, if the archive says so at once."""
    if not sys.stderr.isatty():
        return None
    if reference.level == "instance":
        return 1
    with suppress(*RECOVERABLE):
        return client.count(SearchQuery("instance", reference.study_instance_uid, reference.series_instance_uid))
    return None


def _full(client: DICOMClient, reference: Resource, args: argparse.Namespace, saved: Saved) -> None:
    # The spool folder stands beside the target, so that saving a large file is a rename, not a copy.
    directory = args.output_dir if args.save else tempfile.gettempdir()
    os.makedirs(directory, exist_ok=True)
    with (
        PrivateDirectory(directory, ".retrieve-") as spool,
        progress("instances", _total(client, reference)) as shown,
    ):
        options = {"media_types": _media_types(args), "max_element_bytes": _IN_MEMORY, "spool_directory": spool}
        names = FileNames(args.output_dir, "dcm")
        for instance in _all(client, reference, options):
            size = instance.size
            if args.save:
                _save(instance, args.output_dir, names.of(instance.reference))
                saved.add(size)
            else:
                write_bytes(_chunks(instance.open()))
                if instance.path is not None:
                    os.unlink(instance.path)
            shown.advance(size)


def _save(instance: Instance, directory: str, name: str) -> None:
    if instance.path is not None:
        os.replace(instance.path, os.path.join(directory, name))
    else:
        save_bytes(directory, name, [instance.read()])


def _all(client: DICOMClient, reference: Resource, options: Mapping[str, Any]) -> Iterator[Instance]:
    """All instances: an answer can be well formed and lack some, which only a comparison with a search shows."""
    came: list[Resource] = []
    for instance in client.iter_instances(reference, **options):
        came.append(instance.reference)
        yield instance
    if reference.level == "instance":
        return
    try:
        missing = client.missing_instances(reference, came)
    except DICOMwebError as error:
        logger.warning("the answer could not be compared with a search: %s", error.log_text)
        return
    for lost in missing:
        logger.warning("%s was missing from the answer; it is requested separately", lost.uri)
        yield from client.iter_instances(lost, **options)


def _frames(client: DICOMClient, reference: Resource, args: argparse.Namespace, saved: Saved) -> None:
    try:
        # The metadata give the size of native frames: without it, one that is cut looks whole.
        for _ in client.iter_metadata(replace(reference, frames=())):
            pass
    except DICOMwebError as error:
        if error.status is None:
            raise
        logger.info("the size of the frames is unknown: %s", error.log_text)
    for frame in client.iter_frames(reference, media_types=_media_types(args)):
        content = frame.content or b""
        if args.show:
            _show(content)
        if args.save or args.stdout:
            _deliver(args, frame.reference, frame.media_type, content, saved)


def _rendered(client: DICOMClient, reference: Resource, args: argparse.Namespace, saved: Saved) -> None:
    given = {name: getattr(args, name) for name in ("quality", "window", "viewport")}
    options = {
        "media_types": _media_types(args),
        "params": {name: value for name, value in given.items() if value is not None},
        "thumbnail": args.thumbnail,
    }
    try:
        image = client.retrieve_rendered(reference, **options)
    except DICOMwebError as error:
        if error.status is None or error.status in _NOT_RENDERING or client.transport is None:
            raise
        if not args.local:
            print("dicomweb-io: --local retrieves the instance and renders it here", file=sys.stderr)
            raise
        print(f"The server does not render it (HTTP {error.status}): it is rendered here.", file=sys.stderr)
        image = _render_here(client, reference, options)
    _deliver(args, reference, image.media_type, image.content, saved)


def _render_here(client: DICOMClient, reference: Resource, options: Mapping[str, Any]) -> RenderedImage:
    """Renders an instance as a folder does; of a study or series the first one that is listed as an image."""
    if reference.level != "instance":
        query = SearchQuery("instance", reference.study_instance_uid, reference.series_instance_uid, fields=_IMAGE)
        rows = list(islice(client.iter_search(query), _MOST_ROWS))
        images = [row for row in rows if first_value(row, "Rows")] or rows
        if images:
            reference = resource_of_row(images[0], "instance", reference)
    with PrivateDirectory(prefix=".render-") as spool, PrivateDirectory(prefix=".render-") as directory:
        for instance in client.iter_instances(reference, max_element_bytes=_IN_MEMORY, spool_directory=spool):
            _save(instance, directory, f"{instance.reference.sop_instance_uid}.dcm")
        with DICOMfileClient(directory, in_memory=True) as folder:
            return folder.retrieve_rendered(reference, **options)


def _bulkdata(client: DICOMClient, args: argparse.Namespace, saved: Saved) -> None:
    for number, part in enumerate(client.iter_bulkdata_parts(args.bulkdata_uri, media_types=_media_types(args)), 1):
        if args.save:
            stem = os.path.basename(urlsplit(args.bulkdata_uri).path) or "bulkdata"
            stem = "".join(letter for letter in stem if letter.isalnum())[:64] or "bulkdata"
            last = f"{number}.{extension(part.media_type)}"
            origin = hashlib.sha256(args.bulkdata_uri.encode()).hexdigest()[:16]
            save_beside(args.output_dir, (f"{stem}_{last}", f"{stem}_{origin}_{last}"), part.content or b"")
            saved.add(len(part.content or b""))
        else:
            write_bytes([part.content or b""])


def _deliver(args: argparse.Namespace, resource: Resource, media_type: str, content: bytes, saved: Saved) -> None:
    if args.save:
        save_beside(args.output_dir, names_of(resource, extension(media_type)), content)
        saved.add(len(content))
    else:
        write_bytes([content])


def _media_types(args: argparse.Namespace) -> MediaTypes | None:
    wanted: list[str | tuple[str, str]] = []
    for item in args.media_types:
        if len(item) > 2:
            raise UsageError("--media-type takes a media type and at most one transfer syntax UID")
        wanted.append(item[0] if len(item) == 1 else (item[0], item[1]))
    return wanted or None


def _chunks(file: Any) -> Iterator[bytes]:
    with file:
        while chunk := file.read(_CHUNK):
            yield chunk


def _show(content: bytes) -> None:
    import io

    try:
        from PIL import Image
    except ImportError as error:
        raise UsageError("--show needs the package pillow") from error
    with Image.open(io.BytesIO(content)) as image:
        image.show()
