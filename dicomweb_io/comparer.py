"""Comparing studies of two archives, series by series.

`ArchiveComparer` says which instances only one of two archives has, and of those that both have, whether the contents
are equal at the level that both keep. An instance is its study, series and SOP Instance UID together.

Nothing is believed to be absent because a search for many things lacks it: both archives are asked for each study.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

from dicomweb_io.account import ROW, UNMATCHED_LINE
from dicomweb_io.client import DICOMClient
from dicomweb_io.compare import Fingerprint, difference, fingerprint
from dicomweb_io.copier import SeriesReader
from dicomweb_io.dicom.json_decode import first_text, first_value
from dicomweb_io.elements import (
    UID_KEYWORDS,
    UID_TAGS,
    Difference,
    DifferenceKind,
    Failure,
    Instance,
    JSONDataset,
    Resource,
    SearchLevel,
    SearchQuery,
)
from dicomweb_io.errors import DICOMwebError, PagingError, SearchIncompleteError
from dicomweb_io.failures import RECOVERABLE, failure_of, not_tried
from dicomweb_io.listing import InstanceGroup, resource_of_row
from dicomweb_io.pool import Room
from dicomweb_io.profiles import ComparisonLevel
from dicomweb_io.queries import SERIES_RELATED_INSTANCES
from dicomweb_io.spool import MEMORY_THRESHOLD, PrivateDirectory

TRANSFORM = "CompareArchives"

_PATIENT_ID = "00100020"
_ATTEMPTS = 3


# What is compared -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Selected:
    """Something that a search or a list selects for comparison, in both archives.

    Attributes:
        reference: A study, a series or an instance.
        side: The archive that it was found in: 0 for the source, 1 for the destination; None if it was not asked.
        patient: A digest of the PatientID that this archive gives; empty if it gives none.
        number: How many instances this archive announces; None if it does not.
        place: The line of a list that names it.
    """

    reference: Resource
    side: int | None = None
    patient: str = ""
    number: int | None = None
    place: str = ""


def selected_of_row(row: JSONDataset, level: SearchLevel, side: int) -> Selected | Failure:
    """What a row of a search selects; a failure if it names nothing."""
    try:
        reference = resource_of_row(row, level)
    except (TypeError, ValueError) as error:
        return failure_of(error, ROW)
    return Selected(
        reference,
        side,
        _digest_of_patient(reference.study_instance_uid, first_text(row, _PATIENT_ID)),
        _number_of(first_value(row, SERIES_RELATED_INSTANCES)) if level == "series" else None,
    )


def _number_of(value: Any) -> int | None:
    """A number of instances; None for what is none."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return int(number) if number.is_integer() and number >= 0 else None


def _digest_of_patient(study: str, patient: str) -> str:
    """What tells patients of a study apart without naming them; empty for none."""
    patient = patient.strip(" \0")
    text = f"{study}\0{patient}".encode("utf-8", "surrogatepass")
    return hashlib.blake2b(text, digest_size=12).hexdigest() if patient else ""


# Results --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StudyComparison:
    """What the comparison of a study says about it as a whole.

    Attributes:
        study: The study.
        there: Whether the source and the destination have anything of it.
        reason: What is different about the study itself; empty if nothing is.
    """

    study: Resource
    there: tuple[bool, bool]
    reason: str = ""

    def differences(self) -> Iterator[Difference]:
        """The difference, if there is one."""
        if self.reason:
            yield Difference("different", self.study, 0, self.reason)


@dataclass(frozen=True)
class SeriesComparison:
    """How the instances of a series compare, by their SOP Instance UIDs.

    Attributes:
        series: The series.
        missing: Those that only the source has.
        extra: Those that only the destination has.
        equal: Those that both have, equal as far as it was compared.
        different: Those that both have with other contents; with what differs.
        failed: Those that both have and whose contents could not be compared.
        whole: Whether one archive has nothing of the series.
    """

    series: Resource
    missing: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    equal: tuple[str, ...] = ()
    different: tuple[tuple[str, str], ...] = ()
    failed: tuple[str, ...] = ()
    whole: bool = False

    @property
    def in_both(self) -> int:
        """How many instances both archives have."""
        return len(self.equal) + len(self.different) + len(self.failed)

    def differences(self) -> Iterator[Difference]:
        """The differences: one for the series if it is missing or extra as a whole, else one for each instance."""
        kinds: tuple[tuple[DifferenceKind, tuple[str, ...]], ...] = (("missing", self.missing), ("extra", self.extra))
        for kind, uids in kinds:
            if self.whole and uids:
                yield Difference(kind, self.series, len(uids))
            else:
                yield from (Difference(kind, self._instance(uid)) for uid in uids)
        for uid, reason in self.different:
            yield Difference("different", self._instance(uid), reason=reason)

    def _instance(self, uid: str) -> Resource:
        return Resource(self.series.study_instance_uid, self.series.series_instance_uid, uid)


