"""The routes of a session: its logout, the page after it, and what a front end may ask."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from ..events import log
from ..web.local_target import safe_target
from ..web.request import Request
from ..web.response import Response, json_response, not_allowed, problem, redirect
from .login import login_url

if TYPE_CHECKING:
    from ..config import CMAuthConfig
    from ..runtime.base import Runtime
    from ..sessions.manager import SessionManager
    from ..sessions.session import Session
    from ..tokens.refresh import TokenRefresher
    from ..web.pages import Pages
    from .allow import AllowRule
    from .login_cookies import LoginCookies


class Routes:
    """The routes ``logout``, ``signed-out`` and ``session``.

    Args:
        own_origin: the origin that is this site, whatever ``Host`` says.
    """

    def __init__(
        self,
        config: CMAuthConfig,
        runtime: Runtime,
        sessions: SessionManager,
        refresher: TokenRefresher,
        cookies: LoginCookies,
        pages: Pages,
        rule: AllowRule,
        own_origin: str,
    ) -> None:
        self._prefix = config.prefix
        self._on_logout = config.on_logout
        self._runtime = runtime
        self._sessions = sessions
        self._refresher = refresher
        self._cookies = cookies
        self._pages = pages
        self._rule = rule
        self._own_origin = own_origin

    async def logout(self, request: Request) -> Response:
        """Serve ``logout?next=/path``: GET shows a button, POST ends the session."""
        target = safe_target(dict(request.parameters()).get("next"), request.root_path)
        if request.method in ("GET", "HEAD"):
            action = f"{request.mount}{self._prefix}/logout?next={quote(target)}"
            return await self._pages.show(request, 200, "log_out", action, method="post")
        if request.method != "POST":
            return not_allowed("GET, HEAD, POST")
        if request.is_cross_site(self._own_origin):
            return problem(403, "Cross-site request refused")
        session = await self._sessions.load(request)
        if session is not None:
            await self.end(session)
        clear = self._sessions.cookie.clear(request)
        return redirect(303, target, clear, self._cookies.clear_fresh_login(request))

    async def signed_out(self, request: Request) -> Response:
        """Serve a page to send people to after a logout: ``logout?next=/auth/signed-out``."""
        if request.method not in ("GET", "HEAD"):
            return not_allowed("GET, HEAD")
        if await self._sessions.load(request) is not None:  # a login since: the page would lie
            return redirect(302, f"{request.mount}/", *request.set_cookies)
        login = login_url(request, self._prefix, None)
        return await self._pages.show(request, 200, "signed_out", login)

    async def session_info(self, request: Request) -> Response:
        """Serve the session as JSON, for front ends.

        A page that asks again and again, to warn in time, must not keep the session alive.
        """
        if request.method not in ("GET", "HEAD"):
            return not_allowed("GET, HEAD")
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
        await self._runtime.run_hook("on_logout", self._on_logout, session)
