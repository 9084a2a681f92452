"""A login, to CameraManager with the browser and back with a session; and the logout."""

from __future__ import annotations

import math
import re
import secrets
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, unquote, urlsplit

from ..display import HOST
from ..errors import CMAuthError, OperatorError, TooManyCallsError, UnavailableError
from ..events import log
from ..runtime.bounded_cache import BoundedCache
from ..sessions.cookie import Ticket
from ..sessions.record import Record, Tokens, dumps
from ..web.asking import Asker, is_early, who_asks
from ..web.local_target import next_target, safe_target
from ..web.origin import normal_origin
from ..web.request import Request
from ..web.response import Response, json_response, problem, redirect
from .exchange_limit import ExchangeLimit
from .login_cookies import LoginCookies, PendingLogin

if TYPE_CHECKING:
    from ..config import CMAuthConfig
    from ..sessions.manager import SessionManager
    from ..sessions.session import Session
    from ..tokens.refresh import TokenRefresher
    from ..web.origin import Origins
    from ..web.pages import Pages
    from .allow import AllowRule

_DOUBLE_CLICK = 60.0  # seconds in which the same callback may come again, to any process
_MOST_CODE = 1024  # characters; CameraManager's have six
_MOST_QUERY = 8192  # characters of a callback's query that are looked at
_FAILURES = {403: "login_cancelled", 502: "login_unavailable", 503: "login_not_kept"}

_HOST = re.compile(rf"(?P<name>{HOST})(:(?P<port>[0-9]{{1,5}}))?")


class _Callback(NamedTuple):
    """A callback whose state matches a pending login.

    Attributes:
        clear: the header that clears the cookie of the pending login.
    """

    request: Request
    login: PendingLogin
    clear: tuple[str, str]


