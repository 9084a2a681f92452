"""The decision about each request, for the ASGI and the WSGI side: pass it, or respond to it."""

from __future__ import annotations

import math
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from ..errors import (
    CMAuthError,
    ForbiddenError,
    KeyRefusedError,
    SessionExpiredError,
    StoreError,
    UnavailableError,
)
from ..events import log
from ..tokens.provider import find_provider
from ..web.asking import Asker, who_asks
from ..web.files import session_script
from ..web.origin import Origins
from ..web.pages import Pages
from ..web.request import Request
from ..web.response import Response, problem
from .allow import AllowRule
from .exempt import ExemptPaths
from .health import Health
from .login import Login
from .login_cookies import FRESH_SUFFIX
from .revalidation import Revalidation

if TYPE_CHECKING:
    from ..config import CMAuthConfig
    from ..sessions.manager import SessionManager
    from ..sessions.session import Session
    from ..tokens.refresh import TokenRefresher

# The errors of this package that have an answer, wherever a handler lets them pass.
_ANSWERED = (SessionExpiredError, UnavailableError, ForbiddenError)
_EXEMPT_PATIENCE = 0.25  # seconds that a request to an exempt path waits for its session


class Gate:
    """Decides about each request. It knows neither ASGI nor WSGI."""

    def __init__(
        self, config: CMAuthConfig, sessions: SessionManager, refresher: TokenRefresher
    ) -> None:
        self._cross_site_check = config.cross_site_check
        self._runtime = runtime = refresher.runtime
        self._is_prompt = True  # False since the store kept a request to an exempt path waiting
        self._sessions = sessions
        self._refresher = refresher
        self.origins = Origins(config.redirect_uri, config.trusted_origins)
        server = find_provider(config.provider).name
        self._pages = Pages(
            config.error_handler,
            runtime,
            self.origins,
            server,
            config.app_name,
            config.app_logo,
        )
        self._rule = AllowRule(config, runtime)
        self._login = login = Login(
            config, sessions, refresher, self._pages, self._rule, self.origins
        )
        self._cookies = login.cookies
        self.end = login.end
        self.is_stale = sessions.is_stale
        self.note_use = sessions.touch_if_due  # when a long-lived connection is used
        self._failovers = refresher.failovers
        self._has_epochs = self._failovers.has_epochs
        self._revalidation = refresher.revalidation = Revalidation(
            config.revalidate, sessions, refresher, self._rule, login.end
        )
        self._routes: dict[str, tuple[str, Callable[[Request], Awaitable[Response]]]] = {
            f"{config.prefix}/login": ("GET, HEAD", login.login),
            f"{config.prefix}/callback": ("GET", login.callback),
            f"{config.prefix}/logout": ("GET, HEAD, POST", login.logout),
            f"{config.prefix}/session": ("GET, HEAD, POST", login.session_info),
            f"{config.prefix}/session.js": ("GET, HEAD", session_script),
            f"{config.prefix}/signed-out": ("GET, HEAD", login.signed_out),
            f"{config.prefix}/health": ("GET, HEAD", Health(sessions.store, runtime).health),
        }
        self.is_exempt = ExemptPaths(config.exempt, but=self._routes).admit

    # -- a request -------------------------------------------------------------------------

    async def handle(self, request: Request) -> Response | Session | None:
        """Return a response, or let the request pass: with its session, or None for a visitor."""
        try:
            route = None if request.is_websocket else self._routes.get(request.path)
            if route is not None:
                methods, serve = route
                if request.method not in methods.split(", "):
                    return self.origins.preflight(request) or problem(
                        405, "Method not allowed", ("Allow", methods)
                    )
                return await serve(request)
            if self.is_exempt(request):
                return await self._session_if_any(request)
            session = await self._sessions.load(request)
            if session is None:
                return await self._refuse(request)
            if not (self._rule.admits_everybody or await self._rule.admits(session)):
                self._sessions.audit("request_denied", session, request.address, reason="allow")
                return await self._denied(request)
            if request.is_write and self._is_cross_site(request):
                reason = "cross_site"
                self._sessions.audit("request_denied", session, request.address, reason=reason)
                return await self._pages.cross_site(request)
            if self._has_epochs and self._failovers.note_use():
                await self._failovers.enter()
            now, record = session.checked_at, session.record
            if (
                now >= record.tokens.refresh_at
                or now - record.user_read_at >= self._revalidation.every
            ):
                await self._refresher.ensure_fresh(session)
        except SessionExpiredError:
            return await self._login.required(request)
        except UnavailableError as error:
            return await self._unavailable(request, error)
        if FRESH_SUFFIX in request.cookie_line and self._cookies.is_fresh_login(request):
            # The browser does keep the session cookie.
            request.set_cookies.append(self._cookies.clear_fresh_login(request))
        return session

    async def _refuse(self, request: Request) -> Response:
        """Respond to a request that has no session, but needs one."""
        preflight = self.origins.preflight(request)
        if preflight is not None:
            return preflight
        if not await self._sessions.was_denied(request):
            return await self._login.required(request)
        if (
            who_asks(request) is Asker.PROGRAM
        ):  # a fetch of the page leaves it for the person to see
            return await self._denied(request)
        clear = self._sessions.cookie.clear(request)
        return await self._denied(request, clear, self._cookies.clear_fresh_login(request))

    async def _session_if_any(self, request: Request) -> Session | None:
        """Return the session of a request to an exempt path; None if another site sent it."""
        if not self._sessions.cookie.read(request) or self._is_cross_site(request):
            return None
        try:
            session = await self._load_soon(request)
            return session if session and await self._rule.admits(session) else None
        except UnavailableError:
            self._refresher.kept.note_trouble()
            return None

    async def _load_soon(self, request: Request) -> Session | None:
        """Load the session of a request that can do without: the store may take its time.

        Raises:
            UnavailableError: the store fails, or has not answered in time.
        """
        load = partial(self._sessions.load, request)
        if self._sessions.is_at_hand:
            return await load()
        began = self._runtime.monotonic()
        try:
            session: Session | None = await self._runtime.within(_EXEMPT_PATIENCE, load)
        except UnavailableError:
            if self._runtime.monotonic() - began >= _EXEMPT_PATIENCE and self._is_prompt:
                self._is_prompt = False
                log("store_slow")
            raise
        self._is_prompt = True
        return session

    def _is_cross_site(self, request: Request) -> bool:
        return self._cross_site_check and self.origins.refuse(request)

    # -- the response ----------------------------------------------------------------------

    def needs_check(self, session: Session) -> bool:
        """Return True if `before_response` has to look a session up, or to save its data."""
        return session.data_was_read or self.is_stale(session)

    async def before_response(
        self,
        request: Request,
        session: Session | None,
        is_failure: bool,
        error: Any,
        is_over: bool,
    ) -> Response | None:
        """Save the changes of a handler; return the response that replaces its own, if any.

        Args:
            is_over: True if the session is known to have ended while the handler worked.
            is_failure: True for status 500, which a framework may have made of an error of this
                package. The response to that error then takes its place.
            error: such an error, if the framework's integration kept it.
        """
        if is_over:
            return await self.session_over(request)
        if is_failure:
            if session is not None:
                error = error or session.client_error
            # Else the one that a framework is making its response of: Starlette sends that while it
            # handles the error, and raises it after that.
            response = await self.response_to(request, error or sys.exception(), session)
            if response is not None:
                return response
        if session is None:
            return None
        try:
            # An exempt path does without its session: there is no need to wait for the store.
            is_late = self.is_stale(session) and not self.is_exempt(request)
            if is_late and not await self.is_alive(session):
                return await self._login.required(request)
            if session.data_was_read:
                await self._sessions.save(session)
        except UnavailableError as unavailable:
            return await self._unavailable(request, unavailable)
        return None

    async def response_to(
        self, request: Request, error: BaseException | None, session: Session | None
    ) -> Response | None:
        """Return the response to an error of this package; None for any other error.

        A task group raises a group of all that its tasks raised.

        Args:
            session: that of the request, for the audit log; None for a visitor.
        """
        parts = _parts(error)
        if not parts or not all(isinstance(part, _ANSWERED) for part in parts):
            return None
        if any(isinstance(part, SessionExpiredError) for part in parts):
            return await self._login.required(request)
        for part in parts:
            if isinstance(part, UnavailableError):
                return await self._unavailable(request, part)
        if session is not None:
            self._sessions.audit("request_denied", session, request.address, reason="rule")
        return await self._pages.failure(request, 403, "forbidden", link=f"{request.mount}/")

    async def session_over(self, request: Request) -> Response | None:
        """Return the response to a request whose session ended before its response began."""
        return None if self.is_exempt(request) else await self._login.required(request)

    async def _denied(self, request: Request, *headers: tuple[str, str]) -> Response:
        """Refuse a user whom the application's rule does not admit."""
        login = self._login.url(request, request.url)
        return await self._pages.failure(request, 403, "denied", *headers, login=login)

    async def _unavailable(self, request: Request, error: UnavailableError) -> Response:
        """Say that CameraManager or the store cannot be asked just now. Sessions stay."""
        log("unavailable", reason=error)  # warned of where it happened
        kind = "unavailable"
        if isinstance(error, StoreError):
            kind = "store_unavailable"
            self._refresher.kept.note_trouble()
        elif isinstance(error, KeyRefusedError):
            kind = "misconfigured"
        wait = str(max(1, math.ceil(error.retry_after)))
        return await self._pages.failure(request, 503, kind, ("Retry-After", wait))

    # -- a connection that lasts -----------------------------------------------------------

    async def is_alive(self, session: Session) -> bool:
        """Return True if a session that a long-lived connection holds is still there."""
        if session.ended or not await self._sessions.reload(session):
            return False
        await self._revalidation.start_if_due(session)
        return await self._rule.admits(session)

    async def save_late(self, session: Session) -> None:
        """Save what a handler changed in ``session.data`` after its response began."""
        try:
            await self._sessions.save(session)
        except CMAuthError as error:
            log("data_lost", session=session.log_id, reason=error)


def _parts(error: BaseException | None) -> list[BaseException]:
    """Return the errors of a group, however deep, or the one error; none for None."""
    if isinstance(error, BaseExceptionGroup):
        return [part for each in error.exceptions for part in _parts(each)]
    return [] if error is None else [error]
