"""A pool answers as the engine in process does, and what fails is noticed by its clients alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
import os
from pathlib import Path
import signal
import subprocess
import sys
import threading

from certificates import make_authority, make_certificate
import grpc
from pools import Cluster, FrontProcess, front_words
import pytest
from servers import ServedEngine, connect, request, until, view
from test_conformance import (  # noqa: F401
    engines,
    small_model,
    test_calls_run_while_a_request_runs,
    test_cancel_raises_and_the_next_request_works,
    test_clients_do_not_see_each_other,
    test_same_requests_give_equal_answers,
)

from mirage_model.interface import EngineProtocol, EngineUnavailable
from mirage_model.serving.command import main
from mirage_model.serving.config import (
    PoolConfig,
    ServeCommand,
    ServerConfig,
    channel_credentials,
)
from mirage_model.serving.engine_pb2 import SessionRequest
from mirage_model.serving.engine_pb2_grpc import EngineStub
from mirage_model.serving.remote import RemoteEngine
from mirage_model.serving.server import FORWARDED

pytestmark = pytest.mark.slow

TIMEOUT = 2.0
PATIENT = 20.0
"""Time within which the next request must work on a busy machine [s]."""


@pytest.fixture(scope='module')
def cluster() -> Iterator[Cluster]:
    cluster = Cluster()
    yield cluster
    cluster.close()


@pytest.fixture(scope='module')
def front(cluster, tmp_path_factory) -> Iterator[FrontProcess]:
    """A front and two instant engines."""
    front = FrontProcess(
        cluster,
        pool={'engines': 2},
        engine={'step_seconds': 0.02},
        folder=str(tmp_path_factory.mktemp('memories')),
    )
    until(lambda: all(engine['ready'] for engine in engines_of(front)), PATIENT)
    yield front
    front.close()


def engines_of(front: FrontProcess) -> list[dict]:
    return list(front.engines().values())


@pytest.fixture
def open_engine() -> Callable[[], EngineProtocol]:
    return ServedEngine


@pytest.fixture
def connected(front) -> Callable[[], RemoteEngine]:
    return lambda: connect(front)


def run_program(
    words: list[str], environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, env=environment, timeout=120
    )


def engine_of(front: FrontProcess, client: RemoteEngine) -> str:
    return client._session.partition('.')[0]


@pytest.fixture
def two(front) -> Iterator[tuple[RemoteEngine, RemoteEngine]]:
    """Two seeded clients on different engines."""
    clients = connect(front, timeout=TIMEOUT), connect(front, timeout=TIMEOUT)
    for client in clients:
        client.seed(view(50))
    assert {engine_of(front, client) for client in clients} == {'0', '1'}
    yield clients
    for client in clients:
        client.close()


def indices(engine: RemoteEngine, chunks: int = 2) -> list[int]:
    return [chunk.index for chunk in engine.imagine(request(chunks))]


def works_within(engine: RemoteEngine, seconds: float) -> None:
    """The next request is answered in time."""

    def answered() -> bool:
        try:
            return indices(engine) == [0, 1]
        except EngineUnavailable:
            return False

    until(answered, seconds)


def test_sessions_go_where_there_are_least(front):
    clients = [connect(front) for _ in range(6)]
    names = [engine_of(front, client) for client in clients]
    assert names.count('0') == names.count('1') == 3
    for client, name in zip(clients, names):
        if name == '0':
            client.close()
    others = [connect(front) for _ in range(3)]
    assert {engine_of(front, client) for client in others} == {'0'}
    for client in [*others, *(c for c, name in zip(clients, names) if name == '1')]:
        client.close()


def test_status_shows_engines_sessions_queues_and_memory(front, two, capsys):
    two[0].observe(view(60, time=2.0))
    name = engine_of(front, two[0])
    until(lambda: [each['nbytes'] > 0 for each in front.engines()[name]['sessions']] == [True])
    server = ServerConfig(address=f'grpc://127.0.0.1:{front.port}')
    assert main(ServeCommand(server=server, status=True)) == 0
    text = capsys.readouterr().out
    for word in ('"ready": true', '"waiting": 0', '"memories": 1', '"nbytes"', '"process"'):
        assert word in text, text


def test_a_killed_engine_is_a_new_epoch_for_its_sessions_alone(front, two):
    one, other = two
    one.observe(view(60, time=2.0))
    process = front.engines()[engine_of(front, one)]['process']
    chunks, others = one.imagine(request(20)), other.imagine(request(20))
    next(chunks), next(others)
    seen: list[int] = []
    reading = threading.Thread(target=lambda: seen.extend(chunk.index for chunk in others))
    reading.start()
    os.kill(process, signal.SIGKILL)
    with pytest.raises(EngineUnavailable, match='engine grpc://'):
        list(chunks)
    works_within(one, PATIENT)
    (chunk,) = one.imagine(request(1))
    assert chunk.frames[0, 0, 0, 0] == 61
    assert '2 observations and moves were sent again' in one.link().message
    reading.join()
    assert seen == list(range(1, 20))
    assert (other.link().reconnects, other.link().sessions_lost) == (0, 0)
    until(lambda: all(engine['ready'] for engine in engines_of(front)), PATIENT)
    assert process not in [engine['process'] for engine in engines_of(front)]


def test_a_front_that_is_started_again_finds_engines_and_sessions(front, two):
    processes = [engine['process'] for engine in engines_of(front)]
    chunks = two[0].imagine(request(50))
    next(chunks)
    front.kill()
    with pytest.raises(EngineUnavailable, match='engine grpc://'):
        front.start()
        list(chunks)
    for client in two:
        works_within(client, PATIENT)
        assert client.link().sessions_lost == 0
    assert two[0].link().reconnects >= 1
    assert [engine['process'] for engine in engines_of(front)] == processes


def test_a_client_that_is_gone_ends_its_request(front, two):
    chunks = two[0].imagine(request(200))
    next(chunks)
    name = engine_of(front, two[0])
    until(lambda: front.engines()[name]['sessions'][0]['requests'] == 1, PATIENT)
    chunks.close()
    until(lambda: front.engines()[name]['sessions'][0]['requests'] == 0, PATIENT)
    assert indices(two[0]) == [0, 1]


def test_a_slow_reader_holds_up_nobody_else(front, two):
    slow = two[0]
    quick = [connect(front) for _ in range(2)]
    (same,) = [client for client in quick if engine_of(front, client) == engine_of(front, slow)]
    same.seed(view())
    waiting = slow.imagine(request(30))
    assert next(waiting).index == 0
    assert indices(same, 10) == list(range(10))
    assert [chunk.index for chunk in waiting] == list(range(1, 30))
    for client in quick:
        client.close()


def test_sessions_of_a_stopped_engine_move(front, two):
    process = front.engines()[engine_of(front, two[0])]['process']
    before = engine_of(front, two[0])
    os.kill(process, signal.SIGSTOP)
    try:
        works_within(two[0], 60.0)
        assert engine_of(front, two[0]) != before
        assert two[0].link().sessions_lost == 1 and two[1].link().sessions_lost == 0
    finally:
        os.kill(process, signal.SIGCONT)
    until(lambda: all(engine['ready'] for engine in engines_of(front)), PATIENT)


def test_other_options_than_those_of_the_engines_are_rejected(front, cluster):
    words = front_words(cluster, pool={'engines': 2}, engine={'step_seconds': 0.5})
    run = run_program(words + ['0'], cluster.environment)
    assert run.returncode == 1
    assert "an engine of pool 'mirage' runs with other options" in run.stderr


def test_an_engine_that_cannot_start_ends_the_front(cluster, tmp_path):
    words = f'--pool --gpus 0 --engines 1 --pool-name broken --ray-address {cluster.address}'
    words += f' --address grpc://127.0.0.1:0 --model-folder {tmp_path}'
    run = run_program(['-m', 'mirage_model.cli', 'serve', *words.split()], cluster.environment)
    assert run.returncode == 1
    assert 'mirage serve: pool: no engine can be started' in run.stderr
    assert str(tmp_path) in run.stderr


@pytest.fixture(scope='module')
def certificates(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('certificates')
    make_authority(folder)
    return folder


def test_certificates_name_the_client_behind_the_front(cluster, certificates):
    files = make_certificate(certificates, 'server')
    memories = certificates / 'memories'
    front = FrontProcess(
        cluster,
        pool={'engines': 1, 'pool_name': 'secure'},
        address='grpcs://localhost',
        certificates=files,
        folder=str(memories),
    )
    robot, thief = (make_certificate(certificates, name) for name in ('robot', 'thief'))
    engine = RemoteEngine(f'grpcs://localhost:{front.port}', certificates=robot, timeout=PATIENT)
    engine.seed(view())
    engine.save(Path('kept'))
    assert (memories / 'robot' / 'kept').is_file()
    session = SessionRequest(session=engine._session)
    target = front.engines()['0']['address']
    options = [('grpc.ssl_target_name_override', 'localhost')]
    for own, reaches in ((files, True), (thief, False)):  # the engine believes its front alone
        with grpc.secure_channel(target, channel_credentials(own), options) as channel:
            renew = EngineStub(channel).Renew.future(
                session, metadata=[(FORWARDED, b'robot')], timeout=PATIENT
            )
            assert renew.code() == (grpc.StatusCode.OK if reaches else grpc.StatusCode.NOT_FOUND)
    engine.close()
    front.close()


def test_a_pool_without_a_cluster_says_what_to_start():
    words = '--pool --gpus 0 --engines 1 --ray-address 127.0.0.1:1 --address grpc://localhost:0'
    run = run_program(['-m', 'mirage_model.cli', 'serve', *words.split()])
    assert run.returncode == 1
    assert "no Ray cluster at '127.0.0.1:1' takes this machine" in run.stderr


def test_pools_that_make_no_sense_are_rejected():
    with pytest.raises(ValueError, match='give the number of engines'):
        PoolConfig(gpus=0.0)
    with pytest.raises(ValueError, match='must be 0 or more'):
        PoolConfig(engines=-1)
    with pytest.raises(ValueError, match='must be auto or HOST:PORT'):
        PoolConfig(ray_address='gpu1')
    with pytest.raises(ValueError, match='would leave the GPUs of the pool unused'):
        ServeCommand(pool=True)


def test_a_missing_ray_is_named():
    program = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name == 'ray':
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)

sys.meta_path.insert(0, Missing())
from mirage_model.cli import main
sys.exit(main('serve --pool --gpus 0 --engines 1'.split()))
"""
    run = run_program(['-c', program])
    assert run.returncode == 1
    assert "needs ray: pip install 'mirage[pool]'" in run.stderr
