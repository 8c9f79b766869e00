"""Credentials against servers that demand them: nothing is trusted that the server has not checked."""

from __future__ import annotations

import base64
import contextlib
import datetime
import json
import pickle
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import parse_qs, parse_qsl, quote

import pytest
import trustme

from dicomweb_io.errors import ConnectionFailedError, CredentialsError, DICOMwebError
from dicomweb_io.http.auth import (
    AWSSigV4,
    AzureCredentials,
    BasicCredentials,
    BearerToken,
    GoogleCredentials,
    OAuth2ClientCredentials,
    TokenAccess,
)
from dicomweb_io.http.multipart import BodyPart, MultipartBody
from dicomweb_io.http.retry import RetryPolicy
from dicomweb_io.http.settings import TLS, Timeouts
from dicomweb_io.http.transport import Transport
from tests.answering import AnsweringServer, Reply, Request, in_turn


class OAuth:
    """A server that wants tokens, and the OAuth 2.0 token endpoint that gives them.

    Attributes:
        good: The tokens that the server accepts: the last one given.
        refused: How many requests it refused.
        forms: What was asked of the token endpoint.
        failures: The statuses that the endpoint answers first.
    """

    def __init__(self, serve: Callable[..., AnsweringServer]) -> None:
        self.good: set[str] = set()
        self.refused = 0
        self.expires_in: Any = 3600
        self.forms: list[dict[str, list[str]]] = []
        self.failures: list[int] = []
        self.server, self.tokens = serve(self.guard), serve(self.give)

    def guard(self, got: Request) -> Reply:
        kind, _, token = got.headers.get("authorization", "").partition(" ")
        if kind == "Bearer" and token in self.good:
            return Reply(200, b"in")
        self.refused += 1
        return Reply(401, headers={"WWW-Authenticate": "Bearer"})

    def give(self, got: Request) -> Reply:
        self.forms.append(parse_qs(got.body.decode()))
        if self.failures:
            return Reply.json({"error": "invalid_client"}, status=self.failures.pop(0))
        token = f"t{len(self.forms)}"
        self.good = {token}
        answer = {"access_token": token, "token_type": "bearer", "expires_in": self.expires_in}
        return Reply.json(answer, content_type="application/json")


@pytest.fixture
def oauth(serve) -> OAuth:
    return OAuth(serve)


def basic_guard(user: str, password: str):  # type: ignore[no-untyped-def]
    wanted = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
    return lambda got: got.answer(200 if got.headers.get("authorization") == wanted else 401)


def test_basic(serve, connect, monkeypatch, tmp_path) -> None:
    server = serve(basic_guard("jürgen", "pä:ss"))
    file = tmp_path / "password"
    file.write_text("pä:ss\n", encoding="utf-8")
    monkeypatch.setenv("PACS_PASSWORD", "pä:ss")
    for credentials in (
        BasicCredentials("jürgen", "pä:ss"),
        BasicCredentials("jürgen", password_env="PACS_PASSWORD"),
        BasicCredentials("jürgen", password_file=str(file)),
    ):
        assert connect(server.url, credentials=credentials).request("GET", "/").status == 200
    with pytest.raises(DICOMwebError, match="does not accept these credentials") as caught:
        connect(server.url, credentials=BasicCredentials("jürgen", "wrong")).request("GET", "/")
    assert caught.value.status == 401
    assert "wrong" not in repr(caught.value)
    with pytest.raises(DICOMwebError, match="asks for a login, and no credentials were given"):
        connect(server.url).request("GET", "/")
    # A literal cannot change, so it is not tried twice.
    assert len(server.requests) == 5


def test_a_changed_password_is_taken_up(serve, connect, tmp_path) -> None:
    server = serve(basic_guard("u", "new"))
    file = tmp_path / "password"
    file.write_text("old")
    transport = connect(server.url, credentials=BasicCredentials("u", password_file=str(file)))
    with pytest.raises(DICOMwebError):
        transport.request("GET", "/")
    file.write_text("new")
    assert transport.request("GET", "/").status == 200


