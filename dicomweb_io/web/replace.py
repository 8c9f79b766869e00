"""Replacing instances, and what that takes: looking up what a server has, and deleting (PS3.18 section 10.7).

`ExistingInstances` looks instances up before storing, after lost answers, and for verification. `Deleter` deletes in
the way that the server's profile names. `Replacer` replaces an instance on a server that leaves the old one in place:
it deletes and then stores, and never loses both.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

from dicomweb_io.client import DICOMClient, Verify
from dicomweb_io.compare import difference
from dicomweb_io.dicom import json_decode
from dicomweb_io.elements import Failure, Instance, Resource, SearchQuery, StoredInstance
from dicomweb_io.errors import (
    DICOMwebError,
    FilterIgnoredError,
    InvalidIdentifierError,
    MalformedResponseError,
    UnsupportedError,
    log_text,
)
from dicomweb_io.failures import RECOVERABLE
from dicomweb_io.http.transport import Answer
from dicomweb_io.listing import SeriesListing, listed_uids
from dicomweb_io.spool import PrivateDirectory
from dicomweb_io.store_items import TRANSFORM, StoreItem
from dicomweb_io.web.service import OfService, Service, logger
from dicomweb_io.web.urls import parameters, with_query

_UIDS_PER_QUERY = 15
_IN_MEMORY = 4 * 1024 * 1024
Send = Callable[[Sequence[StoreItem]], None]
_NO_INTERFACE = (404, 405)
_ORTHANC_TYPES = {"study": "Study", "series": "Series", "instance": "Instance"}


class ExistingInstances:
    """Looks instances up in one service. It trusts its first listing of a series, so it serves one operation only.

    Args:
        service: The service.
        client: A client of it.
    """

    def __init__(self, service: Service, client: DICOMClient) -> None:
        self._service = service
        self._client = client
        self._listing = SeriesListing(client)

    def holds(self, reference: Resource) -> bool:
        """Whether the archive lists an instance; asked once for each series."""
        return self._listing.holds(reference)

    def add(self, reference: Resource) -> None:
        """Remembers that an instance has arrived."""
        self._listing.add(reference)

    def present(self, items: Sequence[StoreItem]) -> set[str]:
        """The SOP Instance UIDs of items that the archive has now."""
        by_series: dict[Resource, list[str]] = {}
        for item in items:
            by_series.setdefault(item.reference.series, []).append(item.uid)
        present: set[str] = set()
        size = _UIDS_PER_QUERY if self._service.profile.uid_lists else 1
        for series, uids in by_series.items():
            for start in range(0, len(uids), size):
                present |= self._among(series, uids[start : start + size])
        return present

    def _among(self, series: Resource, uids: Sequence[str]) -> set[str]:
        filters = (("SOPInstanceUID", "\\".join(uids)),)
        nested = SearchQuery("instance", series.study_instance_uid, series.series_instance_uid, search_filters=filters)
        try:
            found = listed_uids(self._client, nested, limit=len(uids)) & set(uids)
            if len(found) == len(uids) or len(uids) == 1:
                return found
        except FilterIgnoredError:
            found = set()
        # Some servers do not know lists of UIDs, use one of them, or ignore this filter: then the series is listed.
        whole = SearchQuery("instance", series.study_instance_uid, series.series_instance_uid)
        return found | (listed_uids(self._client, whole) & set(uids))

    def lists(self, reference: Resource) -> bool:
        """Whether the archive lists an instance now."""
        return reference.sop_instance_uid in self._among(reference.series, [str(reference.sop_instance_uid)])

    def finds(self, item: StoreItem) -> bool:
        """Whether the archive has an item's UID; False if it cannot be asked."""
        try:
            return item.uid in self.present([item])
        except RECOVERABLE:
            return False

    @property
    def proof(self) -> str:
        """The evidence that `is_ours` gives."""
        comparison_level = self._service.profile.comparison_level
        return comparison_level if comparison_level in ("file", "dataset") else "uid"

    def is_ours(self, item: StoreItem, *, refused: bool = False) -> bool:
        """Whether the archive has exactly what an item holds, as far as it keeps the bytes; otherwise its UID.

        Args:
            item: What was sent.
            refused: Whether the archive refused it. Then its UID alone proves nothing, unless it was not there before.
        """
        if self.proof == "uid" and (item.existed or (refused and item.existed is None)):
            # It may be the object that was there before.
            return False
        if not self.finds(item):
            return False
        if self.proof == "uid":
            return True
        try:
            return self._difference(item) is None
        except RECOVERABLE:
            return False

    def verify(self, items: Sequence[StoreItem], verify: Verify) -> None:
        """Checks that what was stored is there; what is not becomes a failure.

        Args:
            items: Items with their outcomes.
            verify: ``"uid"`` or ``"content"``.
        """
        stored = [(item, item.outcome) for item in items if isinstance(item.outcome, StoredInstance)]
        if verify == "content":
            for item, outcome in stored:
                self._verify_content(item, outcome)
            return
        unproven = [(item, outcome) for item, outcome in stored if outcome.verified == "response"]
        try:
            present = self.present([item for item, _ in unproven])
        except RECOVERABLE as error:
            for item, _ in unproven:
                item.fail_by(error)
            return
        for item, outcome in unproven:
            if item.uid in present:
                item.outcome = replace(outcome, verified="uid")
            else:
                item.fail(
                    "the server reported it as stored, but a search does not find it",
                    retryable=True,
                    url=self._url(item),
                )

    def _verify_content(self, item: StoreItem, outcome: StoredInstance) -> None:
        comparison_level = self._service.profile.comparison_level
        try:
            different = self._difference(item)
        except RECOVERABLE as error:
            item.fail_by(error)
            return
        if different is None:
            item.outcome = replace(outcome, verified=comparison_level)
        else:
            item.fail(
                f"the archive has this UID with another content: {different} (compared by {comparison_level})",
                url=self._url(item),
            )

    def _url(self, item: StoreItem) -> str:
        return self._service.urls.retrieve(item.reference)

    def _difference(self, item: StoreItem) -> str | None:
        with self.retrieved(item.reference) as there:
            return difference(item.given, there, self._service.profile.comparison_level)

    @contextmanager
    def retrieved(self, reference: Resource) -> Iterator[Instance]:
        """The archive's own copy of an instance, in memory or, if large, in a file for as long as the context."""
        with PrivateDirectory() as directory:
            instances = self._client.iter_instances(
                reference,
                max_element_bytes=_IN_MEMORY,
                spool_directory=directory,
                allow_transcoding=self._service.profile.comparison_level == "pixels",
            )
            instance, *_ = instances
            yield instance


