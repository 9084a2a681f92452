"""``cm-auth check --login`` against simulators on real sockets: what it finds, says and leaves."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from email.utils import formatdate
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import parse_qs, quote, urlsplit

import anyio
import httpx2
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import (
    HTMLResponse,
    JSONResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)
from starlette.routing import Route

from cm_auth_middleware.cli import live_expected, main
from cm_auth_middleware.cli.findings import ERROR, OK, WARNING
from cm_auth_middleware.cli.live_check import Choices, new_report, run
from cm_auth_middleware.cli.live_expected import expected_of
from cm_auth_middleware.cli.live_findings import findings
from cm_auth_middleware.cli.live_report import Report, challenge, known_error, names, shape
from cm_auth_middleware.cli.live_server import clock_skew
from cm_auth_middleware.config import CMAuthConfig
from cm_auth_middleware.testing import (
    AppServer,
    Settings,
    Simulator,
    SimulatorServer,
    read_report,
    settings_for,
    settings_like,
)
from cm_auth_middleware.testing.__main__ import main as simulate
from cm_auth_middleware.tokens.provider import CAMERAMANAGER, PROVIDERS

from ..helpers.servers import free_port
from ..helpers.world import SECRET_KEY

pytestmark = pytest.mark.slow  # a server and a login for each

REPORTS = Path(__file__).parents[1] / "live_reports"
ANNA, BOB = "anna@example.com", "bob@example.com"
_URL = re.compile(r"^  (http\S+)$", re.M)


# -- a person with a browser ---------------------------------------------------------------


def log_in(browser: httpx2.Client, url: str, email: str = ANNA, decision: str = "allow") -> Any:
    """Fill in the simulator's forms; return the page at the redirect URI, or the way there."""
    page = browser.get(url)
    if 'name="password"' in page.text:
        page = browser.post(page.url, data={"email": email, "password": "cameras"})
    if 'name="decision"' in page.text:
        page = browser.post(page.url, data={"decision": decision})
    return page


class Person(io.StringIO):
    """Reads what the command prints, and logs in at each URL."""

    def __init__(
        self, log_in: Callable[[str], None], *, is_fast: bool = False, is_terminal: bool = False
    ) -> None:
        super().__init__()
        self._log_in = log_in
        self._is_terminal = is_terminal
        self._is_fast = is_fast  # is back before the command goes on
        self._seen = 0
        self.threads: list[threading.Thread] = []

    def isatty(self) -> bool:
        return self._is_terminal

    def write(self, text: str) -> int:
        written = super().write(text)
        urls = _URL.findall(self.getvalue())
        new, self._seen = urls[self._seen :], len(urls)
        for url in new:
            self.threads.append(threading.Thread(target=self._log_in, args=(url,), daemon=True))
            self.threads[-1].start()
            if self._is_fast:
                self.threads[-1].join(10)
        return written


@dataclass(frozen=True)
class Run:
    """What a run of the command came to."""

    status: int
    output: str
    report: dict[str, Any]

    def lines(self, mark: str) -> list[str]:
        return [line for line in self.output.splitlines() if line.startswith(f"{mark} ")]

    def topics(self, mark: str) -> list[str]:
        return [line[2:15].strip() for line in self.lines(mark)]


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    for name in [name for name in os.environ if name.startswith("CM_AUTH_")]:
        monkeypatch.delenv(name)
    return {
        "CM_AUTH_CLIENT_ID": "demo-key-id",
        "CM_AUTH_CLIENT_SECRET": "demo-key-secret",
        "CM_AUTH_SECRET_KEY": SECRET_KEY,
        "CM_AUTH_REDIRECT_URI": f"http://localhost:{free_port()}/auth/callback",
        "CM_AUTH_TIMEOUT": "5",
    }


@pytest.fixture
def check(
    env: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., Run]:
    """Run the command, with somebody who logs in at what it prints."""

    def check(
        url: str,
        *arguments: str,
        person: Callable[[str], Any] | None = None,
        typed: str | TextIO = "",
        encoding: str = "utf-8",
        no_browser: bool = True,
        writes: bool = True,
        is_fast: bool = False,
        is_terminal: bool = False,
        **changes: str | None,
    ) -> Run:
        changed = {f"CM_AUTH_{name.upper()}": value for name, value in changes.items()}
        for name, value in {**env, "CM_AUTH_BASE_URL": url, **changed}.items():
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, value)
        path = tmp_path / "report.json"
        path.unlink(missing_ok=True)
        monkeypatch.setattr("sys.stdin", io.StringIO(typed) if isinstance(typed, str) else typed)
        with httpx2.Client(follow_redirects=True) as browser:
            stdout = Person(
                person or (lambda url: log_in(browser, url)),
                is_fast=is_fast,
                is_terminal=is_terminal,
            )
            monkeypatch.setattr(Person, "encoding", encoding, raising=False)
            command = ["check", "--login", *(["--report", str(path)] if writes else []), *arguments]
            command += ["--no-browser"] if no_browser else []
            with redirect_stdout(stdout), pytest.raises(SystemExit) as ended:
                main(command, standalone_mode=False)
            for thread in stdout.threads:
                thread.join(10)
        report = json.loads(path.read_text()) if path.exists() else {}
        assert isinstance(ended.value.code, int)
        assert report.get("exit_status", ended.value.code) == ended.value.code
        return Run(ended.value.code, stdout.getvalue(), report)

    return check


@contextmanager
def simulator(provider: str = "cameramanager", **knobs: Any) -> Iterator[SimulatorServer]:
    with SimulatorServer(Simulator(replace(settings_for(provider), **knobs))) as server:
        yield server


def is_clean(server: SimulatorServer) -> bool:
    """True if no token is left."""
    return (server.simulator.access_tokens, server.simulator.refresh_tokens) == (0, 0)


# -- what it finds -------------------------------------------------------------------------


def test_a_server_that_does_what_is_expected_is_status_0(check: Any) -> None:
    with simulator() as server:
        run = check(server.url, "--yes")
        assert is_clean(server)
    assert run.status == 0, run.output
    assert run.topics("✓") == [
        "base_url",
        "clock",
        "API key",
        "state",
        "code exchange",
        "access token",
        "refresh token",
        "user",
        "lifetime",
        "refresh",
        "old token",
        "scope",
        "PKCE",
        "second login",
        "logout",
        "dead bearer",
        "error headers",
        "dead refresh",
        "error text",
        "revocation",
    ]
    assert not run.lines("!") + run.lines("✗") + run.lines("–")
    assert run.report["outcome"] == "complete"
    assert settings_like(run.report) == Settings()


def test_the_other_server_that_does_what_is_expected_is_status_0(check: Any) -> None:
    with simulator("eagleeye") as server:
        run = check(server.url, "--yes", provider="eagleeye")
        assert is_clean(server)
    assert run.status == 0, run.output
    assert not run.lines("!") + run.lines("✗") + run.lines("–")
    assert {"API host", "refresh", "spent token", "PKCE", "second login", "logout"} <= set(
        run.topics("✓")
    )
    assert "CameraManager" not in run.output
    assert (run.report["provider"], run.report["scope_asked"]) == ("eagleeye", "vms.all")
    assert (run.report["api_host"], run.report["refreshed_api_host"]) == ("believed", "believed")
    assert settings_like(run.report) == settings_for("eagleeye")


