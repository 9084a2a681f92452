"""``cm-auth check --login``: log in at the configured server and find out how it behaves."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
import textwrap
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from cm_auth_middleware import __version__
from cm_auth_middleware.cli.findings import ERROR, OK, WARNING, Finding
from cm_auth_middleware.cli.live_expected import expected_of
from cm_auth_middleware.cli.live_findings import SKIPPED, findings
from cm_auth_middleware.cli.live_interruptions import Interruptions
from cm_auth_middleware.cli.live_login import (
    Cancelled,
    CannotListen,
    Listener,
    Logins,
    Paste,
    Source,
    can_listen,
    read_line,
)
from cm_auth_middleware.cli.live_probes import BrokenOff, CannotRun, LiveCheck
from cm_auth_middleware.cli.live_report import SCHEMA, VERSION, Report
from cm_auth_middleware.cli.live_server import Server, Unreachable
from cm_auth_middleware.cli.output import safe, say
from cm_auth_middleware.config import CMAuthConfig
from cm_auth_middleware.display import HIDDEN, shown_url
from cm_auth_middleware.engine import make_oauth_client
from cm_auth_middleware.runtime.threads import ThreadRuntime
from cm_auth_middleware.tokens.provider import PROVIDERS, find_provider

_MARKS = {OK: ("✓", "ok", "green"), WARNING: ("!", "!", "yellow"), ERROR: ("✗", "x", "red")}
_MARKS[SKIPPED] = ("–", "-", "white")
_WORDS = {OK: "as expected", WARNING: "differs", ERROR: "broken", SKIPPED: "not tried"}
_CANNOT_RUN = 2  # the exit status
_LEAST = 4  # characters; a shorter secret would also match inside words
_NEEDS = {"allow_emails": "email", "allow_accounts": "accountId"}


@dataclasses.dataclass(frozen=True, slots=True)
class Choices:
    """The command's options.

    Attributes:
        report: the file to write.
        opens_browser: False for ``--no-browser``.
        pastes: paste the address, also where the redirect URI is on loopback.
        says_yes: answer every question by yes.
        is_quiet: print what differs only.
    """

    report: Path | None
    opens_browser: bool
    pastes: bool
    says_yes: bool
    is_quiet: bool


def run(config: CMAuthConfig, choices: Choices) -> int:
    """Run the live check; return the exit status."""
    printer = _Printer(config, is_quiet=choices.is_quiet)
    try:
        with ExitStack() as stack:
            return _run(config, choices, printer, stack)
    except (CannotListen, CannotRun, Unreachable) as error:
        topic = getattr(error, "topic", "redirect_uri")
        if isinstance(error, Unreachable):
            topic = "base_url"
        printer.print(Finding(ERROR, topic, str(error)))
        return _CANNOT_RUN
    except KeyboardInterrupt:
        say()
        say("Interrupted.")
        return 1


def _run(config: CMAuthConfig, choices: Choices, printer: _Printer, stack: ExitStack) -> int:
    redirect_uri = config.redirect_uri
    if redirect_uri is None:
        raise CannotRun(
            "redirect_uri",
            "is not set: set CM_AUTH_REDIRECT_URI to one that is registered with the API key, such "
            f"as http://localhost:8000{config.prefix}/callback",
        )
    _check_writable(choices.report)
    report = new_report(config)
    interruptions = Interruptions()
    server = Server(config, report, interruptions)
    printer.watch(report, server)
    source: Source
    if can_listen(redirect_uri) and not choices.pastes:
        source = stack.enter_context(Listener(redirect_uri))
    else:
        source = Paste(redirect_uri)
    report.login_by = source.name
    stack.enter_context(interruptions)
    oauth = make_oauth_client(config, ThreadRuntime(config.timeout, config.base_url))
    logins = Logins(
        source,
        lambda state, verifier: oauth.authorization_url(redirect_uri, state, verifier),
        server.secrets,
        opens_browser=choices.opens_browser,
    )
    check = LiveCheck(
        server, report, logins, interruptions, redirect_uri, _asker(choices), printer.tell
    )
    if not choices.is_quiet:
        _announce(config)
    check.prepare()
    status = _log_in_and_revoke(check, report, printer)
    printer.tell(is_over=True)
    if choices.report is not None:
        printer.write(choices.report, status or printer.status)
    if not choices.is_quiet:
        _conclude(report, choices)
    return status or printer.status


def _log_in_and_revoke(check: LiveCheck, report: Report, printer: _Printer) -> int:
    """Return 0 if the check came to its end, else the exit status."""
    try:
        return _log_in(check, report, printer)
    finally:
        with suppress(KeyboardInterrupt):  # again: it comes after the revocation
            check.revoke()


def _log_in(check: LiveCheck, report: Report, printer: _Printer) -> int:
    try:
        check.run()
    except Cancelled as error:
        report.outcome = "cancelled"
        printer.print(Finding(ERROR, "login", f"{error}: nothing was obtained or revoked"))
    except KeyboardInterrupt:
        report.outcome = "cancelled"
        say()
        if check.has_tokens:
            say("Interrupted. Revoking what was obtained.")
        elif check.has_exchanged:
            say("Interrupted in the middle of a login.")
        else:
            say("Interrupted before a login: nothing was obtained, and nothing is revoked.")
    except BrokenOff:
        pass  # a finding says it
    except CannotRun as error:
        printer.print(Finding(ERROR, error.topic, str(error)))
        return _CANNOT_RUN
    except Unreachable as error:
        printer.print(Finding(ERROR, "base_url", f"the check breaks off here: {error}"))
        return _CANNOT_RUN
    else:
        return 0
    return 1


def _announce(config: CMAuthConfig) -> None:
    say(f"This check logs in at {shown_url(config.base_url)} and finds out how it behaves.")
    if expected_of(_named(config)).shares_tokens:
        say("- You log in once, in your browser, with an account of yours. A test account is best:")
        say("  the server may give every login of an account the same tokens, and this check")
        say("  ends them. Other browsers of the account then have to log in again.")
    else:
        say("- You log in once, in your browser, with an account of yours. A test account is best.")
    say("- It renews the tokens a few times, reads users/self, and revokes the tokens at its end.")
    say("- It prints and writes no token, code, password or e-mail address.")
    say()


def _conclude(report: Report, choices: Choices) -> None:
    say()
    if choices.report is not None and report.outcome != "complete":
        say("The report is written, with what was found out until then.")
    elif choices.report is not None:
        say("The report is written. Please attach it to an issue of cm_auth_middleware, also if")
        say("all is as expected: it has no secret, and no name or address of yours.")
    elif report.outcome == "complete":
        say("With --report FILE.json the result is written to a file that you can attach to an")
        say("issue of cm_auth_middleware. Please do, also if all is as expected.")


def _asker(choices: Choices) -> Callable[[str], bool]:
    def wants(question: str) -> bool:
        say()
        if choices.says_yes:
            say(f"{question} yes (--yes)")
            return True
        return read_line(f"{question} [y/N] ").lower() in ("y", "yes")

    return wants


def _check_writable(path: Path | None) -> None:
    """Find out before the login if the report can be written."""
    if path is None:
        return
    if not os.access(path if path.exists() else path.absolute().parent, os.W_OK):
        raise CannotRun("--report", "cannot be written: is its folder there, and yours?")


def new_report(config: CMAuthConfig) -> Report:
    """Return a report that knows no more than the configuration."""
    host = urlsplit(config.base_url).hostname or ""
    known = {provider.base_url: provider.name for provider in PROVIDERS.values()}
    server = known.get(config.base_url, "another")
    if host in ("localhost", "::1") or host.startswith("127."):
        server = "loopback"
    return Report(
        provider=_named(config),
        server=server,
        scope_asked=config.scope or "",
        package=__version__,
        date=datetime.fromtimestamp(time.time(), UTC).date().isoformat(),
    )


def _named(config: CMAuthConfig) -> str:
    """Return the name of the provider; "another" for one of the user's own."""
    return config.provider if isinstance(config.provider, str) else "another"


