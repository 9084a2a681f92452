"""The keys and signatures that are computed here are those of the libraries and old releases."""

from __future__ import annotations

import hashlib
import secrets

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from itsdangerous import BadSignature, Signer

from cm_auth_middleware.sessions.cookie import Ticket, TicketSigner, signer
from cm_auth_middleware.sessions.encryption import _derive

KEYS = [secrets.token_urlsafe(48), "ключ: " + secrets.token_urlsafe(48)]


def library(keys: list[str], purpose: str) -> Signer:
    """The signer that releases before 0.2 had."""
    return Signer(
        keys,
        salt=f"cm_auth_middleware.{purpose}",
        key_derivation="hmac",
        digest_method=hashlib.sha256,
    )


@pytest.mark.parametrize("secret", [b"", secrets.token_bytes(32), secrets.token_bytes(100)])
@pytest.mark.parametrize("purpose", [b"record", b"user", b"handle"])
def test_keys_are_derived_as_the_library_derives_them(secret: bytes, purpose: bytes) -> None:
    key = secrets.token_bytes(32)
    hkdf = HKDF(SHA256(), 32, salt=secret, info=b"cm_auth_middleware " + purpose)
    assert _derive(secret, key, purpose) == hkdf.derive(key)


@pytest.mark.parametrize("keys", [KEYS[:1], KEYS])
@pytest.mark.parametrize("purpose", ["session", "login"])
def test_a_signature_is_that_of_itsdangerous(keys: list[str], purpose: str) -> None:
    ours, theirs = signer(keys, purpose), library(keys, purpose)
    assert ours.sign("a value") == theirs.sign("a value")
    assert ours.unsign(library(keys[:1], purpose).sign("a value")) == b"a value"
    with pytest.raises(BadSignature):
        ours.unsign(library(keys, "another").sign("a value"))


def test_a_ticket_is_read_whichever_key_signed_it() -> None:
    ticket = Ticket.new()
    newest, older = (TicketSigner(keys).dump(ticket) for keys in (KEYS, KEYS[:1]))
    assert library(KEYS, "session").unsign(newest)
    assert library(KEYS[:1], "session").unsign(older)
    assert TicketSigner(KEYS).load(newest) == (ticket, False)
    assert TicketSigner(KEYS).load(older) == (ticket, True)
    assert TicketSigner(KEYS[:1]).load(newest) is None


def test_a_ticket_with_any_character_changed_is_refused() -> None:
    reader = TicketSigner(KEYS)
    value = reader.dump(Ticket.new())
    for place, character in enumerate(value):
        for other in "A-_b.=é ":
            if other != character:
                changed = value[:place] + other + value[place + 1 :]
                assert reader.load(changed) is None, (place, other)
