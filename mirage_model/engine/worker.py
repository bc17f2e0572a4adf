"""A thread that drives the engine: it takes jobs from a fair queue and ends each with exactly one
outcome."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
import logging
import threading
import time
import traceback
from typing import Any, Literal, TypeVar

import numpy as np

from mirage_model.interface import (
    Cancelled,
    Candidate,
    CandidatesRequest,
    Chunk,
    EngineProtocol,
    ImagineRequest,
    InvalidRequest,
    Observation,
)

Status = Literal['done', 'rejected', 'dropped', 'cancelled', 'failed']
"""Rejected: the request is not valid.

Dropped: there is no room for it. Failed: an error of ours.
"""
Answer = Chunk | Candidate
T = TypeVar('T')

CLIENTS = 16
"""Number of clients that can fill their queues at the same time."""
MAX_CALLS = 256
"""Number of calls that may wait."""
DEADLINE_PASSED = 'the deadline passed while it waited'
INCOMPLETE = 'candidates are incomplete at the deadline'
SHUTTING_DOWN = 'the node is shutting down'

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The end of a job, and means over its returned frames."""

    request_id: str
    status: Status
    reason: str = ''
    """Empty for 'done'."""
    details: str = ''
    """Traceback of an error; only for 'failed'."""
    chunks: int = 0
    """Chunks that were returned."""
    frames: int = 0
    """Frames that were returned, without padding."""
    visible_mean: float = float('nan')
    """Mean visible share of the returned frames; NaN if there are none."""
    observed_mean: float = float('nan')
    """Mean observed share of the returned frames; NaN if there are none."""
    depth_source: str = ''
    """`DepthSource` of the memory; empty if the job did not start."""
    seconds: float = 0.0
    """Time from submission to the end [s]."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """A request and its callbacks."""

    request: ImagineRequest | CandidatesRequest
    observations: tuple[Observation, ...]
    """Written into the memory of the request, which the first creates and the end of the job
    drops; paths start from the last. Empty if the memory exists."""
    wanted: tuple[int, ...]
    """Frames to return along each path; those after them are padding."""
    on_answer: Callable[[Any], None]
    """Called from the worker's thread with each chunk, or with each candidate of a
    `CandidatesRequest`."""
    on_end: Callable[[Outcome], None]
    """Called once, from the worker's thread or from one that submits, cancels or closes."""
    client: str = ''
    kind: str = 'topic'
    replaces: bool = False
    """End the older jobs of the same client and kind."""
    last_frame_only: bool = False
    """Return only the last wanted frame of each candidate."""
    due: float | None = None
    """Time by the monotonic clock at which candidates are returned incomplete, and a waiting job
    ends."""
    engine: EngineProtocol | None = None
    """Serves the request; None for the worker's engine."""
    on_step: Callable[[], None] = lambda: None
    """Called from the worker's thread before each denoising step; must not block."""
    ready: Callable[[], bool] = lambda: True
    """Whether the job may go on after an answer; other jobs are served meanwhile.

    Must not block. `Worker.wake` has it asked again."""


@dataclass
class _Entry:
    job: Job
    turn: float = 0.0
    accepted: float = field(default_factory=time.monotonic)
    cancel_reason: str | None = None
    visible: list[np.ndarray] = field(default_factory=list)
    observed: list[np.ndarray] = field(default_factory=list)
    depth_source: str = ''
    incomplete: int = 0
    details: str = ''
    answers: Generator[None, None, None] | None = None
    """Serves the job up to its next answer; None before the job starts."""

    @property
    def goes_on(self) -> bool:
        return self.cancel_reason is not None or self.job.ready()