DOUBT = "cm_auth_middleware.cli.live_login._DOUBT"
GRACE = "cm_auth_middleware.cli.live_interruptions._GRACE"
KNOBS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "scope": ({"scope_required": False}, ["scope", "scope, code"]),
    "pkce": ({"pkce": True}, ["PKCE"]),
    "pkce, scope": (
        {"pkce": True, "scope_required": False},
        ["scope", "scope, code", "PKCE"],
    ),
    "rotation": ({"rotate_refresh_tokens": True}, ["refresh"]),
    "family": (
        {"rotate_refresh_tokens": True, "revoke_family_on_reuse": True},
        ["refresh", "spent token"],
    ),
    "phantom": ({"phantom_refresh_tokens": True}, ["refresh"]),
    "own tokens": ({"shared_access_token": False}, ["second login"]),
    "state": ({"echo_state": False}, ["state"]),
    "repeats": ({"repeat_tokens_in_errors": True}, ["error text"]),
    "lifetime": ({"access_token_lifetime": 600}, ["lifetime"]),
    "403": ({"dead_bearer_status": 403}, ["dead bearer"]),
    "gzip": ({"content_encoding": "gzip"}, ["compression"]),
    "deflate": ({"content_encoding": "deflate"}, ["compression"]),
    "at once": ({"fail_simultaneous_logins": True}, ["two at once"]),
}


@pytest.mark.parametrize("name", KNOBS)
def test_a_knob_is_reported_alone_and_can_be_replayed(
    check: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(DOUBT, 0.2)
    knobs, topics = KNOBS[name]
    with simulator(**knobs) as server:
        run = check(server.url, "--yes")
        assert is_clean(server)
    assert run.topics("!") + run.topics("✗") == topics, run.output
    assert run.status == 1
    found = settings_like(run.report)
    assert found.access_token_lifetime == pytest.approx(
        Settings(**knobs).access_token_lifetime, abs=2
    )
    assert replace(found, access_token_lifetime=43199) == replace(
        Settings(**knobs), access_token_lifetime=43199
    )


@pytest.mark.parametrize(
    ("knobs", "topics"),
    [
        ({"rotate_refresh_tokens": False}, {"refresh", "old token"}),
        ({"pkce": False}, {"PKCE"}),
        ({"scope_required": False}, set()),
        ({"access_token_lifetime": 600}, {"lifetime"}),
        ({"revoke_family_on_reuse": True}, {"spent token"}),
        ({"https_base_url": '"api.c001.eagleeyenetworks.com"'}, {"API host"}),
        ({"https_base_url": "null"}, {"API host"}),
    ],
    ids=str,
)
def test_what_differs_from_the_other_server_s_documentation_is_said(
    check: Any, knobs: dict[str, Any], topics: set[str]
) -> None:
    with simulator("eagleeye", **knobs) as server:
        run = check(server.url, "--yes", provider="eagleeye")
        assert is_clean(server)
    assert topics <= set(run.topics("!") + run.topics("✗")), run.output
    if "https_base_url" in knobs:
        assert "nobody can log in" in run.output
    else:
        assert topics == set(run.topics("!") + run.topics("✗")), run.output


def test_a_rate_limit_is_waited_for_and_reported(check: Any) -> None:
    sims: list[Simulator] = []

    def clock() -> float:
        """Return a time that goes on by a minute with each 429."""
        refused = [call for sim in sims for call in sim.requests if call.status == 429]
        return 1_800_000_000.0 + 61 * len(refused)

    sims.append(Simulator(Settings(rate_limit=6), clock=clock))
    with SimulatorServer(sims[0]) as server:
        run = check(server.url)
        assert is_clean(server)
    assert run.topics("!") == ["rate limit"], run.output
    assert run.report["outcome"] == "complete"
    assert replace(settings_like(run.report), access_token_lifetime=43199) == Settings(rate_limit=6)


def test_every_setting_that_a_login_shows_has_a_test() -> None:
    """A new knob has to be found out by the check, or to be named here."""
    tried = {knob for knobs, _ in KNOBS.values() for knob in knobs} | {"rate_limit"}
    unseen = {
        "any_key",
        "api_hosts",
        "code_lifetime",
        "hang_time",
        "hint",
        "https_base_url",
        "latency",
        "media_url",
        "provider",
        "redirect_uris",
        "refresh_token_lifetime",
        "scope",
        "snapshot_latency",
        "snapshot_limit",
        "token_latency",
    }
    assert set(Settings.__slots__) == tried | unseen


@pytest.mark.parametrize("path", sorted(REPORTS.glob("*.json")), ids=lambda path: path.stem)
def test_a_report_from_a_file_is_replayed(check: Any, path: Path) -> None:
    """What a simulator does that was made from a report is what the report says."""
    report = read_report(path)
    settings = settings_like(report)
    with SimulatorServer(Simulator(settings)) as server:
        run = check(server.url, *(["--yes"] if report["logins"] > 1 else []))
    again = settings_like(run.report)
    assert again.access_token_lifetime == pytest.approx(settings.access_token_lifetime, abs=2)
    again.access_token_lifetime = settings.access_token_lifetime  # it is told in whole seconds
    assert again == settings
    differing = levels(run.report) ^ levels(report)
    assert {topic for topic, _ in differing} == UNPLAYED.get(path.stem, set())
    assert differing or run.status == report["exit_status"]


# What a report says and no setting of the simulator does yet: with phantom refresh tokens, Spring's
# logout ends the phantom, and leaves the one that works.
UNPLAYED = {"spring-phantom": {"logout", "revocation"}}


def levels(report: dict[str, Any]) -> set[tuple[str, str]]:
    return {(finding["topic"], finding["is"]) for finding in report["findings"]}


def test_the_simulator_is_started_like_a_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "report.json"
    report.write_text(json.dumps({**BARE, "pkce_verified": True, "lifetime": 600}))
    command = [sys.executable, "-m", "cm_auth_middleware.testing", "--port", "0", "--like"]
    process = subprocess.Popen([*command, str(report)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        settings = httpx2.get(f"{url}/_control").json()["settings"]
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
    assert (settings["pkce"], settings["access_token_lifetime"]) == (True, 600)


CANNOT_BE = "this report has a value that cannot be"
BARE = {"schema": "cm-auth-live-check", "version": 1}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "this is no report of cm-auth check --login"),
        ("[]", "this is no report of cm-auth check --login"),
        ('{"schema": "x"}', "this is no report of cm-auth check --login"),
        (json.dumps({**BARE, "version": 2}), "this report is not of version 1"),
        ("[" * 100_000, "this is no report of cm-auth check --login"),
        (json.dumps({**BARE, "dead_bearer": "401"}), f"{CANNOT_BE}: dead_bearer"),
        (json.dumps({**BARE, "dead_bearer": [403]}), f"{CANNOT_BE}: dead_bearer"),
        (json.dumps({**BARE, "compression": ["gzip"]}), f"{CANNOT_BE}: compression"),
        (json.dumps({**BARE, "lifetime": "12 h"}), f"{CANNOT_BE}: lifetime"),
        (json.dumps({**BARE, "lifetime": True, "rate_limit": 10**400}), f"{CANNOT_BE}: lifetime, "),
        (json.dumps({**BARE, "pkce_verified": "no"}), f"{CANNOT_BE}: pkce_verified"),
        (None, "the report cannot be read: No such file or directory"),
    ],
)
def test_what_is_no_report_is_refused_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, says: str
) -> None:
    path = tmp_path / "report.json"
    if text is not None:
        path.write_text(text)
    assert simulate(["--like", str(path)]) == 1
    assert capsys.readouterr().err.startswith(f"error: {says}")


def test_of_each_server_that_the_package_knows_something_is_expected() -> None:
    assert live_expected._BY_PROVIDER.keys() == PROVIDERS.keys()
    assert expected_of("another") == expected_of("cameramanager") != expected_of("eagleeye")


