"""Measure what the front of a pool costs: ``mirage bench pool``.

A Ray cluster of this machine, two engines that answer at once, a front, and mutual TLS throughout.

- Robots that each have a request in flight, observe at 2 Hz and send heartbeats: what the front
  takes of a core, and how long an observation takes.
- Chunks of 32 frames of 704x1280 by the front and from the engine itself: what a byte costs.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import version
import os
from pathlib import Path
import sys
import tempfile
import time
from typing import Any

import grpc
import numpy as np

from mirage_model.evaluation.benchmarks.network import LARGE, ROOT
from mirage_model.evaluation.benchmarks.network_soak import resident_mib
from mirage_model.evaluation.config import PoolBenchConfig
from mirage_model.io import as_json, write_json
from mirage_model.serving.buffers import BufferGroup, read_reply
from mirage_model.serving.config import PROTOCOL, TRANSPORT, Certificates, channel_credentials
from mirage_model.serving.engine_pb2 import (
    CallRequest,
    Compression,
    OpenRequest,
    Payload,
    SessionRequest,
    StreamPosition,
    StreamRequest,
)
from mirage_model.serving.engine_pb2_grpc import EngineStub
from mirage_model.serving.link import HEARTBEAT, STREAM
from mirage_model.serving.wire import Images, payload

OBSERVE_PERIOD = 0.5
"""Time between two observations of a robot [s]."""
CHUNKS = 2
"""Chunks of a request."""
STEP = 0.04
"""Time of one of a chunk's four denoising steps [s]."""
MAX_SESSIONS = 256
"""Sessions of an engine at a time."""
HOST = 'localhost'
SMALL = (96, 160)


@dataclass
class Counts:
    """Answers to the robots, and their errors."""

    observations: list[float] = field(default_factory=list)
    """Times of the observations [s]."""
    heartbeats: int = 0
    requests: int = 0
    chunks: int = 0
    nbytes: int = 0
    """Bytes of the chunks."""
    errors: list[str] = field(default_factory=list)


class Robot:
    """A client that sends what a robot's node sends; its messages are encoded once."""

    def __init__(
        self,
        target: str,
        certificates: Certificates,
        *,
        size: tuple[int, int],
        frames: int,
        compression: str,
        counts: Counts,
    ) -> None:
        options = [
            *TRANSPORT,
            ('grpc.max_receive_message_length', -1),
            ('grpc.use_local_subchannel_pool', 1),  # a connection of its own
            ('grpc.ssl_target_name_override', HOST),
        ]
        servers = import_module('servers')
        images: Images = 'none' if compression == 'NONE' else 'jpeg'
        self._channel = grpc.aio.secure_channel(target, channel_credentials(certificates), options)
        self._stub: Any = EngineStub(self._channel)
        self._stream = self._channel.unary_stream(
            STREAM,
            request_serializer=StreamRequest.SerializeToString,
            response_deserializer=read_reply,
        )
        self._view: Payload = payload({'observation': servers.view(size=size)}, images)
        self._request: Payload = payload({'request': servers.request(CHUNKS, frames)})
        self.observation_nbytes = self._view.ByteSize()
        self._compression = Compression.Value(compression)
        self._counts = counts
        self._session, self._calls, self._streams = '', 0, 0

    async def open(self) -> None:
        opened = await self._stub.Open(
            OpenRequest(protocol=PROTOCOL, library=version('mirage'), lease=30.0)
        )
        self._session = opened.session
        self._renewing = asyncio.create_task(self._renew())
        await self._call('seed')

    async def close(self) -> None:
        self._renewing.cancel()
        await self._stub.Close(SessionRequest(session=self._session))
        await self._channel.close()

    async def run(self, until: float) -> None:
        """Send until a time; the last request ends."""
        try:
            await asyncio.gather(self._observe(until), self._imagine(until))
        except (grpc.RpcError, ValueError) as error:
            self._counts.errors.append(f'{type(error).__name__}: {error}')

    async def renew(self) -> None:
        await self._stub.Renew(SessionRequest(session=self._session))
        self._counts.heartbeats += 1

    async def observe(self) -> None:
        began = time.monotonic()
        await self._call('observe')
        self._counts.observations.append(time.monotonic() - began)

    async def _call(self, verb: str) -> None:
        self._calls += 1
        reply = await self._stub.Call(
            CallRequest(session=self._session, verb=verb, arguments=self._view, number=self._calls)
        )
        if reply.WhichOneof('outcome') != 'value':
            raise ValueError(f'{verb}: {reply.error.message}')

    async def _observe(self, until: float) -> None:
        following = time.monotonic()
        while following < until:
            await asyncio.sleep(following - time.monotonic())
            await self.observe()
            following = max(following + OBSERVE_PERIOD, time.monotonic())

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT)
            await self.renew()

    async def _imagine(self, until: float) -> None:
        while time.monotonic() < until:
            await self.imagine()

    async def imagine(self) -> None:
        """Send a request, and read its chunks. Raises ValueError unless all come in order."""
        self._streams += 1
        call = self._stream(
            StreamRequest(
                session=self._session,
                number=self._streams,
                verb='imagine',
                arguments=self._request,
                compression=self._compression,
            )
        )
        position = StreamPosition(session=self._session, number=self._streams)
        received: list[int] = []
        missing, ended = 0, False
        async for reply in call:
            if isinstance(reply, BufferGroup):
                missing -= len(reply.items)
                self._counts.nbytes += sum(map(len, reply.items))
            elif reply.WhichOneof('event') == 'answer':
                received.append(reply.answer.index)
                missing += reply.answer.buffers
            elif reply.WhichOneof('event') == 'end':
                ended = not reply.end.HasField('error')
            if not missing and len(received) > position.received:
                position.received = len(received)
                await self._stub.Acknowledge(position)
        if missing or not ended or received != list(range(CHUNKS)):
            raise ValueError(f'a request ended with the chunks {received}')
        self._counts.requests += 1
        self._counts.chunks += CHUNKS


