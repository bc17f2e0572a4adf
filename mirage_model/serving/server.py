"""The gRPC server around the worker and an engine: ``mirage serve``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
import json
import os
import secrets
from typing import Any, NoReturn

import grpc

from mirage_model.engine.worker import Worker
from mirage_model.interface import EngineProtocol, InvalidRequest
from mirage_model.serving import engine_pb2_grpc
from mirage_model.serving.buffers import BufferGroup, check_request, write_reply
from mirage_model.serving.config import (
    PROTOCOL,
    TRANSPORT,
    ServerConfig,
    leaf_of,
    scheme_of,
    server_credentials,
    target_of,
)
from mirage_model.serving.engine_pb2 import (
    CallReply,
    CallRequest,
    Compression,
    Empty,
    OpenReply,
    OpenRequest,
    RenewReply,
    SessionRequest,
    StatusReply,
    StreamPosition,
    StreamReply,
    StreamRequest,
)
from mirage_model.serving.images import Images, WireError
from mirage_model.serving.sessions import (
    CALLS,
    IN_FLIGHT,
    STREAMS,
    ClientSession,
    SessionLost,
    Sessions,
)
from mirage_model.serving.wire import ArrayLimits, payload

SHUTTING_DOWN = 'the server is shutting down'
IMAGES: dict[int, Images] = {
    Compression.NONE: 'none',
    Compression.PNG: 'png',
    Compression.JPEG: 'jpeg',
}
REQUESTS: dict[str, Any] = {
    'Open': OpenRequest,
    'Renew': SessionRequest,
    'Close': SessionRequest,
    'Call': CallRequest,
    'Stream': StreamRequest,
    'Acknowledge': StreamPosition,
    'Status': Empty,
}
ANYONE = 'local'
"""Identity of clients on loopback without certificates."""
FORWARDED = 'mirage-client-bin'
"""Metadata by which the front of a pool names the client whose call it passes on."""


class EngineServer:
    """Serves one engine to many clients, each with memories of its own.

    Args:
        engine: Describes the model; it is warm.
        open_engine: Returns an engine without memories on the same model, for a new session.
        member: Name of the engine in a pool: its sessions begin with the name, and its clients
            are those that a front with the server's own certificate names.

    Raises:
        ValueError: The address or the certificates cannot be used.
        OSError: The port is in use.
    """

    def __init__(
        self,
        engine: EngineProtocol,
        open_engine: Callable[[], EngineProtocol],
        config: ServerConfig,
        *,
        member: str = '',
    ) -> None:
        target = target_of(config.address, config.certificates)
        self.worker = Worker(engine, queue_size=config.limits.queue_size)
        self.sessions = Sessions(
            self.worker,
            open_engine,
            limits=config.limits,
            max_sessions=config.max_sessions,
            lease=config.lease,
            folder=config.folder,
            arrays=ArrayLimits(nbytes=config.max_message_bytes),
            member=member,
        )
        self._server = grpc.server(
            ThreadPoolExecutor(IN_FLIGHT * config.max_sessions, 'mirage-rpc'),
            maximum_concurrent_rpcs=IN_FLIGHT * config.max_sessions,
            options=[
                ('grpc.max_receive_message_length', config.max_message_bytes),
                ('grpc.max_send_message_length', -1),
                ('grpc.so_reuseport', 0),
                *TRANSPORT,
            ],
            interceptors=[_Wire()],
        )
        engine_pb2_grpc.add_EngineServicer_to_server(
            _Servicer(engine, self.worker, self.sessions, config, member), self._server
        )
        try:
            self.port = self._bind(target, config)
        except RuntimeError as error:
            self.close()
            raise OSError(f"address: '{config.address}' cannot be served: {error}") from None
        self._server.start()

    def _bind(self, target: str, config: ServerConfig) -> int:
        if scheme_of(config.address) == 'grpc':
            return self._server.add_insecure_port(target)
        assert config.certificates is not None
        return self._server.add_secure_port(target, server_credentials(config.certificates))

    def close(self) -> None:
        """End all requests with a reason, and stop."""
        self.worker.close(SHUTTING_DOWN)
        self._server.stop(grace=1.0).wait()
        self.sessions.close()


class _Wire(grpc.ServerInterceptor):
    """Checks requests before they are parsed, and writes buffers without protobuf's classes."""

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        handler = continuation(details)
        if handler is None:
            return None
        kind = REQUESTS[details.method.rpartition('/')[2]]

        def read(message: bytes) -> Any:
            check_request(message, kind)
            return kind.FromString(message)

        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(handler.unary_stream, read, write_reply)
        return grpc.unary_unary_rpc_method_handler(
            handler.unary_unary, read, handler.response_serializer
        )


