"""Self-signed test chains: of a C2PA signer, for tests and the benchmark, or of a server."""

import datetime
import ipaddress
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from stylegen.webhook import WebhookReceiver


def certificate(
    subject: str,
    issuer: str,
    key: ec.EllipticCurvePrivateKey,
    issuer_key: ec.EllipticCurvePrivateKey,
    address: str | None = None,
    days: float = 30,
) -> bytes:
    """A PEM certificate for tests: a root when it is its own issuer, else a signer or a server.

    It is valid for so many days, the first of which is over.
    """
    is_root = key is issuer_key

    def name(text: str) -> x509.Name:
        parts = {NameOID.COMMON_NAME: text, NameOID.ORGANIZATION_NAME: "stylegen tests"}
        return x509.Name([x509.NameAttribute(kind, value) for kind, value in parts.items()])

    start = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=1)
    usage = dict.fromkeys(
        ["content_commitment", "key_encipherment", "data_encipherment", "key_agreement"], False
    )
    usage |= {"encipher_only": False, "decipher_only": False, "digital_signature": not is_root}
    usage |= {"key_cert_sign": is_root, "crl_sign": is_root}
    builder = (
        x509.CertificateBuilder(name(issuer), name(subject), key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(is_root, None), critical=True)
        .add_extension(x509.KeyUsage(**usage), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
            critical=False,
        )
    )
    if not is_root:
        kinds = ExtendedKeyUsageOID
        purpose = kinds.SERVER_AUTH if address else kinds.EMAIL_PROTECTION
        builder = builder.add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
    if address:
        names = [x509.IPAddress(ipaddress.ip_address(address))]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(issuer_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def write_chain(folder: Path, address: str | None = None, days: float = 30) -> tuple[Path, Path]:
    """Write ``chain.pem`` (leaf, root) and ``key.pem`` into a folder; returns both paths.

    The leaf is a C2PA signer, or the server at an IP address; `days` as of `certificate`.
    """
    root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    chain, private = folder / "chain.pem", folder / "key.pem"
    root = certificate("root", "root", root_key, root_key)
    chain.write_bytes(certificate("worker", "root", key, root_key, address, days) + root)
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return chain, private


def server_context(chain: Path, key: Path) -> ssl.SSLContext:
    """A server's side of TLS, with the chain of `write_chain`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, key)
    return context


@contextmanager
def tls_receiver(context: ssl.SSLContext) -> Iterator[WebhookReceiver]:
    """A receiver that wants TLS; its `url` says so."""
    backend = WebhookReceiver()
    backend.socket = context.wrap_socket(backend.socket, server_side=True)
    backend.url = backend.url.replace("http:", "https:")
    with backend:
        yield backend
