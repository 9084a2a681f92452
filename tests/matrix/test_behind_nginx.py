"""Behind nginx with TLS at the proxy; ``X-Forwarded-*`` counts only by the server's own leave."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import ssl
import string
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest

from tests.helpers.browser import NamedHost, Visitor
from tests.helpers.certificates import signed
from tests.helpers.servers import free_port

from .server_processes import (
    APPS,
    ASGI,
    WSGI,
    Simulated,
    Site,
    environment,
    needs,
    needs_server,
    running,
    serve,
)
from .walk import walk

pytestmark = [pytest.mark.matrix, pytest.mark.timeout(150)]

HOST = "cameras.example.test"
TRUSTED = "127.0.0.1"  # where nginx calls from
STRANGER = "127.0.0.2"  # this machine too, but not a proxy that anybody trusts

SERVERS = {
    "uvicorn": (
        [*ASGI["uvicorn"], "--proxy-headers", f"--forwarded-allow-ips={TRUSTED}"],
        "starlette_app",
    ),
    "gunicorn-gthread": (
        [*WSGI["gunicorn-gthread"], f"--forwarded-allow-ips={TRUSTED}"],
        "flask_app",
    ),
    "waitress": (
        [
            *WSGI["waitress"][:-1],
            f"--trusted-proxy={TRUSTED}",
            "--trusted-proxy-headers=x-forwarded-proto",
            "--clear-untrusted-proxy-headers",
            "{app}",
        ],
        "flask_app",
    ),
}
# Under /ui: what the server is told, and whether nginx takes the prefix off the path.
PREFIXED = {
    "uvicorn": (["--root-path", "/ui"], {}, True),
    "gunicorn-gthread": ([], {"SCRIPT_NAME": "/ui"}, False),
    "waitress": (["--url-prefix=/ui"], {}, False),
}

NGINX = """
daemon off;
pid DIRECTORY/nginx.pid;
error_log stderr notice;
USER
events {}
http {
  access_log off;
  client_body_temp_path DIRECTORY/body;
  proxy_temp_path DIRECTORY/proxy;
  fastcgi_temp_path DIRECTORY/fastcgi;
  uwsgi_temp_path DIRECTORY/uwsgi;
  scgi_temp_path DIRECTORY/scgi;
  upstream app { server 127.0.0.1:UPSTREAM; keepalive 4; }
  map $http_upgrade $hop { default upgrade; '' ''; }
  server {
    listen 127.0.0.1:PORT ssl;
    ssl_certificate DIRECTORY/server.pem;
    ssl_certificate_key DIRECTORY/server.key;
    proxy_http_version 1.1;
    proxy_set_header Connection $hop;
    proxy_set_header Upgrade $http_upgrade;
    proxy_set_header Host $http_host;
    proxy_set_header X-Forwarded-For $remote_addr;
    proxy_set_header X-Forwarded-Proto $scheme;
    location / { proxy_pass http://app; }
    location /ui/ { proxy_pass http://appSTRIPPED; }
  }
}
"""


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate authority, and a certificate of the site's by it, in a directory."""
    directory = tmp_path_factory.mktemp("tls")
    signed(directory, HOST)
    return directory


@contextlib.contextmanager
def nginx(upstream: Site, authority: Path, mount: str, stripped: bool) -> Iterator[Site]:
    """Put nginx before a site."""
    port = free_port()
    text = NGINX
    for name, value in {
        "DIRECTORY": str(authority),
        "USER": "user root;" if os.geteuid() == 0 else "",
        "UPSTREAM": str(upstream.port),
        "PORT": str(port),
        "STRIPPED": "/" if stripped else "",
    }.items():
        text = text.replace(name, value)
    configuration = authority / "nginx.conf"
    configuration.write_text(text)

    def is_ready(_: httpx2.Client) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5):
            return True
        return False

    command = ["nginx", "-p", str(authority), "-c", str(configuration)]
    log = upstream.log.with_name("nginx.log")
    with running(command, log, os.environ, is_ready, authority):
        yield Site(f"https://{HOST}:{port}", mount, upstream.server, log)


def variables(simulator: Simulated, **more: str) -> dict[str, str]:
    return environment(simulator, CM_AUTH_ALLOWED_HOSTS=f"{HOST},127.0.0.1", **more)


@pytest.mark.parametrize("server", SERVERS)
def test_behind_nginx_with_tls(
    server: str, simulator: Simulated, authority: Path, tmp_path: Path
) -> None:
    needs(programs=["nginx"])
    needs_server(server)
    command, module = SERVERS[server]
    with (
        serve(server, command, tmp_path / "log", variables(simulator), app=f"{APPS}{module}:app")
        as direct,
        nginx(direct, authority, "", False) as site,
    ):  # fmt: skip
        tls = ssl.create_default_context(cafile=str(authority / "ca.pem"))
        walk(site, simulator, websockets=server == "uvicorn", transport=NamedHost(HOST, tls),
             tls=tls)  # fmt: skip
        refuse_forged_names(site, NamedHost(HOST, tls))
        ignore_a_stranger(direct)


@pytest.mark.parametrize("server", SERVERS)
def test_behind_nginx_under_a_path(
    server: str, simulator: Simulated, authority: Path, tmp_path: Path
) -> None:
    needs(programs=["nginx"])
    needs_server(server)
    arguments, extra, stripped = PREFIXED[server]
    command, module = SERVERS[server]
    command = [*command[:1], *arguments, *command[1:]]
    mount = "" if stripped else "/ui"
    with (
        serve(server, command, tmp_path / "log", variables(simulator, **extra),
              app=f"{APPS}{module}:app", mount=mount) as direct,
        nginx(direct, authority, "/ui", stripped) as site,
    ):  # fmt: skip
        tls = ssl.create_default_context(cafile=str(authority / "ca.pem"))
        walk(site, simulator, websockets=server == "uvicorn", transport=NamedHost(HOST, tls),
             tls=tls)  # fmt: skip


@pytest.mark.parametrize("length", [10, 2_700])
@pytest.mark.parametrize("server", SERVERS)
def test_forty_tabs_that_are_restored_at_once_each_arrive(
    server: str, length: int, simulator: Simulated, authority: Path, tmp_path: Path
) -> None:
    """58: nginx as it comes refuses headers of responses beyond 4 kB, and of requests beyond 8."""
    needs(programs=["nginx"])
    needs_server(server)
    command, module = SERVERS[server]
    tls = ssl.create_default_context(cafile=str(authority / "ca.pem"))
    letters = string.ascii_letters + string.digits
    queries = [
        f"tab={n}&q={''.join(random.Random(n).choices(letters, k=length))}" for n in range(40)
    ]
    with (
        serve(server, command, tmp_path / "log", variables(simulator), app=f"{APPS}{module}:app")
        as direct,
        nginx(direct, authority, "", False) as site,
        Visitor(site.origin, NamedHost(HOST, tls)) as visitor,
    ):  # fmt: skip

        def open_tab(query: str) -> httpx2.Response:
            with Visitor(site.origin, NamedHost(HOST, tls)) as tab:  # without a cookie yet
                return tab.navigate(f"/?{query}")

        with ThreadPoolExecutor(20) as pool:
            tabs = list(pool.map(open_tab, queries))
        for tab in tabs:
            assert tab.status_code == 302, tab.text
            visitor.take_cookies(tab)
        assert len(visitor.cookie_header) < 6_000
        for tab, query in reversed(list(zip(tabs, queries, strict=True))):
            page = visitor.log_in(tab.headers["location"])
            assert page.status_code == 200, page.text
            assert page.json()["query"] == query
        assert simulator.count("POST", "/oauth/token", "authorization_code") == 40
        assert visitor.navigate("/").status_code == 200


FORGED = {
    "X-Forwarded-Host": "evil.example",
    "X-Forwarded-Server": "evil.example",
    "X-Forwarded-Port": "666",
    "X-Forwarded-Prefix": "/evil",
    "X-Original-URL": "/health",
    "X-Rewrite-URL": "/health",
    "Forwarded": "host=evil.example;proto=https",
}


def refuse_forged_names(site: Site, transport: httpx2.BaseTransport) -> None:
    """Through the proxy: names that it does not vouch for change nothing."""
    with Visitor(site.origin, transport) as visitor:
        sent = visitor.navigate("/?a=1", **FORGED)
        assert _redirect_uri(sent) == f"{site.origin}/auth/callback"
        assert visitor.navigate("/", Host="evil.example").status_code == 400


def ignore_a_stranger(direct: Site) -> None:
    """Past the proxy: a caller that the server does not trust is believed nothing."""
    transport = httpx2.HTTPTransport(local_address=STRANGER)
    forged = {**FORGED, "X-Forwarded-Proto": "https", "X-Forwarded-For": "127.0.0.1"}
    with Visitor(direct.origin, transport) as stranger:
        sent = stranger.navigate("/?a=1", **forged)
        assert _redirect_uri(sent) == f"{direct.origin}/auth/callback"
        assert all(cookie.startswith("cm_auth_login_") for cookie in stranger.cookies_set)
        assert stranger.fetch("/cameras", headers=forged).status_code == 401
        assert stranger.navigate("/", Host="evil.example").status_code == 400


def _redirect_uri(sent: httpx2.Response) -> str:
    assert sent.status_code == 302, sent.text
    return parse_qs(urlsplit(sent.headers["location"]).query)["redirect_uri"][0]
