"""The faults that the server itself plays on a whole answer: other statuses, redirects, broken content codings."""

from __future__ import annotations

import itertools
import struct
import time
import zlib
from collections.abc import Iterator
from email.utils import formatdate

from dicomweb_io.testing.faults import Fault
from dicomweb_io.testing.server.auth import Authentication
from dicomweb_io.testing.server.exchange import Answer, Exchange, pieces_of

_LOGIN = (
    b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body><form method='post' action='/login'>"
    b"<input name='user'><input name='password' type='password'><button>Sign in</button></form></body></html>\n"
)


def instead(exchange: Exchange, authentication: Authentication) -> Answer | None:
    """The answer that a fault puts in place of the right one, before anything was done; None if none does."""
    for fault in exchange.faults:
        if fault.action == "expire_token":
            authentication.expire()
        answer = _instead(exchange, fault)
        if answer is not None:
            for _ in exchange.body:
                pass
            return answer
    return None


def _instead(exchange: Exchange, fault: Fault) -> Answer | None:
    options = fault.options
    if fault.action == "status":
        headers = {"Content-Type": str(options["content_type"])}
        if options["retry_after"] is not None:
            seconds = float(options["retry_after"])
            date = formatdate(time.time() + seconds, usegmt=True)
            headers["Retry-After"] = date if options["retry_after_date"] else f"{seconds:g}"
        body = options["body"]
        return Answer(int(options["status"]), headers, body if isinstance(body, bytes) else str(body).encode())
    if fault.action == "redirect":
        return Answer(int(options["status"]), {"Location": str(options["location"])})
    if fault.action == "redirect_loop":
        query = "&".join(f"{name}={value}" for name, value in exchange.query)
        location = exchange.path + ("?" + query if query else "")
        return Answer(int(options["status"]), {"Location": location})
    if fault.action == "html_login":
        return Answer(200, {"Content-Type": "text/html; charset=utf-8"}, _LOGIN)
    if fault.action == "endless_body":
        return _endless(exchange, int(options["chunk"]))
    if fault.action == "gzip_bomb":
        media_type = "application/dicom+json"
        return Answer(200, {"Content-Type": media_type, "Content-Encoding": "gzip"}, _bomb(int(options["size"])))
    return None


def afterwards(exchange: Exchange, answer: Answer) -> Answer:
    """The right answer with the faults that spoil its content coding."""
    broken = exchange.fault("bad_gzip") or exchange.fault("truncated_gzip")
    if broken is None:
        return answer
    content = b"".join(pieces_of(answer.body))
    if broken.action == "truncated_gzip":
        squeeze = zlib.compressobj(wbits=31)
        content = squeeze.compress(content) + squeeze.flush()
        content = content[: max(1, len(content) - 12)]
    headers = {name: value for name, value in answer.headers.items() if name.lower() != "content-length"}
    return Answer(answer.status, {**headers, "Content-Encoding": "gzip"}, content, on_end=answer.on_end)


def _endless(exchange: Exchange, chunk: int) -> Answer:
    if "dicom+json" in exchange.headers.get("accept", "") or "metadata" in exchange.path:
        row = b'{"0020000D":{"vr":"UI","Value":["1.2.3"]}},'
        rows = itertools.chain([b"["], itertools.repeat(row * max(1, chunk // len(row))))
        return Answer(200, {"Content-Type": "application/dicom+json"}, rows)
    head = b"--endless\r\nContent-Type: application/dicom\r\n\r\n" + b"\0" * 128 + b"DICM"
    pieces = itertools.chain([head], itertools.repeat(b"\0" * chunk))
    return Answer(200, {"Content-Type": 'multipart/related; type="application/dicom"; boundary=endless'}, pieces)


def _bomb(size: int) -> Iterator[bytes]:
    block = b" " * (1 << 20)
    squeeze = zlib.compressobj(9, wbits=-15)
    start = squeeze.compress(b"[") + squeeze.flush(zlib.Z_FULL_FLUSH)
    # After a full flush nothing refers to what was before: one squeezed block stands for all.
    squeezed = squeeze.compress(block) + squeeze.flush(zlib.Z_FULL_FLUSH)
    check = zlib.crc32(b"[")
    yield b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + start
    for _ in range(size // len(block)):
        check = zlib.crc32(block, check)
        yield squeezed
    end = block[: size % len(block)] + b"]"
    length = (size + 2) & 0xFFFFFFFF
    yield squeeze.compress(end) + squeeze.flush() + struct.pack("<II", zlib.crc32(end, check), length)
