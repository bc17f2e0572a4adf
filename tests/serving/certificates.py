"""Certificates for the tests, made as docs/reference/serving.md says."""

from __future__ import annotations

from pathlib import Path
import subprocess

from mirage_model.serving.config import Certificates


def run(folder: Path, *words: str) -> None:
    subprocess.run(['openssl', *words], cwd=folder, check=True, capture_output=True)


def make_authority(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    words = '-x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650'
    run(
        folder, 'req', *words.split(), '-subj', '/CN=mirage', '-keyout', 'ca.key', '-out', 'ca.pem'
    )


def make_certificate(folder: Path, name: str, *, days: int = 365) -> Certificates:
    """Make a key and a certificate for a name on this machine."""
    words = '-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes'
    run(
        folder,
        *('req', *words.split(), '-subj', f'/CN={name}'),
        *('-keyout', f'{name}.key', '-out', f'{name}.csr'),
    )
    (folder / 'names').write_text('subjectAltName=DNS:localhost,IP:127.0.0.1')
    run(
        folder,
        *('x509', '-req', '-in', f'{name}.csr', '-CA', 'ca.pem', '-CAkey', 'ca.key'),
        *('-days', str(days), '-extfile', 'names', '-out', f'{name}.pem'),
    )
    return Certificates(
        authority=folder / 'ca.pem',
        certificate=folder / f'{name}.pem',
        key=folder / f'{name}.key',
    )
