"""``dicomweb-io retrieve``."""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from dicomweb_io.cli.output import (
    FileNames,
    extension,
    json_text,
    names_of,
    print_datasets,
    print_line,
    progress,
    save_beside,
    save_bytes,
    write_bytes,
)
from dicomweb_io.client import DICOMClient, MediaTypes
from dicomweb_io.dicom.json_decode import load_json_dataset
from dicomweb_io.elements import Instance, Resource
from dicomweb_io.errors import DICOMwebError
from dicomweb_io.listing import resource_of_row
from dicomweb_io.options import UsageError, connect, endpoint_from
from dicomweb_io.spool import PrivateDirectory

logger = logging.getLogger("dicomweb_io")

_CHUNK = 1024 * 1024
_IN_MEMORY = 16 * 1024 * 1024


def retrieve(args: argparse.Namespace) -> int:
    """Retrieves what was asked for and prints or saves it."""
    if args.save and args.stdout:
        raise UsageError("--save and --stdout contradict each other")
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
    client = connect(args, endpoint)
    try:
        if args.form == "bulkdata":
            _bulkdata(client, args)
        elif reference is not None:
            {"metadata": _metadata, "full": _full, "frames": _frames, "rendered": _rendered}[args.form](
                client, reference, args
            )
    finally:
        client.close()
    return 0


def _metadata(client: DICOMClient, reference: Resource, args: argparse.Namespace) -> None:
    rows = client.iter_metadata(reference)
    if not args.save:
        print_datasets(rows, args)
        return
    names = FileNames(args.output_dir, "txt" if args.dicomize else "json")
    with progress("metadata") as shown:
        for row in rows:
            text = str(load_json_dataset(row)) if args.dicomize else json_text(row, indent=args.prettify)
            name = names.of(resource_of_row(row, "instance", reference))
            save_bytes(args.output_dir, name, [text.encode("utf-8", "backslashreplace")])
            shown.advance()


def _full(client: DICOMClient, reference: Resource, args: argparse.Namespace) -> None:
    # The spool folder stands beside the target, so that saving a large file is a rename, not a copy.
    directory = args.output_dir if args.save else tempfile.gettempdir()
    os.makedirs(directory, exist_ok=True)
    with PrivateDirectory(directory, ".retrieve-") as spool, progress("instances") as shown:
        options = {"media_types": _media_types(args), "max_element_bytes": _IN_MEMORY, "spool_directory": spool}
        names = FileNames(args.output_dir, "dcm")
        for instance in _all(client, reference, options):
            size = instance.size
            if args.save:
                name = names.of(instance.reference)
                if instance.path is not None:
                    os.replace(instance.path, os.path.join(args.output_dir, name))
                else:
                    save_bytes(args.output_dir, name, [instance.read()])
            else:
                if args.stdout:
                    write_bytes(_chunks(instance.open()))
                else:
                    syntax = {"transfer_syntax_uid": instance.transfer_syntax_uid, "bytes": size}
                    print_line({**instance.reference.to_dict(), **syntax})
                if instance.path is not None:
                    os.unlink(instance.path)
            shown.advance(size)
    _hint(args)


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


def _frames(client: DICOMClient, reference: Resource, args: argparse.Namespace) -> None:
    for frame in client.iter_frames(reference, media_types=_media_types(args)):
        content = frame.content or b""
        if args.show:
            _show(content)
        _deliver(
            args,
            frame.reference,
            frame.media_type,
            content,
            {**frame.reference.to_dict(), "transfer_syntax_uid": frame.transfer_syntax_uid},
        )
    _hint(args)


def _rendered(client: DICOMClient, reference: Resource, args: argparse.Namespace) -> None:
    given = {name: getattr(args, name) for name in ("quality", "window", "viewport")}
    params = {name: value for name, value in given.items() if value is not None}
    image = client.retrieve_rendered(reference, media_types=_media_types(args), params=params, thumbnail=args.thumbnail)
    _deliver(args, reference, image.media_type, image.content, reference.to_dict())
    _hint(args)


def _bulkdata(client: DICOMClient, args: argparse.Namespace) -> None:
    for number, part in enumerate(client.iter_bulkdata_parts(args.bulkdata_uri, media_types=_media_types(args)), 1):
        if args.save:
            stem = os.path.basename(urlsplit(args.bulkdata_uri).path) or "bulkdata"
            stem = "".join(letter for letter in stem if letter.isalnum())[:64] or "bulkdata"
            last = f"{number}.{extension(part.media_type)}"
            origin = hashlib.sha256(args.bulkdata_uri.encode()).hexdigest()[:16]
            save_beside(args.output_dir, (f"{stem}_{last}", f"{stem}_{origin}_{last}"), part.content or b"")
        elif args.stdout:
            write_bytes([part.content or b""])
        else:
            print_line({"uri": part.uri, "media_type": part.media_type, "bytes": len(part.content or b"")})
    _hint(args)


def _deliver(
    args: argparse.Namespace, resource: Resource, media_type: str, content: bytes, description: dict[str, Any]
) -> None:
    if args.save:
        save_beside(args.output_dir, names_of(resource, extension(media_type)), content)
    elif args.stdout:
        write_bytes([content])
    else:
        print_line({**description, "media_type": media_type, "bytes": len(content)})


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


def _hint(args: argparse.Namespace) -> None:
    if not args.save and not args.stdout and sys.stderr.isatty():
        print("Nothing was written: --save writes files, --stdout writes the bytes.", file=sys.stderr)


def expand_paths(paths: Iterable[str]) -> Iterator[str]:
    """The files named, and those below the folders named, in order."""
    for path in paths:
        if os.path.isdir(path):
            for folder, folders, names in os.walk(path):
                folders.sort()
                yield from (os.path.join(folder, name) for name in sorted(names))
        else:
            yield path