def test_missing_sources_are_clear_errors(serve, connect, tmp_path, monkeypatch) -> None:
    server = serve(lambda got: got.answer())
    monkeypatch.delenv("NO_SUCH_TOKEN", raising=False)
    empty = tmp_path / "empty"
    empty.write_text(" \n")
    for credentials, message in (
        (BearerToken(env="NO_SUCH_TOKEN"), "NO_SUCH_TOKEN is not set"),
        (BearerToken(file=str(tmp_path / "none")), "cannot be read: No such file"),
        (BearerToken(file=str(empty)), "is empty"),
        (BearerToken(command="/no/such/command"), "'command' cannot be run"),
        (BearerToken(command=""), "cannot be run"),
        (BearerToken(command=(sys.executable, "-c", "raise SystemExit(3)")), "exit code 3"),
        (BearerToken(command=(sys.executable, "-c", "print('Logged in as x')")), "more than a token"),
    ):
        with pytest.raises(CredentialsError, match=message) as caught:
            connect(server.url, credentials=credentials).request("GET", "/")
        assert server.url in str(caught.value)
    assert server.requests == []
    with pytest.raises(CredentialsError, match="header 'Authorization' cannot be sent"):
        connect(server.url, credentials=BearerToken("to\nken")).request("GET", "/")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (BearerToken, "exactly one of token, env, file, command"),
        (lambda: BearerToken("a", env="B"), "given: token, env"),
        (lambda: BasicCredentials("u"), "exactly one"),
        (lambda: BasicCredentials("a:b", "c"), "colon"),
        (lambda: AWSSigV4("eu-west-1", access_key_id="a"), "together"),
        (lambda: GoogleCredentials(file="a", info={}), "at most one"),
    ],
)
def test_exactly_one_source(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_bearer_sources_are_read_again_after_401(oauth, connect, monkeypatch, tmp_path) -> None:
    oauth.good = {"new"}
    url = oauth.server.url
    file, count = tmp_path / "token", tmp_path / "count"
    count.write_text("")
    script = (
        f"import pathlib; p = pathlib.Path({str(count)!r}); p.write_text(p.read_text() + 'x'); "
        "print('old' if len(p.read_text()) == 1 else 'new')"
    )
    transport = connect(url, credentials=BearerToken(command=(sys.executable, "-c", script)))
    assert transport.request("GET", "/").content == b"in"
    assert transport.request("GET", "/").content == b"in"
    assert (count.read_text(), oauth.refused) == ("xx", 1)
    file.write_text("old")
    monkeypatch.setenv("TOKEN", "old")
    transports = [connect(url, credentials=item) for item in (BearerToken(file=str(file)), BearerToken(env="TOKEN"))]
    for transport in transports:
        with pytest.raises(DICOMwebError, match="401"):
            transport.request("GET", "/")
    file.write_text("new\n")
    monkeypatch.setenv("TOKEN", "new")
    assert [transport.request("GET", "/").content for transport in transports] == [b"in"] * 2


def test_a_jwt_is_renewed_before_it_expires(serve, connect, tmp_path) -> None:
    def jwt(seconds: float) -> str:
        claims = base64.urlsafe_b64encode(json.dumps({"exp": time.time() + seconds}).encode()).decode().rstrip("=")
        return f"e30.{claims}.sig"

    first, second = jwt(10), jwt(3600)
    file = tmp_path / "tokens"
    file.write_text(f"{second}\n{first}")
    script = (
        f"import pathlib; p = pathlib.Path({str(file)!r}); lines = p.read_text().split(); "
        "print(lines.pop()); p.write_text('\\n'.join(lines))"
    )
    server = serve(lambda got: got.answer())
    transport = connect(server.url, credentials=BearerToken(command=(sys.executable, "-c", script)))
    for _ in range(3):
        transport.request("GET", "/")
    assert [got.headers["authorization"] for got in server.requests] == [
        f"Bearer {first}", f"Bearer {second}", f"Bearer {second}",
    ]  # fmt: skip


def test_client_credentials(oauth, connect, monkeypatch) -> None:
    server, tokens = oauth.server, oauth.tokens
    monkeypatch.setenv("SECRET", "s3:cr%t")
    credentials = OAuth2ClientCredentials(
        tokens.url + "/token", "my client", client_secret_env="SECRET", scope="a b", audience="dicom"
    )
    transport = connect(server.url, credentials=credentials)
    for _ in range(3):
        assert transport.request("GET", "/").content == b"in"
    assert oauth.forms == [{"grant_type": ["client_credentials"], "scope": ["a b"], "audience": ["dicom"]}]
    wanted = base64.b64encode(b"my+client:s3%3Acr%25t").decode()
    assert tokens.requests[0].headers["authorization"] == f"Basic {wanted}"
    # The server forgets the token: one refusal, one new token.
    oauth.good = set()
    assert transport.request("POST", "/", body=b"x").content == b"in"
    assert (oauth.refused, len(oauth.forms)) == (1, 2)
    posting = OAuth2ClientCredentials(tokens.url, "c", "s", post_secret=True)
    assert connect(server.url, credentials=posting).request("GET", "/").content == b"in"
    assert (oauth.forms[-1]["client_id"], oauth.forms[-1]["client_secret"]) == (["c"], ["s"])
    assert "authorization" not in tokens.requests[-1].headers


def test_a_token_is_renewed_before_it_expires(oauth, connect, monkeypatch) -> None:
    oauth.expires_in = "100"
    transport = connect(oauth.server.url, credentials=OAuth2ClientCredentials(oauth.tokens.url, "c", "s"))
    transport.request("GET", "/")
    now = time.time()
    for seconds, given in ((60, 1), (80, 2)):
        monkeypatch.setattr(time, "time", lambda: now + seconds)  # noqa: B023
        transport.request("GET", "/")
        assert (len(oauth.forms), oauth.refused) == (given, 0)


def test_many_threads_refused_at_once_get_one_new_token(serve, oauth, connect) -> None:
    together = threading.Barrier(6)

    def handle(got: Request) -> Reply:
        if got.headers["authorization"] == "Bearer t1" and got.target == "/all":
            together.wait(5)
        return oauth.guard(got)

    transport = connect(serve(handle).url, credentials=OAuth2ClientCredentials(oauth.tokens.url, "c", "s"))
    transport.request("GET", "/")
    oauth.good = set()
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: transport.request("GET", "/all").content, range(6)))
    assert answers == [b"in"] * 6
    assert len(oauth.forms) == 2


