"""The errors of this package: one base class, and each subclass says what to do next."""

from __future__ import annotations


class CMAuthError(Exception):
    """The base class of all errors that this package raises."""


class ConfigError(CMAuthError, ValueError):
    """An option is missing or wrong. The message names the option and says what to do."""


class SessionExpiredError(CMAuthError):
    """The session has ended, by CameraManager or a logout: the user has to log in again.

    The client that a handler uses raises it. Do not catch it: the middleware then answers as it
    answers any unauthenticated request.
    """

    def __init__(self, message: str = "the session is over; log in again") -> None:
        super().__init__(message)


class ForbiddenError(CMAuthError):
    """The application's rule for a route does not admit this user, who stays logged in.

    The dependency and the decorator ``require`` raise it, and a handler of Starlette, FastAPI,
    Litestar and Flask may. The middleware answers it with 403 and a page; an application that
    handles the error itself gives its own answer. Frameworks that make a response of the error
    before they send anything, such as Django and Quart, have to be told that it is a 403.
    """

    def __init__(self, message: str = "this user may not do this") -> None:
        super().__init__(message)


class SessionDataError(CMAuthError, ValueError):
    """``session.data`` cannot be saved: a value is not JSON, or all of it is too large."""


class UnavailableError(CMAuthError):
    """CameraManager or the session store is not available now. No user is logged out: retry.

    Attributes:
        retry_after: seconds to wait before the next attempt.
        status: of CameraManager's answer to a token call, if it is one that it should not give,
            such as 404; None otherwise.
    """

    def __init__(
        self, message: str, *, retry_after: float = 1.0, status: int | None = None
    ) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.status = status


class TooManyCallsError(UnavailableError):
    """CameraManager wants fewer calls (429): call it again after `retry_after`."""


class KeyRefusedError(UnavailableError):
    """CameraManager refuses this application's API key, so no token can be renewed: fix the key."""


class TokenRefusedError(UnavailableError):
    """CameraManager refuses an access token: it has to be refreshed before the next attempt."""


class StoreError(UnavailableError):
    """The session store failed. Sessions are kept; the request is answered with 503."""


class OAuthError(CMAuthError):
    """CameraManager answered with an OAuth error (RFC 6749 §5.2).

    Only the error code is kept, not ``error_description``: CameraManager may repeat the token or
    the code in it.

    Attributes:
        error: the error code, ``invalid_grant`` for example.
        is_grant_over: True if the grant, or the code, has ended: the user has to log in again.
    """

    def __init__(self, error: str, *, is_grant_over: bool = False) -> None:
        super().__init__(f"the server answered {error}")
        self.error = error
        self.is_grant_over = is_grant_over


class OperatorError(OAuthError):
    """CameraManager refuses this application's API key. Users keep their sessions; fix the key."""
