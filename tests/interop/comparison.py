"""Carries an exchange out with a server, and says what is different between two servers."""

from __future__ import annotations

import base64
import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx2

from .browser import NO_AUTHORITIES, Browser
from .exchanges import (
    CALLBACK,
    CAMERAMANAGER,
    KEY,
    Ask,
    AtOnce,
    Disable,
    Exchange,
    Lifetimes,
    Login,
    Platform,
    Revoke,
    Simulate,
    Wait,
)

Observed = dict[str, Any]  # what counts of an answer, by name

_OUTER = ("redirected", "status", "type")
_CHALLENGE = re.compile(r'(\w+)(?:.*\berror="([^"]*)")?')


class Server(Protocol):
    """A server that is compared."""

    @property
    def url(self) -> str: ...
    def lifetimes(self, access: int, refresh: int) -> None: ...
    def revoke(self, email: str) -> None: ...
    def disable(self, email: str) -> None: ...
    def simulate(self, **settings: Any) -> None: ...
    def meet(self) -> None: ...


def carry_out(
    exchange: Exchange, server: Server, platform: Platform = CAMERAMANAGER
) -> list[Observed]:
    """Return what counts of each answer, in the order of the steps that have one."""
    with httpx2.Client(timeout=30, verify=NO_AUTHORITIES) as client:
        return _Run(server, client, platform).steps(exchange)


def differences(spring: list[Observed], simulator: list[Observed]) -> list[str]:
    """Return a line for each difference, with the number of the answer.

    Of answers of two kinds, such as tokens and a refusal, only what makes the kind is said.
    """
    lines = []
    for number, (one, two) in enumerate(zip(spring, simulator, strict=True), 1):
        same_kind = all(one.get(name) == two.get(name) for name in _OUTER)
        for name in sorted({*one, *two}) if same_kind else (*_OUTER, "error", "challenge"):
            if one.get(name) != two.get(name):
                told = [one.get(name) or "none", two.get(name) or "none"]
                lines.append(f"{number} {name}: Spring {told[0]}, simulator {told[1]}")
    return lines


