"""What a server or an application uses for many users is written to for none of them."""

from __future__ import annotations

import copy
import sys
import threading
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple
from wsgiref.util import setup_testing_defaults

import anyio
import anyio.to_thread
import pytest

from cm_auth_middleware import CMAuthWSGIMiddleware
from tests.helpers.world import APP, SECRET_KEY, MakeWorld, World

from .visits import NAME, session_of

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

ANNA, BOB = "anna@example.com", "bob@example.com"
NEWER = "Zq8rT5yN2bV6mK9xC3wP7jL4hG1fD0sA-eUoIaQyWt"
HEADERS = [("content-type", "text/plain"), ("cache-control", "public, max-age=60"),
           ("vary", "Accept-Encoding"), ("x-one", "1"), ("x-one", "2")]  # fmt: skip
MIXED = [("Content-Type", "text/plain"), ("Cache-Control", "public, max-age=60"),
         ("VARY", "Accept-Encoding"), ("x-one", "1"), ("X-One", "2")]  # fmt: skip
SHAPES = ["a list of tuples", "a tuple of tuples", "a list of lists", "a generator", "no headers"]


class Got(NamedTuple):
    """What the server was told to send."""

    starts: list[Any]
    messages: list[Any]

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The headers of the last start, names in lower case."""
        return [(_text(name).lower(), _text(value)) for name, value in self.starts[-1]]

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.pairs if key == name]


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def shaped(shape: str, kind: str, headers: Sequence[tuple[str, str]]) -> Any:
    """Headers as applications have them: of bytes for ASGI, of str for WSGI."""
    pairs: list[Any] = list(headers)
    if kind == "asgi":
        pairs = [(name.encode(), value.encode()) for name, value in pairs]
    if shape == "a generator":
        return (pair for pair in pairs)
    if shape == "a tuple of tuples":
        return tuple(pairs)
    if shape == "a list of lists":
        return [list(pair) for pair in pairs]
    return pairs if shape == "a list of tuples" else []


class Cached:
    """An application that sends the same objects to everybody, as response caches do.

    Attributes:
        kept: what it sends; `changed` tells if somebody wrote to it.
    """

    def __init__(
        self,
        side: str,
        shape: str = "a list of tuples",
        headers: Sequence[tuple[str, str]] = HEADERS,
        **extra: Any,
    ) -> None:
        self._side, self._shape, self._headers = side, shape, headers
        self.body = {"type": "http.response.body", "body": b"for everybody"}
        self.start: dict[str, Any] = {"type": "http.response.start", "status": 200, **extra}
        if shape != "no headers" or side == "wsgi":
            self.start["headers"] = shaped(shape, side, headers)
        self._before = self._copy()

    def _copy(self) -> Any:
        kept = {**self.start, "headers": None} if self._shape == "a generator" else self.start
        return copy.deepcopy((kept, self.body))

    @property
    def changed(self) -> bool:
        return self._copy() != self._before

    def _fresh(self) -> None:
        if self._shape == "a generator":  # that one cannot be kept; the rest is
            self.start["headers"] = shaped(self._shape, self._side, self._headers)

    async def _asgi(self, scope: Any, receive: Any, send: Any) -> None:
        self._fresh()
        await send(self.start)
        await anyio.lowlevel.checkpoint()
        await send(self.body)

    def _wsgi(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        self._fresh()
        start_response("200 OK", self.start["headers"])
        return [b"for everybody"]

    @property
    def app(self) -> Any:
        return self._asgi if self._side == "asgi" else self._wsgi


def scope_of(cookie: str, kind: str = "http", path: str = "/", **more: Any) -> dict[str, Any]:
    headers = [(b"host", b"localhost:8000"), (b"accept", b"text/html")]
    headers += [(b"cookie", f"{NAME}={cookie}".encode())] if cookie else []
    scope = {
        "type": kind, "scheme": "http", "path": path, "raw_path": path.encode(), "root_path": "",
        "query_string": b"", "headers": headers, "http_version": "2", "client": ("127.0.0.1", 1),
        "server": ("localhost", 8000), "asgi": {"version": "3.0"},
        "extensions": {"http.response.trailers": {}}, **more,
    }  # fmt: skip
    return scope if kind == "websocket" else {**scope, "method": "GET"}


async def ask(world: World, cookie: str, path: str = "/", **more: Any) -> Got:
    """Send a request by hand, and tell everything that the server was given to send."""
    if world.side == "wsgi":
        return await anyio.to_thread.run_sync(_ask_wsgi, world.app, cookie, path)
    return await run(world.app, scope_of(cookie, path=path, **more))


async def run(app: Any, scope: dict[str, Any]) -> Got:
    got = Got([], [])
    begun = scope["type"] == "websocket" and "websocket.connect"

    async def receive() -> dict[str, Any]:
        return {"type": begun or "http.request"}

    async def send(message: dict[str, Any]) -> None:
        got.messages.append(message)
        if message["type"] == "http.response.start":
            got.starts.append(list(message.get("headers", ())))

    await app(scope, receive, send)
    return got


def _ask_wsgi(app: Any, cookie: str, path: str) -> Got:
    environ: dict[str, Any] = {}
    setup_testing_defaults(environ)
    environ |= {"HTTP_HOST": "localhost:8000", "HTTP_ACCEPT": "text/html", "PATH_INFO": path,
                "REMOTE_ADDR": "127.0.0.1"}  # fmt: skip
    if cookie:
        environ["HTTP_COOKIE"] = f"{NAME}={cookie}"
    got = Got([], [])

    def start_response(status: str, headers: Any, exc_info: Any = None) -> Any:
        assert isinstance(headers, list) or not cookie  # PEP 3333; a visitor's are the app's own
        got.starts.append(list(headers))
        got.messages.append((status, exc_info))
        return write

    def write(data: bytes) -> None:
        got.messages.append(data)

    body = app(environ, start_response)
    got.messages.append(b"".join(body))
    getattr(body, "close", lambda: None)()
    return got


async def two_keys(make_world: MakeWorld, app: Any) -> tuple[World, str, str]:
    """A world that signs anew what was signed with the older key: anna's cookie, not bob's."""
    older = make_world()
    anna = session_of(await older.login(ANNA))
    world = make_world(secret_key=[SECRET_KEY, NEWER], store=older.engine.store, exempt=["/health"])
    bob = session_of(await world.login(BOB))
    put_behind(world, app)
    return world, anna, bob


def put_behind(world: World, app: Any) -> None:
    if world.side == "wsgi":
        world.app = CMAuthWSGIMiddleware(app, engine=world.engine)
        world.net.add(APP, world.app)
    else:
        world.app.app = app


@pytest.mark.parametrize("shape", SHAPES)
async def test_one_answer_for_many_carries_nobody_elses_cookie(
    make_world: MakeWorld, side: str, shape: str
) -> None:
    """51: R2: one message and one header list for all; one user's cookie is signed anew on it."""
    cached = Cached(side, shape)
    world, anna, bob = await two_keys(make_world, cached.app)
    for _ in range(3):
        [renewed] = (await ask(world, anna)).all("set-cookie")
        assert renewed.startswith(f"{NAME}=")
        assert not cached.changed
        for cookie, path in ((bob, "/"), (bob, "/health"), ("", "/health")):
            assert (await ask(world, cookie, path)).all("set-cookie") == []
        assert not cached.changed


