"""Faults as data: what they match, when they strike, how they are written down."""

from __future__ import annotations

import json
import pickle

import pytest

from dicomweb_io.testing.faults import FAULTS, Fault, FaultPlan, fault


def strikes(one: Fault, count: int, method: str = "GET", path: str = "/studies") -> list[int]:
    plan = FaultPlan([one])
    return [number for number in range(1, count + 1) if plan.strike(method, path)]


def test_it_strikes_the_first_matching_request_unless_told_otherwise():
    assert strikes(fault("status"), 5) == [1]
    assert strikes(fault("status", first=3), 5) == [3]
    assert strikes(fault("status", first=2, times=2), 5) == [2, 3]
    assert strikes(fault("status", times=None), 3) == [1, 2, 3]


@pytest.mark.parametrize(
    ("method", "path", "struck"),
    [("GET", "/studies", True), ("POST", "/studies", False), ("GET", "/series", False), ("GET", "/x/studies", True)],
)
def test_it_matches_method_and_path(method, path, struck):
    plan = FaultPlan([fault("status", method="GET|HEAD", path="/studies$")])
    assert bool(plan.strike(method, path)) is struck


def test_only_matching_requests_are_counted():
    plan = FaultPlan([fault("status", method="POST", first=2)])
    struck = [bool(plan.strike(method, "/")) for method in ("POST", "GET", "GET", "POST", "POST")]
    assert struck == [False, False, False, True, False]


def test_a_probability_is_decided_by_the_seed():
    one = fault("status", times=None, probability=0.3, seed=1)
    struck = strikes(one, 2000)
    assert struck == strikes(one, 2000)
    assert struck != strikes(fault("status", times=None, probability=0.3, seed=2), 2000)
    assert 500 < len(struck) < 700
    assert strikes(fault("status", times=None, probability=0.0), 50) == []


def test_plans_count_and_forget():
    plan = FaultPlan([fault("status", times=None)])
    plan.strike("GET", "/")
    plan.add(fault("bad_json", times=None))
    assert [one.action for one in plan.strike("GET", "/")] == ["status", "bad_json"]
    assert plan.struck == [2, 1]
    plan.clear()
    assert plan.strike("GET", "/") == ()


@pytest.mark.parametrize(
    ("action", "options", "message"),
    [
        ("nonsense", {}, "there is no fault 'nonsense'"),
        ("status", {"colour": 1}, "no option 'colour'"),
        ("status", {"first": 0}, "count from 1"),
        ("status", {"times": 0}, "count from 1"),
        ("status", {"probability": 2}, "between 0 and 1"),
        ("nonsense", {}, "status, redirect, .* down$"),
        ("status", {"colour": 1}, "its own are: status, retry_after, .* all have: method, path, first"),
        ("bad_json", {"colour": 1}, "none of its own"),
        ("status", {"status": "503"}, "status of the fault 'status' must be a number, not '503'"),
        ("status", {"first": "2"}, "must be a number"),
        ("reset", {"at": "somewhere"}, "request, answer, header, body, part, not 'somewhere'"),
        ("truncate", {"framing": "none"}, "'keep' or 'close'"),
    ],
)
def test_wrong_faults_are_refused(action, options, message):
    with pytest.raises(ValueError, match=message):
        fault(action, **options)


@pytest.mark.parametrize("action", FAULTS)
def test_every_fault_can_be_written_down(action):
    one = fault(action, method="GET", path="/a", first=2, times=None)
    assert fault(**json.loads(json.dumps(one.to_dict()))) == one
    assert pickle.loads(pickle.dumps(one)) == one
    assert FAULTS[action].__doc__


def test_only_faults_make_a_plan():
    with pytest.raises(TypeError, match="Fault objects"):
        FaultPlan(["status"])
