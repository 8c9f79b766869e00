"""Faults as data: which request, how often, and what goes wrong.

A fault is given to `serve` (``faults=[fault("status", status=503, times=2)]``) or added to a running server. Those of
the layer ``"http"`` are played by the server itself; those of the layer ``"wire"`` (resets, stalls, cut answers) by a
TCP proxy in front of it, see `dicomweb_io.testing.proxy`.
"""

from __future__ import annotations

import json
import random
import re
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

Layer = Literal["http", "wire"]
Kind = Literal["any", "search", "object", "metadata", "multipart", "json", "store"]


@dataclass(frozen=True)
class Action:
    """Something that can go wrong.

    Attributes:
        layer: Who plays it: ``"http"`` the server, ``"wire"`` the proxy.
        where: The requests on which it can show.
        description: What happens, in words.
        options: Its options with their defaults.
    """

    layer: Layer
    where: Kind
    description: str
    options: Mapping[str, Any] = field(default_factory=dict)


def _action(layer: Layer, where: Kind, description: str, **options: Any) -> Action:
    return Action(layer, where, description, MappingProxyType(options))


ACTIONS: Mapping[str, Action] = MappingProxyType(
    {
        # Answers that replace the right one ---------------------------------------------------------------------
        "status": _action(
            "http",
            "any",
            "A status instead of the answer; retry_after in seconds, as a number or (retry_after_date) as a date.",
            status=503,
            retry_after=None,
            retry_after_date=False,
            body="The server cannot do this now.",
            content_type="text/plain",
        ),
        "redirect": _action("http", "any", "A redirect to `location`.", location="", status=307),
        "redirect_loop": _action("http", "any", "A redirect to the same address, for ever.", status=302),
        "html_login": _action("http", "any", "200 with the HTML page of a login form."),
        "endless_body": _action("http", "any", "A body of the right media type that does not end.", chunk=65536),
        "expire_token": _action("http", "any", "All bearer tokens given out so far expire: 401 from now on."),
        # Content coding ---------------------------------------------------------------------------------------------
        "gzip_bomb": _action("http", "any", "A gzip body that expands to `size` bytes.", size=2 * 1024**3),
        "bad_gzip": _action("http", "any", "Content-Encoding: gzip on a body that is not gzip."),
        "truncated_gzip": _action("http", "any", "The right answer as gzip whose end is missing."),
        # JSON -------------------------------------------------------------------------------------------------------
        "bad_json": _action("http", "json", "200 with something that is not JSON."),
        "truncated_json": _action(
            "http", "json", "The right answer's JSON, cut in the middle, with a matching length."
        ),
        "deep_json": _action("http", "json", "JSON nested `depth` levels deep.", depth=200_000),
        "nan_json": _action("http", "json", "Bare NaN and Infinity among the numbers of the right answer."),
        "wrong_vrs": _action("http", "json", "Wrong or missing VRs and values of the wrong type in every row."),
        # Searches ---------------------------------------------------------------------------------------------------
        "ignore_offset": _action("http", "search", "The offset is ignored: every page is the first."),
        "ignore_filters": _action("http", "search", "All filters are ignored: every row is returned."),
        "ignore_limit": _action("http", "search", "The limit is ignored: all rows at once."),
        "duplicate_rows": _action("http", "search", "The page starts with the last `count` rows before it.", count=1),
        "lying_total": _action("http", "search", "X-Total-Count, off by `difference`.", difference=1),
        "shrink_pages": _action("http", "search", "The page has `count` rows less than there are.", count=1),
        "moving_rows": _action("http", "search", "Rows move by `count` between pages, as if others had come.", count=1),
        # Parts ------------------------------------------------------------------------------------------------------
        "missing_closing_boundary": _action("http", "multipart", "The body ends in order, without closing boundary."),
        "wrong_boundary": _action("http", "multipart", "The header announces another boundary than the body has."),
        "drop_part": _action("http", "multipart", "Part number `part` is left out.", part=1),
        "duplicate_part": _action("http", "multipart", "Part number `part` comes twice.", part=1),
        "foreign_part": _action("http", "object", "Part number `part` is another instance than asked for.", part=1),
        "cut_part": _action("http", "multipart", "Part number `part` lacks its second half.", part=1),
        # Stores -----------------------------------------------------------------------------------------------------
        "refuse_instances": _action(
            "http",
            "store",
            "The instances whose numbers in the request are in `numbers` (all, if empty) are refused with a reason.",
            reason=0x0110,
            status=None,
            numbers=(),
        ),
        "store_nothing": _action("http", "store", "200 with empty sequences, and nothing is stored."),
        "claim_stored": _action("http", "store", "All are named as stored, and nothing is stored."),
        "keep_old": _action("http", "store", "Named as stored; where the instance exists, its old bytes stay."),
        "omit_outcome": _action("http", "store", "Stored, but number `number` is in no sequence.", number=1),
        # Below HTTP -------------------------------------------------------------------------------------------------
        "reset": _action(
            "wire",
            "any",
            "The connection is reset: at='request' before the server hears of it, 'answer' after it has done its work "
            "and before a byte of its answer, 'header' after `position` bytes of the answer's header, 'body' after "
            "`position` bytes of its body, 'part' right after boundary number `position`.",
            at="request",
            position=0,
        ),
        "truncate": _action(
            "wire",
            "any",
            "As reset, but the connection is closed in order, which looks like the end of the body where no length is "
            "announced; framing='close' takes announced lengths and chunks away. A negative position cuts nothing off.",
            at="body",
            position=100,
            framing="keep",
        ),
        "stall": _action(
            "wire", "any", "Nothing more comes; the connection stays open. `at` as for reset.", at="body", position=0
        ),
        "drip": _action(
            "wire",
            "any",
            "From `at` on (as for reset), `count` bytes every `interval` seconds.",
            at="body",
            position=0,
            count=1,
            interval=0.05,
        ),
        "bandwidth": _action("wire", "any", "At most `rate` bytes a second, both ways.", rate=1_000_000),
        "endless_headers": _action("wire", "any", "The answer's header never ends.", interval=0.0),
        "close_after": _action("wire", "any", "The kept-alive connection is closed right after a complete answer."),
        "down": _action(
            "wire",
            "any",
            "All connections are reset, and for `seconds` every new one is refused, as if the server had died.",
            seconds=0.3,
        ),
    }
)
"""All actions by name."""

