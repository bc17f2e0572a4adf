"""What is measured of a memory in a chunk of a rollout, and on which machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
import os
from pathlib import Path
import platform
from time import perf_counter

import torch

from mirage_model.camera import Cameras
from mirage_model.memory import Memory, Readout


@dataclass(frozen=True, kw_only=True)
class Row:
    """One chunk, counted from 1, of one run of a memory. Seconds are those of the whole chunk.

    ``read`` is what the model is shown, ``masks`` where the memory covers each frame, ``write``
    what the chunk adds; ``rest`` is all else. The bytes and cells are those held after it.
    """

    memory: str
    run: int
    chunk: int
    frames: int
    read: float
    masks: float
    write: float
    rest: float
    nbytes: int
    index_nbytes: int
    cells: int

    @property
    def total(self) -> float:
        return self.read + self.masks + self.write + self.rest


@dataclass(kw_only=True)
class Clock:
    """Seconds by name since it was started."""

    seconds: dict[str, float] = field(default_factory=dict)
    began: float | None = None

    def start(self) -> None:
        """Begin to count from zero; nothing happens while it runs."""
        if self.began is None:
            self.seconds, self.began = {}, perf_counter()

    def stop(self) -> dict[str, float]:
        """What was counted, with 'whole' for all that passed."""
        assert self.began is not None
        whole, self.began = perf_counter() - self.began, None
        return self.seconds | {'whole': whole}

    @contextmanager
    def count(self, name: str) -> Iterator[None]:
        start = perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + perf_counter() - start


@dataclass(frozen=True, kw_only=True)
class Lap:
    """Seconds by name of one chunk, and what the memory held after it."""

    seconds: dict[str, float]
    nbytes: int
    index_nbytes: int
    cells: int


class TimedMemory:
    """A memory that times its verbs, 'read', 'masks' and 'write', and takes laps.

    The first readout begins the first lap, every write after that ends one.
    """

    def __init__(self, memory: Memory, clock: Clock) -> None:
        self.memory, self.clock = memory, clock
        self.takes_latents = memory.takes_latents
        self.laps: list[Lap] = []

    def write(self, *given, **named) -> int:
        begun = self.clock.began is not None
        with self.clock.count('write'):
            added = self.memory.write(*given, **named)
        if begun:
            seconds = self.clock.stop()
            sizes = {'nbytes': self.nbytes, 'index_nbytes': self.index_nbytes, 'cells': len(self)}
            self.laps.append(Lap(seconds=seconds, **sizes))
            self.clock.start()
        return added

    def readout(self, cameras: Cameras, *, latents: bool = True) -> Readout:
        self.clock.start()
        with self.clock.count('read' if latents else 'masks'):
            return self.memory.readout(cameras, latents=latents)

    def fork(self) -> TimedMemory:
        return TimedMemory(self.memory.fork(), self.clock)

    def __len__(self) -> int:
        return len(self.memory)

    @property
    def nbytes(self) -> int:
        return self.memory.nbytes

    @property
    def index_nbytes(self) -> int:
        return self.memory.index_nbytes


def machine() -> dict[str, str | int | float]:
    """What the timings depend on; ``load`` is that of the minute before."""
    models = [
        line.split(':')[1].strip()
        for line in Path('/proc/cpuinfo').read_text().splitlines()
        if line.startswith('model name')
    ]
    return {
        'processor': models[0] if models else platform.machine(),
        'cores': os.cpu_count() or 0,
        'threads': torch.get_num_threads(),
        'memory_gib': round(os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30),
        'torch': torch.__version__,
        'load': os.getloadavg()[0],
    }