class Deleter(OfService):
    """Deletes from one service."""

    def delete(self, resource: Resource, additional_params: Mapping[str, Any] | None = None) -> None:
        """Deletes a study, series or instance.

        Raises:
            ValueError: If the server offers no way to delete by DICOMweb, or the reference is to frames.
            requests.HTTPError: If the server refuses, or does not have the object (404).
        """
        if resource.level == "frame":
            raise InvalidIdentifierError("frames cannot be deleted: delete their instance")
        profile = self._service.profile
        if profile.delete is None:
            raise UnsupportedError(
                f"servers with the profile {profile.name!r} have no DICOMweb deletion; use the server's own interface"
            )
        # A guess by address may be wrong: a server without Orthanc's own interface is asked by DICOMweb.
        if profile.delete == "orthanc" and self._delete_in_orthanc(resource):
            return
        url = with_query(self._service.urls.delete(resource), parameters(additional_params))
        answer = self._service.transport.request("DELETE", url, headers={"Accept": "*/*"}, accept_statuses=(404,))
        # A 404 after a lost answer is the proof that the first attempt did it.
        if answer.status == 404 and answer.attempts == 1:
            raise answer.error(f"the server does not have {resource.uri}", DICOMwebError)
        if answer.content_type == "text/html":
            # Portals in front of an archive answer anything with 200 and a page.
            raise answer.error("expected a confirmation, got an HTML page (a login page?)", MalformedResponseError)
        self._service.report_warnings(answer)

    def _delete_in_orthanc(self, resource: Resource) -> bool:
        """By Orthanc's own REST interface, which lies beside the DICOMweb root: look the UID up, then delete.

        Returns:
            Whether there is such an interface.
        """
        urls, transport = self._service.urls, self._service.transport
        root = urls.origin + urls.path.rpartition("/")[0]
        uid = resource.sop_instance_uid or resource.series_instance_uid or resource.study_instance_uid
        answer = transport.request(
            "POST",
            f"{root}/tools/lookup",
            headers={"Content-Type": "text/plain", "Accept": "application/json"},
            body=uid.encode("ascii", "strict"),
            idempotent=True,
            accept_statuses=_NO_INTERFACE,
        )
        if answer.status in _NO_INTERFACE:
            return False
        paths = [
            str(item.get("Path"))
            for item in self._json(answer)
            if isinstance(item, dict) and item.get("Type") == _ORTHANC_TYPES[resource.level]
        ]
        # One SOP Instance UID may be in several series: only what was meant goes.
        matching = [path for path in paths if self._belongs(root + path, resource)]
        if not matching:
            raise DICOMwebError(
                f"the server does not have {resource.uri}",
                status=404,
                url=answer.url,
                method="POST",
                attempts=answer.attempts,
            )
        if len(matching) > 1:
            raise DICOMwebError(
                f"the server has {resource.uri} {len(matching)} times, under several patients, and the UIDs do not say "
                f"which one is meant. Nothing was deleted; use the server's own interface",
                url=answer.url,
                method="POST",
            )
        transport.request("DELETE", root + matching[0], accept_statuses=(404,))
        return True

    def _belongs(self, url: str, resource: Resource) -> bool:
        checks: list[tuple[str, str, str | None]] = []
        if resource.level != "study":
            checks.append(("study", "StudyInstanceUID", resource.study_instance_uid))
        if resource.level == "instance":
            checks.append(("series", "SeriesInstanceUID", resource.series_instance_uid))
        for name, keyword, wanted in checks:
            answer = self._service.transport.request("GET", f"{url}/{name}", headers={"Accept": "application/json"})
            parent = self._json(answer)
            tags = parent.get("MainDicomTags") if isinstance(parent, dict) else None
            if not isinstance(tags, dict) or tags.get(keyword) != wanted:
                return False
        return True

    def _json(self, answer: Answer) -> Any:
        try:
            return json_decode.loads(answer.content)
        except ValueError as error:
            raise answer.error("expected JSON of Orthanc's REST interface", MalformedResponseError) from error


