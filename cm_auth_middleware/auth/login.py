"""A login: to CameraManager with the browser, and back with a session."""

from __future__ import annotations

import re
import secrets
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote, urlsplit

from ..config import CMAuthConfig
from ..display import HOST
from ..errors import CMAuthError, OperatorError, UnavailableError
from ..events import log
from ..sessions.cookie import PendingLogin, Ticket
from ..sessions.record import Record, Session, Tokens, dumps
from ..web.local_target import safe_target
from ..web.request import Request
from ..web.response import Headers, Response, not_allowed, redirect

if TYPE_CHECKING:
    from ..runtime.base import Runtime
    from ..sessions.jar import CookieJar
    from ..sessions.manager import SessionManager
    from ..tokens.oauth import CameraManager
    from ..tokens.refresh import TokenRefresher
    from ..web.pages import Pages
    from .allow import AllowRule

_USED_STATES = 4096  # login attempts that a process remembers as used
_DOUBLE_CLICK = 60.0  # seconds in which the same callback may come again, by any process
_MOST_CODE = 1024  # characters; CameraManager's have six
_MOST_QUERY = 8192  # characters of a callback's query that are looked at
_FAILURES = {403: "login_cancelled", 502: "login_unavailable", 503: "login_not_kept"}

_HOST = re.compile(rf"(?P<name>{HOST})(:(?P<port>[0-9]{{1,5}}))?")

Find = Callable[[Request], Awaitable[Session | None]]
End = Callable[[Session], Awaitable[None]]


