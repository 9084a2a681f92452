"""What happens to a request: the one implementation behind the ASGI and the WSGI shell."""

from __future__ import annotations

import json
import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

from .config import CMAuthConfig, seconds
from .cookies import LOGIN_LIFETIME, LoginCookie, PendingLogin, Ticket, TicketCookie
from .errors import CMAuthError, OAuthError, OperatorError, SessionExpiredError, UnavailableError
from .pages import HEADERS as PAGE_HEADERS
from .pages import page
from .paths import ExemptPaths, safe_target
from .session import Record, Session

log = logging.getLogger(__package__)

Headers = list[tuple[str, str]]

_TOUCH = 60.0  # seconds between two writes of "last seen"
_MOST_LOGINS = 12  # pending logins that one browser may have
_MOST_LOGIN_BYTES = 6_000  # of their cookies together: servers refuse headers beyond 8 kB
_MOST_CANDIDATES = 4  # session cookies of our name that are looked at
_JUST = 60  # seconds after a login in which a missing session means that cookies do not stick
_USED_STATES = 4096  # login attempts that a process remembers as used
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})


@dataclass(frozen=True, slots=True)
class Request:
    """A request as the flow sees it; each shell makes one.

    `path` is what the framework routes, without the `root_path` of the mount.
    """

    method: str
    scheme: str
    host: str
    root_path: str
    path: str
    query: str
    header: Callable[[str], str | None]
    cookies: Sequence[tuple[str, str]]

    @property
    def url(self) -> str:
        """The path and query that a browser would come back to."""
        path = quote(self.root_path + self.path, safe="/:@!$&'()*+,;=~")
        return f"{path}?{self.query}" if self.query else path


@dataclass(frozen=True, slots=True)
class Answer:
    """A response that the flow gives instead of the application's."""

    status: int
    headers: Headers
    body: bytes = b""


@dataclass(slots=True)
class Access:
    """Leave to pass on to the application, and what to add to its response."""

    session: Session | None
    headers: Headers = field(default_factory=list)


