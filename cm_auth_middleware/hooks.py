"""The functions of an application that this package calls, and the page that one of them draws."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

User = Mapping[str, Any]
"""The JSON of CameraManager's ``users/self``."""

Allow = Callable[[User], bool | Awaitable[bool]]
"""The option ``allow``: may this user come in?"""


@dataclass(frozen=True, slots=True)
class ErrorPage:
    """A page for a person, as an ``error_handler`` gets it to draw it in the application's style.

    The values are plain text: escape them where they become HTML, as a template engine does.

    Attributes:
        status: the status of the response, 403 for example.
        kind: the stable name of the page: a key of `cm_auth_middleware.web.messages.MESSAGES`.
        title: a headline that says what happened, in the person's language.
        text: a sentence or two that explain it.
        link: the URL of the one thing to do next.
        label: the text of the link or button that leads there.
        method: ``get`` for a link, or ``post`` for a form without fields.
        language: the language of the texts: ``en``, ``nl``, ``de``, ``fr`` or ``es``.
        target: of the link: ``_top`` if the page is in a frame that the next step has to leave.
        back: the URL of a way back into the application; None on pages that have none.
        back_label: the text of the link that leads there.
        app_name: the option of this name.
        app_logo: the URL of the picture in the option of this name.
    """

    status: int
    kind: str
    title: str
    text: str
    link: str
    label: str
    method: str
    language: str
    target: str = "_self"
    back: str | None = None
    back_label: str | None = None
    app_name: str | None = None
    app_logo: str | None = None


ErrorHandler = Callable[[ErrorPage], "str | bytes | Awaitable[str | bytes | None] | None"]
"""The option ``error_handler``: returns the HTML of a page, or None for this package's own page."""
