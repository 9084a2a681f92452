"""Puts the pictures of the documentation into the pages that ask for them.

A page asks by a line ``<!-- picture: NAME | what it shows -->``. The files are ``NAME.webp``, or
``NAME-light.webp`` and ``NAME-dark.webp``, of which a reader sees the one that fits the page.
``nox -s pictures`` takes them. A page whose pictures are not there is shown without them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent / "assets" / "pictures"
_ASKED = re.compile(r"^(?P<indent> *)<!-- picture: (?P<name>[\w-]+) \| (?P<text>.+) -->$", re.M)
_VARIANTS = {"": "", "-light": "#only-light", "-dark": "#only-dark"}  # the theme reads these


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Fill in the pictures (a hook of mkdocs)."""
    up = "../" * page.file.src_uri.count("/")
    return _ASKED.sub(
        lambda found: found["indent"] + image(found["name"], found["text"], up), markdown
    )


def asked_for(markdown: str) -> list[str]:
    """Return the names of the pictures that a page asks for."""
    return [found["name"] for found in _ASKED.finditer(markdown)]


def files_of(name: str) -> dict[str, str]:
    """Return the files of a picture that are there, and for each the mark that the theme reads."""
    files = {f"{name}{variant}.webp": mark for variant, mark in _VARIANTS.items()}
    return {file: mark for file, mark in files.items() if (FOLDER / file).exists()}


def image(name: str, text: str, up: str = "") -> str:
    """Return a picture as Markdown.

    Args:
        name: of the picture.
        text: what it shows, for those who do not see it.
        up: leads from the page's folder to that of the documentation.
    """
    return " ".join(
        f"![{text}]({up}assets/pictures/{file}{mark}){{ .picture loading=lazy }}"
        for file, mark in files_of(name).items()
    )
