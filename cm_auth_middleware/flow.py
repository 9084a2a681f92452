"""What happens to a request: the one implementation behind the ASGI and the WSGI shell."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from .allow import AllowRule
from .config import CMAuthConfig, seconds
from .errors import CMAuthError, SessionExpiredError, StoreError, UnavailableError
from .events import log
from .http import Answer, Request, json_answer, not_allowed, problem, redirect
from .jar import CookieJar, Cookies
from .login import Login
from .pages import Pages
from .paths import ExemptPaths, safe_target
from .revalidation import Revalidation

if TYPE_CHECKING:
    from .oauth import CameraManager
    from .ports import Ports
    from .session import Session
    from .tokens import TokenKeeper
    from .vault import SessionVault


class Flow:
    """Decides what happens to each request. Knows neither ASGI nor WSGI."""

    def __init__(
        self,
        config: CMAuthConfig,
        ports: Ports,
        vault: SessionVault,
        keeper: TokenKeeper,
        server: CameraManager,
    ) -> None:
        self._config = config
        self._ports = ports
        self._vault = vault
        self._keeper = keeper
        self._jar = CookieJar(config, ports.clock)
        self._pages = Pages(config, ports)
        self._rule = AllowRule(config, ports)
        self.admits = self._rule.admits
        every = None if config.revalidate is None else seconds(config.revalidate)
        revalidation = Revalidation(
            every, ports, vault, server, self._rule, self.end, keeper.refresh
        )
        keeper.revalidation = self._revalidation = revalidation
        self._login = Login(
            config, ports, vault, keeper, server, self._jar, self._pages, self._rule
        )
        callback = urlsplit((config.redirect_uri or "").lower())
        self.own_origin = f"{callback.scheme}://{callback.netloc}" if callback.netloc else ""
        self._routes = {
            f"{config.prefix}/login": self._login.login,
            f"{config.prefix}/callback": self._callback,
            f"{config.prefix}/logout": self._logout,
            f"{config.prefix}/session": self._session_info,
            f"{config.prefix}/signed-out": self._signed_out,
        }
        self.is_exempt = ExemptPaths(config.exempt, but=self._routes).admit

    # -- every request ---------------------------------------------------------------------

    def handle(self, request: Request) -> Coroutine[Any, Any, Answer | Session | None]:
        """Answer the request, or let it through: with its session, or as a visitor's."""
        route = None if request.is_websocket else self._routes.get(request.path)
        if route is not None:
            return self._serve(route, request)
        if self.is_exempt(request):
            return self._pass_exempt(request)
        return self._protect(request)

    async def _serve(
        self, route: Callable[[Request], Awaitable[Answer]], request: Request
    ) -> Answer:
        try:
            return await route(request)
        except UnavailableError as error:
            return await self.unavailable(request, error)

    async def _pass_exempt(self, request: Request) -> Session | None:
        if self._is_cross_site(request):
            return None  # open to everybody, but not with the cookie of whoever was lured
        try:
            session = await self._find(request)
            return session if session and await self._rule.admits(session) else None
        except UnavailableError:
            return None

    async def _protect(self, request: Request) -> Answer | Session:
        cookies = self._jar.read(request)
        try:
            now = self._ports.clock()
            session = await self._open(request, cookies, now)
            if session is None:
                if cookies.tickets and await self._was_denied(cookies):
                    # A fetch of the page in between leaves it for the person to see.
                    told = self._jar.forget(request) if request.is_navigation else []
                    return await self._denied(request, *told)
                return await self.unauthenticated(request)
            if not (self._rule.admits_everybody or await self._rule.admits(session)):
                return await self._denied(request)
            if request.is_write and self._is_cross_site(request):
                return problem(403, "Cross-site request refused")
            record = session.record
            if (
                now >= record.tokens.refresh_at
                or now - record.user_read_at >= self._revalidation.every
            ):
                await self._keeper.freshen(session)
        except SessionExpiredError:
            return await self.unauthenticated(request)
        except UnavailableError as error:
            return await self.unavailable(request, error)
        if cookies.stamps and self._jar.is_marked(request):
            request.set_cookies.append(self._jar.unmark(request))  # it did stick
        return session

    def _is_cross_site(self, request: Request) -> bool:
        return self._config.cross_site_check and request.is_cross_site(self.own_origin)

    def _find(self, request: Request) -> Awaitable[Session | None]:
        """The session that a request's cookies open."""
        return self._open(request, self._jar.read(request), self._ports.clock())

    async def _open(self, request: Request, cookies: Cookies, now: float) -> Session | None:
        for ticket, is_old in cookies.tickets:
            session = await self._vault.read(ticket, now)
            if session is None:
                continue
            if is_old:
                await self._vault.reseal(session)  # before the old key goes
                cookie = self._jar.session(request, ticket, session.logged_in_at)
                request.set_cookies.append(cookie)
            return session
        return None

    async def _peek(self, request: Request) -> Session | None:
        """The session of a request, which is not noted as a use of it."""
        for ticket, _ in self._jar.read(request).tickets:
            session = await self._vault.peek(ticket.store_key, ticket.half_key)
            if session is not None:
                return session
        return None

    # -- answers ---------------------------------------------------------------------------

    async def before_response(
        self, request: Request, session: Session | None, is_failure: bool, noted: Any
    ) -> Answer | None:
        """Save what a handler changed; return the answer that takes the place of its own, if any.

        Args:
            is_failure: True for status 500: the framework may have caught an error of ours on its
                way and made that of it.
            noted: such an error, if the glue of the framework left word of it.
        """
        if is_failure:
            error = noted or (None if session is None else session.trouble)
            answer = await self.answer_to(request, error)
            if answer is not None:
                return answer
        if session is None:
            return None
        try:
            if self._vault.is_stale(session) and not await self.is_alive(session):
                return await self.session_over(request)
            if session.is_touched:
                await self._vault.save(session)
        except UnavailableError as error:
            return await self.unavailable(request, error)
        return None

    async def answer_to(self, request: Request, error: BaseException | None) -> Answer | None:
        """The answer to an error of ours that a handler let pass; None for any other error."""
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]  # a task group on the way wrapped it
        if isinstance(error, SessionExpiredError):
            return await self.unauthenticated(request)
        if isinstance(error, UnavailableError):
            return await self.unavailable(request, error)
        return None

    async def unauthenticated(self, request: Request) -> Answer:
        """The answer to a caller without a session: a login for a browser, else 401."""
        self._jar.watch_scheme(request)
        if request.is_navigation:
            if self._jar.is_marked(request):
                unmark = self._jar.unmark(request)
                return await self._pages.show(request, 400, "login_lost", request.url, unmark)
            if self._login.has_come_back(request):
                log("callback_not_routed", path=repr(request.path[:100]))
                return await self._pages.show(request, 400, "login_lost", f"{request.mount}/")
            if self._config.auto_login:
                return await self._login.start(request, request.url)
            login = self._login.url(request, request.url)
            return await self._pages.show(request, 401, "log_in", login)
        login = self._login.url(request, None)
        headers = []
        if request.header("hx-request"):
            headers = [("HX-Redirect", self._login.url(request, request.htmx_page))]
        return problem(401, "Login required", *headers, login_url=login, detail="Log in first.")

    async def session_over(self, request: Request) -> Answer | None:
        """The answer to a request whose session ended before its response began."""
        return None if self.is_exempt(request) else await self.unauthenticated(request)

    async def _was_denied(self, cookies: Cookies) -> bool:
        for ticket, _ in cookies.tickets:
            if await self._vault.was_denied(ticket):
                return True
        return False

    async def _denied(self, request: Request, *headers: tuple[str, str]) -> Answer:
        """The answer to a user whom the application's rule does not admit."""
        login = self._login.url(request, request.url)
        return await self._pages.failure(request, 403, "denied", *headers, login=login)

    async def unavailable(self, request: Request, error: UnavailableError) -> Answer:
        """The answer while CameraManager or the store cannot be asked. Nobody is logged out."""
        log("unavailable", reason=error)  # warned of where it happened
        kind = "store_unavailable" if isinstance(error, StoreError) else "unavailable"
        wait = str(max(1, round(error.retry_after)))
        return await self._pages.failure(request, 503, kind, ("Retry-After", wait))

    # -- routes ----------------------------------------------------------------------------

    async def _callback(self, request: Request) -> Answer:
        return await self._login.callback(request, self._find, self.end)

    async def _logout(self, request: Request) -> Answer:
        target = safe_target(dict(request.parameters()).get("next"), request.root_path)
        if request.method in ("GET", "HEAD"):
            action = f"{request.mount}{self._config.prefix}/logout?next={quote(target)}"
            return await self._pages.show(request, 200, "log_out", action, method="post")
        if request.method != "POST":
            return not_allowed("GET, HEAD, POST")
        if request.is_cross_site(self.own_origin):
            return problem(403, "Cross-site request refused")
        session = await self._find(request)
        if session is not None:
            await self.end(session)
        return redirect(303, target, *self._jar.forget(request))

    async def _signed_out(self, request: Request) -> Answer:
        """A page to send people to after a logout: ``logout?next=/auth/signed-out``."""
        if request.method not in ("GET", "HEAD"):
            return not_allowed("GET, HEAD")
        if await self._find(request) is not None:  # again meanwhile: the page would not be true
            return redirect(302, f"{request.mount}/", *request.set_cookies)
        return await self._pages.show(request, 200, "signed_out", self._login.url(request, None))

    async def _session_info(self, request: Request) -> Answer:
        if request.method not in ("GET", "HEAD"):
            return not_allowed("GET, HEAD")
        # A page that asks again and again, to warn in time, must not keep the session alive.
        session = await self._peek(request)
        if session is not None and not await self._rule.admits(session):
            session = None
        info: dict[str, Any] = {"authenticated": False, "user": None, "expires_in": 0}
        if session is not None:
            left = int(self._vault.ttl(session.record))
            info = {"authenticated": True, "user": session.user, "expires_in": left}
        return json_answer(200, info, ("Vary", "Cookie"))

    # -- a session's own -------------------------------------------------------------------

    async def end(self, session: Session) -> None:
        """Log a session out, here and at CameraManager; here even if CameraManager is down."""
        await self._keeper.forget(session.record.tokens)
        record = await self._vault.remove(session)
        await self._keeper.end(record.tokens)
        log("logout", session=session.reference)
        await self._ports.call_hook("on_logout", self._config.on_logout, session)

    async def is_alive(self, session: Session) -> bool:
        """Return True if a session that a long-lived connection holds is still there."""
        if session.ended or not await self._vault.reread(session):
            return False
        self._revalidation.start_if_due(session)
        return await self._rule.admits(session)

    async def note_use(self, session: Session) -> None:
        """Note that the user of a long-lived connection did something: at most once a minute."""
        await self._vault.touch_if_due(session)

    async def save_late(self, session: Session) -> None:
        """Write back what a handler changed in ``session.data`` after its response began."""
        try:
            await self._vault.save(session)
        except CMAuthError as error:
            log("data_lost", session=session.reference, reason=error)
