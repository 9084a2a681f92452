"""Pictures for the documentation, which the browser tests take on the way.

``nox -s pictures`` runs them with ``CM_AUTH_PICTURES``, and then this module, which copies what the
pages ask for: ``python -m tests.helpers.pictures FOLDER``.
"""

from __future__ import annotations

import io
import os
import re
import runpy
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from playwright.sync_api import Page, ViewportSize

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SIZES: dict[str, ViewportSize] = {
    "": {"width": 1280, "height": 800},
    "-phone": {"width": 390, "height": 700},
}
SCHEMES = ("light", "dark")
HOOK = runpy.run_path(str(DOCS / "_hooks" / "pictures.py"))
_IN_README = re.compile(r"docs/assets/pictures/([\w-]+\.webp)")


def keep(page: Page, name: str) -> None:
    """Take a picture of what the page shows, if ``CM_AUTH_PICTURES`` names a folder for them."""
    folder = os.environ.get("CM_AUTH_PICTURES")
    if folder:
        from PIL import Image

        Path(folder).mkdir(parents=True, exist_ok=True)
        shot = Image.open(io.BytesIO(page.screenshot()))
        shot.convert("RGB").save(Path(folder) / f"{name}.webp", quality=85, method=6)


def keep_each(page: Page, name: str) -> None:
    """Keep pictures in each size and colour scheme; the page is then as before."""
    before = page.viewport_size
    if before is None or not os.environ.get("CM_AUTH_PICTURES"):
        return
    for size, viewport in SIZES.items():
        for scheme in SCHEMES:
            page.set_viewport_size(viewport)
            page.emulate_media(color_scheme=scheme)
            page.wait_for_timeout(500)  # for what moves
            keep(page, f"{name}{size}-{scheme}")
    page.set_viewport_size(before)
    page.emulate_media(color_scheme="light")


def asked_for() -> dict[str, list[str]]:
    """Return the pictures that each page of the documentation asks for, by name."""
    pages = {path.relative_to(DOCS).as_posix(): path for path in sorted(DOCS.rglob("*.md"))}
    names = {page: HOOK["asked_for"](path.read_text()) for page, path in pages.items()}
    return {page: asked for page, asked in names.items() if asked}


def in_readme() -> set[str]:
    """Return the files that the README shows."""
    return set(_IN_README.findall((ROOT / "README.md").read_text()))


def copy_from(folder: Path) -> list[str]:
    """Copy the pictures that are asked for from a folder; return the names of those copied."""
    HOOK["FOLDER"].mkdir(parents=True, exist_ok=True)
    names = {name for asked in asked_for().values() for name in asked}
    wanted = {f"{name}{variant}.webp" for name in names for variant in ("", "-light", "-dark")}
    copied = [file for file in sorted(wanted) if (folder / file).exists()]
    for file in copied:
        shutil.copy(folder / file, HOOK["FOLDER"])
    return copied


if __name__ == "__main__":
    print(*copy_from(Path(sys.argv[1])), sep="\n")
