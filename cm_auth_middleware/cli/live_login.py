"""Let a person log in, and catch the authorization code.

On loopback a listener of this command answers at the redirect URI. Elsewhere the person pastes the
address that the browser ends at.
"""

from __future__ import annotations

import queue
import secrets
import socket
import socketserver
import sys
import threading
import time
import webbrowser
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from types import TracebackType
from typing import Any, Protocol, Self
from urllib.parse import parse_qsl, urlsplit

from cm_auth_middleware.cli.output import say
from cm_auth_middleware.config import LOOPBACK

_PATIENCE = 600.0  # seconds for a login; a person may need a second factor
_DOUBT = 5.0  # seconds in which a callback with the state may follow one without
_STATE_BYTES = 150  # 200 characters, about as many as in an application's login
_ATTEMPTS = 3  # at pasting the address
_MOST_ADDRESS = 8192  # characters

Parameters = dict[str, str]

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>:root {{ color-scheme: light dark }} body {{ font: 1.1rem/1.5 system-ui, sans-serif;
max-width: 32rem; margin: 20vh auto; padding: 0 1rem }}</style>
<h1>{title}</h1>
<p>{text}</p>
</html>
"""


class CannotListen(Exception):  # noqa: N818 - the check says it as a sentence
    """The redirect URI cannot be listened at."""


class Cancelled(Exception):  # noqa: N818 - no error: a person decided so
    """The person did not log in."""


@dataclass(frozen=True, slots=True)
class Callback:
    """What a login came back with.

    Attributes:
        parameters: of the redirect URI, after the login.
        code_verifier: of the PKCE challenge that the login was started with.
        state_echoed: True if the state came back.
    """

    parameters: Parameters
    code_verifier: str
    state_echoed: bool


class Source(Protocol):
    """A way in which the parameters of a callback arrive.

    Attributes:
        opens_browser: False if the person has to choose the browser window.
    """

    name: str
    opens_browser: bool

    def expect(self, state: str) -> None:
        """Accept a callback with this state, or with none, from now on."""

    def wait(self) -> Parameters:
        """Return the parameters of the callback that is expected.

        Raises:
            Cancelled: nobody logged in.
        """


class Logins:
    """Starts logins.

    Args:
        source: how the parameters of the callback arrive.
        url: returns the authorization URL for a state and a code verifier.
        secrets: gets what must not be printed.
        opens_browser: open the browser; the URL is printed in any case.
    """

    def __init__(
        self,
        source: Source,
        url: Callable[[str, str], str],
        secrets: set[str],
        *,
        opens_browser: bool,
    ) -> None:
        self.source = source
        self.url = url
        self._secrets = secrets
        self._opens_browser = opens_browser

    def log_in(self) -> Callback:
        """Let the person log in.

        Raises:
            Cancelled: the person did not.
        """
        state, verifier = secrets.token_urlsafe(_STATE_BYTES), secrets.token_urlsafe(32)
        self._secrets.add(verifier)
        url = self.url(state, verifier)
        self.source.expect(state)  # before a fast browser comes back
        say()
        if not self.source.opens_browser:
            say("Open this address in a private window, and log in. In another window the")
            say("application, if you are logged in there, may go on to a page of its own, and the")
            say("address to paste is gone.")
        elif self._opens_browser and webbrowser.open(url):
            say("Log in, in the browser that opens. If none does, open this address:")
        else:
            say("Open this address in a browser, and log in:")
        say()
        say(f"  {url}")
        say()
        parameters = self.source.wait()
        self._secrets.add(parameters.get("code", ""))
        self._secrets.discard("")
        return Callback(parameters, verifier, parameters.get("state") == state)


# -- on loopback ---------------------------------------------------------------------------


def can_listen(redirect_uri: str) -> bool:
    """True if this machine is where the redirect URI leads, and needs no TLS there."""
    parts = urlsplit(redirect_uri)
    host = parts.hostname or ""
    return parts.scheme == "http" and (host in LOOPBACK or host == "::1" or host[:4] == "127.")


class Listener:
    """Answers at a redirect URI on loopback; a context manager.

    Raises:
        CannotListen: on entering, if the port is in use, or may not be used.
    """

    name = "listener"
    opens_browser = True

    def __init__(self, redirect_uri: str) -> None:
        parts = urlsplit(redirect_uri)
        self._path = parts.path
        self._port = parts.port or 80
        host = parts.hostname or ""
        # A browser may try either address of the name.
        self._addresses = ["127.0.0.1", "::1"] if host == "localhost" else [host]
        self._servers: list[_Server] = []
        self._state: str | None = None  # of the login that is waited for
        self._arrived: queue.Queue[Parameters] = queue.Queue()

    def expect(self, state: str) -> None:
        """Accept a callback with this state, or with none, from now on."""
        self._arrived = queue.Queue()
        self._state = state

    def wait(self) -> Parameters:
        """Wait for the browser.

        Any page and any program can request the redirect URI without a state. So such a callback
        is believed only if none with the state follows.
        """
        without_state: Parameters | None = None
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end:
            try:
                parameters = self._arrived.get(timeout=0.2)  # Ctrl-C is heard in between
            except queue.Empty:
                continue
            if "state" in parameters:
                return parameters
            if without_state is None:
                end = min(end, time.monotonic() + _DOUBT)
            without_state = parameters  # the last one, as strays are more likely before the login
        self._state = None
        if without_state is not None:
            return without_state
        raise Cancelled(f"nobody logged in for {_PATIENCE / 60:.0f} minutes")

    def __enter__(self) -> Self:
        try:
            for address in self._addresses:
                self._listen(address)
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close()

    def _listen(self, address: str) -> None:
        if _answers(address, self._port):
            raise CannotListen(
                f"port {self._port} of redirect_uri is in use: stop the application there while "
                "this check runs, for it would get the browser that comes back"
            )
        try:
            server = _Server((address, self._port), self._handler())
        except OSError as error:
            if self._servers:  # a machine without IPv6
                return
            raise CannotListen(
                f"port {self._port} cannot be listened on ({error.strerror}); with --paste you "
                "paste the address that the browser ends at"
            ) from None
        self._servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True).start()

    def _close(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def _receive(self, path: str) -> tuple[int, str, str]:
        """Take the parameters of a callback; return the page to answer with."""
        found = urlsplit(path)
        if found.path != self._path:
            return 404, "Not found", "cm-auth waits for a login at another path."
        parameters, state = _parameters(found.query), self._state
        if parameters is None or state is None or parameters.get("state", state) != state:
            return 400, "Another login", "This is not the login that cm-auth waits for."
        if "state" in parameters:
            self._state = None
        self._arrived.put(parameters)
        return 200, "Back to the terminal", "cm-auth goes on there. You can close this tab."

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        receive = self._receive

        class Handler(BaseHTTPRequestHandler):
            timeout = 10  # seconds

            def do_GET(self) -> None:
                status, title, text = receive(self.path)
                body = _PAGE.format(title=title, text=text).encode()
                self.send_response(status)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Cache-Control", "no-store")
                self.send_header("Referrer-Policy", "no-referrer")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                """Print nothing: the path has the code."""

        return Handler


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = sys.platform != "win32"  # where it means to share the port
    daemon_threads = True

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self.address_family = _family(address[0])
        super().__init__(address, handler)


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _answers(address: str, port: int) -> bool:
    """True if a program listens at the port: some systems let two programs listen at one."""
    try:
        with socket.socket(_family(address)) as probe:
            probe.settimeout(1)
            return probe.connect_ex((address, port)) == 0
    except OSError:  # a machine without IPv6
        return False


# -- elsewhere -----------------------------------------------------------------------------


class Paste:
    """Lets the person paste the address that the browser ended at."""

    name = "paste"
    opens_browser = False

    def __init__(self, redirect_uri: str) -> None:
        self._redirect_uri = redirect_uri
        self._state = ""

    def expect(self, state: str) -> None:
        """Accept an address with this state, or with none, from now on."""
        self._state = state

    def wait(self) -> Parameters:
        """Wait for the address."""
        say("The browser ends at your redirect_uri. The page there does not matter: the")
        say("application does not know this login. Copy the whole address and paste it here. If")
        say("the address has no code=, stop the application, and open the address above again.")
        say("An empty line cancels.")
        for _ in range(_ATTEMPTS):
            line = read_line("Address: ")
            if not line:
                break
            url, _, query = line.partition("?")
            parameters = _parameters(query.partition("#")[0])
            if url != self._redirect_uri.partition("?")[0] or parameters is None:
                say("This is not the redirect_uri with what the server adds to it.")
            elif parameters.get("state", self._state) != self._state:
                say("This address is of another login.")
            else:
                return parameters
        raise Cancelled("no address was pasted")


def read_line(prompt: str) -> str:
    """Ask for a line; return it without spaces around it. It is empty at the end of the input."""
    sys.stdout.write(prompt)
    sys.stdout.flush()
    line = sys.stdin.readline()
    if not line or not sys.stdin.isatty():  # no terminal that shows the end of the line
        say()
    return line.strip()


def _parameters(query: str) -> Parameters | None:
    """Return the parameters of a callback; None if it is none, or one of them is there twice."""
    if len(query) > _MOST_ADDRESS:
        return None
    pairs = parse_qsl(query, keep_blank_values=True)
    parameters = dict(pairs)
    is_one = len(parameters) == len(pairs) and bool(parameters.keys() & {"code", "error"})
    return parameters if is_one else None
