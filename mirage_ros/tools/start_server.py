"""Start a server with mutual TLS on this machine, in a process of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
import re
import signal
import subprocess
import sys
import tempfile
from typing import IO, Literal

from mirage_model.engine.config import EngineOptions
from mirage_model.serving.config import Certificates


def make_certificates(folder: Path, names: tuple[str, ...]) -> dict[str, Certificates]:
    """Make an authority and a certificate for each name, for this machine and a day.

    Raises FileNotFoundError without the program openssl.
    """

    def openssl(*words: str) -> None:
        subprocess.run(['openssl', *words], cwd=folder, check=True, capture_output=True)

    key = ('-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes')
    authority = ('-keyout', 'ca.key', '-out', 'ca.pem')
    openssl('req', '-x509', *key, '-days', '1', '-subj', '/CN=mirage', *authority)
    (folder / 'names').write_text('subjectAltName=DNS:localhost')
    for name in names:
        files = ('-keyout', f'{name}.key', '-out', f'{name}.csr')
        openssl('req', *key, '-subj', f'/CN={name}', *files)
        signed = ('-CA', 'ca.pem', '-CAkey', 'ca.key', '-extfile', 'names', '-days', '1')
        openssl('x509', '-req', '-in', f'{name}.csr', *signed, '-out', f'{name}.pem')
    return {
        name: Certificates(
            authority=folder / 'ca.pem',
            certificate=folder / f'{name}.pem',
            key=folder / f'{name}.key',
        )
        for name in names
    }


@contextmanager
def node_engine(
    place: Literal['node', 'server'], options: EngineOptions, *, device: str
) -> Iterator[dict[str, object]]:
    """Yield the parameters of a node that generates by itself, or by a server that runs while the
    block runs.

    Raises ChildProcessError if the server does not start.
    """
    if place == 'node':
        yield {**model_parameters(options), 'model.device': device}
        return
    with tempfile.TemporaryDirectory(prefix='mirage-server-') as name:
        files = make_certificates(Path(name), ('server', 'robot'))
        words = ['--address', 'grpcs://localhost:0', '--device', device]
        words += [f'--{option}={file}' for option, file in vars(files['server']).items()]
        with _running([*words, *serve_words(options)]) as address:
            yield {
                'engine.address': address,
                'engine.images': 'none',
                **{f'engine.{option}': file for option, file in vars(files['robot']).items()},
            }


def model_parameters(options: EngineOptions) -> dict[str, object]:
    """Return the parameters of a node whose engine has these options."""
    named = {
        ('folder' if name == 'model_folder' else name): v for name, v in vars(options).items()
    }
    return {f'model.{name}': value for name, value in named.items()}


def serve_words(options: EngineOptions) -> list[str]:
    """Return the words of ``mirage serve`` for these options."""
    chosen = {name: value for name, value in vars(options).items() if value}
    return [f'--{name}' if v is True else f'--{name}={v}' for name, v in chosen.items()]


@contextmanager
def _running(words: list[str]) -> Iterator[str]:
    """Run a server while the block runs; yield its address."""
    server = subprocess.Popen(
        [sys.executable, '-m', 'mirage_model.cli', 'serve', *words],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert server.stdout is not None
    with server.stdout as said:
        try:
            yield _address(said)
        finally:
            server.send_signal(signal.SIGINT)
            try:
                server.wait(timeout=60)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _address(said: IO[str]) -> str:
    for line in said:
        print(f'[server] {line}', end='', flush=True)
        if found := re.search(r' is ready at (\S+)$', line):
            return found[1]
    raise ChildProcessError('the server did not start, it says why above')
