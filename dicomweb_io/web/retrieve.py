"""Retrieving instances and their metadata (WADO-RS, PS3.18 section 10.4.1.1), one at a time as they arrive.

`InstanceRetriever` gives instances unparsed, complete or an error; `MetadataRetriever` gives datasets, whether the
server sends them as JSON or XML.
"""

from __future__ import annotations

import hashlib
import io
import os
import sys
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NamedTuple, NoReturn
from urllib.parse import urljoin

from dicomweb_io.client import MediaTypes
from dicomweb_io.dicom import json_decode
from dicomweb_io.dicom.errors import IncompleteDICOMError, IncompleteJSONError
from dicomweb_io.dicom.header_scan import scan_header
from dicomweb_io.dicom.json_decode import iter_json_objects, without_padding
from dicomweb_io.dicom.media_types import (
    DICOM,
    DICOM_JSON,
    OCTET_STREAM,
    MediaType,
    accept_spellings,
    accepted_for,
)
from dicomweb_io.dicom.part10 import WITHOUT_PIXEL_DATA, Header, Verdict, header_from_scan, judge, lacks_pixel_data
from dicomweb_io.dicom.pixels import NATIVE
from dicomweb_io.dicom.xml_model import parse_native_model
from dicomweb_io.elements import (
    SERIES_INSTANCE_UID,
    SOP_INSTANCE_UID,
    UID_TAGS,
    Instance,
    JSONDataset,
    Resource,
    SearchQuery,
)
from dicomweb_io.errors import (
    ConnectionFailedError,
    DICOMwebError,
    ElementTooLargeError,
    InvalidIdentifierError,
    MalformedResponseError,
    ResponseIncompleteError,
)
from dicomweb_io.http.multipart import Bytes
from dicomweb_io.http.retry import Deadline
from dicomweb_io.http.transport import Attempt, StreamedAnswer
from dicomweb_io.spool import Spool
from dicomweb_io.web.search import Searcher
from dicomweb_io.web.service import Service, logger
from dicomweb_io.web.urls import parameters, with_query

_ABSENT = (404, 405, 501)
_ANY: frozenset[str] = frozenset()
_METADATA_ACCEPTS = (DICOM_JSON, "application/json", 'multipart/related; type="application/dicom+xml"')
_METADATA_RESOURCE = "metadata_resource"


@dataclass(frozen=True)
class _AcceptedForm:
    """What a caller of `iter_instances` asked for; `syntaxes` is empty if any transfer syntax will do.

    `several` says that there is a choice of forms: one that the server fails to make may be followed by another.
    `without_pixels` and `broken` have hashes of what came: instances without pixel data, and what is no whole instance.
    What comes again with the same bytes is not asked for any more.
    """

    accepts: tuple[str, ...]
    syntaxes: frozenset[str]
    query: str
    max_bytes: int
    directory: str | None
    several: bool
    without_pixels: dict[Resource, bytes] = field(default_factory=dict)
    broken: set[bytes] = field(default_factory=set)

    def doubtful(self, done: set[Resource]) -> list[Resource]:
        """What came without pixel data and has to be asked for once more."""
        return [reference for reference in self.without_pixels if reference not in done]


class _Content(NamedTuple):
    """The bytes of one instance, as they arrive.

    `ends` says whether the answer shows where they end, `declared` how many it declares, of a part that does.
    """

    chunks: Iterable[Bytes]
    ends: bool
    declared: str | None = None


