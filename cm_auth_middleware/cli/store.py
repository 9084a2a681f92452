"""Check the session store: it can be reached, written, read and emptied."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from cm_auth_middleware.cli.findings import ERROR, OK, WARNING, Finding
from cm_auth_middleware.config import CMAuthConfig
from cm_auth_middleware.display import shown_file
from cm_auth_middleware.errors import ConfigError, StoreError
from cm_auth_middleware.runtime.run_sync import run_sync
from cm_auth_middleware.stores import SessionStore, open_store, parse
from cm_auth_middleware.stores.file_system import ADVICE, sentence, unfit_file_system
from cm_auth_middleware.stores.sqlite_file import check_access


def open_blocking(url: str) -> SessionStore:
    """Open a store for a program without an event loop."""
    store = open_store(url)
    blocking: SessionStore = getattr(store, "blocking", lambda: store)()
    return blocking


def check(config: CMAuthConfig) -> Iterator[Finding]:
    """Try the store that the options name."""
    url = str(config.store)
    kind, path = parse(url)
    if kind == "memory":
        yield Finding(
            WARNING,
            "store",
            "memory:// serves one process, and forgets every session when that ends",
            "Give sqlite:///sessions.db or redis://host for several workers, or to keep sessions.",
        )
        return
    try:
        store = open_blocking(url)
    except ConfigError as error:
        yield Finding(ERROR, "store", str(error))
        return
    try:
        if path is not None:
            path = path.absolute()
            for entry, reason in check_access(path):
                yield Finding(WARNING, "store", f"{entry}: {reason}")
            file_system = unfit_file_system(path)
            if file_system is not None:
                text = sentence(shown_file(str(path)), file_system)
                yield Finding(WARNING, "store", text, ADVICE)
        if path is not None and not path.exists():
            yield _new_file(path)
            return
        refused = run_sync(_refused(store))
        if refused:
            yield refused
        if refused is None or refused.level < ERROR:
            run_sync(_try(store))
            if not run_sync(_tells_of_failovers(store)):
                yield _UNSEEN
    except StoreError as error:
        yield Finding(ERROR, "store", str(error))
    except Exception as error:  # its text and a traceback may quote options of the URL
        yield Finding(ERROR, "store", f"cannot be used ({type(error).__name__})")
    else:
        if refused is None or refused.level < ERROR:
            yield Finding(OK, "store", "was reached, written, read and emptied again")
    finally:
        run_sync(store.close())


# Rights without which users still come in and stay in.
_MINOR = frozenset({"+info", "+zrem"})
_UNSEEN = Finding(
    WARNING,
    "store",
    "does not tell when another server takes over: tokens that a failover loses are not put back",
    "A user of Redis needs the right +info for that; some proxies and services cannot tell it.",
)


async def _refused(store: SessionStore) -> Finding | None:
    """Find what the user of the store may not do, where the store can tell."""
    ask = getattr(store, "refused_rights", None)
    rights = await ask() if ask else []
    if not rights:
        return None
    commands = [right[1:].upper().replace("|", " ") for right in rights if right.startswith("+")]
    keys = [right[1:] for right in rights if right.startswith("~")]
    lacking = [*(f"keys {pattern}" for pattern in keys), *commands]
    return Finding(
        WARNING if _MINOR.issuperset(rights) else ERROR,
        "store",
        f"does not permit the user what it needs: {', '.join(lacking)}",
        f"ACL SETUSER … {' '.join(rights)} (see Redis rights (ACL) in the documentation).",
    )


async def _tells_of_failovers(store: SessionStore) -> bool:
    epochs = getattr(store, "epochs", None)
    return epochs is None or bool(await epochs())


async def _try(store: SessionStore) -> None:
    key, value = f"check.{secrets.token_hex(16)}", secrets.token_bytes(64)
    await store.ping()
    await store.put(key, value, 60)
    found = await store.get(key)
    await store.delete(key)
    if found != value:  # pragma: no cover - no store of this package does
        raise StoreError("the store returned another value than the one written")


def _new_file(path: Path) -> Finding:
    """Check the folder of a file that the application will create, so that its user owns it."""
    folder, shown = path.resolve().parent, shown_file(str(path))
    where = shown_file(str(folder)) if shown == str(path) else f"of {shown}"
    if not folder.is_dir():
        return Finding(ERROR, "store", f"there is no folder {where}", "Create it.")
    if not os.access(folder, os.W_OK | os.X_OK):
        return Finding(ERROR, "store", f"this user may not write in the folder {where}")
    return Finding(OK, "store", f"{shown} will be created with the first session")