def cpu_seconds(pid: int) -> float:
    """Return the time that a process has spent on all cores [s]."""
    words = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf('SC_CLK_TCK')


async def _with_robots(
    front: Any, certificates: Certificates, sessions: int, seconds: float
) -> dict[str, Any]:
    """Return what robots were answered in a time, and what the front took for it."""
    counts = Counts()
    robots = [
        Robot(
            f'{HOST}:{front.port}',
            certificates,
            size=SMALL,
            frames=16,
            compression='JPEG',
            counts=counts,
        )
        for _ in range(sessions)
    ]
    await asyncio.gather(*(robot.open() for robot in robots))
    pid, engines = front.process.pid, [each['process'] for each in front.engines().values()]
    began, spent = time.monotonic(), cpu_seconds(pid)
    by_engines, by_robots = sum(map(cpu_seconds, engines)), time.process_time()
    await asyncio.gather(*(robot.run(began + seconds) for robot in robots))
    took, spent = time.monotonic() - began, cpu_seconds(pid) - spent
    by_engines = sum(map(cpu_seconds, engines)) - by_engines
    by_robots = time.process_time() - by_robots
    on_engine = [len(each['sessions']) for each in front.engines().values()]
    for robot in robots:
        await robot.close()
    return {
        'sessions': sessions,
        'sessions_of_engines': on_engine,
        'seconds': round(took, 1),
        'front_cpu_share': round(spent / took, 4),
        'front_cpu_ms_per_session_second': round(1000 * spent / took / sessions, 3),
        'front_rss_mib': resident_mib(pid),
        'engines_cpu_share': round(by_engines / took, 3),
        'robots_cpu_share': round(by_robots / took, 3),
        'observations_per_second': round(len(counts.observations) / took, 1),
        'observation_ms': _percentiles(counts.observations),
        'chunks_per_second': round(counts.chunks / took, 1),
        'requests': counts.requests,
        'mib_per_second': round(counts.nbytes / took / 2**20, 2),
        'errors': counts.errors,
    }


