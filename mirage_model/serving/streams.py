"""A request on the server: its answers, kept until the client has them, and its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
import threading
import time

from mirage_model.engine.worker import Answer as EngineAnswer
from mirage_model.serving.buffers import BufferGroup, grouped
from mirage_model.serving.engine_pb2 import Answer, End, Error, Progress, StreamReply
from mirage_model.serving.images import Images
from mirage_model.serving.wire import encode

BUFFERED = 2
"""Answers that wait for the client before the engine stops working on the request."""
PROGRESS_PERIOD = 0.25
"""Shortest time between two reports of progress [s]."""


@dataclass(frozen=True, kw_only=True)
class _Kept:
    answer: EngineAnswer
    queue_seconds: float


class AnswerStream:
    """The answers of one request. The worker's thread fills it, one reader at a time empties it.

    A reader that comes while another one reads takes its place: the client has made the link
    anew.
    """

    def __init__(self, on_room: Callable[[], None]) -> None:
        """Create an empty stream; ``on_room`` is called when the client has taken an answer."""
        self._on_room = on_room
        self._changed = threading.Condition()
        self._answers: dict[int, _Kept] = {}
        self._count = 0
        self._received = 0
        self._steps = 0
        self._reader: object = None
        self._accepted = time.monotonic()
        self._queue_seconds = 0.0
        self._end: End | None = None

    @property
    def ended(self) -> bool:
        return self._end is not None

    @property
    def reader(self) -> object:
        return self._reader

    def has_room(self) -> bool:
        return self._count - self._received < BUFFERED

    def on_step(self) -> None:
        """Count a denoising step."""
        with self._changed:
            if not self._steps:
                self._queue_seconds = time.monotonic() - self._accepted
            self._steps += 1
            self._changed.notify_all()

    def put(self, answer: EngineAnswer) -> None:
        with self._changed:
            self._answers[self._count] = _Kept(
                answer=answer,
                queue_seconds=self._queue_seconds if not self._count else 0.0,
            )
            self._count += 1
            self._changed.notify_all()

    def end(self, error: Error | None) -> None:
        """End after the answers that are there; with an error if there is one."""
        with self._changed:
            self._end = End(error=error)
            self._changed.notify_all()

    def acknowledge(self, received: int) -> None:
        """Delete the answers that the client has."""
        with self._changed:
            self._received = max(self._received, min(received, self._count))
            for index in [index for index in self._answers if index < self._received]:
                del self._answers[index]
        self._on_room()

    def attach(self, reader: object, received: int) -> bool:
        """Let a reader take over from an answer on; return False if the answer is gone."""
        with self._changed:
            if not self._received <= received <= self._count:
                return False
            self._reader = reader
            self._changed.notify_all()
        self.acknowledge(received)
        return True

    def detach(self, reader: object) -> bool:
        """Return whether this was the last reader: the client is gone."""
        with self._changed:
            last = self._reader is reader
            if last:
                self._reader = None
            self._changed.notify_all()
            return last

    def events(
        self, reader: object, received: int, images: Images
    ) -> Iterator[StreamReply | BufferGroup]:
        """Yield progress, answers from ``received`` on, and the end, to a reader that attached."""
        index, steps, reported = received, 0, time.monotonic()
        yield StreamReply(progress=Progress(steps=steps))
        while self._wait(reader, index, steps, reported + PROGRESS_PERIOD):
            kept, end, steps = self._answers.get(index), self._end, self._steps
            if kept is not None:
                yield from _messages(kept, index, images)
                index += 1
            elif end is not None:
                yield StreamReply(end=end)
                return
            else:
                reported = time.monotonic()
                yield StreamReply(progress=Progress(steps=steps))

    def _wait(self, reader: object, index: int, steps: int, next_report: float) -> bool:
        """Wait for an event; return False if the reader was replaced.

        Answers and the end come at once, progress when it is time for the next report.
        """

        def has_event() -> bool:
            return self._reader is not reader or index in self._answers or self._end is not None

        with self._changed:
            self._changed.wait_for(lambda: has_event() or self._steps != steps)
            self._changed.wait_for(has_event, max(0.0, next_report - time.monotonic()))
            return self._reader is reader


def _messages(kept: _Kept, index: int, images: Images) -> Iterator[StreamReply | BufferGroup]:
    """Yield an answer: its tree, then its buffers, each as soon as it is compressed."""
    value, parts = encode(kept.answer, images)
    yield StreamReply(
        answer=Answer(
            index=index,
            value=value,
            buffers=len(parts),
            queue_seconds=kept.queue_seconds,
        )
    )
    yield from grouped(parts)