class InstanceRetriever:
    """Retrieves instances of one service."""

    def __init__(self, service: Service, searcher: Searcher) -> None:
        self._service = service
        self._searcher = searcher

    def iter_instances(
        self,
        resource: Resource,
        *,
        media_types: MediaTypes | None,
        max_element_bytes: int,
        spool_directory: str | None,
        allow_transcoding: bool,
        additional_params: Mapping[str, Any] | None,
    ) -> Iterator[Instance]:
        """See `DICOMClient.iter_instances`. Arguments are checked at once, requests begin with the iteration."""
        if resource.level == "frame":
            raise InvalidIdentifierError("frames are not instances: use iter_frames, or the reference's instance")
        if not isinstance(max_element_bytes, int) or max_element_bytes < 0:
            raise ValueError(f"max_element_bytes must be an integer of 0 or more, not {max_element_bytes!r}")
        if spool_directory is not None:
            spool_directory = os.fspath(spool_directory)
            if not os.path.isdir(spool_directory):
                raise ValueError(f"spool_directory is not a directory: {spool_directory!r}")
        accepted_types = accepted_for("instances", media_types)
        accepts = self._accepts(accepted_types, allow_transcoding)
        syntaxes = _ANY if allow_transcoding else _exact_syntaxes(accepted_types)
        query, several = parameters(additional_params), len(accepted_types) > 1
        accepted_type = _AcceptedForm(accepts, syntaxes, query, max_element_bytes, spool_directory, several)
        return self._iterate(resource, accepted_type)

    def _accepts(self, accepted_types: Sequence[MediaType], allow_transcoding: bool) -> tuple[str, ...]:
        profile = self._service.profile
        if not accepted_types or all(accepted_type.transfer_syntax_uid == "*" for accepted_type in accepted_types):
            accepts = profile.original_accepts
        else:
            accepts = accept_spellings(accepted_types)
        # The order matters: what transcodes is asked for only when nothing that keeps the bytes is accepted.
        return tuple(dict.fromkeys((*accepts, *(profile.transcoding_accepts if allow_transcoding else ()))))

    def _iterate(self, resource: Resource, accepted_type: _AcceptedForm) -> Iterator[Instance]:
        profile = self._service.profile
        whole = {"study": profile.retrieve_study, "series": profile.retrieve_series}.get(resource.level, True)
        name = f"retrieve_{resource.level}"
        if whole is False or name in self._service.missing_resources:
            references = self._listed(resource)
            if not references:
                raise self._service.not_listed(resource)
            yield from self._one_by_one(references, accepted_type, resource, set(), None)
            return
        done: set[Resource] = set()
        try:
            yield from self._whole(resource, accepted_type, done)
            return
        except DICOMwebError as error:
            if done or resource.level == "instance" or whole or error.status not in _ABSENT:
                _note(error, resource, done, None)
                raise
            # The object may be unknown, or the server may have no such retrieval: its listing decides.
            try:
                references = self._listed(resource)
            except DICOMwebError:
                raise error from None
            if not references:
                raise
        self._service.missing_resources.add(name)
        logger.info("the server retrieves no whole %s; instances are retrieved one by one", resource.level)
        yield from self._one_by_one(references, accepted_type, resource, done, None)

    def _listed(self, resource: Resource) -> list[Resource]:
        query = SearchQuery("instance", resource.study_instance_uid, resource.series_instance_uid)
        return [
            reference
            for reference in map(Resource.of, self._searcher.iter_search(query))
            if reference.level == "instance" and resource.contains(reference)
        ]

    def _whole(self, resource: Resource, accepted_type: _AcceptedForm, done: set[Resource]) -> Iterator[Instance]:
        """The instances of one answer, and what it leaves open: it ends early, or lacks pixel data."""
        missing, deadline = yield from self._answers(resource, accepted_type, done, None)
        if not missing and len(accepted_type.doubtful(done)) > len(done):
            missing, deadline = yield from self._answers(resource, accepted_type, done, deadline)
        rest = dict.fromkeys((*missing, *accepted_type.doubtful(done)))
        yield from self._one_by_one(list(rest), accepted_type, resource, done, deadline)

    def _answers(
        self, resource: Resource, accepted_type: _AcceptedForm, done: set[Resource], deadline: Deadline | None
    ) -> Generator[Instance, None, tuple[list[Resource], Deadline | None]]:
        """The instances of one answer; what is missing if it ends early, and the deadline."""
        missing: list[Resource] = []
        for attempt in self._service.transport.attempts(deadline):
            with attempt:
                deadline = attempt.deadline
                try:
                    for instance in self._one_answer(resource, accepted_type, attempt, done):
                        attempt.progress()
                        yield instance
                except (ResponseIncompleteError, ConnectionFailedError) as error:
                    if not done or resource.level == "instance":
                        raise
                    missing = self._missing(resource, done, error)
        return missing, deadline

    def _missing(self, resource: Resource, done: set[Resource], error: DICOMwebError) -> list[Resource]:
        try:
            listed = self._listed(resource)
        except DICOMwebError:
            listed = []
        if not listed:
            raise error
        missing = [reference for reference in listed if reference not in done]
        logger.info("%s ended early, after %d instances; %d are requested again", error.url, len(done), len(missing))
        return missing

    def _one_by_one(
        self,
        references: Sequence[Resource],
        accepted_type: _AcceptedForm,
        resource: Resource,
        done: set[Resource],
        deadline: Deadline | None,
    ) -> Iterator[Instance]:
        for position, reference in enumerate(references):
            if reference in done:
                continue
            try:
                while reference not in done:
                    for attempt in self._service.transport.attempts(deadline):
                        with attempt:
                            deadline = deadline or attempt.deadline
                            yield from self._one_answer(reference, accepted_type, attempt, done)
                    if reference not in accepted_type.without_pixels:
                        break
            except DICOMwebError as error:
                _note(error, resource, done, references[position:])
                raise

    def _one_answer(
        self, resource: Resource, accepted_type: _AcceptedForm, attempt: Attempt, done: set[Resource]
    ) -> Iterator[Instance]:
        url = with_query(self._service.urls.retrieve(resource), accepted_type.query)
        # Compressing images costs more time than it saves, and hides where an answer ends early.
        plain = {"Accept-Encoding": "identity"}
        # Orthanc 1.10.1 fails with 500 for a list of two media types.
        failures = (500, 501) if accepted_type.several else ()
        with self._service.get(
            url, accepted_type.accepts, attempt=attempt, headers=plain, also_refusals=failures
        ) as answer:
            count = 0
            for content in self._parts(answer):
                count += 1
                instance = self._instance(content, resource, accepted_type, answer)
                if instance.reference in done or not self._is_certain(instance, accepted_type, answer):
                    _remove(instance)
                    continue
                done.add(instance.reference)
                yield instance
            single = not self._service.content_type(answer).is_multipart
            if resource.level != "instance" and (answer.status == 206 or (count and single)):
                raise answer.error(
                    f"the answer is {'partial (206)' if answer.status == 206 else 'a single instance'}, "
                    f"and may not be all of the {resource.level}",
                    ResponseIncompleteError,
                )
            if not count:
                if resource.level == "instance":
                    raise answer.error(
                        "the answer holds no instance", ResponseIncompleteError, retryable=answer.status != 204
                    )
                logger.warning("%s: the answer holds no instance", answer.url)

    def _parts(self, answer: StreamedAnswer) -> Iterator[_Content]:
        """The content of each instance of an answer."""
        if answer.status == 204:
            return
        content_type = self._service.content_type(answer)
        if content_type.is_multipart:
            for part in self._service.parts(answer):
                yield _Content(part.iter_bytes(), True, part.headers.get("Content-Length"))
        elif content_type.media_type in (DICOM, OCTET_STREAM, ""):
            framed = "Content-Length" in answer.headers or "Transfer-Encoding" in answer.headers
            yield _Content(answer.iter_chunks(self._service.chunk_size), framed)
        else:
            self._refuse(answer, content_type.media_type)

    def _refuse(self, answer: StreamedAnswer, media_type: str) -> NoReturn:
        hint = " (a login page?)" if media_type == "text/html" else ""
        raise answer.error(f"expected DICOM instances, got {media_type}{hint}", MalformedResponseError)

    def _is_certain(self, instance: Instance, accepted_type: _AcceptedForm, answer: StreamedAnswer) -> bool:
        """Whether an instance is taken as it is; one without pixel data only if it has come twice, each time the same.

        Raises:
            ResponseIncompleteError: If the second time it differs, and lacks them again.
        """
        if WITHOUT_PIXEL_DATA in instance.warnings:
            found = _hash_of(instance)
            before = accepted_type.without_pixels.get(instance.reference)
            accepted_type.without_pixels[instance.reference] = found
            if before is None:
                logger.info("%s came without pixel data and is requested once more", instance.reference.uri)
                return False
            if before != found:
                _remove(instance)
                raise answer.error(
                    f"{instance.reference.uri} came {WITHOUT_PIXEL_DATA} twice, and not with the same bytes",
                    ResponseIncompleteError,
                    retryable=True,
                )
        if instance.warnings:
            logger.warning("%s moves unchanged: %s", instance.reference.uri, "; ".join(instance.warnings))
        return True

    def _instance(
        self, received: _Content, resource: Resource, accepted_type: _AcceptedForm, answer: StreamedAnswer
    ) -> Instance:
        with Spool(
            max_bytes=accepted_type.max_bytes if accepted_type.directory else sys.maxsize,
            directory=accepted_type.directory,
        ) as spool:
            for chunk in received.chunks:
                spool.write(chunk)
                if accepted_type.directory is None and spool.size > accepted_type.max_bytes:
                    raise ElementTooLargeError(
                        f"an instance of {answer.url} has more than {accepted_type.max_bytes} bytes; pass "
                        f"spool_directory so that it can go to a file, or a larger max_element_bytes"
                    )
            size = spool.size
            content, path = spool.finish()
        try:
            with open(path, "rb") if path is not None else io.BytesIO(content or b"") as file:
                ends = received.ends and received.declared in (None, str(size))
                header, verdict = self._header(file, size, answer, accepted_type, ends=ends)
            reference = Resource(header.study_instance_uid, header.series_instance_uid, header.sop_instance_uid)
            if not resource.contains(reference):
                raise answer.error(
                    f"the answer holds {reference.uri}, which does not belong to {resource.uri}", MalformedResponseError
                )
            if not _is_wanted(header.transfer_syntax_uid, resource, accepted_type):
                raise answer.error(
                    f"asked for {reference.uri} in {' or '.join(sorted(accepted_type.syntaxes))}, got "
                    f"{header.transfer_syntax_uid}; without a transfer syntax it comes as the server keeps it",
                    MalformedResponseError,
                )
            return Instance(
                reference, header.transfer_syntax_uid, content, path, header.sop_class_uid, verdict.warnings
            )
        except BaseException:
            if path is not None:
                os.unlink(path)
            raise

    def _header(
        self, file: BinaryIO, size: int, answer: StreamedAnswer, accepted_type: _AcceptedForm, *, ends: bool
    ) -> tuple[Header, Verdict]:
        """What an instance is, if it is whole; `ends` says whether its last byte is known to be the last."""
        verdict, lacks_pixels, cause = Verdict(), False, None
        try:
            scan = scan_header(file, size=size)
            header, lacks_pixels = header_from_scan(scan), lacks_pixel_data(scan)
            # A part may be whole and yet hold half a file, if the server stopped in the middle of reading it.
            verdict = judge(file, size=size, scan=scan)
        except ValueError as error:
            cause = error
        reason = verdict.problem
        if reason is None and not ends and not verdict.proves_end:
            reason = verdict.open_end
            if reason is None and lacks_pixels:
                reason = "it ends before its pixel data, and neither a length nor a closing boundary shows that it may"
        if cause is None and reason is None:
            return header, verdict
        cut = cause is None or isinstance(cause, IncompleteDICOMError) or not size
        kind = ResponseIncompleteError if cut or not ends else MalformedResponseError
        text = f"the instance ends early: {reason}"
        if cause is not None:
            text = f"the answer holds something that is not a DICOM instance: {cause}"
        found = _file_hash(file)
        if again := found in accepted_type.broken:
            text += "; the same bytes came before"
        accepted_type.broken.add(found)
        raise answer.error(text, kind, retryable=cut and not again) from cause


