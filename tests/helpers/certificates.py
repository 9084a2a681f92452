"""Certificates for servers on this machine: one that nobody signed, and one of an own authority."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

LOCALHOST = "127.0.0.1"


def self_signed(directory: Path, host: str = LOCALHOST) -> tuple[str, str]:
    """Write a certificate that nobody trusts, and its key; return their paths."""
    key = ec.generate_private_key(ec.SECP256R1())
    extensions = (_address(host), x509.BasicConstraints(ca=True, path_length=None))
    certificate = _signed(_name("simulator"), _name("simulator"), key, key, *extensions)
    paths = directory / "certificate.pem", directory / "key.pem"
    paths[0].write_bytes(certificate)
    paths[1].write_bytes(_pem(key))
    return str(paths[0]), str(paths[1])


def signed(directory: Path, host: str = LOCALHOST) -> None:
    """Write an authority's certificate (ca.pem), and one by it (server.pem) and its key."""
    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    issuer = _name("an own authority")
    key_id = x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key())
    signs_certificates = x509.KeyUsage(*[False] * 5, True, *[False] * 3)  # Python 3.13 insists
    is_authority = x509.BasicConstraints(ca=True, path_length=0)
    ca = _signed(issuer, issuer, ca_key, ca_key, is_authority, signs_certificates, key_id)
    issued_by = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    server = _signed(_name("a server"), issuer, key, ca_key, _address(host), issued_by)
    (directory / "ca.pem").write_bytes(ca)
    (directory / "server.pem").write_bytes(server)
    (directory / "server.key").write_bytes(_pem(key))


def _name(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _address(host: str) -> x509.SubjectAlternativeName:
    try:
        return x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))])
    except ValueError:
        return x509.SubjectAlternativeName([x509.DNSName(host)])


def _signed(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    by: ec.EllipticCurvePrivateKey,
    *extensions: Any,
) -> bytes:
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
    )
    for extension in extensions:
        critical = isinstance(extension, x509.BasicConstraints | x509.KeyUsage)
        builder = builder.add_extension(extension, critical)
    return builder.sign(by, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