class _Servicer(engine_pb2_grpc.EngineServicer):
    def __init__(
        self,
        engine: EngineProtocol,
        worker: Worker,
        sessions: Sessions,
        config: ServerConfig,
        member: str,
    ):
        certificates = config.certificates if member else None
        self._front = leaf_of(certificates.read()[1]) if certificates else None
        self._model = engine.describe()
        self._worker = worker
        self._sessions = sessions
        self._config = config
        self._epoch = secrets.token_hex(8)
        self._library = version('mirage')

    def Open(self, request: OpenRequest, context: grpc.ServicerContext) -> OpenReply:
        problem = None
        if request.protocol != PROTOCOL:
            problem = f'protocol: the client has {request.protocol}, the server {PROTOCOL}'
        elif request.library != self._library:
            problem = f'library: the client has {request.library}, the server {self._library}'
        if problem:
            _abort(context, grpc.StatusCode.FAILED_PRECONDITION, f'{problem}, install the same')
        if request.sha256 not in ('', self._model.sha256):
            _abort(
                context,
                grpc.StatusCode.FAILED_PRECONDITION,
                f'weights: the client expects {request.sha256[:12]}, the server has '
                f'{self._model.model} ({self._model.sha256[:12]})',
            )
        try:
            session = self._sessions.open(
                self._identity(context), request.session, lease=request.lease
            )
        except InvalidRequest as error:
            _abort(context, grpc.StatusCode.RESOURCE_EXHAUSTED, str(error))
        return OpenReply(
            epoch=self._epoch,
            session=session.id,
            lease=session.lease,
            max_message_bytes=self._config.max_message_bytes,
            model=payload(self._model),
        )

    def Renew(self, request: SessionRequest, context: grpc.ServicerContext) -> RenewReply:
        self._session(request.session, context)
        return RenewReply(waiting=self._worker.waiting)

    def Close(self, request: SessionRequest, context: grpc.ServicerContext) -> Empty:
        self._sessions.drop(self._session(request.session, context), 'the client has ended')
        return Empty()

    def Call(self, request: CallRequest, context: grpc.ServicerContext) -> CallReply:
        session = self._session(request.session, context)
        if request.verb not in CALLS:
            _abort(context, grpc.StatusCode.UNIMPLEMENTED, f'verb: {request.verb!r} is unknown')
        try:
            return self._sessions.call(session, request.number, request.verb, request.arguments)
        except SessionLost as error:
            _abort(context, grpc.StatusCode.NOT_FOUND, str(error))
        except WireError as error:
            _abort(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))

    def Stream(
        self, request: StreamRequest, context: grpc.ServicerContext
    ) -> Iterator[StreamReply | BufferGroup]:
        session = self._session(request.session, context)
        if request.verb not in STREAMS:
            _abort(context, grpc.StatusCode.UNIMPLEMENTED, f'verb: {request.verb!r} is unknown')
        try:
            stream = self._sessions.stream(session, request)
        except SessionLost as error:
            _abort(context, grpc.StatusCode.NOT_FOUND, str(error))
        except WireError as error:
            _abort(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
        reader = object()
        if not stream.attach(reader, request.received):
            _abort(context, grpc.StatusCode.NOT_FOUND, 'the answers that were sent are gone')

        def gone() -> None:
            if stream.detach(reader) and not stream.ended:
                self._sessions.cancel(session, request.number, 'the client is gone')

        if not context.add_callback(gone):
            gone()
            return
        yield from stream.events(reader, request.received, IMAGES[request.compression])

    def Acknowledge(self, request: StreamPosition, context: grpc.ServicerContext) -> Empty:
        session = self._session(request.session, context)
        stream = self._sessions.find(session, request.number)
        if stream is not None:
            stream.acknowledge(request.received)
        return Empty()

    def Status(self, request: Empty, context: grpc.ServicerContext) -> StatusReply:
        status = {
            'model': self._model.model,
            'sha256': self._model.sha256,
            'epoch': self._epoch,
            'process': os.getpid(),
            'waiting': self._worker.waiting,
            'sessions': self._sessions.report(),
        }
        return StatusReply(text=json.dumps(status))

    def _identity(self, context: grpc.ServicerContext) -> str:
        """Return the name in the client's certificate, or the one that the pool's front read."""
        auth = context.auth_context()
        if self._front is not None and leaf_of(*auth['x509_pem_cert']) == self._front:
            for key, value in context.invocation_metadata():
                if key == FORWARDED:
                    return value.decode()
        return client_name(auth)

    def _session(self, session_id: str, context: grpc.ServicerContext) -> ClientSession:
        """Return the session of a call, which counts among its calls until it ends."""
        try:
            session = self._sessions.get(self._identity(context), session_id)
        except SessionLost as error:
            _abort(context, grpc.StatusCode.NOT_FOUND, str(error))
        if not session.in_flight.acquire(blocking=False):
            _abort(
                context,
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f'session: {IN_FLIGHT} calls are being served, wait for one to end',
            )
        if not context.add_callback(session.in_flight.release):
            session.in_flight.release()
        return session


def client_name(auth: Mapping[str, Iterable[bytes]]) -> str:
    """Return the name in the client's certificate."""
    return next((name.decode() for name in auth.get('x509_common_name', [])), ANYONE)


def _abort(context: grpc.ServicerContext, code: grpc.StatusCode, reason: str) -> NoReturn:
    context.abort(code, reason)
    raise AssertionError('abort raises')
