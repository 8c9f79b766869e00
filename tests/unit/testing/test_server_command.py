"""The test server as a command: ``dicomweb-io serve``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from dicomweb_io.cli import main
from dicomweb_io.cli.arguments import build_parser
from dicomweb_io.endpoint import Endpoint
from dicomweb_io.http.auth import AWSSigV4, BasicCredentials, BearerToken, OAuth2ClientCredentials
from dicomweb_io.queries import make_query
from dicomweb_io.testing.faults import FAULTS, fault, faults_of_json
from dicomweb_io.testing.samples import make_study
from dicomweb_io.testing.server.behaviours import BEHAVIOURS, VARIANTS
from dicomweb_io.testing.server.command import authentication_for
from tests.unit.testing.asking import make_certificates

SECRETS = {"BASIC": "demo:se:cret", "TOKEN": "a-token", "CLIENT": "app:app-secret", "KEYS": "AKIDEXAMPLE:aws-secret"}


class Command:
    """A running ``dicomweb-io serve``."""

    def __init__(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "dicomweb_io", "serve", *arguments, "--port", "0"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env={**os.environ, **SECRETS}, **pipes)
        self._url = ""

    @property
    def url(self) -> str:
        if not self._url:
            self._url = self.process.stdout.readline().strip()
            assert self._url, self.process.stderr.read()
        return self._url

    @property
    def origin(self) -> str:
        return self.url[: self.url.index("/", 8)]

    def end(self) -> tuple[int, str]:
        """Interrupts it when it runs; its exit code and what it wrote to standard error."""
        assert self.url
        self.process.send_signal(signal.SIGINT)
        _, text = self.process.communicate(timeout=30)
        return self.process.returncode, text


@pytest.fixture(scope="module")
def certificates(tmp_path_factory) -> dict[str, str]:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def commands(tmp_path_factory, certificates) -> Iterator[dict[str, Command]]:
    """Two commands, started at once."""
    folder = tmp_path_factory.mktemp("archive")
    make_study(folder, instances=2, size=10)
    faults = tmp_path_factory.mktemp("faults") / "faults.json"
    faults.write_text(json.dumps([fault("status", status=503).to_dict(), {"action": "truncate", "path": "instances"}]))
    path = str(folder)
    tls = ["--tls-cert", certificates["server"], "--tls-client-ca", certificates["clients"]]
    running = {
        "basic": Command(path, "--user-env", "BASIC", "--faults", str(faults), "--behaviour", "orthanc"),
        "bearer": Command(path, "--token-env", "TOKEN", "--fault", '{"action": "expire_token", "first": 3}', *tls),
    }
    yield running
    for one in running.values():
        code, text = one.end()
        assert code == 0
        assert "for tests" in text


def found(url: str, **options) -> int:
    with Endpoint(url, **options).connect() as client:
        return len(list(client.iter_search(make_query("study"))))


def test_basic_authentication_and_faults_of_a_file(commands):
    url = commands["basic"].url
    assert url.endswith("/dicom-web")
    known = ("demo", "se:cret")
    statuses = [requests.get(f"{url}/studies", auth=auth, timeout=30).status_code for auth in (known, known, None)]
    assert statuses == [503, 200, 401]
    with pytest.raises(requests.exceptions.RequestException):
        requests.get(f"{url}/instances", auth=("demo", "se:cret"), timeout=30)
    assert found(url, credentials=BasicCredentials("demo", "se:cret")) == 1


def test_bearer_tokens_and_client_certificates(commands, certificates):
    url = commands["bearer"].url
    assert url.startswith("https://127.0.0.1:")
    mutual = {"verify": certificates["authority"], "cert": certificates["client"]}
    headers = {"Authorization": "Bearer a-token"}
    statuses = [requests.get(f"{url}/studies", headers=headers, timeout=30, **mutual).status_code for _ in range(3)]
    assert statuses == [200, 200, 401]
    with pytest.raises(requests.exceptions.RequestException):
        requests.get(f"{url}/studies", verify=certificates["authority"], timeout=30)


def authentication(monkeypatch, *arguments: str):
    """The authentication that these arguments give a server."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    return authentication_for(build_parser().parse_args(["serve", ".", *arguments]))


def test_client_credentials(monkeypatch, serve, tmp_path):
    make_study(tmp_path, instances=1, size=10)
    auth = authentication(monkeypatch, "--oauth2-env", "CLIENT", "--token-lifetime", "600")
    server = serve(tmp_path, auth=auth)
    assert found(server.url, credentials=OAuth2ClientCredentials(server.origin + auth.path, "app", "app-secret")) == 1
    assert requests.get(f"{server.url}/studies", timeout=30).status_code == 401
    with pytest.raises(requests.HTTPError):
        found(server.url, credentials=OAuth2ClientCredentials(server.origin + auth.path, "app", "wrong"))


