"""Measure what an engine on a server costs over loopback: ``mirage bench network``.

- A chunk of mirage-tiny, in process and by a server, in turns; the cost is the time of the legs
  that the network adds: waiting, compression, transfer and decompression.
- A chunk of 32 frames of 704x1280 of an engine that answers at once. Its floor is a copy of the
  frames' bytes from process to process by a plain socket.
- The time from a cancel to an idle server, and from a server that is up again to a link.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
import re
import signal
import socket
import subprocess
import sys
from tempfile import TemporaryDirectory
import time
from typing import Any

import grpc
import numpy as np

from mirage_model.allocator import keep_freed_pages
from mirage_model.evaluation.config import NetworkBenchConfig
from mirage_model.interface import (
    Cancelled,
    Chunk,
    EngineProtocol,
    ImagineRequest,
    Observation,
)
from mirage_model.io import as_json, write_json
from mirage_model.serving.engine_pb2 import Empty
from mirage_model.serving.engine_pb2_grpc import EngineStub
from mirage_model.serving.images import Images
from mirage_model.serving.remote import RemoteEngine

ROOT = Path(__file__).resolve().parents[3]
TINY = ('-m', 'mirage_model.cli', 'serve', '--address', 'grpc://127.0.0.1:0')
TESTS = ROOT / 'tests' / 'serving'
INSTANT = (str(TESTS / 'servers.py'),)
"""A server whose engine answers at once; it is in the source tree alone."""
LARGE = (704, 1280, 32)
"""Height, width and new frames of a chunk of the large model."""
STEP = 0.1
"""Time of a denoising step in the measurement of cancels [s]."""
LEGS = ('queue', 'encode', 'network', 'unpack')
GOAL_SHARE, GOAL_LARGE_MS, GOAL_CANCEL_MS = 0.05, 60.0, 50.0
"""Largest cost relative to a chunk of mirage-tiny, cost of a large chunk [ms], and time beyond a
step from a cancel to an idle server [ms]."""


SENDER = """
import socket, sys
content = b'.' * int(sys.argv[2])
with socket.create_connection(('127.0.0.1', int(sys.argv[1]))) as link:
    while link.recv(1):
        link.sendall(content)