class Login:
    """Sends browsers to a login, and serves the routes of logins and sessions.

    Nothing is stored for a visitor while a login is pending.

    Attributes:
        cookies: those of logins.
    """

    def __init__(
        self,
        config: CMAuthConfig,
        sessions: SessionManager,
        refresher: TokenRefresher,
        pages: Pages,
        rule: AllowRule,
        origins: Origins,
    ) -> None:
        self._config = config
        self._runtime = refresher.runtime
        self._sessions = sessions
        self._refresher = refresher
        self._oauth = refresher.oauth.for_logins()
        most = config.exchanges_at_once or self._runtime.exchanges_at_once
        self._exchanges = ExchangeLimit(most, self._runtime.clock)
        self._pages = pages
        self._rule = rule
        self.cookies = LoginCookies(sessions.cookie, config.secret_key, self._runtime.clock)
        self._origins = origins
        names = ("login", "callback", "logout", "session", "signed-out", "health")
        self._routes = frozenset(f"{config.prefix}/{name}" for name in names)
        self._hosts = frozenset(host.lower() for host in config.allowed_hosts)
        # The states of callbacks that this process has served.
        self._used: BoundedCache[str, None] = BoundedCache(memory=self._runtime.cache_memory)

    # -- to CameraManager ------------------------------------------------------------------

    async def required(self, request: Request) -> Response:
        """Answer a request without a session: a login for a browser, a 401 for a program."""
        self._sessions.cookie.check_scheme(request)
        asker = who_asks(request)
        if asker is Asker.PROGRAM:
            login = self.url(request, self._origins.page_of(request))
            headers = [("HX-Redirect", login)] if request.header("hx-request") else []
            return problem(401, "Login required", *headers, login_url=login, detail="Log in first.")
        if asker is Asker.FORM:
            login = self.url(request, self._pages.page_before(request))
            return await self._pages.show(request, 401, "form_not_sent", login)
        if asker is not Asker.PERSON:  # a redirect would lead nowhere
            return await self._pages.show(request, 401, "log_in", self.url(request, request.url))
        # The next two come back without a session, and would be sent out again for ever.
        if self.cookies.is_fresh_login(request):
            clear = self.cookies.clear_fresh_login(request)
            return await self._pages.show(request, 400, "login_lost", request.url, clear)
        if self.cookies.has_pending(request, dict(request.parameters()).get("state", "")):
            # A proxy sent a callback to another path than ``callback``.
            log("callback_not_routed", path=repr(request.path[:100]))
            return await self._pages.show(request, 400, "login_lost", f"{request.mount}/")
        if self._config.auto_login:
            return await self._start(request, request.url)
        return await self._pages.show(request, 401, "log_in", self.url(request, request.url))

    async def login(self, request: Request) -> Response:
        """Serve ``login?next=/path``."""
        if is_early(request):  # no login begins before a person wants it
            return await self.required(request)
        return await self._start(request, next_target(request.query))

    def url(self, request: Request, target: str | None) -> str:
        """Return the URL that starts a login and leads to `target`."""
        url = f"{request.mount}{self._config.prefix}/login"
        return f"{url}?next={quote(target, safe='/')}" if target else url

    async def _start(self, request: Request, target: str | None) -> Response:
        """Send the browser to CameraManager; it comes back to `target`."""
        redirect_uri = self._redirect_uri(request)
        if redirect_uri is None:
            log("host_not_allowed", host=repr(request.host[:100]))
            return await self._pages.failure(request, 400, "unknown_host")
        safe = safe_target(target, request.root_path)
        if unquote(urlsplit(safe).path).removeprefix(request.root_path) in self._routes:
            safe = f"{request.mount}/"  # a login never ends at a login
        login, value = self.cookies.start(redirect_uri, safe, f"{request.mount}/")
        verifier = self.cookies.code_verifier(login)
        location = self._oauth.authorization_url(redirect_uri, login.state, verifier)
        name = self.cookies.name(request, login.state)
        return redirect(302, location, *self.cookies.add(request, name, value))

    def _redirect_uri(self, request: Request) -> str | None:
        if self._config.redirect_uri:
            return self._config.redirect_uri
        host = _HOST.fullmatch(request.host.lower())
        if host is None or host["name"] not in self._hosts or int(host["port"] or 0) > 65_535:
            return None
        origin = normal_origin(f"{request.scheme}://{host[0]}")
        return f"{origin}{request.mount}{self._config.prefix}/callback"

    # -- and back --------------------------------------------------------------------------

    async def callback(self, request: Request) -> Response:
        """Serve ``callback``: match the state, exchange the code, open a session."""
        pairs = request.parameters()
        query = dict(pairs)
        if len(query) != len(pairs) or len(request.query) > _MOST_QUERY:
            login_again = self.url(request, None)
            return await self._pages.failure(request, 400, "login_invalid", login=login_again)
        login = self.cookies.find(request, query.get("state", ""))
        if login is None or login.state in self._used:
            return await self._stale(request, login)
        self._used[login.state] = None
        name = self.cookies.name(request, login.state)
        callback = _Callback(request, login, self.cookies.clear(request, name))
        if "error" in query:
            denied = query["error"] == "access_denied"
            log("login_cancelled", error="access_denied" if denied else "another")
            return await self._failed(callback, 403)
        code = query.get("code", "")
        if not 0 < len(code) <= _MOST_CODE or not code.isascii() or not code.isprintable():
            return await self._failed(callback, 400)
        wait = self._exchanges.enter()
        if wait is not None:
            self._used.pop(login.state, None)  # the same callback may come again
            return await self._busy(callback, wait)
        try:
            await self._runtime.sleep(self._exchanges.short_pause)
            owner, ttl = secrets.token_hex(8), 2 * self._runtime.timeout + _DOUBLE_CLICK
            try:
                # A double click may reach two processes; a code that is sent twice may cost the
                # tokens that came for the first (RFC 6749 §4.1.2).
                is_first = await self._sessions.store.acquire(name, owner, ttl)
            except UnavailableError as error:
                log("login_failed", reason=error)
                return await self._failed(callback, 503)
            if not is_first:
                return await self._stale(request, login)
            found = await self._exchange(callback, code)
        finally:
            self._exchanges.leave()
        return found if isinstance(found, Response) else await self._admit(callback, *found)

    async def _exchange(
        self, callback: _Callback, code: str
    ) -> tuple[Tokens, dict[str, Any]] | Response:
        """Exchange the code; return the tokens and the user, or the response to a failure."""
        login = callback.login
        verifier = self.cookies.code_verifier(login)
        try:
            tokens = await self._oauth.exchange(code, login.redirect_uri, verifier)
            return tokens, await self._oauth.user(tokens.access_token)
        except CMAuthError as error:
            if isinstance(error, OperatorError):
                log("api_key_refused", error=error.error)
            log("login_failed", reason=error)
            if isinstance(error, TooManyCallsError):
                self._exchanges.pause(error.retry_after)
            # Not revoked: another browser of this user may live on the very same tokens.
            is_outage = isinstance(error, UnavailableError | OperatorError)
            return await self._failed(callback, 502 if is_outage else 400)

    async def _admit(self, callback: _Callback, tokens: Tokens, user: dict[str, Any]) -> Response:
        """Open a session for a user, if the application's rule admits them."""
        request, login, clear = callback
        if not await self._rule.allows(user):
            await self._refresher.revoke(tokens)
            log("login_denied")
            login_again = self.url(request, login.target)
            return await self._pages.failure(request, 403, "denied", clear, login=login_again)
        try:
            return await self._open_session(callback, tokens, user)
        except UnavailableError as error:
            log("login_failed", reason=error)
            return await self._failed(callback, 503)

    async def _open_session(
        self, callback: _Callback, tokens: Tokens, user: dict[str, Any]
    ) -> Response:
        request, login, clear = callback
        now = self._runtime.clock()
        previous = await self._sessions.load(request)
        ticket = Ticket.new()
        await self._refresher.grants.add_login(tokens)
        record = Record(tokens, dumps(user), now, now, address=request.address, user_read_at=now)
        session = await self._sessions.create(ticket, record)
        self._rule.note(session, is_allowed=True)
        if previous is not None:
            user_id = self._sessions.sealer.user_id
            if user_id(previous.record) != user_id(record):
                await self.end(previous)  # this browser could not log that user out later
            else:  # the new session may live on the very same tokens
                await self._sessions.delete(previous)
        log("login", session=session.log_id)
        await self._runtime.run_hook("on_login", self._config.on_login, session)
        await self._sessions.save(session)
        return redirect(
            302,
            login.target,
            self._sessions.cookie.set(request, ticket, session.logged_in_at),
            self.cookies.set_fresh_login(request),
            clear,
        )

    # -- logins that fail ------------------------------------------------------------------

    async def _stale(self, request: Request, login: PendingLogin | None) -> Response:
        """Answer a callback that is too late, or comes again: a browser with a session goes on."""
        session = await self._sessions.load(request)
        if session is not None:
            return redirect(302, login.target if login else f"{request.mount}/")
        log("login_stale")
        login_again = self.url(request, login.target if login else None)
        return await self._pages.failure(request, 400, "login_stale", login=login_again)

    async def _busy(self, callback: _Callback, seconds: float) -> Response:
        """Ask for another attempt at a login after so many seconds; its code was not used."""
        request, login, _ = callback
        again = ("Retry-After", str(math.ceil(seconds)))
        login_again = self.url(request, login.target)
        return await self._pages.failure(request, 503, "login_busy", again, login=login_again)

    async def _failed(self, callback: _Callback, status: int) -> Response:
        request, login, clear = callback
        kind = _FAILURES.get(status, "login_invalid")
        login_again = self.url(request, login.target)
        return await self._pages.failure(request, status, kind, clear, login=login_again)

    # -- out, and what a front end may ask -----------------------------------------------------

    async def logout(self, request: Request) -> Response:
        """Serve ``logout?next=/path``: GET shows a button, POST ends the session."""
        target = safe_target(next_target(request.query), request.root_path)
        if request.method in ("GET", "HEAD"):
            action = f"{request.mount}{self._config.prefix}/logout?next={quote(target)}"
            return await self._pages.show(request, 200, "log_out", action, method="post")
        if self._origins.refuse(request):
            return await self._pages.cross_site(request)
        session = await self._sessions.load(request)
        if session is not None:
            await self.end(session)
        clear = self._sessions.cookie.clear(request)
        return redirect(303, target, clear, self.cookies.clear_fresh_login(request))

    async def signed_out(self, request: Request) -> Response:
        """Serve a page to send people to after a logout: ``logout?next=/auth/signed-out``."""
        if await self._sessions.load(request) is not None:  # a login since: the page would lie
            return redirect(302, f"{request.mount}/", *request.set_cookies)
        return await self._pages.show(request, 200, "signed_out", self.url(request, None))

    async def session_info(self, request: Request) -> Response:
        """Serve the session as JSON, for front ends.

        A page that asks again and again, to warn in time, must not keep the session alive.
        """
        session = await self._sessions.load_untouched(request)
        if session is not None and not await self._rule.admits(session):
            session = None
        info: dict[str, Any] = {"authenticated": False, "user": None, "expires_in": 0}
        if session is not None:
            left = int(self._sessions.ttl(session.record))
            info = {"authenticated": True, "user": session.user, "expires_in": left}
        return json_response(200, info, ("Vary", "Cookie"))

    async def end(self, session: Session) -> None:
        """Log a session out, here and at CameraManager; here even if CameraManager is down."""
        await self._refresher.grants.mark_logged_out(session.record.tokens)
        record = await self._sessions.delete(session)
        await self._refresher.end_grant(record.tokens)
        log("logout", session=session.log_id)
        await self._runtime.run_hook("on_logout", self._config.on_logout, session)
