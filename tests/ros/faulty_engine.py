"""Run a node whose engine fails on request: out of memory, a depth estimator, a full disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
import errno
import os
from pathlib import Path
import sys

from instant_engine import InstantEngine

from mirage_model.interface import Chunk, ImagineRequest, Observation
from mirage_ros.node import main

OUT_OF_MEMORY, UNSEEN = 666, 14
"""The seed number that runs out of memory after a chunk; the grey of which no depth can be
estimated."""


class FaultyEngine(InstantEngine):
    def imagine(
        self, request: ImagineRequest, *, cancelled: Callable[[], bool] = lambda: False
    ) -> Iterator[Chunk]:
        for chunk in super().imagine(request, cancelled=cancelled):
            yield chunk
            if request.seed == OUT_OF_MEMORY:
                raise MemoryError('injected')

    def seed(self, view: Observation, *, memory: str = 'default'):
        if (view.image == UNSEEN).all():
            raise RuntimeError('the depth estimator failed')
        return super().seed(view, memory=memory)

    def save(self, path: Path, *, memory: str = 'default') -> None:
        if path.name == 'full':
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        super().save(path, memory=memory)


if __name__ == '__main__':
    sys.exit(main(lambda parameters: FaultyEngine()))
