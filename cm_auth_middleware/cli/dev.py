"""``cm-auth dev``: your own application with a simulated server, while you work on it."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
import time
import webbrowser
from collections.abc import Mapping
from pathlib import Path

import click

from cm_auth_middleware import environment
from cm_auth_middleware.cli.demo import (
    provider_option,
    refuse_host,
    simulated,
    stopper,
    tell,
)
from cm_auth_middleware.cli.output import Refusal, as_json, say
from cm_auth_middleware.config import LOOPBACK

_TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*(\(\))?", re.ASCII)
_LOOK_EVERY = 0.5  # seconds between two looks at the files
_PATIENCE = 10.0  # seconds that the application has to end
_WATCHED = (".py", ".html", ".jinja", ".jinja2", ".j2", ".toml")
# Options that name a server, its users or the site: here there are others.
_REPLACED = (
    "client_id", "client_secret", "secret_key", "provider", "base_url", "scope", "redirect_uri",
    "store", "allowed_hosts", "allow_emails", "allow_accounts", "cookie_secure",
)  # fmt: skip


@click.command(short_help="Run your application with a simulated CameraManager or Eagle Eye.")
@click.argument("target", metavar="MODULE:APP")
@provider_option
@click.option("--wsgi", is_flag=True, help="The application is WSGI: Flask, Django, Bottle, …")
@click.option(
    "--port", default=8000, show_default=True, help="Port of the application; 0: a free one."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--cm-port", default=0, help="Port of the simulated server; 0: a free one.")
@click.option("--token-lifetime", default=43199, show_default=True, help="Seconds.")
@click.option("--no-reload", is_flag=True, help="Do not start again when a file changes.")
@click.option("--open", "open_browser", is_flag=True, help="Open the browser.")
@as_json
def dev(
    target: str,
    provider: str,
    wsgi: bool,
    port: int,
    host: str,
    cm_port: int,
    token_lifetime: int,
    no_reload: bool,
    open_browser: bool,
    as_json: bool,
) -> None:
    """Run your application with a simulated server on this machine; Ctrl-C ends both.

    The server is CameraManager, or Eagle Eye's API v3 with --provider eagleeye.

    MODULE:APP is the application, such as main:app or main:create_app(). It needs no API key: the
    options that it does not give in its code are those of the simulator, and its sessions are kept
    in a file while the command runs. It is started again when a file in this folder changes.
    """
    try:
        from cm_auth_middleware.testing import Simulator, SimulatorServer
        from cm_auth_middleware.testing.server import listen
    except ImportError as error:
        raise Refusal(
            f"dev needs {error.name or error}: pip install 'cm_auth_middleware[demo]'"
        ) from None
    if not _TARGET.fullmatch(target):
        raise Refusal("give MODULE:APP, such as main:app or main:create_app()")
    refuse_host(host, provider)
    settings = simulated(provider, token_lifetime)
    settings.any_key = True
    simulator = Simulator(settings, client_secret=secrets.token_urlsafe(24))
    stop = stopper()
    try:
        with (
            tempfile.TemporaryDirectory(prefix="cm-auth-dev-") as folder,
            SimulatorServer(simulator, cm_port, host) as cm,
        ):
            with contextlib.closing(listen(host, port)) as listener:  # is it free?
                port = listener.getsockname()[1]
            key = cm.client_id, cm.client_secret
            variables = _variables(provider, cm.url, key, folder, host)
            url = f"http://{_bracketed(host)}:{port}"
            tell(provider, url, cm.url, simulator.users[0], as_json=as_json)
            if open_browser:
                arguments = (url, host, port)
                threading.Thread(target=_open_when_there, args=arguments, daemon=True).start()
            status = _run(
                _command(target, wsgi, host, port), variables, not no_reload, as_json, stop
            )
    except RuntimeError as error:
        raise click.ClickException(str(error)) from None
    if status:
        raise SystemExit(status)
    if not as_json:
        say("Stopped.")


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _variables(
    provider: str, cm_url: str, key: tuple[str, str], folder: str, host: str
) -> dict[str, str]:
    """Return the environment of the application."""
    replaced = set(map(environment.variable, _REPLACED))
    own = {
        name: value
        for name, value in os.environ.items()
        if name.removesuffix("_FILE") not in replaced
    }
    options = {
        "provider": provider,
        "client_id": key[0],
        "client_secret": key[1],
        "secret_key": secrets.token_urlsafe(48),
        "base_url": cm_url,
        "store": f"sqlite:///{Path(folder) / 'sessions.db'}",
        "allowed_hosts": ",".join([*LOOPBACK, _bracketed(host)]),
    }
    return own | {environment.variable(name): value for name, value in options.items()}


def _command(target: str, wsgi: bool, host: str, port: int) -> list[str]:
    server = f"cm_auth_middleware.cli.{'wsgi' if wsgi else 'asgi'}_server"
    return [sys.executable, "-m", server, target, host, str(port)]


def _run(
    command: list[str],
    variables: Mapping[str, str],
    reload: bool,
    quiet: bool,
    stop: threading.Event,
) -> int:
    """Run the application until `stop` is set, or it ends and is not started again.

    Args:
        quiet: send what the application prints to standard error.
    """

    def start() -> subprocess.Popen[bytes]:
        output = 2 if quiet else None
        return subprocess.Popen(command, env=variables, stdout=output)  # noqa: S603

    files, process, told = _files() if reload else {}, start(), False
    try:
        while not stop.wait(_LOOK_EVERY):
            status = process.poll()
            if not reload:
                if status is not None:
                    return status
                continue
            now = _files()
            if now != files:
                _end(process)
                files, process, told = now, start(), False
            elif status is not None and not told:
                told = True
                click.echo("The application has ended; a change starts it again.", err=True)
    finally:
        _end(process)
    return 0


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _files() -> dict[str, int]:
    """Return when each file in this folder that is code or a template was changed."""
    found = {}
    for folder, folders, names in os.walk("."):
        folders[:] = [
            name
            for name in folders
            if not name.startswith((".", "__pycache__", "node_modules"))
            and not Path(folder, name, "pyvenv.cfg").exists()
        ]
        for name in names:
            if name.endswith(_WATCHED):
                with contextlib.suppress(OSError):  # it was removed just now
                    path = os.path.join(folder, name)  # noqa: PTH118 - for thousands of files
                    found[path] = os.stat(path).st_mtime_ns  # noqa: PTH116
    return found


def _open_when_there(url: str, host: str, port: int) -> None:
    """Open the browser once the application listens."""
    for _ in range(100):
        with contextlib.suppress(OSError), socket.create_connection((host, port), 1):
            webbrowser.open(url)
            return
        time.sleep(0.2)
