"""What commands say of what they did: counts of files, summaries, progress, and one sentence after Ctrl-C."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pydicom
import pytest
from pydicom.data import get_testdata_file

from dicomweb_io.cli import main
from dicomweb_io.cli.output import progress
from dicomweb_io.testing import fault, make_study, serve

CT = Path(str(get_testdata_file("CT_small.dcm")))
DATASET = pydicom.dcmread(CT)
UIDS = tuple(map(str, (DATASET.StudyInstanceUID, DATASET.SeriesInstanceUID, DATASET.SOPInstanceUID)))
INSTANCE = ["instances", "--study", UIDS[0], "--series", UIDS[1], "--instance", UIDS[2]]
DICOMWEB_IO = [sys.executable, "-m", "dicomweb_io"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "archive"
    root.mkdir()
    (root / "ct.dcm").write_bytes(CT.read_bytes())
    return root


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


# Retrieve -------------------------------------------------------------------------------------------------------------


def test_what_was_saved_is_counted(tmp_path, capsys):
    paths = make_study(tmp_path / "archive", instances=4, size=100)
    study = str(pydicom.dcmread(paths[0]).StudyInstanceUID)
    size = sum(os.path.getsize(path) for path in paths)
    command = ("retrieve", "studies", "--url", tmp_path / "archive", "--study", study)
    assert run(*command, "full", "--save", "--output-dir", tmp_path / "one") == 0
    assert capsys.readouterr() == ("", f"4 files, {size / 1000:.1f} kB → {tmp_path}/one/\n")
    assert run(*command, "metadata", "--save", "--output-dir", tmp_path / "two") == 0
    assert capsys.readouterr().err.startswith("4 files, ")
    assert run(*command, "full", "--save", "--output-dir", tmp_path / "none", "--study=1.2.3") == 2


def test_what_was_saved_before_a_failure_is_counted_too(tmp_path, capsys):
    paths = make_study(tmp_path / "archive", instances=3, size=100)
    study = str(pydicom.dcmread(paths[0]).StudyInstanceUID)
    with serve(tmp_path / "archive", faults=[fault("drop_part", times=None)]) as server:
        command = ("--url", server.url, "retrieve", "studies", "--study", study, "full", "--save")
        assert run(*command, "--output-dir", tmp_path / "saved") == 1
    assert "2 files, " in capsys.readouterr().err


@pytest.mark.parametrize("web", [True, False])
def test_what_nobody_takes_is_not_retrieved(folder, capsys, web):
    with serve(folder) as server:
        where = ("--url", server.url if web else folder)
        assert run(*where, "retrieve", "studies", "--study", UIDS[0], "full") == 0
        listed = capsys.readouterr()
        assert json.loads(listed.out)["sop_instance_uid"] == UIDS[2]
        assert "1 instance listed, nothing retrieved: --save" in listed.err
        assert run(*where, "retrieve", *INSTANCE, "full") == 0
        assert json.loads(capsys.readouterr().out)["sop_instance_uid"] == UIDS[2]
        assert run(*where, "retrieve", *INSTANCE, "frames", "--numbers", "1", "2") == 1
        assert [json.loads(line)["frames"] for line in capsys.readouterr().out.splitlines()] == [[1]]
        assert run(*where, "retrieve", "studies", "--study", "1.2.3", "full") == 1
        assert all(record.path.endswith(("/instances", "/metadata", "/studies")) for record in server.records)
        before = len(server.records)
        assert run(*where, "retrieve", *INSTANCE, "rendered") == 2
        assert run(*where, "retrieve", "bulkdata", "--uri", f"studies/{UIDS[0]}") == 2
        assert len(server.records) == before
    assert "--save writes files" in capsys.readouterr().err


@pytest.mark.parametrize("status", [404, 406, 501])
@pytest.mark.parametrize("level", ["instances", "studies"])
def test_what_a_server_does_not_render_is_rendered_here_on_request(folder, tmp_path, capsys, status, level):
    refusal = fault("status", path="/rendered$", status=status, times=None)
    what = INSTANCE if level == "instances" else ["studies", "--study", UIDS[0]]
    with serve(folder, faults=[refusal]) as server:
        command = ("--url", server.url, "retrieve", *what, "rendered", "--save", "--output-dir", tmp_path / "out")
        command += ("--media-type", "image/png")
        assert run(*command) == 1
        assert "--local retrieves the instance and renders it here" in capsys.readouterr().err
        assert run(*command, "--local") == 0
    told = capsys.readouterr().err
    assert f"HTTP {status}" in told
    assert "1 file, " in told
    (image,) = (tmp_path / "out").iterdir()
    assert image.read_bytes().startswith(b"\x89PNG")


def test_who_may_not_log_in_gets_no_picture_by_other_means(folder, capsys):
    with serve(folder, faults=[fault("status", path="/rendered$", status=403, times=None)]) as server:
        assert run("--url", server.url, "retrieve", *INSTANCE, "rendered", "--stdout", "--local") == 1
        assert [record.path for record in server.records if not record.path.endswith("/rendered")] == []


# Store ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("web", [True, False])
def test_store_ignores_what_copy_ignores(folder, tmp_path, capsys, web):
    (folder / "README").write_text("no DICOM")
    (folder / "below").mkdir()
    (folder / "below" / "DICOMDIR").write_bytes(Path(str(get_testdata_file("DICOMDIR"))).read_bytes())
    (folder / ".git").mkdir()
    (folder / ".git" / "hidden.dcm").write_bytes(CT.read_bytes())
    with serve(tmp_path / "there") as server:
        target = server.url if web else tmp_path / "there"
        assert run("--url", target, "store", "instances", folder) == 0
        told = capsys.readouterr()
        results = {line["outcome"]: line for line in map(json.loads, told.out.splitlines())}
        assert set(results) == {"stored", "ignored"}
        assert results["ignored"]["source"].startswith(str(folder))
        assert told.err == f"3 files: 1 stored, 2 ignored; 39.2 kB → {target}\n"
        assert run("copy", folder, target) == 0
        copied = json.loads(capsys.readouterr().out)
        assert (copied["found"], copied["already_there"], copied["ignored"]) == (3, 1, 2)
        # What is cut off, and a file that the user names, are no files to ignore.
        (folder / "cut.dcm").write_bytes(CT.read_bytes()[:200])
        assert run("--url", target, "store", "instances", "--on-existing", "skip", folder) == 1
        assert "4 files: 1 already there, 2 ignored, 1 failed" in capsys.readouterr().err
        assert run("--url", target, "store", "instances", folder / "README") == 1
        assert "1 file: 1 failed" in capsys.readouterr().err


def test_a_folder_that_cannot_be_read_fails(folder, tmp_path, capsys):
    (folder / "link").symlink_to(folder / "nowhere")
    assert run("--url", tmp_path / "there", "store", "instances", folder) == 1
    told = capsys.readouterr()
    assert "2 files: 1 stored, 1 failed" in told.err
    assert str(folder / "link") in told.out


def test_deleting_and_asking_say_what_they_did(folder, capsys):
    assert run("doctor", "--url", folder) == 0
    assert "3 of 3 features work" in capsys.readouterr().err
    assert run("delete", "study", "--study", UIDS[0], "--yes", "--url", folder) == 0
    assert f"The study {UIDS[0]} is deleted" in capsys.readouterr().err


# Progress -------------------------------------------------------------------------------------------------------------


def terminal(command: list[str], **streams: int) -> tuple[str, bytes]:
    """Runs a command whose standard error (and what else is asked for) is a terminal; gives what both show."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "NO_COLOR": "1", "COLUMNS": "120"}
    streams = {"stdout": subprocess.PIPE, **dict.fromkeys(streams, theirs)}
    ended = subprocess.run(command, stderr=theirs, check=True, env=environment, **streams)  # type: ignore[call-overload]
    os.close(theirs)
    shown = b""
    with suppress(OSError):
        while piece := os.read(ours, 65536):
            shown += piece
    os.close(ours)
    return shown.decode(), ended.stdout


