"""Replacing an instance on a server that keeps the old one: delete, then store, and never lose both."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from typing import cast

from dicomweb_io.clients.failures import RECOVERABLE
from dicomweb_io.clients.web.deleting import Deleter
from dicomweb_io.clients.web.existing import ExistingInstances
from dicomweb_io.clients.web.service import logger
from dicomweb_io.clients.web.store_sources import TRANSFORM, StoreItem
from dicomweb_io.elements import Failure, Instance, StoredInstance
from dicomweb_io.wire.errors import discreet

Send = Callable[[Sequence[StoreItem]], None]


class Replacer:
    """Replaces instances of one service, until one can be neither replaced nor put back; one operation only."""

    def __init__(self, existing: ExistingInstances, deleter: Deleter) -> None:
        self._existing = existing
        self._deleter = deleter
        self._lost: Failure | None = None

    def replace(self, item: StoreItem, send: Send) -> None:
        """Takes the place of the archive's instance with an item's UID, and notes the outcome.

        The old bytes are kept until the new ones are in, and put back if those are refused. If that fails too, they
        stay in a file that the failure names, and nothing more is deleted.

        Args:
            item: What is to be there.
            send: Stores items and notes their outcomes.
        """
        if self._lost is not None:
            item.fail(
                "not replaced, and the old one was not touched: another one could be neither replaced nor put back, so "
                f"that nothing more is deleted ({self._lost.message})",
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
                    text = f"replacing it was interrupted ({type(error).__name__}); {self._kept(old)}"
                    logger.error("%s: %s", item.uid, text)
                    self._lost = Failure(TRANSFORM, text, reference=item.reference)
                    if isinstance(error, RECOVERABLE):
                        item.fail(text)
                    raise
        except RECOVERABLE as error:
            if item.outcome is None:
                item.fail_by(error)

    def _delete(self, item: StoreItem, old: Instance) -> bool:
        """Deletes the old one; False if it is still there or nobody knows, which is noted then."""
        try:
            self._deleter.delete(item.reference)
        except RECOVERABLE as error:
            # The answer may be all that was lost.
            try:
                there = item.uid in self._existing.present([item])
            except RECOVERABLE:
                item.fail(
                    f"not replaced, and it is not known whether the old one is still there; {self._kept(old)}: {error}",
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
        reason = item.outcome.message if isinstance(item.outcome, Failure) else "nothing is known of the new one"
        back = StoreItem(old, old.size)
        try:
            send([back])
        except RECOVERABLE as error:
            back.fail_by(error)
        restored = isinstance(back.outcome, StoredInstance) and self._existing.finds(back)
        if restored and self._existing.proof != "uid" and not self._existing.is_ours(back):
            # A server that keeps what it has says "stored" too, though it is the new one that has arrived after all.
            text = f"it is not certain which one the archive has now; {self._kept(old)}: {reason}"
        elif restored:
            text = f"not replaced, the old one is back in place: {reason}"
        else:
            text = f"neither the new nor the old one could be stored; {self._kept(old)}: {reason}"
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
        """Whether the archive does not have what it reported as stored: the old bytes are there for a moment only."""
        if outcome.verified != "response":
            return False
        try:
            if self._existing.present([item]):
                return False
        except RECOVERABLE as error:
            logger.warning(
                "%s was reported as stored, and could not be looked up; %s: %s",
                item.uid,
                self._kept(old),
                discreet(error),
            )
            return False
        item.fail("the server reported it as stored, but a search does not find it", retryable=True)
        return True

    def _kept(self, old: Instance) -> str:
        """Saves the old bytes and says where; what goes on must not end because that is impossible too."""
        try:
            return f"the old bytes are kept in {self._keep(old)}"
        except OSError as error:
            return f"the old bytes could not be kept either ({error.strerror or error})"

    def _keep(self, old: Instance) -> str:
        descriptor, path = tempfile.mkstemp(".dcm", f"{old.reference.sop_instance_uid}-")
        with os.fdopen(descriptor, "wb") as target, old.open() as source:
            shutil.copyfileobj(source, target)
        return path
