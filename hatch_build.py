"""Makes the README fit for a package index, where its relative links and pictures lead nowhere.

``REPOSITORY_URL`` says where the repository is, as for the documentation; without it the README
stays as it is. What is linked to is the file at the tag of this version.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_RELATIVE = re.compile(r'(?P<before>\]\(|\b(?P<picture>src|srcset)=")(?![a-z]+:|#)(?P<path>[^)"]+)')
_UNKNOWN = "git+https://…"


class Readme(MetadataHookInterface):
    """Gives the distributions their README and the address of the repository."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set `readme` and `urls` (a hook of hatchling)."""
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        url = os.environ.get("REPOSITORY_URL", "").rstrip("/")
        if url:
            text = absolute(text, url, f"v{metadata['version']}").replace(_UNKNOWN, f"git+{url}")
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
        metadata["urls"] = {"Repository": url} if url else {}


def absolute(text: str, url: str, tag: str) -> str:
    """Return a README with the addresses of the files that it links to and shows."""
    return _RELATIVE.sub(
        lambda found: (
            f"{found['before']}{url}/{'raw' if found['picture'] else 'blob'}/{tag}/{found['path']}"
        ),
        text,
    )
