"""Servers, clients and links that fail: requests end in the stated way, and the next one works."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
import errno
import os
from pathlib import Path
import signal
import socket
import subprocess
import sys
import threading
import time

import grpc
import numpy as np
import pytest
from servers import (
    ServedEngine,
    ServerProcess,
    connect,
    request,
    serving,
    until,
    view,
)

from mirage_model.evaluation.benchmarks.tcp_proxy import TcpProxy
from mirage_model.interface import Cancelled, CandidatesRequest, EngineUnavailable, Trajectory
from mirage_model.serving.engine_pb2 import Empty
from mirage_model.serving.engine_pb2_grpc import EngineStub
from mirage_model.serving.remote import RemoteEngine

TIMEOUT = 1.0
PATIENT = 20.0
"""Time within which a stated end must come on a busy machine [s]."""


@pytest.fixture
def ends() -> Callable[[str], AbstractContextManager[None]]:
    """Return a block that must end in time; with ``-s`` it prints how long it took."""

    @contextmanager
    def block(what: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        seconds = time.monotonic() - began
        print(f'\n{what}: {seconds:.2f} s')
        assert seconds < PATIENT, what

    return block


@pytest.fixture
def server() -> Iterator[ServerProcess]:
    server = ServerProcess()
    yield server
    server.close()


@pytest.fixture
def link(server) -> Iterator[TcpProxy]:
    link = TcpProxy(server.port)
    yield link
    link.close()


def through(link: TcpProxy, **options) -> RemoteEngine:
    return RemoteEngine(
        f'grpc://127.0.0.1:{link.port}', **{'images': 'none', 'timeout': TIMEOUT, **options}
    )


def indices(engine: RemoteEngine, chunks: int = 2) -> list[int]:
    return [chunk.index for chunk in engine.imagine(request(chunks))]


def works_again(engine: RemoteEngine) -> None:
    """The next request is answered once the link is there, exactly once."""

    def answered() -> bool:
        try:
            return indices(engine) == [0, 1]
        except EngineUnavailable:
            return False

    until(answered)


def test_a_killed_server_ends_the_request_and_is_fed_again(server, ends):
    engine = connect(server, timeout=TIMEOUT)
    engine.seed(view(50))
    engine.observe(view(60, time=2.0))
    moved = np.eye(4)
    moved[0, 3] = 2.0
    engine.reanchor(moved)
    wanted = engine.points().positions
    chunks = engine.imagine(request(20))
    next(chunks)
    server.kill()
    server.start()
    with ends('restarted server: request'), pytest.raises(EngineUnavailable, match='it lost the'):
        list(chunks)
    with ends('restarted server: memories are there again'):
        works_again(engine)
    assert engine.points().positions.tolist() == wanted.tolist()
    (chunk,) = engine.imagine(request(1))
    assert chunk.frames[0, 0, 0, 0] == 61
    link = engine.link()
    assert link.connected and link.sessions_lost == 1 and link.observations_kept == 2
    assert '3 observations and moves were sent again' in link.message
    engine.close()


@pytest.mark.slow
def test_a_killed_server_ends_the_request_after_the_lease(server, ends):
    engine = connect(server, timeout=TIMEOUT, lease=3.0)
    engine.seed(view())
    chunks = engine.imagine(request(20))
    next(chunks)
    server.kill()
    with ends('killed server, lease 3 s'), pytest.raises(EngineUnavailable, match='given up'):
        list(chunks)
    server.start()
    works_again(engine)
    engine.close()


def test_calls_without_a_server_fail_after_the_timeout(server, ends):
    engine = connect(server, timeout=TIMEOUT)
    engine.seed(view())
    server.kill()
    with ends('call without a server, timeout 1 s'):
        with pytest.raises(EngineUnavailable, match='stats was not answered|no link'):
            engine.stats()
    assert not engine.link().connected and 'no link' in engine.link().message
    with pytest.raises(EngineUnavailable, match='engine grpc://'):
        connect(server, timeout=TIMEOUT)
    server.start()
    works_again(engine)
    engine.close()


def test_a_stopped_server_is_noticed_and_the_request_goes_on(server, ends):
    engine = connect(server, timeout=TIMEOUT)
    engine.seed(view())
    chunks = engine.imagine(request(6))
    assert next(chunks).index == 0
    server.signal(signal.SIGSTOP)
    with ends('stopped server is noticed, timeout 1 s'):
        until(lambda: not engine.link().connected)
    server.signal(signal.SIGCONT)
    with ends('stopped server goes on: request of 5 chunks of 0.2 s'):
        assert [chunk.index for chunk in chunks] == [1, 2, 3, 4, 5]
    assert engine.link().reconnects >= 1 and engine.link().sessions_lost == 0
    works_again(engine)
    engine.close()


@pytest.mark.parametrize('seconds', [0.5, pytest.param(5.0, marks=pytest.mark.slow)])
def test_a_request_goes_on_after_a_cut(server, link, seconds, ends):
    engine = through(link)
    engine.seed(view())
    chunks = engine.imagine(request(8))
    assert next(chunks).index == 0
    link.cut()
    time.sleep(seconds)
    link.mend()
    with ends(f'cut of {seconds} s: request of 7 chunks of 0.2 s'):
        assert [chunk.index for chunk in chunks] == [1, 2, 3, 4, 5, 6, 7]
    engine.observe(view(70))
    assert engine.link().sessions_lost == 0
    works_again(engine)
    engine.close()


@pytest.mark.slow
def test_a_cut_longer_than_the_lease_ends_the_request(link, ends):
    """A cut of 60 s with the default lease of 30 s ends the same way."""
    engine = through(link, lease=3.0)
    engine.seed(view(50))
    chunks = engine.imagine(request(100))
    next(chunks)
    link.cut()
    with ends('cut, timeout 1 s, lease 3 s'):
        with pytest.raises(EngineUnavailable, match='given up'):
            list(chunks)
    time.sleep(3.0)
    link.mend()
    works_again(engine)
    (chunk,) = engine.imagine(request(1))
    assert chunk.frames[0, 0, 0, 0] == 51
    assert engine.link().sessions_lost == 1
    engine.close()


def test_a_reset_link_ends_the_request_with_an_error(link, ends):
    engine = through(link)
    engine.seed(view())
    chunks = engine.imagine(request(20))
    next(chunks)
    link.reset()
    with ends('reset link'), pytest.raises(EngineUnavailable, match='send it again'):
        list(chunks)
    works_again(engine)
    assert engine.link().sessions_lost == 0
    engine.close()


def test_an_observation_that_is_sent_twice_is_written_once():
    written = []

    class Counting(ServedEngine):
        def observe(self, observation, *, memory='default'):
            written.append(observation.time)
            time.sleep(1.0)
            return super().observe(observation, memory=memory)

    with serving(Counting) as server:
        link = TcpProxy(server.port)
        engine = through(link)
        engine.seed(view())
        threading.Timer(0.3, link.reset).start()
        assert engine.observe(view(time=7.0)) == 'sensor'
        assert written == [7.0] and engine.link().reconnects == 1
        engine.close()
        link.close()


def engine_is_idle(server) -> bool:
    return all(session['requests'] == 0 for session in server.sessions.report())


def test_a_client_that_is_gone_ends_its_request(ends):
    """Within a denoising step, and its memories with the lease."""
    program = f"""
