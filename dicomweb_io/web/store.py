"""Storing instances (STOW-RS, PS3.18 section 10.5): in bounded batches, with the proof or the failure of each.

An instance is stored only if the answer names its SOP Instance UID among the referenced ones, whatever the status and
content type; an instance that the answer does not mention is looked up by UID. A batch that is refused as a whole is
split until the refused instance is alone.

A request that may have arrived is not sent again blindly: its instances are looked up, and only what is missing is sent
(`ServerProfile.store_again`). What was refused in a way that a quieter moment may heal is looked up and tried once more
alone, with no other request of this process in flight.

Request bodies have a known length, can be sent again, and are never
compressed (Orthanc 1.10.1 answers a compressed one with 200 and stores nothing).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from dicomweb_io import store_response as module
from dicomweb_io.client import OnExisting, Storable, Verify
from dicomweb_io.dicom import json_decode
from dicomweb_io.dicom.media_types import DICOM_JSON, DICOM_XML
from dicomweb_io.dicom.uids import check_uid
from dicomweb_io.elements import Failure, JSONDataset, StoredInstance
from dicomweb_io.errors import ConnectionFailedError, DICOMwebError, StoreError, log_text, safe_url
from dicomweb_io.failures import RECOVERABLE
from dicomweb_io.http.multipart import MultipartBody
from dicomweb_io.http.retry import Deadline
from dicomweb_io.http.transport import Answer, Attempt
from dicomweb_io.listing import lost_beside
from dicomweb_io.store_items import Batch, StoreItem, check_options, prepare
from dicomweb_io.store_response import StoreResponse, describe_reason, parse_store_response, response_module
from dicomweb_io.web.replace import ExistingInstances, Replacer
from dicomweb_io.web.service import Service, logger
from dicomweb_io.web.urls import parameters, with_query

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_WITH_RESPONSE = (400, 409, 413, 415, 422)
"""Error statuses whose answers may state the outcome of each instance."""
_HOPELESS = (401, 403, 404, 405, 501)
"""Statuses that all further instances would get as well."""


class _HopelessError(Exception):
    """Ends an operation at once, whatever may still be tried."""

    def __init__(self, error: DICOMwebError) -> None:
        self.error = error


class Storer:
    """Stores to one service."""

    def __init__(self, service: Service, existing: ExistingInstances, replacer: Replacer) -> None:
        self._service = service
        self._existing = existing
        self._replacer = replacer

    def iter_store(
        self,
        instances: Iterable[Storable],
        *,
        study_instance_uid: str | None = None,
        on_existing: OnExisting = "server",
        verify: Verify = "response",
        additional_params: Mapping[str, Any] | None = None,
    ) -> Iterator[StoredInstance | Failure]:
        """See `DICOMClient.iter_store_instances`. Options are checked at once, requests begin with the iteration."""
        items = self._checked(instances, study_instance_uid, on_existing, verify, additional_params)
        return (item.outcome for item in items if item.outcome is not None)

    def store(
        self,
        instances: Iterable[Storable],
        study_instance_uid: str | None = None,
        additional_params: Mapping[str, Any] | None = None,
    ) -> Dataset:
        """See `DICOMwebClient.store_instances`."""
        outcomes: list[StoredInstance | Failure] = []
        answers: list[JSONDataset | None] = []
        study_url: str | None = None
        for item in self._checked(instances, study_instance_uid, "server", "response", additional_params):
            if item.outcome is not None:
                outcomes.append(item.outcome)
                answers.append(_with_class(item))
                study_url = study_url or item.study_url
        dataset = response_module(outcomes, study_url, answers)
        failures = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
        if failures:
            first = failures[0]
            raise StoreError(
                f"{len(failures)} of {len(outcomes)} instances were not stored; the first: {first.message}",
                dataset=dataset,
                outcomes=outcomes,
                status=first.status,
                url=first.url or safe_url(self._service.urls.store(study_instance_uid)),
                method="POST",
                attempts=first.attempts,
                retryable=all(failure.retryable for failure in failures),
            )
        return dataset

    def _checked(
        self,
        instances: Iterable[Storable],
        study_instance_uid: str | None,
        on_existing: OnExisting,
        verify: Verify,
        additional_params: Mapping[str, Any] | None,
    ) -> Iterator[StoreItem]:
        profile = self._service.profile
        check_options(on_existing, verify)
        if on_existing == "replace" and profile.replace is None:
            raise ValueError(
                f"instances cannot be replaced safely on servers with the profile {profile.name!r}; use another "
                "on_existing, or a profile whose `replace` is set"
            )
        if verify == "content" and profile.comparison_level == "none":
            raise ValueError(
                f"servers with the profile {profile.name!r} do not preserve the content of instances, so it cannot be "
                f"verified; use verify='uid'"
            )
        if isinstance(instances, (str, bytes)) or not isinstance(instances, Iterable):
            raise TypeError(f"a sequence of instances is needed, not {type(instances).__name__}")
        if study_instance_uid is not None:
            check_uid(study_instance_uid, "study_instance_uid", permissive=self._service.permissive_uid)
        url = with_query(self._service.urls.store(study_instance_uid), parameters(additional_params))
        return self._items(instances, study_instance_uid, on_existing, verify, url)

    def _items(
        self, instances: Iterable[Storable], study: str | None, on_existing: OnExisting, verify: Verify, url: str
    ) -> Iterator[StoreItem]:
        profile = self._service.profile
        limit = min(profile.store_batch_bytes, profile.max_request_bytes or profile.store_batch_bytes)
        batch = Batch(limit, profile.store_batch_count)
        try:
            for storable in instances:
                item = prepare(storable, study)
                if not batch.has_room_for(item):
                    yield from self._flushed(batch, on_existing, verify, url)
                batch.add(item)
            yield from self._flushed(batch, on_existing, verify, url)
        finally:
            batch.clear()

    def _flushed(self, batch: Batch, on_existing: OnExisting, verify: Verify, url: str) -> Iterator[StoreItem]:
        hopeless: Exception | None = None
        era = self._service.transport.throttle.era
        for item in batch.items:
            if item.outcome is None and on_existing != "server":
                self._look_before(item, on_existing)
        waiting = [item for item in batch.items if item.outcome is None]
        if on_existing == "replace" and self._service.profile.replace == "delete":
            for item in [item for item in waiting if item.existed]:
                self._replacer.replace(item, lambda items: self._send(items, "POST", url))
            waiting = [item for item in waiting if item.outcome is None]
        method = "PUT" if on_existing == "replace" and self._service.profile.replace == "upsert" else "POST"
        if waiting:
            try:
                self._send(waiting, method, url)
                self._send_alone(waiting, method, url, era)
            except RECOVERABLE as error:
                if all(item.outcome is None for item in batch.items):
                    raise
                # Outcomes of others come before the error: a failure may name the file with replaced bytes.
                hopeless = error
                for item in batch.items:
                    if item.outcome is None:
                        item.fail_by(error)
        if verify != "response":
            self._existing.verify(batch.items, verify)
        for item in batch.items:
            if item.outcome is None:
                item.fail("its outcome is unknown: the archive gave no answer", retryable=True)
            elif isinstance(item.outcome, StoredInstance):
                self._existing.add(item.reference)
                self._look_beside(item)
            yield item
        batch.clear()
        if hopeless is not None:
            raise hopeless

    def _look_beside(self, item: StoreItem) -> None:
        """Looks whether a store lost what this process stored before under the same SOP Instance UID."""
        other = self._service.stored_before(item.reference)
        if other is None or self._service.profile.same_uid_elsewhere == "keeps_both":
            return
        try:
            there = [one for one in (item.reference, other) if self._existing.lists(one)]
        except RECOVERABLE:
            there = None
        lost = lost_beside(item.reference, [other], there)
        if lost is not None:
            item.fail(f"the archive has this SOP Instance UID in another series, {other.uri}, and {lost}")

    def _look_before(self, item: StoreItem, on_existing: OnExisting) -> None:
        item.must_be_same = on_existing != "skip"
        try:
            item.existed = self._existing.holds(item.reference)
        except RECOVERABLE as error:
            item.fail_by(error)
            return
        if item.existed and on_existing == "skip":
            item.succeed("exists", "uid")
        elif item.existed and on_existing == "error":
            item.fail("not sent: the archive has an instance with this UID already (on_existing='error')")

    def _send(self, items: Sequence[StoreItem], method: str, url: str) -> None:
        """Sends items in one request, or in more if that is refused, and notes the outcome of each."""
        try:
            self._attempt(items, method, url)
        except _HopelessError as reason:
            raise reason.error from None

    def _attempt(self, items: Sequence[StoreItem], method: str, url: str) -> None:
        cap = self._service.profile.max_request_bytes
        if cap is not None and len(items) == 1 and items[0].size > cap:
            logger.info("an instance has %d bytes; the server is known to accept %d per request", items[0].size, cap)
        waiting = list(items)
        # A second PUT replaces what the first one stored. What is guessed of a server permits nothing.
        harmless = self._service.profile.store_again == "harmless" and not self._service.profile_is_guess
        looks = method == "POST" and not harmless
        answer: Answer | None = None
        failure: DICOMwebError | None = None
        throttle = self._service.transport.throttle
        era, was_processed = throttle.era, False
        try:
            for attempt in self._service.transport.attempts():
                with attempt, self._turn(attempt):
                    try:
                        answer = self._requested(method, url, waiting, attempt)
                    except DICOMwebError as error:
                        was_processed = _may_have_arrived(error)
                        if looks:
                            waiting = self._missing(waiting, error)
                        if waiting and not (was_processed and self._service.profile.store_again == "never"):
                            raise
                        failure = error
                        break
        except DICOMwebError as error:
            failure = error
        except RECOVERABLE as error:
            # A file can no longer be read. Sending each alone shows which one.
            if len(waiting) == 1:
                waiting[0].fail_by(error)
            else:
                self._split(waiting, method, url)
            return
        if answer is not None:
            if was_processed and answer.status < 400 and not throttle.is_alone:
                # What was not there, and is stored now that nothing else is in flight.
                throttle.tried_alone("store", None, healed=True, era=era)
            self._read(waiting, answer, method, url)
        elif failure is not None:
            if isinstance(failure, ConnectionFailedError) and not failure.sent:
                # Further instances would not reach it either.
                raise failure
            for item in waiting if looks else self._missing(waiting, failure):
                item.fail_by(failure)

    def _turn(self, attempt: Attempt) -> AbstractContextManager[None]:
        """What an attempt needs: from the second on, that nothing else is in flight."""
        return nullcontext() if attempt.number == 1 else self._service.transport.throttle.alone(attempt.deadline)

    def _read(self, items: Sequence[StoreItem], answer: Answer, method: str, url: str) -> None:
        """Notes the outcome of each item by the answer; sends again in smaller requests what it does not tell."""
        response = parse_store_response(answer.content)
        unknown = [item for item in items if not self._note(item, response, answer)]
        if not unknown:
            return
        if answer.status < 400:
            self._prove(unknown, "the server's answer does not mention it", answer)
            return
        others_are_named = len(unknown) < len(items)
        if answer.attempts > 1:
            # An earlier attempt, whose answer was lost, may have stored them, and this one was refused for that reason.
            for item in unknown:
                if self._existing.is_ours(item, refused=True):
                    self._succeed(item, proof=self._existing.proof)
            unknown = [item for item in unknown if item.outcome is None]
            if not unknown:
                return
        if answer.status == 409:
            unknown = self._absent(unknown, response)
            if not unknown:
                return
        if len(unknown) == 1 and (len(items) == 1 or (others_are_named and answer.status != 413)):
            self._blame(unknown[0], response, answer)
        else:
            self._split(unknown, method, url)

    def _absent(self, items: Sequence[StoreItem], response: StoreResponse) -> list[StoreItem]:
        """After 409 without a certain reason, which may mean that they are there: what is not; what is there exists."""
        reasons = {module.number_of(one, module.FAILURE_REASON) for one in response.nameless}
        unclear = {None, module.PROCESSING_FAILURE}.difference(self._service.profile.conflict_reasons)
        if any(item.must_be_same for item in items) or not reasons <= unclear:
            return list(items)
        try:
            present = self._existing.present(items)
        except RECOVERABLE as error:
            logger.info("the look-up of what was refused failed: %s", log_text(error))
            return list(items)
        for item in items:
            if item.uid in present:
                item.succeed("exists", "uid")
        return [item for item in items if item.outcome is None]

    def _requested(self, method: str, url: str, items: Sequence[StoreItem], attempt: Attempt) -> Answer:
        body = MultipartBody([item.part() for item in items])
        headers = {"Content-Type": body.content_type, "Accept": DICOM_JSON}
        # What to do after an error is not the transport's to decide.
        send = partial(
            self._service.transport.request,
            method,
            url,
            headers=headers,
            body=body,
            idempotent=False,
            accept_statuses=(*_WITH_RESPONSE, 406),
        )
        answer = send(attempt=attempt)
        if answer.status == 406 and parse_store_response(answer.content).is_empty:
            headers["Accept"] = DICOM_XML
            answer = send()
        self._service.report_warnings(answer)
        return answer

    def _split(self, items: Sequence[StoreItem], method: str, url: str) -> None:
        middle = (len(items) + 1) // 2
        logger.info("%s: a request with %d instances was refused as a whole; it is split", safe_url(url), len(items))
        for part in (items[:middle], items[middle:]):
            if part:
                self._send(part, method, url)

    def _blame(self, item: StoreItem, response: StoreResponse, answer: Answer) -> None:
        reason = module.number_of(response.nameless[0], module.FAILURE_REASON) if response.nameless else None
        words = [f"the server refused it with HTTP {answer.status}"]
        if response.nameless:
            words.append(describe_reason(reason, response.nameless[0], item.redact))
        words.append(item.redact(answer.server_message))
        item.fail(
            ": ".join(filter(None, words)),
            url=answer.url,
            status=answer.status,
            reason_code=reason,
            attempts=answer.attempts,
            retryable=module.is_passing(reason),
        )

    def _note(self, item: StoreItem, response: StoreResponse, answer: Answer) -> bool:
        """Records the outcome of an item; False if the answer does not mention it."""
        item.study_url = response.retrieve_url
        confirmed = response.stored.get(item.uid)
        failed = response.failed.get(item.uid)
        if confirmed is not None and failed is None:
            item.answer = confirmed
            self._succeed(item, confirmed)
            return True
        if failed is None:
            return False
        item.answer = failed
        code = module.number_of(failed, module.FAILURE_REASON)
        profile = self._service.profile
        doubtful = answer.attempts > 1 or confirmed is not None
        if doubtful and self._existing.is_ours(item, refused=True):
            # An earlier attempt, whose answer was lost, stored it and this one met its result; or the answer says both.
            self._succeed(item, proof=self._existing.proof)
            return True
        if code in profile.duplicate_reasons and not item.must_be_same and self._existing.finds(item):
            item.succeed("exists", "uid")
            return True
        text = f"the server did not store it: {describe_reason(code, failed, item.redact)}"
        if code in profile.conflict_reasons and self._existing.finds(item):
            text += "; it has another object with this UID (on_existing='skip' keeps it, 'replace' replaces it)"
        item.fail(
            text,
            url=answer.url,
            status=answer.status,
            reason_code=code,
            attempts=answer.attempts,
            retryable=module.is_passing(code),
        )
        return True

    def _succeed(self, item: StoreItem, answer: JSONDataset | None = None, *, proof: str = "response") -> None:
        outcome: Literal["replaced", "stored"] = "replaced" if item.existed else "stored"
        facts: dict[str, Any] = {}
        if answer is not None:
            url = json_decode.first_text(answer, module.RETRIEVE_URL)
            facts["retrieve_url"] = safe_url(url) if url else None
            facts["warning_reason"] = module.number_of(answer, module.WARNING_REASON)
        item.succeed(outcome, proof, size=item.size, **facts)

    def _missing(self, items: Sequence[StoreItem], error: DICOMwebError) -> list[StoreItem]:
        """After a request without a usable answer, what a look-up by UID does not find; what it finds is stored.

        Raises:
            _HopelessError: If the archive cannot be asked, or would refuse everything else too.
        """
        if error.status in _HOPELESS:
            raise _HopelessError(error)
        if not items or not _may_have_arrived(error):
            return list(items)
        try:
            present = self._existing.present(items)
        except RECOVERABLE:
            if isinstance(error, ConnectionFailedError):
                # Neither storing nor searching reaches the archive.
                raise _HopelessError(error) from None
            for item in items:
                item.fail_by(error)
            return []
        missing = []
        for item in items:
            if item.uid not in present:
                missing.append(item)
            elif not self._existing.is_ours(item):
                if item.must_be_same:
                    item.fail_by(error)
                else:
                    item.succeed("exists", "uid")
            elif self._existing.proof == "uid" and (error.status or 0) >= 400:
                # It was refused, and nothing tells whether it is what was sent.
                item.succeed("exists", "uid")
            else:
                self._succeed(item, proof=self._existing.proof)
        return missing

    def _send_alone(self, items: Sequence[StoreItem], method: str, url: str, era: int) -> None:
        """Gives what failed, and may succeed in a quieter moment, a second attempt, unless it turns out to be there."""
        throttle = self._service.transport.throttle
        doubtful = [item for item in items if isinstance(item.outcome, Failure) and _may_heal(item.outcome)]
        if any(isinstance(item.outcome, StoredInstance) for item in items):
            throttle.went_well("store")
        if not doubtful or throttle.is_alone:
            return
        try:
            # What was not processed (429) was not refused for being there.
            refused = [item for item in doubtful if isinstance(item.outcome, Failure) and item.outcome.status != 429]
            present = self._existing.present(refused) if method == "POST" else set()
        except RECOVERABLE as error:
            logger.info("the look-up of what was refused failed: %s", log_text(error))
            return
        for item in doubtful:
            if item.uid in present:
                self._note_presence(item)
            elif self._service.profile.store_again != "never":
                self._send_one_alone(item, method, url, era)

    def _send_one_alone(self, item: StoreItem, method: str, url: str, era: int) -> None:
        transport, failure = self._service.transport, item.outcome
        cause = (failure.status, failure.reason_code) if isinstance(failure, Failure) else None
        if not transport.throttle.may_heal("store", cause):
            return
        item.outcome = None
        try:
            with transport.throttle.alone(Deadline(transport.timeouts.deadline)):
                self._send([item], method, url)
        finally:
            item.outcome = item.outcome or failure
            if isinstance(item.outcome, Failure) and isinstance(failure, Failure):
                item.outcome = replace(item.outcome, attempts=failure.attempts + 1)
            healed = isinstance(item.outcome, StoredInstance)
            transport.throttle.tried_alone("store", cause, healed=healed, era=era)

    def _note_presence(self, item: StoreItem) -> None:
        """What was refused, and is there: it was there before, or the answer is wrong."""
        code = item.outcome.reason_code if isinstance(item.outcome, Failure) else None
        if item.must_be_same:
            if self._existing.is_ours(item, refused=True):
                self._succeed(item, proof=self._existing.proof)
        elif code is None or code not in self._service.profile.conflict_reasons:
            item.succeed("exists", "uid")

    def _prove(self, items: Sequence[StoreItem], what: str, answer: Answer) -> None:
        present: set[str] = set()
        try:
            present = self._existing.present(items)
        except RECOVERABLE as error:
            logger.info("the look-up after storing failed: %s", log_text(error))
        for item in items:
            if item.uid in present and self._existing.is_ours(item):
                self._succeed(item, proof=self._existing.proof)
            else:
                item.fail(
                    f"{what}, and a search does not find it (HTTP {answer.status})",
                    url=answer.url,
                    status=answer.status,
                    attempts=answer.attempts,
                    retryable=True,
                )


def _may_have_arrived(error: DICOMwebError) -> bool:
    """Whether the archive may have processed a request that failed so."""
    return error.status != 429 and not (isinstance(error, ConnectionFailedError) and not error.sent)


def _may_heal(failure: Failure) -> bool:
    """Whether an instance may have failed because too much was asked at once, and was not tried alone yet.

    0110H stands for anything, and so does 409 without a reason.
    """
    if failure.status is None:
        return False
    return (
        (failure.retryable and (failure.attempts == 1 or failure.status == 429))
        or failure.reason_code == module.PROCESSING_FAILURE
        or (failure.status == 409 and failure.reason_code is None)
    )


def _with_class(item: StoreItem) -> JSONDataset:
    """The item of the server's response module, with the SOP class that every item should name."""
    answer = dict(item.answer or {})
    if item.instance is not None and item.instance.sop_class_uid:
        answer.setdefault(module.REFERENCED_SOP_CLASS_UID, {"vr": "UI", "Value": [item.instance.sop_class_uid]})
    return answer
