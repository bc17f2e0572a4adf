"""Several robots and one server for minutes: ``mirage bench network-soak``.

Each robot is what a node has inside: a worker over a remote engine. With ``--delay-ms`` and
``--loss`` its bytes pass a proxy that is late and stalls, as TCP does where packets are lost.
"""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
import random
import re
import threading
import time
from typing import Any

import numpy as np

from mirage_model.engine.worker import Job, Outcome, Worker
from mirage_model.evaluation.benchmarks.network import TINY, running_server
from mirage_model.evaluation.benchmarks.tcp_proxy import TcpProxy
from mirage_model.evaluation.config import NetworkSoakConfig
from mirage_model.interface import (
    CandidatesRequest,
    ImagineRequest,
    Observation,
    Trajectory,
)
from mirage_model.io import as_json, write_json
from mirage_model.serving.remote import RemoteEngine

GROWTH = 1.1
"""Largest resident size, as a multiple of that after the first quarter."""
OBSERVE_PERIOD = 0.5
"""Time between two observations of a robot [s]."""
KINDS = ('imagine', 'keep', 'candidates', 'cancelled', 'late', 'malformed')


class RobotClient:
    """A worker over a remote engine, with one request at a time and observations between."""

    def __init__(self, number: int, port: int, seed: int):
        self._rng = random.Random(f'{seed} {number}')
        self.engine = RemoteEngine(f'grpc://127.0.0.1:{port}', timeout=10.0)
        self.worker = Worker(self.engine, queue_size=4)
        self.sent: Counter[str] = Counter()
        self.outcomes: dict[str, list[Outcome]] = {}
        self.calls: Counter[str] = Counter()
        self._ended = threading.Condition()
        self._number = number
        self._observed = -np.inf

    def run(self, until: float) -> None:
        """Send requests until a time, each after the last one has ended."""
        self._call('observations', lambda e: e.seed(self._view(), memory='driven'))
        while time.monotonic() < until:
            kind = self._rng.choice(KINDS)
            self.sent[kind] += 1
            name = f'{kind} {self.sent[kind]}'
            job = self._job(kind, name)
            self.worker.submit(job)
            while not self._wait(name, 0.1):
                if kind == 'cancelled' and self._rng.random() < 0.5:
                    self.worker.cancel(job)
                if time.monotonic() > self._observed + OBSERVE_PERIOD:
                    self._call('observations', lambda e: e.observe(self._view(), memory='driven'))
                    self._call('scores', lambda e: e.score([self._path(1)], memory='driven'))
            if kind == 'keep':
                self._call('drops', lambda e: e.drop(memory='kept'))

    def close(self) -> None:
        self.worker.close()
        self.engine.close()

    def _call(self, what: str, task: Any) -> None:
        """Run a call; count it, and its error if it has one."""
        self._observed = time.monotonic()
        try:
            self.worker.call(task).result()
            self.calls[what] += 1
        except (ValueError, OSError) as error:
            self.calls[f'{what} failed: {type(error).__name__}'] += 1

    def _wait(self, name: str, seconds: float) -> bool:
        with self._ended:
            return self._ended.wait_for(lambda: name in self.outcomes, seconds)

    def _on_end(self, outcome: Outcome) -> None:
        with self._ended:
            self.outcomes.setdefault(outcome.request_id, []).append(outcome)
            self._ended.notify_all()

    def _job(self, kind: str, name: str) -> Job:
        paths = tuple(self._path(self._rng.randint(1, 2)) for _ in range(2))
        request: ImagineRequest | CandidatesRequest
        if kind in ('candidates', 'late'):
            request = CandidatesRequest(
                request_id=name,
                trajectories=paths,
                seeds=(0, 1),
                memory='driven',
                deadline=0.05 if kind == 'late' else None,
            )
        else:
            request = ImagineRequest(
                request_id=name,
                memory='driven',
                keep_in='kept' if kind == 'keep' else None,
                **vars(paths[0]),
            )
            if kind == 'malformed':
                request = replace(request, world_from_camera=np.zeros((3, 4, 4)))
            paths = paths[:1]
        return Job(
            request=request,
            observations=(),
            wanted=tuple(len(path.times) for path in paths),
            on_answer=lambda answer: None,
            on_end=self._on_end,
            client=f'robot{self._number}',
        )

    def _path(self, chunks: int) -> Trajectory:
        about = self.engine.describe()
        count = chunks * about.new_frames_per_chunk
        poses = np.tile(np.eye(4), (count, 1, 1))
        poses[:, 2, 3] = 0.05 * np.arange(1, count + 1)
        return Trajectory(
            world_from_camera=poses, times=np.arange(1, count + 1) / about.frame_rate
        )

    def _view(self) -> Observation:
        about = self.engine.describe()
        height, width = about.height, about.width
        noise = np.random.default_rng(self._rng.randrange(2**32))
        return Observation(
            image=noise.integers(0, 256, (height, width, 3), dtype=np.uint8),
            K=np.array([[width / 2, 0, width / 2], [0, width / 2, height / 2], [0, 0, 1.0]]),
            world_from_camera=np.eye(4),
            time=time.time(),
            depth=np.full((height, width), 3.0, np.float32),
        )