def test_what_a_report_does_not_know_stays_at_its_default() -> None:
    assert settings_like(BARE) == Settings()
    assert settings_like({**BARE, "dead_bearer": "x", "compression": []}) == Settings()
    odd = {"lifetime": "x", "rate_limit": "x", "dead_bearer": {"status": 500}, "compression": "br"}
    assert settings_like({**BARE, **odd}) == Settings()
    other = {**BARE, "provider": "eagleeye"}
    assert settings_like(other) == settings_for("eagleeye")
    assert settings_like({**other, "refresh_gives": "kept"}).rotate_refresh_tokens is False
    assert settings_like({**BARE, "provider": "another"}) == Settings()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--content-encoding", "foo"],
        ["--content-encoding", "br"],
        ["--dead-bearer-status", "500"],
        ["--rate-limit", "-1"],
        ["--latency", "nan"],
        ["--token-latency", "-1"],
        ["--snapshot-limit", "many"],
    ],
)
def test_a_setting_that_the_simulator_cannot_do_is_refused(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        simulate(["--port", "0", *arguments])
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].split(": ")[1:3] == [
        "error",
        f"argument {arguments[0]}",
    ]


def test_there_are_reports_to_replay() -> None:
    assert len(list(REPORTS.glob("*.json"))) >= 5


# -- servers that are no CameraManager -----------------------------------------------------


class Odd:
    """A server with tokens of its own kind.

    Args:
        token: the members of its token answers.
        refreshes: answer to refreshes; else they are refused.
        logout: the status of a logout, which ends nothing.
        refusal: the error of a refused refresh.
        in_query: read the parameters of the token endpoint from the query only.
        rotates: give a new refresh token each time; the old ones still work.
    """

    def __init__(
        self,
        token: dict[str, Any],
        *,
        refreshes: bool = True,
        logout: int = 200,
        refusal: str = "invalid_grant",
        in_query: bool = False,
        rotates: bool = False,
    ) -> None:
        self.given, self.refreshes, self.logout_status = token, refreshes, logout
        self.refusal, self.in_query = refusal, in_query
        self.rotates, self.count = rotates, 0
        self.revoked = False
        self.user = {"userId": 7, "email": "e@example.com"}
        self.app = Starlette(
            routes=[
                Route("/oauth/authorize", self.authorize),
                Route("/oauth/token", self.token, methods=["POST"]),
                Route("/rest/v2.3/users/self", self.self),
                Route("/rest/v2.0/users/self/tokens/current", self.logout, methods=["DELETE"]),
                Route("/oauth/revoke", self.revoke, methods=["POST"]),
            ]
        )

    async def authorize(self, request: Request) -> Response:
        query = request.query_params
        return RedirectResponse(f"{query['redirect_uri']}?code=odd&state={query['state']}")

    async def token(self, request: Request) -> Response:
        body = (await request.body()).decode()
        form = parse_qs(request.url.query if self.in_query else body)
        if "refresh_token" in form and (self.revoked or not self.refreshes):
            return JSONResponse({"error": self.refusal}, 400)
        if form.get("code") == ["odd"] or "refresh_token" in form:
            self.count += 1
            new = {"refresh_token": f"token-{self.count}"} if self.rotates else {}
            return JSONResponse({**self.given, **new})
        error = "invalid_grant" if "code" in form else "invalid_request"
        return JSONResponse({"error": error}, 400)

    async def self(self, request: Request) -> Response:
        if "authorization" not in request.headers or self.revoked:
            return JSONResponse({"code": 403}, 403)
        return JSONResponse(self.user)

    async def revoke(self, request: Request) -> Response:
        form = parse_qs((await request.body()).decode())
        key = f"an-id:{quote('a/secret', safe='')}"
        assert request.headers["authorization"].split()[1] == b64encode(key.encode()).decode()
        self.revoked = form["token"] == [self.given["refresh_token"]]
        return Response(status_code=200)

    async def logout(self, _: Request) -> Response:
        return Response(status_code=self.logout_status)


OPAQUE = {"access_token": "Zm9vYmFy", "token_type": "Bearer", "expires_in": 43199}
FULL = {**OPAQUE, "refresh_token": "YmFyZm9v"}


@pytest.mark.parametrize(
    ("server", "marks"),
    [
        (Odd(OPAQUE), {"refresh token": "✗", "access token": "!", "base_url": "!"}),
        (Odd({**FULL, "token_type": "mac"}), {"access token": "✗"}),
        (Odd({**FULL, "access_token": "a b"}), {"access token": "✗"}),
        (Odd({**FULL, "expires_in": "soon"}), {"lifetime": "!"}),
        (Odd({**FULL, "expires_in": True}), {"lifetime": "!"}),
        (Odd({**FULL, "scope": "read"}), {"scope granted": "!"}),
        (Odd({**FULL, "scope": 7}), {"scope granted": "!"}),
        (Odd(FULL, refreshes=False), {"refresh": "✗", "logout": "✗"}),
        (Odd(FULL, refreshes=False, refusal="invalid_request"), {"dead refresh": "✗"}),
        (Odd({**FULL, "refresh_token": ""}), {"refresh token": "✗"}),
        (Odd(FULL, rotates=True), {"refresh": "!", "spent token": "!"}),
        (Odd(FULL, logout=405), {"logout": "✗", "revocation": "✗"}),
        (Odd(FULL), {"old token": "!", "logout": "✗", "revocation": "✗", "scope": "!"}),
    ],
    ids=[
        "no refresh token",
        "MAC",
        "a space",
        "no lifetime",
        "no number",
        "scope",
        "no scope",
        "no refresh",
        "no known refusal",
        "an empty refresh token",
        "old refresh tokens",
        "no logout",
        "no end",
    ],
)
def test_what_is_odd_is_said(check: Any, server: Odd, marks: dict[str, str]) -> None:
    with AppServer(server.app, lifespan="off") as served:
        run = check(served.url, "--yes")
    assert run.report["outcome"] == "complete"
    assert {topic: mark for mark in "✗!✓" for topic in run.topics(mark) if topic in marks} == marks


@pytest.mark.parametrize(
    ("user", "options", "says"),
    [
        ({"email": "e"}, {}, "lacks userId (for every login): nobody can log in"),
        ({"userId": 7}, {"allow_emails": "*@example.com"}, "lacks email (for allow_emails)"),
        ({"userId": 7}, {"allow_accounts": "7"}, "lacks accountId (for allow_accounts)"),
    ],
)
def test_a_user_without_what_the_options_need_is_said(
    check: Any, user: dict[str, Any], options: dict[str, str], says: str
) -> None:
    server = Odd(FULL)
    server.user = user
    with AppServer(server.app, lifespan="off") as served:
        run = check(served.url, **options)
    assert says in next(line for line in run.lines("✗") if "user " in line)


Judge = Callable[[dict[str, str]], bool]


def judged(sim: Simulator, is_refused: Judge, status: int = 400) -> Any:
    """The simulator, but for the token calls that are refused before it sees them."""
    return altered(sim, is_refused, JSONResponse({"error": "invalid_request"}, status), acts=False)


def altered(sim: Simulator, is_meant: Judge, answer: Any, *, acts: bool = True) -> Any:
    """The simulator, with another answer (an ASGI application) to some token calls.

    Args:
        acts: let the simulator do what it was asked for, and keep its own answer back.
    """

    async def swallow(_: Any) -> None:
        return

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["path"] != "/oauth/token":
            await sim(scope, receive, send)
            return
        request = Request(scope, receive)
        body = await request.body()

        def replayed() -> Any:
            left = [{"type": "http.request", "body": body}]

            async def again() -> Any:
                return left.pop() if left else await receive()

            return again

        form = {name: values[0] for name, values in parse_qs(body.decode()).items()}
        if not is_meant(form):
            await sim(scope, replayed(), send)
            return
        if acts:
            await sim(scope, replayed(), swallow)
        await answer(scope, replayed(), send)

    return app


class Nth:
    """True for the n-th call of a grant type, without the codes that cannot exist."""

    def __init__(self, grant_type: str, number: int) -> None:
        self.grant_type, self.left = grant_type, number

    def __call__(self, form: dict[str, str]) -> bool:
        if form.get("grant_type") == self.grant_type and form.get("code", "")[:5] != "check":
            self.left -= 1
            return self.left == 0
        return False


async def cut_off(scope: Any, receive: Any, send: Any) -> None:
    """Send less than was announced."""
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]}
    )
    await send({"type": "http.response.body", "body": b"{", "more_body": False})


