"""Names of the memories that requests may start from."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
import re
import threading
from typing import NamedTuple

DRIVEN = 'driven'
"""Name of the memory that observations are written to."""

_NAME = re.compile(r'[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}')


class Arrival(NamedTuple):
    """When an image was taken and when it was received."""

    stamp: float
    """Stamp of the image [s]."""
    received: float
    """Time by the monotonic clock [s]."""


@dataclass(frozen=True, kw_only=True)
class MemoryRecord:
    """Facts about a memory that the engine does not keep.

    A memory that was ``loaded``, or a copy of it, stays where it was saved: a jump of odometry
    does not move it. An observation makes it a memory that moves with odometry.
    """

    camera_frame: str
    """Frame id of its camera; empty for a loaded memory, which takes the camera of the newest
    camera_info."""
    loaded: bool = False
    newest: Arrival | None = None
    """The newest image that the memory covers; None if it is not written while driving."""


class MemoryNames:
    """Records of the memories by name. Safe to use from several threads."""

    def __init__(self, *, max_memories: int):
        """Hold at most ``max_memories`` beside the driven memory, reserved names included."""
        self._max_memories = max_memories
        self._records: dict[str, MemoryRecord] = {}
        self._reserved: Counter[str] = Counter()
        self._lock = threading.Lock()

    def find(self, name: str) -> MemoryRecord | None:
        with self._lock:
            return self._records.get(name)

    def get(self, name: str) -> MemoryRecord:
        """Return the record of a memory.

        Raises ValueError with the existing names if there is none.
        """
        with self._lock:
            if name in self._records:
                return self._records[name]
            if name == DRIVEN:
                raise ValueError(f"memory '{DRIVEN}' is empty: nothing was observed yet")
            names = ', '.join(sorted(self._records)) or 'none'
            raise ValueError(f"memory '{name}' does not exist; existing memories: {names}")

    def names(self, *, loaded: bool) -> list[str]:
        """Return the sorted names of the memories that were loaded, or of those that were not."""
        with self._lock:
            return sorted(n for n, record in self._records.items() if record.loaded == loaded)

    def reserve(self, name: str) -> None:
        """Keep room for a memory until `release`. Raises ValueError if there is none."""
        with self._lock:
            if len({*self._records, *+self._reserved, name} - {DRIVEN}) > self._max_memories:
                raise ValueError(
                    f"memory '{name}': there is no room for it, limits.max_memories is "
                    f'{self._max_memories}'
                )
            self._reserved[name] += 1

    def release(self, name: str) -> None:
        with self._lock:
            self._reserved[name] -= 1

    def add(self, name: str, record: MemoryRecord) -> None:
        with self._lock:
            self._records[name] = record

    def remove(self, name: str) -> None:
        with self._lock:
            self._records.pop(name, None)

    def clear(self) -> None:
        with self._lock:
            self._records.clear()


def check_name(name: str, what: str) -> str:
    """Return the name of a memory or a file.

    Raises ValueError for a path or a hidden file among others.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(
            f"{what}: '{name}' is not a name: use up to 64 of A-Z a-z 0-9 _ . - and no leading . "
            'or -'
        )
    return name
