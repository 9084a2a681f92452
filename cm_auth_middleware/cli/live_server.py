"""Call a server as the middleware does, and see all of each answer."""

from __future__ import annotations

import base64
import json
import time
from collections import deque
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote, urlencode

import httpx2

from cm_auth_middleware.cli.live_interruptions import Interruptions
from cm_auth_middleware.cli.live_report import Refused, Report, challenge, known_error, names
from cm_auth_middleware.cli.network import reason
from cm_auth_middleware.cli.output import say
from cm_auth_middleware.config import CMAuthConfig
from cm_auth_middleware.errors import UnavailableError
from cm_auth_middleware.runtime import http
from cm_auth_middleware.runtime.threads import Deadline
from cm_auth_middleware.tokens.provider import find_provider

_MOST_PATIENCE = 90.0  # seconds of waiting because of 429, in the whole check
_LONGEST_WAIT = 15.0  # seconds before the same call is tried again


class Unreachable(Exception):  # noqa: N818 - the check says it as a sentence
    """The server gave no answer.

    Attributes:
        is_sent: True if the server may have acted on the request.
    """

    def __init__(self, why: str, *, is_sent: bool = False) -> None:
        super().__init__(why)
        self.is_sent = is_sent


class Answer:
    """An answer of the server.

    Attributes:
        status: its status.
        headers: its headers.
        encoding: "gzip", "deflate", "another", which cannot be read, or empty.
        members: the members of its JSON object; empty if it is none.
        access_token, refresh_token: what a token call gave; None if it gave none.
    """

    def __init__(self, response: httpx2.Response) -> None:
        self.status = response.status_code
        self.headers = response.headers.copy()  # bound() takes one away
        self.encoding, body = _read(response)
        self.members: dict[str, Any] = {}
        try:
            value = json.loads(body)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict):
            self.members = value
        self.access_token = self._token("access_token")
        self.refresh_token = self._token("refresh_token")

    @property
    def error(self) -> str:
        """The OAuth error, as a word that is known."""
        return known_error(self.members.get("error"))

    @property
    def hides_tokens(self) -> bool:
        """True if a token call was answered so that it may have given tokens, and shows none."""
        return self.access_token is None and not 300 <= self.status < 500

    @property
    def lifetime(self) -> int | None:
        """The seconds of ``expires_in``; None if it is no number."""
        value = self.members.get("expires_in")
        if not isinstance(value, int | float) or isinstance(value, bool):
            return None
        return round(value) if abs(value) < 10**10 else None

    def refused(self, secrets: set[str]) -> Refused:
        """Return what this error looks like."""
        return Refused(
            self.status,
            self.error,
            names(self.members, secrets),
            names((name.lower() for name in self.headers), secrets),
            challenge(self.headers.get("WWW-Authenticate", "")),
        )

    def _token(self, name: str) -> str | None:
        value = self.members.get(name)
        return value if self.status == 200 and isinstance(value, str) and value else None


