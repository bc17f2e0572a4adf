"""Measure how fast the latent memory is, as ratios to a plain implementation and to the machine.

``mirage bench memory`` prints the metrics, writes them with their goals
to out/bench/memory.json and exits with 1 where a goal is missed. Every time is the median of 20
runs with cold caches, since between two readouts of a rollout the model runs and leaves nothing of
the memory in them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
import itertools
import statistics
import sys
from time import perf_counter
from typing import Literal

from jaxtyping import Bool, Float
import numpy as np
from scipy.spatial.transform import Rotation
import torch
from torch import Tensor

from mirage_model.camera import Cameras, concatenate, project, unproject
from mirage_model.evaluation.benchmarks.goals import Metric, report
from mirage_model.evaluation.config import MemorySpeedConfig
from mirage_model.memory.latent import LatentMemory, MemoryConfig

HEIGHT, WIDTH, CHANNELS, CHUNK = 44, 80, 48, 9
ROOM = np.array([6.0, 3.0, 6.0])  # metres: x, y (down), z
FAR = 9.0
ROOMS = 77  # with ten million points in them 200,000 are in view
CONFIG = MemoryConfig(channels=CHANNELS, voxel=0.0, far=FAR)
MERGED = MemoryConfig(channels=CHANNELS, far=FAR)  # as memories are by default


def camera(position: np.ndarray, yaw: float, time: float) -> Cameras:
    transform = np.eye(4)
    transform[:3, :3] = Rotation.from_euler('y', yaw).as_matrix()
    transform[:3, 3] = position
    K = torch.tensor([[[40.0, 0, (WIDTH - 1) / 2], [0, 40, (HEIGHT - 1) / 2], [0, 0, 1]]])
    return Cameras(
        K=K,
        world_from_camera=torch.tensor(transform[None], dtype=torch.float32),
        times=torch.tensor([time], dtype=torch.float64),
        height=HEIGHT,
        width=WIDTH,
    )


def room_depth(cameras: Cameras) -> Float[Tensor, 'n h w']:
    """Return the depth to the walls of each camera's room, one of a building of equal boxes."""
    origin = cameras.world_from_camera[:, None, None, :3, 3]
    one_metre = unproject(torch.ones(len(cameras), HEIGHT, WIDTH), cameras) - origin
    room = torch.tensor(ROOM, dtype=torch.float32)
    wall = (torch.floor(origin / room) + (one_metre > 0)) * room
    # along a wall no distance to it exists: 0 / 0, or its distance / -0
    away = (wall - origin) / one_metre
    return torch.where(one_metre == 0, torch.inf, away).amin(dim=-1)


def chunk_ahead(steps: int = CHUNK) -> Cameras:
    """Return the cameras that read: forward through the first room, 0.1 m a frame."""
    start = ROOM / 2 - [0, 0, 2.5]
    return concatenate([camera(start + [0, 0, 0.1 * k], 0.0, 1e4 + k) for k in range(steps)])


def in_view(
    cameras: Cameras, viewers: Cameras, depth: Float[Tensor, 'n h w']
) -> Bool[Tensor, 'viewers n h w']:
    """Return the mask of cells that each viewer has in view."""
    points = unproject(depth, cameras).view(1, -1, 3).expand(len(viewers), -1, -1)
    pixels, distance = project(points, viewers)
    inside = (distance > CONFIG.near) & (distance < FAR)
    inside &= ((pixels > -0.5) & (pixels < torch.tensor([WIDTH, HEIGHT]) - 0.5)).all(dim=-1)
    return inside.view(len(viewers), *depth.shape)


