"""Retrieving metadata (WADO-RS, PS3.18 section 10.4.1.1.2), one dataset at a time, in JSON or XML."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urljoin

from dicomweb_io.clients.web.json_stream import IncompleteJSONError, iter_json_objects
from dicomweb_io.clients.web.searching import Searcher
from dicomweb_io.clients.web.service import Service, logger
from dicomweb_io.clients.web.urls import parameters, with_query
from dicomweb_io.dicom import json_model
from dicomweb_io.dicom.media_types import DICOM_JSON
from dicomweb_io.dicom.xml_model import parse_native_model
from dicomweb_io.elements import JSONDataset, Resource, SearchQuery
from dicomweb_io.wire.errors import DICOMwebError, MalformedResponseError, ResponseIncompleteError
from dicomweb_io.wire.transport import Attempt, StreamedAnswer

_ACCEPTS = (DICOM_JSON, "application/json", 'multipart/related; type="application/dicom+xml"')
_ABSENT = (404, 405, 501)
_RESOURCE = "metadata_resource"


class MetadataRetriever:
    """Retrieves metadata of one service."""

    def __init__(self, service: Service, searcher: Searcher) -> None:
        self._service = service
        self._searcher = searcher

    def iter_metadata(
        self, resource: Resource, *, additional_params: Mapping[str, Any] | None = None
    ) -> Iterator[JSONDataset]:
        """See `DICOMClient.iter_metadata`. Relative bulk data URIs are made absolute: only here their base is known."""
        query = parameters(additional_params)
        return self._iterate(resource.instance, query)

    def _iterate(self, resource: Resource, query: str) -> Iterator[JSONDataset]:
        if resource.level == "study" and not self._service.profile.study_metadata:
            known = False
            for row in self._searcher.iter_search(SearchQuery("series", resource.study_instance_uid)):
                known = True
                yield from self._one(Resource.of(row), query)
            if not known:
                raise self._service.not_listed(resource)
            return
        yield from self._one(resource, query)

    def _one(self, resource: Resource, query: str) -> Iterator[JSONDataset]:
        service = self._service
        url = with_query(service.urls.retrieve(resource, "/metadata"), query)
        plain = with_query(service.urls.retrieve(resource), query)
        if service.profile.metadata_resource is False or _RESOURCE in service.missing_resources:
            yield from self._requested(resource, plain)
            return
        started = False
        try:
            for row in self._requested(resource, url):
                started = True
                yield row
            return
        except DICOMwebError as error:
            if started or error.status not in _ABSENT or service.profile.metadata_resource:
                raise
            # Some servers have no …/metadata and give the object itself as JSON; others do not know the object.
            try:
                rows = self._requested(resource, plain)
                first = next(rows, None)
            except DICOMwebError:
                raise error from None
            if first is None:
                raise
        service.missing_resources.add(_RESOURCE)
        logger.info("the server has no metadata resource; the objects themselves are asked for as JSON")
        yield first
        yield from rows

    def _requested(self, resource: Resource, url: str) -> Iterator[JSONDataset]:
        seen: set[tuple[str, str]] = set()
        for attempt in self._service.transport.attempts():
            with attempt:
                count = 0
                for row in self._one_answer(resource, url, attempt):
                    count += 1
                    uids = (json_model.first_text(row, "0020000E"), json_model.first_text(row, "00080018"))
                    if uids[1] and uids in seen:
                        continue
                    seen.add(uids)
                    attempt.progress()
                    yield row

    def _one_answer(self, resource: Resource, url: str, attempt: Attempt) -> Iterator[JSONDataset]:
        with self._service.get(url, _ACCEPTS, attempt=attempt) as answer:
            count = 0
            for row in self._rows(answer):
                self._check(row, resource, answer)
                count += 1
                yield row
            if resource.level == "instance" and count != 1:
                raise answer.error(
                    f"expected the metadata of one instance, got {count}",
                    MalformedResponseError if count else ResponseIncompleteError,
                )

    def _rows(self, answer: StreamedAnswer) -> Iterator[JSONDataset]:
        if answer.status == 204:
            return
        content_type = self._service.content_type(answer)
        if content_type.is_multipart:
            for part in self._service.parts(answer):
                yield self._parsed(part.read(), answer)
            return
        if content_type.is_xml:
            yield self._parsed(answer.read(), answer)
            return
        try:
            for text in iter_json_objects(answer.iter_chunks(self._service.chunk_size)):
                yield self._parsed(text, answer)
        except IncompleteJSONError as error:
            raise answer.error(str(error), ResponseIncompleteError, retryable=True) from error
        except ValueError as error:
            kind = content_type.media_type or "no Content-Type"
            raise answer.error(f"expected DICOM JSON, but {error} ({kind})", MalformedResponseError) from error

    def _parsed(self, text: bytes, answer: StreamedAnswer) -> JSONDataset:
        try:
            row = parse_native_model(text) if text.lstrip()[:1] == b"<" else json_model.loads(text)
        except ValueError as error:
            raise answer.error(f"a dataset of the answer cannot be read: {error}", MalformedResponseError) from error
        if not isinstance(row, dict):
            raise answer.error("the answer holds something that is no dataset", MalformedResponseError)
        if b"BulkDataURI" in text:
            _make_absolute(row, answer.url)
        return row

    def _check(self, row: JSONDataset, resource: Resource, answer: StreamedAnswer) -> None:
        pairs = (
            ("0020000D", resource.study_instance_uid),
            ("0020000E", resource.series_instance_uid),
            ("00080018", resource.sop_instance_uid),
        )
        for tag, wanted in pairs:
            uid = json_model.first_text(row, tag)
            if wanted is not None and uid and uid != wanted:
                raise answer.error(
                    f"the answer holds metadata of another object than {resource.uri}", MalformedResponseError
                )


def _make_absolute(dataset: JSONDataset, base: str) -> None:
    for element in dataset.values():
        if not isinstance(element, dict):
            continue
        uri = element.get("BulkDataURI")
        if isinstance(uri, str) and uri and "://" not in uri and not uri.startswith("urn:"):
            element["BulkDataURI"] = urljoin(base, uri)
        if element.get("vr") == "SQ":
            for item in element.get("Value") or ():
                if isinstance(item, dict):
                    _make_absolute(item, base)
