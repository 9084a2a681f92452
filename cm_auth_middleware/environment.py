"""The environment: options in variables ``CM_AUTH_<OPTION>``, or in files that variables name."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from .errors import ConfigError

PREFIX = "CM_AUTH_"
_FILE = "_FILE"  # ends the name of a variable that names a file
_MOST = 65_536  # characters of such a file: no option is longer, and some files have no end
ALIKE = 0.75  # of 1: how alike a misspelt name and the right one are at least


def variable(option: str) -> str:
    """Return the name of the variable that sets an option."""
    return f"{PREFIX}{option.upper()}"


def read(option: str) -> tuple[str, str] | None:
    """Return the text of an option, and the variable that it comes from; None if none is set.

    Raises:
        ConfigError: the file cannot be read, or both variables are set.
    """
    plain, in_file = variable(option), variable(option) + _FILE
    if in_file not in os.environ:
        return (os.environ[plain], plain) if plain in os.environ else None
    if plain in os.environ:
        raise ConfigError(f"{plain} and {in_file} are both set: unset one of them")
    return _content(in_file), in_file


def texts(option: str) -> set[str]:
    """Return every text that the environment has for an option, also if there are two."""
    plain, in_file = variable(option), variable(option) + _FILE
    found = {os.environ[plain]} if plain in os.environ else set()
    if in_file in os.environ:
        with suppress(ConfigError):
            found.add(_content(in_file))
    return found


class Unknown(NamedTuple):
    """A variable that looks like an option but sets none.

    Attributes:
        variable: its name.
        option: the option that may be meant; empty if none is alike.
        in_file: True if the one that may be meant is a variable that names a file.
    """

    variable: str
    option: str = ""
    in_file: bool = False

    @property
    def meant(self) -> str:
        """Return the variable that may be meant; empty if there is none."""
        return variable(self.option) + _FILE * self.in_file if self.option else ""


def unknown(options: Iterable[str], functions: Iterable[str]) -> Iterator[Unknown]:
    """Yield each variable that looks like an option but sets none.

    Args:
        options: the names of the options that a variable can set.
        functions: the names of those that none can.
    """
    known = {name.upper() + end: (name, bool(end)) for name in options for end in ("", _FILE)}
    names = known | {name.upper() + end: (name, False) for name in functions for end in ("", _FILE)}
    for full in sorted(os.environ):
        given = full.removeprefix(PREFIX)
        if given == full or given in known:
            continue
        # Without the prefix: what all names have in common would make them all alike.
        alike = [name for name in (given, given.removesuffix("_URL")) if name in names]
        alike = alike or most_alike(given, names)
        yield Unknown(full, *names[alike[0]]) if alike else Unknown(full)


def most_alike(given: str, names: Iterable[str]) -> list[str]:
    """Return the one of some names that may be meant by another one, if there is one."""
    import difflib  # when somebody made a mistake

    return difflib.get_close_matches(given, names, 1, ALIKE)


def _content(name: str) -> str:
    """Return the content of the file that a variable names, without blanks around it.

    No message quotes the variable's value: it may be the secret itself, by mistake.
    """
    try:
        with Path(os.environ[name]).open(encoding="utf-8-sig") as file:
            text = file.read(_MOST + 1)
    except OSError as error:
        raise ConfigError(f"{name} names a file that cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{name} names a file that is not text") from None
    if len(text) > _MOST:
        raise ConfigError(f"{name} names a file that is too large for an option")
    return text.strip()
