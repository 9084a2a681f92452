"""Writes into the pages what they are of: the version, and the address of the repository.

The address comes from ``REPOSITORY_URL``, for the repository may move; without it the pages say
``git+https://…``, and have no link to the repository.

Pages that mike makes for a site of several versions (it sets ``MIKE_DOCS_VERSION``) have a list of
them in their head. Others do not ask for it: they are read from a folder.
"""

from __future__ import annotations

import os
from typing import Any

from cm_auth_middleware import __version__

_UNKNOWN = "git+https://…"


def on_config(config: Any, **_: Any) -> Any:
    """Put the version at the end of each page, and the list of them (a hook of mkdocs)."""
    config.copyright = f"Version {__version__}"
    if os.environ.get("MIKE_DOCS_VERSION"):
        config.extra["version"] = {"provider": "mike", "alias": True}
    return config


def on_page_markdown(markdown: str, *, config: Any, **_: Any) -> str:
    """Fill in the address where a page installs the package from it (a hook of mkdocs)."""
    address = config.repo_url
    return markdown.replace(_UNKNOWN, f"git+{address}") if address else markdown
