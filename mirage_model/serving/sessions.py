"""Sessions of the server: a client's engine, its memories and its requests."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
import re
import secrets
import threading
import time
from typing import Any

from mirage_model.engine.worker import Job, Outcome, Worker
from mirage_model.interface import (
    Candidate,
    CandidatesRequest,
    Chunk,
    EngineProtocol,
    ImagineRequest,
    InvalidRequest,
)
from mirage_model.serving.config import SessionLimits
from mirage_model.serving.engine_pb2 import CallReply, StreamRequest
from mirage_model.serving.errors import error_message, outcome_error
from mirage_model.serving.streams import AnswerStream
from mirage_model.serving.wire import ArrayLimits, payload, read_arguments

CALLS = (
    'seed',
    'observe',
    'predicted_seconds',
    'score',
    'reanchor',
    'points',
    'stats',
    'save',
    'load',
    'drop',
    'warm',
    'release',
    'device_nbytes',
)
"""Verbs that return one value."""
STREAMS = ('imagine', 'imagine_candidates')
"""Verbs that yield values."""
IN_FLIGHT = 12
"""Calls of a session that are served at a time: streams, a call, a heartbeat, acknowledgements."""
SWEEP = 0.5
"""Time between two looks for sessions whose lease has ended [s]."""
_FILE = re.compile(r'[A-Za-z0-9_][A-Za-z0-9_.@-]{0,127}')


class SessionLost(LookupError):
    """The session, or the part of a request that is asked for, does not exist."""


@dataclass
class _Request:
    number: int
    stream: AnswerStream
    job: Job


@dataclass
class ClientSession:
    """A client's engine on the shared model, and its requests."""

    identity: str
    """Name in the client's certificate."""
    engine: EngineProtocol
    lease: float
    """Time after which the session is dropped if it was not renewed [s]."""
    id: str
    memories: set[str] = field(default_factory=set)
    nbytes: int = 0
    """Bytes of the memories when one was last written or deleted."""
    expires: float = 0.0
    call: tuple[int, Future[CallReply] | None] = (0, None)
    """The last call, by its number: it is answered again, but not run again."""
    requests: dict[int, _Request] = field(default_factory=dict)
    in_flight: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(IN_FLIGHT))
    lock: threading.Lock = field(default_factory=threading.Lock)