"""
"""A program that sends so many bytes for each byte that it is sent."""


@contextmanager
def running_server(*words: str) -> Iterator[tuple[subprocess.Popen, int]]:
    """Run a server while the block runs; yield its process and its port."""
    server = subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        found = re.search(r':(\d+)$', server.stdout.readline())
        if found is None:
            raise ChildProcessError('the server did not start')
        yield server, int(found[1])
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=60)
        server.stdout.close()


def _observation(height: int, width: int) -> Observation:
    ramp = np.linspace(0, 255, height * width).reshape(height, width)
    image = np.stack([ramp, ramp[::-1], 255 - ramp], axis=-1)
    return Observation(
        image=image.astype(np.uint8),
        K=np.array([[width / 2, 0, width / 2], [0, width / 2, height / 2], [0, 0, 1.0]]),
        world_from_camera=np.eye(4),
        time=0.0,
        depth=np.full((height, width), 3.0, np.float32),
    )


def _request(engine: EngineProtocol, chunks: int, steps: int | None = None) -> ImagineRequest:
    about = engine.describe()
    count = chunks * about.new_frames_per_chunk
    poses = np.tile(np.eye(4), (count, 1, 1))
    poses[:, 2, 3] = 0.05 * np.arange(1, count + 1)
    times = np.arange(1, count + 1) / about.frame_rate
    return ImagineRequest(
        request_id='bench', world_from_camera=poses, times=times, steps=steps, memory='bench'
    )


def _seconds(engine: EngineProtocol) -> tuple[float, Chunk]:
    """Return the time of a request for one chunk, and the chunk."""
    began = time.monotonic()
    (chunk,) = engine.imagine(_request(engine, 1))
    return time.monotonic() - began, chunk


def _costs(
    local: EngineProtocol,
    connect: Callable[[Images], RemoteEngine],
    repeats: int,
    kinds: tuple[Images, ...] = ('none', 'png', 'jpeg'),
) -> dict[str, Any]:
    """Return times of a chunk in process and by a server, in turns [ms]."""
    about = local.describe()
    view = _observation(about.height, about.width)
    found: dict[str, Any] = {}
    local.seed(view, memory='bench')
    for images in kinds:
        remote = connect(images)
        remote.seed(view, memory='bench')
        _seconds(local), _seconds(remote)
        here, there, legs = [], [], []
        for _ in range(repeats):
            here.append(_seconds(local)[0])
            seconds, chunk = _seconds(remote)
            there.append(seconds)
            legs.append([chunk.stages[leg] for leg in LEGS])
            del chunk
        remote.close()
        found[images] = {
            'in_process_ms': _median_ms(here),
            'by_server_ms': _median_ms(there),
            'difference_ms': round(_median_ms(there) - _median_ms(here), 2),
            **{f'{leg}_ms': _median_ms(values) for leg, values in zip(LEGS, zip(*legs))},
        }
    return found


def _plain(port: int) -> Callable[[Images], RemoteEngine]:
    return lambda images: RemoteEngine(f'grpc://127.0.0.1:{port}', images=images)


def _large_costs(repeats: int) -> dict[str, Any]:
    """Return the costs of a large chunk, without and with mutual TLS, and their floor."""
    instant = import_module('instant_engine').InstantEngine(*LARGE)
    certificates = import_module('certificates')
    size = [str(number) for number in LARGE]
    with running_server(*INSTANT, '0', '30', '0', *size) as (_, port):
        large = _costs(instant, _plain(port), repeats)
    with TemporaryDirectory() as name:
        certificates.make_authority(Path(name))
        files = certificates.make_certificate(Path(name), 'bench')
        with running_server(*INSTANT, '0', '30', '0', *size, name) as (_, port):
            encrypted = _costs(
                instant,
                lambda images: RemoteEngine(
                    f'grpcs://localhost:{port}', certificates=files, images=images
                ),
                repeats,
                ('none', 'jpeg'),
            )
    instant.seed(_observation(*LARGE[:2]), memory='bench')
    nbytes = _seconds(instant)[1].frames.nbytes
    floor = _median_ms(_socket_copy_seconds(nbytes, repeats))
    return {
        'plain': large,
        'mutual_tls': encrypted,
        'frames_nbytes': nbytes,
        'socket_copy_ms': floor,
        'socket_copies': {
            images: round(row['difference_ms'] / floor, 2) for images, row in large.items()
        },
    }


def _socket_copy_seconds(nbytes: int, repeats: int) -> list[float]:
    """Return the times in which a plain socket takes so many bytes to another process [s]."""
    into, seconds = memoryview(bytearray(nbytes)), []
    with socket.create_server(('127.0.0.1', 0)) as listener:
        words = ['-c', SENDER, str(listener.getsockname()[1]), str(nbytes)]
        sender = subprocess.Popen([sys.executable, *words])
        link, _ = listener.accept()
        with link:
            for _ in range(repeats + 1):
                began, left = time.monotonic(), into
                link.sendall(b'.')
                while left:
                    left = left[link.recv_into(left) :]
                seconds.append(time.monotonic() - began)
        sender.wait()
    return seconds[1:]


def _median_ms(seconds: list[float] | tuple[float, ...]) -> float:
    return round(1000 * float(np.median(seconds)), 2)


def _cancels(port: int, repeats: int) -> list[float]:
    """Return the times from a cancel to an idle server [s]."""
    engine = RemoteEngine(f'grpc://127.0.0.1:{port}')
    engine.seed(_observation(96, 160), memory='bench')
    with grpc.insecure_channel(f'127.0.0.1:{port}') as channel:
        status = EngineStub(channel).Status
        seconds = [_cancel_seconds(engine, status) for _ in range(repeats)]
    engine.close()
    return seconds


def _cancel_seconds(engine: RemoteEngine, status: grpc.UnaryUnaryMultiCallable) -> float:
    at = time.monotonic() + 5.5 * STEP
    with suppress(Cancelled):
        for _ in engine.imagine(_request(engine, 9), cancelled=lambda: time.monotonic() > at):
            pass
    while '"requests": 1' in status(Empty()).text:
        time.sleep(0.001)
    return time.monotonic() - at


def _reconnect() -> float:
    """Return the time from a server that is up again to the link [s]."""
    with running_server(*INSTANT, '0', '30', '0') as (server, port):
        engine = RemoteEngine(f'grpc://127.0.0.1:{port}')
        server.kill()
        server.wait()
        time.sleep(3.0)
    with running_server(*INSTANT, '0', '30', str(port)):
        began = time.monotonic()
        while not engine.link().connected:
            time.sleep(0.001)
        seconds = time.monotonic() - began
        engine.close()
    return seconds


def main(config: NetworkBenchConfig) -> int:
    """Measure, print and write the metrics; return 1 where a goal is missed."""
    config.out.parent.mkdir(parents=True, exist_ok=True)
    sys.path[:0] = [str(TESTS), str(TESTS.parent)]
    from mirage_model.engine.engine import Engine

    keep_freed_pages()
    with running_server(*TINY) as (_, port):
        engine = Engine.from_folder()
        engine.warm()
        tiny = _costs(engine, _plain(port), config.repeats)
    del engine
    large = _large_costs(config.repeats)
    with running_server(*INSTANT, str(STEP), '30', '0') as (_, port):
        cancels = _cancels(port, config.repeats)
    result: dict[str, Any] = {
        'tiny_chunk': tiny,
        'tiny_share': {
            images: round(sum(row[f'{leg}_ms'] for leg in LEGS) / row['in_process_ms'], 4)
            for images, row in tiny.items()
        },
        'goal_tiny_share': GOAL_SHARE,
        'large_chunk': large,
        'goal_large_ms': GOAL_LARGE_MS,
        'cancel_beyond_a_step_ms': _median_ms([seconds - STEP for seconds in cancels]),
        'goal_cancel_ms': GOAL_CANCEL_MS,
        'reconnect_seconds': round(_reconnect(), 3),
    }
    write_json(config.out, result)
    print(as_json(result))
    missed = (
        result['tiny_share']['jpeg'] > GOAL_SHARE,
        min(row['difference_ms'] for row in large['plain'].values()) > GOAL_LARGE_MS,
        result['cancel_beyond_a_step_ms'] > GOAL_CANCEL_MS,
    )
    return int(any(missed))
