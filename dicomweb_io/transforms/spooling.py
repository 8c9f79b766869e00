"""`PartSpool`: frames and bulk data that are large go through files, so that they are never in memory unasked for."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TypeVar

from dicomweb_io.clients.copying import PrivateDirectory
from dicomweb_io.clients.keeping import dropped
from dicomweb_io.clients.pool import Room
from dicomweb_io.elements import Bulkdata, Failure, Frame, Resource
from dicomweb_io.transforms.base import Problem
from dicomweb_io.wire.errors import safe_url

T = TypeVar("T", Frame, Bulkdata)


class PartSpool:
    """Where large frames or values wait until their size is known.

    Args:
        transform: The name for failures.
        what: What they are, for failures.
        most: The largest that may be an element with its bytes.
        directory: Where larger ones go for the consumer; None if they are failures.
    """

    def __init__(self, transform: str, what: str, most: int, directory: str | None) -> None:
        self._transform = transform
        self._what = what
        self._most = most
        self._directory = directory
        # Inside the consumer's directory, so that giving a file away is a rename.
        self._private = PrivateDirectory(directory)

    @property
    def path(self) -> str:
        """The directory for arriving parts."""
        return self._private.path

    def threshold(self, room: Room) -> int:
        """What may arrive in memory: so much every task may hold at once without the others having to wait."""
        return min(room.fair_share, self._most)

    def taken(self, part: T, reference: Resource | None, room: Room) -> T | Problem:
        """The element to give away, with room reserved for it; a problem if it is too large."""
        if part.content is not None:
            room.reserve(len(part.content))
            return part
        path = str(part.path)
        try:
            size = os.path.getsize(path)
            if size <= self._most:
                room.reserve(size)
                with open(path, "rb") as file:
                    return replace(part, content=file.read(), path=None)
            room.reserve(0)
            if self._directory is not None:
                target = os.path.join(os.path.dirname(self.path), os.path.basename(path))
                os.replace(path, target)
                return replace(part, path=target)
        finally:
            dropped(part)
        message = f"{self._what} has {size} bytes, more than max_element_bytes ({self._most}); raise that, or give a "
        url = safe_url(part.uri) if isinstance(part, Bulkdata) else None
        return Problem(Failure(self._transform, message + "spool_directory", reference=reference, url=url))

    def remove(self) -> None:
        """Removes what is left. It can be used again."""
        self._private.remove()
