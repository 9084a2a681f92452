"""What every cell of the matrix does: login, cameras, expiry, refresh, logout, and refusals."""

from __future__ import annotations

import ssl
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import httpx2
import pytest

from tests.helpers.browser import ANNA, BOB, CAMERAS, Visitor

from .server_processes import CLOSES, DENIES_ITSELF, Simulated, Site

QUERY = "camera=front%20gate&back=%2Fa%2Fb&x=1+2"


def walk(
    site: Site,
    simulator: Simulated,
    *,
    websockets: bool = False,
    transport: httpx2.BaseTransport | None = None,
    tls: ssl.SSLContext | None = None,
    room: str = "Café",
) -> None:
    """Use the site as visitors do, from the first request to after the logout.

    Args:
        site: where.
        simulator: its CameraManager.
        websockets: it has one.
        transport: how to reach it; directly by default.
        tls: trusts the site's certificate authority, for WebSockets.
        room: the name of the room that is asked for first.
    """
    with Visitor(site.origin, transport) as visitor:
        refuse_without_a_session(visitor, site, simulator)
        log_in(visitor, site, simulator, room)
        use(visitor, site)
        if websockets:
            talk(visitor, site, tls)
        outlive_an_expiry(visitor, site, simulator)
        refuse_other_sites(visitor, site)
        share_a_connection(visitor, site)
        log_out(visitor, site, simulator)
        assert visitor.requests > 30
        if site.server not in CLOSES:
            # A server may hang up on a body that was refused unread, and on nothing else.
            assert visitor.reconnections <= {("POST", 401), ("POST", 403)}


def refuse_without_a_session(visitor: Visitor, site: Site, simulator: Simulated) -> None:
    health = visitor.fetch(f"{site.mount}/health")
    assert (health.status_code, health.text) == (200, "nobody")
    for refused in (
        visitor.fetch(f"{site.mount}/cameras"),
        visitor.fetch(f"{site.mount}/data", "POST", json={"note": "by nobody"}),
        visitor.fetch(f"{site.mount}/no/such/page"),
    ):
        assert refused.status_code == 401
        assert refused.headers["content-type"] == "application/problem+json"
        assert refused.json()["login_url"] == f"{site.mount}/auth/login"
    info = visitor.fetch(f"{site.mount}/auth/session").json()
    assert info == {"authenticated": False, "user": None, "expires_in": 0}
    assert simulator.count("POST", "/oauth/token") == 0


def log_in(visitor: Visitor, site: Site, simulator: Simulated, room: str) -> None:
    path = f"{site.mount}/rooms/{quote(room)}?{QUERY}"
    sent = visitor.navigate(path)
    assert sent.status_code == 302
    assert sent.headers["location"].startswith(f"{simulator.url}/oauth/authorize?")
    redirect_uri = parse_qs(urlsplit(sent.headers["location"]).query)["redirect_uri"]
    assert redirect_uri == [f"{site.origin}{site.mount}/auth/callback"]
    arrived = visitor.log_in(sent.headers["location"])
    assert arrived.status_code == 200, arrived.text
    assert str(arrived.url) == f"{site.origin}{path}"
    assert arrived.json() == {"room": room, "query": QUERY}
    assert arrived.headers["cache-control"] == "no-store"
    secure = site.origin.startswith("https:")
    name = "__Host-cm_auth=" if secure else "cm_auth="
    session = next(line for line in visitor.cookies_set if line.startswith(name)).split("; ")
    assert {"HttpOnly", "SameSite=Lax", "Path=/"} <= set(session)
    assert ("Secure" in session) == secure
    assert all(line.startswith(name[:-1]) for line in visitor.cookies_set)


def use(visitor: Visitor, site: Site) -> None:
    home = visitor.navigate(f"{site.mount}/?{QUERY}").json()
    assert (home["user"], home["query"]) == (ANNA, QUERY)
    assert visitor.fetch(f"{site.mount}/cameras").json() == CAMERAS[ANNA]
    assert visitor.fetch(f"{site.mount}/health").text == ANNA
    written = visitor.fetch(f"{site.mount}/data", "POST", json={"note": "Grüße"})
    assert written.json() == {"note": "Grüße"}
    assert visitor.fetch(f"{site.mount}/data").json() == {"note": "Grüße"}
    assert visitor.fetch(f"{site.mount}/auth/session").json()["user"]["email"] == ANNA


