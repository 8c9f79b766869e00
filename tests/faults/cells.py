"""Runs one cell of the matrix and judges what came of it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from dicomweb_io.elements import Failure
from dicomweb_io.errors import DICOMwebError, StoreError
from dicomweb_io.profiles import PROFILES
from dicomweb_io.testing.server.server import TestServer
from tests.faults.bench import BEHAVIOURS, LONGEST, Bench, digest, within
from tests.faults.expectations import Expected
from tests.faults.failure_cases import FailureCase
from tests.faults.operations import Item, Operation, Seen, path_of_uri

# Rows of which only the identity can be compared: the failure is in their other attributes.
_SPOILT = ("NaN in JSON", "wrong VRs")
# The archive has other bytes, and they move as they are.
ODD = ("cut before the pixels always", "delimiter missing, length proven")


def settings_of(operation: Operation, failure_case: FailureCase | None) -> dict[str, Any]:
    """The options of the endpoint for a cell."""
    settings: dict[str, Any] = dict(failure_case.settings) if failure_case is not None else {}
    profile = PROFILES["generic"]
    if operation.options.get("on_existing") == "replace":
        settings["profile"] = replace(profile, replace="delete")
    if operation.name == "count":
        settings["profile"] = replace(profile, count_resources=True)
    return settings


def perform(bench: Bench, operation: Operation, failure_case: FailureCase | None) -> Seen:
    """Does an operation with or without a failure, and looks for secrets in all messages."""
    with ExitStack() as stack:
        folder = None
        if operation.writes:
            folder = bench.folder()
            operation.fill(bench, folder)
            server: TestServer = stack.enter_context(bench.archive(folder, BEHAVIOURS))
        else:
            server = bench.with_totals if operation.with_totals else bench.server
        settings = settings_of(operation, failure_case)
        if failure_case is not None:
            first = failure_case.first(operation.first)
            bench.inject(server, failure_case.faults(operation.method, operation.path, first))
        server.records.clear()
        bench.listener.texts.clear()
        bench.elsewhere.headers.clear()
        try:
            seen = within(LONGEST, lambda: operation.perform(bench, server, settings, folder))
            struck = sum(server.faults.struck) + sum(server.proxy.faults.struck)
        finally:
            server.clear_faults()
        check_redaction(bench, seen, server)
        seen.struck = struck
        if failure_case is None:
            seen.requests = list(server.records.settled())
        return seen


def undisturbed(bench: Bench, operation: Operation) -> Seen:
    """What an operation gives undisturbed; done once."""
    known: Seen | None = bench.undisturbed.get(operation.name)
    if known is None:
        known = perform(bench, operation, None)
        assert known.error is None, repr(known.error)
        assert known.items
        bench.undisturbed[operation.name] = known
    return known


def check_redaction(bench: Bench, seen: Seen, *servers: TestServer) -> None:
    """No secret, no name and no query in logs, errors and failures; no credentials at another host."""
    said = [repr(failure) for failure in seen.failures]
    error: BaseException | None = seen.error
    while error is not None:
        said += [str(error), repr(error)]
        error = error.__cause__ or error.__context__
    said += bench.listener.texts
    for secret in bench.secrets(*servers):
        for text in said:
            assert secret not in text, f"{secret!r} in {text[:500]!r}"
    for text in said:
        assert "limit=" not in text, f"a query in {text[:500]!r}"
    for headers in bench.elsewhere.headers:
        assert "authorization" not in headers
        assert "cookie" not in headers


def judge(operation: Operation, failure_case: FailureCase, wanted: Expected, seen: Seen, base: Seen) -> None:
    """Asserts that an outcome is the declared one."""
    if wanted.outcome == "recovered":
        _recovered(failure_case, wanted, seen, base)
    elif wanted.outcome == "reported":
        _reported(wanted, seen, base)
    elif wanted.outcome == "believed":
        assert seen.error is None, repr(seen.error)
        assert (seen.items, seen.files) != (base.items, base.files), "it was recovered from: the cell is out of date"
    else:
        raise AssertionError(f"a failure that cannot occur has no outcome: {wanted.why}")
    if failure_case.name not in ODD:
        _undamaged(seen, base)
    if wanted.outcome != "believed":
        _as_told(wanted, seen, base)


def _identity(items: list[Any]) -> list[Any]:
    return [item[:2] for item in items]


def _recovered(failure_case: FailureCase, wanted: Expected, seen: Seen, base: Seen) -> None:
    assert seen.error is None, repr(seen.error)
    if failure_case.name in _SPOILT or wanted.other_attributes:
        assert _identity(seen.items) == _identity(base.items)
    else:
        assert seen.items == base.items, _told(seen)
    assert seen.files == base.files


def _told(seen: Seen) -> str:
    return "; ".join(failure.message[:200] for failure in seen.failures) or f"{len(seen.items)} items"


def _reported(wanted: Expected, seen: Seen, base: Seen) -> None:
    if isinstance(seen.error, StoreError):
        failures = [outcome for outcome in seen.error.outcomes if isinstance(outcome, Failure)]
        assert failures
        assert len(seen.error.outcomes) == len(base.items)
        for failure in failures:
            _clear_failure(wanted, failure)
        return
    if seen.error is not None:
        _clear_error(wanted, seen.error)
        keys = _identity(seen.items)
        assert len(set(keys)) == len(keys), "something came twice"
        for item in seen.items:
            assert item in base.items or item[0] == "failed", f"{item} is not what an undisturbed run gives"
        return
    known = {failure.reference for failure in base.failures}
    new = [failure for failure in seen.failures if failure.reference not in known]
    assert new, f"nothing was reported, and the outcome is another one: {_told(seen)}"
    assert len(seen.items) == len(base.items)
    for item, usual in zip(seen.items, base.items, strict=True):
        assert item[1] == usual[1], "results are not one for one and in order"
        believed = wanted.partly_believed and item[0] == usual[0] == "stored"
        assert item == usual or "failed" in (item[0], usual[0]) or believed
    for failure in new:
        _clear_failure(wanted, failure)


def _clear_error(wanted: Expected, error: Exception) -> None:
    names = [kind.__name__ for kind in type(error).__mro__]
    assert any(name in names for name in wanted.errors), f"{names[0]} is none of {wanted.errors}: {error}"
    assert str(error)
    assert isinstance(error, DICOMwebError)
    assert "dicom-web" in error.url
    if wanted.status is not None:
        assert error.status == wanted.status, str(error)
    if wanted.retryable is not None:
        assert error.retryable is wanted.retryable, str(error)
    assert "?" not in error.url


def _clear_failure(wanted: Expected, failure: Failure) -> None:
    assert failure.message
    assert failure.reference is not None
    assert failure.url is None or "?" not in failure.url
    if wanted.status is not None:
        assert failure.status in (wanted.status, None), failure.message
    if "DeadlineExceededError" in wanted.errors and "deadline" in failure.message:
        # Not now, as its time is up, but perhaps later.
        assert failure.retryable
    elif wanted.retryable is not None:
        assert failure.retryable is wanted.retryable, failure.message


def _undamaged(seen: Seen, base: Seen) -> None:
    """What is at a final name is whole: what was there before, or what an undisturbed run puts there."""
    if seen.files is None:
        return
    good: Mapping[str, set[str]] = base.good
    for path, content in seen.files.items():
        assert path in good, f"{path} does not belong there"
        assert content in good[path], f"{path} is damaged"


def _as_told(wanted: Expected, seen: Seen, base: Seen) -> None:
    """What is called stored is there, and nothing is gone but what was to be deleted."""
    if seen.files is None or base.files is None:
        return
    for item in seen.items:
        if item[0] == "stored" and item[2] != "exists" and not wanted.partly_believed:
            path = path_of_uri(item[1])
            assert seen.files.get(path) == base.files[path], f"{item[1]} is called {item[2]}, and is not there"
        elif item[0] in ("path", "deleted"):
            assert item in base.items
    kept = {
        digest(Path(name).read_bytes())
        for failure in seen.failures
        for name in re.findall(r"bytes are kept in (\S+?\.dcm)", failure.message)
    }
    for path, content in seen.before.items():
        if path in base.files and path not in seen.files:
            assert content in kept, f"{path} is gone"


def judge_transform(operation: str, failure_case: FailureCase, wanted: Expected, seen: Seen, base: Seen) -> None:
    """The same for a transform, whose results have no order, and which never raises: failures are elements."""
    assert seen.error is None
    if wanted.or_recovered and not seen.failures and (seen.items, seen.files) == (base.items, base.files):
        return
    for path, content in (seen.files or {}).items() if failure_case.name not in ODD else ():
        assert content in (seen.before.get(path), (base.files or {}).get(path)), f"{path} is damaged"
    if wanted.outcome == "believed":
        assert not seen.failures, _told(seen)
        assert (seen.items, seen.files) != (base.items, base.files), "it was recovered from: the cell is out of date"
        return
    assert len(set(seen.items)) == len(seen.items), "something came twice"
    _as_told(wanted, seen, base)
    if wanted.outcome == "recovered":
        assert not seen.failures, _told(seen)
        if failure_case.name in _SPOILT or wanted.other_attributes:
            assert sorted(_identity(seen.items)) == sorted(_identity(base.items))
        else:
            assert seen.items == base.items, _told(seen)
        assert seen.files == base.files
        return
    assert wanted.outcome == "reported", f"a failure that cannot occur has no outcome: {wanted.why}"
    assert seen.failures, f"nothing was reported: {len(seen.items)} of {len(base.items)} items came"
    for failure in seen.failures:
        assert failure.message
        assert failure.url is None or "?" not in failure.url
        if wanted.status is not None:
            assert failure.status in (wanted.status, None), failure.message
        if "DeadlineExceededError" in wanted.errors and "deadline" in failure.message:
            assert failure.retryable
        elif wanted.retryable is not None:
            assert failure.retryable is wanted.retryable, failure.message
    for item in seen.items:
        assert item in base.items, f"{item} is not what an undisturbed run gives"
    # Nothing is lost silently: what did not come is in what a failure names.
    lost = [item for item in base.items if item not in seen.items]
    for item in lost:
        assert any(_names(failure, item) for failure in seen.failures), f"{item} was lost silently"
    if operation.startswith("WatchFor") and failure_case.passing:
        assert not lost, "the next poll did not find what this one missed"


def _names(failure: Failure, item: Item) -> bool:
    """Whether a failure tells of a lost item: by its reference, or by the search that would have told of it."""
    reference = failure.reference
    if reference is None:
        place = failure.url or ""
        return failure.transform.startswith(("SearchFor", "WatchFor", "ReadFrom")) or str(item[1]) in place
    uids = [reference.study_instance_uid, reference.series_instance_uid, reference.sop_instance_uid]
    return all(uid in str(item[1]) for uid in uids if uid is not None)
