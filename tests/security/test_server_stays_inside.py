"""The server for tests cannot be made to read or write outside of its folder, whatever a request or a file says.

Requests are written to the socket byte for byte: libraries would tidy such paths up. A link that the owner of a folder
made is part of the folder (the file client follows links); the point is that no request makes or uses others. That only
loopback addresses are served unless told is tried in ``tests/unit/testing/test_server_running.py`` too.
"""

from __future__ import annotations

import http.client
import os
import socket
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest
import requests

from dicomweb_io.cli import main as command_line
from dicomweb_io.testing import serve
from tests.security.hostile import BOUNDARY, INSTANCE, SERIES, STUDY, element, part10
from tests.security.test_names_stay_inside import NO_FILE_NAMES, NO_NAMES

SECRET = b"ROOT:x:0:0:"
INSIDE = f"/studies/{STUDY}/series/{SERIES}/instances/{INSTANCE}"


@pytest.fixture
def outside(tmp_path) -> Path:
    """A directory above the archive, with a file of text and a DICOM file that are nobody's business."""
    (tmp_path / "secret.txt").write_bytes(SECRET)
    (tmp_path / "secret.dcm").write_bytes(part10("9.9.1", "9.9.2", "9.9.3", more=element(0x00420011, "OB", SECRET)))
    return tmp_path


@pytest.fixture
def server(serve, outside):
    archive = outside / "archive"
    archive.mkdir()
    (archive / "a.dcm").write_bytes(part10(more=element(0x00420011, "OB", b"document" * 1000)))
    return serve(archive)