async def test_one_answer_for_many_at_once_carries_nobody_elses_cookie(
    make_world: MakeWorld, side: str
) -> None:
    """51: the same, side by side."""
    cached = Cached(side)
    world, anna, bob = await two_keys(make_world, cached.app)
    answers: dict[int, Got] = {}

    async def one(number: int) -> None:
        answers[number] = await ask(world, anna if number % 2 else bob)

    async with anyio.create_task_group() as group:
        for number in range(40):
            group.start_soon(one, number)
    for number, got in answers.items():
        assert len(got.all("set-cookie")) == number % 2
    assert not cached.changed


@pytest.mark.parametrize("headers", [HEADERS, MIXED], ids=["lower case", "mixed case"])
@pytest.mark.parametrize("shape", SHAPES)
async def test_headers_of_any_shape_arrive_whole_and_are_not_for_caches(
    make_world: MakeWorld, side: str, shape: str, headers: Any
) -> None:
    """51, 28: however an application writes its headers; nothing is lost, nothing said twice."""
    cached = Cached(side, shape, headers)
    world, anna, bob = await two_keys(make_world, cached.app)
    for cookie in (anna, bob):
        got = await ask(world, cookie)
        if cookie == anna:
            assert got.all("cache-control") == ["no-store"]
        else:
            assert len(got.all("cache-control")) == 1
        vary = [word.strip().lower() for line in got.all("vary") for word in line.split(",")]
        if shape == "no headers":
            assert vary == ["cookie"]
            continue
        assert sorted(vary) == ["accept-encoding", "cookie"]
        assert got.all("content-type") == ["text/plain"]
        assert got.all("x-one") == ["1", "2"]
        added = {"set-cookie", "cache-control", "vary"}
        ours = [pair for pair in got.pairs if pair[0] not in added]
        theirs = [(name.lower(), value) for name, value in headers]
        assert ours == [pair for pair in theirs if pair[0] not in added]


