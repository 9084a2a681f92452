"""``cm-auth check``: find the mistakes in a configuration before users do."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import click

from cm_auth_middleware.cli.findings import ERROR, OK, WARNING, Finding
from cm_auth_middleware.cli.options import rows, unknown_variables
from cm_auth_middleware.cli.output import Refusal, as_json, safe, say, say_json

_DAY = 86_400
# By provider: how long its refresh tokens last, unused and in all.
_MOST_SECONDS = {"eagleeye": {"idle_timeout": 14 * _DAY, "absolute_timeout": 90 * _DAY}}
_STYLES = {OK: ("ok", "green"), WARNING: ("warning", "yellow"), ERROR: ("error", "red")}


@click.command()
@click.option("--offline", is_flag=True, help="Do not connect to anything but the store.")
@click.option("--quiet", is_flag=True, help="Print warnings and errors only.")
@click.option("--login", is_flag=True, help="Log in once, and find out how the server behaves.")
@click.option(
    "--report",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="With --login: write what was found out, as JSON without secrets.",
)
@click.option("--no-browser", is_flag=True, help="With --login: print the URL only.")
@click.option("--paste", is_flag=True, help="With --login: the browser is on another machine.")
@click.option("--yes", is_flag=True, help="With --login: answer yes to every question.")
@as_json
def check(
    offline: bool,
    quiet: bool,
    login: bool,
    report: Path | None,
    no_browser: bool,
    paste: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Check the configuration in the environment (CM_AUTH_…).

    Shows each option and its source, with secrets hidden; then tests the session store, the
    connection to the server, the API key, the redirect URI and the clock.

    The exit status is 0 if all is well, 1 with warnings, 2 with errors.

    With --login it does something else instead: you log in, and it finds out how the server
    behaves. The exit status is 0 if that is what this package expects, 1 if something differs or
    the login was cancelled, 2 if the check cannot run.
    """
    if login:
        if offline:
            raise Refusal("--login and --offline exclude each other")
        if as_json:
            raise Refusal("--login and --json exclude each other; --report writes JSON")
        raise SystemExit(_check_live(report, not no_browser, paste, yes, quiet))
    if report or no_browser or paste or yes:
        raise Refusal("--report, --no-browser, --paste and --yes need --login")
    if as_json:
        raise SystemExit(_check_as_json(offline, quiet))
    if not quiet:
        table = list(rows())
        wide = max(len(value) for _, value, _ in table)
        for name, value, source in table:
            say(f"{name:<17} {value:<{min(wide, 48)}}  {source}")
        say()
    worst = OK
    for finding in _findings(offline):
        worst = max(worst, finding.level)
        if finding.level > OK or not quiet:
            _tell(finding)
    raise SystemExit(worst)


def _check_as_json(offline: bool, quiet: bool) -> int:
    options = [dict(zip(("name", "value", "source"), row, strict=True)) for row in rows()]
    findings = list(_findings(offline))
    worst = max(finding.level for finding in findings)
    told = [
        {
            "level": _STYLES[finding.level][0],
            "topic": finding.topic,
            "text": finding.text,
            "advice": finding.advice,
        }
        for finding in findings
        if finding.level > OK or not quiet
    ]
    say_json({"findings": told} if quiet else {"options": options, "findings": told})
    return worst


def _check_live(
    report: Path | None, opens_browser: bool, pastes: bool, says_yes: bool, is_quiet: bool
) -> int:
    from cm_auth_middleware.cli.live_check import Choices, run
    from cm_auth_middleware.config import CMAuthConfig
    from cm_auth_middleware.errors import ConfigError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `check` without --login shows them
            config = CMAuthConfig.from_env()
    except ConfigError as error:
        _tell(Finding(ERROR, "options", str(error)))
        return ERROR
    return run(config, Choices(report, opens_browser, pastes, says_yes, is_quiet))


def _findings(offline: bool) -> Iterator[Finding]:
    from cm_auth_middleware.auth.exempt import ExemptPaths
    from cm_auth_middleware.config import CMAuthConfig
    from cm_auth_middleware.errors import ConfigError
    from cm_auth_middleware.sessions.encryption import key_names
    from cm_auth_middleware.tokens.provider import find_provider

    complaints = list(unknown_variables())
    for complaint in complaints:
        yield Finding(WARNING, "options", complaint)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            config = CMAuthConfig.from_env()
    except ConfigError as error:
        yield Finding(ERROR, "options", str(error), "The rest was not checked.")
        return
    for warning in caught:
        yield Finding(WARNING, "options", str(warning.message))
    which = "every other option" if complaints or caught else "every option"
    yield Finding(OK, "options", f"{which} has a value that makes sense")
    *verifying, signing = key_names(config.secret_key)
    others = f"; also accepted: {', '.join(verifying)}" if verifying else ""
    yield Finding(OK, "secret_key", f"the key {signing} signs{others}")
    name = find_provider(config.provider).name
    if not config.allow_emails and not config.allow_accounts:
        yield Finding(
            WARNING,
            "allow",
            f"everybody with {'an' if name[0] in 'AEIOU' else 'a'} {name} account may come in, "
            "unless the application gives allow=…",
            "Set CM_AUTH_ALLOW_EMAILS=*@example.com or CM_AUTH_ALLOW_ACCOUNTS=…",
        )
    for option, most in _MOST_SECONDS.get(str(config.provider), {}).items():
        if getattr(config, option) > most:
            unused = " that is not used" if option == "idle_timeout" else ""
            yield Finding(
                WARNING,
                option,
                f"is over {most // _DAY} days, after which {name} ends a refresh token{unused}",
                f"Users have to log in again then: give {most} seconds or less.",
            )
    if (logo := config.app_logo) is not None and logo.startswith("/"):
        path = unquote(logo.partition("?")[0])
        if not ExemptPaths(config.exempt).cover(path):
            yield Finding(
                WARNING,
                "app_logo",
                "the picture is behind the login, so the pages for visitors are without it",
                "Add its path to CM_AUTH_EXEMPT, unless another server serves it.",
            )

    from cm_auth_middleware.cli import network, store

    yield from store.check(config)
    yield from network.check_redirect_uri(config)
    if not offline:
        yield from network.check(config)


def _tell(finding: Finding) -> None:
    word, colour = _STYLES[finding.level]
    lead = click.style(f"{word:<8}", fg=colour, bold=True)
    click.echo(f"{lead} {finding.topic:<13} {safe(finding.text)}")
    if finding.advice:
        say(f"{'':<22} {finding.advice}")