@dataclass(frozen=True)
class NumberComparison:
    """How the announced numbers of instances of a series compare.

    Attributes:
        series: The series.
        numbers: What the source and the destination announce; None where an archive does not have the series.
    """

    series: Resource
    numbers: tuple[int | None, int | None]

    def differences(self) -> Iterator[Difference]:
        """The difference, if there is one."""
        source, destination = self.numbers
        if destination is None:
            yield Difference("missing", self.series, source or 0)
        elif source is None:
            yield Difference("extra", self.series, destination)
        elif source != destination:
            reason = f"the source announces {source:,} instances, the destination {destination:,}"
            yield Difference("different", self.series, max(source, destination), reason)


Compared = StudyComparison | SeriesComparison | NumberComparison


# The engine -----------------------------------------------------------------------------------------------------------


class ArchiveComparer:
    """Compares studies of two archives. Safe to use from several threads.

    Args:
        source: The archive that is to be there again.
        destination: The archive that is held against it.
        level: ``"count"``, ``"uid"``, or the level at which contents are compared; see `content_level`.
        spool_directory: Where large instances wait; by default the system's temporary directory.
        transform: The name that failures carry.
    """

    def __init__(
        self,
        source: DICOMClient,
        destination: DICOMClient,
        level: str = "uid",
        *,
        spool_directory: str | None = None,
        transform: str = TRANSFORM,
    ) -> None:
        self._clients = source, destination
        self._level = level
        self._transform = transform
        self._spool = PrivateDirectory(spool_directory)
        self._readers = [
            SeriesReader(client, partial(self._retrieved, client), self._spool.discard, transform=transform)
            for client in self._clients
        ]

    def close(self) -> None:
        """Removes the private directory. The clients are not closed."""
        self._spool.remove()

    def __enter__(self) -> ArchiveComparer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def compare(
        self, study: str, selected: Iterable[Selected], room: Room | None = None
    ) -> Iterator[Compared | Failure]:
        """Compares what is selected of a study.

        Args:
            study: The study.
            selected: What is compared of it: all, series or instances.
            room: See `SeriesReader.iter`.

        Yields:
            The results for its series, for the study, and what could not be compared.
        """
        reference = Resource(study)
        for client in self._clients:
            if client.unavailable is not None:
                yield not_tried(client.unavailable, self._transform, reference=reference)
                return
        try:
            if self._level == "count":
                yield from self._numbers(reference, list(selected))
            else:
                yield from self._instances(reference, list(selected), room)
        except RECOVERABLE as error:
            yield failure_of(error, self._transform, reference=reference)

    # By announced numbers

    def _numbers(self, study: Resource, selected: list[Selected]) -> Iterator[Compared | Failure]:
        announced: tuple[dict[Resource, int | None], ...] = ({}, {})
        for one in selected:
            announced[cast(int, one.side)][one.reference] = one.number
        union = dict.fromkeys(one.reference for one in selected)
        for client, numbers in zip(self._clients, announced, strict=True):
            if len(numbers) < len(union):
                # What a search with filters, or one that failed, left out may be there all the same.
                query = SearchQuery("series", study.study_instance_uid)
                for row in _rows(client, query):
                    found = selected_of_row(row, "series", 0)
                    if isinstance(found, Selected) and found.reference in union:
                        numbers.setdefault(found.reference, found.number)
        for series in union:
            there = [numbers.get(series) for numbers in announced]
            silent = [
                client.base_url
                for client, numbers in zip(self._clients, announced, strict=True)
                if series in numbers and numbers[series] is None
            ]
            if silent:
                message = f"{' and '.join(silent)} does not announce how many instances {series.uri} has; compare UIDs"
                yield Failure(self._transform, message, reference=series)
            else:
                yield NumberComparison(series, (there[0], there[1]))
        yield StudyComparison(study, (bool(announced[0]), bool(announced[1])), _other_patient(_patients(selected)))

    # By UIDs

    def _instances(self, study: Resource, selected: list[Selected], room: Room | None) -> Iterator[Compared | Failure]:
        uid, wanted = study.study_instance_uid, _wanted(selected)
        listed = [self._listed(client, uid, wanted) for client in self._clients]
        both = sorted({*listed[0], *listed[1]})
        for name in both:
            named = wanted.get(name) if wanted is not None else None
            yield from self._series(Resource(uid, name), listed, named, room)
        yield from self._nowhere(study, selected, listed)
        reason = ""
        if all(listed):
            patients = _patients(selected)
            for client, known in zip(self._clients, patients, strict=True):
                known.update(known or self._patients_of(client, uid))
            reason = _other_patient(patients)
        if both:
            yield StudyComparison(study, (bool(listed[0]), bool(listed[1])), reason)

    def _series(
        self, series: Resource, listed: list[dict[str, set[str]]], named: set[str] | None, room: Room | None
    ) -> Iterator[Compared | Failure]:
        name = str(series.series_instance_uid)
        source, destination = (there.get(name, set()) for there in listed)
        ours, theirs = (there if named is None else there & named for there in (source, destination))
        common = tuple(sorted(ours & theirs))
        result = SeriesComparison(
            series,
            missing=tuple(sorted(ours - theirs)),
            extra=tuple(sorted(theirs - ours)),
            equal=common,
            whole=(not destination and ours == source) or (not source and theirs == destination),
        )
        if common and self._level != "uid":
            listed_numbers = len(source), len(destination)
            different: list[tuple[str, str]] = []
            failed: list[str] = []
            yield from self._contents(series, common, listed_numbers, different, failed, room)
            apart = {*failed, *(uid for uid, _ in different)}
            result = replace(
                result,
                equal=tuple(uid for uid in common if uid not in apart),
                different=tuple(sorted(different)),
                failed=tuple(sorted(failed)),
            )
        if ours or theirs:
            yield result

    def _nowhere(
        self, study: Resource, selected: list[Selected], listed: list[dict[str, set[str]]]
    ) -> Iterator[Failure]:
        """What was selected and neither archive lists: it must not vanish."""
        for one in selected:
            uids = one.reference.uids
            series, instance = uids.get("series"), uids.get("instance")
            for there in listed:
                if series is None and there:
                    break
                if series in there and (instance is None or instance in there[series]):
                    break
            else:
                message = f"nothing in either archive matches: {one.reference.uri}"
                transform = UNMATCHED_LINE if one.place else self._transform
                yield Failure(transform, message, reference=one.reference, source=one.place or None)

    def _listed(self, client: DICOMClient, study: str, wanted: Mapping[str, Any] | None) -> dict[str, set[str]]:
        """The instances that an archive lists in a study, or in some of its series, by series."""
        series: Iterable[str | None] = [None] if wanted is None else wanted
        found: dict[str, set[str]] = {}
        for one in series:
            for attempt in range(_ATTEMPTS):
                try:
                    found.update(_listing(client, SearchQuery("instance", study, one)))
                    break
                except (PagingError, SearchIncompleteError):
                    # An archive that is being written to shifts its rows from page to page.
                    if attempt == _ATTEMPTS - 1:
                        raise
        return found

    def _patients_of(self, client: DICOMClient, study: str) -> set[str]:
        query = SearchQuery("study", search_filters=((UID_KEYWORDS["study"], study),))
        texts = (_digest_of_patient(study, first_text(row, _PATIENT_ID)) for row in _rows(client, query))
        return {text for text in texts if text}

    # By contents

    def _contents(
        self,
        series: Resource,
        uids: tuple[str, ...],
        listed: tuple[int, int],
        different: list[tuple[str, str]],
        failed: list[str],
        room: Room | None,
    ) -> Iterator[Failure]:
        """Compares the contents of instances of a series, which are read once from each archive, one after the other.

        Of what was read from the source only fingerprints wait for what the destination gives.
        """
        prints: list[dict[str, Fingerprint]] = [{}, {}]
        for side, reader in enumerate(self._readers):
            # What failed in the source need not be read from the destination.
            rest = uids if side == 0 else tuple(prints[0])
            group = InstanceGroup(series, rest, listed[side], named=True)
            for reference, item in reader.iter(group, room=room):
                uid = str(reference.sop_instance_uid)
                taken = self._fingerprint(item)
                if isinstance(taken, Failure):
                    failed.append(uid)
                    yield taken
                else:
                    prints[side][uid] = taken
                del item
        for uid, one in prints[0].items():
            other = prints[1].get(uid)
            reason = one.difference(other) if other is not None else None
            if reason is not None and self._level == "pixels":
                outcome = self._pixels(Resource(series.study_instance_uid, series.series_instance_uid, uid), room)
                if isinstance(outcome, Failure):
                    failed.append(uid)
                    yield outcome
                    continue
                reason = outcome
            if reason is not None:
                different.append((uid, reason))

    def _fingerprint(self, item: Instance | Failure) -> Fingerprint | Failure:
        if isinstance(item, Failure):
            return item
        try:
            return fingerprint(item, cast(ComparisonLevel, self._level))
        except RECOVERABLE as error:
            return failure_of(error, self._transform, reference=item.reference)
        finally:
            self._spool.discard(item)

    def _pixels(self, instance: Resource, room: Room | None) -> str | Failure | None:
        """What differs in the pixels of two copies whose datasets differ, which are read again; None if nothing."""
        copies: list[Instance] = []
        try:
            group = InstanceGroup(instance.series, (str(instance.sop_instance_uid),), named=True)
            for reader in self._readers:
                for _, item in reader.iter(group, room=room):
                    if isinstance(item, Failure):
                        return item
                    copies.append(item)
            return difference(copies[0], copies[1], "pixels")
        except RECOVERABLE as error:
            return failure_of(error, self._transform, reference=instance)
        finally:
            for copy in copies:
                self._spool.discard(copy)

    def _retrieved(self, client: DICOMClient, reference: Resource, room: Room | None) -> Iterator[Instance]:
        return client.iter_instances(
            reference,
            max_element_bytes=MEMORY_THRESHOLD,
            spool_directory=self._spool.path,
            allow_transcoding=self._level == "pixels",
            borrow=True,
        )


