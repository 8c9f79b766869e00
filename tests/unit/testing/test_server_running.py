"""Starting, stopping, guarding and commanding the test server."""

from __future__ import annotations

import re
import socket

import pytest
import requests

from dicomweb_io.http.settings import Limits
from dicomweb_io.testing.faults import fault
from dicomweb_io.testing.samples import make_study, sample_file
from dicomweb_io.testing.server.auth import BearerAuthentication, OAuth2Authentication, SigV4Authentication
from dicomweb_io.testing.server.behaviour import Behaviour, behaviour
from dicomweb_io.testing.server.behaviours import BEHAVIOURS, behaviour_of
from dicomweb_io.testing.server.server import TLS, serve as start_server
from tests.unit.testing.asking import make_certificates, store


def status(server, path: str = "/studies", **options) -> int:
    return requests.get(f"{server.url}{path}", timeout=30, **options).status_code


# Running --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_only_loopback_is_served_unless_told_otherwise(tmp_path, host):
    with pytest.raises(ValueError, match="allow_remote"):
        with start_server(tmp_path, host=host):
            pass


def test_remote_access_can_be_allowed(tmp_path, caplog):
    with start_server(tmp_path, host="0.0.0.0", allow_remote=True) as server:
        assert "This server is for tests" in caplog.text
        assert requests.get(f"http://127.0.0.1:{server.port}/dicom-web/studies", timeout=30).status_code == 204


def test_stop_and_start_keep_port_and_content(serve, tmp_path):
    make_study(tmp_path, instances=2, size=10)
    server = serve(tmp_path)
    url, port = server.url, server.port
    assert status(server) == 200
    server.stop()
    assert not server.running
    with pytest.raises(requests.ConnectionError):
        status(server)
    server.start()
    assert (server.url, server.port) == (url, port)
    assert status(server) == 200


def test_stopping_cuts_running_answers(serve, tmp_path):
    server = serve(tmp_path, faults=[fault("endless_body")])
    with requests.get(f"{server.url}/studies", stream=True, timeout=30) as answer:
        assert answer.raw.read(1000)
        server.stop()
        with pytest.raises(requests.exceptions.RequestException):
            for _ in answer.iter_content(1 << 16):
                pass
    assert server.errors == []


def test_an_archive_in_memory(serve):
    server = serve("memory://archive-of-this-test")
    assert store(server, sample_file("CT_small.dcm").read_bytes()).status_code == 200
    assert status(server) == 200


