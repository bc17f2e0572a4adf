"""The client's end of a stream of answers."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import replace
import queue
import threading
import time
from typing import Any

import grpc

from mirage_model.interface import Chunk
from mirage_model.serving.buffers import BufferGroup
from mirage_model.serving.engine_pb2 import Answer, Array, StreamRequest
from mirage_model.serving.images import WireError, threads
from mirage_model.serving.link import Connection
from mirage_model.serving.wire import ArrayLimits, Slot, decode


class StreamReader:
    """Reads a stream in a thread of its own, so that the caller can look after other things."""

    def __init__(
        self, connection: Connection, request: StreamRequest, kind: Any, limits: ArrayLimits
    ):
        self.connection = connection
        connection.hold()
        self._kind = kind
        self._limits = limits
        self._events: queue.Queue[Any] = queue.Queue(maxsize=1)
        self._attached, self._closed = threading.Event(), threading.Event()
        self._call = connection.stream(request)
        self._thread = threading.Thread(target=self._read, name='mirage-stream', daemon=True)
        self._thread.start()

    def next(self, seconds: float) -> Any:
        """Return an answer, the end as a StreamReply, an error, or None if nothing came."""
        try:
            return self._events.get(timeout=seconds)
        except queue.Empty:
            return None

    def wait_until_attached(self, seconds: float) -> None:
        self._attached.wait(seconds)

    def close(self) -> None:
        self._closed.set()
        self._call.cancel()
        self._thread.join()
        self.connection.release()

    def _put(self, event: object) -> None:
        while not self._closed.is_set():
            try:
                self._events.put(event, timeout=0.1)
                return
            except queue.Full:
                continue

    def _read(self) -> None:
        answer: _PartialAnswer | None = None
        try:
            for reply in self._call:
                self._attached.set()
                if isinstance(reply, BufferGroup):
                    if answer is None:
                        raise WireError('buffers came without an answer')
                    answer.add(reply)
                elif reply.WhichOneof('event') == 'end':
                    self._put(reply)
                    return
                elif reply.WhichOneof('event') == 'answer':
                    answer = _PartialAnswer(reply.answer, self._kind, self._limits)
                if answer is not None and answer.complete:
                    self._put(answer.value())
                    answer = None
        except grpc.RpcError as error:
            self._put(error)
        except WireError as error:
            self._put(RuntimeError(f'the answer of the server cannot be read: {error}'))
        finally:
            self._attached.set()


class _PartialAnswer:
    """An answer whose arrays are filled as their buffers come."""

    def __init__(self, message: Answer, kind: Any, limits: ArrayLimits):
        self._began = self._received = time.monotonic()
        self._queue, self._encode = message.queue_seconds, 0.0
        self._slots: list[Slot]
        self._value, self._slots = decode(
            message.value, kind, buffers=message.buffers, limits=limits
        )
        self._filled = 0
        self._decompressing: list[Future[None]] = []

    @property
    def complete(self) -> bool:
        return self._filled == len(self._slots)

    def add(self, group: BufferGroup) -> None:
        """Fill the next parts of the arrays; images are decompressed meanwhile."""
        self._received = time.monotonic()
        self._encode += group.encode_seconds
        if len(group.items) > len(self._slots) - self._filled:
            raise WireError('an answer has more buffers than it said')
        for buffer in group.items:
            slot = self._slots[self._filled]
            self._filled += 1
            if slot.encoding == Array.RAW:
                slot.fill(buffer)
            else:
                self._decompressing.append(threads.submit(slot.fill, buffer))

    def value(self) -> Any:
        """Return the answer with the times of its way among its stages."""
        for each in self._decompressing:
            each.result()
        legs = {
            'queue': self._queue,
            'encode': self._encode,
            'network': max(0.0, self._received - self._began - self._encode),
            'unpack': time.monotonic() - self._received,
        }
        if isinstance(self._value, Chunk):
            return replace(self._value, stages={**self._value.stages, **legs})
        first, *others = self._value.chunks or (None,)
        if first is None:
            return self._value
        first = replace(first, stages={**first.stages, **legs})
        return replace(self._value, chunks=(first, *others))
