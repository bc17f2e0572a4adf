"""The front of a pool: it passes each call on to the engine of its session, without decoding it.

A session's name begins with that of its engine, so that a front keeps nothing about sessions: one
that is started again, or another one beside it, passes on the calls of all of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
import json
import ssl
from typing import Any, NoReturn

import grpc

from mirage_model.serving.config import (
    TRANSPORT,
    Certificates,
    ServerConfig,
    channel_credentials,
    leaf_of,
    scheme_of,
    server_credentials,
    target_of,
)
from mirage_model.serving.engine_pb2 import (
    DESCRIPTOR,
    Empty,
    OpenRequest,
    SessionRequest,
    StatusReply,
)
from mirage_model.serving.server import FORWARDED, client_name
from mirage_model.serving.sessions import member_of

SERVICE = DESCRIPTOR.services_by_name['Engine']
MAX_CALLS = 16384
"""Calls that a front passes on at a time."""
SILENCE = 10.0
"""Time after which an engine that does not answer loses its sessions [s]."""
OPTIONS = [
    ('grpc.max_receive_message_length', -1),
    ('grpc.max_send_message_length', -1),
    *TRANSPORT,
]
"""Options of the connection to an engine."""


class EngineConnection:
    """A connection to the server of an engine; each method takes and returns messages as bytes."""

    def __init__(self, target: str, channel: grpc.aio.Channel) -> None:
        self.target = target
        self.channel = channel
        self.methods: dict[str, Any] = {
            method.name: (
                channel.unary_stream if method.server_streaming else channel.unary_unary
            )(f'/{SERVICE.full_name}/{method.name}')
            for method in SERVICE.methods
        }

    async def status(self, seconds: float) -> dict[str, Any]:
        """Return what the server does. Raises grpc.RpcError if it does not answer in time."""
        reply = await self.methods['Status'](Empty().SerializeToString(), timeout=seconds)
        return json.loads(StatusReply.FromString(reply).text)


async def connect(target: str, certificates: Certificates | None) -> EngineConnection:
    """Connect to the server of an engine.

    Raises:
        OSError: The server does not answer.
        ValueError: The server has another certificate than ``certificates``.
    """
    if certificates is None:
        return EngineConnection(target, grpc.aio.insecure_channel(target, OPTIONS))
    name = await _certificate_name(target, certificates)
    options = [*OPTIONS, ('grpc.ssl_target_name_override', name)]
    credentials = channel_credentials(certificates)
    return EngineConnection(target, grpc.aio.secure_channel(target, credentials, options))


async def _certificate_name(target: str, certificates: Certificates) -> str:
    """Return the name in a server's certificate, which must be this side's own.

    Raises as `connect`.
    """
    host, _, port = target.rpartition(':')
    context = ssl.create_default_context(cafile=certificates.authority)
    context.check_hostname = False  # the certificate is compared as a whole
    context.load_cert_chain(certificates.certificate, certificates.key)
    context.set_alpn_protocols(['h2'])
    _, writer = await asyncio.open_connection(host.strip('[]'), int(port), ssl=context)
    try:
        peer = writer.get_extra_info('ssl_object')
        found, about = peer.getpeercert(binary_form=True), peer.getpeercert()
    finally:
        writer.close()
    if found != leaf_of(certificates.read()[1]):
        raise ValueError(f'{target}: has another certificate than the front, a pool shares one')
    names = [name for _, name in about.get('subjectAltName', ())]
    return names[0] if names else dict(pair for (pair,) in about['subject'])['commonName']


@dataclass
class PoolEngine:
    """An engine of the pool, as its front sees it."""

    name: str
    connection: EngineConnection | None = None
    status: dict[str, Any] | None = None
    """Last status of its server; None if it does not answer."""
    problem: str = 'starts'
    """Reason why the engine does not answer."""
    opening: int = 0
    """Sessions that are being opened."""
    asking: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def ready(self) -> bool:
        return self.status is not None

    @property
    def load(self) -> tuple[int, int]:
        """Sessions, and bytes of their memories."""
        sessions = self.status['sessions'] if self.status else []
        return len(sessions) + self.opening, sum(each['nbytes'] for each in sessions)

    async def refresh(self, seconds: float) -> None:
        """Ask for the status. Raises grpc.RpcError if none comes in time."""
        assert self.connection is not None
        async with self.asking:  # so that the newest answer counts
            self.status = await self.connection.status(seconds)
        self.problem = ''


@dataclass
class Engines:
    """The engines of a pool by name."""

    engines: dict[str, PoolEngine] = field(default_factory=dict)

    def of_session(self, session: str) -> PoolEngine | None:
        """Return the engine of a session, or None if it does not answer."""
        engine = self.engines.get(member_of(session))
        return engine if engine is not None and engine.ready else None

    def least_loaded(self) -> PoolEngine | None:
        ready = [engine for engine in self.engines.values() if engine.ready]
        return min(ready, key=lambda engine: engine.load, default=None)

    def report(self) -> dict[str, object]:
        """Return facts about each engine."""
        return {
            engine.name: {
                'ready': engine.ready,
                'problem': engine.problem,
                'address': engine.connection.target if engine.connection else '',
                **(engine.status or {}),
            }
            for engine in self.engines.values()
        }


class Front:
    """A gRPC server that passes the calls of robots on to the engines of a pool.

    It is made in a running event loop.

    Raises:
        ValueError: The address or the certificates cannot be used.
        OSError: The port is in use.
    """

    def __init__(self, engines: Engines, config: ServerConfig) -> None:
        self._engines = engines
        target = target_of(config.address, config.certificates)
        self._server = grpc.aio.server(
            maximum_concurrent_rpcs=MAX_CALLS,
            options=[
                ('grpc.max_receive_message_length', config.max_message_bytes),
                ('grpc.max_send_message_length', -1),
                ('grpc.so_reuseport', 0),
                *TRANSPORT,
            ],
        )
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE.full_name, self._handlers()),)
        )
        try:
            self.port = self._bind(target, config)
        except RuntimeError as error:
            raise OSError(f"address: '{config.address}' cannot be served: {error}") from None

    def _bind(self, target: str, config: ServerConfig) -> int:
        if scheme_of(config.address) == 'grpc':
            return self._server.add_insecure_port(target)
        assert config.certificates is not None
        return self._server.add_secure_port(target, server_credentials(config.certificates))

    async def start(self) -> None:
        await self._server.start()

    async def close(self) -> None:
        await self._server.stop(grace=1.0)

    def _handlers(self) -> Mapping[str, grpc.RpcMethodHandler]:
        return {
            'Status': grpc.unary_unary_rpc_method_handler(
                self._status, Empty.FromString, StatusReply.SerializeToString
            ),
            **{
                method.name: (
                    grpc.unary_stream_rpc_method_handler(self._streaming(method.name))
                    if method.server_streaming
                    else grpc.unary_unary_rpc_method_handler(self._unary(method.name))
                )
                for method in SERVICE.methods
                if method.name != 'Status'
            },
        }

    async def _status(self, request: Empty, context: grpc.aio.ServicerContext) -> StatusReply:
        return StatusReply(text=json.dumps({'engines': self._engines.report()}))

    def _unary(self, name: str) -> Any:
        async def pass_on(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
            engine = await self._engine(name, request, context)
            assert engine.connection is not None
            engine.opening += name == 'Open'
            try:
                reply = await engine.connection.methods[name](
                    request, metadata=_forwarded(context), timeout=context.time_remaining()
                )
                if name in ('Open', 'Close'):
                    await engine.refresh(SILENCE)
                return reply
            except grpc.aio.AioRpcError as error:
                await _end_as(error, context)
            finally:
                engine.opening -= name == 'Open'

        return pass_on

    def _streaming(self, name: str) -> Any:
        async def pass_on(request: bytes, context: grpc.aio.ServicerContext) -> None:
            engine = await self._engine(name, request, context)
            assert engine.connection is not None
            call = engine.connection.methods[name](
                request, metadata=_forwarded(context), timeout=context.time_remaining()
            )
            try:
                async for reply in call:
                    await context.write(reply)  # waits for a slow reader
            except grpc.aio.AioRpcError as error:
                await _end_as(error, context)
            finally:
                call.cancel()

        return pass_on

    async def _engine(
        self, method: str, request: bytes, context: grpc.aio.ServicerContext
    ) -> PoolEngine:
        """Return the engine of a request's session; a session that has none gets one."""
        opens = method == 'Open'
        message = (OpenRequest if opens else SessionRequest).FromString(request)
        engine = self._engines.of_session(message.session)
        if engine is None and opens:
            engine = self._engines.least_loaded()
        if engine is None:
            what = 'no engine of the pool' if opens else 'the engine of the session'
            await context.abort(grpc.StatusCode.UNAVAILABLE, f'{what} does not answer')
        assert engine is not None
        return engine


async def _end_as(error: grpc.aio.AioRpcError, context: grpc.aio.ServicerContext) -> NoReturn:
    """End a call as the engine ended it."""
    await context.abort(error.code(), error.details() or '')
    raise AssertionError('abort raises')


def _forwarded(context: grpc.aio.ServicerContext) -> tuple[tuple[str, bytes], ...]:
    return ((FORWARDED, client_name(context.auth_context()).encode()),)