def _hash_of(instance: Instance) -> bytes:
    with instance.open() as file:
        return _file_hash(file)


def _file_hash(file: BinaryIO) -> bytes:
    file.seek(0)
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.digest()


def _exact_syntaxes(accepted_types: Sequence[MediaType]) -> frozenset[str]:
    """The transfer syntaxes of which one was asked for; empty if one of the types leaves it open."""
    syntaxes = [accepted_type.transfer_syntax_uid for accepted_type in accepted_types]
    return frozenset(syntax for syntax in syntaxes if syntax) if None not in syntaxes and "*" not in syntaxes else _ANY


def _is_wanted(syntax: str, resource: Resource, accepted_type: _AcceptedForm) -> bool:
    """Whether an instance came as it was asked for.

    Some servers ignore the transfer syntax instead of refusing it. Of several instances, some may have no form in a
    compressed syntax at all, such as reports; they come in a native one.
    """
    if not accepted_type.syntaxes or syntax in accepted_type.syntaxes:
        return True
    return resource.level != "instance" and syntax in NATIVE and not accepted_type.syntaxes <= NATIVE


def _remove(instance: Instance) -> None:
    if instance.path is not None:
        with suppress(FileNotFoundError):
            os.unlink(instance.path)


def _note(error: DICOMwebError, resource: Resource, done: set[Resource], missing: Sequence[Resource] | None) -> None:
    """Adds to an error what was complete before it and what is missing."""
    if resource.level == "instance" or not (done or missing):
        return
    text = f"; {len(done)} instances of {resource.uri} were complete before"
    if missing:
        shown = ", ".join(str(reference.sop_instance_uid) for reference in missing[:5])
        text += f", missing: {shown}" + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
    error.detail += text


