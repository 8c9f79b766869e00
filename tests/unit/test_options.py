"""Endpoints, filters and files of results, as every command line, job and YAML makes them."""

from __future__ import annotations

import argparse
import csv
import json
import os
from dataclasses import replace

import pytest

from dicomweb_io.elements import Resource, SearchQuery
from dicomweb_io.http.auth import (
    AWSSigV4,
    AzureCredentials,
    BasicCredentials,
    BearerToken,
    GoogleCredentials,
    OAuth2ClientCredentials,
)
from dicomweb_io.http.settings import TLS, Limits, Prefixes, Timeouts
from dicomweb_io.options import (
    UsageError,
    add_archive_options,
    add_authentication_options,
    append_lines,
    atomic_file,
    check_writable,
    endpoint_from,
    filters_from,
    make_endpoint,
    wanted_from,
    write_lines,
)


def test_options_make_an_endpoint():
    given = {
        "user": "me",
        "password_env": "PASSWORD",
        "qido_prefix": "qido",
        "internal_url": "http://inner/rs",
        "profile": "orthanc",
        "timeout": 3,
        "deadline": 9,
        "cert": "cert.pem",
        "ca": "ca.pem",
        "max_in_flight": 2,
    }
    endpoint = make_endpoint("https://pacs.example/rs", given)
    assert endpoint.credentials == BasicCredentials("me", password_env="PASSWORD")
    assert (endpoint.prefixes, endpoint.profile) == (Prefixes(qido="qido"), "orthanc")
    assert endpoint.internal_url == "http://inner/rs"
    assert (endpoint.timeouts, endpoint.limits) == (Timeouts(3, 3, 9), Limits(2))
    assert endpoint.tls == TLS("ca.pem", "cert.pem")
    plain = make_endpoint("https://pacs.example/rs", {})
    assert (plain.credentials, plain.timeouts, plain.limits, plain.tls) == (None, Timeouts(), Limits(), TLS())
    assert make_endpoint("https://pacs.example/rs", {"insecure_no_verify": True}).tls == TLS(verify=False)


@pytest.mark.parametrize(
    ("given", "credentials"),
    [
        ({"token_env": "T"}, BearerToken(env="T")),
        ({"token_file": "/run/token"}, BearerToken(file="/run/token")),
        ({"token_command": "gcloud token"}, BearerToken(command="gcloud token")),
        ({"user": "me", "password_file": "/run/p"}, BasicCredentials("me", password_file="/run/p")),
        ({"google": True}, GoogleCredentials()),
        ({"google_file": "key.json", "google": True}, GoogleCredentials("key.json")),
        ({"azure": True}, AzureCredentials()),
        ({"azure_client_id": "c", "azure_tenant_id": "t"}, AzureCredentials(client_id="c", tenant_id="t")),
        ({"aws_region": "us-east-1", "aws_profile": "p"}, AWSSigV4("us-east-1", profile="p")),
        (
            {"oauth2_token_url": "https://t/", "oauth2_client_id": "c", "oauth2_client_secret_env": "S"},
            OAuth2ClientCredentials("https://t/", "c", client_secret_env="S"),
        ),
    ],
)
def test_secrets_are_named(given, credentials):
    assert make_endpoint("https://pacs.example/rs", given).credentials == credentials


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"token_env": "T", "google": True}, "give one way to authenticate, not TOKEN_ENV and GOOGLE"),
        ({"user": "me", "aws_region": "r"}, "not USER and AWS_REGION"),
        ({"user": "me"}, "USER needs PASSWORD_ENV"),
        ({"user": "me", "password_env": "P", "password_file": "f"}, "PASSWORD_ENV or PASSWORD_FILE"),
        ({"aws": True}, "AWS needs AWS_REGION"),
        ({"oauth2_client_id": "c"}, "OAUTH2 needs OAUTH2_TOKEN_URL"),
        ({"oauth2_client_id": "c", "oauth2_token_url": "u"}, "client_secret"),
        ({"password_env": "P"}, "PASSWORD_ENV needs USER"),
        ({"token_file": ""}, "TOKEN_FILE is empty"),
        ({"ca": "a", "insecure_no_verify": True}, "CA and INSECURE_NO_VERIFY contradict"),
        ({"timeout": -1}, "positive"),
        ({"max_in_flight": 0}, "max_in_flight"),
    ],
)
def test_what_is_wrong_is_said_in_the_words_of_the_driver(given, message):
    with pytest.raises(UsageError, match=message):
        make_endpoint("https://pacs.example/rs", given, str.upper)