def _percentiles(seconds: list[float]) -> dict[str, float]:
    values = 1000 * np.percentile(seconds, (50, 95, 100))
    return dict(zip(('median', 'p95', 'max'), values.round(1).tolist()))


async def _large(front: Any, certificates: Certificates, requests: int) -> dict[str, Any]:
    """Return times and costs of large chunks and of small calls, by the front and without it."""
    engine = front.engines()['0']
    result: dict[str, Any] = {}
    for way, target in (('front', f'{HOST}:{front.port}'), ('engine', engine['address'])):
        counts = Counts()
        height, width, frames = LARGE
        robot = Robot(
            target,
            certificates,
            size=(height, width),
            frames=frames,
            compression='NONE',
            counts=counts,
        )
        await robot.open()
        await robot.imagine()
        counts.nbytes, spent, began = 0, cpu_seconds(front.process.pid), time.monotonic()
        for _ in range(requests):
            await robot.imagine()
        took, spent = time.monotonic() - began, cpu_seconds(front.process.pid) - spent
        mib = counts.nbytes / 2**20
        calls = []
        for _ in range(200):
            began = time.monotonic()
            await robot.renew()
            calls.append(time.monotonic() - began)
        observed, up = 20, cpu_seconds(front.process.pid)
        for _ in range(observed):
            await robot.observe()
        up = cpu_seconds(front.process.pid) - up
        result[way] = {
            'mib_per_chunk': round(mib / requests / CHUNKS, 1),
            'seconds_per_chunk': round(took / requests / CHUNKS, 3),
            'small_call_ms': _percentiles(calls),
            'observation_mib': round(robot.observation_nbytes / 2**20, 2),
            'observation_ms': _percentiles(counts.observations),
        }
        if way == 'front':
            result['front_cpu_ms_per_mib_down'] = round(1000 * spent / mib, 2)
            result['front_cpu_ms_per_observation'] = round(1000 * up / observed, 2)
        await robot.close()
    return result


def run_bench(config: PoolBenchConfig) -> dict[str, Any]:
    """Return a row for each number of robots, and what large messages cost."""
    tests = ROOT / 'tests' / 'serving'
    sys.path[:0] = [str(tests), str(tests.parent)]
    pools, files = import_module('pools'), import_module('certificates')
    with tempfile.TemporaryDirectory() as folder:
        files.make_authority(Path(folder))
        server, robot = (files.make_certificate(Path(folder), n) for n in ('server', 'robot'))
        cluster = pools.Cluster()
        try:
            common = {
                'cluster': cluster,
                'address': f'grpcs://{HOST}',
                'certificates': server,
                'max_sessions': MAX_SESSIONS,
            }
            front = pools.FrontProcess(
                pool={'engines': 2}, engine={'step_seconds': STEP}, **common
            )
            while not all(each['ready'] for each in front.engines().values()):
                time.sleep(0.1)
            rows = []
            for sessions in config.sessions:
                rows.append(asyncio.run(_with_robots(front, robot, sessions, config.seconds)))
                print(as_json(rows[-1]), flush=True)
            front.close()
            front = pools.FrontProcess(
                pool={'engines': 1, 'pool_name': 'large'}, engine={'size': LARGE}, **common
            )
            large = asyncio.run(_large(front, robot, config.chunks))
            front.close()
        finally:
            cluster.close()
    return {'rows': rows, 'large': large}


def main(config: PoolBenchConfig) -> int:
    """Measure, print and write the metrics; return 1 where a robot was not answered."""
    config.out.parent.mkdir(parents=True, exist_ok=True)
    result = run_bench(config)
    write_json(config.out, result)
    print(as_json(result['large']))
    print(_table(result['rows']))
    return int(any(row['errors'] for row in result['rows']))


def _table(rows: list[dict[str, Any]]) -> str:
    names = (
        'sessions',
        'front_cpu_share',
        'front_cpu_ms_per_session_second',
        'front_rss_mib',
        'observations_per_second',
        'chunks_per_second',
    )
    lines = ['  '.join(names)]
    lines += ['  '.join(f'{row[name]:>{len(name)}}' for name in names) for row in rows]
    return '\n'.join(lines)
