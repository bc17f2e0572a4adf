"""The engine of a server as an `EngineProtocol`; it needs neither torch nor a model."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
import logging
from pathlib import Path
import time
from typing import Any

import grpc
import numpy as np

from mirage_model.engine.worker import DEADLINE_PASSED
from mirage_model.image_fit import fit_depth, fit_image, fit_K
from mirage_model.interface import (
    Cancelled,
    Candidate,
    CandidatesRequest,
    Chunk,
    CoverageScore,
    DepthSource,
    EngineUnavailable,
    ImagineRequest,
    InvalidRequest,
    LinkStatus,
    MemoryStats,
    ModelInfo,
    Observation,
    Points,
    Trajectory,
)
from mirage_model.serving.config import Certificates
from mirage_model.serving.engine_pb2 import (
    CallRequest,
    Error,
    Payload,
    StreamPosition,
    StreamReply,
    StreamRequest,
)
from mirage_model.serving.errors import error_from
from mirage_model.serving.images import Images
from mirage_model.serving.journal import Journal
from mirage_model.serving.link import Connection, Link
from mirage_model.serving.reader import StreamReader
from mirage_model.serving.wire import (
    ArrayLimits,
    bind,
    payload,
    read_payload,
    result_of,
)

MAX_ANSWER_BYTES = 2**31
"""Largest answer of the server [bytes]."""
POLL = 0.01
"""Time between two questions whether a request was cancelled [s]."""
REJECTED = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED)
"""Answers to a message that is malformed or too large."""
BROKEN = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.NOT_FOUND,
)
"""Ends of a call after which a new connection is made."""

logger = logging.getLogger(__name__)


class RemoteEngine:
    """`EngineProtocol` by a server.

    Not thread-safe, as `Engine`, but for `link`.
    """

    def __init__(
        self,
        address: str,
        *,
        certificates: Certificates | None = None,
        sha256: str = '',
        images: Images = 'jpeg',
        timeout: float = 5.0,
        lease: float = 30.0,
        keep_bytes: int = 64 * 2**20,
    ) -> None:
        """Connect to a server.

        Args:
            address: grpcs://HOST:PORT, or grpc://HOST:PORT on loopback.
            certificates: Files of this client; needed for grpcs.
            sha256: Hash over all weights that the server must have; '' for any.
            images: Compression of images on the way.
            timeout: Time without an answer after which the link counts as broken, and for which
                a call waits for a link [s].
            lease: Time for which the server is to keep the memories when this client is silent
                [s]; the server may allow less.
            keep_bytes: Size of the newest observations, compressed, that are sent again if the
                server has lost the memories [bytes].

        Raises:
            ValueError: The address or a file cannot be used, or the server has another version
                or other weights.
            EngineUnavailable: The server does not answer, or rejects the certificate.
        """
        self._link = Link(
            address, certificates=certificates, sha256=sha256, timeout=timeout, lease=lease
        )
        connection = self._link.connection(0.0)
        if connection is None:
            raise self._link.unavailable('the link broke')
        self._limits = ArrayLimits(nbytes=MAX_ANSWER_BYTES)
        self._model: ModelInfo = read_payload(
            connection.opened.model, ModelInfo, limits=self._limits
        )
        self._images = images
        self._session, self._epoch = connection.session, connection.opened.epoch
        self._lease = connection.opened.lease
        self._calls = self._streams = 0
        self._journal = Journal(max_bytes=keep_bytes)
        self._lost = ''

    def describe(self) -> ModelInfo:
        return self._model

    def warm(self) -> None:
        self._call('warm')

    def release(self) -> None:
        self._call('release')

    def device_nbytes(self) -> int:
        return self._call('device_nbytes')

    def seed(self, observation: Observation, *, memory: str = 'default') -> DepthSource:
        return self._call('seed', self._fitted(observation), memory=memory)

    def observe(self, observation: Observation, *, memory: str = 'default') -> DepthSource:
        return self._call('observe', self._fitted(observation), memory=memory)

    def imagine(
        self, request: ImagineRequest, *, cancelled: Callable[[], bool] = lambda: False
    ) -> Iterator[Chunk]:
        yield from self._stream('imagine', request, cancelled)

    def imagine_candidates(
        self, request: CandidatesRequest, *, cancelled: Callable[[], bool] = lambda: False
    ) -> Iterator[Candidate]:
        yield from self._stream('imagine_candidates', request, cancelled)

    def predicted_seconds(self, request: ImagineRequest | CandidatesRequest) -> float:
        if isinstance(request, CandidatesRequest):
            request = replace(request, goal=None)
        return self._call('predicted_seconds', request)

    def score(
        self,
        trajectories: Sequence[Trajectory],
        *,
        memory: str = 'default',
        threshold: float = 0.5,
        coarse: bool = False,
    ) -> list[CoverageScore]:
        return self._call('score', trajectories, memory=memory, threshold=threshold, coarse=coarse)

    def reanchor(self, new_from_old: np.ndarray, *, memory: str = 'default') -> None:
        self._call('reanchor', np.asarray(new_from_old), memory=memory)

    def points(self, *, memory: str = 'default', max_points: int = 100_000) -> Points:
        return self._call('points', memory=memory, max_points=max_points)

    def stats(self, *, memory: str = 'default') -> MemoryStats:
        return self._call('stats', memory=memory)

    def save(self, path: Path, *, memory: str = 'default') -> None:
        """Write a memory to a file of the client's folder on the server; only the name of
        ``path`` counts."""
        self._call('save', Path(path.name), memory=memory)

    def load(self, path: Path, *, memory: str = 'default') -> None:
        """Read a file of the client's folder on the server; only the name of ``path`` counts."""
        self._call('load', Path(path.name), memory=memory)

    def drop(self, *, memory: str = 'default') -> None:
        self._call('drop', memory=memory)

    def link(self) -> LinkStatus:
        link = self._link
        return LinkStatus(
            address=link.address,
            connected=link.connected,
            message=f'no link to the engine: {link.problem}' if not link.connected else self._lost,
            round_trip=link.round_trip,
            reconnects=link.reconnects,
            sessions_lost=link.sessions_lost,
            observations_kept=self._journal.observations,
            nbytes_kept=self._journal.nbytes,
        )

    def close(self) -> None:
        self._link.close()

    def _fitted(self, observation: Observation) -> Observation:
        """Return an observation no larger than the model's frame, as the engine would fit it.

        One that is malformed stays as it is: the engine says what is wrong with it.
        """
        image, depth, about = observation.image, observation.depth, self._model
        wellformed = (
            image.ndim == 3
            and image.shape[2] == 3
            and image.dtype == np.uint8
            and np.shape(observation.K) == (3, 3)
            and (depth is None or depth.shape == image.shape[:2])
        )
        size = about.height, about.width
        if not wellformed or image.size <= about.height * about.width * 3:
            return observation
        return replace(
            observation,
            image=fit_image(image, *size),
            depth=None if depth is None else fit_depth(depth, *size),
            K=fit_K(np.asarray(observation.K, np.float64), image.shape[:2], *size),
        )

    def _call(self, verb: str, *arguments: object, **keywords: object) -> Any:
        """Run a verb on the server, exactly once, and return what it returned.

        Raises:
            EngineUnavailable: There was no link for the timeout.
        """
        named = bind(verb, arguments, keywords)
        message = payload(named, self._images)
        self._restore_if_lost()
        reply = self._exchange(verb, message)
        self._journal.add(verb, str(named.get('memory', 'default')), message)
        return reply

    def _restore_if_lost(self) -> Connection:
        """Wait for the link; send the kept observations if the server has lost the memories."""
        while True:
            connection = self._link.connection(self._link.timeout)
            if connection is None:
                raise self._link.unavailable('there is no link')
            if connection.session == self._session:
                return connection
            restarted = connection.opened.epoch != self._epoch
            self._session, self._epoch = connection.session, connection.opened.epoch
            self._calls = self._streams = 0
            self._restore('was restarted' if restarted else 'had ended the session')

    def _restore(self, reason: str) -> None:
        lost, count = self._journal.take_unrestorable(), 0
        for verb, memory, message in self._journal.operations():
            try:
                self._exchange(verb, message)
                count += 1
            except (ValueError, OSError, RuntimeError) as error:
                if isinstance(error, EngineUnavailable):
                    raise
                logger.warning('memory %r was not restored: %s', memory, error)
        self._lost = f'the server {reason}: {count} observations and moves were sent again'
        if lost:
            self._lost += f', without what was in them before: {", ".join(sorted(lost))}'
        logger.warning(self._lost)

    def _exchange(self, verb: str, arguments: Payload) -> Any:
        """Send a call until it is answered; the server runs it once."""
        self._calls += 1
        request = CallRequest(
            session=self._session, verb=verb, arguments=arguments, number=self._calls
        )
        while True:
            connection = self._link.connection(self._link.timeout)
            if connection is None:
                raise self._link.unavailable(f'{verb} was not answered')
            if connection.session != request.session:
                # the call is for memories that are gone
                self._restore_if_lost()
                return self._exchange(verb, arguments)
            try:
                reply = self._wait(connection, connection.stub.Call.future(request))
            except grpc.RpcError as error:
                _check_broken(verb, error)
                self._link.report_broken(connection, error)
                continue
            if reply is None:
                continue
            if reply.WhichOneof('outcome') == 'error':
                raise error_from(reply.error)
            return read_payload(reply.value, result_of(verb), limits=self._limits)

    def _wait(self, connection: Connection, future: Any) -> Any:
        """Return the reply of a call, or None if its connection broke. Raises grpc.RpcError."""
        while True:
            try:
                return future.result(timeout=0.1)
            except grpc.FutureTimeoutError:
                if not self._link.is_current(connection):
                    future.cancel()
                    return None

    def _stream(
        self,
        verb: str,
        request: ImagineRequest | CandidatesRequest,
        cancelled: Callable[[], bool],
    ) -> Iterator[Any]:
        connection = self._restore_if_lost()
        self._streams += 1
        message = StreamRequest(
            session=self._session,
            number=self._streams,
            verb=verb,
            arguments=payload({'request': self._small(request)}, self._images),
            compression=self._images.upper(),
        )
        session, position = self._session, StreamPosition()
        position.session, position.number = message.session, message.number
        acknowledged: deque[Any] = deque(maxlen=16)
        reader: StreamReader | None = None
        ended = False
        try:
            while not ended:
                if reader is None or not self._link.is_current(reader.connection):
                    before, connection = reader, self._taken_up(session, cancelled)
                    message.received = position.received
                    reader = StreamReader(connection, message, result_of(verb), self._limits)
                    if before is not None:
                        reader.wait_until_attached(self._link.timeout)
                        before.close()
                event = reader.next(POLL)
                if isinstance(event, grpc.RpcError):
                    self._check_stream_error(verb, event)
                    self._link.report_broken(reader.connection, event)
                elif isinstance(event, Exception):
                    raise event
                elif isinstance(event, StreamReply):
                    ended = event.WhichOneof('event') == 'end'
                    if ended and event.end.HasField('error'):
                        raise self._end_error(event.end.error)
                elif event is not None:
                    yield event
                    position.received += 1
                    with suppress(ValueError):  # the channel was closed meanwhile
                        # a call that nobody holds is cancelled
                        acknowledged.append(reader.connection.stub.Acknowledge.future(position))
                if not ended and cancelled():
                    raise Cancelled
        finally:
            if reader is not None:
                reader.close()
        keep_in = getattr(request, 'keep_in', None)
        if keep_in is not None:
            self._journal.add_imagined(keep_in, source=request.memory)

    def _small(self, request: ImagineRequest | CandidatesRequest) -> Any:
        """Return a request whose goal image is no larger than the model's frame."""
        goal = getattr(request, 'goal', None)
        about = self._model
        if goal is None or goal.ndim != 3 or goal.size <= about.height * about.width * 3:
            return request
        assert isinstance(request, CandidatesRequest)
        return replace(request, goal=fit_image(goal, about.height, about.width))

    def _taken_up(self, session: str, cancelled: Callable[[], bool]) -> Connection:
        """Wait for a connection on which a request can go on.

        Raises EngineUnavailable if there is none within the lease, or the session is gone.
        """
        patience = time.monotonic() + self._lease
        while True:
            connection = self._link.connection(POLL)
            if connection is not None:
                if connection.session != session:
                    raise EngineUnavailable(
                        f'engine {self._link.address}: it lost the request, its server was '
                        'restarted or had ended the session; send it again'
                    )
                return connection
            if cancelled():
                raise Cancelled
            if time.monotonic() > patience:
                raise self._link.unavailable('the request was given up, there is no link')

    def _end_error(self, message: Error) -> Exception:
        """Return the error of a request that the server ended."""
        error = error_from(message)
        if not isinstance(error, Cancelled) or str(error) == DEADLINE_PASSED:
            return error
        return EngineUnavailable(
            f'engine {self._link.address}: it cancelled the request: {error}; send it again'
        )

    def _check_stream_error(self, verb: str, error: grpc.RpcError) -> None:
        """Raise for an answer that another connection would not change."""
        _check_broken(verb, error)
        if error.code() == grpc.StatusCode.NOT_FOUND:
            raise EngineUnavailable(
                f'engine {self._link.address}: the link broke and the server no longer has the '
                f'request: {error.details()}; send it again'
            )


def _check_broken(verb: str, error: grpc.RpcError) -> None:
    """Raise for an end of a call that another connection would not change."""
    if error.code() in REJECTED:
        raise InvalidRequest(f'{verb}: {error.details()}') from None
    if error.code() not in BROKEN:
        raise RuntimeError(f'{verb}: {error.code().name}: {error.details()}') from None