class _Run:
    """An exchange that is carried out, and what its answers gave so far."""

    def __init__(self, server: Server, client: httpx2.Client, platform: Platform) -> None:
        self._server = server
        self._client = client
        self._platform = platform
        self._browser = Browser(nobody=CALLBACK)
        self._lifetime = platform.lifetime
        self._known: dict[str, str] = {}
        self._names: dict[str, str] = {}  # of the tokens, which differ, by what they are
        self._seen: dict[str, float] = {}
        self._count = 0

    def steps(self, exchange: Exchange) -> list[Observed]:
        observed: list[Observed] = []
        for step in exchange.steps:
            match step:
                case Login():
                    observed.append(self._login(step))
                case Ask():
                    observed.append(self._observed(self._send(step)))
                case AtOnce():
                    observed += self._at_once(step)
                case Wait():
                    time.sleep(step.seconds)
                case Lifetimes():
                    self._lifetime = step.access
                    self._server.lifetimes(step.access, step.refresh)
                case Revoke():
                    self._server.revoke(step.email)
                case Disable():
                    self._server.disable(step.email)
                case Simulate():
                    self._server.simulate(**step.settings)
        self._browser.close()
        return observed

    def _login(self, step: Login) -> Observed:
        if not step.same_browser:
            self._browser.close()
            self._browser = Browser(nobody=CALLBACK)
        parameters: dict[str, str | None] = {
            "response_type": "code",
            "client_id": KEY[0],
            "redirect_uri": CALLBACK,
            "scope": step.scope,
            "state": "some-state",
            **step.change,
        }
        given = {name: value for name, value in parameters.items() if value is not None}
        url = f"{self._server.url}{self._platform.authorize_path}?{urlencode(given)}"
        page = self._browser.enter(url, step.email, consents=step.consents)
        location = page.headers.get("location", "")
        if not location.startswith(CALLBACK):
            return {"status": page.status_code, "redirected": False}
        answer = {name: values[0] for name, values in parse_qs(urlsplit(location).query).items()}
        self._known["code"] = code = answer.get("code", "")
        observed: Observed = {
            "redirected": True,
            "parameters": self._counting(answer),
            "error": answer.get("error"),
            "state": answer.get("state"),
        }
        if code:
            is_one = re.fullmatch(self._platform.code, code)
            observed["code"] = "well-formed" if is_one else "misshapen"
        return observed

    def _send(self, ask: Ask) -> httpx2.Response:
        headers = {}
        if ask.basic is not None:
            value = ask.basic
            if not isinstance(value, str):
                value = base64.b64encode(":".join(value).encode()).decode()
            headers["Authorization"] = f"Basic {value}".strip()
        if ask.bearer is not None:
            headers["Authorization"] = f"{ask.scheme} {self._filled(ask.bearer)}".strip()
        body: str | None = None
        if ask.sent is not None:
            headers["Content-Type"], body = ask.sent
        elif ask.form:
            headers["Content-Type"] = "application/x-www-form-urlencoded"
            body = urlencode({name: self._filled(value) for name, value in ask.form.items()})
        query = {name: self._filled(value) for name, value in ask.query.items()}
        url = self._filled(ask.path)
        if url.startswith("/"):
            url = self._server.url + url
        request = self._client.build_request(
            ask.method, url, params=query, headers=headers, content=body
        )
        del request.headers["Accept"]
        if ask.accept is not None:
            request.headers["Accept"] = ask.accept
        return self._client.send(request)

    def _at_once(self, step: AtOnce) -> list[Observed]:
        self._server.meet()
        with ThreadPoolExecutor(2) as pool:
            answers = list(pool.map(self._send, (step.one, step.two)))
        answers.sort(key=lambda answer: answer.status_code)
        return [self._observed(answer) for answer in answers]

    def _filled(self, text: str) -> str:
        return text.format_map(self._known) if "{" in text else text

    def _observed(self, response: httpx2.Response) -> Observed:
        kind = response.headers.get("content-type", "").partition(";")[0]
        observed: Observed = {"status": response.status_code, "type": kind}
        challenge = _CHALLENGE.match(response.headers.get("www-authenticate", ""))
        if challenge:
            observed["challenge"] = f"{challenge[1]} {challenge[2]}"
        if self._platform.api and response.url.path.startswith(self._platform.api):
            del observed["type"]
            return observed
        if response.url.path == self._platform.token_path:
            observed["kept from caches"] = "no-store" in response.headers.get("cache-control", "")
        value = _json(response)
        if isinstance(value, list):
            observed["list of"] = sorted(value[0])
        if isinstance(value, dict):
            observed["keys"] = self._counting(value)
            observed["error"] = value.get("error")
            observed.update(self._tokens(value))
            said = str(value.get("error_description", ""))
            observed["repeats a token"] = any(token in said for token in self._names)
        elif "xml" in kind:
            observed["root"] = re.findall(r"<(\w+)", response.text)[:1]
            observed["error"] = (re.findall(r"<error>(\w+)<", response.text) or [None])[0]
        return observed

    def _counting(self, members: dict[str, Any]) -> list[str]:
        return sorted(members.keys() - self._platform.optional)

    def _tokens(self, answer: dict[str, Any]) -> Observed:
        if "access_token" not in answer:
            return {}
        self._count += 1
        observed = {"scope": " ".join(sorted(str(answer.get("scope")).split()))}
        for kind in ("access", "refresh"):
            value = str(answer.get(f"{kind}_token"))
            number = 1 + sum(name.startswith(kind) for name in self._names.values())
            name = self._names.setdefault(value, f"{kind} token {number}")
            form = getattr(self._platform, f"{kind}_token")
            observed[f"{kind} token"] = name if re.fullmatch(form, value) else f"{name}, misshapen"
            self._known[kind] = self._known[f"{kind}{self._count}"] = value
        observed["token type"] = str(answer.get("token_type"))
        observed["expires in"] = self._life(str(answer["access_token"]), answer.get("expires_in"))
        base = answer.get("httpsBaseUrl")
        if isinstance(base, dict):
            self._known["api"] = f"http://{base.get('hostname')}:{base.get('port')}"
            own = base.get("port") == urlsplit(self._server.url).port
            observed["API"] = f"{base.get('hostname')} at {'its' if own else 'another'} port"
        return observed

    def _life(self, token: str, expires_in: Any) -> str:
        """Say whether ``expires_in`` is a whole life, or what is left of one."""
        if not isinstance(expires_in, int):
            return f"{expires_in!r}"
        elapsed = time.monotonic() - self._seen.setdefault(token, time.monotonic())
        # A second is cut off as soon as a millisecond has passed.
        if expires_in > self._lifetime - elapsed + 1:
            return "more than is left"
        return "what is left" if expires_in >= self._lifetime - elapsed - 3 else f"{expires_in}"


def _json(response: httpx2.Response) -> Any:
    try:
        return json.loads(response.content)
    except ValueError:
        return None
