"""One thread that drives the engine: jobs in, chunks out, and exactly one outcome for every job. No ROS in it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
import logging
import threading
import time
from typing import Literal

import numpy as np

from mirage_model.interface import Cancelled, Chunk, EngineProtocol, Imagine, Refused, View

Status = Literal['done', 'refused', 'dropped', 'cancelled', 'failed']
"""Refused: cannot be served as it stands. Dropped: could, but there was no room for it. Failed: our fault."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a job ended; means are over the frames that were handed out, NaN where there were none."""

    request_id: str
    status: Status
    reason: str = ''
    chunks: int = 0
    frames: int = 0
    visible_mean: float = float('nan')
    observed_mean: float = float('nan')
    depth_source: str = ''
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Job:
    """A request and the view that its memory starts from.

    Of the request's frames the first ``wanted`` are handed to ``on_chunk``, the rest is padding. ``on_end`` is called
    once, whatever happens, from the worker's thread or from the one that submits. A ``replaceable`` job gives way to a
    newer replaceable one. The request's memory is its own: it starts with the view and is dropped when the job ends.
    """

    request: Imagine
    view: View
    wanted: int
    on_chunk: Callable[[Chunk], None]
    on_end: Callable[[Outcome], None]
    replaceable: bool = False


@dataclass
class _Entry:
    job: Job
    accepted: float = field(default_factory=time.monotonic)
    cancel_reason: str | None = None
    visible: list[np.ndarray] = field(default_factory=list)
    observed: list[np.ndarray] = field(default_factory=list)
    depth_source: str = ''


class Worker:
    """Submit, cancel, close. Every job that was submitted has had its outcome when `close` returns."""

    def __init__(self, engine: EngineProtocol, *, queue_size: int):
        self._engine = engine
        self._queue_size = queue_size
        self._waiting: deque[_Entry] = deque()
        self._running: _Entry | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name='mirage-worker')
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Put a job into the queue, or end it at once with the reason why not."""
        entry = _Entry(job)
        request_id = job.request.request_id
        replaced: list[_Entry] = []
        reason = None
        with self._changed:
            stay = [other for other in self._waiting if not _gives_way(other, job)]
            running = self._running
            served = [*stay, running] if running and not _gives_way(running, job) else stay
            if self._closed:
                reason = 'the node is shutting down'
            elif any(other.job.request.request_id == request_id for other in served):
                reason = f"a request '{request_id}' is already being served"
            elif len(stay) >= self._queue_size:
                reason = f'the queue is full, {len(stay)} requests are waiting'
            else:
                replaced = [other for other in self._waiting if _gives_way(other, job)]
                if running and _gives_way(running, job):
                    running.cancel_reason = _replaced_by(job)
                self._waiting = deque([*stay, entry])
                self._changed.notify()
        for other in replaced:
            self._end(other, 'dropped', _replaced_by(job))
        if reason is not None:
            self._end(entry, 'dropped', reason)

    def cancel(self, job: Job, reason: str = 'cancelled by the client') -> None:
        """Cancel a job that waits or runs; one that has ended is left alone."""
        with self._changed:
            if self._running and self._running.job is job:
                self._running.cancel_reason = reason
                return
            entry = next((entry for entry in self._waiting if entry.job is job), None)
            if entry is None:
                return
            self._waiting.remove(entry)
        self._end(entry, 'cancelled', reason)

    def close(self) -> None:
        """Cancel everything and wait for the thread."""
        with self._changed:
            self._closed = True
            waiting = list(self._waiting)
            self._waiting.clear()
            if self._running:
                self._running.cancel_reason = 'the node is shutting down'
            self._changed.notify()
        for entry in waiting:
            self._end(entry, 'dropped', 'the node is shutting down')
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                self._running = entry = self._waiting.popleft()
            try:
                self._serve(entry)
                status, reason = 'done', ''
            except Cancelled:
                status, reason = 'cancelled', entry.cancel_reason
            except Refused as error:
                status, reason = 'refused', str(error)
            except Exception as error:
                logger.exception('request %s failed', entry.job.request.request_id)
                status, reason = 'failed', f'{type(error).__name__}: {error}'
            with self._changed:
                self._running = None
            self._end(entry, status, reason)

    def _serve(self, entry: _Entry) -> None:
        job, request = entry.job, entry.job.request
        cancelled = lambda: entry.cancel_reason is not None  # noqa: E731
        if cancelled():
            raise Cancelled
        entry.depth_source = self._engine.seed(job.view, memory=request.memory)
        try:
            left = job.wanted
            for chunk in self._engine.imagine(request, cancelled=cancelled):
                if cancelled():
                    raise Cancelled
                chunk = without_padding(chunk, left)
                left -= len(chunk.frames)
                job.on_chunk(chunk)
                entry.visible.append(chunk.visible)
                entry.observed.append(chunk.observed)
            assert left == 0, f'the engine made {job.wanted - left} of {job.wanted} frames'
        finally:
            self._engine.drop(memory=request.memory)

    def _end(self, entry: _Entry, status: Status, reason: str) -> None:
        visible = np.concatenate([*entry.visible, []])
        observed = np.concatenate([*entry.observed, []])
        outcome = Outcome(
            request_id=entry.job.request.request_id,
            status=status,
            reason=reason,
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
    return entry.job.replaceable and job.replaceable


def _replaced_by(job: Job) -> str:
    return f"replaced by the newer request '{job.request.request_id}'"


def without_padding(chunk: Chunk, wanted: int) -> Chunk:
    """The first ``wanted`` frames of a chunk."""
    if wanted >= len(chunk.frames):
        return chunk
    per_frame = ('frames', 'visibility', 'visible', 'observed', 'world_from_camera', 'times')
    cut = {name: getattr(chunk, name)[:wanted] for name in per_frame}
    if chunk.memory_frames is not None:
        cut['memory_frames'] = chunk.memory_frames[:wanted]
    if chunk.K.ndim == 3:
        cut['K'] = chunk.K[:wanted]
    return replace(chunk, **cut)