def talk(visitor: Visitor, site: Site, tls: ssl.SSLContext | None) -> None:
    from websockets.exceptions import ConnectionClosed, InvalidMessage, InvalidStatus
    from websockets.sync.client import connect

    url = f"ws{site.origin.removeprefix('http')}{site.mount}/ws"
    cookie = {"Cookie": visitor.cookie_header}
    there = {"address": ("127.0.0.1", site.port), "ssl": tls, "proxy": None}
    with connect(url, additional_headers=cookie, origin=site.origin, **there) as socket:
        assert socket.recv(10) == ANNA
        # The application closes it. Should the client do so at the same moment, hypercorn on trio
        # sends two frames at once and fails (BusyResourceError).
        with suppress(ConnectionClosed, TimeoutError):
            socket.recv(2)

    def ask(**options: Any) -> None:
        for _ in range(3):
            # hypercorn on trio now and then hangs up before its refusal is written; what counts
            # is that nobody gets in.
            with suppress(ConnectionClosed, InvalidMessage):
                connect(url, **options, **there)
                return

    for headers, origin, status in (
        ({}, site.origin, 401),
        (cookie, "https://elsewhere.example", 403),
    ):
        with pytest.raises(InvalidStatus) as refused:
            ask(additional_headers=headers, origin=origin)
        expected = 403 if site.server in DENIES_ITSELF else status
        assert refused.value.response.status_code == expected


def outlive_an_expiry(visitor: Visitor, site: Site, simulator: Simulated) -> None:
    before = simulator.refreshes
    simulator.expire()
    for _ in range(3):
        answer = visitor.fetch(f"{site.mount}/cameras")
        assert (answer.status_code, answer.json()) == (200, CAMERAS[ANNA])
    assert simulator.refreshes == before + 1


def refuse_other_sites(visitor: Visitor, site: Site) -> None:
    for path in ("/data", "/auth/logout"):
        forged = visitor.submit(f"{site.mount}{path}", "cross-site", data={"note": "forged"})
        assert forged.status_code == 403
        assert forged.headers["content-type"].startswith("text/html")  # it is a form
    assert visitor.fetch(f"{site.mount}/data").json() == {"note": "Grüße"}


def share_a_connection(visitor: Visitor, site: Site) -> None:
    """Somebody else's requests on the same connection, as behind a proxy, are their own."""
    other = visitor.companion()
    assert other.fetch(f"{site.mount}/health").text == "nobody"
    assert other.enter(f"{site.mount}/", BOB).json()["user"] == BOB
    for _ in range(3):
        assert other.fetch(f"{site.mount}/cameras").json() == CAMERAS[BOB]
        assert visitor.fetch(f"{site.mount}/cameras").json() == CAMERAS[ANNA]
    assert other.fetch(f"{site.mount}/data").json() == {}


def log_out(visitor: Visitor, site: Site, simulator: Simulated) -> None:
    stolen = visitor.cookie_header
    page = visitor.navigate(f"{site.mount}/auth/logout")
    assert f'action="{site.mount}/auth/logout' in page.text
    gone = visitor.submit(f"{site.mount}/auth/logout")
    signed_out = f"{site.mount}/auth/signed-out"
    assert (gone.status_code, gone.headers["location"]) == (303, signed_out)
    assert "You are logged out" in visitor.navigate(signed_out).text
    assert simulator.count("DELETE", "/rest/v2.0/users/self/tokens/current") == 1
    assert visitor.fetch(f"{site.mount}/cameras").status_code == 401
    replayed = visitor.fetch(f"{site.mount}/cameras", headers={"Cookie": stolen})
    assert replayed.status_code == 401
    assert visitor.fetch(f"{site.mount}/health", headers={"Cookie": stolen}).text == "nobody"
