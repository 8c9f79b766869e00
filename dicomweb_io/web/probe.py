"""Finds out what a server is and what it supports, for `Endpoint.probe` and the command line's ``doctor``.

Only reads are made, of one study, series and instance at most; nothing is stored or deleted.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import urljoin

from dicomweb_io.dicom import json_decode
from dicomweb_io.dicom.errors import DatasetError
from dicomweb_io.dicom.media_types import DICOM_JSON
from dicomweb_io.elements import JSONDataset, Resource, SearchQuery
from dicomweb_io.errors import DICOMwebError
from dicomweb_io.http.transport import Answer
from dicomweb_io.profiles import PROFILES, Finding, ProbeReport, ServerProfile
from dicomweb_io.web.search import rows_of
from dicomweb_io.web.service import Service
from dicomweb_io.web.urls import with_query

_ABSENT = (400, 403, 404, 405, 406, 410, 415, 500, 501)
_NO_UID = "2.25.1"


def probe(service: Service) -> ProbeReport:
    """Finds out how a server behaves.

    Args:
        service: The server. Its own profile is the start; facts that it leaves open are filled in.

    Raises:
        requests.HTTPError: If the server cannot be reached at all, or refuses searches for studies.
    """
    return _Probe(service).run()


class _Probe:
    """One look at a server: its findings, and the facts of a profile that follow from them."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._findings: list[Finding] = []
        self._facts: dict[str, Any] = {}

    def run(self) -> ProbeReport:
        studies = self._search(SearchQuery("study"), "limit=2", required=True)
        self._found("search of studies", True, f"{len(studies)} of at most 2 rows")
        profile, recognized = self._recognize()
        self._limits(studies)
        study = self._first(studies)
        self._resource("search of all series", "flat_series", SearchQuery("series"))
        self._resource("search of all instances", "flat_instances", SearchQuery("instance"))
        series = instance = None
        if study is not None:
            uid = study.study_instance_uid
            self._resource("search of a study's instances", "study_instances", SearchQuery("instance", uid))
            series = self._first(self._search(SearchQuery("series", uid), "limit=1"))
        if series is not None:
            query = SearchQuery("instance", series.study_instance_uid, series.series_instance_uid)
            instance = self._first(self._search(query, "limit=1"))
        self._empty_answer()
        self._decoding()
        self._counting()
        self._retrieval(instance)
        if recognized or profile.name != "generic":
            # What the profile knows from documents and source code outweighs one look at one archive.
            facts = {name: value for name, value in self._facts.items() if getattr(profile, name) is None}
        else:
            facts = self._facts
        return ProbeReport(profile.with_facts(**facts), recognized, tuple(self._findings))

    def _get(self, url: str, accept: str = DICOM_JSON) -> Answer:
        return self._service.transport.request("GET", url, headers={"Accept": accept}, accept_statuses=_ABSENT)

    def _ask(self, query: SearchQuery, parameters: str) -> Answer:
        return self._get(with_query(self._service.urls.search(query), parameters))

    def _search(self, query: SearchQuery, parameters: str, *, required: bool = False) -> list[JSONDataset]:
        """The rows of a search; none if it is rejected and not required. If its answer ends early, it is repeated."""
        transport = self._service.transport
        url = with_query(self._service.urls.search(query), parameters)
        refusals = () if required else _ABSENT
        for attempt in transport.attempts():
            with attempt:
                headers = {"Accept": DICOM_JSON}
                answer = transport.request("GET", url, headers=headers, accept_statuses=refusals, attempt=attempt)
                return self._rows(answer)
        raise AssertionError("attempts() ends with a result or an error")

    def _rows(self, answer: Answer) -> list[JSONDataset]:
        if answer.status >= 400:
            return []
        return rows_of(answer)[0]

    def _first(self, rows: list[JSONDataset]) -> Resource | None:
        try:
            return Resource.of(rows[0]) if rows else None
        except ValueError:
            return None

    def _found(self, feature: str, supported: bool | None, detail: str) -> None:
        self._findings.append(Finding(feature, supported, detail))

    def _recognize(self) -> tuple[ServerProfile, bool]:
        given = self._service.profile
        confirmed = None
        if given.name != "generic":
            # An address says little: other servers than Orthanc have a root called dicom-web too.
            if given.fingerprint is not None and self._service.profile_is_guess:
                confirmed = self._has_fingerprint(given)
            if confirmed is not False:
                by = "recognized by its answers" if confirmed else "by its address or as chosen"
                self._found("kind of server", True, f"{given.name} ({by})")
                return given, confirmed is True
        for profile in PROFILES.values():
            if profile.fingerprint is not None and profile.name != given.name and self._has_fingerprint(profile):
                self._found("kind of server", True, f"{profile.name} (recognized by its answers)")
                return profile, True
        unlike = "" if confirmed is None else f" (its address looks like {given.name}, its answers do not)"
        self._found("kind of server", None, f"not recognized: the generic profile{unlike}")
        return given if confirmed is None else PROFILES["generic"], False

    def _has_fingerprint(self, profile: ServerProfile) -> bool | None:
        """Whether the server has the fingerprint of a profile; None if it does not allow the question."""
        assert profile.fingerprint is not None  # noqa: S101 - only such profiles are asked for
        path, member = profile.fingerprint
        try:
            answer = self._get(urljoin(self._service.urls.base_url + "/", path), "application/json")
        except DICOMwebError:
            return None
        if answer.status in (400, 403, 500):
            return None
        document = self._document(answer)
        return isinstance(document, dict) and member in document

    @staticmethod
    def _document(answer: Answer) -> Any:
        """The JSON document of an answer; None if it has none."""
        try:
            return json_decode.loads(answer.content) if answer.status < 300 else None
        except DatasetError:
            return None

    def _limits(self, studies: list[JSONDataset]) -> None:
        one = self._search(SearchQuery("study"), "limit=1")
        if len(studies) < 2:
            self._found("limit and offset", None, "unknown: there are fewer than 2 studies")
            return
        self._found("limit", len(one) == 1, f"limit=1 gives {len(one)} rows")
        first, other = self._first(one), self._first(self._search(SearchQuery("study"), "limit=1&offset=1"))
        works = other is not None and first is not None and other != first
        self._facts["offset_works"] = works
        self._found("offset", works, "offset=1 gives another row" if works else "offset=1 gives the same or no row")

    def _resource(self, feature: str, name: str, query: SearchQuery) -> None:
        answer = self._ask(query, "limit=1")
        there = answer.status < 300
        if there or answer.status in (404, 405, 501):
            self._facts[name] = there
        self._found(feature, there, f"HTTP {answer.status}")

    def _empty_answer(self) -> None:
        answer = self._ask(SearchQuery("study"), f"StudyInstanceUID={_NO_UID}&limit=1")
        rows = self._rows(answer)
        matches = not rows if answer.status < 300 else None
        detail = f"HTTP {answer.status} with {len(rows)} rows for a UID that does not exist"
        self._found("filter by StudyInstanceUID", matches, detail)

    def _decoding(self) -> None:
        answer = self._ask(SearchQuery("study"), "limit=%31")
        decodes = answer.status < 300
        self._facts["decodes_queries"] = decodes
        self._found("percent escapes in queries", decodes, f"limit=%31 gives HTTP {answer.status}")

    def _counting(self) -> None:
        answer = self._get(self._service.urls.search(SearchQuery("study"), count=True), "application/json")
        document = self._document(answer)
        there = isinstance(document, dict) and isinstance(document.get("count"), int)
        self._facts["count_resources"] = there
        self._found("count resource", there, f"HTTP {answer.status}")

    def _retrieval(self, instance: Resource | None) -> None:
        if instance is None or instance.level != "instance":
            self._found("retrieval", None, "there is no instance to test")
            return
        urls = self._service.urls
        metadata = self._get(urls.retrieve(instance, "/metadata"))
        self._found("metadata", metadata.status < 300, f"HTTP {metadata.status}")
        if metadata.status in (200, 404, 405, 501):
            self._facts["metadata_resource"] = metadata.status == 200
        for accept in self._service.profile.original_accepts:
            status, media_type = self._headers(urls.retrieve(instance), accept)
            self._found(f"retrieval as {accept}", status < 300, f"HTTP {status} {media_type}".strip())
        if metadata.status < 300 and b'"00280010"' not in metadata.content:
            # A report, say, cannot be rendered everywhere.
            for feature in ("rendering", "thumbnails"):
                self._found(feature, None, "the instance that was tried is not an image")
            return
        for feature, suffix in (("rendering", "/rendered"), ("thumbnails", "/thumbnail")):
            status, media_type = self._headers(urls.retrieve(instance, suffix), "*/*")
            self._found(feature, status < 300, f"HTTP {status} {media_type}".strip())
            if feature == "thumbnails":
                self._facts["thumbnails"] = status < 300

    def _headers(self, url: str, accept: str) -> tuple[int, str]:
        """The status and media type of an answer, whose body is not read."""
        with self._service.transport.stream("GET", url, headers={"Accept": accept}, accept_statuses=_ABSENT) as answer:
            return answer.status, self._service.content_type(answer).media_type