def test_a_token_endpoint_that_fails(serve, oauth, connect) -> None:
    url = oauth.server.url
    credentials = OAuth2ClientCredentials(oauth.tokens.url + "/token?x=y", "client", "s3cret")
    oauth.failures = [503, 500]
    assert connect(url, credentials=credentials).request("GET", "/").content == b"in"
    oauth.failures = [401]
    refused = r"/token: HTTP 401: the token endpoint refused \(invalid_client\)"
    with pytest.raises(CredentialsError, match=refused) as caught:
        connect(url, credentials=credentials).request("GET", "/")
    assert "s3cret" not in f"{caught.value!r}"
    assert "x=y" not in str(caught.value)
    html = serve(lambda got: got.answer(200, b"<html>"))
    credentials = OAuth2ClientCredentials(html.url, "c", "s")
    with pytest.raises(CredentialsError, match="no access_token"):
        connect(url, credentials=credentials).request("GET", "/")
    html.stop()
    with pytest.raises(CredentialsError, match="gave no token: Connection refused"):
        connect(url, credentials=credentials, retry=RetryPolicy.none()).request("GET", "/")


@pytest.mark.filterwarnings("ignore:.*load_credentials_from_dict:DeprecationWarning")
def test_google_authorized_user(oauth, connect, tmp_path, monkeypatch) -> None:
    url, token_uri = oauth.server.url, oauth.tokens.url
    info = {"type": "authorized_user", "client_id": "c", "client_secret": "s", "refresh_token": "r"}
    file = tmp_path / "adc.json"
    file.write_text(json.dumps(info))
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(file))
    for source in ({"info": info}, {"file": str(file)}, {}):
        credentials = GoogleCredentials(**source, token_uri=token_uri)
        transport = connect(url, credentials=pickle.loads(pickle.dumps(credentials)))
        assert transport.request("GET", "/").content == b"in"
        assert transport.request("GET", "/").content == b"in"
    assert [form["refresh_token"] for form in oauth.forms] == [["r"]] * 3
    oauth.good = set()
    assert transport.request("GET", "/").content == b"in"
    assert len(oauth.forms) == 4
    billed = GoogleCredentials(info=info, token_uri=token_uri, quota_project="p1")
    connect(url, credentials=billed).request("GET", "/")
    assert oauth.server.requests[-1].headers["x-goog-user-project"] == "p1"
    oauth.failures = [400]
    with pytest.raises(CredentialsError, match="RefreshError"):
        connect(url, credentials=GoogleCredentials(info=info, token_uri=token_uri)).request("GET", "/")
    with pytest.raises(CredentialsError, match="Google credentials"):
        connect(url, credentials=GoogleCredentials(info={"type": "nonsense"})).request("GET", "/")


