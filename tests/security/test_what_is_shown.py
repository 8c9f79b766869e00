"""What commands show does nothing to a terminal and tells no secret, whatever archives send and users mistype."""

from __future__ import annotations

import json

import pytest

from dicomweb_io.cli import main
from dicomweb_io.options import append_lines, report_lines
from tests.answering import Reply
from tests.security.hostile import element, multipart, part10, row

EVIL = "\x1b]0;EVIL\x07\x1b[2J\x9bmEVIL\u202eX\u2066"
HEADER = EVIL.encode().decode("latin-1")
HARMFUL = set("\x07\x1b\x9b\u202e\u2066")
SECRET = "SeCrEt99"


def _rows(request):
    texts = {tag: {"vr": "LO", "Value": [EVIL]} for tag in ("00081030", "0008103E", "00100020", "00080060", "00080050")}
    name = {"00100010": {"vr": "PN", "Value": [{"Alphabetic": EVIL}]}}
    numbers = {tag: {"vr": "IS", "Value": [1]} for tag in ("00201206", "00201208", "00201209", "00200011")}
    return Reply.json([{**row(), **texts, **name, **numbers}])


def _status_line(request):
    request.send(f"HTTP/1.1 400 {HEADER}\r\nContent-Length: 0\r\n\r\n".encode("latin-1"))