def resident_mib(pid: int | str) -> float:
    """Return the resident size of a process [MiB]."""
    text = Path(f'/proc/{pid}/status').read_text()
    found = re.search(r'VmRSS:\s+(\d+) kB', text)
    assert found is not None
    return round(int(found[1]) / 1024, 1)


def run_soak(config: NetworkSoakConfig, server_words: tuple[str, ...] = TINY) -> dict[str, Any]:
    """Run the robots, and return what was sent, answered and lost."""
    with running_server(*server_words) as (server, server_port), ExitStack() as stack:
        port = server_port
        if config.delay_ms or config.loss:
            proxy = TcpProxy(
                server_port, delay=config.delay_ms / 1000, loss=config.loss, seed=config.seed
            )
            stack.callback(proxy.close)
            port = proxy.port
        robots = [RobotClient(number, port, config.seed) for number in range(config.robots)]
        began = time.monotonic()
        until = began + 60 * config.minutes
        threads = [threading.Thread(target=robot.run, args=(until,)) for robot in robots]
        for thread in threads:
            thread.start()
        sizes: dict[str, list[float]] = {'server': [], 'robots': []}
        for quarter in range(1, 5):
            time.sleep(max(0.0, began + quarter * 15 * config.minutes - time.monotonic()))
            sizes['server'].append(resident_mib(server.pid))
            sizes['robots'].append(resident_mib('self'))
        for thread in threads:
            thread.join()
        links = [robot.engine.link() for robot in robots]
        for robot in robots:
            robot.close()
    outcomes = [each for robot in robots for ends in robot.outcomes.values() for each in ends]
    sent = sum(sum(robot.sent.values()) for robot in robots)
    answered = sum(len(robot.outcomes) for robot in robots)
    return {
        'config': asdict(config),
        'sent': sent,
        'sent_by_kind': dict(sum((robot.sent for robot in robots), Counter())),
        'answered': answered,
        'lost': sent - answered,
        'answered_more_than_once': len(outcomes) - answered,
        'outcomes': dict(Counter(outcome.status for outcome in outcomes)),
        'reasons': dict(Counter(outcome.reason for outcome in outcomes if outcome.reason)),
        'calls': dict(sum((robot.calls for robot in robots), Counter())),
        'reconnects': sum(link.reconnects for link in links),
        'sessions_lost': sum(link.sessions_lost for link in links),
        'rss_mib_at_quarters': sizes,
        'memory_flat': all(max(each) <= GROWTH * each[0] for each in sizes.values()),
    }


def main(config: NetworkSoakConfig) -> int:
    """Run the soak; return 1 where a request was lost or answered twice, or a process grew."""
    config.out.parent.mkdir(parents=True, exist_ok=True)
    result = run_soak(config)
    write_json(config.out, result)
    print(as_json(result))
    bad = result['lost'] or result['answered_more_than_once'] or not result['memory_flat']
    return int(bool(bad))
