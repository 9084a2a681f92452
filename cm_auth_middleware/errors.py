"""The errors of this package: one base, and each subclass says what to do next."""

from __future__ import annotations


class CMAuthError(Exception):
    """Base of everything that this package raises."""


class ConfigError(CMAuthError, ValueError):
    """An option is missing or wrong. The message names the option and the way out."""


class SessionExpiredError(CMAuthError):
    """CameraManager ended this session (or a logout did): the user has to log in again.

    Raised by the ready client in a handler. Let it pass: the middleware turns it into the
    answer that an unauthenticated caller gets.
    """

    def __init__(self, message: str = "the CameraManager session is over; log in again") -> None:
        super().__init__(message)


class SessionDataError(CMAuthError, ValueError):
    """``session.data`` cannot be saved: a value is not JSON, or all of it is too large."""


class UnavailableError(CMAuthError):
    """CameraManager or the session store cannot be asked just now. Nobody is logged out: retry.

    Attributes:
        retry_after: seconds to wait before the next attempt.
    """

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class TokenRefusedError(UnavailableError):
    """CameraManager refuses an access token: it has to be refreshed before the next attempt."""


class StoreError(UnavailableError):
    """The session store failed. Sessions are kept; the request is answered with 503."""


class OAuthError(CMAuthError):
    """CameraManager answered with an OAuth error (RFC 6749 §5.2).

    Only the error code is kept. ``error_description`` is dropped on purpose: CameraManager's
    may repeat the token or the code.

    Attributes:
        error: the code, ``invalid_grant`` for example.
    """

    def __init__(self, error: str) -> None:
        super().__init__(f"CameraManager answered {error}")
        self.error = error


class OperatorError(OAuthError):
    """CameraManager refuses this application's API key. Users keep their sessions; fix the key."""