def ask(server, target, *, method="GET", body=b"", headers=()):
    """Sends a target as it is; gives status and body of the answer."""
    host = urlsplit(server.url)
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host.netloc}", "Connection: close", "Accept: */*", *headers]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    with socket.create_connection((host.hostname, host.port), timeout=30) as sock:
        sock.sendall("\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape") + body)
        answer = http.client.HTTPResponse(sock, method=method)
        answer.begin()
        return answer.status, answer.read()


def ways_out(outside):
    """Names that lead to the secret files, seen from the archive, in every disguise."""
    plain = ["../secret.dcm", "../secret.txt", "../../../../etc/passwd", str(outside / "secret.txt"), "../secret.dcm\0"]
    plain += ["..\\secret.txt", "....//secret.txt", "..;/secret.txt", "./../secret.txt", "file:///etc/passwd"]
    plain += [f"file://{outside}/secret.txt", "a.dcm/../../secret.txt", "~root/.profile", "%00/../secret.txt"]
    found = []
    for name in plain:
        once = quote(name, safe="")
        found += [
            quote(name, safe="/:;~."),
            once,
            quote(once, safe=""),
            once.replace("%2F", "%2f"),
            once.replace(".", "%2e"),
        ]
        found.append(name.replace("/", "%c0%af").replace("\0", "%00").replace(" ", "%20").replace("\\", "%5c"))
    return list(dict.fromkeys(found))


PLACES = [
    "/{0}",
    "/studies/{0}",
    "/studies/{0}/series",
    "/studies/{0}/metadata",
    "/studies/{1}/series/{0}/metadata",
    "/studies/{1}/series/{2}/instances/{0}",
    "/studies/{1}/series/{2}/instances/{0}/metadata",
    "/studies/{1}/series/{2}/instances/{3}/bulkdata/{0}",
    "/studies/{1}/series/{2}/instances/{3}/bulkdata/00420011/{0}",
    "/studies/{1}/series/{2}/instances/{3}/frames/{0}",
    "/studies/{1}/series/{2}/instances/{3}/frames/1/{0}",
    "/studies/{1}/series/{2}/instances/{3}/{0}",
]


@pytest.mark.parametrize("place", PLACES)
def test_no_path_leads_out(server, outside, place):
    root = urlsplit(server.url).path
    for name in ways_out(outside):
        target = root + place.format(name, STUDY, SERIES, INSTANCE)
        for method in ("GET", "DELETE"):
            status, body = ask(server, target, method=method)
            # A name that is no path may be that of a study, of which nothing is found.
            assert 400 <= status < 500 or (status, body) == (204, b""), (method, target, status, body[:200])
            assert SECRET not in body
            assert b"root:" not in body
            assert str(outside).encode() not in body
    assert server.errors == []
    assert (outside / "secret.txt").read_bytes() == SECRET
    assert (outside / "archive" / "a.dcm").exists()


def test_the_right_paths_are_answered(server):
    """The other tests would pass too if nothing ever was answered."""
    root = urlsplit(server.url).path
    status, body = ask(server, root + INSIDE)
    assert status == 200
    assert b"DICM" in body
    status, body = ask(server, f"{root}{INSIDE}/bulkdata/00420011")
    assert (status, b"documentdocument" in body) == (200, True)


@pytest.mark.parametrize("prefix", ["", "http://127.0.0.1:1", "file://", "//other/", "/..", "/%2e%2e"])
def test_targets_that_are_no_paths(server, outside, prefix):
    root = urlsplit(server.url).path
    for target in (f"{prefix}{outside}/secret.txt", f"{prefix}{root}/../secret.txt", f"{prefix}/etc/passwd"):
        status, body = ask(server, target or "/")
        assert status >= 400
        assert SECRET not in body
        assert b"root:" not in body
    assert server.errors == []


def test_no_query_leads_out(server, outside):
    """Filters are compared, never opened."""
    for name in ("StudyInstanceUID", "SOPInstanceUID", "PatientID", "includefield", "accept", "RetrieveURL", "offset"):
        for value in ways_out(outside):
            answer = requests.get(f"{server.url}/instances?{name}={value}", timeout=30)
            assert answer.status_code in (200, 204, 400, 406), (name, value, answer.status_code)
            assert SECRET not in answer.content
            assert b"9.9.3" not in answer.content
    assert server.errors == []


@pytest.mark.parametrize("name", NO_FILE_NAMES)
@pytest.mark.parametrize("position", ["study", "series", "instance"])
def test_what_is_stored_stays_inside(server, outside, position, name):
    before = {path for path in outside.rglob("*") if outside / "archive" not in path.parents}
    part = f"--{BOUNDARY}\r\nContent-Type: application/dicom\r\nContent-Location: ../../evil\r\n\r\n".encode()
    body = part + part10(**{position: NO_NAMES[name]}) + f"\r\n--{BOUNDARY}--\r\n".encode()
    headers = {"Content-Type": f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'}
    answer = requests.post(f"{server.url}/studies", data=body, headers=headers, timeout=30)
    assert 400 <= answer.status_code < 500
    assert {path for path in outside.rglob("*") if outside / "archive" not in path.parents} == before
    assert [path.name for path in (outside / "archive").rglob("*") if path.is_file()] == ["a.dcm"]


def test_a_link_that_is_no_dicom_file_is_not_served(serve, outside):
    """Links to files and directories of other content, to devices, pipes, and in circles."""
    archive = outside / "archive"
    archive.mkdir()
    (archive / "a.dcm").write_bytes(part10())
    (archive / "text.dcm").symlink_to(outside / "secret.txt")
    (archive / "password.dcm").symlink_to("/etc/passwd")
    (archive / "zero.dcm").symlink_to("/dev/zero")
    (archive / "self").symlink_to(archive)
    (archive / "up").symlink_to(outside / "archive" / "..", target_is_directory=True)
    os.mkfifo(archive / "pipe.dcm")
    server = serve(archive)
    rows = requests.get(f"{server.url}/instances?includefield=all", timeout=30).json()
    # What "up" leads to is what the owner of the folder linked; its DICOM file is part of the archive by that.
    assert {row["00080018"]["Value"][0] for row in rows} <= {INSTANCE, "9.9.3"}
    root = urlsplit(server.url).path
    for name in ("text.dcm", "password.dcm", "zero.dcm", "self/a.dcm", "pipe.dcm", "up/secret.txt"):
        for target in (f"{root}/{name}", f"{root}/studies/{name}", f"{root}{INSIDE}/bulkdata/{name}"):
            status, body = ask(server, target)
            assert status >= 400
            assert SECRET not in body


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "", "192.0.2.1", "example.org", "127.0.0.1.example.org", "*"])
def test_the_command_binds_loopback_only_unless_told(outside, host, capsys):
    assert command_line(["serve", str(outside), "--host", host]) == 2
    assert "--allow-remote" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("127.0.0.1", 200),
        ("localhost", 200),
        ("LOCALHOST.:8042", 200),
        ("[::1]:80", 200),
        ("127.0.0.2:1", 200),
        ("archive", 200),
        ("Archive.:99", 200),
        ("evil.example", 421),
        ("evil.example:8042", 421),
        ("localhost.evil.example", 421),
        ("127.0.0.1.evil.example", 421),
        ("192.0.2.1", 421),
        ("archive:evil.example", 421),
        ("[::1].evil.example", 421),
        ("", 421),
    ],
)
def test_a_page_that_points_its_name_here_gets_nothing(tmp_path, name, status):
    """DNS rebinding: the browser sends the page's own host name."""
    with serve(tmp_path, auth=("me", "secret"), allow_hosts=["archive"]) as server:
        headers = {"Host": name}
        answer = requests.get(f"{server.url}/studies", headers=headers, auth=("me", "secret"), timeout=20)
        assert (200 if answer.status_code == 204 else answer.status_code) == status
        assert server.errors == []


def test_a_server_for_others_answers_to_its_addresses():
    from dicomweb_io.testing.server.app import Hosts

    for own in ("0.0.0.0", "::", "192.0.2.1"):
        hosts = Hosts(own, ["archive"])
        assert all(map(hosts.include, ("192.0.2.1:80", "[2001:db8::1]", "localhost", "archive")))
        assert not any(map(hosts.include, ("evil.example", "192.0.2.1.evil.example")))
