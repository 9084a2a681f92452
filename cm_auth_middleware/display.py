"""Make text from outside safe to show: in a terminal, a log line, a page or an error.

The results have no control characters. A URL shows no password in any form: only the parts that
are known to be harmless are shown, and the rest is `…`.
"""

from __future__ import annotations

import ipaddress
import re

HIDDEN = "…"

# A URL of another scheme may have its password anywhere, so nothing of it is shown.
_SCHEMES = frozenset(
    {"amqp", "amqps", "http", "https", "mariadb", "memory", "mongodb", "mysql", "postgres",
     "postgresql", "redis", "redis+cluster", "redis+sentinel", "rediss", "rediss+cluster",
     "rediss+sentinel", "sqlite", "unix", "valkey", "valkeys"}
)  # fmt: skip
_PARTS = re.compile(r"([^/?#]*)([^?#]*)(?:\?([^#]*))?(#.*)?")
_OPTION = re.compile("[a-z_]+")
HOST = r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])"
"""A pattern of host names and IP addresses as they are written in a URL."""

_PORTED = re.compile(r"\[([0-9A-Fa-f:.]{2,45})\](?::[0-9]{1,5})?|([0-9.]{7,15}):[0-9]{1,5}")
_ADDRESS = rf"{HOST}(?::[0-9]{{1,5}})?"
_HOSTS = re.compile(rf"{_ADDRESS}(?:,{_ADDRESS})*")
# Characters that neither separate the parts of a URL nor stand for another character.
_FILE = re.compile(r"(?:/?[A-Za-z]:)?[\w ./\\~+,()-]*")
_NUMBERED = re.compile(r"/?|/[0-9]{1,4}")  # the path of a Redis URL: a database
_NAMED = re.compile(r"/?|/[\w.-]{1,64}/?", re.ASCII)
_CALLBACK = re.compile(r"/[\w./~-]*/callback", re.ASCII)  # the path of a redirect URI
_NUMBER, _WORD = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6})?"), re.compile(r"[A-Za-z_]{1,16}")
_OPTIONS = {
    "client_name": re.compile(r"[\w.-]{1,64}", re.ASCII),
    "connect_timeout": _NUMBER,
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
    "sslmode": re.compile(r"[a-z-]{1,16}"),
    "sslrootcert": _FILE,
    "target_session_attrs": re.compile(r"[a-z-]{1,16}"),
    "timeout": _NUMBER,
}


def printable(text: str) -> str:
    r"""Return a text in which each character that is not printable is an escape: ``\x1b``.

    These are the control characters (C0, C1, DEL), line ends, characters that change the direction
    of writing, invisible ones, and halves of a surrogate pair.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def ip_address(text: str) -> str:
    """Return an IP address in its canonical form; empty for anything else.

    An IPv4 address that is written as an IPv6 one (RFC 4291 §2.5.5.2) becomes the IPv4 address.
    The zone of a link-local address (RFC 4007 §11) is dropped: it may be any text. So are the port
    and the brackets that some proxies write into X-Forwarded-For (Azure's gateways, IIS).
    """
    found = _PORTED.fullmatch(text)
    try:
        address = ipaddress.ip_address((found[1] or found[2]) if found else text)
    except ValueError:
        return ""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address).partition("%")[0]


def shown_url(url: str) -> str:
    """Return scheme, hosts, ports and database of a URL, and its harmless options.

    Every other option is `…`. Only the scheme is shown of a URL whose parts could be read in two
    ways, for example because a password with ``@``, ``/``, ``?`` or ``#`` is not percent-encoded.
    """
    scheme, location, options = _read(url)
    return f"{scheme}://{location}?{_harmless(options)}" if options else f"{scheme}://{location}"


def shown_location(url: str) -> str:
    """Return a URL as `shown_url` does, without its options."""
    scheme, location, _ = _read(url)
    return f"{scheme}://{location}"


def shown_file(path: str) -> str:
    """Return the path of a store's file; `…` instead if it may contain a piece of a URL."""
    return path if _FILE.fullmatch(path) else f"sqlite:///{HIDDEN}"


def is_certain(url: str) -> bool:
    """True if there is only one way to split a URL into user info, host, path and options."""
    return _read(url)[1] != HIDDEN


def is_option(name: str, url: str) -> bool:
    """True if a URL has an option of this name, which may be shown: it is no piece of a password.

    What follows another option may be one with & in it, and so may what is written unlike options.
    """
    return is_certain(url) and f"?{name}=" in url and _OPTION.fullmatch(name) is not None


def _read(url: str) -> tuple[str, str, str]:
    """Split a URL into its scheme, the harmless part of its location, and its raw options."""
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
    # Parsers take "user" for the host of "user:12/34@host", although it is not.
    if "@" in f"{path}{query}{fragment}":
        return scheme, HIDDEN, ""
    hosts = authority.rpartition("@")[2]
    location = _location(scheme, hosts, path)
    return (scheme, HIDDEN, "") if location is None else (scheme, location, query + fragment)


def _location(scheme: str, hosts: str, path: str) -> str | None:
    """Return hosts and path as they may be shown; None if they have another form."""
    if scheme in ("sqlite", "unix"):
        return path if not hosts and _FILE.fullmatch(path) else None
    many = scheme.endswith(("+cluster", "+sentinel")) or scheme.startswith("postgres")
    if scheme == "memory" or (hosts and not _HOSTS.fullmatch(hosts)) or ("," in hosts and not many):
        return None
    if scheme in ("http", "https"):
        known = _CALLBACK
    elif scheme.endswith("+sentinel"):
        known = _NAMED
    else:
        known = _NUMBERED
    if path in ("", "/"):
        return hosts + path
    return hosts + (path if known.fullmatch(path) else f"/{HIDDEN}")


def _harmless(query: str) -> str:
    """Return the options before the first unknown one, which may be a piece of a password."""
    shown: list[str] = []
    for option in query.split("&"):
        name, _, value = option.partition("=")
        known = _OPTIONS.get(name)
        if known is None or not known.fullmatch(value):
            return "&".join([*shown, HIDDEN])
        shown.append(option)
    return "&".join(shown)
