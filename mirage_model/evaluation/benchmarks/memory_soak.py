"""Read and write the memory for thousands of steps under a cap: ``mirage bench soak``.

A camera moves through a map of Freedoom. At each step it reads the memory and writes what it sees,
three times as observed and once as imagined. Depth is exact, the latents are random. Times are CPU
times of the process, which other processes disturb less than the clock.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
import os
from pathlib import Path
import statistics
from time import process_time

import numpy as np
import torch
from tqdm import tqdm

from mirage_model.camera import concatenate
from mirage_model.evaluation.benchmarks.goals import Metric, report
from mirage_model.evaluation.benchmarks.memory_growth import Recording, record
from mirage_model.evaluation.config import MemorySoakConfig
from mirage_model.memory.latent import LatentMemory, MemoryConfig
from mirage_model.worlds.doom import DoomWorld

PIECE = 50
"""Frames in memory at a time while the trajectory is recorded."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """Times and sizes after one read and one write."""

    read_seconds: float
    write_seconds: float
    rss: int
    points: int
    nbytes: int
    index_nbytes: int


def record_random_trajectory(map_name: str, steps: int, *, stride: int, seed: int) -> Recording:
    """Record a random trajectory through a map, on cells of ``stride`` pixels."""
    rng, parts = np.random.default_rng(seed), []
    with DoomWorld(map_name, seed=seed) as world:
        poses = world.plan('wander', steps, rng)
        for first in tqdm(range(0, steps, PIECE), unit='piece', desc='recording'):
            parts.append(record(world, poses[first : first + PIECE], stride=stride, first=first))
    return Recording(
        cameras=concatenate([part.cameras for part in parts]),
        depth=torch.cat([part.depth for part in parts]),
        valid=torch.cat([part.valid for part in parts]),
    )


def soak(memory: LatentMemory, recording: Recording) -> list[Step]:
    """Read and write at every camera of the recording, one in four writes as imagined."""
    generator = torch.Generator().manual_seed(0)
    shape = (1, memory.config.channels, recording.cameras.height, recording.cameras.width)
    latents, steps = torch.randn(shape, generator=generator), []
    for k in tqdm(range(len(recording.cameras)), unit='step', desc='soaking'):
        one = slice(k, k + 1)
        start = process_time()
        memory.readout(recording.cameras[one])
        read = process_time()
        memory.write(
            latents,
            recording.depth[one],
            recording.cameras[one],
            valid=recording.valid[one],
            observed=k % 4 != 3,
        )
        steps.append(
            Step(
                read_seconds=read - start,
                write_seconds=process_time() - read,
                rss=resident_bytes(),
                points=len(memory),
                nbytes=memory.nbytes,
                index_nbytes=memory.index_nbytes,
            )
        )
    return steps


def resident_bytes() -> int:
    """Return the resident size of this process without the pages of files [bytes]."""
    _, resident, shared, *_ = Path('/proc/self/statm').read_text().split()
    return (int(resident) - int(shared)) * os.sysconf('SC_PAGE_SIZE')


def judge(steps: list[Step], capacity: int) -> list[Metric]:
    """Return metrics of the cap, and of drift after the first quarter."""
    rest = steps[len(steps) // 4 :]
    rss, third = [step.rss for step in rest], len(rest) // 3
    first, last = (
        statistics.median(step.read_seconds for step in part)
        for part in (rest[:third], rest[-third:])
    )
    full = next((k for k, step in enumerate(steps) if step.points > 0.9 * capacity), len(steps))
    largest = max(step.points for step in steps)
    index = max(step.index_nbytes for step in rest)
    return [
        Metric(name='points / the cap', value=largest / capacity, goal=1.0),
        Metric(
            name='share of the steps until the cap is near', value=full / len(steps), goal=0.25
        ),
        Metric(
            name='largest resident size / that after the first quarter',
            value=max(rss) / rss[0],
            goal=1.05,
        ),
        Metric(
            name='resident size after the first quarter / the smallest since',
            value=rss[0] / min(rss),
            goal=1.05,
        ),
        Metric(
            name='largest index / that after the first quarter',
            value=index / rest[0].index_nbytes,
            goal=1.5,
        ),
        Metric(
            name='median read of the last quarter / of the second',
            value=last / first,
            goal=1.2,
            seconds=(last, first),
        ),
    ]


def main(settings: MemorySoakConfig) -> int:
    """Measure, print and write the metrics; return 1 where a goal is missed."""
    recording = record_random_trajectory(
        settings.map_name, settings.steps, stride=settings.stride, seed=settings.seed
    )
    config = MemoryConfig(
        channels=settings.channels, capacity=settings.capacity, policy=settings.policy
    )
    steps = soak(LatentMemory(config), recording)
    about = {name: value for name, value in asdict(settings).items() if name != 'out'}
    about['grid'] = [recording.cameras.height, recording.cameras.width]
    about['every_twentieth'] = [asdict(step) for step in steps[:: max(1, len(steps) // 20)]]
    return report(judge(steps, settings.capacity), settings.out, about)
