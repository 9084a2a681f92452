"""The words of the pages: complete in every language, and chosen as the browser asks."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

import cm_auth_middleware
from cm_auth_middleware.web.messages import LANGUAGES, MESSAGES, negotiate, words

PACKAGE = Path(cm_auth_middleware.__file__).parent


def test_every_language_has_the_same_pages() -> None:
    texts = [path.read_text(encoding="utf-8") for path in PACKAGE.rglob("messages/*.toml")]
    assert len(texts) == len(LANGUAGES)
    for text in texts:
        assert list(tomllib.loads(text)) == list(MESSAGES)


def test_every_page_has_its_words_in_every_language() -> None:
    for kind, messages in MESSAGES.items():
        assert tuple(messages) == LANGUAGES, kind
        for language, message in messages.items():
            words = [part for part in message if part is not None]
            assert len(words) == 3 + (kind == "log_out"), (kind, language)  # it has a way back
            assert all(part.strip() == part != "" for part in words), (kind, language)
            assert message.title[-1] not in ".!", (kind, language)
            assert message.text.endswith("."), (kind, language)


def test_no_words_were_left_in_english() -> None:
    for kind, messages in MESSAGES.items():
        for language in LANGUAGES[1:]:
            for text, english in zip(messages[language], messages["en"], strict=True):
                assert text != english or text is None, (kind, language)


def test_the_pages_name_the_server_that_the_users_know() -> None:
    for kind, messages in MESSAGES.items():
        for language in LANGUAGES:
            assert words(kind, language, "CameraManager") == messages[language]
            text = " ".join(part or "" for part in words(kind, language, "Eagle Eye"))
            assert "CameraManager" not in text
            assert "de Eagle" not in text or language != "fr"
    assert words("log_in", "en", "Eagle Eye").action == "Log in with Eagle Eye"
    assert "Ihr Eagle-Eye-Konto" in words("log_in", "de", "Eagle Eye").text
    assert "d’Eagle Eye" in words("login_invalid", "fr", "Eagle Eye").text


def test_every_page_that_the_code_shows_is_in_the_table_and_the_reverse() -> None:
    code = "\n".join(path.read_text() for path in PACKAGE.rglob("*.py"))
    named = {name for name in re.findall(r'"([a-z_]+)"', code) if name in MESSAGES}
    assert named == set(MESSAGES)


@pytest.mark.parametrize(
    ("header", "language"),
    [
        (None, "en"),
        ("", "en"),
        ("nl", "nl"),
        ("nl-BE", "nl"),
        ("zh-Hant-TW, de-CH;q=0.9, en;q=0.8", "de"),
        ("en;q=0.3, fr;q=0.7", "fr"),
        ("ES;Q=1", "es"),
        ("de;q=0.5,nl;q=0.5", "de"),
        ("de;q=0, nl;q=0.1", "nl"),
        ("de;q=0", "en"),
        ("it, pt", "en"),
        ("*", "en"),
        ("*, nl;q=0.5", "en"),
        ("en;q=0, *;q=0.5", "nl"),
        ("en;q=0, nl;q=0, de;q=0, fr;q=0, es;q=0, *", "en"),
        ("fr ; q=0.900 , en; q=0.8", "fr"),
        ("nl;q=2", "en"),
        ("nl;q=abc", "en"),
        ("nl;q=", "en"),
        ("<script>, fr", "fr"),
        ("\x00\xff;q=1,,,; ;es", "en"),
        ("x," * 100 + "nl", "en"),
        ("a" * 100_000, "en"),
        ("-" * 50_000 + "nl", "en"),
    ],
)
def test_the_language_is_what_the_browser_prefers(header: str | None, language: str) -> None:
    assert negotiate(header) == language
