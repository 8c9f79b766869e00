"""What an archive has: looked up before storing, after lost answers, and for verification."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

from dicomweb_io.clients.copying import SeriesListing
from dicomweb_io.clients.failures import RECOVERABLE
from dicomweb_io.clients.protocol import DICOMClient, Verify
from dicomweb_io.clients.tiers import difference
from dicomweb_io.clients.web.errors import FilterIgnoredError
from dicomweb_io.clients.web.instances import InstanceRetriever
from dicomweb_io.clients.web.searching import Searcher
from dicomweb_io.clients.web.service import Service
from dicomweb_io.clients.web.store_sources import StoreItem
from dicomweb_io.elements import Instance, Resource, SearchQuery, StoredInstance

_UIDS_PER_QUERY = 15
_IN_MEMORY = 4 * 1024 * 1024


class ExistingInstances:
    """Looks instances up in one service; what it has listed once it believes, so it serves one operation only."""

    def __init__(self, service: Service, searcher: Searcher, retriever: InstanceRetriever) -> None:
        self._service = service
        self._searcher = searcher
        self._retriever = retriever
        self._listing = SeriesListing(cast(DICOMClient, searcher))

    def holds(self, reference: Resource) -> bool:
        """Whether the archive lists an instance; asked once for each series."""
        return self._listing.holds(reference)

    def add(self, reference: Resource) -> None:
        """Remembers that an instance has arrived."""
        self._listing.add(reference)

    def present(self, items: Sequence[StoreItem]) -> set[str]:
        """The SOP Instance UIDs of items that the archive has now, asked afresh."""
        by_series: dict[Resource, list[str]] = {}
        for item in items:
            by_series.setdefault(item.reference.series, []).append(item.uid)
        found: set[str] = set()
        size = _UIDS_PER_QUERY if self._service.profile.uid_lists else 1
        for series, uids in by_series.items():
            for start in range(0, len(uids), size):
                found |= self._among(series, uids[start : start + size])
        return found

    def _among(self, series: Resource, uids: Sequence[str]) -> set[str]:
        filters = (("SOPInstanceUID", "\\".join(uids)),)
        nested = SearchQuery("instance", series.study_instance_uid, series.series_instance_uid, search_filters=filters)
        try:
            found = self._uids(nested, limit=len(uids)) & set(uids)
            if len(found) == len(uids) or len(uids) == 1:
                return found
        except FilterIgnoredError:
            found = set()
        # Some servers do not know lists of UIDs, take one of them, or ignore this filter: the whole series tells.
        whole = SearchQuery("instance", series.study_instance_uid, series.series_instance_uid)
        return found | (self._uids(whole) & set(uids))

    def _uids(self, query: SearchQuery, *, limit: int | None = None) -> set[str]:
        found = set()
        try:
            for row in self._searcher.iter_search(query, limit=limit):
                uid = Resource.of(row).sop_instance_uid
                if uid is not None:
                    found.add(uid)
        except OSError as error:
            if getattr(error, "status", None) != 404:
                raise
        return found

    def finds(self, item: StoreItem) -> bool:
        """Whether the archive has an item's UID; False if it cannot be asked."""
        try:
            return item.uid in self.present([item])
        except RECOVERABLE:
            return False

    @property
    def proof(self) -> str:
        """The evidence that `is_ours` gives."""
        tier = self._service.profile.identity_tier
        return tier if tier in ("file", "dataset") else "uid"

    def is_ours(self, item: StoreItem, *, refused: bool = False) -> bool:
        """Whether the archive has exactly what an item holds, as far as it keeps the bytes; otherwise its UID.

        Args:
            item: What was sent.
            refused: Whether the archive refused it. Then its UID alone proves nothing, unless it was not there before.
        """
        if self.proof == "uid" and (item.existed or (refused and item.existed is None)):
            # What is there may as well be the object that was there before.
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
        stored = [item for item in items if isinstance(item.outcome, StoredInstance)]
        if not stored:
            return
        if verify == "content":
            for item in stored:
                self._verify_content(item)
            return
        unproven = [item for item in stored if cast(StoredInstance, item.outcome).verified == "response"]
        try:
            found = self.present(unproven) if unproven else set()
        except RECOVERABLE as error:
            for item in unproven:
                item.fail_by(error)
            return
        for item in unproven:
            if item.uid in found:
                item.outcome = _with_proof(item, "uid")
            else:
                item.fail(
                    "the server reported it as stored, but a search does not find it",
                    retryable=True,
                    url=self._url(item),
                )

    def _verify_content(self, item: StoreItem) -> None:
        tier = self._service.profile.identity_tier
        try:
            different = self._difference(item)
        except RECOVERABLE as error:
            item.fail_by(error)
            return
        if different is None:
            item.outcome = _with_proof(item, tier)
        else:
            item.fail(
                f"the archive has this UID with another content: {different} (compared by {tier})", url=self._url(item)
            )

    def _url(self, item: StoreItem) -> str:
        return self._service.urls.retrieve(item.reference)

    def _difference(self, item: StoreItem) -> str | None:
        with self.retrieved(item.reference) as there:
            return difference(item.given, there, self._service.profile.identity_tier)

    @contextmanager
    def retrieved(self, reference: Resource) -> Iterator[Instance]:
        """The archive's own copy of an instance, in memory if it is small, else in a file that is removed later."""
        with tempfile.TemporaryDirectory(prefix="dicomweb_io-") as directory:
            found = list(
                self._retriever.iter_instances(
                    reference,
                    media_types=None,
                    max_element_bytes=_IN_MEMORY,
                    spool_directory=directory,
                    allow_transcoding=self._service.profile.identity_tier == "pixels",
                    additional_params=None,
                )
            )
            yield found[0]


def _with_proof(item: StoreItem, proof: str) -> StoredInstance:
    outcome = cast(StoredInstance, item.outcome)
    return StoredInstance(
        outcome.reference,
        outcome.outcome,
        size=outcome.size,
        sop_class_uid=outcome.sop_class_uid,
        retrieve_url=outcome.retrieve_url,
        warning_reason=outcome.warning_reason,
        verified=proof,
    )
