"""Defects that dicomweb-client 0.61.2 was found to have, and the test that shows that this package has not.

Where another test shows it already, the list names it; the rest is tested below. `test_the_list_names_real_tests`
keeps the list true.

Command line

- ``Authorization: Bearer None`` without a token: test_no_token_no_authorization
- ``retrieve bulkdata`` fails, and cannot save: test_bulk_data_on_the_command_line
- ``store instances --study`` is ignored: unit/cli/test_command_line.py::test_store_tells_of_each_file
- ``--filter a=b=c`` crashes: unit/cli/test_command_line.py::test_a_value_may_hold_an_equals_sign
- an unrelated error without ``--url``: unit/cli/test_command_line.py::test_wrong_use_is_explained
- an unrelated error for frames without ``--numbers``: unit/cli/test_command_line.py::test_frames_need_numbers
- ``--show`` does nothing: test_frames_can_be_shown
- no prefixes, no timeout: test_prefixes_and_timeout_are_options
- no delete: test_deleting_on_the_command_line
- no get_remaining: servers/test_guide_command_line.py::test_search
- no folders: unit/cli/test_command_line.py::test_search_prints_json_lines
- store loads all files into memory: test_storing_needs_little_memory
- store exits 0 and prints nothing although instances failed: test_refusals_are_printed_and_end_with_an_error

Web client

- a retried store sends an empty body: unit/web/test_web_storing.py::test_a_retried_request_has_its_whole_body
- reasons of a 409 are lost, a 202 goes without a word:
  unit/web/test_web_storing.py::test_the_outcome_is_in_the_body_whatever_status_and_content_type_say
- ``dicom+json; charset=utf-8`` and arrays are not understood: unit/web/test_web_storing.py::test_any_content_type
- bodies are held in memory: unit/http/test_multipart.py::test_body_is_replayable_and_its_length_known
- datasets only, encoded anew: unit/web/test_web_storing.py::test_all_sources_arrive_with_their_bytes_unchanged
- one boundary for all, chunks that Orthanc chokes on: test_store_requests_have_a_length_and_a_boundary_of_their_own
- no Accept: unit/web/test_web_storing.py::test_a_server_that_wants_another_accept
- no splitting by size and count: unit/web/test_web_storing.py::test_batches_are_bounded_by_bytes_and_count
- every exception is retried, refused connections for 30 s: unit/http/test_transport.py::test_a_refused_connection
- a client error is retried: unit/http/test_transport.py::test_statuses_that_are_not
- a silent server holds a call for minutes: unit/http/test_transport.py::test_a_stalled_server_ends_by_the_read_timeout
- what comes out after retries is no HTTPError: unit/http/test_transport.py::test_the_last_error_comes_out
- Retry-After is ignored: unit/http/test_transport.py::test_retry_after_is_waited_for_and_holds_others_back
- no jitter, no cap: unit/http/test_retry.py::test_delays_stay_within_their_bounds
- 500 and 502 are not retried: unit/http/test_transport.py::test_statuses_that_are_worth_another_try
- bodies that break off are not resumed:
  unit/web/test_web_instances.py::test_only_what_is_missing_is_asked_for_after_a_body_that_breaks_off
- wrong Host header, doubled slashes: unit/web/test_web_client.py::test_host_header_and_slashes_are_right
- bulk data elsewhere gets the client's host:
  unit/web/test_web_bulkdata.py::test_another_host_gets_its_own_host_header_and_no_credentials
- IPv6 breaks: unit/web/test_web_client.py::test_ipv6
- ``user:password@`` breaks: unit/web/test_web_client.py::test_user_information_of_the_url_becomes_credentials
- paging ends only at an empty page:
  unit/web/test_web_searching.py::test_a_short_page_is_the_end_only_where_the_maximum_is_known
- limit is the size of a page: unit/web/test_web_searching.py::test_a_true_limit_and_an_offset
- repeated rows are kept: unit/web/test_web_searching.py::test_rows_repeated_across_pages_are_dropped
- an ignored offset makes it loop for ever:
  unit/web/test_web_searching.py::test_an_ignored_offset_fails_instead_of_looping
- searches do not stream: servers/test_client_suite_reading.py::test_iterating_is_lazy
- no transfer syntax in Accept: 406 from Azure:
  servers/test_client_suite_reading.py::test_instances_come_as_they_are_stored
- no other spelling of Accept: unit/web/test_web_instances.py::test_other_spellings_of_the_same_media_type
- no single parts: unit/web/test_web_instances.py::test_a_single_part_is_read_too_and_causes_no_warning
- single frames and bulk data without parts: unit/web/test_web_frames.py::test_servers_with_single_parts_only
- a fixed table of transfer syntaxes: unit/web/test_web_instances.py::test_media_types_are_open_ended
- former media types are refused: unit/web/test_web_frames.py::test_former_names_of_media_types
- whole parts in memory: unit/http/test_multipart.py::test_memory_does_not_grow_with_the_part
- part headers are not to be had:
  unit/web/test_web_frames.py::test_frames_come_in_the_order_asked_for_with_their_encoding
- a preamble is an error or a part: unit/http/test_multipart.py::test_every_chunk_size_gives_the_same_parts
- trailing blanks and semicolons at boundaries: unit/http/test_multipart.py::test_boundaries
- large parts are decoded in quadratic time: unit/http/test_multipart.py::test_every_chunk_size_gives_the_same_parts
- a body cut short without length is a short last part:
  unit/web/test_web_instances.py::test_a_missing_closing_boundary_is_an_error_after_the_complete_parts
- the same of a single part: unit/web/test_web_instances.py::test_a_truncated_single_part_without_length_is_noticed
- 204 is a KeyError: unit/web/test_web_instances.py::test_an_empty_answer
- a missing Content-Type is a KeyError: test_answers_without_content_type
- octet-stream bulk data is a ValueError: unit/web/test_web_bulkdata.py::test_a_single_body
- metadata of ``[]`` is an IndexError: test_empty_metadata_is_an_http_error
- UIDs are not checked: ``1.2/../../admin``:
  servers/test_client_suite_reading.py::test_bad_arguments_are_refused_before_anything_is_sent
- 3,000 frames make an address of 13,937 characters:
  unit/web/test_web_frames.py::test_long_lists_are_cut_by_number_and_by_length_of_the_url
- ``byte_range=(0, None)`` sends ``bytes=0-None``: unit/web/test_web_bulkdata.py::test_byte_ranges
- 206 and Warning are invisible:
  unit/web/test_web_searching.py::test_warnings_and_partial_answers_reach_log_page_and_callback
- nothing happens at 401: unit/http/test_credentials.py::test_bearer_sources_are_read_again_after_401
- errors do not tell what the server said: unit/http/test_transport.py::test_errors_say_what_happened_and_pickle
- not for threads: servers/test_client_suite_reading.py::test_eight_threads_share_a_client
- the session that is passed is changed: unit/http/test_transport.py::test_the_users_session_is_used_and_not_changed

File client

- an update reads all files again: unit/files/test_folder_index.py::test_only_new_and_changed_files_are_read
- rows of deleted files stay: unit/files/test_folder_index.py::test_series_and_study_rows_follow_their_instances
- deleted instances are still found: servers/test_client_suite_storing.py::test_deleting
- implicit, deflated, big-endian, RLE, HTJ2K fail:
  unit/files/test_folder_retrieve.py::test_instances_come_back_byte_for_byte
- their frames fail: unit/files/test_folder_retrieve.py::test_frames_of_all_samples_agree_with_pydicom
- the last native frame reaches to the end of the file: test_the_last_frame_ends_where_the_pixels_end
- offsets overflow above 4 GiB: test_frames_beyond_four_gibibytes
- filters are skipped and everything is returned: unit/files/test_folder_search.py::test_a_filter_is_never_ignored
- ranges, ModalitiesInStudy, descriptions are not matched: unit/files/test_folder_search.py::test_filters
- not for threads: unit/files/test_folder_client.py::test_many_threads
- pickling destroys the client:
  unit/files/test_folder_client.py::test_a_pickled_client_is_a_new_client_of_the_same_folder
- a missing instance is a 500: unit/files/test_folder_retrieve.py::test_what_is_not_there_is_a_404
- ``file:///a%20b`` is not unquoted:
  unit/files/test_folder_locations.py::test_local_paths_and_file_urls_name_the_same_folder
- drive letters are taken for something else: test_a_drive_letter_is_no_protocol
- pydicom's settings stay changed after an error: test_pydicoms_settings_stay_as_they_are
- several statements per row: test_the_number_of_statements_does_not_grow_with_the_rows

Elsewhere

- derived URIs lose ``permissive``: unit/dicom/test_uris.py::test_derived_uris_stay_permissive
- the order of includefield varies: unit/test_uri_and_api_modules.py::test_query_strings
- ``load_json_dataset`` was removed: unit/test_uri_and_api_modules.py::test_the_api_module
- a plain path is no folder: unit/files/test_folder_locations.py::test_local_paths_and_file_urls_name_the_same_folder
- ``--token`` is not known: servers/test_guide_command_line.py::test_store
- an instance's bulk data cannot be had by its media type:
  unit/web/test_web_frames.py::test_bulk_data_of_an_instance_are_its_frames_where_the_server_gives_it_as_dicom_only
- names in other alphabets break the output: unit/cli/test_command_line.py::test_names_in_all_alphabets_reach_pipes
- a series without its study is searched for in all of the archive:
  servers/test_client_suite_reading.py::test_a_series_is_searched_without_its_study_too
"""

