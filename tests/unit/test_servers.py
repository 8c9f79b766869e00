"""Servers with names: the file, the names in place of archives, and the command that writes the file."""

from __future__ import annotations

import argparse
import json
import os
import string
import sys
from pathlib import Path

import pytest
from hypothesis import given, strategies as st
from pydicom.data import get_testdata_file

from dicomweb_io.cli import main
from dicomweb_io.cli.arguments import parse as parse_command_line
from dicomweb_io.http.auth import BasicCredentials, BearerToken, GoogleCredentials
from dicomweb_io.http.settings import TLS, Prefixes
from dicomweb_io.options import SERVER_KEYS, UsageError, add_archive_options, add_authentication_options, endpoint_from
from dicomweb_io.servers import ServersError, as_toml, changed, parse, servers_path
from dicomweb_io.testing import fault, serve

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

URL = "https://pacs.example/dicom-web"
NAMES = st.text(string.ascii_letters + string.digits + "-_", min_size=1, max_size=8).filter(
    lambda name: name[0] not in "-_"
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
SERVERS = st.fixed_dictionaries(
    {"url": TEXTS.filter(bool)},
    optional={"user": TEXTS, "timeout": st.floats(allow_nan=False, allow_infinity=False), "google": st.booleans()},
)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of servers, in a folder that is not there yet."""
    path = tmp_path / "configuration" / "servers.toml"
    monkeypatch.setenv("DICOMWEB_IO_SERVERS", str(path))
    monkeypatch.chdir(tmp_path)
    return path


def wrote(file: Path, text: str) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(text, encoding="utf-8")


@given(st.dictionaries(NAMES, SERVERS, max_size=4), NAMES, SERVERS)
def test_what_is_written_is_read(servers, name, server):
    """Whatever the values, and however the file was written: adding and removing change nothing else."""
    text = "\n".join(as_toml(*item) for item in servers.items())
    assert parse(text, "file", SERVER_KEYS) == servers
    others = {other: value for other, value in servers.items() if other != name}
    text = "".join(as_toml(*item) for item in others.items())
    added = changed(text, others, name, server)
    assert tomllib.loads(added) == {**others, name: server}
    assert tomllib.loads(changed(added, {**others, name: server}, name, None)) == others


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ('# mine\n[a]\nurl = "x"\n[b]\nurl = "y" # keep', '# mine\n[b]\nurl = "y" # keep\n'),
        ('[a]\nurl = "x"', ""),
        ('b.url = "y"\na = {url = "x"}', '[b]\nurl = "y"\n'),
        ('[b]\nurl = """\n[a]\n"""\n[a]\nurl = "x"', '[b]\nurl = "[a]\\n"\n'),
    ],
)
def test_what_the_user_wrote_stays(text, rest):
    assert changed(text, parse(text, "file", SERVER_KEYS), "a", None) == rest


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[pacs]\nurl = \n", "not valid TOML: .*line 2"),
        (
            '[a]\nurl = "x"\n\n[pacs]\nurl = "x"\ntoken-evn = "T"',
            r"line 6: \[pacs\] unknown key 'token-evn'.*token-env",
        ),
        ('[pacs]\nurl = "x"\ntoken = "5ecret"', "line 3: .*token: secrets are not written"),
        ('[pacs]\nurl = "x"\npassword = "5ecret"', "line 3: .*password: secrets are not written"),
        ('[pacs]\nurl = "x"\ntimeout = "3"', "line 3: .*timeout: expected a number"),
        ('[pacs]\nurl = "x"\ngoogle = 1', "line 3: .*google: expected true or false"),
        ("[pacs]\nurl = 7", "line 2: .*url: expected text"),
        ('[pacs]\nprofile = "orthanc"', r"line 1: \[pacs\] has no url"),
        ('pacs = "x"', "line 1: expected a table"),
        ('["a/b"]\nurl = "x"', "line 1: names have letters"),
    ],
)
def test_mistakes_in_the_file_are_placed(file, text, message):
    wrote(file, text)
    with pytest.raises(ServersError, match=message) as error:
        parse(text, str(file), SERVER_KEYS)
    assert "5ecret" not in str(error.value)
    assert str(error.value).startswith(str(file))
    with pytest.raises(UsageError, match="line"):
        endpoint_from(parse_command_line(["--url", "pacs", "search", "studies"]))


def test_the_file_is_in_the_folder_for_configuration(monkeypatch, tmp_path):
    monkeypatch.delenv("DICOMWEB_IO_SERVERS")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert os.path.basename(servers_path()) == "servers.toml"
    assert "dicomweb-io" in servers_path()


def test_a_name_stands_for_a_server_and_its_options(file, monkeypatch):
    monkeypatch.setenv("T", "x")
    wrote(file, f'[pacs]\nurl = "{URL}"\nuser = "me"\npassword-env = "P"\nqido-prefix = "q"\nca = "{file}"\n')

    def endpoint(*options):
        return endpoint_from(parse_command_line(["--url", "pacs", "search", "studies", *options]))

    assert endpoint().url == URL
    assert endpoint().credentials == BasicCredentials("me", password_env="P")
    assert (endpoint().prefixes, endpoint().tls) == (Prefixes(qido="q"), TLS(str(file)))
    # What is given for one run replaces what is saved: the whole way to log in, and all that is trusted.
    assert endpoint("--token-env", "T").credentials == BearerToken(env="T")
    assert endpoint("--google").credentials == GoogleCredentials()
    assert endpoint("--password-env", "Q").credentials == BasicCredentials("me", password_env="Q")
    assert endpoint("--insecure-no-verify").tls == TLS(verify=False)
    assert endpoint("--qido-prefix", "r").prefixes == Prefixes(qido="r")
    # Jobs name their archives in the same way.
    parser = argparse.ArgumentParser()
    parser.add_argument("--source")
    add_archive_options(parser, "source")
    add_authentication_options(parser, "source")
    job = endpoint_from(parser.parse_args(["--source", "pacs"]), role="source", workers_elsewhere=True)
    assert (job.url, job.credentials) == (URL, BasicCredentials("me", password_env="P"))
    # A path of that name comes first, and one with a slash is never a name.
    assert endpoint_from(parse_command_line(["--url", "./pacs", "search", "studies"])).url == "./pacs"
    Path("pacs").mkdir()
    with pytest.raises(UsageError, match="folder"):
        endpoint("--user", "me", "--password-env", "P")


def test_messages_say_where_an_option_comes_from(file, monkeypatch):
    monkeypatch.delenv("NOT_SET", raising=False)
    wrote(file, f'[pacs]\nurl = "{URL}"\ntoken-env = "NOT_SET"\n')
    with pytest.raises(UsageError, match="token-env of the server pacs: the environment variable NOT_SET is not set"):
        endpoint_from(parse_command_line(["--url", "pacs", "search", "studies"]))
    with pytest.raises(UsageError, match=r"neither a folder nor a server in .*Did you mean pacs"):
        endpoint_from(parse_command_line(["--url", "pasc", "search", "studies"]))


def test_the_environment_names_the_archive(monkeypatch, tmp_path):
    monkeypatch.setenv("DICOMWEB_URL", URL)
    assert endpoint_from(parse_command_line(["search", "studies"])).url == URL
    assert endpoint_from(parse_command_line(["search", "studies", "--url", "x"])).url == "x"
    args = parse_command_line(["copy", "a", str(tmp_path)])
    assert endpoint_from(args, "a").url == "a"
    monkeypatch.delenv("DICOMWEB_URL")
    with pytest.raises(UsageError, match="DICOMWEB_URL"):
        endpoint_from(parse_command_line(["search", "studies"]))


def test_servers_are_added_listed_tested_and_removed(file, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "archive"
    folder.mkdir()
    (folder / "ct.dcm").write_bytes(Path(str(get_testdata_file("CT_small.dcm"))).read_bytes())
    monkeypatch.setenv("T", "right")
    with serve(folder, auth="right") as server:
        assert main(["servers", "add", "pacs", "--url", server.url, "--token-env", "T", "--timeout", "3"]) == 0
        assert main(["--url", "archive", "servers", "add", "mine"]) == 0
        assert os.stat(file).st_mode & 0o777 == 0o600
        assert main(["servers", "list"]) == 0
        listed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        pacs = {"name": "pacs", "url": server.url, "token-env": "T", "timeout": 3.0}
        assert listed == [pacs, {"name": "mine", "url": str(folder)}]
        assert main(["servers", "test", "pacs"]) == 0
        shown = capsys.readouterr()
        assert "login" in shown.out
        assert "answers searches" in shown.err
        assert main(["search", "studies", "--url", "pacs"]) == 0
        assert main(["copy", "pacs", "mine"]) == 0
        monkeypatch.setenv("T", "wrong")
        capsys.readouterr()
        assert main(["servers", "test", "pacs"]) == 1
        shown = capsys.readouterr()
        assert "HTTP 401" in shown.out
        assert "wrong" not in shown.out + shown.err
    assert main(["servers", "test", "pacs", "--deadline", "0.1"]) == 1
    assert main(["servers", "test", "mine"]) == 0
    assert main(["servers", "remove", "pacs"]) == 0
    assert list(tomllib.loads(file.read_text())) == ["mine"]


def test_a_server_that_answers_badly_fails_the_test(file, tmp_path, capsys):
    (tmp_path / "archive").mkdir()
    with serve(tmp_path / "archive", faults=[fault("status", status=404, times=None)]) as server:
        wrote(file, f'[pacs]\nurl = "{server.url}"\n')
        assert main(["servers", "test", "pacs"]) == 1
    assert "cannot be searched" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["add", "pacs", "--token", "5ecret", "--url", URL], "secrets are not saved"),
        (["add", "pacs", "-p", "-u", "me", "--url", URL], "secrets are not saved"),
        (["add", "pacs", "--url", "https://me:5ecret@pacs.example/"], "name or password"),
        (["add", "pacs"], "--url is required"),
        (["add", "a/b", "--url", URL], "letters, digits"),
        (["add", "pacs", "--url", URL, "--google", "--token-env", "T"], "one way to authenticate"),
        (["add", "pacs", "--url", ".", "-u", "me"], "folder"),
        (["add", "old", "--url", URL], "already"),
        (["remove", "odl"], "no server odl: did you mean old?"),
        (["remove", "old", "--lmit"], "unknown option --lmit: did you mean --limit?"),
    ],
)
def test_wrong_uses_write_nothing(file, capsys, arguments, text):
    before = '[old]\nurl = "x"\n'
    wrote(file, before)
    assert main(["servers", *arguments]) == 2
    shown = capsys.readouterr()
    assert text in shown.err
    assert "5ecret" not in shown.err
    assert file.read_text() == before
