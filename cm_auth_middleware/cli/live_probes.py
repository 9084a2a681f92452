"""Find out how a server behaves, by one login or a few, and end every grant that these opened."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cm_auth_middleware.cli.live_interruptions import Interruptions
from cm_auth_middleware.cli.live_login import Callback, Cancelled, Logins
from cm_auth_middleware.cli.live_report import Report, known_error, names, shape
from cm_auth_middleware.cli.live_server import Answer, Server, Unreachable, clock_skew
from cm_auth_middleware.cli.output import say

_PAUSE = 1.5  # seconds, after which two logins are no longer at once


class CannotRun(Exception):  # noqa: N818 - the check says it as a sentence
    """The check cannot find out anything.

    Attributes:
        topic: the option or the subject.
    """

    def __init__(self, topic: str, text: str) -> None:
        super().__init__(text)
        self.topic = topic


class BrokenOff(Exception):  # noqa: N818 - the findings say why
    """There are no tokens to go on with."""


@dataclass(slots=True)
class Grant:
    """The tokens of a login, or of several that were given the same ones.

    Attributes:
        access_token: the newest.
        former: access tokens before it.
        refresh_token: the one that works, as far as it is known.
        others: refresh tokens that may still be valid.
        is_over: True if the server has ended it.
        is_endless: True if the server ends it by no logout.
        is_uncertain: True if the server may have given it tokens that are not known.
    """

    access_token: str
    refresh_token: str | None
    others: list[str] = field(default_factory=list)
    former: list[str] = field(default_factory=list)
    is_over: bool = False
    is_endless: bool = False
    is_uncertain: bool = False

    def note(self, answer: Answer) -> None:
        """Learn of newer tokens."""
        if answer.access_token is not None and answer.access_token != self.access_token:
            self.former.append(self.access_token)
            self.access_token = answer.access_token
        new = answer.refresh_token
        if new is not None and new != self.refresh_token and new not in self.others:
            self.others.append(new)


class LiveCheck:
    """The steps of a live check, in `run`; `revoke` has to follow it in any case.

    Args:
        report: gets what is found out.
        wants: asks the person a question, and returns True for yes.
        tell: is called when the report has something new.
    """

    def __init__(
        self,
        server: Server,
        report: Report,
        logins: Logins,
        interruptions: Interruptions,
        redirect_uri: str,
        wants: Callable[[str], bool],
        tell: Callable[[], None],
    ) -> None:
        self._server = server
        self._report = report
        self._logins = logins
        self._interruptions = interruptions
        self._redirect_uri = redirect_uri
        self._wants = wants
        self._tell = tell
        self._scope = report.scope_asked
        self._grants: list[Grant] = []
        self._lost_logins = 0  # of which the server may have given tokens that are not known
        self._user_id: Any = None
        self._spent = ""  # a refresh token that was replaced
        self._exchanged_at = -_PAUSE

    def prepare(self) -> None:
        """Find out what needs no login.

        Raises:
            CannotRun: it is no use to log in.
        """
        report, server = self._report, self._server
        answer = server.probe()
        report.status_without_bearer = answer.status
        report.clock_skew = clock_skew(answer.headers.get("Date", ""))
        is_api_known = server.provider.probe_url("") is not None
        if answer.status not in (401, 403) and (is_api_known or answer.status >= 500):
            name = server.provider.name
            said = f" where {name} says 401" if is_api_known else ""
            raise CannotRun(
                "base_url",
                f"the server answered {answer.status}{said}: is base_url the address of {name}, "
                "without a path, and is it up?",
            )
        refused = self._try_code("check0")
        if refused.error in server.provider.key_errors:
            raise CannotRun(
                "client_id",
                f"the API key is refused ({refused.error}): check client_id and client_secret "
                f"against the key that {server.provider.name} gave you",
            )
        report.reads_form = refused.error == "invalid_grant"
        report.refused_code = refused.refused(server.secrets)
        report.reads_query = self._try_code("check1", in_query=True).error == "invalid_grant"
        status = server.page_status(self._logins.url("check", "0" * 43))
        if status >= 400:
            other = ", and base_url and provider belong together" if status == 404 else ""
            raise CannotRun(
                "redirect_uri",
                f"the login page answers {status} to this client_id and redirect_uri: let exactly "
                f"this redirect_uri be registered with the API key{other}",
            )
        self._tell()

    def run(self) -> None:
        """Log in and find out the rest.

        Raises:
            Cancelled: the person did not log in; there are no tokens.
            BrokenOff: the server gave no tokens to go on with.
        """
        grant = self._first_login()
        self._read_user(grant)
        self._tell()
        if grant.refresh_token is not None:
            self._refresh(grant)
            self._tell()
            self._refresh_without_scope(grant)
            self._tell()
        if self._wants(
            "Log in a second time, to compare its tokens and to try a wrong PKCE verifier?"
        ):
            self._try_more(lambda: self._second_login(grant))
        if self._report.refresh_gives == "rotated":
            self._reuse(grant)
            self._tell()
        self._log_out()
        self._report.outcome = "complete"

    def revoke(self) -> None:
        """End what is not over yet. The report counts what could not be ended."""
        with self._interruptions.postponed():
            for grant in self._grants:
                if grant.is_endless:
                    self._end_each(grant)
                is_over = not grant.is_endless and (grant.is_over or self._end(grant))
                if is_over and not grant.is_uncertain:
                    self._report.revoked += 1
                    continue
                self._report.not_revoked += 1
                self._report.perhaps_not_revoked += is_over
            # Where each login of an account gets the same tokens, those of a lost one were known.
            if not self._report.gives_same_tokens:
                self._report.not_revoked += self._lost_logins
                self._report.perhaps_not_revoked += self._lost_logins

    @property
    def has_tokens(self) -> bool:
        """True if there are tokens to revoke."""
        return bool(self._grants)

    @property
    def has_exchanged(self) -> bool:
        """True if the server may have given tokens."""
        return self.has_tokens or self._lost_logins > 0

    # -- steps -----------------------------------------------------------------------------

    def _try_more(self, logins: Callable[[], object]) -> None:
        """Log in again; go on if the person does not."""
        try:
            logins()
        except Cancelled as error:
            say(f"{str(error).capitalize()}.")
        self._tell()

    def _first_login(self) -> Grant:
        report = self._report
        callback = self._log_in()
        report.callback_parameters = names(callback.parameters, self._server.secrets)
        report.state_echoed = callback.state_echoed
        self._tell()
        answer = self._exchange(callback)
        report.exchange_status = answer.status
        report.token_members = names(answer.members, self._server.secrets)
        grant = self._grant_of(answer)
        if grant is None:
            report.exchange = answer.refused(self._server.secrets)
            raise BrokenOff
        report.reads_form = True
        kind = answer.members.get("token_type")
        report.is_bearer = isinstance(kind, str) and kind.lower() == "bearer"
        report.api_host = self._server.api_host(answer)
        report.access_token = shape(grant.access_token)
        if grant.refresh_token is not None:
            report.refresh_token = shape(grant.refresh_token)
        scope = answer.members.get("scope")
        known = {*self._server.provider.scopes, report.scope_asked}
        report.scope_granted = scope if scope in known else "another" if scope else ""
        report.lifetime = answer.lifetime
        self._tell()
        return grant

    def _read_user(self, grant: Grant) -> None:
        answer = self._server.user(grant.access_token)
        self._report.user_status = answer.status
        if answer.status == 200:
            self._report.user_fields = names(answer.members, self._server.secrets)
            self._user_id = answer.members.get(self._server.provider.user_id_field)

    def _refresh(self, grant: Grant) -> None:
        """Refresh as the middleware does, and find out what became of the tokens before."""
        report, old_access, old = self._report, grant.access_token, grant.refresh_token
        assert old is not None  # noqa: S101 - for the type; run() asks
        answer = self._use(grant, old)
        report.refresh_status = answer.status
        if answer.hides_tokens:
            report.refresh_gives = "failed"
            return
        if answer.access_token is None:
            report.refresh_gives = "refused"
            report.dead_refresh_token = answer.refused(self._server.secrets)
            return
        report.refreshed_lifetime = answer.lifetime
        report.refreshed_api_host = self._server.api_host(answer)
        before = self._server.user(old_access)
        report.bearer_after_refresh = "alive" if before.status == 200 else "dead"
        if before.status != 200:
            report.dead_bearer = before.refused(self._server.secrets)
        new = answer.refresh_token
        if new is None or new == old:
            report.refresh_gives = "left out" if new is None else "kept"
            return
        second = self._use(grant, new)
        if second.access_token is not None:
            report.refresh_gives = "rotated"
            grant.refresh_token = second.refresh_token or new
            self._spent = old
        elif second.hides_tokens:
            report.refresh_gives = "failed"
        elif self._use(grant, old).access_token is not None:
            report.refresh_gives = "phantom"
            report.dead_refresh_token = second.refused(self._server.secrets)
        else:
            report.refresh_gives = "refused"

    def _refresh_without_scope(self, grant: Grant) -> None:
        token = grant.refresh_token
        if token is None or self._report.refresh_gives in ("refused", "failed"):
            return
        answer = self._use(grant, token, with_scope=False)
        if answer.hides_tokens:
            return
        self._report.scope_needed_by_refresh = answer.access_token is None
        if answer.access_token is None:
            self._use(grant, token)  # a refused refresh ends the access token, too (Spring)

    def _second_login(self, first: Grant) -> None:
        """Log in again, and exchange the code first in ways that the middleware never uses.

        A code works once, but some servers let it survive a refused attempt. So the attempt that
        is wrong in most ways comes first: if it is accepted, all is known.
        """
        report = self._report
        before = first.access_token, {first.refresh_token, *first.others}
        omits = report.scope_needed_by_refresh is False  # else it is known to be needed
        report.second_login_fails = "no tokens"  # until it has some
        callback = self._log_in()
        answer = self._exchange(callback, is_wrong=True, with_scope=not omits)
        if answer.status >= 500:  # Spring's JDBC token store answers so to two logins at once
            report.is_quick_login_refused = True
            if not self._wants("The server failed. Log in once more?"):
                return
            callback = self._log_in()
            answer = self._exchange(callback, is_wrong=True, with_scope=not omits)
        if answer.access_token is not None:
            report.pkce_verified = False
            report.scope_needed_by_exchange = False if omits else None
        elif omits and not answer.hides_tokens:
            answer = self._exchange(callback, is_wrong=True)
            if answer.access_token is not None:
                report.pkce_verified, report.scope_needed_by_exchange = False, True
        if answer.access_token is None and not answer.hides_tokens:
            answer = self._exchange(callback)
            if not answer.hides_tokens:
                report.code_survives_wrong_verifier = answer.access_token is not None
                report.pkce_verified = True if answer.access_token or not omits else None
        if answer.access_token is None and not answer.hides_tokens:
            answer = self._third_login(omits) or answer
        self._compare(before, answer)

    def _third_login(self, omits: bool) -> Answer | None:
        """Log in once more, because the code of the second login was spent by a refusal."""
        if not self._wants("The code was spent by the wrong attempt. Log in once more?"):
            return None
        report, callback = self._report, self._log_in()
        answer = self._exchange(callback, with_scope=not omits)
        if omits and not answer.hides_tokens:
            report.scope_needed_by_exchange = answer.access_token is None
            if answer.access_token is None:
                return self._exchange(callback)
            report.pkce_verified = True  # as the wrong verifier was all that was wrong before
        return answer

    def _compare(self, before: tuple[str, set[str | None]], answer: Answer) -> None:
        """Compare the tokens of the second login with those of the first before it."""
        report = self._report
        if answer.access_token is None:
            return
        user = self._server.user(answer.access_token)
        if user.status != 200:
            return
        if user.members.get(self._server.provider.user_id_field) != self._user_id:
            report.second_login_fails = "another account"
            return
        report.second_login_fails = ""
        access_token, refresh_tokens = before
        report.second_login_access = "same" if answer.access_token == access_token else "other"
        report.second_login_refresh = "same" if answer.refresh_token in refresh_tokens else "other"
        if answer.access_token != access_token:
            alive = self._server.user(access_token).status == 200
            report.first_bearer_after_second_login = "alive" if alive else "dead"

    def _reuse(self, grant: Grant) -> None:
        """Use a refresh token that was replaced; some servers end the grant for that."""
        answer = self._use(grant, self._spent, is_current=False)
        if answer.access_token is not None:
            self._report.replaced_refresh = "accepted"
            return
        if answer.hides_tokens:
            return
        self._report.dead_refresh_token = answer.refused(self._server.secrets)
        assert grant.refresh_token is not None  # noqa: S101 - for the type; it was rotated
        current = self._use(grant, grant.refresh_token)
        if current.access_token is not None:
            self._report.replaced_refresh = "refused"
        if current.access_token is not None or current.hides_tokens:
            return
        self._report.replaced_refresh = "ends the grant"
        grant.is_over = True
        if all(grant.is_over for grant in self._grants) and self._wants(
            "No token is left to try the logout with. Log in once more?"
        ):
            self._try_more(lambda: self._exchange(self._log_in()))

    def _log_out(self) -> None:
        """End a grant as the middleware does, and find out what became of its tokens."""
        report = self._report
        living = [grant for grant in self._grants if not grant.is_over]
        if not living:
            return
        grant = living[-1]
        answer = self._delete(grant)
        if answer.status in (401, 403) and self._renew(grant):  # it had expired
            answer = self._delete(grant)
        report.logout_status = answer.status
        if answer.status >= 300:
            return
        grant.is_over = True
        dead = self._server.user(grant.access_token)
        report.bearer_after_logout = "alive" if dead.status == 200 else "dead"
        if report.dead_bearer is None and dead.status != 200:
            report.dead_bearer = dead.refused(self._server.secrets)
        grant.is_endless = dead.status == 200
        if grant.refresh_token is None:
            return
        refused = self._use(grant, grant.refresh_token)
        report.refresh_after_logout = "dead" if refused.access_token is None else "alive"
        if refused.access_token is None:
            report.dead_refresh_token = refused.refused(self._server.secrets)
        else:
            self._delete(grant)
            still = self._use(grant, grant.refresh_token).access_token is not None
            grant.is_endless = grant.is_endless or still

    # -- calls -----------------------------------------------------------------------------

    def _log_in(self) -> Callback:
        callback = self._logins.log_in()
        if not callback.parameters.get("code"):
            error = known_error(callback.parameters.get("error")) or "no code"
            if error == "access_denied":
                raise Cancelled("the login was cancelled at the server")
            raise CannotRun("login", f"the login was refused ({error}): is scope right?")
        self._report.logins += 1
        return callback

    def _try_code(self, code: str, *, in_query: bool = False) -> Answer:
        """Try a code that cannot exist: the key is checked first, and the code after it."""
        return self._server.token(
            "authorization_code",
            in_query=in_query,
            code=code,
            redirect_uri=self._redirect_uri,
            code_verifier="0" * 43,
            scope=self._scope,
        )

    def _exchange(
        self, callback: Callback, *, is_wrong: bool = False, with_scope: bool = True
    ) -> Answer:
        """Exchange a code.

        Args:
            is_wrong: send a wrong PKCE verifier.
            with_scope: send the scope.
        """
        verifier = secrets.token_urlsafe(32) if is_wrong else callback.code_verifier
        if self._report.is_quick_login_refused:
            time.sleep(max(0.0, self._exchanged_at + _PAUSE - time.monotonic()))
        self._exchanged_at = time.monotonic()
        with self._interruptions.postponed():
            answer = self._token(
                None,
                "authorization_code",
                code=callback.parameters["code"],
                redirect_uri=self._redirect_uri,
                code_verifier=verifier,
                scope=self._scope if with_scope else None,
            )
            grant = self._grant_of(answer)
            if grant is not None:
                grant.note(answer)
        return answer

    def _use(
        self, grant: Grant, token: str, *, with_scope: bool = True, is_current: bool = True
    ) -> Answer:
        """Refresh by a refresh token of a grant.

        Args:
            is_current: with rotation, the token that comes back is the one to use next.
        """
        with self._interruptions.postponed():
            scope = self._scope if with_scope else None
            answer = self._token(grant, "refresh_token", scope=scope, refresh_token=token)
            grant.note(answer)
            is_rotated = self._report.refresh_gives == "rotated"
            if answer.access_token is not None and is_current and is_rotated:
                grant.refresh_token = answer.refresh_token or token
        return answer

    def _token(
        self, grant: Grant | None, grant_type: str, *, scope: str | None, **parameters: str
    ) -> Answer:
        """Call the token endpoint; note if it may have given tokens that are not known.

        Args:
            grant: None for a login.
        """
        is_lost = False
        try:
            answer = self._server.token(grant_type, scope=scope, in_query=False, **parameters)
            is_lost = answer.hides_tokens
        except Unreachable as error:
            is_lost = error.is_sent
            raise
        finally:
            if is_lost and grant is None:
                self._lost_logins += 1
            elif is_lost and grant is not None:
                grant.is_uncertain = True
        return answer

    def _grant_of(self, answer: Answer) -> Grant | None:
        """Return the grant that tokens belong to: a new one if they are new."""
        if answer.access_token is None:
            return None
        for grant in self._grants:
            is_known = answer.refresh_token in (grant.refresh_token, *grant.others)
            if answer.access_token == grant.access_token or (answer.refresh_token and is_known):
                grant.is_over = False
                return grant
        grant = Grant(answer.access_token, answer.refresh_token)
        self._grants.append(grant)
        return grant

    # -- the end ---------------------------------------------------------------------------

    def _end(self, grant: Grant) -> bool:
        """End a grant, also one whose access token has expired; True if it is over."""
        try:
            status = self._delete(grant).status
            if status in (401, 403):  # the access token is dead; is the grant?
                return not self._renew(grant) or self._delete(grant).status < 300
            return status < 300
        except Unreachable:
            return False

    def _end_each(self, grant: Grant) -> None:
        """End each access token of a grant, of which the refresh token cannot be ended."""
        try:
            for token in (*grant.former, grant.access_token):
                self._server.log_out(token, grant.refresh_token)
        except Unreachable:
            return

    def _delete(self, grant: Grant) -> Answer:
        return self._server.log_out(grant.access_token, grant.refresh_token)

    def _renew(self, grant: Grant) -> bool:
        """Get a living access token; False if no refresh token works any more.

        Raises:
            Unreachable: it is not known.
        """
        is_refused = True
        tokens = [*([grant.refresh_token] if grant.refresh_token else []), *grant.others[::-1]]
        for token in tokens:
            answer = self._use(grant, token)
            if answer.access_token is not None:
                return True
            if answer.status >= 500:
                raise Unreachable(f"it answered {answer.status} to a refresh")
            is_over = self._server.provider.is_grant_over(answer.status, answer.error)
            is_refused = is_refused and is_over
        grant.is_uncertain = grant.is_uncertain or not is_refused
        return False