def test_a_google_session_that_the_user_made(serve, oauth, connect) -> None:
    from google.auth.transport.requests import AuthorizedSession
    from google.oauth2.credentials import Credentials

    server = oauth.server
    other = serve(lambda got: got.answer(200, b"other"))
    google = Credentials(None, refresh_token="r", client_id="c", client_secret="s", token_uri=oauth.tokens.url)
    transport = connect(server.url, session=AuthorizedSession(google))
    assert transport.request("GET", "/").content == b"in"
    oauth.good = set()
    body = MultipartBody([BodyPart({}, b"data")])
    with transport.stream("POST", "/?a=b,c", body=body, headers={"Content-Type": body.content_type}) as answer:
        assert answer.read() == b"in"
    assert (server.requests[-1].target, server.requests[-1].body) == ("/?a=b,c", b"".join(body))
    assert transport.request("GET", other.url).content == b"other"
    assert "authorization" not in other.requests[0].headers
    oauth.failures = [400]
    oauth.good = set()
    with pytest.raises(CredentialsError, match="Google credentials: RefreshError"):
        transport.request("GET", "/")


def test_google_service_account(serve, oauth, connect) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import padding, rsa
    from cryptography.hazmat.primitives.hashes import SHA256

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()

    def check(got: Request) -> Reply:
        [assertion] = parse_qs(got.body.decode())["assertion"]
        signed, _, signature = assertion.rpartition(".")
        raw = base64.urlsafe_b64decode(signature + "==")
        key.public_key().verify(raw, signed.encode(), padding.PKCS1v15(), SHA256())
        return oauth.give(got)

    account = {"type": "service_account", "client_email": "a@example.org", "token_uri": serve(check).url}
    credentials = GoogleCredentials(info={**account, "private_key": pem, "private_key_id": "1"})
    assert connect(oauth.server.url, credentials=credentials).request("GET", "/").content == b"in"
    assert "PRIVATE" not in repr(credentials)


# -- AWS


def check_signature(got: Request, keys: tuple[str, str, str | None], problems: list[str]) -> Reply:
    """Computes the signature again from what arrived, as the service does, with botocore."""
    import hashlib

    from botocore.auth import SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    authorization = got.headers.get("authorization", "")
    fields = dict(item.strip().split("=", 1) for item in authorization.partition(" ")[2].split(","))
    path, _, query = got.target.partition("?")
    decoded = sorted(parse_qsl(query, keep_blank_values=True))
    canonical = "&".join(f"{quote(name, safe='-_.~')}={quote(value, safe='-_.~')}" for name, value in decoded)
    signed = fields["SignedHeaders"].split(";")
    headers = {name: got.headers[name] for name in signed}
    digest = hashlib.sha256(got.body).hexdigest()
    if got.headers["x-amz-content-sha256"] != digest:
        problems.append("hash of the body")
    request = AWSRequest(got.method, f"http://{got.headers['host']}{path}?{canonical}", headers=headers)
    request.context["timestamp"] = got.headers["x-amz-date"]
    signer = SigV4Auth(Credentials(*keys), "medical-imaging", "eu-central-1")
    text = signer.canonical_request(request)
    # botocore adds headers of its own when it signs; the received ones are already all there are to sign.
    if "host" not in signed or "x-amz-date" not in signed:
        problems.append("signed headers")
    signature = signer.signature(signer.string_to_sign(request, text), request)
    if signature != fields["Signature"]:
        problems.append("signature")
    if fields["Credential"] != f"{keys[0]}/{got.headers['x-amz-date'][:8]}/eu-central-1/medical-imaging/aws4_request":
        problems.append("scope")
    if keys[2] is not None and ("x-amz-security-token" not in signed or got.headers["x-amz-security-token"] != keys[2]):
        problems.append("token")
    skew = datetime.datetime.strptime(got.headers["x-amz-date"], "%Y%m%dT%H%M%SZ") - datetime.datetime.now(
        datetime.timezone.utc
    ).replace(tzinfo=None)
    if abs(skew.total_seconds()) > 300:
        problems.append("date")
    return Reply(403 if problems else 200)