class Replacer:
    """Replaces instances of one service, until one can be neither replaced nor restored. It serves one operation."""

    def __init__(self, existing: ExistingInstances, deleter: Deleter) -> None:
        self._existing = existing
        self._deleter = deleter
        self._lost: Failure | None = None

    def replace(self, item: StoreItem, send: Send) -> None:
        """Replaces the archive's instance that has an item's UID, and records the outcome.

        The old bytes are held until the archive has the new ones, and stored again if it refuses those. If that fails
        too, they stay in a file that the failure names, and nothing more is deleted.

        Args:
            item: What is to be there.
            send: Stores items and notes their outcomes.
        """
        if self._lost is not None:
            item.fail(
                "not replaced, and the old one is unchanged: an earlier one could be neither replaced nor restored, so "
                f"nothing more is deleted ({self._lost.message})",
                retryable=self._lost.retryable,
            )
            return
        try:
            with self._existing.retrieved(item.reference) as old:
                if not self._delete(item, old):
                    return
                try:
                    self._store_or_restore(item, old, send)
                except BaseException as error:
                    text = f"replacing it was interrupted ({type(error).__name__}); {self._saved(old)}"
                    logger.error("%s: %s", item.uid, text)
                    self._lost = Failure(TRANSFORM, text, reference=item.reference)
                    if isinstance(error, RECOVERABLE):
                        item.fail(text)
                    raise
        except RECOVERABLE as error:
            if item.outcome is None:
                item.fail_by(error)

    def _delete(self, item: StoreItem, old: Instance) -> bool:
        """Deletes the old one; False if it is still there or may be, which is noted then."""
        try:
            self._deleter.delete(item.reference)
        except RECOVERABLE as error:
            # Perhaps only the answer was lost.
            try:
                there = item.uid in self._existing.present([item])
            except RECOVERABLE:
                item.fail(
                    f"not replaced; the old one may still be there; {self._saved(old)}: {error}",
                    status=getattr(error, "status", None),
                )
                return False
            if there:
                item.fail_by(error)
                return False
        return True

    def _store_or_restore(self, item: StoreItem, old: Instance, send: Send) -> None:
        try:
            send([item])
        except RECOVERABLE as error:
            item.fail_by(error)
        if isinstance(item.outcome, StoredInstance) and not self._is_missing(item, item.outcome, old):
            return
        reason = item.outcome.message if isinstance(item.outcome, Failure) else "the outcome of the new one is unknown"
        back = StoreItem(old, old.size)
        try:
            send([back])
        except RECOVERABLE as error:
            back.fail_by(error)
        restored = isinstance(back.outcome, StoredInstance) and self._existing.finds(back)
        if restored and self._existing.proof != "uid" and not self._existing.is_ours(back):
            # A server that keeps what it has says "stored" too, though it is the new one that has arrived after all.
            text = f"it is unknown which one the archive has now; {self._saved(old)}: {reason}"
        elif restored:
            text = f"not replaced, the old one is back in place: {reason}"
        else:
            text = f"neither the new nor the old one could be stored; {self._saved(old)}: {reason}"
        facts = item.outcome if isinstance(item.outcome, Failure) else None
        item.fail(
            text,
            url=facts.url if facts else None,
            status=facts.status if facts else None,
            reason_code=facts.reason_code if facts else None,
            attempts=facts.attempts if facts else 1,
            retryable=facts.retryable if facts else False,
        )
        if not restored:
            self._lost = cast(Failure, item.outcome)

    def _is_missing(self, item: StoreItem, outcome: StoredInstance, old: Instance) -> bool:
        """Whether the archive lacks what it reported as stored; the old bytes are at hand only now."""
        if outcome.verified != "response":
            return False
        try:
            if self._existing.present([item]):
                return False
        except RECOVERABLE as error:
            logger.warning(
                "%s was reported as stored, and could not be looked up; %s: %s",
                item.uid,
                self._saved(old),
                log_text(error),
            )
            return False
        item.fail("the server reported it as stored, but a search does not find it", retryable=True)
        return True

    def _saved(self, old: Instance) -> str:
        """Saves the old bytes and says where, or why that failed; it does not raise."""
        try:
            return f"the old bytes are kept in {self._save(old)}"
        except OSError as error:
            return f"the old bytes could not be saved either ({error.strerror or error})"

    def _save(self, old: Instance) -> str:
        descriptor, path = tempfile.mkstemp(".dcm", f"{old.reference.sop_instance_uid}-")
        with os.fdopen(descriptor, "wb") as target, old.open() as source:
            shutil.copyfileobj(source, target)
        return path
