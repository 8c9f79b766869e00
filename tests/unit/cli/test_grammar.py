"""The grammar of the command line: where options stand, what mistakes are told, and what is never repeated."""

from __future__ import annotations

import argparse
import subprocess

import pytest

from dicomweb_io.cli import main
from dicomweb_io.cli.arguments import all_parsers, build_parser, parse

SECRET = "5ecretWord"
SEARCH = ["search", "studies"]


class _ended:
    """Lets a command end by returning 2 or by exiting with it."""

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        return kind is SystemExit and error.code == 2


@pytest.mark.parametrize(
    "words",
    [
        ["--url", "U", "-v", *SEARCH, "-v"],
        ["search", "--url", "U", "-v", "studies", "-v"],
        [*SEARCH, "--url=U", "-vv"],
        [*SEARCH, "-v", "--limit", "3", "--url", "U", "-v"],
    ],
)
def test_options_stand_before_or_after_the_command(words):
    args = parse(words)
    assert (args.url, args.verbosity, args.command, args.profile) == ("U", 2, "search", None)


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize(
    "command",
    [
        ["retrieve", "instances", "--study", "1", "--series", "2", "--instance", "3", "frames", "--numbers", "1"],
        ["copy", "a", "b"],
        ["store", "instances", "f"],
        ["delete", "study", "--study", "1", "--yes"],
        ["doctor"],
        ["index", "x"],
    ],
)
def test_every_command_takes_them(command, before):
    options = ["-u", "me", "--password-env", "P", "--timeout", "3", "--chunk-size", "4"]
    args = parse([*options, *command] if before else [*command, *options])
    assert (args.user, args.password_env, args.timeout, args.chunk_size) == ("me", "P", 3.0, 4)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--url", "x", *SEARCH, "--url", "y"], "--url is given 2 times"),
        (["-u", "x", *SEARCH, "--user", "y"], "--user is given 2 times"),
        (["serch", "studies"], "did you mean search?"),
        (["search", "study"], "did you mean studies?"),
        (["search"], "one of studies, series, instances"),
        ([*SEARCH, "--lmit", "3"], "unknown option --lmit: did you mean --limit?"),
        ([*SEARCH, "--numbers", "3"], "search studies has no option --numbers"),
        (["serve", ".", "--url", "x"], "serve has no option --url"),
        (["copy", "a", "b", "c"], "number 4 of the command line is too many"),
        (["retrieve", "studies", "--study", "1", "rendered", "--window", "-5,3"], "after an equals sign"),
        (["retrieve", "studies", "--stdy", "1", "full"], "did you mean --study?"),
        ([*SEARCH, "-x"], "unknown option -x"),
    ],
)
def test_mistakes_are_told(words, text, capsys):
    with _ended():
        assert main(words) == 2
    shown = capsys.readouterr()
    assert text in shown.err
    assert shown.out == ""


@pytest.mark.parametrize(
    "words",
    [
        ["-p", SECRET, *SEARCH],
        ["--password", SECRET, *SEARCH],
        [f"--password={SECRET}", *SEARCH],
        [f"-p{SECRET}", *SEARCH],
        [f"-p={SECRET}", *SEARCH],
        [f"-vp{SECRET}", *SEARCH],
        [*SEARCH, "-p", SECRET],
        ["copy", "-p", SECRET, "a", "b"],
        ["index", "-p", SECRET],
        ["--pasword", SECRET, *SEARCH],
        [f"--pasword={SECRET}", *SEARCH],
        [f"--token{SECRET}", *SEARCH],
        ["--tokn", SECRET, *SEARCH],
        [*SEARCH, "--tokn", SECRET],
        ["--token", "--", SECRET, *SEARCH],
        ["--token", f"-{SECRET}", *SEARCH],
        ["--token", f"--{SECRET}", *SEARCH],
        ["--token", "t", SECRET, *SEARCH],
        ["--google", SECRET, *SEARCH],
        [f"--google={SECRET}", *SEARCH],
        [*SEARCH, "--google", SECRET],
        [*SEARCH, f"--insecure-no-verify={SECRET}"],
        ["--url", "https://pacs.example/", "--token-env", SECRET, *SEARCH],
        ["copy", "a", "b", "--destination-password", SECRET],
        ["servers", "add", "pacs", "--url", "https://pacs.example/", "--token", SECRET],
    ],
)
def test_nothing_that_may_be_a_secret_is_repeated(words, capsys):
    with _ended():
        assert main(words) == 2
    shown = capsys.readouterr()
    assert SECRET not in shown.err + shown.out
    assert shown.err


def test_asking_for_a_password_still_stands_before_a_command(monkeypatch):
    assert parse(["-p", *SEARCH]).password
    assert parse(["search", "-p", "studies", "--limit", "1"]).password
    assert parse([*SEARCH, "-vp"]).password


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_shells_complete(shell, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in ("search", "servers", "instances", *(["--filter", "--token-env"] if shell != "tcsh" else [])):
        assert word in script
    if shell == "bash":
        asked = 'COMP_WORDS=(dicomweb-io se); COMP_CWORD=1; _shtab_dicomweb_io; echo "${COMPREPLY[@]}"'
        found = subprocess.run(["bash", "-c", f"{script}\n{asked}"], capture_output=True, text=True, check=True)
        assert {"search", "serve", "servers"} <= set(found.stdout.split())


def test_every_option_is_explained_once():
    """Where an option may stand twice, the help of the command names it in one sentence."""
    for parser in all_parsers(build_parser()):
        shown = [action for action in parser._actions if action.help != argparse.SUPPRESS]
        if parser.get_default("command") in ("search", "retrieve", "store"):
            assert "--token-env" not in {name for action in shown for name in action.option_strings}
            assert "before the command or after it" in parser.format_help()


def test_a_place_that_is_not_there_is_told_in_words(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["search", "studies", "--url", "pacs"]) == 1
    told = capsys.readouterr().err
    assert told == (
        f"dicomweb-io: No such file or directory: {tmp_path}/pacs "
        "(dicomweb-io servers list shows the servers with names)\n"
    )