def parsed(*arguments, role=""):
    parser = argparse.ArgumentParser()
    parser.add_argument(f"--{role or 'url'}")
    add_archive_options(parser, role)
    add_authentication_options(parser, role)
    return parser.parse_args(arguments)


def test_roles_have_options_of_their_own(monkeypatch):
    args = parsed("--source", "https://a/", "--source-token-env", "T", "--source-stow-prefix", "s", role="source")
    endpoint = endpoint_from(args, role="source", workers_elsewhere=True)
    assert (endpoint.credentials, endpoint.prefixes.stow) == (BearerToken(env="T"), "s")
    monkeypatch.delenv("T", raising=False)
    with pytest.raises(UsageError, match="--source-token-env: the environment variable T is not set"):
        endpoint_from(args, role="source")
    with pytest.raises(UsageError, match="--source is required"):
        endpoint_from(parsed(role="source"), role="source")
    with pytest.raises(UsageError, match="--cert: there is no file /no/such"):
        endpoint_from(parsed("--url", "https://a/", "--cert", "/no/such"))


def test_a_repeated_filter_is_a_list():
    assert filters_from(["Modality=CT", "PatientID=a=b", "Modality=MR"]) == {"Modality": "CT\\MR", "PatientID": "a=b"}
    assert filters_from(None) == {}
    for wrong in ("Modality", "=CT"):
        with pytest.raises(UsageError, match="expected KEY=VALUE"):
            filters_from([wrong])
    for wrong in ("PatientID=", "PatientID= "):
        with pytest.raises(UsageError, match="match everything"):
            filters_from(["Modality=CT", wrong])


def test_a_list_that_cannot_be_read_is_a_wrong_use(tmp_path):
    with pytest.raises(UsageError, match=r"--input .*missing"):
        wanted_from(str(tmp_path / "missing"))
    (tmp_path / "list").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="--input"):
        wanted_from(str(tmp_path / "list"))


