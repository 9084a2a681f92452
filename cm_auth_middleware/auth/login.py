"""A login, to CameraManager with the browser and back with a session; and the logout."""

from __future__ import annotations

import math
import re
import secrets
from dataclasses import replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, unquote, urlsplit

from ..audit_log import audit
from ..display import HOST
from ..errors import CMAuthError, OperatorError, TooManyCallsError, UnavailableError
from ..events import log
from ..runtime.bounded_cache import BoundedCache
from ..sessions.cookie import Ticket
from ..sessions.record import Record, Tokens, dumps
from ..web.asking import Asker, is_plain_program, who_asks
from ..web.local_target import next_target, safe_target, shorter_targets
from ..web.origin import normal_origin
from ..web.request import Request
from ..web.response import Response, json_response, problem, redirect
from .exchange_limit import ExchangeLimit
from .login_cookies import LoginCookies
from .login_state import PendingLogin

if TYPE_CHECKING:
    from ..config import CMAuthConfig
    from ..sessions.manager import SessionManager
    from ..sessions.session import Session
    from ..tokens.refresh import TokenRefresher
    from ..web.origin import Origins
    from ..web.pages import Pages
    from .allow import AllowRule

_DOUBLE_CLICK = 60.0  # seconds in which the same callback may come again, to any process
_MOST_HOST = 260  # characters of a Host header: a name has up to 253 (RFC 1035 §2.3.4), and a port
_REMEMBERED = 128  # Host headers whose origin is known
_MOST_CODE = 1024  # characters; CameraManager's have six
_MOST_LOCATION = 3_680  # characters: with its cookie, it fits into a header (`web.response`)
_MOST_QUERY = 8192  # characters of a callback's query that are looked at
_FAILURES = {403: "login_cancelled", 502: "login_unavailable", 503: "login_not_kept"}
_SET_UP_WRONG = "misconfigured"  # a page that does not ask to try again in a moment

# What a server may answer in place of a code (RFC 6749 §4.1.2.1; the last three: OpenID Connect
# Core §3.1.2.6). Any other text may be anything, and is not logged.
_OUTAGES = frozenset({"server_error", "temporarily_unavailable"})
_MISTAKES = frozenset(  # of who runs the application: another attempt ends alike
    {"invalid_request", "invalid_scope", "unauthorized_client", "unsupported_response_type"}
)
_DECLINED = frozenset(
    {"access_denied", "consent_required", "interaction_required", "login_required"}
)

_HOST = re.compile(rf"(?P<name>{HOST})(:(?P<port>[0-9]{{1,5}}))?")


