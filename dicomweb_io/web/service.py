"""One DICOMweb service as its operations see it: where it is, how it behaves, and how to ask it."""

from __future__ import annotations

import logging
import re
import sys
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

from dicomweb_io.client import FilterMismatch
from dicomweb_io.dicom.frames import pixel_description
from dicomweb_io.dicom.media_types import ContentType, parse_content_type
from dicomweb_io.elements import JSONDataset, Resource, SearchQuery
from dicomweb_io.errors import DICOMError, DICOMwebError, safe_url
from dicomweb_io.http.multipart import MultipartReader
from dicomweb_io.http.transport import Answer, Attempt, StreamedAnswer, Transport
from dicomweb_io.profiles import ServerProfile
from dicomweb_io.web.urls import ServiceURLs

logger = logging.getLogger("dicomweb_io")

REFUSALS = (400, 406, 415)
"""Statuses with which servers refuse an Accept header (Orthanc 1.10.1 says 400 where the standard says 406)."""

_MAX_FRAME_SIZES = 4096
_MAX_STORED = 100_000
_WARNING = re.compile(r'(\d{3})\s+(?:\S+\s+)?"((?:[^"\\]|\\.)*)"')


class Service:
    """What search, retrieve, store and delete share.

    Args:
        urls: The addresses.
        transport: The connection.
        profile: The server's behaviour.
        permissive_uid: See `dicomweb_io.dicom.uids.is_uid`.
        profile_is_guess: Whether the profile was chosen by the address alone, so that a probe may find another.
        filter_mismatch: What becomes of a search whose rows contradict its filters.
    """

    def __init__(
        self,
        urls: ServiceURLs,
        transport: Transport,
        profile: ServerProfile,
        *,
        permissive_uid: bool = False,
        profile_is_guess: bool = False,
        filter_mismatch: FilterMismatch = "error",
    ) -> None:
        self.urls = urls
        self.transport = transport
        self.profile = profile
        self.permissive_uid = permissive_uid
        self.profile_is_guess = profile_is_guess
        self.filter_mismatch = filter_mismatch
        self.chunk_size = 10**6
        # What this server was found to lack or to prefer, so that it is asked the wrong way once only. The entries are
        # idempotent facts: threads that race write the same.
        self._accepted: dict[tuple[str, ...], str] = {}
        self.missing_resources: set[str] = set()
        self._warned: set[tuple[str, str]] = set()
        self.decodes_queries: bool | None = None
        self.frames_at_once = sys.maxsize
        # The study and series that a SOP Instance UID was stored in, of the last ones.
        self._stored: OrderedDict[str, tuple[str, str]] = OrderedDict()
        # How many bytes the native frames of an instance have, by its metadata or its first frame: for some instances.
        self._frame_sizes: dict[Resource, tuple[Collection[int], str]] = {}

    def warn_once(self, query: SearchQuery, attribute: str, message: str) -> None:
        """Logs a warning about an attribute that is searched by; the same about the same one only once."""
        if (attribute, message) not in self._warned:
            self._warned.add((attribute, message))
            logger.warning(f"%s: {message}", self.urls.search(query), attribute)

    @contextmanager
    def get(
        self,
        url: str,
        accepts: Sequence[str],
        *,
        attempt: Attempt,
        headers: Mapping[str, str] | None = None,
        also_refusals: Sequence[int] = (),
        level: int = logging.WARNING,
    ) -> Iterator[StreamedAnswer]:
        """Asks with the first of several Accept headers that the server does not refuse.

        Args:
            url: What to ask for.
            accepts: Accept headers that mean the same, best first.
            attempt: The attempt this request belongs to.
            headers: Further headers.
            also_refusals: Further statuses after which another header may help.
            level: How loudly warnings of the server are logged.

        Raises:
            DICOMwebError: The first refusal, if all headers are refused; any other failure at once.
        """
        refusal: DICOMwebError | None = None
        for accept in self._in_order(accepts):
            with ExitStack() as stack:
                try:
                    answer = stack.enter_context(
                        self.transport.stream(
                            "GET", url, headers={**(headers or {}), "Accept": accept}, attempt=attempt
                        )
                    )
                except DICOMwebError as error:
                    if error.status not in (*REFUSALS, *also_refusals):
                        raise
                    refusal = refusal or error
                    continue
                self._accepted[tuple(accepts)] = accept
                self.report_warnings(answer, level=level)
                yield answer
                return
        assert refusal is not None  # noqa: S101 - there is one header at least
        if len(accepts) > 1:
            refusal.detail = f"{refusal.detail} (refused for each of {len(accepts)} spellings of Accept)".strip()
        raise refusal

    def get_all(
        self, url: str, accepts: Sequence[str], *, level: int = logging.WARNING, attempt: Attempt | None = None
    ) -> Answer:
        """Asks for a small answer with the first of several Accept headers that the server does not refuse.

        Args:
            url: What to ask for.
            accepts: Accept headers that mean the same, best first.
            level: How loudly warnings of the server are logged.
            attempt: The attempt this request belongs to, of a caller who asks again if the answer cannot be read.

        Raises:
            DICOMwebError: The first refusal, if all headers are refused; any other failure at once.
        """
        refusal: DICOMwebError | None = None
        for accept in self._in_order(accepts):
            try:
                answer = self.transport.request("GET", url, headers={"Accept": accept}, attempt=attempt)
            except DICOMwebError as error:
                # A 400 says more often that the query is wrong than that Accept is: it is asked again all the same.
                if error.status not in REFUSALS:
                    raise
                refusal = refusal or error
                continue
            self._accepted[tuple(accepts)] = accept
            self.report_warnings(answer, level=level)
            return answer
        assert refusal is not None  # noqa: S101 - there is one header at least
        raise refusal

    def _in_order(self, accepts: Sequence[str]) -> list[str]:
        known = self._accepted.get(tuple(accepts))
        return list(accepts) if known is None else [known, *(accept for accept in accepts if accept != known)]

    def report_warnings(self, answer: Answer | StreamedAnswer, *, level: int = logging.WARNING) -> tuple[str, ...]:
        """Logs a 206 and Warning headers, and returns the warnings' texts. (The client's callback sees the answer.)"""
        texts = warnings_of(answer)
        for text in texts:
            logger.log(level, "%s: the server warns: %.300s", safe_url(answer.url), text)
        if answer.status == 206 and "Content-Range" not in answer.headers:
            logger.log(level, "%s: the answer is partial (206)", safe_url(answer.url))
        return texts

    def frame_sizes(self, instance: Resource) -> tuple[Collection[int], str] | None:
        """The bytes that a native frame of an instance may have (none where its frames differ), and why; if known."""
        return self._frame_sizes.get(instance)

    def learn_frame_sizes(self, instance: Resource, sizes: Collection[int], reason: str) -> None:
        """Keeps how many bytes the native frames of an instance have, and why."""
        if len(self._frame_sizes) >= _MAX_FRAME_SIZES:
            self._frame_sizes.clear()
        self._frame_sizes[instance] = sizes, reason

    def learn_metadata(self, row: JSONDataset) -> None:
        """Keeps what metadata say about the size of frames. They are not asked for because of this."""
        if not {"00280002", "00280004"} <= row.keys():
            return
        try:
            tag = next((tag for tag in ("7FE00008", "7FE00009") if tag in row), "")
            sizes = pixel_description(row, tag).frame_sizes
            instance = Resource.of(row).instance
        except DICOMError:
            return  # It has no frames, or nothing says how long they are.
        reason = f"its metadata say {' or '.join(map(str, sorted(sizes)))}"
        self.learn_frame_sizes(instance, {*sizes, *(size + 1 for size in sizes)}, reason)

    def stored_before(self, instance: Resource) -> Resource | None:
        """Notes that an instance was stored; gives what was stored before under its UID in another series, if known."""
        uid = str(instance.sop_instance_uid)
        place = sys.intern(instance.study_instance_uid), sys.intern(str(instance.series_instance_uid))
        before = self._stored.pop(uid, place)
        self._stored[uid] = place
        if len(self._stored) > _MAX_STORED:
            self._stored.popitem(last=False)
        return Resource(*before, uid) if before != place else None

    def parts(self, answer: StreamedAnswer) -> MultipartReader:
        """The parts of an answer as they arrive."""
        framed = "Content-Length" in answer.headers or "Transfer-Encoding" in answer.headers
        content_type = answer.headers.get("Content-Type") or ""
        return MultipartReader(answer.iter_chunks(self.chunk_size), content_type, whole=framed)

    def not_listed(self, resource: Resource) -> DICOMwebError:
        """The error for what does not exist, where it can only be listed: as if it could be asked for as a whole."""
        detail = f"the server lists nothing for {resource.uri}"
        return DICOMwebError(detail, status=404, url=self.urls.retrieve(resource), method="GET")

    @staticmethod
    def content_type(answer: Answer | StreamedAnswer) -> ContentType:
        """The parsed Content-Type of an answer."""
        return parse_content_type(answer.headers.get("Content-Type"))


class OfService:
    """Does one kind of thing with a service; made anew for each operation."""

    def __init__(self, service: Service) -> None:
        self._service = service


def warnings_of(answer: Answer | StreamedAnswer) -> tuple[str, ...]:
    """The texts of the Warning headers of an answer (RFC 7234 section 5.5)."""
    header = answer.headers.get("Warning")
    if not header:
        return ()
    return tuple(match[2] for match in _WARNING.finditer(header)) or (header.strip(),)