class Server:
    """The configured server.

    Args:
        report: learns of compression, of a rate limit, and of errors that repeat a value.
        interruptions: may shorten a call.

    Attributes:
        secrets: every value that must not be printed.
    """

    def __init__(self, config: CMAuthConfig, report: Report, interruptions: Interruptions) -> None:
        self.provider = find_provider(config.provider)
        self.secrets: set[str] = set(config.secret_key) | {config.client_secret}
        self._config = config
        self._report = report
        self._interruptions = interruptions
        self._api_base = ""  # where the API is, once a token answer has said it
        self._calls: deque[float] = deque()  # times of those of the last minute
        self._patience = _MOST_PATIENCE
        key = config.client_id, config.client_secret
        if self.provider.encodes_key:
            key = quote(config.client_id, safe=""), quote(config.client_secret, safe="")
        basic = base64.b64encode(":".join(key).encode()).decode()
        self.secrets.add(basic)
        self._key = {"Authorization": f"Basic {basic}"}
        self._tls = httpx2.create_ssl_context()

    def token(
        self, grant_type: str, *, scope: str | None, in_query: bool = False, **parameters: str
    ) -> Answer:
        """Call the token endpoint (RFC 6749 §4.1.3, §6).

        Args:
            scope: None to leave it out.
            in_query: send the parameters in the URL, as CameraManager's guide shows it.
            parameters: the others of the call.
        """
        url = self._config.base_url + self.provider.token_path
        given = {"scope": scope} if scope is not None else {}
        form = urlencode({"grant_type": grant_type, **parameters, **given})
        headers = {"Content-Type": "application/x-www-form-urlencoded", **self._key}
        sent = [parameters[name] for name in ("code", "refresh_token") if name in parameters]
        if in_query:
            answer = self._call("POST", f"{url}?{form}", headers, b"", sent)
        else:
            answer = self._call("POST", url, headers, form.encode(), sent)
        found = self.provider.api_base(answer.members, self._config.base_url)
        self._api_base = found or self._api_base
        return answer

    def api_host(self, answer: Answer) -> str:
        """Return what a token answer says of the API's host, in the words of `Report`."""
        field = self.provider.api_host_field
        if not field:
            return ""
        if self.provider.api_base(answer.members, self._config.base_url):
            return "believed"
        return "not believed" if field in answer.members else "left out"

    def probe(self) -> Answer:
        """Ask without a token: for a user, or for nothing if the API's host is not known yet."""
        url = self.provider.probe_url(self._config.base_url) or self._config.base_url
        return self._call("GET", url, {})

    def user(self, access_token: str) -> Answer:
        """Ask for the user of an access token."""
        url = self.provider.user_url(self._api_base or self._config.base_url)
        headers = {"Authorization": f"Bearer {access_token}"}
        return self._call("GET", url, headers, sent=[access_token])

    def log_out(self, access_token: str, refresh_token: str | None) -> Answer:
        """End a grant, as the provider says it is done."""
        url = self._config.base_url + self.provider.logout_path
        if self.provider.revokes_refresh_tokens:  # RFC 7009 §2.1
            form = urlencode({"token": refresh_token or access_token})
            headers = {"Content-Type": "application/x-www-form-urlencoded", **self._key}
            return self._call("POST", url, headers, form.encode())
        headers = {"Authorization": f"Bearer {access_token}"}
        return self._call("DELETE", url, headers, sent=[access_token])

    def page_status(self, url: str) -> int:
        """Return the status of a page that a browser is going to see."""
        return self._call_once("GET", url, {"Accept": "text/html"}, None).status

    def _call(
        self,
        method: str,
        url: str,
        headers: dict[str, str],
        content: bytes | None = None,
        sent: list[str] | None = None,
    ) -> Answer:
        """Make a call; wait and repeat it while the answer is 429."""
        while True:
            self._count()
            answer = self._call_once(method, url, headers, content)
            if answer.status != 429:
                self._learn(answer, sent or [])
                return answer
            if self._report.rate_limit is None:
                self._report.rate_limit = len(self._calls) - 1
                say("The server answers 429, too many requests; this waits as it asks.")
            wait = answer.headers.get("Retry-After", "")
            seconds = min(float(wait) if wait.isdecimal() else 1.0, _LONGEST_WAIT)
            if seconds > self._patience:
                raise Unreachable("it answered 429 for too long")
            self._patience -= seconds
            self._interruptions.sleep(seconds)
            if self._interruptions.is_pending:
                return answer

    def _count(self) -> None:
        now = time.monotonic()
        while self._calls and self._calls[0] <= now - 60:
            self._calls.popleft()
        self._calls.append(now)

    def _call_once(
        self, method: str, url: str, headers: dict[str, str], content: bytes | None
    ) -> Answer:
        headers = {"Accept": "application/json", **headers, **http.UNCOMPRESSED}
        deadline, is_sent = Deadline(self._config.timeout), False

        def trace(event: str, info: dict[str, Any]) -> None:
            nonlocal is_sent
            is_sent = is_sent or event.endswith("send_request_headers.started")
            deadline.trace(event, info)

        try:
            with (
                # A connection of its own: the deadline knows the sockets that it saw connected.
                httpx2.Client(
                    trust_env=False, timeout=self._config.timeout, verify=self._tls
                ) as client,
                deadline,
                self._interruptions.cutting(deadline.cut),
                client.stream(
                    method, url, headers=headers, content=content, extensions={"trace": trace}
                ) as response,
            ):
                return Answer(response)
        except httpx2.RemoteProtocolError:
            why = "it closed the connection, or its answer is broken"
        except UnavailableError as error:
            why = str(error)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            why = reason(error)
        # Out here, because httpx2's error may repeat URL and answer.
        raise Unreachable(why, is_sent=is_sent)

    def _learn(self, answer: Answer, sent: list[str]) -> None:
        self.secrets |= {token for token in (answer.access_token, answer.refresh_token) if token}
        # E-mail addresses, of which a server may make a name of a member or a header.
        self.secrets |= {v for v in answer.members.values() if isinstance(v, str) and "@" in v}
        if answer.encoding:
            self._report.compression = answer.encoding
        said = str(answer.members.get("error_description", ""))
        said += answer.headers.get("WWW-Authenticate", "")
        if answer.status >= 400 and any(value in said for value in sent):
            self._report.repeats_values = True


def _read(response: httpx2.Response) -> tuple[str, bytes]:
    """Read an answer as the middleware does; return its encoding (see `Answer`) and its body."""
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    try:
        http.bound(response)
    except UnavailableError:
        return "another", b""
    return "" if encoding == "identity" else encoding.removeprefix("x-"), response.read()


def clock_skew(date: str) -> int | None:
    """Return the seconds that a server's clock is ahead, by its header ``Date``; None without."""
    try:
        theirs = parsedate_to_datetime(date).timestamp()
    except ValueError:
        return None
    return round(theirs + 0.5 - time.time())  # it is told in whole seconds
