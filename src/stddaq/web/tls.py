"""The certificate of the service, with which it speaks HTTPS."""

from __future__ import annotations

import argparse
import os
import ssl
from dataclasses import dataclass
from pathlib import Path

from stddaq.errors import ConfigError
from stddaq.text import mismatch, os_error_text


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """Files in PEM format: the certificate with those that lead to a root, and its private key."""

    certificate: Path
    key: Path


def add_tls_options(parser: argparse.ArgumentParser) -> None:
    """Add `--tls-cert` and `--tls-key`."""
    parser.add_argument(
        "--tls-cert", type=Path, metavar="FILE", help="speak HTTPS with this certificate chain (PEM)"
    )
    parser.add_argument("--tls-key", type=Path, metavar="FILE", help="private key of the certificate (PEM)")


def tls_files(args: argparse.Namespace) -> TlsFiles | None:
    """Return the files by the options; None without them. Raise `ConfigError` if they cannot be used."""
    if args.tls_cert is None and args.tls_key is None:
        return None
    if args.tls_cert is None or args.tls_key is None:
        raise ConfigError(mismatch("--tls-cert, --tls-key", "both or none", "one of them"))
    files = TlsFiles(args.tls_cert, args.tls_key)
    try:
        if files.key.stat().st_mode & 0o007:
            raise ConfigError(mismatch(f"--tls-key {files.key}", "mode 0600 or 0640", "access for others"))
        # Without a function for the password of the key, OpenSSL would ask for it at the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(files.certificate, files.key, lambda: b"")
    except ssl.SSLError as error:
        expected = "a certificate and its key without a password, in PEM format"
        raise ConfigError(
            mismatch(f"--tls-cert {files.certificate}, --tls-key {files.key}", expected, str(error))
        ) from error
    except OSError as error:
        name = error.filename or f"{files.certificate}, {files.key}"
        raise ConfigError(f"{os.fspath(name)}: cannot be read: {os_error_text(error)}") from error
    return files
