"""Apache with mod_auth_openidc, the login of web servers that many sites have, and its provider."""

from __future__ import annotations

import base64
import hmac
import json
import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx2
from starlette.responses import JSONResponse

from cm_auth_middleware.testing import Settings, Simulator

from .world import SimulatedWorld, free_port, wait_for_port

INSTALL = "apt-get install apache2 libapache2-mod-auth-openidc"
_MODULES = Path("/usr/lib/apache2/modules")
_LOADED = ("mpm_event", "authz_core", "authn_core", "authz_user", "dir", "mime", "auth_openidc")
_AUTHORIZE, _TOKEN, _USER = "/oauth/authorize", "/oauth/token", "/rest/v2.3/users/self"
_DISCOVERY = "/.well-known/openid-configuration"
_THREADS = 25


def is_installed() -> bool:
    """Return True if this machine has Apache and mod_auth_openidc."""
    return _program() is not None and (_MODULES / "mod_auth_openidc.so").exists()


def serve_apache(stack: ExitStack, options: Mapping[str, str]) -> tuple[str, int]:
    """Start Apache with a page that needs a login; return its address and its process id.

    One process serves, with as many threads as by default, and another one watches it.

    Args:
        options: of mod_auth_openidc, those of its provider and its cache.
    """
    folder, port = Path(stack.enter_context(tempfile.TemporaryDirectory())), free_port()
    folder.chmod(0o755)  # its workers run as another user
    (folder / "pages").mkdir()
    (folder / "pages" / "index.html").write_text("ok")
    lines = [
        f"ServerRoot {folder}",
        "ServerName localhost",
        f"Listen 127.0.0.1:{port}",
        f"PidFile {folder}/pid",
        f"ErrorLog {folder}/error.log",
        "LogLevel warn",
        *(f"LoadModule {name}_module {_MODULES}/mod_{name}.so" for name in _LOADED),
        "TypesConfig /etc/mime.types",
        *(["User nobody", "Group nogroup"] if os.geteuid() == 0 else []),
        "StartServers 1",
        "ServerLimit 1",
        f"ThreadsPerChild {_THREADS}",
        f"MaxRequestWorkers {_THREADS}",
        "MaxKeepAliveRequests 0",
        f"DocumentRoot {folder}/pages",
        *(f"{name} {value}" for name, value in options.items()),
        f"OIDCRedirectURI http://127.0.0.1:{port}/callback",
        f"OIDCCryptoPassphrase {secrets.token_urlsafe(32)}",
        "OIDCPKCEMethod S256",
        "<Location />",
        "  AuthType openid-connect",
        "  Require valid-user",
        "</Location>",
    ]
    (folder / "httpd.conf").write_text("\n".join(lines) + "\n")
    program = _program()
    assert program is not None, INSTALL
    process = subprocess.Popen([program, "-D", "FOREGROUND", "-f", f"{folder}/httpd.conf"])
    stack.callback(process.wait, 10)
    stack.callback(process.terminate)
    wait_for_port(port, process)
    return f"http://127.0.0.1:{port}", process.pid


def never_asked() -> dict[str, str]:
    """Return the options of a provider that is never asked: visitors are only sent to it.

    mod_auth_openidc then neither fetches nor reads a document of its provider.
    """
    provider = "https://127.0.0.1:9"
    return {
        "OIDCProviderIssuer": provider,
        "OIDCProviderAuthorizationEndpoint": f"{provider}{_AUTHORIZE}",
        "OIDCProviderTokenEndpoint": f"{provider}{_TOKEN}",
        "OIDCClientID": "demo-key-id",
        "OIDCClientSecret": "demo-key-secret",
    }


def _program() -> str | None:
    return shutil.which("apache2") or shutil.which("apache2", path="/usr/sbin")


class OpenIDWorld(SimulatedWorld):
    """A simulated CameraManager that is an OpenID provider, too, for as long as a `with` lasts.

    mod_auth_openidc refuses a token answer without an ID token (OpenID Connect Core §3.1.3.3). To
    the others it is a member of the answer that they do not know.
    """

    def __init__(self) -> None:
        # mod_auth_openidc sends no scope to the token endpoint, as RFC 6749 §4.1.3 has it.
        self._provider = _Provider(Settings(scope_required=False))
        super().__init__(simulator=self._provider)
        self._provider.url = self._server.url

    def apache_options(self, redis: str) -> dict[str, str]:
        """Return the options of a mod_auth_openidc that logs in here and stores in this Redis."""
        return {
            "OIDCProviderMetadataURL": f"{self._server.url}{_DISCOVERY}",
            "OIDCClientID": self.simulator.client_id,
            "OIDCClientSecret": self.simulator.client_secret,
            "OIDCIDTokenSignedResponseAlg": "HS256",
            "OIDCCacheType": "redis",
            "OIDCRedisCacheServer": urlsplit(redis).netloc,
        }

    def callback_url(self, login: httpx2.Response) -> str:
        """Where CameraManager would send a browser that logs in and agrees."""
        url = super().callback_url(login)
        asked = parse_qs(urlsplit(login.headers["location"]).query)
        [code] = parse_qs(urlsplit(url).query)["code"]
        self._provider.nonces[code] = asked.get("nonce", [""])[0]
        return url


class _Provider(Simulator):
    """A simulator whose token answers have an ID token.

    Attributes:
        url: its own address.
        nonces: those of the authorization requests, by the codes that were issued for them.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.url = ""
        self.nonces: dict[str, str] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path = scope.get("path")
        if path == _DISCOVERY:
            await JSONResponse(self._discovery())(scope, receive, send)
            return
        if path not in (_TOKEN, _USER):
            await super().__call__(scope, receive, send)
            return
        # Without an Accept that names JSON, CameraManager's token endpoint answers in XML.
        headers = [(name, value) for name, value in scope["headers"] if name != b"accept"]
        scope = {**scope, "headers": [*headers, (b"accept", b"application/json")]}
        status, body = 0, b""

        async def keep(message: Any) -> None:
            nonlocal status, body
            status = message.get("status", status)
            body += message.get("body", b"")

        await super().__call__(scope, receive, keep)
        answer = json.loads(body)
        if status == 200 and path == _TOKEN:
            answer["id_token"] = self._id_token(scope["cm.record"].form.get("code", ""))
        elif status == 200:
            answer["sub"] = str(answer["userId"])
        await JSONResponse(answer, status)(scope, receive, send)

    def _discovery(self) -> dict[str, Any]:
        """Return what OpenID Connect Discovery §3 asks for."""
        return {
            "issuer": self.url,
            "authorization_endpoint": f"{self.url}{_AUTHORIZE}",
            "token_endpoint": f"{self.url}{_TOKEN}",
            "userinfo_endpoint": f"{self.url}{_USER}",
            "response_types_supported": ["code"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["HS256"],
            "token_endpoint_auth_methods_supported": ["client_secret_basic"],
        }

    def _id_token(self, code: str) -> str:
        """Return an ID token that the API key's secret signs (RFC 7515, HS256)."""
        now = int(time.time())
        claims = {
            "iss": self.url,
            "sub": str(self.users[0].user_id),
            "aud": self.client_id,
            "iat": now,
            "exp": now + 3600,
            "nonce": self.nonces.pop(code, ""),
        }
        signed = f"{_encoded({'alg': 'HS256', 'typ': 'JWT'})}.{_encoded(claims)}"
        signature = hmac.digest(self.client_secret.encode(), signed.encode(), "sha256")
        return f"{signed}.{_base64url(signature)}"


def _encoded(part: dict[str, Any]) -> str:
    return _base64url(json.dumps(part).encode())


def _base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
