"""The texts of the pages, and the choice of the language that a browser prefers.

Each language is a file beside this module, ``messages/<language>.toml``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import NamedTuple

LANGUAGES = ("en", "nl", "de", "fr", "es")
_NAMED = "CameraManager"  # the server, in the texts
_MOST_RANGES = 30  # of an Accept-Language header that are read; browsers send a handful
_RANGE = re.compile(r"([a-z]{1,8}|\*)(?:-[a-z0-9-]+)?\s*(?:;\s*q=([01](?:\.\d{0,3})?))?", re.I)


class Message(NamedTuple):
    """The words of one page.

    Attributes:
        title: a headline that says what happened.
        text: a sentence or two that explain it.
        action: the label of the one thing to do next.
        back: the label of the way back into the application, if there is one.
    """

    title: str
    text: str
    action: str
    back: str | None = None


def negotiate(accept_language: str | None) -> str:
    """Choose a language by an Accept-Language header (RFC 9110 §12.5.4); English if none fits.

    Regions are ignored (``nl-BE`` is Dutch); of two languages with equal weight the first wins.
    """
    best, best_q = "en", 0.0
    refused = set()
    for part in (accept_language or "").split(",", _MOST_RANGES)[:_MOST_RANGES]:
        found = _RANGE.fullmatch(part.strip())
        if found is None:
            continue
        language, q = found[1].lower(), float(found[2] or 1)
        if q == 0:
            refused.add(language)
        elif q > best_q and (language in LANGUAGES or language == "*"):
            best, best_q = language, q
    if best != "*":
        return best
    return next((language for language in LANGUAGES if language not in refused), "en")


@cache
def _read() -> dict[str, dict[str, Message]]:
    import tomllib  # when first needed: most processes show no page for long
    from importlib.resources import files

    folder = files(__package__) / "messages"
    texts = {
        language: tomllib.loads((folder / f"{language}.toml").read_text("utf-8"))
        for language in LANGUAGES
    }
    return {
        kind: {language: Message(**texts[language][kind]) for language in LANGUAGES}
        for kind in texts["en"]
    }


class _Messages(Mapping[str, Mapping[str, Message]]):
    """The texts, which are read when the first one is asked for."""

    def __getitem__(self, kind: str) -> Mapping[str, Message]:
        return _read()[kind]

    def __iter__(self) -> Iterator[str]:
        return iter(_read())

    def __len__(self) -> int:
        return len(_read())


MESSAGES = _Messages()
"""The texts by page and language, as in ``MESSAGES["denied"]["nl"]``."""


def words(kind: str, language: str, server: str) -> Message:
    """Return the words of a page, which name the server that the users know."""
    message = MESSAGES[kind][language]
    if server == _NAMED:
        return message
    title, text, action = (_renamed(part, language, server) for part in message[:3])
    return Message(title, text, action, message.back and _renamed(message.back, language, server))


def _renamed(text: str, language: str, server: str) -> str:
    if language == "de":  # a compound has hyphens throughout
        text = text.replace(f"{_NAMED}-", f"{server.replace(' ', '-')}-")
    if language == "fr" and server[:1].lower() in "aeiouy":
        text = text.replace(f"de {_NAMED}", f"d’{server}")
    return text.replace(_NAMED, server)