FAILURE_REASONS: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {
        "out of resources": (0xA700, 0xA7FF),
        "data set does not match SOP class": (0xA900, 0xA9FF),
        "cannot understand": (0xC000, 0xC122, 0xCFFF),
        "processing failure": (0x0110,),
        "no such SOP class": (0x0122,),
        "vendor": (45070, 45071, 43264, 43265),
    }
)
"""Failure Reason values (0008,1197) by class: PS3.18 table I.2-2, and vendors' own (documented for Azure)."""


@dataclass(frozen=True)
class Fault:
    """One fault; make it with `fault`.

    Attributes:
        action: A key of `ACTIONS`.
        method: A regular expression that the whole method must match; None for any.
        path: A regular expression to find in the path (without the query); None for any.
        first: The number, from 1, of the first matching request that fails.
        times: How many matching requests fail from there on; None for all.
        probability: The share of them that fails, decided by `seed` and the request's number.
        seed: See `probability`.
        options: The action's options, complete.
    """

    action: str
    method: str | None = None
    path: str | None = None
    first: int = 1
    times: int | None = 1
    probability: float = 1.0
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = ACTIONS.get(self.action)
        if known is None:
            raise ValueError(f"there is no fault {self.action!r}; there are: {', '.join(ACTIONS)}")
        unknown = set(self.options) - set(known.options)
        if unknown:
            raise ValueError(
                f"the fault {self.action!r} has no option {sorted(unknown)[0]!r}; it has: {', '.join(known.options)}"
            )
        if self.first < 1 or (self.times is not None and self.times < 1):
            raise ValueError("first and times count from 1")
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability must be between 0 and 1, not {self.probability!r}")
        for pattern in (self.method, self.path):
            if pattern is not None:
                re.compile(pattern)
        object.__setattr__(self, "options", {**known.options, **self.options})

    @property
    def layer(self) -> Layer:
        """Who plays it."""
        return ACTIONS[self.action].layer

    def matches(self, method: str, path: str) -> bool:
        """Whether it concerns such requests at all."""
        if self.method is not None and not re.fullmatch(self.method, method):
            return False
        return self.path is None or re.search(self.path, path) is not None

    def to_dict(self) -> dict[str, Any]:
        """The fault as a JSON object, without what has its default."""
        plain: dict[str, Any] = {"method": self.method, "path": self.path, "first": self.first, "times": self.times}
        plain |= {"probability": self.probability, "seed": self.seed}
        defaults = {"method": None, "path": None, "first": 1, "times": 1, "probability": 1.0, "seed": 0}
        result = {"action": self.action, **{key: value for key, value in plain.items() if value != defaults[key]}}
        usual = ACTIONS[self.action].options
        return {**result, **{key: value for key, value in self.options.items() if value != usual[key]}}