class _Printer:
    """Prints findings as they are made, each once, without secrets.

    Attributes:
        status: the exit status that the findings so far mean.
    """

    def __init__(self, config: CMAuthConfig, *, is_quiet: bool) -> None:
        self._provider = find_provider(config.provider)
        self._needs = {
            member: option for option, member in _NEEDS.items() if getattr(config, option)
        }
        self._is_quiet = is_quiet
        self._said: set[str] = set()
        self._report: Report | None = None
        self._secrets: set[str] = set()
        self._width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        try:
            "✓✗–".encode(encoding)
            self._mark = 0
        except (LookupError, UnicodeEncodeError):
            self._mark = 1
        self.status = 0

    def watch(self, report: Report, server: Server) -> None:
        """Print what this report says, without the secrets of this server."""
        self._report, self._secrets = report, server.secrets

    def tell(self, *, is_over: bool = False) -> None:
        """Print what is new in the report."""
        for finding in self._findings(is_over=is_over):
            if finding.topic not in self._said:
                self._said.add(finding.topic)
                self.print(finding)

    def print(self, finding: Finding) -> None:
        """Print a line."""
        if finding.level > OK:
            self.status = 1
        elif self._is_quiet:
            return
        mark = _MARKS[finding.level]
        lead = click.style(mark[self._mark], fg=mark[2], bold=True)
        text = f"{finding.topic:<13} {self._hide(safe(finding.text))}"
        if self._width:
            text = textwrap.fill(
                text,
                max(self._width - 1, 60),
                initial_indent="  ",
                subsequent_indent=" " * 16,
                break_on_hyphens=False,
            )[2:]
        click.echo(f"{lead} {text}")

    def write(self, path: Path, status: int) -> None:
        """Write the report."""
        assert self._report is not None  # noqa: S101 - for the type
        found = [
            {"topic": finding.topic, "is": _WORDS[finding.level], "text": finding.text}
            for finding in self._findings(is_over=True)
        ]
        content: dict[str, Any] = {
            "schema": SCHEMA,
            "version": VERSION,
            **dataclasses.asdict(self._report),
            "findings": found,
            "exit_status": status,
        }
        text = json.dumps(content, indent=2, ensure_ascii=False)
        path.write_text(f"{self._hide(text)}\n", encoding="utf-8")

    def _findings(self, *, is_over: bool) -> list[Finding]:
        assert self._report is not None  # noqa: S101 - for the type
        return list(findings(self._report, self._provider, self._needs, is_over=is_over))

    def _hide(self, text: str) -> str:
        """Return a text without secrets: none should be in it, and none ever gets out."""
        for secret in sorted(self._secrets, key=len, reverse=True):
            if len(secret) >= _LEAST:
                text = text.replace(secret, HIDDEN)
        return text
