"""The network in process: both kinds of callers, both kinds of apps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import anyio
import httpx2
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from cm_auth_middleware.testing import Network
from cm_auth_middleware.testing.bridge import Lifespan
from cm_auth_middleware.testing.loop import LoopThread
from cm_auth_middleware.testing.network import interface_of

SITE = "http://site"
BIG = b"x" * 300_000


async def echo(request: Request) -> JSONResponse:
    body = await request.body()
    return JSONResponse([request.method, request.url.path, request.url.query, len(body)])


async def never(request: Request) -> None:
    await anyio.sleep_forever()


def asgi_app() -> Starlette:
    methods = ["GET", "HEAD", "POST"]
    return Starlette(routes=[Route("/never", never), Route("/{rest:path}", echo, methods=methods)])


def wsgi_app(environ: Any, start_response: Any) -> list[bytes]:
    body = environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Type", "application/json")])
    path = environ["PATH_INFO"].encode("latin-1").decode()
    words = [environ["REQUEST_METHOD"], path, environ["QUERY_STRING"], len(body)]
    return [httpx2.Response(200, json=words).content]


@pytest.fixture
def network() -> Iterator[Network]:
    network = Network()
    yield network
    network.shut_down()


@pytest.fixture(params=[asgi_app, lambda: wsgi_app], ids=["asgi", "wsgi"])
def app(request: pytest.FixtureRequest, network: Network) -> Any:
    app = request.param()
    network.add(SITE, app)
    return app


def test_a_thread_reaches_an_app(app: Any, network: Network) -> None:
    with httpx2.Client(transport=network, base_url=SITE) as client:
        answer = client.post("/größe?a=%20b", content=BIG)
        again = client.post("/größe?a=%20b", content=iter([BIG, BIG]))
    assert answer.json() == ["POST", "/größe", "a=%20b", 300_000]
    assert again.json() == ["POST", "/größe", "a=%20b", 600_000]
    assert [request.method for request in network.seen] == ["POST", "POST"]


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
async def test_an_event_loop_reaches_an_app(app: Any, network: Network) -> None:
    async def parts():
        yield BIG
        yield BIG

    async with httpx2.AsyncClient(transport=network, base_url=SITE) as client:
        answer = await client.post("/größe?a=%20b", content=parts())
    assert answer.json() == ["POST", "/größe", "a=%20b", 600_000]


def test_a_head_request_has_no_body(network: Network) -> None:
    network.add(SITE, asgi_app())
    with httpx2.Client(transport=network, base_url=SITE) as client:
        answer = client.head("/x")
    assert answer.headers["content-length"] == str(len(b'["HEAD","/x","",0]'))
    assert answer.content == b""


def test_nobody_listens_elsewhere(app: Any, network: Network) -> None:
    with (
        httpx2.Client(transport=network) as client,
        pytest.raises(httpx2.ConnectError, match=r"no application listens at http://site:81"),
    ):
        client.get("http://site:81/")


def test_a_thread_does_not_wait_for_ever(network: Network) -> None:
    network.add(SITE, asgi_app())
    with (
        httpx2.Client(transport=network, base_url=SITE, timeout=0.05) as client,
        pytest.raises(httpx2.ReadTimeout),
    ):
        client.get("/never")


@pytest.mark.anyio
async def test_an_event_loop_does_not_wait_for_ever(network: Network) -> None:
    network.add(SITE, asgi_app())
    async with httpx2.AsyncClient(transport=network, base_url=SITE, timeout=0.05) as client:
        with pytest.raises(httpx2.ReadTimeout):
            await client.get("/never")


def test_what_comes_after_the_answer_is_a_disconnect(network: Network) -> None:
    heard = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        heard.append((await receive())["type"])
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})
        heard.append((await receive())["type"])

    network.add(SITE, app)
    with httpx2.Client(transport=network, base_url=SITE) as client:
        assert client.get("/").status_code == 204
    assert heard == ["http.request", "http.disconnect"]


def test_an_app_that_never_answers_is_a_500(network: Network) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None: ...

    network.add(SITE, app)
    with httpx2.Client(transport=network, base_url=SITE) as client:
        assert client.get("/").status_code == 500


def test_an_app_is_what_it_is_or_what_one_says() -> None:
    def factory(environ: Any, start_response: Any) -> Any: ...

    async def function(scope: Any, receive: Any, send: Any) -> None: ...

    assert [interface_of(a) for a in (asgi_app(), function, wsgi_app, factory)] == [
        "asgi",
        "asgi",
        "wsgi",
        "wsgi",
    ]


def test_an_app_may_be_called_asgi_by_name(network: Network) -> None:
    starlette = asgi_app()
    network.add(SITE, lambda scope, receive, send: starlette(scope, receive, send), "asgi")
    with httpx2.Client(transport=network, base_url=SITE) as client:
        assert client.get("/x").status_code == 200


# -- lifespan ------------------------------------------------------------------------------


@pytest.fixture
def loop() -> Iterator[LoopThread]:
    loop = LoopThread()
    yield loop
    loop.close()


def test_an_app_without_a_lifespan_is_served(loop: LoopThread) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"

    lifespan = Lifespan(app, loop)
    lifespan.start()
    lifespan.stop()


@pytest.mark.parametrize("phase", ["startup", "shutdown"])
def test_an_app_that_fails_says_so(loop: LoopThread, phase: str) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        for now in ("startup", "shutdown"):
            await receive()
            if now == phase:
                await send({"type": f"lifespan.{now}.failed", "message": "no database"})
                return
            await send({"type": f"lifespan.{now}.complete"})

    lifespan = Lifespan(app, loop)

    def run() -> None:
        lifespan.start()
        lifespan.stop()

    with pytest.raises(RuntimeError, match=f"{phase} failed: no database"):
        run()


def test_an_app_that_takes_too_long_is_named(loop: LoopThread, monkeypatch) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await anyio.sleep_forever()

    monkeypatch.setattr("cm_auth_middleware.testing.bridge._LIFESPAN_TIMEOUT", 0.05)
    with pytest.raises(RuntimeError, match="startup takes too long"):
        Lifespan(app, loop).start()
