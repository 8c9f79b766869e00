"""Origins, user information and redirect targets."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from dicomweb_io.http.connections import with_raw_target
from dicomweb_io.http.transport import Origin, absolute_url, redirect_target, without_user_info


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("http://Host/x", ("http", "host", 80)),
        ("HTTPS://host.:443", ("https", "host", 443)),
        ("https://[::1]:8/", ("https", "::1", 8)),
        ("http://u:p@host:81/?a@b", ("http", "host", 81)),
    ],
)
def test_origins(url, origin) -> None:
    assert Origin.of(url) == origin


@pytest.mark.parametrize(
    "url", ["", "/x", "host/x", "ftp://host", "http://", "http://:80/", "http://h:x/", "http://h:70000/"]
)
def test_what_has_no_origin(url) -> None:
    with pytest.raises(ValueError, match="URL"):
        Origin.of(url)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://h/x@y", ("http://h/x@y", None, None)),
        ("http://u@h/x", ("http://h/x", "u", None)),
        ("http://u:p:q@h:1/x?a@b", ("http://h:1/x?a@b", "u", "p:q")),
        ("http://a@b@h", ("http://h", "a@b", None)),
        ("/x@y", ("/x@y", None, None)),
        ("http://good@h\\@evil/", ("http://h\\@evil/", "good", None)),
    ],
)
def test_user_information(url, expected) -> None:
    assert without_user_info(url) == expected


def test_absolute_urls() -> None:
    base = "http://h/rs"
    assert absolute_url("/studies?a=b,c#d", base) == "http://h/rs/studies?a=b,c"
    assert absolute_url("studies", base) == "http://h/rs/studies"
    assert absolute_url("?a", base) == "http://h/rs?a"
    assert absolute_url("https://u:p@x:1/y?z", base) == "https://x:1/y?z"
    for wrong in ("/a b", "/a\\b", "/\u00e4", "/a\tb", "javascript:x", "http://h\\@evil/", "//"):
        if wrong == "//":
            assert absolute_url(wrong, base) == "http://h/rs/"
            continue
        with pytest.raises(ValueError, match="URL"):
            absolute_url(wrong, base)


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("/new?x=a,b", "https://h:1/new?x=a,b"),
        ("new", "https://h:1/a/new"),
        ("//other/x", "https://other/x"),
        ("http://u:p@other/x#y", "http://other/x"),
        ("/\u00c3\u00a4 b", "https://h:1/%C3%A4%20b"),
        ("file:///etc/passwd", None),
        ("javascript:alert(1)", None),
        ("http://h:port/", None),
    ],
)
def test_redirect_targets(location, target) -> None:
    assert redirect_target("https://h:1/a/b?c", location) == target


@given(st.text(max_size=60))
def test_a_redirect_never_fails(location) -> None:
    target = redirect_target("https://h/a", location)
    assert target is None or Origin.of(target).scheme in ("http", "https")


def test_raw_targets() -> None:
    assert with_raw_target("http://xn--h/ignored", "http://\u00fc/a?b,%2c") == "http://xn--h/a?b,%2c"
    assert with_raw_target("http://h/", "http://h?x=/") == "http://h/?x=/"
    assert with_raw_target("http://h/", "http://h") == "http://h/"
