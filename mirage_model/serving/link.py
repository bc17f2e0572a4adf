"""The client's link to a server: a session that is kept alive and taken up again."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.metadata import version
import logging
import math
import threading
import time
from typing import Any

import grpc

from mirage_model.interface import EngineUnavailable
from mirage_model.serving.buffers import read_reply
from mirage_model.serving.config import (
    PROTOCOL,
    TRANSPORT,
    Certificates,
    channel_credentials,
    scheme_of,
    target_of,
)
from mirage_model.serving.engine_pb2 import (
    OpenReply,
    OpenRequest,
    SessionRequest,
    StreamRequest,
)
from mirage_model.serving.engine_pb2_grpc import EngineStub

STREAM = '/mirage.engine.Engine/Stream'
HEARTBEAT = 1.0
"""Time between two heartbeats, and longest time between two tries to connect [s]."""
FINAL = (
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNIMPLEMENTED,
)
"""Answers to `Open` that another try would not change."""

logger = logging.getLogger(__name__)


@dataclass
class Connection:
    """A channel on which a session is open."""

    channel: grpc.Channel
    stub: EngineStub
    stream: grpc.UnaryStreamMultiCallable
    """``stub.Stream`` whose buffers are not copied by protobuf's classes."""
    opened: OpenReply
    users: int = 0
    """Streams that still hold the channel."""
    retired: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def session(self) -> str:
        return self.opened.session

    def hold(self) -> None:
        with self.lock:
            self.users += 1

    def release(self) -> None:
        with self.lock:
            self.users -= 1
        self._close_if_unused()

    def retire(self) -> None:
        """Close the channel once no stream holds it.

        The server takes a closed channel for a client that is gone, so that a stream must have
        moved to the next connection before.
        """
        self.retired = True
        self._close_if_unused()

    def _close_if_unused(self) -> None:
        with self.lock:
            unused = self.retired and self.users == 0
        if unused:
            self.channel.close()


class Link:
    """Keeps a session open from a thread of its own: heartbeats, and new connections when none
    comes back."""

    def __init__(
        self,
        address: str,
        *,
        certificates: Certificates | None,
        sha256: str,
        timeout: float,
        lease: float,
    ) -> None:
        """Connect.

        Args:
            sha256: Hash over all weights that the server must have; '' for any.
            timeout: Time without an answer after which the link counts as broken [s].
            lease: Time for which the server is to keep the session when nothing is heard [s].

        Raises:
            ValueError: The address or a file cannot be used, or the server has another version
                or other weights.
            EngineUnavailable: The server does not answer, or rejects the certificate.
        """
        self.address = address
        self._target = target_of(address, certificates)
        self._credentials = (
            channel_credentials(certificates)
            if scheme_of(address) == 'grpcs' and certificates is not None
            else None
        )
        self._sha256 = sha256
        self.timeout = timeout
        self._lease = lease
        self._changed = threading.Condition()
        self._connection: Connection | None = None
        self._broken: Connection | None = None
        self._closed = False
        self.problem = ''
        self.round_trip = math.nan
        self.reconnects = self.sessions_lost = 0
        try:
            self._connection = self._connect('')
        except grpc.RpcError as error:
            reason = f'engine {address}: {_details(error)}'
            raise (ValueError if error.code() in FINAL else EngineUnavailable)(reason) from None
        self._session = self._connection.session
        self._keeping = threading.Thread(target=self._keep, name='mirage-link', daemon=True)
        self._keeping.start()

    @property
    def connected(self) -> bool:
        return self._connection is not None

    def is_current(self, connection: Connection) -> bool:
        return self._connection is connection

    def connection(self, seconds: float) -> Connection | None:
        """Return the connection, or None if there is none for so long."""
        with self._changed:
            self._changed.wait_for(lambda: self._connection or self._closed, seconds)
            return self._connection

    def unavailable(self, what: str) -> EngineUnavailable:
        return EngineUnavailable(f'engine {self.address}: {what}: {self.problem or "no answer"}')

    def report_broken(self, connection: Connection, error: grpc.RpcError) -> None:
        """Have a new connection made in place of one whose call failed."""
        with self._changed:
            if self._connection is connection:
                self._lose(_details(error))

    def close(self) -> None:
        """End the session, which deletes its memories, and the link."""
        with self._changed:
            connection, self._connection = self._connection, None
            self._closed = True
            self._changed.notify_all()
        if connection is not None:
            try:
                connection.stub.Close(SessionRequest(session=self._session), timeout=HEARTBEAT)
            except grpc.RpcError as error:
                logger.info('the session was not closed: %s', _details(error))
            connection.channel.close()
        self._keeping.join()

    def _lose(self, reason: str) -> None:
        """Mark the connection as broken; the lock is held."""
        self.problem = reason
        assert self._connection is not None
        self._broken, self._connection = self._connection, None
        self._changed.notify_all()

    def _connect(self, session: str) -> Connection:
        """Open a session on a new channel. Raises grpc.RpcError."""
        options: list[tuple[str, Any]] = [
            ('grpc.max_receive_message_length', -1),
            ('grpc.max_send_message_length', -1),
            ('grpc.use_local_subchannel_pool', 1),  # a channel of its own, not the broken one
            ('grpc.enable_retries', 0),
            ('grpc.max_reconnect_backoff_ms', 1000),
            *TRANSPORT,
        ]
        if self._credentials is None:
            channel = grpc.insecure_channel(self._target, options)
        else:
            channel = grpc.secure_channel(self._target, self._credentials, options)
        stub = EngineStub(channel)
        request = OpenRequest(
            protocol=PROTOCOL,
            library=version('mirage'),
            sha256=self._sha256,
            session=session,
            lease=self._lease,
        )
        try:
            opened = stub.Open(request, timeout=self.timeout)
        except grpc.RpcError:
            channel.close()
            raise
        stream = channel.unary_stream(
            STREAM,
            request_serializer=StreamRequest.SerializeToString,
            response_deserializer=read_reply,
        )
        return Connection(channel=channel, stub=stub, stream=stream, opened=opened)

    def _keep(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or not self._connection, HEARTBEAT)
                if self._closed:
                    return
                connection = self._connection
            if connection is None:
                self._reconnect()
                continue
            began = time.monotonic()
            try:
                connection.stub.Renew(
                    SessionRequest(session=connection.session), timeout=self.timeout
                )
                self.round_trip = time.monotonic() - began
            except grpc.RpcError as error:
                self.report_broken(connection, error)

    def _reconnect(self) -> None:
        """Try once; wait a moment where it fails."""
        began = time.monotonic()
        try:
            connection = self._connect(self._session)
        except grpc.RpcError as error:
            with self._changed:
                self.problem = _details(error)
                wait = began + HEARTBEAT - time.monotonic()
                self._changed.wait_for(lambda: self._closed, max(0.0, wait))
            return
        with self._changed:
            broken, self._broken = self._broken, None
            self.reconnects += 1
            self.problem = ''
            if connection.session != self._session:
                self.sessions_lost += 1
                self._session = connection.session
            self._connection = None if self._closed else connection
            self._changed.notify_all()
        if broken is not None:
            broken.retire()
        if self._closed:
            connection.channel.close()


def _details(error: grpc.RpcError) -> str:
    if error.code() == grpc.StatusCode.DEADLINE_EXCEEDED:
        return 'no answer within the timeout'
    return ' '.join(str(error.details()).split()) or error.code().name.lower()