class Sessions:
    """All sessions on one worker.

    Args:
        worker: Serves all sessions in turns.
        open_engine: Returns an engine without memories on the worker's model.
        lease: Longest lease of a session [s].
        folder: Folder of saved memories; None to reject saving and loading.
        member: Name of the engine in a pool, with which its sessions begin; '' outside of one.
    """

    def __init__(
        self,
        worker: Worker,
        open_engine: Callable[[], EngineProtocol],
        *,
        limits: SessionLimits,
        max_sessions: int,
        lease: float,
        folder: Path | None,
        arrays: ArrayLimits,
        member: str = '',
    ) -> None:
        self._worker = worker
        self._open_engine = open_engine
        self._limits = limits
        self._max_sessions = max_sessions
        self._lease = lease
        self._folder = folder
        self._arrays = arrays
        self._member = member
        self._sessions: dict[str, ClientSession] = {}
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._sweeping = threading.Thread(target=self._sweep, name='mirage-leases', daemon=True)
        self._sweeping.start()

    def open(self, identity: str, session_id: str, *, lease: float) -> ClientSession:
        """Return the session of a client that comes again, or a new one.

        Raises InvalidRequest if there is no room.
        """
        with self._lock:
            session = self._sessions.get(session_id)
            if session is None or session.identity != identity:
                if len(self._sessions) >= self._max_sessions:
                    raise InvalidRequest(
                        f'sessions: {len(self._sessions)} are open, max_sessions of the server is '
                        f'{self._max_sessions}'
                    )
                session = ClientSession(
                    identity=identity,
                    engine=self._open_engine(),
                    lease=min(lease, self._lease) if lease > 0 else self._lease,
                    id=session_name(self._member),
                )
                self._sessions[session.id] = session
            session.expires = time.monotonic() + session.lease
            return session

    def get(self, identity: str, session_id: str) -> ClientSession:
        """Return a session of a client and renew it. Raises SessionLost."""
        with self._lock:
            session = self._sessions.get(session_id)
            if session is None or session.identity != identity:
                raise SessionLost('the session does not exist')
            session.expires = time.monotonic() + session.lease
            return session

    def call(self, session: ClientSession, number: int, verb: str, arguments: Any) -> CallReply:
        """Run a verb once for a number, and return what it returned or raised.

        Raises:
            SessionLost: A later call was made meanwhile.
            WireError: The arguments are malformed.
        """
        with session.lock:
            last, future = session.call
            if number != last:
                if number < last:
                    raise SessionLost(f'call {number} is over, the last one was {last}')
                values = read_arguments(arguments, verb, limits=self._arrays)
                future = self._worker.call(lambda _: self._run(session, verb, values))
                session.call = number, future
        assert future is not None
        try:
            return future.result()
        except InvalidRequest as error:
            return CallReply(error=error_message(error))

    def stream(self, session: ClientSession, request: StreamRequest) -> AnswerStream:
        """Return the stream of a number, which is begun if it is new.

        Raises:
            SessionLost: The request has ended and was forgotten.
            WireError: The arguments are malformed.
        """
        with session.lock:
            known = session.requests.get(request.number)
            if known is not None:
                return known.stream
            if request.received or request.number <= max(session.requests, default=0):
                raise SessionLost(f'request {request.number} does not exist')
            values = read_arguments(request.arguments, request.verb, limits=self._arrays)
            begun = self._job(session, request, values['request'])
            for number, each in list(session.requests.items()):
                if each.stream.ended:
                    del session.requests[number]
            session.requests[request.number] = begun
        keep_in = getattr(begun.job.request, 'keep_in', None)
        if keep_in is None:
            self._worker.submit(begun.job)
        else:
            room = self._worker.call(lambda _: self._check_room(session, keep_in))
            room.add_done_callback(partial(self._submit_if_room, begun.job))
        return begun.stream

    def _submit_if_room(self, job: Job, room: Future[None]) -> None:
        error = room.exception()
        if error is None:
            self._worker.submit(job)
            return
        job.on_end(
            Outcome(request_id=job.request.request_id, status='rejected', reason=str(error))
        )

    def _job(
        self,
        session: ClientSession,
        message: StreamRequest,
        request: ImagineRequest | CandidatesRequest,
    ) -> _Request:
        # the worker wants unique ids, those of two clients may be equal
        unique = replace(request, request_id=f'{session.id} {message.number}')
        stream = AnswerStream(on_room=self._worker.wake)
        keep_in = getattr(request, 'keep_in', None)
        paths = [request] if isinstance(request, ImagineRequest) else request.trajectories

        def on_end(outcome: Outcome) -> None:
            if outcome.status == 'done' and keep_in is not None:
                session.memories.add(keep_in)
            stream.end(outcome_error(outcome))

        deadline = getattr(request, 'deadline', None)
        job = Job(
            request=unique,
            due=None if deadline is None else time.monotonic() + deadline,
            observations=(),
            wanted=tuple(len(path.times) for path in paths),
            on_answer=lambda answer: stream.put(_with_id(answer, request.request_id)),
            on_end=on_end,
            client=session.id,
            engine=session.engine,
            on_step=stream.on_step,
            ready=stream.has_room,
        )
        return _Request(number=message.number, stream=stream, job=job)

    def cancel(self, session: ClientSession, number: int, reason: str) -> None:
        """End a request within one denoising step, if it has not ended."""
        with session.lock:
            known = session.requests.get(number)
        if known is not None:
            self._worker.cancel(known.job, reason)

    def find(self, session: ClientSession, number: int) -> AnswerStream | None:
        with session.lock:
            known = session.requests.get(number)
        return known.stream if known else None

    def drop(self, session: ClientSession, reason: str) -> None:
        """End a session: its requests end, its memories are deleted."""
        with self._lock:
            self._sessions.pop(session.id, None)
        with session.lock:
            numbers = list(session.requests)
        for number in numbers:
            self.cancel(session, number, reason)
        self._worker.call(lambda _: session.engine.close())

    def close(self) -> None:
        self._closed.set()
        self._sweeping.join()

    def all(self) -> list[ClientSession]:
        with self._lock:
            return list(self._sessions.values())

    def report(self) -> list[dict[str, object]]:
        """Return facts about each session."""
        now = time.monotonic()
        return [
            {
                'client': session.identity,
                'memories': len(session.memories),
                'nbytes': session.nbytes,
                'requests': sum(not r.stream.ended for r in list(session.requests.values())),
                'lease_seconds': round(session.expires - now, 1),
            }
            for session in self.all()
        ]

    def _sweep(self) -> None:
        while not self._closed.wait(SWEEP):
            now = time.monotonic()
            for session in self.all():
                if session.expires < now:
                    self.drop(session, f'the client was silent for {session.lease:g} s')

    def _run(self, session: ClientSession, verb: str, arguments: dict[str, Any]) -> CallReply:
        """Run a verb in the worker's thread."""
        memory = arguments.get('memory', 'default')
        try:
            if verb in ('seed', 'observe', 'load'):
                self._check_room(session, memory)
            if 'path' in arguments:
                arguments['path'] = self._file(session, arguments['path'])
            value = getattr(session.engine, verb)(**arguments)
        except Exception as error:
            return CallReply(error=error_message(error))
        if verb in ('seed', 'load'):
            session.memories.add(memory)
        elif verb == 'drop':
            session.memories.discard(memory)
            session.nbytes = _nbytes(session)
        return CallReply(value=payload(value))

    def _check_room(self, session: ClientSession, memory: str) -> None:
        """Raise InvalidRequest if a session may not write to a memory."""
        most, known = self._limits, session.memories
        if memory not in known and len(known) >= most.max_memories:
            raise InvalidRequest(
                f"memory '{memory}': there is no room for it, max_memories of the server is "
                f'{most.max_memories}'
            )
        session.nbytes = _nbytes(session)
        if session.nbytes >= most.max_bytes:
            raise InvalidRequest(
                f"memory '{memory}': the memories take {session.nbytes} bytes, max_bytes of the "
                f'server is {most.max_bytes}, delete one'
            )

    def _file(self, session: ClientSession, path: Path) -> Path:
        """Return the place of a client's file. Raises InvalidRequest for one elsewhere."""
        if self._folder is None:
            raise InvalidRequest('path: the server has no folder for memories, give it --folder')
        for name in (path.name, session.identity):
            if not _FILE.fullmatch(name):
                raise InvalidRequest(f"path: '{name}' is not a name of A-Z a-z 0-9 _ . @ -")
        folder = self._folder / session.identity
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / path.name).resolve()
        if file.parent != folder.resolve():
            raise InvalidRequest(f"path: '{path.name}' leads out of the client's folder")
        return file


def session_name(member: str) -> str:
    """Return a new session's name, from which the front of a pool reads the engine."""
    return f'{member}.{secrets.token_hex(16)}'


def member_of(session: str) -> str:
    """Return the name of the engine in a pool that a session is on; '' for none."""
    return session.rpartition('.')[0]


def _nbytes(session: ClientSession) -> int:
    return sum(session.engine.stats(memory=name).nbytes for name in session.memories)


def _with_id(answer: Chunk | Candidate, request_id: str) -> Chunk | Candidate:
    if isinstance(answer, Chunk):
        return replace(answer, request_id=request_id)
    chunks = tuple(replace(chunk, request_id=request_id) for chunk in answer.chunks)
    return replace(answer, chunks=chunks)