from __future__ import annotations

import ast
import io
import json
import re
import sqlite3
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pydicom
import pytest
import requests
from PIL import ImageShow

from dicomweb_io.api import DICOMfileClient, DICOMwebClient
from dicomweb_io.cli import main
from dicomweb_io.elements import Instance, Resource
from dicomweb_io.http.retry import RetryPolicy
from dicomweb_io.testing.faults import fault
from dicomweb_io.testing.samples import clone, sample_file, synthetic_instance
from tests.answering import Reply

TESTS = Path(__file__).parents[1]
PARENTS = ("study_instance_uid", "series_instance_uid")


def entries() -> list[tuple[str, str]]:
    return re.findall(r"^- (.+):\s+(\S+)$", str(__doc__), re.MULTILINE)


def test_the_list_names_real_tests():
    table = entries()
    assert len(table) == 87
    for defect, proof in table:
        file, _, name = proof.rpartition("::")
        assert name in functions_of(TESTS / file if file else Path(__file__)), f"{defect}: there is no test {proof}"


@cache
def functions_of(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


# Command line ---------------------------------------------------------------------------------------------------------


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_no_token_no_authorization(serve, filled_folder, capsys):
    server = serve(filled_folder)
    assert run("--url", server.url, "search", "studies", "--limit", "1") == 0
    assert server.records
    assert all("authorization" not in record.headers for record in server.records)


def test_bulk_data_on_the_command_line(serve, filled_folder, content, tmp_path, capsys):
    server = serve(filled_folder)
    with DICOMwebClient(server.url) as client:
        uri = client.retrieve_instance_metadata(*content.ct.uids)["7FE00010"]["BulkDataURI"]
    for number, address in enumerate((uri, uri[uri.index("studies/") :])):
        folder = tmp_path / str(number)
        asked = ("--url", server.url, "retrieve", "bulkdata", "--uri", address)
        assert run(*asked, "--save", "--output-dir", folder) == 0
        (saved,) = folder.iterdir()
        assert saved.read_bytes() == content.ct.dataset.PixelData
        assert capsys.readouterr().err == f"1 file, 32.8 kB → {folder}/\n"


def test_frames_can_be_shown(serve, filled_folder, content, monkeypatch, capsys):
    shown: list[tuple[int, int]] = []

    class Viewer(ImageShow.Viewer):
        def show(self, image: Any, **options: Any) -> int:
            shown.append(image.size)
            return 1

    monkeypatch.setattr(ImageShow, "_viewers", [Viewer()])
    study, series, instance = content.loop.uids
    where = ("--study", study, "--series", series, "--instance", instance)
    frames = ("frames", "--numbers", "1", "2", "--media-type", "image/jpeg", "--show")
    assert run("--url", serve(filled_folder).url, "retrieve", "instances", *where, *frames) == 0
    assert shown == [(320, 240), (320, 240)]


def test_prefixes_and_timeout_are_options(serve, answering, filled_folder, content, capsys):
    server = serve(filled_folder, behaviour="dicomcloud")
    prefixes = ("--qido-prefix", "qidors", "--wado-prefix", "wadors", "--stow-prefix", "stowrs")
    study = content.ct.uids[0]
    assert run("--url", server.url, *prefixes, "search", "series", "--study", study) == 0
    assert run("--url", server.url, *prefixes, "retrieve", "studies", "--study", study, "metadata") == 0
    assert {record.path.split("/")[1] for record in server.records} == {"qidors", "wadors"}
    # Only the deadline ends the call.
    silent = answering(lambda request: request.server.stopping.wait(30) and request.hangup())
    assert run("--url", silent.url, "--timeout", "0.1", "--deadline", "0.2", "search", "studies") == 1
    assert "127.0.0.1" in capsys.readouterr().err


def test_deleting_on_the_command_line(serve, make_image, tmp_path, capsys):
    (tmp_path / "archive").mkdir()
    image = make_image(1, seed="delete")
    (tmp_path / "archive" / "one.dcm").write_bytes(image)
    study = Instance.from_bytes(image).reference.study_instance_uid
    server = serve(tmp_path / "archive")
    with pytest.raises(SystemExit):
        run("--url", server.url, "delete", "study", "--study", study)
    assert run("--url", server.url, "delete", "study", "--study", study, "--yes") == 0
    assert list((tmp_path / "archive").rglob("*.dcm")) == []
    assert run("--url", server.url, "delete", "study", "--study", study, "--yes") == 1
    assert study in capsys.readouterr().err


def test_refusals_are_printed_and_end_with_an_error(serve, make_image, tmp_path, capsys):
    server = serve(tmp_path / "archive", faults=[fault("refuse_instances", reason=0xA900, numbers=(2,))])
    for number in (1, 2, 3):
        (tmp_path / f"{number}.dcm").write_bytes(make_image(1, 0, number, "refused"))
    assert run("--url", server.url, "store", "instances", *sorted(tmp_path.glob("*.dcm"))) == 1
    captured = capsys.readouterr()
    outcomes = [json.loads(line) for line in captured.out.splitlines()]
    assert [outcome["outcome"] for outcome in outcomes] == ["stored", "failed", "stored"]
    assert outcomes[1]["reason_code"] == 0xA900
    assert captured.err.startswith("3 files: 2 stored, 1 failed; ")


def test_storing_needs_little_memory(serve, tmp_path):
    files = tmp_path / "files"
    files.mkdir()
    for number in range(3):
        synthetic_instance(32 << 20, files / f"{number}.dcm", seed="memory", number=number)
    server = serve(tmp_path / "archive")
    code = (
        "import resource, sys; from dicomweb_io.cli import main; code = main(sys.argv[1:]); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr); sys.exit(code)"
    )

    def peak(*arguments: str) -> int:
        command = [sys.executable, "-c", code, "--url", server.url, *arguments]
        result = subprocess.run(command, cwd=TESTS.parent, capture_output=True, check=True, timeout=60)
        return int(result.stderr.split()[-1]) * 1024

    small = peak("search", "studies")
    assert peak("store", "instances", str(files)) - small < 32 << 20
    assert len(list((tmp_path / "archive").rglob("*.dcm"))) == 3


# Web client -----------------------------------------------------------------------------------------------------------


def test_store_requests_have_a_length_and_a_boundary_of_their_own(serve, make_image, tmp_path):
    server = serve(tmp_path / "archive")
    with DICOMwebClient(server.url) as client:
        for number in (1, 2):
            client.store_instances([make_image(1, 0, number, "boundary")])
    first, second = (record.headers for record in server.records.settled().of("POST"))
    assert first["content-type"] != second["content-type"]
    for record in server.records.of("POST"):
        assert int(record.headers["content-length"]) == record.bytes_in
        assert "transfer-encoding" not in record.headers


def test_answers_without_content_type(answering, content):
    held = content.ct
    with DICOMwebClient(answering(lambda _: Reply(200, b"[]")).url) as client:
        assert client.search_for_studies() == []
    with DICOMwebClient(answering(lambda _: Reply(200, held.content)).url) as client:
        assert client.retrieve_instance(*held.uids) == held.dataset
    with DICOMwebClient(answering(lambda _: Reply(200, b"bytes")).url) as client:
        assert client.retrieve_bulkdata("studies/1/bulk") == [b"bytes"]


def test_empty_metadata_is_an_http_error(answering):
    with DICOMwebClient(answering(lambda _: Reply.json([])).url, retry=RetryPolicy.none()) as client:
        with pytest.raises(requests.HTTPError, match="metadata of one instance"):
            client.retrieve_instance_metadata("1.2.3", "1.2.4", "1.2.5")


# File client ----------------------------------------------------------------------------------------------------------


def test_the_last_frame_ends_where_the_pixels_end(tmp_path):
    dataset = pydicom.dcmread(sample_file("CT_small.dcm"))
    dataset.add_new(0xFFFCFFFC, "OB", b"\x01" * 138)
    dataset.save_as(tmp_path / "padded.dcm")
    uids = Instance.from_path(tmp_path / "padded.dcm").reference.uids.values()
    with DICOMfileClient(tmp_path) as client:
        assert client.retrieve_instance_frames(*uids, [1]) == [dataset.PixelData[: 128 * 128 * 2]]


def test_frames_beyond_four_gibibytes(tmp_path, content):
    """Two frames: the first is a hole of nearly 4 GiB in a sparse file, the second lies behind it."""
    (frame, _) = content.jpeg_2000.frames()
    dataset = pydicom.dcmread(io.BytesIO(content.jpeg_2000.content))
    hole = 0xFFFFFFF0
    dataset.NumberOfFrames = 2
    dataset.add_new(0x7FE00001, "OV", (0).to_bytes(8, "little") + (hole + 8).to_bytes(8, "little"))
    dataset.add_new(0x7FE00002, "OV", hole.to_bytes(8, "little") + len(frame).to_bytes(8, "little"))
    del dataset.PixelData
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    with open(tmp_path / "large.dcm", "wb") as file:
        file.write(buffer.getvalue() + bytes.fromhex("e07f10004f420000ffffffff feff00e000000000"))
        file.write(bytes.fromhex("feff00e0") + hole.to_bytes(4, "little"))
        file.seek(hole, 1)
        file.write(bytes.fromhex("feff00e0") + len(frame).to_bytes(4, "little") + frame)
        file.write(bytes.fromhex("feffdde000000000"))
    assert (tmp_path / "large.dcm").stat().st_size > 1 << 32
    with DICOMfileClient(tmp_path) as client:
        (row,) = client.search_for_instances()
        reference = Resource.of(row)
        (found,) = client.iter_frames(Resource(*content.jpeg_2000.uids, (2,)))
        assert found.content == frame
        assert found.reference.instance == reference


def test_a_drive_letter_is_no_protocol():
    for path in ("C:/data", "C:\\data"):
        assert DICOMfileClient(path).base_url.startswith("file:///")


def test_pydicoms_settings_stay_as_they_are(tmp_path, capsys):
    def settings() -> list[Any]:
        config = pydicom.config
        modes = [config.settings.reading_validation_mode, config.settings.writing_validation_mode]
        return [*modes, config.use_none_as_empty_text_VR_value]

    before = settings()
    for path in ("badVR.dcm", "MR_truncated.dcm", "CT_small.dcm"):
        (tmp_path / path).write_bytes(sample_file(path).read_bytes())
    with DICOMfileClient(tmp_path) as client:
        for row in client.search_for_instances():
            uids = Resource.of(row).uids.values()
            client.retrieve_instance_metadata(*uids)
            with pytest.raises(requests.HTTPError):
                client.retrieve_instance_frames(*uids, [1000])
    assert settings() == before


def test_the_number_of_statements_does_not_grow_with_the_rows(make_image, tmp_path, monkeypatch):
    statements: list[str] = []
    connect = sqlite3.connect

    def traced(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection = connect(*arguments, **options)
        connection.set_trace_callback(statements.append)
        return connection

    monkeypatch.setattr(sqlite3, "connect", traced)
    counts = []
    for size in (5, 60):
        folder = tmp_path / str(size)
        folder.mkdir()
        for number in range(size):
            # One series of many instances.
            one = Instance.from_bytes(make_image(1, 0, 1, "statements"))
            content = clone(one.read(), number, **{name: getattr(one.reference, name) for name in PARENTS})
            (folder / f"{number}.dcm").write_bytes(content)
        with DICOMfileClient(folder, index=tmp_path / "index") as client:
            assert len(client.search_for_studies()) == 1
            statements.clear()
            rows = client.search_for_instances(search_filters={"Modality": "CT"})
            assert len(rows) == size
            counts.append(len(statements))
    assert counts[0] == counts[1]
    assert not any("COUNT(" in statement.upper() for statement in statements)