class Trickle:
    """Sends a space at a time, for longer than anybody should wait.

    Attributes:
        begun, finished: the number of answers.
    """

    def __init__(self) -> None:
        self.begun = self.finished = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.begun += 1
        await StreamingResponse(self._spaces())(scope, receive, send)

    async def _spaces(self) -> Any:
        for _ in range(300):
            yield b" "
            await anyio.sleep(0.05)
        self.finished += 1


def lacks_scope(form: dict[str, str]) -> bool:
    return form.get("grant_type") == "authorization_code" and "scope" not in form


@pytest.mark.parametrize("pkce", [False, True])
def test_a_scope_that_only_the_exchange_needs_is_found_out(check: Any, pkce: bool) -> None:
    """With PKCE, the refused attempts spend the code, and the third login shows the scope only."""
    sim = Simulator(Settings(scope_required=False, pkce=pkce))
    with AppServer(judged(sim, lacks_scope), lifespan="off") as server:
        run = check(server.url, "--yes")
    assert (sim.access_tokens, sim.refresh_tokens) == (0, 0)
    assert run.topics("!") == ["scope"]
    assert run.report["scope_needed_by_exchange"] is True
    assert run.report["pkce_verified"] is (None if pkce else False)
    assert run.report["second_login_access"] == "same"


def test_a_refresh_that_works_once_is_said(check: Any) -> None:
    sim = Simulator(Settings(rotate_refresh_tokens=True))
    seen: list[str] = []

    def is_refused(form: dict[str, str]) -> bool:
        seen.extend(form.get("refresh_token", "").split())
        return len(seen) > 1 and "refresh_token" in form

    with AppServer(judged(sim, is_refused), lifespan="off") as server:
        run = check(server.url)
    assert "refresh" in run.topics("✗")
    assert sim.access_tokens == 0


def test_a_refresh_that_fails_leaves_it_open_if_all_is_revoked(check: Any) -> None:
    """The access token is dead, and the server fails when it is to be renewed."""
    sim = Simulator(Settings(access_token_lifetime=0))
    refuses = threading.Event()

    def asked() -> str:
        refuses.set()
        return "n\n"

    typed = io.StringIO()
    typed.readline = asked  # type: ignore[method-assign]
    app = judged(sim, lambda form: refuses.is_set() and "refresh_token" in form, 503)
    with AppServer(app, lifespan="off") as server:
        run = check(server.url, typed=typed)
    assert run.status == 2
    assert run.report["not_revoked"] == 1
    assert "it answered 503 to a refresh" in run.output


@pytest.mark.parametrize(
    ("knobs", "open_topics"),
    [
        ({"fail_simultaneous_logins": True}, ["PKCE", "second login"]),
        ({"pkce": True}, ["second login"]),
        ({"rotate_refresh_tokens": True, "revoke_family_on_reuse": True}, []),
    ],
)
def test_a_further_login_can_be_declined(
    check: Any, knobs: dict[str, Any], open_topics: list[str]
) -> None:
    with simulator(**knobs) as server:
        run = check(server.url, typed="y\nn\n")
        assert is_clean(server)
    assert run.topics("–") == open_topics
    assert run.report["outcome"] == "complete"
    assert run.report["logins"] == 2


def test_parameters_that_are_read_in_the_query_only_are_noticed(check: Any) -> None:
    with AppServer(Odd(FULL, in_query=True).app, lifespan="off") as served:
        run = check(served.url)
    assert run.status == 1
    assert "nobody can log in; the server reads parameters in the query only" in run.output


def test_a_huge_answer_breaks_the_check_off(check: Any) -> None:
    server = Odd(FULL)
    server.user = {"userId": 7, "email": "x" * 1_100_000}
    with AppServer(server.app, lifespan="off") as served:
        run = check(served.url)
    assert run.status == 2
    assert "the server's answer is too large" in run.lines("✗")[0]


def test_a_provider_of_ones_own_is_asked_in_its_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    provider = replace(
        CAMERAMANAGER, encodes_key=True, revokes_refresh_tokens=True, logout_path="/oauth/revoke"
    )
    server = Odd(FULL)
    with AppServer(server.app, lifespan="off") as served:
        config = CMAuthConfig(
            client_id="an-id",
            client_secret="a/secret",
            secret_key=SECRET_KEY,
            base_url=served.url,
            redirect_uri=f"http://127.0.0.1:{free_port()}/auth/callback",
            provider=provider,
        )
        with redirect_stdout(Person(accept)) as stdout:
            status = run(config, Choices(None, False, False, False, False))
    assert server.revoked
    assert status == 1
    assert "everything that this check obtained is revoked" in stdout.getvalue()


def test_a_login_with_a_token_that_the_account_had_already_is_noticed(check: Any) -> None:
    began, later = time.time(), [0.0]
    sim = Simulator(clock=lambda: began + later[0])
    uri = "http://localhost/auth/callback"
    with SimulatorServer(sim) as server:
        form = {
            "grant_type": "authorization_code",
            "code": sim.issue_code(ANNA, uri),
            "redirect_uri": uri,
            "scope": "write",
        }
        key = (sim.client_id, sim.client_secret)
        headers = {"Accept": "application/json"}
        httpx2.post(f"{server.url}/oauth/token", data=form, auth=key, headers=headers)
        later[0] = 3600.0
        run = check(server.url)
        assert is_clean(server)
    assert run.status == 0
    assert "the login got one that the account had already, with 39599 s (11 h) left" in run.output


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://rest.cameramanager.com", "CameraManager"),
        ("https://auth.eagleeyenetworks.com", "Eagle Eye"),
        ("http://[::1]:9400", "loopback"),
        ("https://cm.example", "another"),
    ],
)
def test_a_report_does_not_name_a_host(url: str, name: str) -> None:
    config = CMAuthConfig(client_id="x", client_secret="yyyy", secret_key=SECRET_KEY, base_url=url)
    assert new_report(config).server == name


def test_an_encoding_that_cannot_be_read_is_an_error() -> None:
    report = Report("cameramanager", "another", "write", "1", "2026-11-25")
    report.compression = "another"
    (found,) = findings(report, CAMERAMANAGER, {}, is_over=True)
    assert (found.level, found.topic) == (ERROR, "compression")


# -- secrets -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["repeats", "phantom", "family", "own tokens"])
def test_no_secret_is_printed_or_written(check: Any, tmp_path: Path, name: str) -> None:
    sim = Simulator(Settings(**KNOBS[name][0], **({} if name == "repeats" else LEAKY)))
    issued: set[str] = set()

    async def recording(scope: Any, receive: Any, send: Any) -> None:
        async def record(message: Any) -> None:
            for header, value in message.get("headers", ()):
                if header == b"location":
                    issued.update(parse_qs(urlsplit(value.decode()).query).get("code", ()))
            found = re.findall(rb'"(?:access|refresh)_token": ?"([^"]+)"', message.get("body", b""))
            issued.update(token.decode() for token in found)
            await send(message)

        await sim(scope, receive, record)

    with AppServer(recording, lifespan="off") as server:
        run = check(server.url, "--yes")
    calls = sim.token_calls("authorization_code")
    issued |= {verifier for call in calls if (verifier := call.param("code_verifier"))}
    issued -= {"0" * 43}  # of the codes that cannot exist
    assert len(issued) >= 8
    written = (tmp_path / "report.json").read_text()
    for secret in {*issued, "demo-key-secret", SECRET_KEY, ANNA, "Jansen"}:
        assert secret not in run.output
        assert secret not in written
    numbers = re.findall(r"\d+", run.output + written)  # a port may have those of an id in it
    assert not {"10003", "501"} & set(numbers)


LEAKY = {"repeat_tokens_in_errors": True}


