"""The package's simulator as a process of its own, steered as Spring is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx2

from .browser import NO_AUTHORITIES
from .exchanges import LIFETIME
from .processes import simulated
from .spring_server import Setting


@dataclass(frozen=True, slots=True)
class Simulated:
    """A running simulator."""

    url: str

    def lifetimes(self, access: int = LIFETIME, refresh: int = 0) -> None:
        """Set how many seconds the next tokens live; a refresh token without end by 0."""
        self.simulate(access_token_lifetime=access, refresh_token_lifetime=refresh or None)

    def revoke(self, email: str) -> None:
        """End all tokens of a user."""
        self.simulate(revoke_user=email)

    def disable(self, email: str) -> None:
        """Refuse a user's logins and refreshes."""
        self.simulate(disable_user=email)

    def meet(self) -> None:
        """Do nothing: the simulator carries out one request after the other."""

    def reset(self, setting: Setting) -> None:
        """Begin anew, set up as Spring is."""
        self.simulate(reset=True, rotate_refresh_tokens=not setting.reuse)

    def simulate(self, **commands: Any) -> None:
        """Change settings, or carry out other commands."""
        answer = httpx2.post(
            f"{self.url}/_control", json=commands, timeout=30, verify=NO_AUTHORITIES
        )
        answer.raise_for_status()


class Steered(Simulated):
    """A running Spring Authorization Server, which takes the simulator's commands, and one more."""

    def meet(self) -> None:
        """Let the next two refreshes read their login before either changes it."""
        self.simulate(meet=True)


@contextlib.contextmanager
def simulator(*flags: str) -> Iterator[Simulated]:
    """Run a simulator by its command line until the block ends."""
    with simulated(*flags) as process:
        yield Simulated(process.url)