ANSWERS = {
    "rows": _rows,
    "message": Reply(400, json.dumps({"message": EVIL}).encode(), "application/json"),
    "text": Reply(409, EVIL.encode(), "text/plain"),
    "type": Reply(200, b"xx", f"text/{HEADER}"),
    "warning": Reply.json([row()], headers={"Warning": f'299 x "{HEADER}"'}),
    "study": Reply.json([row(study=EVIL)]),
    "VR": Reply.json([{**row(), "00080020": {"vr": EVIL, "Value": [EVIL]}}]),
    "tag": Reply.json([{**row(), EVIL: {"vr": "LO", "Value": [EVIL]}}]),
    "no JSON": Reply(200, EVIL.encode(), "application/dicom+json"),
    "redirect": Reply(302, b"", headers={"Location": f"http://127.0.0.1:1/{HEADER}"}),
    "login": Reply(401, b"", headers={"WWW-Authenticate": f'Basic realm="{HEADER}"'}),
    "encoding": Reply(200, b"x", "application/dicom+json", headers={"Content-Encoding": HEADER}),
    "instance": multipart([part10(instance=EVIL)]),
    "part": multipart([part10()], media_type=f"x/{HEADER}"),
    "status": _status_line,
}
COMMANDS = {
    "search": "search studies --url URL",
    "search, table": "search studies --url URL --format table",
    "search, JSON": "search studies --url URL --format json",
    "search, text": "search studies --url URL --dicomize",
    "tree": "tree URL --format table",
    "metadata": "retrieve studies --url URL --study 1.2.3 metadata",
    "files": "retrieve studies --url URL --study 1.2.3 full --save --output-dir OUT",
    "doctor": "doctor --url URL",
    "copy": "copy URL OUT",
    "compare": "compare URL OUT",
    "table": "export table URL --out OUT.csv",
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("answer", ANSWERS)
def test_what_an_archive_sends(origin, tmp_path, capsys, answer, command):
    server = origin(lambda request: ANSWERS[answer](request) if callable(ANSWERS[answer]) else ANSWERS[answer])
    words = COMMANDS[command].replace("URL", server.url).replace("OUT", str(tmp_path / "out")).split()
    main(["--deadline", "5", *words])
    printed = capsys.readouterr()
    assert HARMFUL.isdisjoint(printed.out)
    assert HARMFUL.isdisjoint(printed.err)


@pytest.mark.parametrize("command", ["tree", "search studies", "search instances --dicomize", "index --list"])
def test_what_a_folder_holds(tmp_path, capsys, command):
    """Names of files, and values in them."""
    evil = element(0x00081030, "LO", "\x1b]0;EVIL") + element(0x00100020, "LO", "A\x9b")
    name = "".join(letter for letter in EVIL if letter not in "/\0")
    (tmp_path / f"{name}.dcm").write_bytes(part10(more=evil))
    (tmp_path / f"{name}.txt").write_text("none")
    words = command.split()
    where = [str(tmp_path)] if words[0] != "search" else ["--url", str(tmp_path)]
    main([*words, *where])
    printed = capsys.readouterr()
    assert HARMFUL.isdisjoint(printed.out + printed.err)


@pytest.mark.parametrize(
    "words",
    [
        "search studies --url URL -p SECRET",
        "-p SECRET search studies --url URL",
        "--password=SECRET search studies --url URL",
        "search studies --url URL --tokn SECRET",
        "search studies --url URL --tokenSECRET",
        "search studies --url URL --token-env SECRET",
        "search studies --url URL --user me --password-env SECRET",
        "search studies --url me:SECRET@pacs.example --token-env PATH",
        "search studies --url me:SECRET@pacs.example/dicom-web",
        "copy me:SECRET@pacs.example:8042/dicom-web OUT",
        "copy http://me:SECRET@127.0.0.1:1/ OUT",
        "compare OUT http://me:SECRET@127.0.0.1:1/",
        "export table http://me:SECRET@127.0.0.1:1/ --out OUT.csv",
        "watch http://me:SECRET@127.0.0.1:1/ OUT --cursor OUT.json --once",
        "servers test http://me:SECRET@127.0.0.1:1/",
        "servers add x --url http://me:SECRET@127.0.0.1:1/",
        "servers add x --url http://127.0.0.1:1/ --token SECRET",
        "tree http://127.0.0.1:1/?token=SECRET",
    ],
)
def test_secrets_in_wrong_places(tmp_path, capsys, monkeypatch, words):
    monkeypatch.setenv("DICOMWEB_IO_SERVERS", str(tmp_path / "servers.toml"))
    words = words.replace("URL", "http://127.0.0.1:1/").replace("OUT", str(tmp_path / "out"))
    try:
        code = main(["--deadline", "2", *words.replace("SECRET", SECRET).split()])
    except SystemExit as error:
        code = error.code
    printed = capsys.readouterr()
    assert code in (1, 2)
    assert SECRET not in printed.out + printed.err


@pytest.mark.parametrize(
    "text",
    [
        f'url = "https://me:{SECRET}@pacs.example/"',
        f'url = "https://pacs.example/"\ntoken = "{SECRET}"',
        f'url = "https://pacs.example/"\ntoken-env = {SECRET}',
        f'url = "https://pacs.example/"\ntoken-env = "{SECRET}',
        f'url = "https://pacs.example/"\ntoken-env = ["{SECRET}"]',
        f'url = "https://pacs.example/?key={SECRET}"',
    ],
)
@pytest.mark.parametrize("command", ["servers list", "search studies --url pacs --deadline 1"])
def test_secrets_in_the_file_of_servers(tmp_path, capsys, monkeypatch, text, command):
    file = tmp_path / "servers.toml"
    file.write_text(f"[pacs]\n{text}\n")
    monkeypatch.setenv("DICOMWEB_IO_SERVERS", str(file))
    monkeypatch.chdir(tmp_path)
    main(command.split())
    printed = capsys.readouterr()
    assert SECRET not in printed.out + printed.err


def test_a_file_that_all_can_read_is_closed_before_lines_are_added(tmp_path):
    path = tmp_path / "failures.jsonl"
    path.write_text("before\n")
    path.chmod(0o644)
    append_lines(str(path), ["after"])
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_text() == "before\nafter\n"


def test_a_report_does_not_take_the_place_of_a_device(tmp_path):
    """As root, ``--failures /dev/null`` would."""
    device = tmp_path / "null"
    device.symlink_to("/dev/null")
    assert report_lines(str(device), "--failures", ["line"]) is None
    append_lines(str(device), ["line"])
    assert device.is_symlink()
    assert device.is_char_device()