def _rows(client: DICOMClient, query: SearchQuery) -> Iterator[JSONDataset]:
    """The rows of a search within a study; none where the archive does not know it."""
    try:
        yield from client.iter_search(query)
    except DICOMwebError as error:
        # PS3.18 8.3.4 wants an empty answer for what is not there; some servers say 404.
        if getattr(error, "status", None) != 404:
            raise


def _listing(client: DICOMClient, query: SearchQuery) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    nameless = 0
    for row in _rows(client, query):
        series = query.series_instance_uid or first_text(row, UID_TAGS["series"])
        uid = first_text(row, UID_TAGS["instance"])
        if series and uid:
            found.setdefault(series, set()).add(uid)
        else:
            nameless += 1
    if nameless:
        what = f"{nameless} rows of a search for instances do not name an instance"
        raise SearchIncompleteError(what, method="GET", url=client.base_url)
    return found


def _wanted(selected: Iterable[Selected]) -> dict[str, set[str] | None] | None:
    """The series that are compared, each with the instances that are meant (None: all); None for the whole study."""
    wanted: dict[str, set[str] | None] = {}
    for one in selected:
        series, instance = one.reference.series_instance_uid, one.reference.sop_instance_uid
        if series is None:
            return None
        if instance is None:
            wanted[series] = None
        else:
            named = wanted.setdefault(series, set())
            if named is not None:
                named.add(instance)
    return wanted


def _patients(selected: Iterable[Selected]) -> tuple[set[str], set[str]]:
    found: tuple[set[str], set[str]] = (set(), set())
    for one in selected:
        if one.side is not None and one.patient:
            found[one.side].add(one.patient)
    return found


def _other_patient(patients: tuple[set[str], set[str]]) -> str:
    # An archive that gives no PatientID leaves it open.
    differ = all(patients) and patients[0] != patients[1]
    return "the two archives have this study under different PatientIDs" if differ else ""