import sys
sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[1])]}
from servers import RemoteEngine, request, view
engine = RemoteEngine('grpc://127.0.0.1:' + sys.argv[1], lease=2.0)
engine.seed(view())
for chunk in engine.imagine(request(100)):
    print(chunk.index, flush=True)
"""
    with serving(lambda: ServedEngine(step_seconds=0.05)) as server:
        client = subprocess.Popen(
            [sys.executable, '-c', program, str(server.port)], stdout=subprocess.PIPE, text=True
        )
        assert client.stdout.readline().strip() == '0'
        client.kill()
        client.wait()
        client.stdout.close()
        with ends('killed client: request, steps of 0.05 s'):
            until(lambda: engine_is_idle(server))
        with ends('killed client: memories, lease 2 s'):
            until(lambda: not server.sessions.report())
        engine = connect(server)
        engine.seed(view())
        assert indices(engine) == [0, 1]
        engine.close()


def test_a_cancelled_request_ends_within_a_step(ends):
    with serving(lambda: ServedEngine(step_seconds=0.05)) as server:
        engine = connect(server)
        engine.seed(view())
        stop = []
        with pytest.raises(Cancelled):
            for _ in engine.imagine(request(50), cancelled=lambda: bool(stop)):
                stop.append(time.monotonic())
        with ends('cancel, steps of 0.05 s'):
            until(lambda: engine_is_idle(server))
        chunks = engine.imagine(request(50))
        next(chunks)
        chunks.close()  # a reader that goes away
        until(lambda: engine_is_idle(server), PATIENT)
        assert indices(engine) == [0, 1]
        engine.close()


def test_a_slow_reader_holds_up_nobody_else():
    with serving(ServedEngine) as server:
        slow, quick = connect(server), connect(server)
        slow.seed(view())
        quick.seed(view())
        waiting = slow.imagine(request(30))
        assert next(waiting).index == 0
        for _ in range(3):
            assert indices(quick, 8) == list(range(8))
        (session,) = [s for s in server.sessions.all() if s.requests and s.engine.memories][:1]
        made = [r.stream._count for s in server.sessions.all() for r in s.requests.values()]
        assert max(made) >= 8 and min(made) <= 3
        assert [chunk.index for chunk in waiting] == list(range(1, 30))
        slow.close()
        quick.close()


def test_a_deadline_that_passes_while_it_waits_is_a_cancel():
    with serving(lambda: ServedEngine(step_seconds=0.05)) as server:
        first, second = connect(server), connect(server)
        first.seed(view())
        second.seed(view())
        chunks = first.imagine(request(3))
        reading = threading.Thread(target=lambda: list(chunks))
        reading.start()
        until(lambda: any(session['requests'] for session in server.sessions.report()))
        path = request(1)
        trajectory = Trajectory(world_from_camera=path.world_from_camera, times=path.times)
        late = CandidatesRequest(
            request_id='late', trajectories=(trajectory,), seeds=(0,), deadline=0.01
        )
        with pytest.raises(Cancelled, match='the deadline passed while it waited'):
            list(second.imagine_candidates(late))
        reading.join()
        first.close()
        second.close()


def test_half_a_message_leaves_the_server_well(server):
    for noise in (b'\0' * 100, os.urandom(300), b'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n' + b'\0\xff'):
        with socket.create_connection(('127.0.0.1', server.port)) as half:
            half.sendall(noise)
    engine = connect(server)
    engine.seed(view())
    assert indices(engine) == [0, 1]
    engine.close()


def test_half_an_observation_is_sent_again_and_written_once(server, ends):
    link = TcpProxy(server.port)
    engine = through(link)
    engine.seed(view(50))
    link.reset_after(20_000)
    with ends('half a message: observation'):
        assert engine.observe(view(60)) == 'sensor'
    assert engine.link().reconnects == 1 and engine.link().sessions_lost == 0
    (chunk,) = engine.imagine(request(1))
    assert chunk.frames[0, 0, 0, 0] == 61
    engine.close()
    link.close()


def test_a_full_disk_is_the_error_of_the_call(tmp_path, ends):
    with serving(ServedEngine, folder=tmp_path) as server:
        engine = connect(server)
        engine.seed(view())
        with ends('full disk'):
            with pytest.raises(OSError, match='No space left on device') as error:
                engine.save(Path('full'))
        assert error.value.errno == errno.ENOSPC
        engine.save(Path('good'))
        assert indices(engine) == [0, 1]
        engine.close()


def test_a_closing_server_answers_what_runs(server, ends):
    engine = connect(server, timeout=TIMEOUT)
    engine.seed(view())
    chunks = engine.imagine(request(400))
    next(chunks)
    server.signal(signal.SIGTERM)
    with ends('closing server'):
        with pytest.raises(EngineUnavailable, match='shutting down|engine grpc'):
            list(chunks)
    assert server.process.wait(timeout=60) == 0
    engine.close()


def test_status_shows_sessions(server):
    engine = connect(server)
    engine.seed(view())
    with grpc.insecure_channel(f'127.0.0.1:{server.port}') as channel:
        text = EngineStub(channel).Status(Empty(), timeout=PATIENT).text
    assert '"memories": 1' in text and '"model": "instant"' in text
    engine.close()