class Login:
    """The routes ``login`` and ``callback``. Nothing is stored for a visitor in between."""

    def __init__(
        self,
        config: CMAuthConfig,
        runtime: Runtime,
        sessions: SessionManager,
        refresher: TokenRefresher,
        server: CameraManager,
        jar: CookieJar,
        pages: Pages,
        rule: AllowRule,
    ) -> None:
        self._config = config
        self._runtime = runtime
        self._sessions = sessions
        self._refresher = refresher
        self._server = server
        self._jar = jar
        self._pages = pages
        self._rule = rule
        self._hosts = frozenset(host.lower() for host in config.allowed_hosts)
        self._used: OrderedDict[str, None] = OrderedDict()

    # -- out -------------------------------------------------------------------------------

    async def login(self, request: Request) -> Response:
        """Response ``login?next=/path``."""
        if request.method not in ("GET", "HEAD"):
            return not_allowed("GET, HEAD")
        return await self.start(request, dict(request.parameters()).get("next"))

    async def start(self, request: Request, target: str | None) -> Response:
        """Send the browser to CameraManager; it comes back to `target`."""
        redirect_uri = self._redirect_uri(request)
        if redirect_uri is None:
            log("host_not_allowed", host=repr(request.host[:100]))
            return await self._pages.failure(request, 400, "unknown_host")
        safe = safe_target(target, request.root_path)
        if unquote(urlsplit(safe).path).startswith(f"{request.root_path}{self._config.prefix}/"):
            safe = f"{request.mount}/"  # a login never ends at a login
        cookie = self._jar.login(request)
        login, value = cookie.start(redirect_uri, safe, self._runtime.clock())
        location = self._server.authorization_url(
            redirect_uri, login.state, cookie.code_verifier(login.state)
        )
        return redirect(
            302, location, *self._jar.add_login(request, cookie.name(login.state), value)
        )

    def has_come_back(self, request: Request) -> bool:
        """Whether this is a callback that went astray: sending it out again would never end."""
        state = dict(request.parameters()).get("state", "")
        name = self._jar.login(request).name(state)
        return any(key == name for key, _ in request.cookies)

    def url(self, request: Request, target: str | None) -> str:
        """Where to start a login again."""
        url = f"{request.mount}{self._config.prefix}/login"
        return f"{url}?next={quote(target, safe='/')}" if target else url

    def _redirect_uri(self, request: Request) -> str | None:
        if self._config.redirect_uri:
            return self._config.redirect_uri
        host = _HOST.fullmatch(request.host.lower())
        if host is None or host["name"] not in self._hosts or int(host["port"] or 0) > 65_535:
            return None
        return f"{request.scheme}://{host[0]}{request.mount}{self._config.prefix}/callback"

    # -- and back --------------------------------------------------------------------------

    async def callback(self, request: Request, find: Find, end: End) -> Response:
        """Response ``callback``: match the state, trade the code, open a session.

        Args:
            find: finds the session that the browser already has.
            end: logs a session out.
        """
        if request.method != "GET":
            return not_allowed("GET")
        pairs = request.parameters()
        query = dict(pairs)
        if len(query) != len(pairs) or len(request.query) > _MOST_QUERY:
            return await self._failed(request, 400, None)
        state, cookie = query.get("state", ""), self._jar.login(request)
        name = cookie.name(state)
        found = [value for key, value in request.cookies if key == name]
        matches = (cookie.match(value, state, self._runtime.clock()) for value in found[:2])
        login = next((match for match in matches if match), None)
        if login is None or login.state in self._used:
            return await self._stale(request, login, find)
        forget = self._jar.drop_login(request, name)
        self._use_up(login.state)
        if "error" in query:
            denied = query["error"] == "access_denied"
            log("login_cancelled", error="access_denied" if denied else "another")
            return await self._failed(request, 403, login, forget)
        code = query.get("code", "")
        if not 0 < len(code) <= _MOST_CODE or not code.isascii() or not code.isprintable():
            return await self._failed(request, 400, login, forget)
        owner, ttl = secrets.token_hex(8), 2 * self._runtime.timeout + _DOUBLE_CLICK
        try:
            # A double click may reach two processes; a code that is sent twice may cost the
            # tokens that came for the first (RFC 6749 §4.1.2).
            is_first = await self._sessions.store.acquire(name, owner, ttl)
        except UnavailableError as error:
            log("login_failed", reason=error)
            return await self._failed(request, 503, login, forget)
        if not is_first:
            return await self._stale(request, login, find)
        return await self._finish(request, login, code, forget, find, end)

    async def _finish(
        self,
        request: Request,
        login: PendingLogin,
        code: str,
        forget: Headers,
        find: Find,
        end: End,
    ) -> Response:
        verifier = self._jar.login(request).code_verifier(login.state)
        try:
            tokens = await self._server.exchange(code, login.redirect_uri, verifier)
            user = await self._server.user(tokens.access_token)
        except CMAuthError as error:
            if isinstance(error, OperatorError):
                log("api_key_refused", error=error.error)
            log("login_failed", reason=error)
            # Not revoked: another browser of this user may live on the very same tokens.
            ours = isinstance(error, UnavailableError | OperatorError)
            return await self._failed(request, 502 if ours else 400, login, forget)
        if not await self._is_allowed(user):
            await self._refresher.revoke(tokens.access_token)
            log("login_denied")
            url = self.url(request, login.target)
            return await self._pages.failure(request, 403, "denied", *forget, login=url)
        try:
            return await self._open(request, login, tokens, user, forget, find, end)
        except UnavailableError as error:
            log("login_failed", reason=error)
            return await self._failed(request, 503, login, forget)

    async def _is_allowed(self, user: dict[str, Any]) -> bool:
        try:
            return await self._rule.allows(user)
        except Exception:
            log("allow_failed", exc_info=True)
            return False

    async def _open(
        self,
        request: Request,
        login: PendingLogin,
        tokens: Tokens,
        user: dict[str, Any],
        forget: Headers,
        find: Find,
        end: End,
    ) -> Response:
        now = self._runtime.clock()
        previous = await find(request)
        ticket = Ticket.new()
        await self._refresher.welcome(tokens)
        record = Record(tokens, dumps(user), now, now, address=request.address, user_read_at=now)
        session = await self._sessions.create(ticket, record)
        self._rule.note(session, is_allowed=True)
        if previous is not None:
            if previous.record.user_id != record.user_id:
                await end(previous)  # nobody would log that user out later
            else:  # whose new session may live on the very same tokens
                await self._sessions.remove(previous)
        log("login", session=session.reference)
        await self._runtime.run_hook("on_login", self._config.on_login, session)
        await self._sessions.save(session)
        return redirect(
            302,
            login.target,
            self._jar.session(request, ticket, session.logged_in_at),
            self._jar.mark(request),
            *forget,
        )

    async def _stale(self, request: Request, login: PendingLogin | None, find: Find) -> Response:
        session = await find(request)
        if session is not None:
            return redirect(302, login.target if login else f"{request.mount}/")
        log("login_stale")
        url = self.url(request, login.target if login else None)
        return await self._pages.failure(request, 400, "login_stale", login=url)

    async def _failed(
        self,
        request: Request,
        status: int,
        login: PendingLogin | None,
        forget: Headers | None = None,
    ) -> Response:
        url = self.url(request, login.target if login else None)
        kind = _FAILURES.get(status, "login_invalid")
        return await self._pages.failure(request, status, kind, *(forget or []), login=url)

    def _use_up(self, state: str) -> None:
        self._used[state] = None
        while len(self._used) > _USED_STATES:
            self._used.popitem(last=False)
