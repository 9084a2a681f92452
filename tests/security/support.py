"""What the security tests share: what a browser holds, a browser's way to read a URL, stores."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import ada_url
import httpx2

from ..support import APP, Browser, World

NAME = "cm_auth"


def query_of(response: httpx2.Response) -> dict[str, str]:
    """The parameters of a response's Location."""
    query = urlsplit(response.headers["location"]).query
    return {k: v[0] for k, v in parse_qs(query, strict_parsing=True).items()}


def cookies_of(browser: Browser) -> str:
    """Everything that the browser would send, as one Cookie header."""
    return "; ".join(f"{c.name}={c.value}" for c in browser.cookies.jar)


def session_of(browser: Browser) -> str:
    """The value of the browser's session cookie."""
    [value] = browser.named(NAME)
    return value


def lands_on(base: str, location: str) -> str:
    """Where a browser at `base` goes for a Location, as the URL standard (WHATWG) resolves it."""
    return ada_url.URL(location, base=base).href


def is_ours(location: str, base: str = f"{APP}/auth/callback") -> bool:
    """Whether a browser that follows `location` stays at this app."""
    try:
        target = ada_url.URL(location, base=base)
    except ValueError:
        return False
    return target.origin == ada_url.URL(base).origin and target.username == ""


async def started(browser: Browser, path: str = "/cameras") -> httpx2.Response:
    """Begin a login."""
    response = await browser.get(path)
    assert response.status_code == 302, response.text
    return response


async def is_logged_in(world: World, cookie: str, path: str = "/") -> bool:
    """Whether somebody with this Cookie header, and nothing else, is let in."""
    response = await world.browser(Cookie=cookie).get(path)
    assert response.status_code in (200, 302), response.text
    return response.status_code == 200


def stored(world: World) -> dict[str, bytes]:
    """What the world's memory store holds now, by key; what has expired too."""
    return dict(_entries(world.engine.store))


def _entries(store: Any) -> Iterator[tuple[str, bytes]]:
    for shard in store._shards:
        for key, (value, _) in shard.items():
            yield key, value
