"""Servers for the tests, in this process or in one of their own; as a program it runs a server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
import errno
import os
from pathlib import Path
import re
import signal
import subprocess
import sys
import time

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from instant_engine import InstantEngine  # noqa: E402
import numpy as np  # noqa: E402

from mirage_model.interface import (  # noqa: E402
    EngineProtocol,
    ImagineRequest,
    Observation,
)
from mirage_model.serving.config import ServerConfig, SessionLimits  # noqa: E402
from mirage_model.serving.remote import RemoteEngine  # noqa: E402
from mirage_model.serving.server import EngineServer  # noqa: E402

ENGINE_PACKAGES = (
    'torch',
    'diffusers',
    'transformers',
    'peft',
    'accelerate',
    'safetensors',
    'numba',
    'tqdm',
)
WITHOUT_ENGINE = f"""
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name in {ENGINE_PACKAGES}:
            raise ModuleNotFoundError(f'No module named {{name!r}}', name=name)

sys.meta_path.insert(0, Missing())
sys.path[:0] = {[str(Path(__file__).parent), *map(str, Path(__file__).parents[1:3])]}
"""
"""Begin of a program for which the packages of the engine are not installed."""
LOOPBACK = 'grpc://127.0.0.1:0'


class ServedEngine(InstantEngine):
    """An instant engine whose disk is full for a file of that name."""

    def save(self, path: Path, *, memory: str = 'default') -> None:
        if path.name == 'full':
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        super().save(path, memory=memory)


@dataclass(frozen=True, kw_only=True)
class InstantOptions:
    """Options of an instant engine."""

    size: tuple[int, int, int] = (96, 160, 16)
    """Height, width and new frames of a chunk."""
    step_seconds: float = 0.0

    def load(self, limits: SessionLimits) -> tuple[EngineProtocol, Callable[[], EngineProtocol]]:
        return ServedEngine(*self.size), lambda: ServedEngine(
            *self.size, step_seconds=self.step_seconds, steps=4
        )


@contextmanager
def serving(open_engine: Callable[[], EngineProtocol], **config) -> Iterator[EngineServer]:
    server = EngineServer(
        open_engine(), open_engine, ServerConfig(**{'address': LOOPBACK, **config})
    )
    try:
        yield server
    finally:
        server.close()


def connect(server: EngineServer | ServerProcess, **options) -> RemoteEngine:
    """Return a client whose arrays travel bit for bit."""
    return RemoteEngine(f'grpc://127.0.0.1:{server.port}', **{'images': 'none', **options})


class ServerProcess:
    """A server in a process of its own, which can be killed, stopped and started again."""

    def __init__(self, step_seconds: float = 0.05, port: int = 0, lease: float = 30.0):
        self._arguments = [__file__, str(step_seconds), str(lease)]
        self._environment = dict(os.environ)
        self.port = port
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *self._arguments, str(self.port)],
            stdout=subprocess.PIPE,
            text=True,
            env=self._environment,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r':(\d+)$', line)
        assert found, line
        self.port = int(found[1])

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def close(self) -> None:
        if self.process.poll() is None:
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGTERM)
            self.process.wait(timeout=60)
        assert self.process.stdout is not None
        self.process.stdout.close()


def view(value: int = 40, size: tuple[int, int] = (96, 160), **changes) -> Observation:
    fields = {
        'image': np.full((*size, 3), value, np.uint8),
        'K': np.array([[80.0, 0.0, 79.5], [0.0, 80.0, 47.5], [0.0, 0.0, 1.0]]),
        'world_from_camera': np.eye(4),
        'time': 1.0,
        'depth': np.full(size, 3.0, np.float32),
    }
    return Observation(**{**fields, **changes})


def request(chunks: int = 2, frames: int = 16, **changes) -> ImagineRequest:
    poses = np.tile(np.eye(4), (chunks * frames, 1, 1))
    poses[:, 2, 3] = 0.05 * np.arange(1, chunks * frames + 1)
    times = 1.0 + np.arange(1, chunks * frames + 1) / 8
    fields = {'request_id': 'r', 'world_from_camera': poses, 'times': times}
    return ImagineRequest(**{**fields, **changes})


def until(done: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, 'it did not happen'
        time.sleep(0.01)


if __name__ == '__main__':
    from mirage_model.serving.command import serve

    step_seconds, lease, port = float(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    height, width, new_frames = map(int, sys.argv[4:7] or ('96', '160', '16'))
    address = f'grpc://127.0.0.1:{port}'
    files = {}
    if folder := ''.join(sys.argv[7:]):
        address = f'grpcs://localhost:{port}'
        names = {'authority': 'ca.pem', 'certificate': 'bench.pem', 'key': 'bench.key'}
        files = {option: Path(folder) / name for option, name in names.items()}
    config = ServerConfig(address=address, lease=lease, folder=Path('/nonexistent'), **files)
    options = InstantOptions(size=(height, width, new_frames), step_seconds=step_seconds)
    sys.exit(serve(*options.load(config.limits), config))