def chunks(rooms: int) -> Iterator[tuple[Cameras, Float[Tensor, 'n h w']]]:
    """Yield chunks of cameras anywhere in a building of equal rooms, and their depth."""
    rng, side, time = np.random.default_rng(0), int(np.ceil(np.sqrt(rooms))), 0.0
    while True:
        views = []
        for _ in range(CHUNK):
            room = int(rng.integers(rooms))
            place = np.array([room % side, 0, room // side]) + rng.uniform(0.1, 0.9, 3)
            views.append(camera(place * ROOM, rng.uniform(-np.pi, np.pi), time))
            time += 1.0
        cameras = concatenate(views)
        yield cameras, room_depth(cameras)


@dataclass(kw_only=True)
class FilledMemory:
    """A memory, the positions in it, and the time of each write [s]."""

    memory: LatentMemory
    positions: Float[Tensor, 'm 3']
    seconds: list[float]


def fill(
    name: str,
    views: Iterable[tuple[Cameras, Float[Tensor, 'n h w']]],
    points: int,
    valid_mask: Callable[[Cameras, Float[Tensor, 'n h w']], Bool[Tensor, 'n h w']],
    config: MemoryConfig = CONFIG,
) -> FilledMemory:
    """Write views until the memory has ``points`` points, or the views end."""
    latents = torch.randn(CHUNK, CHANNELS, HEIGHT, WIDTH)
    memory, positions, seconds = LatentMemory(config), [], []
    for cameras, depth in views:
        valid = valid_mask(cameras, depth)
        start = perf_counter()
        memory.write(latents[: len(cameras)], depth, cameras, valid=valid, observed=True)
        seconds.append(perf_counter() - start)
        positions.append(unproject(depth, cameras)[valid])
        print(f'\r{name}: {len(memory):,} points', end='', file=sys.stderr, flush=True)
        if len(memory) >= points:
            break
    print(file=sys.stderr)
    return FilledMemory(memory=memory, positions=torch.cat(positions), seconds=seconds)


def all_valid(cameras: Cameras, depth: Float[Tensor, 'n h w']) -> Bool[Tensor, 'n h w']:
    return torch.ones_like(depth, dtype=torch.bool)


def sort_and_assign(
    positions: Float[Tensor, 'm 3'], latents: Float[Tensor, 'm c'], cameras: Cameras
) -> tuple[Float[Tensor, 'n c h w'], Bool[Tensor, 'n h w']]:
    """Read with the plain implementation: project all points, sort them far to near, assign in
    order."""
    n = len(cameras)
    result = torch.zeros(n, HEIGHT * WIDTH, latents.shape[1])
    mask = torch.zeros(n, HEIGHT * WIDTH, dtype=torch.bool)
    for k in range(n):
        pixels, depth = project(positions, cameras[k])
        pixels = pixels.round()
        inside = (depth > CONFIG.near) & (depth < FAR)
        inside &= ((pixels >= 0) & (pixels < torch.tensor([WIDTH, HEIGHT]))).all(dim=-1)
        chosen = inside.nonzero().squeeze(-1)
        chosen = chosen[depth[chosen].argsort(descending=True)]
        cell = (pixels[chosen, 1] * WIDTH + pixels[chosen, 0]).long()
        result[k, cell] = latents[chosen]
        mask[k, cell] = True
    return result.view(n, HEIGHT, WIDTH, -1).movedim(-1, 1), mask.view(n, HEIGHT, WIDTH)


def median(work: Callable[[], object], repeats: int) -> float:
    """Return the median time of a run with cold caches [s]."""
    sweep = np.ones(1 << 27, np.uint8)
    work()
    seconds = []
    for _ in range(repeats):
        sweep += 1
        start = perf_counter()
        work()
        seconds.append(perf_counter() - start)
    return statistics.median(seconds)


def ratio(
    name: str,
    over: float,
    under: float,
    bound: Literal['at least', 'at most'] = 'at most',
    goal: float | None = None,
) -> Metric:
    """Return the metric ``over`` / ``under`` of two times [s]."""
    return Metric(
        name=name,
        value=over / under,
        bound=bound,
        goal=goal,
        seconds=(under, over) if bound == 'at least' else (over, under),
    )


def reads(
    name: str,
    memory: LatentMemory,
    positions: Float[Tensor, 'm 3'],
    plain_positions: Float[Tensor, 'k 3'],
    repeats: int,
    *,
    faster: float,
    passes: float | None = None,
    near: LatentMemory | None = None,
) -> list[Metric]:
    """Compare the time to read one camera, and the nine of a chunk, with that of plain code.

    Args:
        plain_positions: Points of sort-and-assign; the goal is ``faster`` times its speed.
        positions: Points in view; the goal is ``passes`` passes over them for each camera.
        near: Memory of the points in view alone; the goal is 1.5 times the time to read it.
    """
    metrics, chunk = [], chunk_ahead()
    latents = torch.randn(len(plain_positions), CHANNELS)
    one_pass = median(positions.sum, repeats)
    for cameras in (chunk[:1], chunk):
        n, about = len(cameras), f'{len(cameras)} camera(s), {name}'
        read = median(partial(memory.readout, cameras), repeats)
        if near is not None:
            other = median(partial(near.readout, cameras), repeats)
            of = f'{about}: read / read of {len(near):,} points'
            metrics.append(ratio(of, read, other, goal=1.5))
        plain = median(partial(sort_and_assign, plain_positions, latents, cameras), repeats)
        metrics.append(ratio(f'{about}: sort-and-assign / read', plain, read, 'at least', faster))
        of = f'{about}: read / a pass over the positions in view'
        metrics.append(ratio(f'{of} for each camera', read, n * one_pass, goal=passes))
        if n > 1:
            metrics.append(ratio(f'{of}, one pass for all', read, one_pass))
    return metrics


def writes(how: str, whole: FilledMemory, small: LatentMemory, repeats: int) -> list[Metric]:
    """Compare writes of one chunk into a large and a small memory, each into a fork that is then
    dropped, and the slowest of the writes that filled the large one."""
    chunk = chunk_ahead()
    depth, latents = room_depth(chunk), torch.randn(CHUNK, CHANNELS, HEIGHT, WIDTH)
    valid = all_valid(chunk, depth)

    def write(memory: LatentMemory, *, observed: bool) -> None:
        memory.fork().write(latents, depth, chunk, valid=valid, observed=observed)

    metrics = []
    for observed in (True, False):
        into_whole = median(partial(write, whole.memory, observed=observed), repeats)
        into_small = median(partial(write, small, observed=observed), repeats)
        name = f'write of {"an observed" if observed else "an imagined"} chunk, {how}: '
        name += f'into {len(whole.memory):,} points / into {len(small):,}'
        metrics.append(ratio(name, into_whole, into_small, goal=3.0))
    usual, slowest = statistics.median(whole.seconds), max(whole.seconds)
    stalls = f'slowest / median of the writes that filled the building, {how}'
    return [*metrics, ratio(stalls, slowest, usual, goal=10.0)]


def measure(scale: float, repeats: int) -> tuple[list[Metric], dict[str, int]]:
    """Return all metrics at ``scale`` times the numbers of points, and those numbers."""
    million, building, few = (int(count * scale) for count in (1e6, 1e7, 1e5))
    rooms = max(1, round(ROOMS * scale))
    chunk = chunk_ahead()

    dense = fill(
        'in view', chunks(1), million, lambda *view: in_view(view[0], chunk, view[1]).all(dim=0)
    )
    name = f'{len(dense.memory):,} points in view'
    metrics = reads(
        name, dense.memory, dense.positions, dense.positions, repeats, faster=8.0, passes=12.0
    )
    counts = {'in_view_of_all': len(dense.memory)}
    del dense

    whole = fill('building', chunks(rooms), building, all_valid)
    part = fill(
        'the same building, what is in view',
        itertools.islice(chunks(rooms), len(whole.seconds)),
        building,
        lambda *view: in_view(view[0], chunk, view[1]).any(dim=0),
    )
    name = f'{len(whole.memory):,} points, {len(part.memory):,} in view'
    metrics += reads(
        name,
        whole.memory,
        part.positions,
        whole.positions,
        repeats,
        faster=50.0,
        near=part.memory,
    )
    counts |= {'building': len(whole.memory), 'building_in_view': len(part.memory)}
    del part
    small = fill('one room', chunks(1), few, all_valid)
    metrics += writes('nothing merged', whole, small.memory, repeats)
    counts['one_room'] = len(small.memory)
    del whole, small
    whole = fill('building, merged', chunks(rooms), building, all_valid, MERGED)
    small = fill('one room, merged', chunks(1), few, all_valid, MERGED)
    metrics += writes('merged', whole, small.memory, repeats)
    counts |= {'building_merged': len(whole.memory), 'one_room_merged': len(small.memory)}
    return metrics, counts


def main(config: MemorySpeedConfig) -> int:
    """Measure, print and write the metrics; return 1 where a goal is missed."""
    torch.manual_seed(0)
    metrics, counts = measure(config.scale, config.repeats)
    about = {
        'grid': [HEIGHT, WIDTH],
        'channels': CHANNELS,
        'scale': config.scale,
        'repeats': config.repeats,
        'points': counts,
    }
    return report(metrics, config.out, about)
