"""Content-Encoding of answers (RFC 9110 section 8.4.1), decoded piece by piece within bounds."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

_FREE_BYTES = 64 << 20
_MAX_RATIO = 250
_SLICE = 1 << 15


class DecodingError(ValueError):
    """Compressed content is broken or suspicious.

    Attributes:
        truncated: Whether it broke off.
        bomb: Whether it was refused because it grows without measure.
    """

    def __init__(self, message: str, *, truncated: bool = False, bomb: bool = False) -> None:
        super().__init__(message)
        self.truncated = truncated
        self.bomb = bomb


class Decoder:
    """Undoes gzip or deflate, at most so many bytes at a time, and refuses decompression bombs.

    Content that grows more than 250-fold beyond 64 MiB is refused: DICOM JSON stays far below, all-zero pixels would
    not, and those are asked for without compression.

    Args:
        encoding: The Content-Encoding header.

    Raises:
        DecodingError: If the encoding is none of ``gzip``, ``x-gzip``, ``deflate`` and ``identity``.
    """

    def __init__(self, encoding: str) -> None:
        name = encoding.strip().lower()
        if name not in ("gzip", "x-gzip", "deflate"):
            raise DecodingError(f"the answer has a Content-Encoding that was not asked for: {name[:40]!r}")
        self._gzip = name != "deflate"
        self._inflater = zlib.decompressobj(zlib.MAX_WBITS | 16 if self._gzip else zlib.MAX_WBITS)
        self._started = False
        self._head = b""
        self._taken = 0
        self._given = 0

    def decode(self, data: bytes, size: int) -> Iterator[bytes]:
        """Takes the next compressed bytes, gives decoded pieces of at most `size` bytes.

        Raises:
            DecodingError: If they are broken, or grow without measure.
        """
        # What zlib leaves over is copied for each piece and each gzip member, so it must be short.
        for start in range(0, len(data), _SLICE):
            yield from self._decode(data[start : start + _SLICE], size)

    def _decode(self, data: bytes, size: int) -> Iterator[bytes]:
        self._taken += len(data)
        if not self._started:
            # Which of the two "deflate" formats it is shows in the first two bytes.
            data = self._head + data
            self._head = b""
            if len(data) < 2:
                self._head = data
                return
        while data:
            if self._inflater.eof:
                # Further gzip members continue the content; anything else behind the end is padding.
                if not self._gzip or not data.startswith(b"\x1f"):
                    return
                self._inflater = zlib.decompressobj(zlib.MAX_WBITS | 16)
            try:
                piece = self._inflater.decompress(data, size)
            except zlib.error as error:
                if self._gzip or self._started:
                    raise DecodingError(f"the compressed answer is broken: {error}") from None
                # "deflate" means the zlib format, but some servers send the bare algorithm.
                self._inflater = zlib.decompressobj(-zlib.MAX_WBITS)
                self._started = True
                continue
            self._started = True
            self._given += len(piece)
            if self._given > _FREE_BYTES and self._given > _MAX_RATIO * self._taken:
                raise DecodingError(
                    f"the answer grows more than {_MAX_RATIO}-fold when decompressed ({self._given >> 20} MiB so far)",
                    bomb=True,
                )
            if piece:
                yield piece
            data = self._inflater.unused_data if self._inflater.eof else self._inflater.unconsumed_tail

    def finish(self) -> Iterator[bytes]:
        """Gives what is left.

        Raises:
            DecodingError: If the compressed content has no end.
        """
        if self._head:
            raise DecodingError("the compressed answer breaks off", truncated=True)
        if not self._started:
            return
        if not self._inflater.eof:
            rest = self._inflater.flush()
            if rest:
                yield rest
            if not self._inflater.eof:
                raise DecodingError("the compressed answer breaks off", truncated=True)