@pytest.mark.parametrize("token", [None, "session-token"])
def test_sigv4(serve, connect, monkeypatch, token) -> None:
    keys = ("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", token)
    problems: list[str] = []
    server = serve(lambda got: check_signature(got, keys, problems))
    literal = AWSSigV4("eu-central-1", access_key_id=keys[0], secret_access_key=keys[1], session_token=token)
    transport = connect(server.url + "/datastore/1", credentials=literal)
    body = MultipartBody([BodyPart({}, b"x" * 100_000)])
    for target in (
        "/studies",
        "/studies?ModalitiesInStudy=CT,MR&PatientName=A%20b%2Cc*&limit=10&a=%C3%A4&includefield=00100010",
        "/studies/1.2.3/series/4.5?x",
        "/studies/a%20b",
    ):
        transport.request("GET", target, headers={"Accept": "application/dicom+json"})
    transport.request("POST", "/studies", body=body, headers={"Content-Type": body.content_type})
    transport.request("POST", "/studies", body=b"bytes")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", keys[0])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", keys[1])
    if token:
        monkeypatch.setenv("AWS_SESSION_TOKEN", token)
    else:
        monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)
    connect(server.url, credentials=AWSSigV4("eu-central-1")).request("GET", "/x")
    assert problems == []
    wrong = AWSSigV4("eu-central-1", access_key_id=keys[0], secret_access_key="wrong", session_token=token)
    with pytest.raises(DICOMwebError, match="403"):
        connect(server.url, credentials=wrong).request("GET", "/")
    assert problems == ["signature"]


def test_sigv4_is_signed_again_for_each_try(serve, connect) -> None:
    keys = ("A", "b", None)
    problems: list[str] = []
    server = serve(in_turn(Reply(503), lambda got: check_signature(got, keys, problems)))
    credentials = AWSSigV4("eu-central-1", access_key_id="A", secret_access_key="b")
    assert connect(server.url, credentials=credentials).request("POST", "/", body=b"x").attempts == 2
    assert problems == []
    with pytest.raises(ValueError, match="cannot be signed"):
        connect(server.url, credentials=credentials).request("POST", "/", body=iter([b"x"]))


# -- TLS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def pem(authority: trustme.CA, tmp_path) -> dict[str, str]:  # type: ignore[no-untyped-def]
    paths = {name: str(tmp_path / f"{name}.pem") for name in ("ca", "client", "key", "chain")}
    authority.cert_pem.write_to_path(paths["ca"])
    client = authority.issue_cert("client@example.org")
    client.private_key_and_cert_chain_pem.write_to_path(paths["client"])
    client.private_key_pem.write_to_path(paths["key"])
    client.cert_chain_pems[0].write_to_path(paths["chain"])
    return paths


def server_context(authority: trustme.CA, *, mutual: bool) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
    if mutual:
        context.verify_mode = ssl.CERT_REQUIRED
        authority.configure_trust(context)
    return context


def test_mutual_tls(serve, connect, authority, pem) -> None:
    server = serve(lambda got: got.answer(200, b"in"), tls=server_context(authority, mutual=True))
    for cert in (pem["client"], (pem["chain"], pem["key"])):
        transport = connect(server.url, tls=TLS(pem["ca"], cert))
        assert transport.request("GET", "/").content == b"in"
    with pytest.raises(ConnectionFailedError):
        connect(server.url, tls=TLS(pem["ca"]), retry=RetryPolicy.none()).request("GET", "/")
    with pytest.raises(FileNotFoundError, match="cert"):
        connect(server.url, tls=TLS(cert=(pem["chain"], "/no/such/key.pem")))


def test_the_client_certificate_goes_to_no_other_origin(serve, connect, authority, pem) -> None:
    other = serve(lambda got: got.answer(200, b"in"), tls=server_context(authority, mutual=True))
    server = serve(lambda got: got.answer(302, Location=other.url), tls=server_context(authority, mutual=True))
    with pytest.raises(ConnectionFailedError):
        connect(server.url, tls=TLS(pem["ca"], pem["client"]), retry=RetryPolicy.none()).request("GET", "/")
    assert len(server.requests) == 1
    assert other.requests == []