def test_a_port_that_is_taken_is_an_error(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with pytest.raises(OSError, match="in use"):
            with start_server(tmp_path, port=taken.getsockname()[1]):
                pass


def test_records_tell_what_happened(serve, tmp_path):
    make_study(tmp_path, instances=2, size=10)
    server = serve(tmp_path)
    body = requests.get(f"{server.url}/instances?limit=1", headers={"X-Test": "1"}, timeout=30).content
    requests.post(f"{server.url}/studies", data=b"12345", headers={"Content-Type": "text/plain"}, timeout=30)
    search, store = server.records.settled()
    assert (search.method, search.path, search.query) == ("GET", "/dicom-web/instances", "limit=1")
    assert (search.status, search.bytes_out, search.complete) == (200, len(body), True)
    assert search.headers["x-test"] == "1"
    assert (store.method, store.status) == ("POST", 415)
    assert server.records.of("POST") == [store]
    server.records.clear()
    assert len(server.records) == 0


def test_a_server_describes_itself(serve, tmp_path):
    endpoint = serve(tmp_path, behaviour="dicomcloud").endpoint(limits=Limits(3))
    assert (endpoint.prefixes.qido, endpoint.prefixes.stow, endpoint.limits.max_in_flight) == ("qidors", "stowrs", 3)
    server = serve(tmp_path)
    assert server.endpoint().url == server.url
    assert server.endpoint().prefixes.qido is None


def test_files_that_others_add_are_seen_after_a_refresh(serve, tmp_path):
    make_study(tmp_path / "a", instances=1, size=10)
    server = serve(tmp_path)
    assert len(requests.get(f"{server.url}/instances", timeout=30).json()) == 1
    make_study(tmp_path / "b", instances=2, size=10, seed="other")
    server.refresh()
    assert len(requests.get(f"{server.url}/instances", timeout=30).json()) == 3


# Who may ask ----------------------------------------------------------------------------------------------------------


def test_basic_authentication(serve, tmp_path):
    server = serve(tmp_path, auth=("demo", "se:cret"))
    assert status(server) == 401
    assert status(server, auth=("demo", "wrong")) == 401
    assert status(server, headers={"Authorization": "Basic ???"}) == 401
    assert status(server, auth=("demo", "se:cret")) == 204
    assert requests.get(f"{server.url}/studies", timeout=30).headers["WWW-Authenticate"].startswith("Basic ")


def test_bearer_tokens_expire(serve, tmp_path):
    tokens = BearerAuthentication()
    server = serve(tmp_path, auth=tokens, faults=[fault("expire_token", first=3)])
    token = tokens.issue()
    headers = {"Authorization": f"Bearer {token}"}
    assert [status(server, headers=headers) for _ in range(4)] == [204, 204, 401, 401]
    assert status(server, headers={"Authorization": f"Bearer {tokens.issue(lifetime=0)}"}) == 401
    assert status(server, headers={"Authorization": f"Bearer {tokens.issue()}"}) == 204
    assert status(serve(tmp_path, auth="secret"), headers={"Authorization": "Bearer secret"}) == 204


def test_client_credentials(serve, tmp_path):
    clients = OAuth2Authentication("app", "secret")
    server = serve(tmp_path, auth=clients)
    endpoint = server.origin + clients.path
    form, other = {"grant_type": "client_credentials"}, {"grant_type": "password"}
    assert requests.post(endpoint, data=form, auth=("app", "wrong"), timeout=30).status_code == 401
    assert requests.post(endpoint, data=other, auth=("app", "secret"), timeout=30).status_code == 400
    answer = requests.post(endpoint, data={**form, "client_id": "app", "client_secret": "secret"}, timeout=30).json()
    assert answer["expires_in"] == 3600
    assert status(server, headers={"Authorization": f"Bearer {answer['access_token']}"}) == 204
    assert status(server) == 401
    assert clients.issued == 1


def test_aws_signatures(serve, tmp_path):
    pytest.importorskip("botocore", reason="needs the extra 'aws'")
    from botocore.auth import SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    server = serve(tmp_path, behaviour="healthimaging", auth=SigV4Authentication("AKID", "secret"))

    def signed(key: str, query: str = "?limit=5&PatientID=a%20b") -> int:
        request = AWSRequest("GET", f"{server.url}/studies{query}")
        SigV4Auth(Credentials("AKID", key), "medical-imaging", "us-east-1").add_auth(request)
        return requests.get(request.url, headers=dict(request.headers), timeout=30).status_code

    assert signed("secret") == 200
    assert signed("wrong") == 403
    assert status(server) == 403


def test_https_and_client_certificates(serve, tmp_path):
    paths = make_certificates(tmp_path)
    server = serve(tmp_path / "archive", tls=TLS(paths["server"], client_ca=paths["clients"]))
    assert server.url.startswith("https://127.0.0.1:")
    with pytest.raises(requests.exceptions.RequestException):
        status(server, verify=paths["authority"])
    assert status(server, verify=paths["authority"], cert=paths["client"]) == 204
    with pytest.raises(requests.exceptions.SSLError):
        status(server, cert=paths["client"])
    with pytest.raises(ValueError, match="plain http"):
        serve(tmp_path, tls=TLS(paths["server"]), proxy=True)


# Faults ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [400, 403, 404, 408, 413, 429, 500, 502, 503, 504])
def test_statuses_come_as_often_as_told(serve, tmp_path, code):
    server = serve(tmp_path, faults=[fault("status", status=code, times=2, first=2)])
    assert [status(server) for _ in range(4)] == [204, code, code, 204]


def test_retry_after_in_both_forms(serve, tmp_path):
    faults = [fault("status", retry_after=2), fault("status", first=2, retry_after=2, retry_after_date=True)]
    server = serve(tmp_path, faults=faults)
    first, second = (requests.get(f"{server.url}/studies", timeout=30) for _ in range(2))
    assert first.headers["Retry-After"] == "2"
    assert re.match(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", second.headers["Retry-After"])


def test_redirects(serve, tmp_path):
    other = serve(tmp_path)
    faults = [fault("redirect", location=other.url + "/studies"), fault("redirect_loop", first=2)]
    server = serve(tmp_path, faults=faults)
    assert status(server) == 204
    assert len(other.records) == 1
    server.inject(fault("redirect_loop", times=None))
    with pytest.raises(requests.TooManyRedirects):
        status(server)


def test_a_login_page_with_200(serve, tmp_path):
    answer = requests.get(f"{serve(tmp_path, faults=[fault('html_login')]).url}/studies", timeout=30)
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert "<form" in answer.text


def test_faults_below_http_bring_their_proxy(serve, tmp_path):
    make_study(tmp_path, instances=3, size=1000)
    server = serve(tmp_path, faults=[fault("truncate", path="instances", position=200)])
    with pytest.raises(requests.exceptions.RequestException):
        status(server, "/instances")
    answer = requests.get(f"{server.url}/instances", timeout=30)
    assert len(answer.json()) == 3
    assert f":{server.port}/" in answer.json()[0]["00081190"]["Value"][0]
    server.inject(fault("reset"))
    with pytest.raises(requests.ConnectionError):
        status(server)
    assert server.proxy.faults.struck == [1, 1]
    server.inject(fault("status"))
    server.clear_faults()
    assert status(server) == 200
    with pytest.raises(RuntimeError, match="proxy=True"):
        serve(tmp_path).inject(fault("reset"))


def test_death_and_resurrection(serve, tmp_path):
    server = serve(tmp_path, proxy=True)
    port = server.port
    assert status(server) == 204
    server.stop()
    with pytest.raises(requests.ConnectionError):
        status(server)
    server.start()
    assert server.port == port
    assert status(server) == 204


def test_faults_that_strike_are_recorded(serve, tmp_path):
    server = serve(tmp_path, faults=[fault("status"), fault("ignore_offset")])
    status(server)
    (record,) = server.records.settled()
    assert record.faults == ("status", "ignore_offset")


def test_rate_limits(serve, tmp_path):
    server = serve(tmp_path, behaviour=Behaviour("limited", "Three requests, then refusals", rate_limit=(0.001, 3)))
    assert [status(server) for _ in range(5)] == [204, 204, 204, 429, 429]


# Behaviour ------------------------------------------------------------------------------------------------------------


def test_every_fact_has_its_evidence():
    assert all(one.facts for name, one in BEHAVIOURS.items() if name != "generic")
    assert BEHAVIOURS["google"].facts["over_limit"].evidence == "unverified"
    with pytest.raises(ValueError, match="there is no behaviour 'nobody'"):
        behaviour_of("nobody")
    with pytest.raises(ValueError, match="no field 'colour'"):
        behaviour("x", "x", {"colour": BEHAVIOURS["orthanc"].facts["counts"]})
