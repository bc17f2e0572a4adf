"""Observations that a client keeps, compressed, for a server that loses them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from mirage_model.serving.engine_pb2 import Payload


@dataclass(frozen=True, kw_only=True)
class _Operation:
    verb: str
    memory: str
    message: Payload

    @property
    def observes(self) -> bool:
        return self.verb in ('seed', 'observe')


class Journal:
    """The newest observations of each memory, and the moves since.

    When the journal exceeds its size, the oldest observation that is followed by another one of
    the same memory is forgotten; the next one becomes the first of its memory.
    """

    def __init__(self, *, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._operations: deque[_Operation] = deque()
        self._incomplete: set[str] = set()
        self.nbytes = 0
        self.observations = 0

    def add(self, verb: str, memory: str, message: Payload) -> None:
        """Record a call that the server has answered."""
        if verb in ('seed', 'load', 'drop'):
            self._forget(memory)
        if verb not in ('seed', 'observe', 'load', 'reanchor'):
            return
        operation = _Operation(verb=verb, memory=memory, message=message)
        self._operations.append(operation)
        self.nbytes += message.ByteSize()
        self.observations += operation.observes
        while self.nbytes > self._max_bytes and (oldest := self._oldest_spare()):
            self._remove(oldest)
            self._incomplete.add(oldest.memory)

    def add_imagined(self, memory: str, *, source: str) -> None:
        """Record that a memory became a copy of another one with imagined points."""
        if memory == source:
            self._incomplete.add(memory)
            return
        self._forget(memory)
        self._incomplete.add(memory)

    def operations(self) -> Iterator[tuple[str, str, Payload]]:
        """Yield verb, memory and arguments of all that is kept; a memory begins with a seed."""
        begun: set[str] = set()
        for operation in list(self._operations):
            verb, memory = operation.verb, operation.memory
            if memory not in begun:
                if verb == 'reanchor':
                    continue  # it moved only what was forgotten
                begun.add(memory)
                verb = 'seed' if operation.observes else verb
            yield verb, memory, operation.message

    def take_unrestorable(self) -> set[str]:
        """Return the memories that had more in them than is kept."""
        incomplete, self._incomplete = self._incomplete, set()
        return incomplete

    def _oldest_spare(self) -> _Operation | None:
        newest = {each.memory: each for each in self._operations if each.observes}
        for operation in self._operations:
            if newest.get(operation.memory, operation) is operation:
                continue
            return operation
        return None

    def _forget(self, memory: str) -> None:
        for operation in [o for o in self._operations if o.memory == memory]:
            self._remove(operation)
        self._incomplete.discard(memory)

    def _remove(self, operation: _Operation) -> None:
        self._operations.remove(operation)
        self.nbytes -= operation.message.ByteSize()
        self.observations -= operation.observes