async def test_what_else_an_asgi_application_sends_is_handed_on_as_it_is() -> None:
    """51: extra keys of the start, trailers, early hints, a path to send: the very same."""
    extra = {"trailers": True, "x-of-a-server": ["a", {"list": 1}]}
    cached = Cached("asgi", **extra)
    others = [
        {"type": "http.response.early_hint", "links": [b"</style.css>; rel=preload"]},
        {"type": "http.response.debug", "info": {"template": "page.html"}},
    ]
    later = [
        {"type": "http.response.body", "body": b"part", "more_body": True},
        {"type": "http.response.pathsend", "path": "/tmp/page"},
        {"type": "http.response.trailers", "headers": [(b"x-sum", b"1")], "more_trailers": False},
    ]
    before = copy.deepcopy((others, later))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for message in (*others, cached.start, *later):
            await send(message)

    worlds: list[World] = []

    def make_world(**options: Any) -> World:
        worlds.append(World(**options))
        return worlds[-1]

    world, anna, bob = await two_keys(make_world, app)
    for cookie in (anna, bob):
        sent = (await ask(world, cookie)).messages
        assert [m["type"] for m in sent] == [m["type"] for m in (*others, cached.start, *later)]
        assert sent[:2] + sent[3:] == others + later
        assert {**sent[2], "headers": None} == {**cached.start, "headers": None}
        assert sent[2] is not cached.start
    assert (others, later) == before
    assert not cached.changed
    for one in worlds:
        await one.close()


@pytest.mark.parametrize("late", [False, True], ids=["at once", "a generator"])
async def test_a_wsgi_answer_begun_twice_with_one_list_sets_one_cookie(late: bool) -> None:
    """51: PEP 3333 lets an application begin again with an error, and its list may be the same."""
    headers = list(HEADERS)

    def begin(start_response: Any) -> None:
        start_response("200 OK", headers)
        try:
            raise ValueError("on second thoughts")
        except ValueError:
            write = start_response("404 Not Found", headers, sys.exc_info())
        write(b"written ")

    def at_once(environ: Any, start_response: Any) -> Iterable[bytes]:
        begin(start_response)
        return [b"and returned"]

    def generator(environ: Any, start_response: Any) -> Iterable[bytes]:
        begin(start_response)
        yield b"and returned"

    worlds: list[World] = []

    def make_world(**options: Any) -> World:
        worlds.append(World(side="wsgi", **options))
        return worlds[-1]

    world, anna, bob = await two_keys(make_world, generator if late else at_once)
    for cookie in (anna, bob, anna, bob):
        got = await ask(world, cookie)
        assert len(got.starts) == 2
        for start in got.starts:
            once = Got([start], [])
            assert len(once.all("set-cookie")) == (cookie == anna)
            assert len(once.all("cache-control")) == 1
        assert got.starts[0] == got.starts[1]
        [(first, none), (second, error), *parts] = got.messages
        assert (first, none, second) == ("200 OK", None, "404 Not Found")
        assert error[0] is ValueError
        assert b"".join(parts) == b"written and returned"
        assert headers == HEADERS
    for one in worlds:
        await one.close()