def test_progress_on_the_terminal_leaves_the_output_alone(folder, tmp_path):
    """Standard error is a terminal, standard output a pipe: all lines of output reach the pipe."""
    shown, output = terminal([*DICOMWEB_IO, "store", "instances", str(folder), "--url", str(tmp_path / "there")])
    assert json.loads(output)["outcome"] == "stored"
    assert re.search(r"[01] of 1 files", shown)
    assert "\x1b[3" not in shown
    assert shown.rstrip().endswith(str(tmp_path / "there"))


def test_a_person_sees_what_is_odd_and_numbers(folder, tmp_path):
    """Both are a terminal: nobody reads a line of JSON for each file."""
    command = [*DICOMWEB_IO, "store", "instances", str(folder), "--url", str(tmp_path / "there")]
    shown, _ = terminal(command, stdout=1)
    assert "{" not in shown
    assert "1 file: 1 stored" in shown


def test_progress_tells_how_many_how_fast_and_how_long(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "200")
    with progress("files", 1200) as shown:
        for _ in range(300):
            shown.advance(1000)
        print("a warning", file=sys.stderr)
    text = terminal.getvalue()
    for words in ("300 of 1,200 files, 300.0 kB", "kB/s" if "kB/s" in text else "MB/s", "left", "a warning\n"):
        assert words in text


# Ctrl-C ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (["copy", "URL", "there"], "interrupted; the same command goes on with what is missing"),
        (["search", "studies", "--url", "URL"], "interrupted"),
        (["store", "instances", "archive", "--url", "URL"], "interrupted; with --on-existing skip, the same command"),
    ],
)
def test_ctrl_c_is_one_sentence(folder, tmp_path, answering, command, sentence):
    """Also while threads wait for a server that is silent."""
    asked = threading.Event()

    def silent(request):
        asked.set()
        request.server.stopping.wait(30)
        request.hangup()

    url = answering(silent).url
    words = [word.replace("URL", url) for word in command]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    process = subprocess.Popen([*DICOMWEB_IO, *words], stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=environment)
    assert asked.wait(30)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=30)
    assert process.returncode == 130
    assert told.startswith(f"dicomweb-io: {sentence}")
    assert told.count("\n") == 1


def test_ctrl_c_while_modules_are_imported(monkeypatch, capsys):
    class Interrupted:
        def __getattr__(self, name):
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "dicomweb_io.cli.run", Interrupted())
    assert main(["search", "studies"]) == 130
    assert capsys.readouterr().err == "dicomweb-io: interrupted\n"


def test_what_is_told_before_the_command_line_is_imported_is_little():
    """The moment in which Ctrl-C shows a traceback is as short as the start of Python."""
    code = "import sys; before = set(sys.modules); import dicomweb_io.cli; print(*sorted(set(sys.modules) - before))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert [name for name in loaded if name.startswith("dicomweb_io")] == [
        "dicomweb_io", "dicomweb_io._version", "dicomweb_io.cli",
    ]  # fmt: skip
    assert not {"argparse", "requests", "pydicom", "logging"} & set(loaded)
