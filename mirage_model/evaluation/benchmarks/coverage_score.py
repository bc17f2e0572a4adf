"""Measure speed and error of the coarse coverage of many paths, against the exact coverage.

``mirage bench score`` fills a building of equal rooms, a part of it imagined, asks for candidates
from places in it, prints the metrics, writes them with their goals to out/bench/score.json and
exits with 1 where a goal is missed. Errors are of shares of the view, in points of a hundred.
"""

from __future__ import annotations

from pathlib import Path
import sys
import tempfile
from time import perf_counter

from jaxtyping import Float
import numpy as np
import torch
from torch import Tensor

from mirage_model.camera import Cameras, concatenate, resized
from mirage_model.engine.engine import Engine
from mirage_model.engine.session import Session
from mirage_model.evaluation.benchmarks.goals import Metric, report
from mirage_model.evaluation.benchmarks.memory_speed import (
    CHUNK,
    HEIGHT,
    ROOM,
    WIDTH,
    camera,
    chunks,
    median,
)
from mirage_model.evaluation.config import ScoreConfig
from mirage_model.interface import Trajectory
from mirage_model.memory.coverage import Coverage
from mirage_model.memory.latent import LatentMemory, MemoryConfig
from mirage_model.model.checkpoint import EMBEDDED, Model, load_model

CANDIDATES, POSES = 64, 20
IMAGINED = 4
"""Number of chunks of which one is imagined."""


def building(points: int, rooms: int, channels: int = 16) -> LatentMemory:
    """Return a memory with ``points`` points, each room seen from random cameras."""
    memory = LatentMemory(MemoryConfig(channels=channels))
    latents = torch.zeros(CHUNK, channels, HEIGHT, WIDTH)
    for index, (cameras, depth) in enumerate(chunks(rooms)):
        valid, observed = torch.ones_like(depth, dtype=torch.bool), bool(index % IMAGINED)
        memory.write(latents, depth, cameras, valid=valid, observed=observed)
        print(f'\rbuilding: {len(memory):,} points', end='', file=sys.stderr, flush=True)
        if len(memory) >= points:
            break
    print(file=sys.stderr)
    return memory


def candidates(count: int, rooms: int) -> list[Cameras]:
    """Return arcs of 2 m and up to 90 degrees, from anywhere in the building."""
    rng, side = np.random.default_rng(1), int(np.ceil(np.sqrt(rooms)))
    paths = []
    for _ in range(count):
        room = int(rng.integers(rooms))
        place = (np.array([room % side, 0, room // side]) + rng.uniform(0.2, 0.8, 3)) * ROOM
        yaw, turn = rng.uniform(-np.pi, np.pi), rng.uniform(-np.pi, np.pi) / 2 / POSES
        path = []
        for step in range(POSES):
            path.append(camera(place, yaw, 1e4 + step))
            yaw += turn
            place = place + 2.0 / POSES * np.array([np.sin(yaw), 0, np.cos(yaw)])
        paths.append(concatenate(path))
    return paths


def exact(memory: LatentMemory, paths: list[Cameras]) -> Coverage:
    parts = [Coverage.from_readout(memory.readout(path, latents=False)) for path in paths]
    names = ('visible', 'observed', 'age')
    return Coverage(**{k: torch.cat([getattr(part, k) for part in parts]) for k in names})


def through_engine(
    model: Model, memory: LatentMemory, paths: list[Cameras], repeats: int
) -> float:
    """Return the time of Engine.score, which the node calls [s]."""
    engine, like = Engine(model), paths[0][:1]
    size = model.config.height, model.config.width
    place = Session(
        memory=memory,
        frame=torch.zeros(1, 3, *size),
        depth=torch.full((1, *size), torch.nan),
        camera=resized(like, *size),
        depth_source='sensor',
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / 'building.safetensors'
        place.save(file)
        engine.load(file, memory='building')
    asked = [
        Trajectory(
            world_from_camera=path.world_from_camera.double().numpy(), times=path.times.numpy()
        )
        for path in paths
    ]
    return median(lambda: engine.score(asked, memory='building', coarse=True), repeats)


def error(name: str, ours: Float[Tensor, 'n'], truth: Float[Tensor, 'n']) -> Metric:
    missed = 100 * (ours - truth).abs()
    about = f'mean error of the share {name}, points; 95% are within {missed.quantile(0.95):.1f}'
    mean = f'it is {truth.mean():.2f} on average'
    return Metric(name=f'{about}, {mean}', value=float(missed.mean()), goal=3.0)


def measure(points: int, rooms: int, repeats: int) -> tuple[list[Metric], dict[str, int]]:
    model = load_model(EMBEDDED)
    memory = building(points, rooms, model.codec.channels)
    paths = candidates(CANDIDATES, rooms)
    every = concatenate(paths)
    start = perf_counter()
    coarse = memory.coverage(every)
    first = perf_counter() - start
    seconds = median(lambda: memory.coverage(every), repeats)
    asked = through_engine(model, memory, paths, repeats)
    start = perf_counter()
    truth = exact(memory, paths)
    slow = perf_counter() - start
    about = f'{CANDIDATES} candidates of {POSES} poses against {len(memory):,} points'
    metrics = [
        Metric(name=f'{about}, coarse, ms', value=1e3 * seconds, goal=100.0),
        Metric(name='the same as the node asks for it, ms', value=1e3 * asked, goal=100.0),
        Metric(
            name='the first time, when all points are grouped, ms', value=1e3 * first, goal=None
        ),
        Metric(name='exact, ms', value=1e3 * slow, goal=None),
        error('visible', coarse.visible, truth.visible),
        error('observed', coarse.observed, truth.observed),
    ]
    return metrics, {'points': len(memory)}


def main(config: ScoreConfig) -> int:
    """Measure, print and write the metrics; return 1 where a goal is missed."""
    metrics, counts = measure(config.points, config.rooms, config.repeats)
    return report(metrics, config.out, {'grid': [HEIGHT, WIDTH], **counts})
