"""Text from outside, made safe to show: in a terminal, a log line, a page or an error.

Nothing that is returned here has a control character, and a URL has no password in any form:
what is shown of it stands on a list, and the rest is `…`.
"""

from __future__ import annotations

import ipaddress
import re

HIDDEN = "…"

# A URL of an unknown kind may be read in a way that is not known here, so none of it is shown.
_SCHEMES = frozenset(
    {"amqp", "amqps", "http", "https", "mariadb", "memory", "mongodb", "mysql", "postgres",
     "postgresql", "redis", "redis+cluster", "redis+sentinel", "rediss", "rediss+cluster",
     "rediss+sentinel", "sqlite", "unix", "valkey", "valkeys"}
)  # fmt: skip
_PARTS = re.compile(r"([^/?#]*)([^?#]*)(?:\?([^#]*))?(#.*)?")
HOST = r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])"
"""A pattern of host names and IP addresses as they are written in a URL."""

_ADDRESS = rf"{HOST}(?::[0-9]{{1,5}})?"
_HOSTS = re.compile(rf"{_ADDRESS}(?:,{_ADDRESS})*")
# Characters of which none separates parts of a URL or stands for another.
_FILE = re.compile(r"(?:/?[A-Za-z]:)?[\w ./\\~+,()-]*")
_NUMBERED = re.compile(r"/?|/[0-9]{1,4}")  # the path of Redis: a database
_NAMED = re.compile(r"/?|/[\w.-]{1,64}/?", re.ASCII)
_CALLBACK = re.compile(r"/[\w./~-]*/callback", re.ASCII)  # of a redirect URI
_NUMBER, _WORD = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6})?"), re.compile(r"[A-Za-z_]{1,16}")
_OPTIONS = {
    "client_name": re.compile(r"[\w.-]{1,64}", re.ASCII),
    "db": re.compile(r"[0-9]{1,4}"),
    "health_check_interval": _NUMBER,
    "max_connections": re.compile(r"[0-9]{1,6}"),
    "protocol": re.compile(r"[23]"),
    "retry_on_timeout": _WORD,
    "socket_connect_timeout": _NUMBER,
    "socket_keepalive": _WORD,
    "socket_timeout": _NUMBER,
    "ssl_ca_certs": _FILE,
    "ssl_ca_path": _FILE,
    "ssl_cert_reqs": _WORD,
    "ssl_check_hostname": _WORD,
    "timeout": _NUMBER,
}


def printable(text: str) -> str:
    r"""Return a text with every character that is not seen written as an escape: ``\x1b``.

    These are the control characters (C0, C1, DEL), line ends, marks that change the direction of
    writing, invisible marks, and halves of a surrogate pair.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def ip_address(text: str) -> str:
    """Return an IP address in its canonical form; empty for anything else.

    An IPv4 address that is written as an IPv6 one (RFC 4291 §2.5.5.2) becomes the IPv4 address.
    The zone of a link-local address (RFC 4007 §11) is dropped: it may be any text.
    """
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return ""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address).partition("%")[0]


def shown_url(url: str) -> str:
    """Return scheme, hosts, runtime and database of a URL, and its harmless options.

    Every other option is `…`. If parts of the URL could be read in two ways, as when a password
    with ``@``, ``/``, ``?`` or ``#`` is not percent-encoded, only the scheme is shown.
    """
    scheme, place, options = _read(url)
    return f"{scheme}://{place}?{_harmless(options)}" if options else f"{scheme}://{place}"


def shown_place(url: str) -> str:
    """Return what `shown_url` does, without the options."""
    scheme, place, _ = _read(url)
    return f"{scheme}://{place}"


def shown_file(path: str) -> str:
    """Return the path of a store's file; no part of it if it may hold a piece of a URL."""
    return path if _FILE.fullmatch(path) else f"sqlite:///{HIDDEN}"


def is_certain(url: str) -> bool:
    """True if there is one way only to tell user info, host, path and options of a URL apart."""
    return _read(url)[1] != HIDDEN


def _read(url: str) -> tuple[str, str, str]:
    """Split a URL into scheme, what may be shown of its place, and raw options."""
    scheme, _, rest = url.partition(":")
    scheme = scheme.lower()
    if scheme not in _SCHEMES:
        return HIDDEN, HIDDEN, ""
    if rest in ("", "//"):
        return scheme, "", ""
    parts = _PARTS.fullmatch(rest.removeprefix("//"))
    if not rest.startswith("//") or parts is None or not url.isprintable() or "\\" in url:
        return scheme, HIDDEN, ""
    authority, path, query, fragment = (part or "" for part in parts.groups())
    # Of "user:12/34@host" every parser makes the host "user" and the port 12: who wrote it did not.
    if "@" in f"{path}{query}{fragment}":
        return scheme, HIDDEN, ""
    hosts = authority.rpartition("@")[2]
    place = _place(scheme, hosts, path)
    return scheme, place if place is not None else HIDDEN, "" if place is None else query + fragment


def _place(scheme: str, hosts: str, path: str) -> str | None:
    """Return hosts and path as they may be shown; None if they are not what they should be."""
    if scheme in ("sqlite", "unix"):
        return path if not hosts and _FILE.fullmatch(path) else None
    many = scheme.endswith(("+cluster", "+sentinel"))
    if scheme == "memory" or (hosts and not _HOSTS.fullmatch(hosts)) or ("," in hosts and not many):
        return None
    if scheme in ("http", "https"):
        known = _CALLBACK
    elif scheme.endswith("+sentinel") or not scheme.startswith(("redis", "valkey")):
        known = _NAMED
    else:
        known = _NUMBERED
    if path in ("", "/"):
        return hosts + path
    return hosts + (path if known.fullmatch(path) else f"/{HIDDEN}")


def _harmless(query: str) -> str:
    """Return the options before the first that is not harmless; a password may go on after it."""
    shown: list[str] = []
    for option in query.split("&"):
        name, _, value = option.partition("=")
        known = _OPTIONS.get(name)
        if known is None or not known.fullmatch(value):
            return "&".join([*shown, HIDDEN])
        shown.append(option)
    return "&".join(shown)
