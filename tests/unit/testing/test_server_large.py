"""A gigabyte in and out of the server: its memory stays small."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from dicomweb_io.elements import Instance
from dicomweb_io.http.multipart import MultipartReader
from dicomweb_io.testing.samples import synthetic_instance

CHUNK = 1 << 20
MEGABYTE = 1 << 20
DICOM = 'multipart/related; type="application/dicom"'


def peak(process: subprocess.Popen) -> int:
    """The most memory that a process ever had, in bytes."""
    text = Path(f"/proc/{process.pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("VmHWM:"))


def body(path: Path) -> Iterator[bytes]:
    yield b"--x\r\nContent-Type: application/dicom\r\n\r\n"
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk
    yield b"\r\n--x--\r\n"


def digest(chunks: Iterator[bytes]) -> str:
    sha = hashlib.sha256()
    for chunk in chunks:
        sha.update(chunk)
    return sha.hexdigest()


def digest_of(path: Path) -> str:
    with open(path, "rb") as file:
        return digest(iter(lambda: file.read(CHUNK), b""))


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="the memory of a process is read from /proc")
@pytest.mark.parametrize(
    "size", [80 * MEGABYTE, pytest.param(1024 * MEGABYTE, marks=pytest.mark.slow)], ids=["80 MB", "1 GB"]
)
def test_large_instances_are_streamed_both_ways(tmp_path, size):
    path = synthetic_instance(size, tmp_path / "large.dcm")
    expected = digest_of(path)
    archive = tmp_path / "archive"
    archive.mkdir()
    command = [sys.executable, "-m", "dicomweb_io", "serve", str(archive), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            url = process.stdout.readline().strip()
            assert requests.get(f"{url}/studies", timeout=60).status_code == 204
            before = peak(process)
            headers = {"Content-Type": f"{DICOM}; boundary=x"}
            answer = requests.post(f"{url}/studies", data=body(path), headers=headers, timeout=300)
            assert answer.status_code == 200
            where = f"{url}/{Instance.from_path(path).reference.uri}"
            headers = {"Accept": f"{DICOM}; transfer-syntax=*"}
            with requests.get(where, headers=headers, stream=True, timeout=300) as answer:
                reader = MultipartReader(answer.iter_content(CHUNK), answer.headers["Content-Type"])
                assert [digest(one.iter_bytes()) for one in reader] == [expected]
            headers = {"Accept": "application/dicom; transfer-syntax=*"}
            with requests.get(where, headers=headers, stream=True, timeout=300) as answer:
                assert answer.headers["Content-Length"] == str(path.stat().st_size)
                assert digest(answer.iter_content(CHUNK)) == expected
            assert peak(process) - before < 50 * MEGABYTE
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