def test_tokens_end(monkeypatch, serve, tmp_path):
    auth = authentication(monkeypatch, "--token-env", "TOKEN", "--token-lifetime", "0")
    headers = {"Authorization": "Bearer a-token"}
    answer = requests.get(f"{serve(tmp_path, auth=auth).url}/studies", headers=headers, timeout=30)
    assert (answer.status_code, "expired" in answer.headers["WWW-Authenticate"]) == (401, True)
    auth = authentication(monkeypatch, "--token-env", "TOKEN", "--token-lifetime", "600")
    answer = requests.get(f"{serve(tmp_path, auth=auth).url}/studies", headers=headers, timeout=30)
    assert answer.status_code == 204


def test_signatures(monkeypatch, serve, tmp_path):
    pytest.importorskip("botocore", reason="needs the extra 'aws'")
    make_study(tmp_path, instances=1, size=10)
    auth = authentication(monkeypatch, "--sigv4-env", "KEYS", "--sigv4-region", "eu-west-1")
    url = serve(tmp_path, behaviour="healthimaging", auth=auth).url
    keys = {"access_key_id": "AKIDEXAMPLE", "secret_access_key": "aws-secret"}
    assert found(url, credentials=AWSSigV4("eu-west-1", **keys)) == 1
    with pytest.raises(requests.HTTPError, match="403"):
        found(url, credentials=AWSSigV4("us-east-1", **keys))
    with pytest.raises(requests.HTTPError, match="403"):
        found(url, credentials=BearerToken("a-token"))


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="the system has no such signal")
def test_files_that_others_add_are_seen_after_a_signal(tmp_path):
    make_study(tmp_path / "a", instances=1, size=10)
    command = Command(str(tmp_path))
    try:
        assert found(command.url) == 1
        make_study(tmp_path / "b", instances=1, size=10, seed="other")
        command.process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + 30
        while found(command.url) != 2:
            assert time.monotonic() < deadline
    finally:
        assert command.end()[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the folder to serve"),
        (["no-such-folder"], "no folder no-such-folder"),
        ([".", "--host", "0.0.0.0"], "this server is for tests"),
        ([".", "--host", "example.org"], "--allow-remote"),
        ([".", "--behaviour", "nobody"], "there is no behaviour 'nobody'"),
        ([".", "--fault", "{}"], "fault 1"),
        ([".", "--fault", '{"action": "status", "colour": 1}'], "no option 'colour'"),
        ([".", "--token-env", "NOT_SET_ANYWHERE"], "NOT_SET_ANYWHERE is not set"),
        ([".", "--user-env", "PATH"], "does not hold NAME:PASSWORD"),
        ([".", "--user-env", "PATH", "--token-env", "PATH"], "one way to authenticate"),
        ([".", "--token-lifetime", "3"], "needs --token-env"),
        ([".", "--tls-key", "x"], "need --tls-cert"),
        ([".", "--tls-cert", "no-such-file"], "no file no-such-file"),
    ],
)
def test_wrong_arguments_end_the_command(monkeypatch, capsys, arguments, message):
    monkeypatch.setenv("PATH", "no-colon-here")
    assert main(["serve", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_a_damaged_file_of_faults_is_named(tmp_path, capsys):
    path = tmp_path / "faults.json"
    path.write_text('[{"action": "status"}, {"action": "nonsense"}]')
    assert main(["serve", str(tmp_path), "--faults", str(path)]) == 2
    text = capsys.readouterr().err
    assert str(path) in text
    assert "fault 2" in text
    assert main(["serve", str(tmp_path), "--faults", str(tmp_path / "absent.json")]) == 1


def test_every_fault_survives_json():
    for action, kind in FAULTS.items():
        usual = {"method": "GET|POST", "path": "/studies", "first": 2, "times": None, "probability": 0.5, "seed": 7}
        one = fault(action, **usual, **kind.defaults())
        assert faults_of_json(json.dumps([one.to_dict()])) == [one]
    for text in ("", "{}", "[1]", "[{}]", '[{"action": 1}]', '[{"action": "status", "path": "("}]', '[{"first": 0}]'):
        with pytest.raises(ValueError, match="fault"):
            faults_of_json(text)


@pytest.mark.parametrize("name", [*BEHAVIOURS, *VARIANTS])
def test_behaviours_are_described(capsys, name):
    assert main(["serve", "--behaviour", name, "--describe"]) == 0
    text = capsys.readouterr().out
    assert main(["serve", "--behaviour", name, "--describe", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert text.startswith(f"{name}: {data['title']}\n")
    for field, fact in data["facts"].items():
        assert f"  {field} = {fact['value']} (" in text
        assert fact["source"] in text
        assert f"{fact['evidence'].capitalize()}:\n" in text
    assert all(gap in text for gap in data["gaps"])
    assert main(["serve", "--behaviours"]) == 0
    assert f"{name}: {data['title']}\n" in capsys.readouterr().out


def test_nothing_is_written_into_the_folder(commands, tmp_path):
    archive = Path(commands["basic"].process.args[4])
    assert sorted({path.suffix for path in archive.rglob("*") if path.is_file()}) == [".dcm"]
