"""``cm-auth demo``: a simulated CameraManager, or Eagle Eye API v3, and the dashboard."""

from __future__ import annotations

import importlib.util
import secrets
import signal
import threading
import webbrowser
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import click

from cm_auth_middleware.cli.output import Refusal, as_json, say, say_json
from cm_auth_middleware.config import LOOPBACK
from cm_auth_middleware.tokens.provider import PROVIDERS, find_provider

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from cm_auth_middleware.testing import Settings

provider_option = click.option(
    "--provider",
    type=click.Choice(list(PROVIDERS)),
    default="cameramanager",
    show_default=True,
    help="The server to simulate: CameraManager, or Eagle Eye's API v3.",
)


@click.command(short_help="Run a simulated CameraManager or Eagle Eye, and the dashboard.")
@provider_option
@click.option(
    "--port", default=8000, show_default=True, help="Port of the dashboard; 0: a free one."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--cm-port", default=0, help="Port of the simulated server; 0: a free one.")
@click.option("--token-lifetime", default=43199, show_default=True, help="Seconds.")
@click.option("--open", "open_browser", is_flag=True, help="Open the browser.")
@as_json
def demo(
    provider: str,
    port: int,
    host: str,
    cm_port: int,
    token_lifetime: int,
    open_browser: bool,
    as_json: bool,
) -> None:
    """Run a simulated server and the dashboard on this machine; Ctrl-C ends both.

    The server is CameraManager, or Eagle Eye's API v3 with --provider eagleeye.
    """
    try:
        from cm_auth_middleware.testing import AppServer, Simulator, SimulatorServer

        create_app = _dashboard().create_app
    except ImportError as error:
        raise Refusal(
            f"the demo needs {error.name or error}: pip install 'cm_auth_middleware[demo]'"
        ) from None
    refuse_host(host, provider)
    simulator = Simulator(
        simulated(provider, token_lifetime), client_secret=secrets.token_urlsafe(24)
    )
    stop = stopper()
    try:
        with SimulatorServer(simulator, cm_port, host) as cm:
            app: ASGIApp = create_app(
                provider=provider,
                client_id=cm.client_id,
                client_secret=cm.client_secret,
                secret_key=secrets.token_urlsafe(48),
                base_url=cm.url,
                allowed_hosts=[*LOOPBACK, f"[{host}]" if ":" in host else host],
            )
            with AppServer(app, port, host) as site:
                tell(provider, site.url, cm.url, simulator.users[0], as_json=as_json)
                if open_browser:
                    threading.Thread(target=webbrowser.open, args=(site.url,), daemon=True).start()
                stop.wait()
    except RuntimeError as error:
        raise click.ClickException(str(error)) from None
    if not as_json:
        say("Stopped.")


def refuse_host(host: str, provider: str) -> None:
    """Refuse an address at which browsers, or the application, cannot reach the simulator."""
    from cm_auth_middleware.testing.simulator import host_refusal

    if host in ("0.0.0.0", "::"):  # noqa: S104 - refused here
        raise Refusal(
            "--host needs one address of this machine, at which browsers can reach both servers"
        )
    if refusal := host_refusal(provider, host):
        raise Refusal(refusal)


def simulated(provider: str, token_lifetime: int) -> Settings:
    """Return the settings of the simulator."""
    from cm_auth_middleware.testing import settings_for

    settings = settings_for(provider)
    settings.access_token_lifetime = token_lifetime
    return settings


def tell(provider: str, site: str, cm: str, user: Any, *, as_json: bool) -> None:
    """Print where to go, and what to type there."""
    if as_json:
        say_json({"url": site, "simulator": cm, "email": user.email, "password": user.password})
        return
    say(f"Simulated {find_provider(provider).name} at {cm}")
    say(f"Open      {site}")
    say(f"E-mail    {user.email}")
    say(f"Password  {user.password}")
    say("Ctrl-C ends both.")


def stopper() -> threading.Event:
    """Return an event that Ctrl-C and SIGTERM set.

    A command asks for it before it says that it runs: whoever reads that may end it at once.
    """
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    return stop


def _dashboard() -> ModuleType:
    """Load the dashboard: from the wheel, or from the checkout around this package."""
    package = Path(__file__).parent.parent
    folders = (package / "_demo", package.parent / "examples" / "dashboard")
    for folder in folders:
        path = folder / "app.py"
        if path.is_file():
            spec = importlib.util.spec_from_file_location("cm_auth_demo", path)
            assert spec is not None  # noqa: S101 - for the type
            assert spec.loader is not None  # noqa: S101
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module
    raise click.ClickException("the dashboard example is not in this installation")