def test_tls_is_verified_unless_switched_off(serve, connect, authority, pem, monkeypatch) -> None:
    server = serve(lambda got: got.answer(200, b"in"), tls=server_context(authority, mutual=False))
    with pytest.raises(ConnectionFailedError, match="certificate is not trusted") as caught:
        connect(server.url).request("GET", "/")
    assert (caught.value.attempts, caught.value.retryable, caught.value.sent) == (1, False, False)
    assert connect(server.url, tls=TLS(pem["ca"])).request("GET", "/").content == b"in"
    with pytest.warns(Warning, match="Unverified"):
        assert connect(server.url, tls=TLS(False)).request("GET", "/").content == b"in"
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", pem["ca"])
    assert connect(server.url).request("GET", "/").content == b"in"
    # What the caller names counts more than the environment.
    other = trustme.CA()
    other.cert_pem.write_to_path(pem["chain"])
    with pytest.raises(ConnectionFailedError):
        connect(server.url, tls=TLS(pem["chain"])).request("GET", "/")


def test_https_is_not_left_for_http(serve, connect, authority, pem) -> None:
    plain = serve(lambda got: got.answer(200, b"plain"))
    server = serve(lambda got: got.answer(302, Location=plain.url), tls=server_context(authority, mutual=False))
    with pytest.raises(DICOMwebError, match="from https to plain http"):
        connect(server.url, tls=TLS(pem["ca"])).request("GET", "/")
    assert plain.requests == []


def test_the_deadline_holds_over_tls(serve, connect, authority, pem) -> None:
    def drip(got) -> None:  # type: ignore[no-untyped-def]
        got.send(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        while not got.server.stopping.wait(0.02):
            got.send(b"x")

    server = serve(drip, tls=server_context(authority, mutual=False))
    with pytest.raises(DICOMwebError, match="deadline"):
        connect(server.url, tls=TLS(pem["ca"]), timeouts=Timeouts(deadline=0.5)).request("GET", "/")


def test_the_deadline_ends_a_dripping_handshake(connect) -> None:
    done = threading.Event()

    def drip() -> None:
        sock, _ = listener.accept()
        with sock, contextlib.suppress(OSError):
            # A handshake record of 16 KiB whose content comes byte by byte, each long before any timeout.
            sock.sendall(b"\x16\x03\x03\x40\x00\x02\x00\x3f\xfc")
            while not done.wait(0.02):
                sock.sendall(b"\0")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=drip)
        thread.start()
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(DICOMwebError, match="deadline"):
            connect(url, timeouts=Timeouts(deadline=0.4)).request("GET", "/")
        done.set()
        thread.join(5)


# -- what is seen of them


@pytest.mark.parametrize(
    "credentials",
    [
        BasicCredentials("u", "s3cret"),
        BearerToken("s3cret"),
        OAuth2ClientCredentials("https://t/", "c", "s3cret", scope="x"),
        GoogleCredentials(info={"private_key": "s3cret"}),
        AzureCredentials(tenant_id="t"),
        AWSSigV4("r", access_key_id="s3cret", secret_access_key="s3cret", session_token="s3cret"),
        BasicCredentials("u", password_env="PW"),
        BearerToken(command=["a", "b"]),  # type: ignore[arg-type]
    ],
    ids=lambda item: type(item).__name__,
)
def test_descriptions_pickle_and_mask(credentials) -> None:
    again = pickle.loads(pickle.dumps(credentials))
    assert again == credentials
    assert "s3cret" not in repr(credentials)
    assert type(credentials).__name__ in repr(credentials)


def test_only_literals_travel(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("PW", "s3cret")
    file = tmp_path / "f"
    file.write_text("s3cret")
    for credentials in (
        BasicCredentials("u", password_env="PW"),
        BearerToken(env="PW"),
        BearerToken(file=str(file)),
        OAuth2ClientCredentials("https://t/", "c", client_secret_file=str(file)),
    ):
        credentials.auth(TokenAccess(Transport, True, None, Timeouts()))
        assert b"s3cret" not in pickle.dumps(credentials)
    assert repr(BearerToken(env="PW")) == "BearerToken(env='PW')"


def test_missing_extras_are_named() -> None:
    # In a process of its own, with the packages hidden, so that the outcome does not depend on what is installed.
    code = (
        "import sys; sys.modules['azure'] = None; sys.modules['botocore'] = None\n"
        "from dicomweb_io.http.auth import *\n"
        "for item in (AzureCredentials(), AWSSigV4('r')):\n"
        "    try: item.auth(TokenAccess(None, True, None, None))\n"
        "    except ImportError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert "dicomweb_io[azure]" in done.stdout
    assert "dicomweb_io[aws]" in done.stdout