ACCESSION = SearchQuery("study", search_filters=(("AccessionNumber", "00123"),))
ISSUER = ("IssuerOfAccessionNumberSequence.LocalNamespaceEntityID", "X")
INSTANCE = Resource("1.2.3", "1.2.4", "1.2.5")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("00123\n1.2.3\n", [ACCESSION, Resource("1.2.3")]),
        ("AccessionNumber\r\n00123\r\n\r\n# a comment\r\n", [ACCESSION]),
        ("\ufeff accession number \t\n 00123 \t\n", [ACCESSION]),
        ('AccessionNumber\n"00123"\n="00123"\n"=""00123"""\n', [ACCESSION] * 3),
        ("sep=;\nAccessionNumber;Patient ID\n00123;\n", [ACCESSION]),
        (
            "PatientID;IssuerOfPatientID\nP;X\n",
            [SearchQuery("study", search_filters=(("PatientID", "P"), ("IssuerOfPatientID", "X")))],
        ),
        (
            "AccessionNumber\tIssuerOfAccessionNumber\n00123\tX\n",
            [replace(ACCESSION, search_filters=(*ACCESSION.search_filters, ISSUER))],
        ),
        (
            "study_instance_uid,SeriesInstanceUID,SOPInstanceUID\n1.2.3,1.2.4,1.2.5\n1.2.3,,\n",
            [INSTANCE, Resource("1.2.3")],
        ),
        (
            "StudyInstanceUID,SOPInstanceUID\n1.2.3,1.2.5\n",
            [SearchQuery("instance", "1.2.3", search_filters=(("SOPInstanceUID", "1.2.5"),))],
        ),
        (json.dumps(INSTANCE.to_dict()) + "\n" + INSTANCE.uri, [INSTANCE, INSTANCE]),
        ('{"AccessionNumber": "00123"}', [ACCESSION]),
        # Lines that cannot be read do not keep others from being read.
        ("AccessionNumber\n*\n00123\n0?\n1\\2\n", [None, ACCESSION, None, None]),
        ("AccessionNumber,PatientID\n,\n00123,,x\n00123,\n", [None, ACCESSION]),
        ("StudyInstanceUID,AccessionNumber\n*,\n..,\n1/2,\n,00123\n", [None, None, None, ACCESSION]),
        ('00123\n0,1\n"0\n' + "9" * 200_000, [ACCESSION, None, None, None]),
        ('{"nothing": 1}\n{"broken\n{"transform": "X", "message": "m"}\n' + INSTANCE.uri, [None, None, None, INSTANCE]),
        ('{"StudyInstanceUID": ""}\n{"StudyInstanceUID": "1.2", "MRN": "7"}\n{"study_instance_uid": "*"}', [None] * 3),
        ('{"0020000D": {"vr": "UI", "Value": ["1.2"]}, "00080018": {"vr": "UI", "Value": ["1.3"]}}', [None]),
        ("# nothing\n\n", []),
    ],
)
@pytest.mark.parametrize("limit", [131_072, (1 << 31) - 1])
def test_every_line_of_a_list_is_read_or_named(content, expected, limit, tmp_path):
    """Whatever else in the process reads CSV and allows for it."""
    before = csv.field_size_limit(limit)
    (tmp_path / "list").write_bytes(content.encode())
    lines = wanted_from(str(tmp_path / "list"))
    csv.field_size_limit(before)
    assert [line.wanted for line in lines] == expected
    assert all((line.wanted is None) == bool(line.problem) for line in lines)
    assert all(line.place.startswith(f"{tmp_path / 'list'}, line ") for line in lines)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_a_list_of_a_spreadsheet_is_read(encoding, tmp_path):
    (tmp_path / "list").write_bytes("AccessionNumber\tPatientID\r\n00123\t\r\n".encode(encoding))
    assert [line.wanted for line in wanted_from(str(tmp_path / "list"))] == [ACCESSION]


@pytest.mark.parametrize(
    "header", ["Name,Comment", "Name", "StudyDate,Comment", "IssuerOfPatientID", "PatientID;MRN;Accession", "1;2"]
)
def test_an_unknown_header_is_a_wrong_use(header, tmp_path):
    (tmp_path / "list").write_text(f"{header}\n1,2\n")
    with pytest.raises(UsageError, match=r"line 1: the header has .*known: StudyInstanceUID, .*PatientID"):
        wanted_from(str(tmp_path / "list"))


@pytest.mark.parametrize("header", ["Accession Number", "accession", "ACCESSION_NO.", "Accession Nr", "acc. no."])
def test_a_column_is_known_by_other_names(header, tmp_path, caplog):
    """Others are not used, which is said once. Rows and columns without any value are left out."""
    path = tmp_path / "cohort.csv"
    path.write_bytes(f'Name;{header};Größe;;\r\n"Müller;\r\nA";00123;x;;\r\n;;;;\r\n'.encode("cp1252"))
    for _ in range(2):
        (line,) = wanted_from(str(path))
        assert (line.wanted, line.place) == (ACCESSION, f"{path}, line 2")
    assert len(caplog.records) == 1
    assert "not used are the columns 'Name', " in caplog.text
    assert "ller" not in caplog.text


