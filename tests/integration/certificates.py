"""A private authority, and what it signed, as files."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import trustme


@dataclass(frozen=True, kw_only=True)
class Certificates:
    """Paths of PEM files: an authority's certificate, a server's and a client's with their keys."""

    authority: Path
    server: Path
    server_key: Path
    client: Path
    client_key: Path

    def server_context(self, *, mutual: bool = False) -> ssl.SSLContext:
        """Return what a server on 127.0.0.1 speaks TLS with; ``mutual`` demands a certificate of the client."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.server, self.server_key)
        if mutual:
            context.load_verify_locations(self.authority)
            context.verify_mode = ssl.CERT_REQUIRED
        return context


def make_certificates(folder: Path) -> Certificates:
    """Make an authority of its own and what it signs."""
    folder.mkdir(parents=True, exist_ok=True)
    authority = trustme.CA()
    made = Certificates(
        authority=folder / "authority.pem",
        server=folder / "server.pem",
        server_key=folder / "server.key",
        client=folder / "client.pem",
        client_key=folder / "client.key",
    )
    authority.cert_pem.write_to_path(made.authority)
    for identity, certificate, key in (
        ("127.0.0.1", made.server, made.server_key),
        ("app", made.client, made.client_key),
    ):
        signed = authority.issue_cert(identity)
        signed.cert_chain_pems[0].write_to_path(certificate)
        signed.private_key_pem.write_to_path(key)
    return made