class Flow:
    """Decides what happens to each request. Knows neither ASGI nor WSGI."""

    def __init__(self, config: CMAuthConfig, services: Any) -> None:
        self._config = config
        self._ports = services.ports
        self._vault = services.vault
        self._keeper = services.keeper
        self._server = services.server
        self._exempt = ExemptPaths(config.exempt)
        self._ticket = TicketCookie(tuple(config.secret_key))
        self._hosts = frozenset(host.lower() for host in config.allowed_hosts)
        self._used: OrderedDict[str, None] = OrderedDict()
        self._routes = {
            f"{config.prefix}/login": self._login,
            f"{config.prefix}/callback": self._callback,
            f"{config.prefix}/logout": self._logout,
            f"{config.prefix}/session": self._session_info,
        }
        self._login_cookies = {
            name: LoginCookie(tuple(config.secret_key), name) for name in self._names()
        }

    # -- every request ---------------------------------------------------------------------

    async def handle(self, request: Request, *, websocket: bool = False) -> Answer | Access:
        """Answer the request, or let it through with its session."""
        try:
            route = None if websocket else self._routes.get(request.path)
            if route is not None:
                return await route(request)
            if request.path in self._exempt:
                return await self._pass_exempt(request)
            return await self._protect(request, websocket)
        except UnavailableError as error:
            return self.unavailable(request, error)

    async def _pass_exempt(self, request: Request) -> Access:
        try:
            session, headers = await self._find(request)
        except UnavailableError:
            return Access(None)
        return Access(session, headers)

    async def _protect(self, request: Request, websocket: bool) -> Answer | Access:
        session, headers = await self._find(request)
        if session is None:
            return self.unauthenticated(request)
        if self._config.cross_site_check and self._is_cross_site(request, websocket):
            return self._problem(403, "Cross-site request refused", headers=[])
        try:
            await self.freshen(session)
        except SessionExpiredError:
            return self.unauthenticated(request)
        return Access(session, headers)

    async def _find(self, request: Request) -> tuple[Session | None, Headers]:
        """The session that the request's cookies open, and a cookie to set, if any."""
        name = self._cookie_name(request)
        values = [value for key, value in request.cookies if key == name]
        for value in values[:_MOST_CANDIDATES]:
            loaded = self._ticket.load(value.strip('"'))
            if loaded is None:
                continue
            ticket, old_key = loaded
            session = await self._vault.read(ticket.store_key, ticket.half_key)
            if session is None:
                continue
            now = self._ports.clock()
            if now - session.record.last_seen_at >= _TOUCH:
                await self._vault.update(session, partial(Record.seen, now=now))
            return session, [self._session_cookie(request, ticket, session)] if old_key else []
        return None, []

    async def freshen(self, session: Session) -> None:
        """Renew the access token if it is due: beside the request while the old one lives."""
        tokens, now = session.record.tokens, self._ports.clock()
        if now < tokens.refresh_at:
            return
        if now < tokens.expires_at:
            self._keeper.refresh_soon(session)
        else:
            await self._keeper.refresh(session, None)

    async def is_alive(self, session: Session) -> bool:
        """Whether a session that a long-lived connection holds is still there."""
        return await self._vault.read(session.key, session.seal_key) is not None

    async def save(self, session: Session) -> None:
        """Write back what a handler changed in ``session.data``; nothing if nothing changed."""
        changes = session.changes()
        if changes:
            await self._vault.update(session, lambda record: record.with_changes(changes))
            session.saved()

    # -- answers ---------------------------------------------------------------------------

    def unauthenticated(self, request: Request) -> Answer:
        """The answer to a caller without a session: a login for a browser, else 401."""
        if self._is_navigation(request):
            if self._just_logged_in(request):
                return self._error_page(
                    request,
                    400,
                    "Your login did not stick",
                    "You logged in a moment ago, but your browser did not bring the session back. "
                    "Cookies may be blocked for this site, or another application on this host "
                    "uses the same cookie name.",
                    headers=[self._clear_cookie(request, self._marker(request))],
                )
            return self._start_login(request, request.url if request.method == "GET" else None)
        login = f"{request.root_path}{self._config.prefix}/login"
        headers = [("HX-Redirect", login)] if request.header("hx-request") else []
        return self._problem(
            401, "Login required", headers=headers, login_url=login, detail="Log in first."
        )

    def unavailable(self, request: Request, error: UnavailableError) -> Answer:
        """The answer while CameraManager or the store cannot be asked. Nobody is logged out."""
        log.warning("unavailable reason=%s", error)
        retry = [("Retry-After", str(max(1, round(error.retry_after))))]
        return self._failure(
            request,
            503,
            "CameraManager cannot be reached",
            "You are still logged in. Please try again in a moment.",
            headers=retry,
        )

    # -- login -----------------------------------------------------------------------------

    async def _login(self, request: Request) -> Answer:
        if request.method not in ("GET", "HEAD"):
            return self._problem(405, "Method not allowed", headers=[("Allow", "GET, HEAD")])
        target = dict(_query(request)).get("next")
        return self._start_login(request, target)

    def _start_login(self, request: Request, target: str | None) -> Answer:
        redirect_uri = self._redirect_uri(request)
        if redirect_uri is None:
            return self._failure(
                request,
                400,
                "This host name is not configured",
                "Add it to allowed_hosts, or give redirect_uri.",
            )
        safe = safe_target(target, request.root_path)
        if urlsplit(safe).path.startswith(f"{request.root_path}{self._config.prefix}/"):
            safe = f"{request.root_path}/"  # a login never ends at a login
        cookie = self._login_cookie(request)
        login, value = cookie.start(redirect_uri, safe, self._ports.clock())
        location = self._server.authorization_url(
            redirect_uri, login.state, cookie.code_verifier(login.state)
        )
        headers = [
            ("Location", location),
            self._set_cookie(request, cookie.name(login.state), value, LOGIN_LIFETIME),
            *self._evict_logins(request, cookie, len(value)),
            ("Cache-Control", "no-store"),
        ]
        return Answer(302, headers)

    def _evict_logins(self, request: Request, cookie: LoginCookie, new: int) -> Headers:
        """Drop the oldest pending logins (and what is none), so that cookies do not pile up."""
        found = {n: v for n, v in request.cookies if n.startswith(cookie.prefix)}
        loaded = {name: cookie.load(value) for name, value in found.items()}
        youngest_first = sorted(
            found, key=lambda name: login.started_at if (login := loaded[name]) else 0, reverse=True
        )
        total, dropped = new, []
        for count, name in enumerate(youngest_first, start=2):
            total += len(found[name])
            if count > _MOST_LOGINS or total > _MOST_LOGIN_BYTES or loaded[name] is None:
                dropped.append(name)
        return [self._clear_cookie(request, name) for name in dropped[:_MOST_LOGINS]]

    async def _callback(self, request: Request) -> Answer:
        if request.method != "GET":
            return self._problem(405, "Method not allowed", headers=[("Allow", "GET")])
        pairs = _query(request)
        query = dict(pairs)
        if len(query) != len(pairs) or len(request.query) > 8192:
            return self._login_failed(request, 400, None)
        state, cookie = query.get("state", ""), self._login_cookie(request)
        name = cookie.name(state)
        found = [value for key, value in request.cookies if key == name]
        matches = (cookie.match(value, state, self._ports.clock()) for value in found[:2])
        login = next((match for match in matches if match), None)
        if login is None or login.state in self._used:
            return await self._stale_callback(request, login)
        forget = [self._clear_cookie(request, name)]
        self._use_up(login.state)
        if "error" in query:
            log.info("login_refused denied=%s", query["error"] == "access_denied")
            return self._login_failed(request, 403, login, forget)
        code = query.get("code", "")
        if not 0 < len(code) <= 1024 or not code.isascii() or not code.isprintable():
            return self._login_failed(request, 400, login, forget)
        return await self._finish_login(request, login, code, forget)

    async def _finish_login(
        self, request: Request, login: PendingLogin, code: str, forget: Headers
    ) -> Answer:
        verifier = self._login_cookie(request).code_verifier(login.state)
        try:
            tokens = await self._server.exchange(code, login.redirect_uri, verifier)
            user = await self._server.user(tokens.access_token)
        except OperatorError as error:
            log.error("api_key_refused error=%s: check client_id and client_secret", error.error)
            return self._login_failed(request, 502, login, forget)
        except CMAuthError as error:
            log.warning("login_failed reason=%s", error)
            status = 502 if isinstance(error, UnavailableError) else 400
            return self._login_failed(request, status, login, forget)
        if self._config.allow and not await self._ports.call_hook(self._config.allow, user):
            await self._revoke(tokens.access_token)
            log.info("login_denied by=allow")
            return self._failure(
                request,
                403,
                "You have no access",
                "Your CameraManager account is not allowed to use this application.",
                headers=forget,
                link=(self._login_url(request, login.target), "Use another account"),
            )
        return await self._open_session(request, login, tokens, user, forget)

    async def _open_session(
        self, request: Request, login: PendingLogin, tokens: Any, user: Any, forget: Headers
    ) -> Answer:
        now = self._ports.clock()
        previous, _ = await self._find(request)
        ticket = Ticket.new()
        await self._keeper.welcome(tokens)
        session = await self._vault.create(
            ticket.store_key, ticket.half_key, Record(tokens, user, now, now)
        )
        if previous is not None:
            await self._vault.remove(previous)
        log.info("login session=%s", session.reference)
        if self._config.on_login:
            await self._ports.call_hook(self._config.on_login, session)
            await self.save(session)
        marker = self._set_cookie(request, self._marker(request), str(int(now)), _JUST)
        headers = [
            ("Location", login.target),
            self._session_cookie(request, ticket, session),
            marker,
            *forget,
            ("Cache-Control", "no-store"),
        ]
        return Answer(302, headers)

    async def _stale_callback(self, request: Request, login: PendingLogin | None) -> Answer:
        session, _ = await self._find(request)
        if session is not None:
            target = login.target if login else f"{request.root_path}/"
            return Answer(302, [("Location", target), ("Cache-Control", "no-store")])
        log.info("login_stale")
        return self._failure(
            request,
            400,
            "This login is no longer valid",
            "It was used already, took longer than ten minutes, or was started in another "
            "browser. Cookies have to be allowed for this site.",
            link=(self._login_url(request, login.target if login else None), "Start again"),
        )

    def _login_failed(
        self,
        request: Request,
        status: int,
        login: PendingLogin | None,
        forget: Headers | None = None,
    ) -> Answer:
        title, text = {
            403: ("Login was cancelled", "CameraManager did not grant access."),
            502: ("Login did not work", "CameraManager could not complete the login just now."),
        }.get(status, ("Login did not work", "CameraManager's answer was not valid."))
        return self._failure(
            request,
            status,
            title,
            text,
            headers=forget,
            link=(self._login_url(request, login.target if login else None), "Try again"),
        )

    def _use_up(self, state: str) -> None:
        self._used[state] = None
        while len(self._used) > _USED_STATES:
            self._used.popitem(last=False)

    # -- logout and session info -----------------------------------------------------------

    async def _logout(self, request: Request) -> Answer:
        target = safe_target(dict(_query(request)).get("next"), request.root_path)
        if request.method in ("GET", "HEAD"):
            action = f"{request.root_path}{self._config.prefix}/logout?next={quote(target)}"
            body = page(
                "Log out?", "You will be logged out here and at CameraManager.", form=action
            )
            return Answer(200, [*PAGE_HEADERS, ("Cache-Control", "no-store")], body)
        if request.method != "POST":
            return self._problem(405, "Method not allowed", headers=[("Allow", "GET, HEAD, POST")])
        if self._is_cross_site(request, websocket=False):
            return self._problem(403, "Cross-site request refused", headers=[])
        session, _ = await self._find(request)
        if session is not None:
            await self.end(session)
        gone = (self._cookie_name(request), self._marker(request))
        headers = [
            ("Location", target),
            *(self._clear_cookie(request, name) for name in gone),
            ("Cache-Control", "no-store"),
        ]
        return Answer(303, headers)

    async def end(self, session: Session) -> None:
        """Log a session out, here and at CameraManager; here even if CameraManager is down."""
        await self._keeper.forget(session.record.tokens)
        record = await self._vault.remove(session)
        session.ended = True
        await self._revoke(record.tokens.access_token)
        log.info("logout session=%s", session.reference)
        if self._config.on_logout:
            await self._ports.call_hook(self._config.on_logout, session)

    async def _revoke(self, access_token: str) -> None:
        try:
            if not await self._server.revoke(access_token):
                log.warning("revoke_failed reason=CameraManager refused it")
        except (UnavailableError, OAuthError) as error:
            log.warning("revoke_failed reason=%s", error)

    async def _session_info(self, request: Request) -> Answer:
        if request.method not in ("GET", "HEAD"):
            return self._problem(405, "Method not allowed", headers=[("Allow", "GET, HEAD")])
        session, headers = await self._find(request)
        info: dict[str, Any] = {"authenticated": False, "user": None, "expires_in": 0}
        if session is not None:
            left = int(self._vault.ttl(session.record))
            info = {"authenticated": True, "user": session.user, "expires_in": left}
        return _json(200, info, [*headers, ("Vary", "Cookie")])

    # -- small decisions -------------------------------------------------------------------

    def _is_navigation(self, request: Request) -> bool:
        mode = request.header("sec-fetch-mode")
        if request.method not in ("GET", "HEAD") or request.header("hx-request"):
            return False
        if mode is not None and mode != "navigate":
            return False
        return mode == "navigate" or "text/html" in (request.header("accept") or "")

    def _is_cross_site(self, request: Request, websocket: bool) -> bool:
        """Whether another site made the browser send this state change (RFC 9700 §4.7)."""
        if request.method in _SAFE_METHODS and not websocket:
            return False
        site = request.header("sec-fetch-site")
        origin = request.header("origin")
        if site is not None and not websocket:
            return site not in ("same-origin", "none")
        if origin is None:
            return False
        parts = urlsplit(origin)
        ours = {request.host.lower()}
        if self._config.redirect_uri:
            ours.add(urlsplit(self._config.redirect_uri).netloc.lower())
        return parts.netloc.lower() not in ours

    def _redirect_uri(self, request: Request) -> str | None:
        if self._config.redirect_uri:
            return self._config.redirect_uri
        try:
            parts = urlsplit(f"//{request.host}")
            host, _ = (parts.hostname or "").lower(), parts.port
        except ValueError:
            return None
        if ":" in host:
            host = f"[{host}]"
        if host not in self._hosts or parts.username is not None or parts.path:
            return None
        path = f"{request.root_path}{self._config.prefix}/callback"
        return f"{request.scheme}://{request.host}{quote(path)}"

    def _login_url(self, request: Request, target: str | None) -> str:
        url = f"{request.root_path}{self._config.prefix}/login"
        return f"{url}?next={quote(target, safe='/')}" if target else url

    def _failure(
        self,
        request: Request,
        status: int,
        title: str,
        text: str,
        *,
        headers: Headers | None = None,
        link: tuple[str, str] | None = None,
    ) -> Answer:
        """A page for a person, a problem (RFC 9457) for a program."""
        if not self._is_navigation(request):
            extra = {"login_url": link[0]} if link else {}
            return self._problem(status, title, headers=headers or [], detail=text, **extra)
        return self._error_page(request, status, title, text, headers=headers, link=link)

    def _error_page(
        self,
        request: Request,
        status: int,
        title: str,
        text: str,
        *,
        headers: Headers | None = None,
        link: tuple[str, str] | None = None,
    ) -> Answer:
        link = link or (request.url, "Try again")
        body = page(title, text, link=link)
        return Answer(
            status, [*PAGE_HEADERS, ("Cache-Control", "no-store"), *(headers or [])], body
        )

    def _problem(self, status: int, title: str, *, headers: Headers, **members: Any) -> Answer:
        body = {"type": "about:blank", "title": title, "status": status, **members}
        return _json(status, body, headers, "application/problem+json")

    # -- cookies ---------------------------------------------------------------------------

    def _names(self) -> tuple[str, ...]:
        if self._config.cookie_name:
            return (self._config.cookie_name,)
        return ("__Host-cm_auth", "cm_auth")

    def _secure(self, request: Request) -> bool:
        forced = self._config.cookie_secure
        return request.scheme in ("https", "wss") if forced is None else forced

    def _cookie_name(self, request: Request) -> str:
        names = self._names()
        return names[0] if self._secure(request) else names[-1]

    def _login_cookie(self, request: Request) -> LoginCookie:
        return self._login_cookies[self._cookie_name(request)]

    def _marker(self, request: Request) -> str:
        return f"{self._cookie_name(request)}_in"

    def _just_logged_in(self, request: Request) -> bool:
        marker, now = self._marker(request), self._ports.clock()
        stamps = [value for name, value in request.cookies if name == marker]
        return any(v.isdecimal() and 0 <= now - int(v[:12]) < _JUST for v in stamps)

    def _session_cookie(
        self, request: Request, ticket: Ticket, session: Session
    ) -> tuple[str, str]:
        ends = session.logged_in_at + seconds(self._config.absolute_timeout)
        return self._set_cookie(
            request,
            self._cookie_name(request),
            self._ticket.dump(ticket),
            int(ends - self._ports.clock()),
        )

    def _set_cookie(self, request: Request, name: str, value: str, age: int) -> tuple[str, str]:
        secure = "; Secure" if self._secure(request) else ""
        cookie = f"{name}={value}; Max-Age={age}; Path=/; HttpOnly; SameSite=Lax{secure}"
        return ("Set-Cookie", cookie)

    def _clear_cookie(self, request: Request, name: str) -> tuple[str, str]:
        return self._set_cookie(request, name, "", 0)


def _query(request: Request) -> list[tuple[str, str]]:
    try:
        return parse_qsl(request.query, keep_blank_values=True, errors="strict", max_num_fields=20)
    except ValueError:
        return []


_json_dumps = partial(json.dumps, separators=(",", ":"))


def _json(
    status: int, content: Any, headers: Headers, content_type: str = "application/json"
) -> Answer:
    fixed = [("Content-Type", content_type), ("Cache-Control", "no-store")]
    return Answer(status, [*fixed, *headers], _json_dumps(content).encode())
