"""Independent jobs in processes of their own, which import what they need once between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
import multiprocessing
import signal
import sys
from typing import TypeVar

import torch

Result = TypeVar('Result')


def in_workers(
    function: Callable[..., Result], jobs: Sequence[tuple], *, workers: int
) -> Iterator[Result]:
    """Results as they come; a job is the function's arguments.

    One worker is this process. More are processes of one thread each, which end the jobs that they have
    begun where this one is interrupted.
    """
    if workers < 2:
        yield from (function(*job) for job in jobs)
        return
    forks = multiprocessing.get_context('forkserver')
    forks.set_forkserver_preload([sys.modules[function.__module__].__spec__.name])
    pool = ProcessPoolExecutor(workers, mp_context=forks, initializer=_start)
    try:
        for future in as_completed([pool.submit(function, *job) for job in jobs]):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _start() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
