"""Run independent jobs in worker processes."""

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
    """Yield the results of ``function(*job)`` for each job, in order of completion.

    With one worker the jobs run in this process. More workers are processes of one thread each,
    which import the module of ``function`` once; an interrupt lets running jobs finish.
    """
    if workers < 2:
        yield from (function(*job) for job in jobs)
        return
    forks = multiprocessing.get_context('forkserver')
    spec = sys.modules[function.__module__].__spec__  # __main__ has its real name here
    assert spec is not None, 'a function of a script cannot run in a worker'
    forks.set_forkserver_preload([spec.name])
    pool = ProcessPoolExecutor(workers, mp_context=forks, initializer=_start)
    try:
        for future in as_completed([pool.submit(function, *job) for job in jobs]):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _start() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