@pytest.mark.parametrize(
    ("header", "value", "what"),
    [
        ("Study UID", "1.2.3", Resource("1.2.3")),
        ("MRN", "7", (("PatientID", "7"),)),
        ("Patient ID,Study Date", "7,2026-03-01", (("PatientID", "7"), ("StudyDate", "20260301"))),
        ("MRN,StudyDate", "7,1.3.2026", (("PatientID", "7"), ("StudyDate", "20260301"))),
        ("MRN,StudyDate", "7,03/31/2026 00:00", (("PatientID", "7"), ("StudyDate", "20260331"))),
        ("MRN,StudyDate", "7,20260301-", (("PatientID", "7"), ("StudyDate", "20260301-"))),
        ("MRN,StudyDate", "7,03/04/2026", "its StudyDate '03/04/2026' cannot be read in exactly one way"),
        ("MRN,StudyDate", "7,46082", "write YYYYMMDD"),
        ("Accession", "1.2E+05", "a spreadsheet has rounded"),
        ("Accession", '"1,23457E+11"', "a spreadsheet has rounded"),
        ("MRN", "\udcfc7", "its PatientID is not UTF-8"),
    ],
)
def test_cells_of_spreadsheets(header, value, what, tmp_path):
    (tmp_path / "list").write_text(f"{header}\n{value}\n", errors="surrogateescape")
    (line,) = wanted_from(str(tmp_path / "list"))
    if isinstance(what, str):
        assert what in line.problem
    else:
        assert line.wanted == (what if isinstance(what, Resource) else SearchQuery("study", search_filters=what))


def test_a_quote_without_its_end_spoils_one_line(tmp_path):
    (tmp_path / "list").write_text('AccessionNumber,Note\n00123,"\n00123,a\n00123,"two\nlines"\n"00123,\n00123,\n')
    lines = wanted_from(str(tmp_path / "list"))
    assert [line.wanted for line in lines].count(ACCESSION) == 3
    assert lines[-1].wanted == ACCESSION


@pytest.mark.parametrize("content", [b"PK\x03\x04xl", b"\xd0\xcf\x11\xe0\xa1\xb1"])
def test_a_workbook_is_told_from_a_text(content, tmp_path):
    (tmp_path / "list.xlsx").write_bytes(content)
    with pytest.raises(UsageError, match=r"a spreadsheet .*save the sheet as CSV"):
        wanted_from(str(tmp_path / "list.xlsx"))


def test_patterns_are_read_on_request(tmp_path):
    (tmp_path / "list").write_text("PatientID\nP*\n")
    (line,) = wanted_from(str(tmp_path / "list"), allow_patterns=True)
    assert line.wanted == SearchQuery("study", search_filters=(("PatientID", "P*"),))


@pytest.mark.parametrize("where", ["local", "memory"])
def test_a_file_appears_complete_or_not_at_all(tmp_path, where):
    import fsspec

    path = str(tmp_path / "report") if where == "local" else f"memory://reports/{tmp_path.name}/report"

    def content():
        with fsspec.open(path, "rb") as file:
            return file.read()

    write_lines(path, ["old"])

    def lines():
        yield "new"
        raise KeyError("in the middle")

    with pytest.raises(KeyError):
        write_lines(path, lines())
    assert content() == b"old\n"
    with atomic_file(path, "wb") as file:
        file.write(b"new")
    assert content() == b"new"
    if where == "local":
        assert os.stat(path).st_mode & 0o777 == 0o600
        assert os.listdir(tmp_path) == ["report"]


def test_a_file_appears_where_files_without_names_get_none(tmp_path, monkeypatch):
    def refused(*paths, **options):
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refused)
    write_lines(str(tmp_path / "report"), ["old"])
    write_lines(str(tmp_path / "report"), ["new"])
    assert (tmp_path / "report").read_text() == "new\n"
    assert os.stat(tmp_path / "report").st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["report"]


def test_lines_are_added_to_a_private_file(tmp_path):
    path = str(tmp_path / "failures")
    append_lines(path, ["one"])
    append_lines(path, ["two", "three"])
    assert (tmp_path / "failures").read_text() == "one\ntwo\nthree\n"
    assert os.stat(path).st_mode & 0o777 == 0o600


def test_a_report_is_checked_before_the_work_starts(tmp_path):
    check_writable(str(tmp_path / "report"), "--summary")
    check_writable("gs://bucket/report", "--summary", elsewhere=True)
    with pytest.raises(UsageError, match="this is a folder"):
        check_writable(str(tmp_path), "--summary")
    with pytest.raises(UsageError, match="there is no folder"):
        check_writable(str(tmp_path / "no" / "report"), "--summary")
    with pytest.raises(UsageError, match="do not reach this one's disks: give a URL"):
        check_writable(str(tmp_path / "report"), "--failures", elsewhere=True)