def test_what_a_server_calls_its_things_is_not_trusted() -> None:
    assert names(["error", "aaaaaaaa-1111", "two words", "\x1b[2J", 7, "x" * 50], []) == [
        "aaaaaaaa-1111",
        "error",
        "…",
    ]
    assert names(["aaaaaaaa-1111"], {"aaaaaaaa-1111"}) == ["…"]
    assert names(["abc", "abcd"], {"abc"}) == ["abcd", "…"]  # too short to be found in words
    assert [known_error(error) for error in ("invalid_grant", "secret", None, 7)] == [
        "invalid_grant",
        "another",
        "",
        "another",
    ]
    assert [challenge(header) for header in ("", "bearer realm=x", "aaaaaaaa-1111")] == [
        "",
        "Bearer",
        "another",
    ]


@pytest.mark.parametrize(
    "name",
    [
        "3f2a77c1-9b0e-4d55-8a61-0c4de2b7f913",
        "X-3f2a77c1-9b0e-4d55-8a61-0c4de2b7f913",
        "x3F2A77C19B0E4D558A610C4DE2B7F913",
        "token_8a61_0c4de2b7f913",
        "of-0c4de2b7f913-10003",
        "code-AbCdEf",
        "anna_example_com",
    ],
)
def test_a_name_with_a_piece_of_a_secret_is_hidden(name: str) -> None:
    token = "3f2a77c1-9b0e-4d55-8a61-0c4de2b7f913:10003"
    assert names([name, "content-type", "userId"], {token, "AbCdEf", ANNA, ""}) == [
        "content-type",
        "userId",
        "…",
    ]


def test_a_server_that_makes_names_of_its_secrets_gets_none_into_the_report(check: Any) -> None:
    sim = Simulator()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        token = dict(scope.get("headers", ())).get(b"authorization", b"Bearer -")[7:]

        async def named(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-" + token[:36], b"1")]
            await send(message)

        await sim(scope, receive, named)

    with AppServer(app, lifespan="off") as server:
        run = check(server.url)
    assert "…" in run.report["dead_bearer"]["headers"]
    assert not re.search(r"[0-9a-f]{8}-[0-9a-f]{4}", run.output + json.dumps(run.report))


@pytest.mark.parametrize(
    ("token", "kind"),
    [
        ("aaaaaaaa-aaaa-4aaa-aaaa-aaaaaaaaaaaa", "uuid"),
        ("aaaaaaaa-aaaa-4aaa-aaaa-aaaaaaaaaaaa:10003", "uuid:number"),
        ("eyJhbGciOiJub25lIn0.e30.c2ln", "JWT"),
        ("Zm9vYmFy", "opaque"),
        ("two words", "unusable"),
        ("größe", "unusable"),
    ],
)
def test_a_token_has_a_shape(token: str, kind: str) -> None:
    assert (shape(token).kind, shape(token).length) == (kind, len(token))


# -- the login -----------------------------------------------------------------------------


def test_without_a_second_login_its_questions_stay_open(check: Any) -> None:
    with simulator() as server:
        run = check(server.url, typed="n\n")
        assert len(server.simulator.token_calls("authorization_code")) == 3
        assert is_clean(server)
    assert run.topics("–") == ["PKCE", "second login"]
    assert run.status == 0
    assert run.report["pkce_verified"] is None


@pytest.mark.parametrize("opens", [True, False])
def test_the_browser_is_opened(check: Any, monkeypatch: pytest.MonkeyPatch, opens: bool) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or opens)
    with simulator() as server:
        run = check(server.url, "--yes", no_browser=False)
    assert run.status == 0
    assert opened == _URL.findall(run.output)
    assert ("in the browser that opens" in run.output) is opens


def come_back(url: str, error: str) -> None:
    query = parse_qs(urlsplit(url).query)
    httpx2.get(f"{query['redirect_uri'][0]}?error={error}&state={query['state'][0]}")


def accept(url: str) -> None:
    with httpx2.Client(follow_redirects=True) as browser:
        log_in(browser, url)


def refuse(url: str) -> None:
    with httpx2.Client(follow_redirects=True) as browser:
        log_in(browser, url, decision="refuse")


def test_a_login_that_is_cancelled_revokes_nothing(check: Any) -> None:
    with simulator() as server:
        run = check(server.url, person=refuse)
        assert not server.simulator.calls("/rest/*", "DELETE")
    assert run.status == 1
    assert "cancelled at the server: nothing was obtained or revoked" in run.lines("✗")[0]
    assert run.report["outcome"] == "cancelled"


def test_a_second_login_that_is_cancelled_is_none(check: Any) -> None:
    people = iter([accept, lambda url: come_back(url, "access_denied")])
    with simulator() as server:
        run = check(server.url, "--yes", person=lambda url: next(people)(url))
        assert is_clean(server)
    assert run.status == 0
    assert run.topics("–") == ["PKCE", "second login"]
    assert "The login was cancelled" in run.output
    assert "second login  gave no tokens that can be compared" in run.output


def test_a_second_login_of_another_account_is_not_compared(check: Any) -> None:
    emails = iter([ANNA, BOB])

    def person(url: str) -> None:
        with httpx2.Client(follow_redirects=True) as browser:
            log_in(browser, url, next(emails))

    with simulator() as server:
        run = check(server.url, "--yes", person=person)
        assert is_clean(server)
    assert run.topics("–") == ["second login"]
    assert "was of another account" in run.lines("–")[0]
    assert run.status == 0


def test_a_second_login_whose_user_is_not_known_is_not_compared(check: Any) -> None:
    sim = Simulator()

    def spoil(form: dict[str, str]) -> bool:
        if second(form):
            sim.fail_api(500, path="*/users/self")
        return False

    second = Nth("authorization_code", 2)
    with AppServer(judged(sim, spoil), lifespan="off") as server:
        run = check(server.url, "--yes")
    assert (sim.access_tokens, sim.refresh_tokens) == (0, 0)
    assert "gave no tokens that can be compared" in run.lines("–")[0]


def test_a_login_that_the_server_refuses_is_status_2(check: Any) -> None:
    with simulator() as server:
        run = check(server.url, person=lambda url: come_back(url, "invalid_scope"))
    assert run.status == 2
    assert "the login was refused (invalid_scope)" in run.lines("✗")[0]


def test_the_listener_takes_one_callback_of_its_own_login_only(check: Any) -> None:
    statuses = []
    typed, is_done = io.StringIO(), threading.Event()
    typed.readline = lambda: str(is_done.wait(10))  # type: ignore[method-assign]

    def person(url: str) -> None:
        with httpx2.Client() as browser:
            page = log_in(browser, url)
            while "/auth/callback" not in page.headers["Location"]:
                page = log_in(browser, str(page.url.join(page.headers["Location"])))
            callback = page.headers["Location"]
            home = callback.partition("/auth/")[0]
            for path in (
                f"{home}/favicon.ico",
                f"{home}/auth/callback",
                f"{home}/auth/callback?code=AbCdEf&state=of-another",
                f"{callback}&code=AbCdEf",
                callback,
                callback,
            ):
                answer = httpx2.get(path)
                statuses.append(answer.status_code)
                assert answer.headers["Cache-Control"] == "no-store"
                assert answer.headers["Referrer-Policy"] == "no-referrer"
        is_done.set()

    with simulator() as server:
        run = check(server.url, person=person, typed=typed)
        assert is_clean(server)
    assert statuses == [404, 400, 400, 400, 200, 400]
    assert run.status == 0, run.output


@pytest.mark.parametrize("query", ["error=access_denied", "code=AbCdEf"])
def test_a_callback_without_state_is_not_believed_if_the_right_one_follows(
    check: Any, query: str
) -> None:
    def person(url: str) -> None:
        callback = parse_qs(urlsplit(url).query)["redirect_uri"][0]
        for _ in range(2):
            httpx2.get(f"{callback}?{query}")
        accept(url)

    with simulator() as server:
        run = check(server.url, "--yes", person=person)
        assert is_clean(server)
    assert run.status == 0, run.output
    assert run.report["logins"] == 2