class Worker:
    """Serves jobs on an engine. Each submitted job has had its outcome when `close` returns.

    Jobs of a client are served in order. Clients take turns by start-time fair queueing: the turn
    of a job is one after the turn of the client's previous job, or the current turn if that is
    later. The current turn advances a little with each job.
    """

    def __init__(self, engine: EngineProtocol, *, queue_size: int):
        self._engine = engine
        self._queue_size = queue_size
        self._waiting: deque[_Entry] = deque()
        self._calls: deque[tuple[Callable[[EngineProtocol], object], Future]] = deque()
        self._running: _Entry | None = None
        self._turn = 0.0
        self._next_turn: dict[str, float] = {}
        self._closed = ''
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name='mirage-worker')
        self._thread.start()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def served(self) -> list[ImagineRequest | CandidatesRequest]:
        """Return the requests that run or wait, in the order of submission."""
        with self._changed:
            entries = ([self._running] if self._running else []) + list(self._waiting)
        return [entry.job.request for entry in entries]

    def submit(self, job: Job) -> None:
        """Queue a job, or end it at once if the queue is full, its request id is in use or the
        worker is closed."""
        entry = _Entry(job)
        request_id = job.request.request_id
        replaced: list[_Entry] = []
        reason = None
        with self._changed:
            stay = [other for other in self._waiting if not _gives_way(other, job)]
            running = self._running
            served = [*stay, running] if running and not _gives_way(running, job) else stay
            queued = sum(other.job.client == job.client for other in stay)
            if self._closed:
                reason = self._closed
            elif any(other.job.request.request_id == request_id for other in served):
                reason = f"request_id: '{request_id}' is in use by a request that runs or waits"
            elif queued >= self._queue_size or len(stay) >= CLIENTS * self._queue_size:
                reason = (
                    f'the queue is full: {queued} requests of this client and '
                    f'{len(stay)} in total wait'
                )
            else:
                older = [other for other in self._waiting if _gives_way(other, job)]
                started = [other for other in older if other.answers is not None]
                replaced = [other for other in older if other.answers is None]
                for other in [*started, *([running] if running else [])]:
                    if _gives_way(other, job):
                        other.cancel_reason = _replaced_by(job)
                entry.turn = replaced[0].turn if replaced else self._take_turn(job.client)
                self._waiting = deque([*stay, *started, entry])
                self._changed.notify()
        for other in replaced:
            self._end(other, 'dropped', _replaced_by(job))
        if reason is not None:
            self._end(entry, 'dropped', reason)

    def cancel(self, job: Job, reason: str = 'cancelled by the client') -> None:
        """Cancel a job that waits or runs. A job that has ended is left alone."""
        with self._changed:
            if self._running and self._running.job is job:
                self._running.cancel_reason = reason
                return
            entry = next((entry for entry in self._waiting if entry.job is job), None)
            if entry is None:
                return
            if entry.answers is not None:
                entry.cancel_reason = reason
                self._changed.notify()
                return
            self._waiting.remove(entry)
        self._end(entry, 'cancelled', reason)

    def wake(self) -> None:
        """Ask the jobs that were not ready again."""
        with self._changed:
            self._changed.notify()

    def interrupt(
        self, matches: Callable[[ImagineRequest | CandidatesRequest], bool], reason: str
    ) -> None:
        """Cancel the running job if its request matches."""
        with self._changed:
            if self._running and matches(self._running.job.request):
                self._running.cancel_reason = reason

    def call(self, task: Callable[[EngineProtocol], T]) -> Future[T]:
        """Run a short task in the worker's thread, at the latest after the current denoising
        step.
        """
        future: Future[T] = Future()
        with self._changed:
            if self._closed:
                future.set_exception(InvalidRequest(self._closed))
            elif len(self._calls) >= MAX_CALLS:
                future.set_exception(
                    InvalidRequest(f'calls: {MAX_CALLS} are waiting, try again later')
                )
            else:
                self._calls.append((task, future))
                self._changed.notify()
        return future

    def close(self, reason: str = SHUTTING_DOWN) -> None:
        """End all jobs and calls, and join the thread."""
        with self._changed:
            self._closed = reason
            started = [entry for entry in self._waiting if entry.answers is not None]
            waiting = [entry for entry in self._waiting if entry.answers is None]
            calls = list(self._calls)
            self._waiting = deque(started)
            self._calls.clear()
            for entry in [*started, *([self._running] if self._running else [])]:
                entry.cancel_reason = reason
            self._changed.notify()
        for entry in waiting:
            self._end(entry, 'dropped', reason)
        for _, future in calls:
            future.set_exception(InvalidRequest(reason))
        self._thread.join()

    def _take_turn(self, client: str) -> float:
        active = {entry.job.client for entry in self._waiting}
        if self._running:
            active.add(self._running.job.client)
        self._next_turn = {c: turn for c, turn in self._next_turn.items() if c in active}
        turn = max(self._next_turn.get(client, self._turn), self._turn)
        self._next_turn[client] = turn + 1
        return turn

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: (
                        self._calls or self._closed or any(each.goes_on for each in self._waiting)
                    ),
                    self._until_next_deadline(),
                )
            self._end_overdue()
            with self._changed:
                if self._closed and not self._waiting:
                    return
                ready = [each for each in self._waiting if each.goes_on]
                if ready and not self._calls:
                    self._running = min(ready, key=lambda entry: entry.turn)
                    self._waiting.remove(self._running)
                    # otherwise a stream of new clients would starve the others
                    least = self._turn + 1 / (CLIENTS * self._queue_size)
                    self._turn = max(least, self._running.turn)
                entry = self._running
            if entry is None:
                self._answer_calls()
                continue
            ended = self._ended(entry)
            with self._changed:
                self._running = None
                if ended is None:
                    self._waiting.appendleft(entry)
            if ended is not None:
                self._end(entry, *ended)

    def _answer_calls(self) -> None:
        while True:
            with self._changed:
                if not self._calls:
                    return
                task, future = self._calls.popleft()
            try:
                future.set_result(task(self._engine))
            except Exception as error:
                future.set_exception(error)

    def _end_overdue(self) -> None:
        """End the jobs whose deadline passed while they waited."""
        now = time.monotonic()
        with self._changed:
            overdue = [e for e in self._waiting if e.job.due is not None and now > e.job.due]
            for entry in overdue:
                self._waiting.remove(entry)
        for entry in overdue:
            if entry.answers is not None:
                entry.answers.close()
            self._end(entry, 'cancelled', DEADLINE_PASSED)

    def _until_next_deadline(self) -> float | None:
        """Return the time to the deadline of a job that has started and waits [s]."""
        due = [e.job.due for e in self._waiting if e.answers is not None and e.job.due is not None]
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _ended(self, entry: _Entry) -> tuple[Status, str] | None:
        """Serve a job until it ends or has to wait; return its end, or None if it waits."""
        try:
            if entry.answers is None:
                entry.answers = self._serve(entry)
            for _ in entry.answers:
                if not entry.goes_on:
                    return None
        except Cancelled as error:
            return 'cancelled', entry.cancel_reason or str(error) or 'cancelled'
        except InvalidRequest as error:
            return 'rejected', str(error)
        except Exception as error:
            entry.details = traceback.format_exc()
            return 'failed', f'{type(error).__name__}: {error}'
        if entry.incomplete:
            return 'cancelled', f'{entry.incomplete} {INCOMPLETE}'
        return 'done', ''

    def _serve(self, entry: _Entry) -> Generator[None, None, None]:
        """Serve a job; yield after each answer."""
        job, request = entry.job, entry.job.request
        engine = job.engine or self._engine

        def cancelled() -> bool:
            self._answer_calls()
            self._end_overdue()
            job.on_step()
            return entry.cancel_reason is not None

        if cancelled():
            raise Cancelled
        try:
            for index, observation in enumerate(job.observations):
                write = engine.observe if index else engine.seed
                entry.depth_source = write(observation, memory=request.memory)
            for answer, chunks in self._answers(engine, job, cancelled):
                if cancelled():
                    raise Cancelled
                job.on_answer(answer)
                for chunk in chunks:
                    entry.depth_source = chunk.depth_source
                    entry.visible.append(chunk.visible)
                    entry.observed.append(chunk.observed)
                entry.incomplete += isinstance(answer, Candidate) and not answer.complete
                yield
        finally:
            if job.observations:
                engine.drop(memory=request.memory)

    def _answers(
        self, engine: EngineProtocol, job: Job, cancelled: Callable[[], bool]
    ) -> Iterator[tuple[Answer, tuple[Chunk, ...]]]:
        """Yield each answer and its chunks, without the padding."""
        request = job.request
        if isinstance(request, CandidatesRequest):
            if job.due is not None:
                request = replace(request, deadline=max(job.due - time.monotonic(), 0.0))
            for candidate in engine.imagine_candidates(request, cancelled=cancelled):
                chunks = tuple(_without_padding(candidate.chunks, job.wanted[candidate.index]))
                if job.last_frame_only and chunks:
                    chunks = (chunks[-1].select(slice(-1, None)),)
                yield replace(candidate, chunks=chunks), chunks
            return
        returned = 0
        for chunk in _without_padding(engine.imagine(request, cancelled=cancelled), job.wanted[0]):
            returned += len(chunk.frames)
            yield chunk, (chunk,)
        assert returned == job.wanted[0], (
            f'the engine returned {returned} of {job.wanted[0]} frames'
        )

    def _end(self, entry: _Entry, status: Status, reason: str) -> None:
        visible = np.concatenate([*entry.visible, []])
        observed = np.concatenate([*entry.observed, []])
        outcome = Outcome(
            request_id=entry.job.request.request_id,
            status=status,
            reason=reason,
            details=entry.details,
            chunks=len(entry.visible),
            frames=len(visible),
            visible_mean=float(visible.mean()) if len(visible) else float('nan'),
            observed_mean=float(observed.mean()) if len(observed) else float('nan'),
            depth_source=entry.depth_source,
            seconds=time.monotonic() - entry.accepted,
        )
        try:
            entry.job.on_end(outcome)
        except Exception:
            logger.exception(
                'the outcome of request %s could not be delivered', outcome.request_id
            )


def _gives_way(entry: _Entry, job: Job) -> bool:
    same = (entry.job.client, entry.job.kind) == (job.client, job.kind)
    return job.replaces and same


def _replaced_by(job: Job) -> str:
    return f"replaced by the newer request '{job.request.request_id}'"


def _without_padding(chunks: Iterator[Chunk] | tuple[Chunk, ...], wanted: int) -> Iterator[Chunk]:
    for chunk in chunks:
        if wanted > 0:
            yield chunk if wanted >= len(chunk.frames) else chunk.select(slice(wanted))
        wanted -= len(chunk.frames)
