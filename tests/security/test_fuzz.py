"""Anything at all, thrown at the parsers and at both sides: no crash, no 5xx, no wrong "yes"."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote, unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cm_auth_middleware.auth.exempt import ExemptPaths
from cm_auth_middleware.sessions.encryption import Sealer
from cm_auth_middleware.sessions.record import Record
from cm_auth_middleware.tokens.grant_records import decode_grant
from cm_auth_middleware.web.local_target import safe_target
from tests.helpers.world import SECRET_KEY

from .fuzzing import (
    EXEMPT,
    Sides,
    check_cookie,
    check_exempt,
    check_handle,
    check_state,
    check_target,
)
from .profile import PROFILE

pieces = st.sampled_from(
    ["/", "//", "\\", "..", ".", "%2e", "%2f", "%5c", "%09", "%00", "%0d%0a", "%25", "?", "#", ";",
     "@", ":", "evil", "http", "https:", "javascript:", "health", "public", "/public/", "/health",
     " ", "\t", "\r\n", "\0", "\x7f", "\x85", "\u2028", "／", "⁄", "＼", "。", "é", "\ud800",
     "[::1]", "localhost"]
)  # fmt: skip
texts = st.one_of(st.lists(pieces, max_size=8).map("".join), st.text(max_size=60))
lines = st.one_of(
    st.lists(st.sampled_from(["cm_auth=", "cm_auth", "=", ";", "; ", '"', "A" * 86, ".", "A" * 43,
                              "1", "cm_auth_login_", "cm_auth_login_7=", "cm_auth_in=", "__Host-",
                              ",", " ", "\xff"]),
             max_size=12).map("".join),
    st.binary(max_size=200).map(lambda raw: raw.decode("latin-1")),
)  # fmt: skip
anything_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=8,
)  # fmt: skip


@pytest.fixture(scope="module")
def sides() -> Any:
    with Sides() as made:
        yield made


@PROFILE
@given(target=texts)
def test_a_return_target_is_a_path_here_or_the_root(target: str) -> None:
    """13: as a browser resolves it, raw, decoded and twice decoded."""
    check_target(target, "")
    check_target(target, "/sub")
    check_target("/" + target, "")
    check_target("/sub/" + target, "/sub")


@PROFILE
@given(path=texts)
def test_an_exempt_path_is_exempt_by_every_reading(path: str) -> None:
    """17: what is exempt stays so when dots are resolved, slashes merged and escapes decoded."""
    check_exempt(path)
    check_exempt("/public/" + path)
    check_exempt("/health" + path)


@PROFILE
@given(header=lines)
def test_no_cookie_header_is_anybody(sides: Sides, header: str) -> None:
    """22, 23: at both sides: a redirect to the login, or a page; never a session, never a 5xx."""
    check_cookie(sides, header.encode("latin-1", "replace"))


@PROFILE
@given(data=st.data())
def test_a_changed_cookie_is_nobody(sides: Sides, data: st.DataObject) -> None:
    """22: one to three characters of a valid one, replaced, added or taken away."""
    value = sides.cookie
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(value) - 1))
        new = data.draw(st.characters(max_codepoint=255) | st.just(""))
        keep = data.draw(st.booleans())
        value = value[:at] + new + value[at if keep else at + 1 :]
    if value.strip('" ') != sides.cookie:
        for status in sides.statuses(f"cm_auth={value}".encode("latin-1")):
            assert status != 200 or sides.cookie in value  # as a whole it may still be in there


@PROFILE
@given(
    path=texts,
    query=texts,
    method=st.sampled_from(["GET", "HEAD", "POST", "OPTIONS", "EVIL"]),
    headers=st.dictionaries(
        st.sampled_from(["host", "origin", "referer", "accept", "sec-fetch-site", "sec-fetch-mode",
                         "hx-request", "x-forwarded-host", "forwarded", "accept-language"]),
        lines | texts, max_size=4),
)  # fmt: skip
def test_no_request_of_a_visitor_is_let_in_or_a_5xx(
    sides: Sides, path: str, query: str, method: str, headers: dict[str, str]
) -> None:
    """4, 14, 15, 17, 18: and no answer of ours has a line end in a header or leads elsewhere."""
    for prefix in ("/", "/auth/callback", "/auth/login", "/auth/logout", "/x"):
        sides.check_visitor(method, prefix + path, query, headers)


@PROFILE
@given(
    callback=st.lists(
        st.tuples(st.sampled_from(["code", "state", "error", "x"]), texts), max_size=5
    )
)
def test_no_callback_makes_a_token_call(sides: Sides, callback: list[tuple[str, str]]) -> None:
    """1, 4, 5: without a state that we gave."""
    query = "&".join(f"{k}={quote(v.encode('utf-8', 'surrogatepass'))}" for k, v in callback)
    sides.check_visitor("GET", "/auth/callback", query, {})
    assert sides.token_calls() == sides.token_calls_before


@PROFILE
@given(
    raw=st.binary(max_size=300) | st.text(max_size=100).map(lambda t: t.encode("utf-8", "replace"))
)
def test_what_is_in_the_store_is_opened_or_not_and_never_a_crash(raw: bytes) -> None:
    """35: sessions, grants, descriptions and handles of any bytes."""
    sealer = Sealer([SECRET_KEY], "userId")
    for value in (raw, b"\x01" + raw, b"\x02" + raw, b"\x01" + bytes(25) + raw):
        assert sealer.open_session("a" * 64, bytes(32), value) is None
        assert sealer.open_grant("a" * 64, bytes(32), value) is None
        assert sealer.describe("a" * 64, value, "10003") is None
    check_handle(raw.decode("latin-1"))
    Record.decode(raw, 0.0)
    decode_grant(raw)


@PROFILE
@given(text=texts)
def test_no_state_but_ours_opens(text: str) -> None:
    """1, 22: any text, alone and in the place of a part of ours."""
    check_state(text)


@pytest.mark.slow
@PROFILE
@given(answer=st.dictionaries(
    st.sampled_from(["access_token", "refresh_token", "expires_in", "token_type", "scope", "error",
                     "error_description"]), anything_json, max_size=7))  # fmt: skip
def test_any_token_answer_is_tokens_or_an_error_of_ours(
    sides: Sides, answer: dict[str, Any]
) -> None:
    """39: at both sides, any JSON in any member."""
    sides.check_token_answer(json.dumps(answer).encode())


@PROFILE
@given(raw=st.binary(max_size=200), status=st.sampled_from([200, 201, 302, 400, 401, 429, 500]))
def test_any_bytes_for_a_token_answer_are_an_error_of_ours(
    sides: Sides, raw: bytes, status: int
) -> None:
    """39: and any status."""
    sides.check_token_answer(raw, status)


def test_the_checks_notice_what_is_wrong() -> None:
    """The checks that the fuzzers stand on fail when they should."""
    for wrong in ("//evil", "/\\evil", "https:evil", "/%2f/evil"):
        with pytest.raises(AssertionError):
            check_target(wrong, "", judge=lambda target, mount: target)
    assert safe_target("//evil") == "/"
    for wrong in ("/public/../x", "/public/%2e%2e/x", "/healthx"):
        with pytest.raises(AssertionError):
            check_exempt(wrong, judge=lambda path: True)
    assert ExemptPaths(EXEMPT).cover("/public/a")
    assert unquote("%2e") == "."