def test_a_server_that_does_not_echo_state_is_believed_after_a_while(
    check: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DOUBT, 0.2)
    with simulator(echo_state=False) as server:
        run = check(server.url)
        assert is_clean(server)
    assert run.topics("✗") == ["state"]


def test_to_paste_the_address_a_private_window_is_advised(
    check: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In another window, an application with a session goes on, and the address is gone."""
    monkeypatch.setattr("webbrowser.open", lambda _: pytest.fail("this is no private window"))
    with simulator() as server:
        run = check(server.url, "--paste", typed="\n", person=print, no_browser=False)
    before, _, after = run.output.partition("\n  http")
    assert "Open this address in a private window" in before
    assert "If\nthe address has no code=, stop the application" in after


@pytest.mark.parametrize("arguments", [(), ("--paste",)])
def test_elsewhere_the_address_is_pasted(check: Any, arguments: tuple[str, ...]) -> None:
    uri = "http://localhost:1/auth/callback" if arguments else "https://a.example/auth/callback"
    reading, writing = os.pipe()

    def person(url: str) -> None:
        with httpx2.Client() as browser:
            page = log_in(browser, url)
            while uri not in page.headers["Location"]:
                page = log_in(browser, str(page.url.join(page.headers["Location"])))
        callback = page.headers["Location"]
        pasted = ["https://b.example/?code=AbCdEf", f"{callback}x", callback]
        os.write(writing, "".join(f"{line}\n" for line in pasted).encode())
        os.close(writing)

    with simulator() as server, os.fdopen(reading) as lines:
        run = check(server.url, *arguments, person=person, typed=lines, redirect_uri=uri)
        assert is_clean(server)
    assert run.report["login_by"] == "paste"
    assert "This is not the redirect_uri with what the server adds to it." in run.output
    assert "This address is of another login." in run.output


def test_an_address_that_is_wrong_three_times_cancels(check: Any) -> None:
    uri = "https://a.example/auth/callback"
    typed = f"{uri}?code=a&code=b\n{uri}?code={'x' * 9000}\n{uri}\n"
    with simulator() as server:
        run = check(server.url, typed=typed, person=print, redirect_uri=uri)
    assert run.status == 1
    assert "no address was pasted" in run.output


def test_nobody_is_waited_for_without_end(check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cm_auth_middleware.cli.live_login._PATIENCE", 0.1)
    with simulator() as server:
        run = check(server.url, person=print)
    assert run.status == 1
    assert "nobody logged in for 0 minutes: nothing was obtained or revoked" in run.output


def test_a_machine_without_ipv6_listens(check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cm_auth_middleware.cli.live_login._family", lambda _: socket.AF_INET)
    with simulator() as server:
        assert check(server.url).status == 0


def test_a_browser_that_is_back_at_once_is_heard(check: Any) -> None:
    with simulator() as server:
        run = check(server.url, "--yes", is_fast=True)
    assert run.status == 0
    assert run.report["logins"] == 2


def test_an_empty_line_cancels(check: Any) -> None:
    with simulator() as server:
        run = check(
            server.url, typed="\n", person=print, redirect_uri="https://a.example/auth/callback"
        )
    assert run.status == 1
    assert "no address was pasted: nothing was obtained or revoked" in run.output


# -- what goes wrong -----------------------------------------------------------------------


def test_a_port_in_use_is_one_sentence(check: Any) -> None:
    with simulator() as server, socket.socket() as application:
        application.bind(("127.0.0.1", 0))
        application.listen()
        port = application.getsockname()[1]
        run = check(server.url, redirect_uri=f"http://localhost:{port}/auth/callback")
        assert not server.simulator.requests
    assert run.status == 2
    assert run.output.startswith(f"✗ redirect_uri  port {port} of redirect_uri is in use: stop the")
    assert run.output.count("\n") == 1


def test_a_port_that_may_not_be_used_is_one_sentence(
    check: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bind(self: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("socketserver.TCPServer.server_bind", bind)
    with simulator() as server:
        run = check(server.url, redirect_uri="http://127.0.0.1/auth/callback")
    assert run.status == 2
    assert "port 80 cannot be listened on (Permission denied); with --paste you" in run.output


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"base_url": "http://127.0.0.1:9"}, "base_url      the connection was refused"),
        ({"client_secret": "wrong"}, "client_id     the API key is refused ("),
        ({"redirect_uri": None}, "redirect_uri  is not set: set CM_AUTH_REDIRECT_URI"),
        ({"timeout": "soon"}, "options       timeout is a number"),
    ],
)
def test_what_cannot_run_is_status_2(check: Any, changes: dict[str, Any], says: str) -> None:
    with simulator() as server:
        run = check(server.url, **changes)
        assert not server.simulator.calls("/oauth/authorize")
    assert run.status == 2
    assert says in run.output
    assert not run.report


def test_a_redirect_uri_that_is_not_registered_is_status_2(check: Any) -> None:
    with simulator(redirect_uris=["https://a.example/auth/callback"]) as server:
        run = check(server.url)
    assert run.status == 2
    assert "let exactly this redirect_uri be registered" in run.lines("✗")[0]


def test_a_server_of_another_provider_is_status_2(check: Any) -> None:
    with simulator() as server:
        run = check(server.url, provider="eagleeye")
    assert run.status == 2
    [line] = run.lines("✗")
    assert "the login page answers 404" in line
    assert "this redirect_uri be registered with the API key, and base_url and provider be" in line


def test_another_server_is_status_2(check: Any) -> None:
    with AppServer(Starlette(), lifespan="off") as server:
        run = check(server.url)
    assert run.status == 2
    assert "the server answered 404 where CameraManager says 401" in run.lines("✗")[0]


def test_a_report_that_cannot_be_written_is_said_before_the_login(
    check: Any, tmp_path: Path
) -> None:
    with simulator() as server:
        run = check(server.url, "--report", str(tmp_path / "none" / "x.json"))
        assert not server.simulator.requests
    assert run.status == 2
    assert "--report      cannot be written" in run.output


@pytest.mark.parametrize(
    "arguments",
    [["--login", "--offline"], ["--yes"], ["--paste"], ["--no-browser"], ["--report", "x.json"]],
)
def test_options_that_do_not_go_together_are_refused(arguments: list[str]) -> None:
    from click.testing import CliRunner

    result = CliRunner().invoke(main, ["check", *arguments])
    assert result.exit_code == 2
    assert re.search(r"exclude each other|need --login", result.output)


def test_a_code_that_is_refused_is_status_1(check: Any) -> None:
    def person(url: str) -> None:
        server.simulator.fail_token({"error": "invalid_grant"})
        accept(url)

    with simulator() as server:
        run = check(server.url, person=person)
    assert run.status == 1
    assert run.topics("✗") == ["code exchange"]
    assert "is refused (400, invalid_grant): nobody can log in" in run.output


@pytest.mark.parametrize("where", ["token", "api"])
def test_a_server_that_fails_in_the_middle_leaves_no_token(check: Any, where: str) -> None:
    def person(url: str) -> None:
        if where == "api":
            server.simulator.fail_api("drop", path="*/users/self")
        accept(url)

    def asked() -> str:
        server.simulator.fail_token("drop")
        return "y\n"

    typed = io.StringIO()
    typed.readline = asked  # type: ignore[method-assign]
    with simulator() as server:
        run = check(server.url, person=person, typed=typed)
        assert is_clean(server)
    assert run.status == 2
    assert "the check breaks off here: " in run.lines("✗")[0]
    assert run.report["outcome"] == "broken off"


def test_tokens_that_cannot_be_revoked_are_reported(check: Any) -> None:
    with simulator() as server:
        server.simulator.fail_api(500, 9, path="*/current")
        run = check(server.url)
        assert not is_clean(server)
    assert run.status == 1
    assert run.topics("✗") == ["logout", "revocation"]
    assert run.report["not_revoked"] == 1


def test_an_access_token_that_is_dead_at_once_ends_nothing_early(check: Any) -> None:
    with simulator(access_token_lifetime=0) as server:
        run = check(server.url)
    assert run.status == 1
    assert run.topics("✗") == ["user", "logout", "revocation"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("when", ["asked", "tokens"])
def test_an_interruption_leaves_no_token(env: Any, when: str, number: int, tmp_path: Path) -> None:
    """In the middle of the token call, too, whose answer is waited for."""
    with simulator() as server:
        command = [sys.executable, "-m", "cm_auth_middleware.cli", "check", "--login"]
        process = subprocess.Popen(
            [*command, "--no-browser"],
            env={**os.environ, **env, "CM_AUTH_BASE_URL": server.url},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        output = ""
        while not (found := _URL.search(output)):
            output += process.stdout.readline()
        if when == "tokens":
            server.simulator.settings.token_latency = 0.5
        accept(found[1])
        if when == "tokens":
            exchanges = 3  # two of them came before the login
            while len(server.simulator.token_calls("authorization_code")) < exchanges:
                time.sleep(0.01)
        else:
            while "second time" not in output:
                output += process.stdout.read(1)
        process.send_signal(number)
        output += process.communicate(timeout=20)[0]
        assert process.returncode == 1
        assert server.simulator.token_calls("authorization_code")[-1].status == 200
        assert is_clean(server)
    assert "Interrupted. Revoking what was obtained." in output
    assert "everything that this check obtained is revoked" in output
    assert "Traceback" not in output


def test_an_answer_that_never_ends_is_not_waited_for(check: Any) -> None:
    trickle, sim = Trickle(), Simulator()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        is_user = scope["type"] == "http" and scope["path"].endswith("/users/self")
        answers = trickle if is_user and sim.token_calls("authorization_code")[2:] else sim
        await answers(scope, receive, send)

    with AppServer(app, lifespan="off") as server:
        run = check(server.url, timeout="0.5")
        assert (trickle.begun, trickle.finished) == (1, 0)
        assert (sim.access_tokens, sim.refresh_tokens) == (0, 0)
    assert run.status == 2
    assert "the check breaks off here: the server did not answer in time" in run.output
    assert run.report["not_revoked"] == 0


@pytest.mark.parametrize("times", [1, 2])
def test_an_interruption_ends_an_answer_that_never_ends(
    check: Any, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """A second one is not even given the time that the first one leaves."""
    monkeypatch.setattr(GRACE, 0.2 if times == 1 else 60.0)
    trickle = Trickle()

    def person(url: str) -> None:
        accept(url)
        for _ in range(times):
            while not trickle.begun:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)  # or two signals are one

    app = altered(Simulator(), Nth("authorization_code", 1), trickle)
    with AppServer(app, lifespan="off") as server:
        run = check(server.url, person=person, timeout="60")
        assert trickle.finished == 0
    assert run.status == 1
    assert run.report["outcome"] == "cancelled"
    assert "Interrupted in the middle of a login." in run.output
    assert "tokens may live on" in run.lines("✗")[0]
    assert run.report["not_revoked"] == run.report["perhaps_not_revoked"] == 1


def test_an_interruption_ends_the_wait_for_a_rate_limit(
    check: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_LONGEST_WAIT", "_MOST_PATIENCE"):
        monkeypatch.setattr(f"cm_auth_middleware.cli.live_server.{name}", 600.0)
    sim, refused, begun = Simulator(), threading.Event(), time.monotonic()

    async def refuse(scope: Any, receive: Any, send: Any) -> None:
        answer = JSONResponse({}, 429, headers={"Retry-After": "600"})
        await answer(scope, receive, send)
        refused.set()

    def person(url: str) -> None:
        accept(url)
        refused.wait(10)
        os.kill(os.getpid(), signal.SIGINT)

    app = altered(sim, Nth("authorization_code", 1), refuse, acts=False)
    with AppServer(app, lifespan="off") as server:
        run = check(server.url, person=person)
    assert (sim.access_tokens, sim.refresh_tokens) == (0, 0)
    assert time.monotonic() - begun < 60  # a tenth of what was to be waited
    assert run.status == 1
    assert "Interrupted before a login: nothing was obtained" in run.output


def test_an_interruption_after_another_does_not_end_the_command(
    check: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes while the command says that it was interrupted."""
    write = Person.write

    def write_and_interrupt(self: Person, text: str) -> int:
        if "Interrupted. Revoking" in text:
            signal.raise_signal(signal.SIGINT)
        return write(self, text)

    monkeypatch.setattr(Person, "write", write_and_interrupt)
    typed = io.StringIO()
    typed.readline = lambda: signal.raise_signal(signal.SIGINT)  # type: ignore[method-assign]
    with simulator() as server:
        run = check(server.url, typed=typed)
        assert is_clean(server)
    assert run.status == 1
    assert "everything that this check obtained is revoked" in run.output
    assert run.report["outcome"] == "cancelled"


def test_a_further_interruption_does_not_end_the_revocation(check: Any) -> None:
    """It comes during a DELETE that is refused; a refresh and a DELETE have to follow."""
    sim, deletes = Simulator(), []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["method"] == "DELETE":
            deletes.append(scope["path"])
            if len(deletes) == 1:
                os.kill(os.getpid(), signal.SIGINT)
                await JSONResponse({"error": "invalid_token"}, 401)(scope, receive, send)
                return
        await sim(scope, receive, send)

    typed = io.StringIO()
    typed.readline = lambda: signal.raise_signal(signal.SIGINT)  # type: ignore[method-assign]
    with AppServer(app, lifespan="off") as server:
        run = check(server.url, typed=typed)
    assert (sim.access_tokens, sim.refresh_tokens) == (0, 0)
    assert len(deletes) == 2
    assert run.status == 1
    assert "everything that this check obtained is revoked" in run.output


def test_an_interruption_of_the_last_revocation_is_no_failure(check: Any) -> None:
    """It comes too late for anything but the end."""
    sim = Simulator()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["method"] == "DELETE":
            os.kill(os.getpid(), signal.SIGINT)
        await sim(scope, receive, send)

    def person(url: str) -> None:
        sim.fail_api("drop", path="*/users/self")
        accept(url)

    with AppServer(app, lifespan="off") as server:
        run = check(server.url, person=person)
    assert (sim.access_tokens, sim.refresh_tokens) == (0, 0)
    assert run.status == 2
    assert "everything that this check obtained is revoked" in run.output


# -- answers that are lost -----------------------------------------------------------------

SQL = {"error": "server_error", "error_description": "SQL [insert into oauth_access_token]"}
LOST = {
    "cut off": cut_off,
    "500": JSONResponse(SQL, 500),
    "no JSON": HTMLResponse("<h1>Welcome</h1>"),
    "br": Response("{}", headers={"Content-Encoding": "br"}),
}


@pytest.mark.parametrize("how", LOST)
def test_tokens_of_a_login_whose_answer_is_lost_may_live_on(check: Any, how: str) -> None:
    sim = Simulator()
    app = altered(sim, Nth("authorization_code", 1), LOST[how])
    with AppServer(app, lifespan="off") as server:
        run = check(server.url)
    assert (sim.access_tokens, sim.refresh_tokens) == (1, 1)
    assert run.status == (2 if how == "cut off" else 1)
    said = " ".join(run.lines("✗"))
    assert "tokens may live on" in said
    assert "about 43199 s (12 h) by the guide, a refresh token until its user logs out" in said
    assert run.report["not_revoked"] == run.report["perhaps_not_revoked"] == 1
    assert "everything that this check obtained" not in run.output
    assert "is refused" not in run.output
    assert not run.lines("–")
    says = {
        "500": "fails (500, server_error): nobody can log in",
        "no JSON": "is answered 200, without an access token that can be read: nobody can log in",
        "br": "is answered 200, without an access token that can be read: nobody can log in",
    }
    assert says.get(how, "") in run.output


@pytest.mark.parametrize("how", LOST)
def test_tokens_of_a_refresh_whose_answer_is_lost_may_live_on(check: Any, how: str) -> None:
    """With rotation, neither the old refresh token nor the old access token can end them."""
    sim = Simulator(Settings(rotate_refresh_tokens=True))
    app = altered(sim, Nth("refresh_token", 1), LOST[how])
    with AppServer(app, lifespan="off") as server:
        run = check(server.url)
    assert (sim.access_tokens, sim.refresh_tokens) == (1, 1)
    said = " ".join(run.lines("✗"))
    assert "tokens may live on" in said
    assert re.search(r"about 4319\d s \(12 h\), a refresh token until its user logs out", said)
    assert run.report["not_revoked"] == run.report["perhaps_not_revoked"] == 1
    assert run.report["refresh_gives"] == ("" if how == "cut off" else "failed")
    assert run.report["dead_refresh_token"] is None or how != "cut off"


@pytest.mark.parametrize("number", range(1, 9))
def test_each_refresh_that_fails_is_counted(check: Any, number: int) -> None:
    sim = Simulator(Settings(rotate_refresh_tokens=True))
    nth = Nth("refresh_token", number)
    with AppServer(altered(sim, nth, LOST["500"]), lifespan="off") as server:
        run = check(server.url, "--yes")
    if nth.left > 0:  # there were not as many
        assert (run.report["not_revoked"], sim.access_tokens) == (0, 0)
        return
    assert run.report["not_revoked"] == run.report["perhaps_not_revoked"] == 1, run.output
    assert "tokens may live on" in run.output
    assert not sim.access_tokens or number != 7


@pytest.mark.parametrize("number", range(2, 6))
def test_each_further_login_that_is_lost_is_counted(check: Any, number: int) -> None:
    sim = Simulator(Settings(pkce=True, scope_required=False, shared_access_token=False))
    app = altered(sim, Nth("authorization_code", number), LOST["no JSON"])
    with AppServer(app, lifespan="off") as server:
        run = check(server.url, "--yes")
    assert run.report["not_revoked"] == run.report["perhaps_not_revoked"] == 1, run.output
    assert "gave no tokens that can be compared" in run.output
    assert run.report["outcome"] == "complete"


def test_a_request_that_was_not_sent_gave_nothing(check: Any) -> None:
    """The server is gone when the code is to be exchanged."""
    sim = Simulator()
    server = AppServer(sim, lifespan="off")

    def person(url: str) -> None:
        query = parse_qs(urlsplit(url).query)
        server.__exit__(None, None, None)
        httpx2.get(f"{query['redirect_uri'][0]}?code=AbCdEf&state={query['state'][0]}")

    with server:
        run = check(server.url, person=person)
    assert run.status == 2
    assert "the connection was refused" in run.output
    assert run.report["not_revoked"] == 0


def test_a_refusal_that_says_no_end_leaves_it_open_if_all_is_revoked(check: Any) -> None:
    sim = Simulator(Settings(access_token_lifetime=0))
    app = judged(sim, lambda form: "refresh_token" in form)
    with AppServer(app, lifespan="off") as server:
        run = check(server.url)
    assert sim.refresh_tokens == 1
    assert run.report["not_revoked"] == 1
    assert "revocation" in run.topics("✗")


@pytest.mark.parametrize("encoding", ["x-gzip", "GZIP", "deflate"])
def test_an_encoding_that_the_middleware_reads_is_read(check: Any, encoding: str) -> None:
    sim = Simulator(Settings(content_encoding="deflate" if encoding == "deflate" else "gzip"))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def renamed(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    (name, encoding.encode() if name.lower() == b"content-encoding" else value)
                    for name, value in message["headers"]
                ]
            await send(message)

        await sim(scope, receive, renamed)

    with AppServer(app, lifespan="off") as server:
        run = check(server.url)
    assert (sim.access_tokens, sim.refresh_tokens) == (0, 0)
    assert run.topics("!") == ["compression"], run.output
    assert run.report["compression"] == encoding.lower().removeprefix("x-")
    assert not run.lines("✗")


def test_an_interruption_before_the_login_revokes_nothing(check: Any) -> None:
    with simulator() as server:
        run = check(server.url, person=lambda _: os.kill(os.getpid(), signal.SIGINT))
        assert not server.simulator.calls("/rest/*", "DELETE")
    assert run.status == 1
    assert "Interrupted before a login: nothing was obtained" in run.output


def test_an_interruption_before_anything_is_one_word(check: Any) -> None:
    async def interrupting(scope: Any, receive: Any, send: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        await Simulator()(scope, receive, send)

    with AppServer(interrupting, lifespan="off") as server:
        run = check(server.url)
    assert (run.status, run.report) == (1, {})
    assert run.output.endswith("\nInterrupted.\n")


def test_an_interruption_at_a_question_revokes(check: Any) -> None:
    typed = io.StringIO()
    typed.readline = lambda: signal.raise_signal(signal.SIGINT)  # type: ignore[method-assign]
    with simulator() as server:
        run = check(server.url, typed=typed)
        assert is_clean(server)
    assert run.status == 1
    assert run.report["outcome"] == "cancelled"
    assert "everything that this check obtained is revoked" in run.output


def test_a_rate_limit_without_end_breaks_the_check_off(
    check: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cm_auth_middleware.cli.live_server._MOST_PATIENCE", 0.5)
    with simulator(rate_limit=5) as server:
        run = check(server.url)
    assert run.status == 2
    assert "it answered 429 for too long" in run.lines("✗")[0]
    assert run.report["not_revoked"] == 1


# -- how it is said ------------------------------------------------------------------------


def test_quiet_says_what_differs_only(check: Any) -> None:
    with simulator(pkce=True) as server:
        run = check(server.url, "--yes", "--quiet")
    lines = [line for line in run.output.splitlines() if line[:2] in ("✓ ", "! ", "✗ ", "– ")]
    assert [line[:6] for line in lines] == ["! PKCE"]
    assert len(_URL.findall(run.output)) == 3


def test_a_line_fits_into_the_terminal(check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with simulator(pkce=True) as server:
        run = check(server.url, "--yes", is_terminal=True, writes=False)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", run.output)
    assert [line for line in plain.splitlines() if line[:1] in "✓!✗–" and len(line) > 80] == []
    assert "\n                " in plain
    assert "With --report FILE.json the result is written" in plain


def test_a_terminal_without_the_marks_gets_words(check: Any) -> None:
    with simulator(pkce=True) as server:
        run = check(server.url, "--yes", encoding="latin-1")
    assert "ok state " in run.output
    assert "\n! PKCE " in run.output
    assert "✓" not in run.output


@pytest.mark.parametrize(
    ("ahead", "level", "says"),
    [
        (3, OK, "agrees with the server's"),
        (120, WARNING, "of this machine is 120 seconds behind the server's: synchronise it"),
        (-4000, ERROR, "of this machine is 4000 seconds ahead of the server's"),
        (None, WARNING, "does not say what time it is"),
    ],
)
def test_the_clock_is_compared(ahead: int | None, level: int, says: str) -> None:
    report = Report("cameramanager", "another", "write", "1", "2026-11-25")
    report.status_without_bearer, report.clock_skew = 401, ahead
    found = list(findings(report, CAMERAMANAGER, {}, is_over=False))
    (clock,) = [finding for finding in found if finding.topic == "clock"]
    assert clock.level == level
    assert says in clock.text


@pytest.mark.parametrize(("date", "skew"), [(120, 120), (-4000, -4000), (None, None)])
def test_the_clock_is_read_from_a_header(date: int | None, skew: int | None) -> None:
    told = "yesterday" if date is None else formatdate(time.time() + date, usegmt=True)
    found = clock_skew(told)
    assert found == (None if skew is None else pytest.approx(skew, abs=2))