USERS = [ANNA, BOB, None, BOB, ANNA, None]


async def cookies_of_all(world: World) -> dict[str | None, str]:
    anna, bob = await world.login(ANNA), await world.login(BOB)
    return {ANNA: session_of(anna), BOB: session_of(bob), None: ""}


@pytest.mark.parametrize("state", [{"pool": object(), "words": ["lifespan"]}, {}, None],
                         ids=["one state", "an empty one", "none"])  # fmt: skip
async def test_requests_and_websockets_that_share_a_state_are_each_their_users(
    state: dict[str, Any] | None,
) -> None:
    """51: R1: every handler has begun before the first one looks who asks."""
    world = World(exempt=["/health"])
    cookies = await cookies_of_all(world)
    askers = [(kind, user) for user in USERS for kind in ("http", "websocket")]
    told: dict[int, Any] = {}
    all_begun = anyio.Event()
    begun: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        number = scope["number"]
        scope["state"]["mine"] = number
        begun.append(number)
        if len(begun) == len(askers):
            all_begun.set()
        await all_begun.wait()
        own = scope["state"]
        told[number] = (own["cm_session"] and own["cm_session"].user["email"], own)

    put_behind(world, app)
    scopes = []
    for number, (kind, user) in enumerate(askers):
        path = "/" if user else "/health"
        scopes.append(scope_of(cookies[user], kind, path, number=number))
        if state is not None:
            scopes[-1]["state"] = state
    before = [{**scope, "headers": list(scope["headers"])} for scope in scopes]
    handed = dict(state or {})
    async with anyio.create_task_group() as group:
        for scope in scopes:
            group.start_soon(run, world.app, scope)
    for number, (_, user) in enumerate(askers):
        email, own = told[number]
        assert (email, own["mine"]) == (user, number)
        assert own["cm_auth"] is world.engine
        assert (own["cm"] is None) == (user is None)
        for key, value in handed.items():
            assert own[key] is value  # the lifespan's, not a copy of it
    assert len({id(own) for _, own in told.values()}) == len(askers)
    assert (state or {}) == handed
    assert scopes == before
    await world.close()


async def test_requests_of_two_users_in_threads_are_each_their_users() -> None:
    """51: the same on WSGI, whose servers share no state but the middleware's own."""
    world = World(side="wsgi", exempt=["/health"])
    cookies = await cookies_of_all(world)
    barrier = threading.Barrier(len(USERS), timeout=20)

    def app(environ: Any, start_response: Any) -> Iterable[bytes]:
        barrier.wait()
        session = environ["cm_auth.session"]
        assert (environ["cm_auth.client"] is None) == (session is None)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [(session.user["email"] if session else "nobody").encode()]

    put_behind(world, app)
    answers: dict[int, bytes] = {}

    async def one(number: int, user: str | None) -> None:
        got = await ask(world, cookies[user], "/" if user else "/health")
        answers[number] = got.messages[-1]

    async with anyio.create_task_group() as group:
        for number, user in enumerate(USERS):
            group.start_soon(one, number, user)
    assert [answers[number].decode() for number in range(len(USERS))] == [
        user or "nobody" for user in USERS
    ]
    await world.close()
