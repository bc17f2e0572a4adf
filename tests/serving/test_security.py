"""Who may connect: certificates, versions, weights, addresses and sizes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
import threading

from certificates import make_authority, make_certificate
import grpc
import numpy as np
import pytest
from servers import ServedEngine, connect, serving, until, view

from mirage_model.interface import EngineUnavailable, InvalidRequest
from mirage_model.serving.config import (
    PROTOCOL,
    Certificates,
    ServerConfig,
    certificates_of,
    target_of,
)
from mirage_model.serving.engine_pb2 import CallRequest, OpenRequest, StreamRequest
from mirage_model.serving.engine_pb2_grpc import EngineStub
from mirage_model.serving.remote import RemoteEngine
from mirage_model.serving.sessions import IN_FLIGHT
from mirage_model.serving.wire import payload

TIMEOUT = 20.0


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('certificates')
    make_authority(folder)
    make_authority(folder / 'others')
    return folder


@pytest.fixture(scope='module')
def secure_server(folder):
    files = make_certificate(folder, 'server')
    with serving(
        ServedEngine,
        address='grpcs://localhost:0',
        authority=files.authority,
        certificate=files.certificate,
        key=files.key,
        folder=folder / 'memories',
    ) as server:
        yield server


def open_secure(server, certificates: Certificates) -> RemoteEngine:
    address = f'grpcs://localhost:{server.port}'
    return RemoteEngine(address, certificates=certificates, timeout=TIMEOUT)


def test_certificates_name_the_client(secure_server, folder):
    one = open_secure(secure_server, make_certificate(folder, 'one'))
    two = open_secure(secure_server, make_certificate(folder, 'two'))
    one.seed(view())
    one.save(Path('/anywhere/kept'))
    assert (folder / 'memories' / 'one' / 'kept').is_file()
    with pytest.raises(OSError, match='No such file'):
        two.load(Path('kept'))
    stub = two._link.connection(0.0).stub
    request = CallRequest(session=one._session, verb='stats', arguments=payload({}), number=9)
    with pytest.raises(grpc.RpcError) as error:
        stub.Call(request, timeout=TIMEOUT)
    assert error.value.code() == grpc.StatusCode.NOT_FOUND
    one.close()
    two.close()


def test_expired_and_foreign_certificates_are_rejected(secure_server, folder):
    expired = make_certificate(folder, 'late', days=-1)
    foreign = make_certificate(folder / 'others', 'foreign')
    right = make_certificate(folder, 'right')
    for wrong in (
        expired,
        Certificates(authority=right.authority, certificate=foreign.certificate, key=foreign.key),
        Certificates(authority=foreign.authority, certificate=right.certificate, key=right.key),
    ):
        with pytest.raises(EngineUnavailable, match='engine grpcs://localhost'):
            open_secure(secure_server, wrong)
    open_secure(secure_server, right).close()


def test_a_client_without_certificate_is_rejected(secure_server, folder):
    credentials = grpc.ssl_channel_credentials((folder / 'ca.pem').read_bytes())
    with grpc.secure_channel(f'localhost:{secure_server.port}', credentials) as channel:
        with pytest.raises(grpc.RpcError) as error:
            EngineStub(channel).Open(OpenRequest(protocol=PROTOCOL), timeout=TIMEOUT)
        assert error.value.code() == grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    'address, reason',
    [
        ('grpc://192.0.2.7:50051', 'plain text'),
        ('grpc://0.0.0.0:50051', 'plain text'),
        ('grpcs://localhost:50051', 'needs certificates'),
        ('http://localhost:50051', 'must be grpcs://HOST:PORT'),
        ('localhost', 'must be grpcs://HOST:PORT'),
        ('grpc://localhost', 'must be grpcs://HOST:PORT'),
    ],
)
def test_addresses_that_are_not_safe_are_rejected(address, reason):
    with pytest.raises(ValueError, match=reason):
        target_of(address, None)
    with pytest.raises(ValueError, match=reason):
        RemoteEngine(address)


def test_certificates_are_all_or_none(tmp_path):
    assert certificates_of(None, None, None) is None
    with pytest.raises(ValueError, match='certificate, key is missing'):
        certificates_of(tmp_path, None, None)
    files = Certificates(authority=tmp_path / 'a', certificate=tmp_path, key=tmp_path)
    with pytest.raises(ValueError, match='No such file'):
        files.read()


@pytest.fixture(scope='module')
def plain_server():
    with serving(ServedEngine, max_sessions=2, max_message_bytes=2**20) as server:
        yield server


@pytest.fixture
def stub(plain_server):
    with grpc.insecure_channel(f'127.0.0.1:{plain_server.port}') as channel:
        yield EngineStub(channel)


def test_another_version_or_weights_are_rejected(plain_server, stub):
    for changes, reason in (
        ({'protocol': PROTOCOL - 1}, f'protocol: the client has {PROTOCOL - 1}'),
        ({'library': '0.0.1'}, 'library: the client has 0.0.1'),
    ):
        with pytest.raises(grpc.RpcError, match=reason):
            stub.Open(OpenRequest(**{'protocol': PROTOCOL, **changes}), timeout=TIMEOUT)
    with pytest.raises(ValueError, match='weights: the client expects ffff'):
        connect(plain_server, sha256='f' * 64)


def test_sizes_are_limited(plain_server):
    engine = connect(plain_server)
    large = view(size=(700, 700))
    with pytest.raises(InvalidRequest, match='seed: .*larger than max'):
        engine._exchange('seed', payload({'observation': large}))
    zeros = view(image=np.zeros((700, 700, 3), np.uint8), depth=None)
    with pytest.raises(InvalidRequest, match='too large'):
        engine._exchange('seed', payload({'observation': zeros}, 'png'))
    assert engine.seed(view()) == 'sensor'
    other = connect(plain_server)
    with pytest.raises(ValueError, match='max_sessions of the server is 2'):
        connect(plain_server)
    other.close()
    connect(plain_server).close()
    engine.close()


def test_limits_of_a_session():
    limits = ServerConfig(address='grpc://localhost:1').limits
    few = type(limits)(max_memories=2, max_bytes=90_000)
    with serving(ServedEngine, limits=few) as server:
        engine = connect(server)
        for name in 'ab':
            engine.seed(view(), memory=name)
        for task in (
            lambda: engine.seed(view(), memory='c'),
            lambda: engine.load(Path('x'), memory='c'),
        ):
            with pytest.raises(InvalidRequest, match='max_memories of the server is 2'):
                task()
        with pytest.raises(InvalidRequest, match='max_bytes of the server is 90000'):
            engine.observe(view(), memory='a')
        engine.drop(memory='b')
        engine.observe(view(), memory='a')
        with pytest.raises(InvalidRequest, match='no folder for memories'):
            engine.save(Path('file'), memory='a')
        engine.close()


def test_calls_of_a_session_at_a_time_are_limited():
    go_on = threading.Event()

    class Waiting(ServedEngine):
        def warm(self) -> None:
            go_on.wait(TIMEOUT)

    with serving(Waiting) as server:
        with grpc.insecure_channel(f'127.0.0.1:{server.port}') as channel:
            stub = EngineStub(channel)
            opened = stub.Open(OpenRequest(protocol=PROTOCOL, library=_library()))
            call = CallRequest(
                session=opened.session, verb='warm', arguments=payload({}), number=1
            )
            calls = [stub.Call.future(call) for _ in range(IN_FLIGHT + 5)]
            until(lambda: sum(each.done() for each in calls) == 5)
            go_on.set()
            codes = Counter(each.code() for each in calls)
        assert codes == {grpc.StatusCode.OK: IN_FLIGHT, grpc.StatusCode.RESOURCE_EXHAUSTED: 5}
        engine = connect(server)
        assert engine.seed(view()) == 'sensor'
        engine.close()


def test_malformed_messages_end_only_themselves(stub):
    opened = stub.Open(OpenRequest(protocol=PROTOCOL, library=_library()), timeout=TIMEOUT)
    for verb, arguments in (
        ('__init__', {}),
        ('close', {}),
        ('stats', {'memory': 3}),
        ('stats', {'unknown': 3}),
        ('seed', {'observation': 'text'}),
    ):
        with pytest.raises(grpc.RpcError) as error:
            stub.Call(
                CallRequest(
                    session=opened.session, verb=verb, arguments=payload(arguments), number=1
                ),
                timeout=TIMEOUT,
            )
        assert error.value.code() in (
            grpc.StatusCode.INVALID_ARGUMENT,
            grpc.StatusCode.UNIMPLEMENTED,
        )
    for request in (
        StreamRequest(session=opened.session, verb='imagine', number=1),
        StreamRequest(session=opened.session, verb='seed', number=1),
        StreamRequest(session='other', verb='imagine', number=1),
        StreamRequest(session=opened.session, verb='imagine', number=5, received=3),
    ):
        with pytest.raises(grpc.RpcError):
            list(stub.Stream(request, timeout=TIMEOUT))
    answer = stub.Call(
        CallRequest(session=opened.session, verb='stats', arguments=payload({}), number=2),
        timeout=TIMEOUT,
    )
    assert "no memory 'default'" in answer.error.message


def _library() -> str:
    from importlib.metadata import version

    return version('mirage')