class _Callback(NamedTuple):
    """A callback whose state matches a pending login.

    Attributes:
        clear: the header that clears the cookie of the pending login, if it fails.
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
        names = ("login", "callback", "logout", "session", "session.js", "signed-out", "health")
        self._routes = frozenset(f"{config.prefix}/{name}" for name in names)
        self._hosts = frozenset(host.lower() for host in config.allowed_hosts)
        self._origin_of = lru_cache(_REMEMBERED)(self._allowed_origin)
        # The states of callbacks that this process has served.
        self._used: BoundedCache[str, None] = BoundedCache(memory=self._runtime.cache_memory)

    # -- to CameraManager ------------------------------------------------------------------

    async def required(self, request: Request) -> Response:
        """Answer a request without a session: a login for a browser, a 401 for a program."""
        self._sessions.cookie.check_scheme(request)
        asker = who_asks(request)
        if asker is Asker.PROGRAM:
            return await self._refer(request, asker, self._origins.page_of(request))
        if asker is Asker.FORM:
            return await self._refer(request, asker, self._pages.page_before(request))
        if asker is not Asker.PERSON:
            return await self._refer(request, asker, request.url)
        # The next two come back without a session, and would be sent out again for ever.
        if self.cookies.is_fresh_login(request):
            clear = self.cookies.clear_fresh_login(request)
            return await self._pages.show(request, 400, "login_lost", request.url, clear)
        pending = self.cookies.open(dict(request.parameters()).get("state", ""))
        if pending is not None and self.cookies.began_here(request, pending):
            # A proxy sent a callback to another path than ``callback``.
            log("callback_not_routed", path=repr(request.path[:100]))
            return await self._pages.show(request, 400, "login_lost", f"{request.mount}/")
        if self._config.auto_login:
            return await self._start(request, request.url)
        return await self._pages.show(request, 401, "log_in", self.url(request, request.url))

    async def login(self, request: Request) -> Response:
        """Serve ``login?next=/path``."""
        target = next_target(request.query)
        asker = who_asks(request)
        if asker is Asker.PERSON or is_plain_program(request):  # such as curl, which may follow
            return await self._start(request, target)
        if target is not None:
            target = safe_target(target, request.root_path)
        elif asker is Asker.PROGRAM:
            target = self._origins.page_of(request)
        return await self._refer(request, asker, target)

    async def _refer(self, request: Request, asker: Asker, target: str | None) -> Response:
        """Tell who could not go on by a redirect where the login begins that leads to `target`."""
        login = self.url(request, target)
        if asker is not Asker.PROGRAM:
            kind = "form_not_sent" if asker is Asker.FORM else "log_in"
            return await self._pages.show(request, 401, kind, login)
        headers = []
        if request.header("hx-request"):
            headers.append(("HX-Redirect", self._short_url(request, target)))
        return problem(401, "Login required", *headers, login_url=login, detail="Log in first.")

    def url(self, request: Request, target: str | None) -> str:
        """Return the URL that starts a login and leads to `target`."""
        url = f"{request.mount}{self._config.prefix}/login"
        return f"{url}?next={quote(target, safe='/')}" if target else url

    def _short_url(self, request: Request, target: str | None) -> str:
        """Return the same in a length that fits into a header."""
        shorter = (self.url(request, path) for path in shorter_targets(target or "", ""))
        return next(url for url in shorter if len(url) <= _MOST_LOCATION or "?" not in url)

    async def _start(
        self, request: Request, target: str | None, *, is_anew: bool = False
    ) -> Response:
        """Send the browser to CameraManager; it comes back to `target`.

        Args:
            is_anew: True if this takes the place of a login whose callback could not be served.
        """
        redirect_uri = self._redirect_uri(request)
        if redirect_uri is None:
            log("host_not_allowed", host=repr(request.host[:100]))
            return await self._pages.failure(request, 400, "unknown_host")
        safe = safe_target(target, request.root_path)
        if unquote(urlsplit(safe).path).removeprefix(request.root_path) in self._routes:
            safe = f"{request.mount}/"  # a login never ends at a login
        proof = self.cookies.proof(request)
        for shorter in shorter_targets(safe, f"{request.mount}/"):
            state = self.cookies.start(
                proof, redirect_uri, shorter, by_http=not request.is_secure, is_anew=is_anew
            )
            verifier = self.cookies.code_verifier(state)
            location = self._oauth.authorization_url(redirect_uri, state, verifier)
            if len(location) <= _MOST_LOCATION:
                break
        else:  # the application is mounted at a path that a visitor may choose
            return problem(414, "The application's own URL is too long for a login")
        response = redirect(302, location, self.cookies.set(request, proof))
        # For the callback; last, because two threads that compute take turns of 5 ms.
        self._runtime.loading.begin(self._runtime.load_http, self._runtime.load_sockets)
        return response.with_what_fits(*self.cookies.clear_strays(request))

    def _redirect_uri(self, request: Request) -> str | None:
        if self._config.redirect_uri:
            return self._config.redirect_uri
        host = request.host
        if _is_test_client(request):
            found = _HOST.fullmatch(host.lower())
            origin = found and normal_origin(f"{request.scheme}://{found[0]}")
        else:
            origin = self._origin_of(request.scheme, host) if len(host) <= _MOST_HOST else None
        return origin and f"{origin}{request.mount}{self._config.prefix}/callback"

    def _allowed_origin(self, scheme: str, host: str) -> str | None:
        """Return the origin that a Host header names, if it is one of ``allowed_hosts``."""
        found = _HOST.fullmatch(host.lower())
        if found is None or found["name"] not in self._hosts or int(found["port"] or 0) > 65_535:
            return None
        return normal_origin(f"{scheme}://{found[0]}")

    # -- and back --------------------------------------------------------------------------

    async def callback(self, request: Request) -> Response:
        """Serve ``callback``: match the state, exchange the code, open a session."""
        pairs = request.parameters()
        query = dict(pairs)
        if len(query) != len(pairs) or len(request.query) > _MOST_QUERY:
            login_again = self.url(request, None)
            return await self._pages.failure(request, 400, "login_invalid", login=login_again)
        login = self.cookies.open(query.get("state", ""))
        if login is None or not self.cookies.began_here(request, login):
            return await self._not_begun_here(request, login)
        if login.state in self._used:
            return await self._stale(request, login)
        self._used[login.state] = None
        name = self.cookies.lease(request, login)
        callback = _Callback(request, login, self.cookies.release(request, login))
        if "error" in query:
            return await self._refused(callback, query["error"])
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
        verifier = self.cookies.code_verifier(login.state, login.key)
        try:
            tokens = await self._oauth.exchange(code, login.redirect_uri, verifier)
            return tokens, await self._oauth.user(tokens.access_token, tokens.api_base)
        except CMAuthError as error:
            kind = None
            if isinstance(error, OperatorError):
                log("api_key_refused", error=error.error)
                kind = _SET_UP_WRONG
            log("login_failed", reason=error)
            if isinstance(error, TooManyCallsError):
                self._exchanges.pause(error.retry_after)
            # Not revoked: another browser of this user may live on the very same tokens.
            is_outage = isinstance(error, UnavailableError | OperatorError)
            return await self._failed(callback, 502 if is_outage else 400, kind)

    async def _admit(self, callback: _Callback, tokens: Tokens, user: dict[str, Any]) -> Response:
        """Open a session for a user, if the application's rule admits them."""
        request, login, clear = callback
        if not await self._rule.allows(user):
            await self._refresher.revoke(tokens)
            log("login_denied")
            user_id = self._sessions.sealer.id_of(user)
            audit("login_denied", user_id, address=request.address)
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
        request, login, _ = callback
        now = self._runtime.clock()
        earlier = await self._sessions.load_all(request)
        ticket = Ticket.new()
        await self._refresher.grants.add_login(tokens)
        record = Record(tokens, dumps(user), now, now, address=request.address, user_read_at=now)
        session = await self._sessions.create(ticket, record)
        await self._refresher.failovers.enter()
        self._rule.note(session, is_allowed=True)
        user_id = self._sessions.sealer.user_id
        for previous in earlier:
            if user_id(previous.record) != user_id(record):
                await self.end(
                    previous, request.address
                )  # this browser could not log that user out later
            else:  # the new session may live on the very same tokens
                await self._sessions.delete(previous)
        log("login", session=session.log_id)
        self._sessions.audit("login", session)
        await self._runtime.run_hook("on_login", self._config.on_login, session)
        await self._sessions.save(session)
        cookie = self._sessions.cookie.set(request, ticket, session.logged_in_at)
        response = _lead(request, 302, login.target, cookie)
        marks = self.cookies.set_fresh_login(request), self.cookies.clear(request, login)
        return response.with_what_fits(*marks)

    # -- logins that fail ------------------------------------------------------------------

    async def _not_begun_here(self, request: Request, login: PendingLogin | None) -> Response:
        """Answer a callback that this browser cannot prove to be its own, or that is too late.

        Its target may be that of an application with the same key.
        """
        if login is not None:
            login = replace(login, target=safe_target(login.target, request.root_path))
            is_overwritten = self.cookies.is_overwritten(request, login)
            is_person = who_asks(request) is Asker.PERSON  # nobody else could go on by a login
            if is_overwritten and is_person and await self._sessions.load(request) is None:
                return await self._start(request, login.target)
        return await self._stale(request, login)

    async def _stale(self, request: Request, login: PendingLogin | None) -> Response:
        """Answer a callback that is too late, or comes again: a browser with a session goes on."""
        session = await self._sessions.load(request)
        if session is not None:
            return _lead(request, 302, login.target if login else f"{request.mount}/")
        log("login_stale")
        if login is not None and self._may_begin_anew(request, login):
            return await self._start(request, login.target, is_anew=True)
        login_again = self.url(request, login.target if login else None)
        return await self._pages.failure(request, 400, "login_stale", login=login_again)

    def _may_begin_anew(self, request: Request, login: PendingLogin) -> bool:
        """Return True if another login should take the place of one that cannot end, by itself.

        It does so for the browser that began: it sent its callback again before the first was
        answered, or after it broke that off. And for one that went from http to https or back,
        which had no chance to bring its cookie. Any other may have followed a link that an attacker
        made, and gets a page. So does one where this happened before, or whose cookies do not stay:
        no browser is sent in a circle.
        """
        if login.is_anew or self.cookies.is_fresh_login(request):
            return False
        if who_asks(request) is not Asker.PERSON:
            return False
        cookies = self.cookies
        return cookies.began_here(request, login) or cookies.lost_by_scheme(request, login)

    async def _refused(self, callback: _Callback, error: str) -> Response:
        """Answer a callback that brings an error instead of a code."""
        if error not in _OUTAGES | _MISTAKES:  # the person declined, or did not go on
            log("login_cancelled", error=error if error in _DECLINED else "another")
            return await self._failed(callback, 403)
        if error == "unauthorized_client":
            log("api_key_refused", error=error)
        log("login_failed", reason=f"the server answered {error}")
        return await self._failed(callback, 502, _SET_UP_WRONG if error in _MISTAKES else None)

    async def _busy(self, callback: _Callback, seconds: float) -> Response:
        """Ask for another attempt at a login after so many seconds; its code was not used."""
        request, login, _ = callback
        again = ("Retry-After", str(math.ceil(seconds)))
        login_again = self.url(request, login.target)
        return await self._pages.failure(request, 503, "login_busy", again, login=login_again)

    async def _failed(self, callback: _Callback, status: int, kind: str | None = None) -> Response:
        request, login, clear = callback
        kind = kind or _FAILURES.get(status, "login_invalid")
        login_again = self.url(request, login.target)
        return await self._pages.failure(request, status, kind, clear, login=login_again)

    # -- out, and what a front end may ask -----------------------------------------------------

    async def logout(self, request: Request) -> Response:
        """Serve ``logout?next=/path``: GET shows a button, POST ends the session.

        Without ``next`` it ends at ``signed-out``: any other page would lead to a new login, and
        CameraManager, which remembers the browser, back into the application at once.
        """
        given = next_target(request.query)
        target = f"{request.mount}{self._config.prefix}/signed-out"
        if given:
            target = safe_target(given, request.root_path)
        if request.method in ("GET", "HEAD"):
            action = f"{request.mount}{self._config.prefix}/logout?next={quote(target)}"
            return await self._pages.show(request, 200, "log_out", action, method="post")
        if self._origins.refuse(request):
            return await self._pages.cross_site(request)
        for session in await self._sessions.load_all(request):
            await self.end(session, request.address)
        clear = self._sessions.cookie.clear(request)
        return _lead(request, 303, target, clear, self.cookies.clear_fresh_login(request))

    async def signed_out(self, request: Request) -> Response:
        """Serve the page that people see after a logout."""
        if await self._sessions.load(request) is not None:  # a login since: the page would lie
            return redirect(302, f"{request.mount}/", *request.set_cookies)
        return await self._pages.show(request, 200, "signed_out", self.url(request, None))

    async def session_info(self, request: Request) -> Response:
        """Serve the session as JSON, for front ends.

        A page that asks again and again, to warn in time, must not keep the session alive; a person
        who wants to stay does, by a POST.
        """
        load = self._sessions.load_untouched
        if request.method == "POST":
            if self._origins.refuse(request):
                return await self._pages.cross_site(request)
            load = self._sessions.load
        session = await load(request)
        if session is not None and not await self._rule.admits(session):
            session = None
        info: dict[str, Any] = {"authenticated": False, "user": None, "expires_in": 0}
        if session is not None:
            left = int(self._sessions.ttl(session.record))
            info = {"authenticated": True, "user": session.user, "expires_in": left}
        return json_response(200, info, ("Vary", "Cookie"), *request.set_cookies)

    async def end(self, session: Session, address: str = "") -> None:
        """Log a session out, here and at CameraManager; here even if CameraManager is down.

        Some servers cancel a request whose browser has left. A logout goes on without it, or its
        tokens would live on at CameraManager.

        Args:
            address: of the request that asks for it; empty if no request does.
        """
        flight = f"logout.{secrets.token_hex(8)}"
        await self._runtime.single_flight.do(flight, partial(self._end, session, address))

    async def _end(self, session: Session, address: str) -> None:
        await self._refresher.grants.mark_logged_out(session.record.tokens)
        record, was_there = await self._sessions.delete(session)
        await self._refresher.end_grant(record.tokens)
        if was_there:  # else a logout at the same time told of it
            log("logout", session=session.log_id)
            self._sessions.audit("logout", session, address)
            await self._runtime.run_hook("on_logout", self._config.on_logout, session)


def _lead(request: Request, status: int, target: str, *headers: tuple[str, str]) -> Response:
    """Redirect to a path of this application; one that is too long for a header loses its query."""
    root = f"{request.mount}/"
    responses = (redirect(status, path, *headers) for path in shorter_targets(target, root))
    return next((found for found in responses if found.fits), redirect(status, root, *headers))


def _is_test_client(request: Request) -> bool:
    """Return True for a test client of Starlette, FastAPI or Litestar, with its own host name.

    It calls the application without a network, from an address that is none.
    """
    if request.peer != "testclient":
        return False
    return request.host.partition(":")[0].lower() in ("testserver", "testserver.local")