class MetadataRetriever:
    """Retrieves metadata of one service."""

    def __init__(self, service: Service, searcher: Searcher) -> None:
        self._service = service
        self._searcher = searcher

    def iter_metadata(
        self, resource: Resource, *, additional_params: Mapping[str, Any] | None = None
    ) -> Iterator[JSONDataset]:
        """See `DICOMClient.iter_metadata`. Relative bulk data URIs are made absolute: only here their base is known."""
        return self._iterate(resource.instance, parameters(additional_params))

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
        if service.profile.metadata_resource is False or _METADATA_RESOURCE in service.missing_resources:
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
        service.missing_resources.add(_METADATA_RESOURCE)
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
                    uids = (
                        json_decode.first_text(row, SERIES_INSTANCE_UID),
                        json_decode.first_text(row, SOP_INSTANCE_UID),
                    )
                    if uids[1] and uids in seen:
                        continue
                    seen.add(uids)
                    attempt.progress()
                    self._service.learn_metadata(row)
                    yield row

    def _one_answer(self, resource: Resource, url: str, attempt: Attempt) -> Iterator[JSONDataset]:
        with self._service.get(url, _METADATA_ACCEPTS, attempt=attempt) as answer:
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
            row = parse_native_model(text) if text.lstrip()[:1] == b"<" else json_decode.loads(text)
        except ValueError as error:
            raise answer.error(f"a dataset of the answer cannot be read: {error}", MalformedResponseError) from error
        if not json_decode.is_dataset(row):
            raise answer.error("the answer holds something that is not a dataset", MalformedResponseError)
        row = without_padding(row)
        if b"BulkDataURI" in text:
            _make_absolute(row, answer.url)
        return row

    def _check(self, row: JSONDataset, resource: Resource, answer: StreamedAnswer) -> None:
        for level, wanted in resource.uids.items():
            uid = json_decode.first_text(row, UID_TAGS[level])
            if uid and uid != wanted:
                raise answer.error(
                    f"the answer holds metadata of another object than {resource.uri}", MalformedResponseError
                )


def _make_absolute(dataset: JSONDataset, base: str) -> None:
    for element in dataset.values():
        if not isinstance(element, dict):
            continue
        uri = element.get("BulkDataURI")
        if isinstance(uri, str) and uri and "://" not in uri and not uri.startswith("urn:"):
            # What cannot be joined is told when it is asked for; the rest of the metadata is good.
            with suppress(ValueError):
                element["BulkDataURI"] = urljoin(base, uri)
        items = element.get("Value") if element.get("vr") == "SQ" else None
        if isinstance(items, list):
            for item in items:
                if isinstance(item, dict):
                    _make_absolute(item, base)