def fault(
    action: str,
    *,
    method: str | None = None,
    path: str | None = None,
    first: int = 1,
    times: int | None = 1,
    probability: float = 1.0,
    seed: int = 0,
    **options: Any,
) -> Fault:
    """Makes a fault, such as ``fault("status", method="POST", status=503, retry_after=1, times=2)``.

    Args:
        action: A key of `ACTIONS`.
        method: A regular expression that the whole method must match; None for any.
        path: A regular expression to find in the path (without the query); None for any.
        first: The number, from 1, of the first matching request that fails.
        times: How many matching requests fail from there on; None for all.
        probability: The share of them that fails.
        seed: Decides which share.
        **options: The action's options.

    Raises:
        ValueError: If there is no such action or option, or a number is out of range.
    """
    return Fault(action, method, path, first, times, probability, seed, options)


def faults_of_json(text: str | bytes) -> list[Fault]:
    """Reads faults from a JSON list such as ``[{"action": "status", "method": "POST", "status": 503, "times": 2}]``.

    Args:
        text: The list; its objects have the keys of `fault`. `Fault.to_dict` makes them.

    Raises:
        ValueError: If it is no JSON, or an object is no fault; the message says which.
    """
    try:
        entries = json.loads(text)
    except ValueError as error:
        raise ValueError(f"faults must be a JSON list: {error}") from None
    if not isinstance(entries, list):
        raise ValueError(f"faults must be a JSON list, not {type(entries).__name__}")
    faults = []
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict) or not isinstance(entry.get("action"), str):
            raise ValueError(f"fault {number} must be an object with an action")
        try:
            faults.append(fault(**entry))
        except (TypeError, ValueError, re.error) as error:
            raise ValueError(f"fault {number}: {error}") from None
    return faults


class FaultPlan:
    """Decides, request by request, which faults strike. Thread-safe.

    Attributes:
        struck: How often each fault has struck, by its place in the list.
    """

    def __init__(self, faults: Iterable[Fault] = ()) -> None:
        self._lock = threading.Lock()
        self.clear()
        self.add(*faults)

    def add(self, *faults: Fault) -> None:
        """Adds faults; their counts start now."""
        with self._lock:
            for one in faults:
                if not isinstance(one, Fault):
                    raise TypeError(f"faults must be Fault objects (see fault()), but one is {type(one).__name__}")
                self._faults.append(one)
                self._seen.append(0)
                self.struck.append(0)

    def clear(self) -> None:
        """Removes all faults."""
        with self._lock:
            self._faults: list[Fault] = []
            self._seen: list[int] = []
            self.struck: list[int] = []

    def strike(self, method: str, path: str) -> tuple[Fault, ...]:
        """Counts a request and returns the faults that strike it."""
        struck = []
        with self._lock:
            for index, one in enumerate(self._faults):
                if not one.matches(method, path):
                    continue
                self._seen[index] += 1
                number = self._seen[index]
                if number < one.first or (one.times is not None and number >= one.first + one.times):
                    continue
                if one.probability < 1:
                    draw = random.Random(f"{one.seed}/{index}/{number}").random()  # noqa: S311 - no secret
                    if draw >= one.probability:
                        continue
                self.struck[index] += 1
                struck.append(one)
        return tuple(struck)
