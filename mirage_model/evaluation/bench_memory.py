"""How fast the latent memory is, as ratios against a plain version and against the machine itself.

``python -m mirage_model.evaluation.bench_memory`` prints the figures, writes them with their goals
to out/bench/memory.json and exits with 1 where a goal is missed. Every time is the median of 20
runs with cold caches, since between two readouts of a rollout the model runs and leaves nothing of
the memory in them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
import itertools
import json
import os
from pathlib import Path
import platform
import statistics
import sys
from time import perf_counter

from jaxtyping import Bool, Float
import numpy as np
from scipy.spatial.transform import Rotation
import torch
from torch import Tensor

from mirage_model.camera import Cameras, concatenate, project, unproject
from mirage_model.memory.latent import LatentMemory, MemoryConfig

HEIGHT, WIDTH, CHANNELS, CHUNK = 44, 80, 48, 9
ROOM = np.array([6.0, 3.0, 6.0])  # metres: x, y (down), z
FAR = 9.0
CONFIG = MemoryConfig(channels=CHANNELS, voxel=0.0, far=FAR)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A ratio with its goal: at least or at most, as ``bound`` says."""

    name: str
    value: float
    bound: str
    goal: float
    seconds: float
    against_seconds: float

    @property
    def holds(self) -> bool:
        return self.value >= self.goal if self.bound == 'at least' else self.value <= self.goal


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
    """Depth to the walls of the room, one of a building of equal boxes, around each camera."""
    origin = cameras.world_from_camera[:, None, None, :3, 3]
    one_metre = unproject(torch.ones(len(cameras), HEIGHT, WIDTH), cameras) - origin
    room = torch.tensor(ROOM, dtype=torch.float32)
    wall = (torch.floor(origin / room) + (one_metre > 0)) * room
    return ((wall - origin) / one_metre).nan_to_num(torch.inf, posinf=torch.inf).amin(dim=-1)


def chunk_ahead(steps: int = CHUNK) -> Cameras:
    """The cameras that read: a drive through the first room, a tenth of a metre a frame."""
    start = ROOM / 2 - [0, 0, 2.5]
    return concatenate([camera(start + [0, 0, 0.1 * k], 0.0, 1e4 + k) for k in range(steps)])


def in_view(
    cameras: Cameras, viewers: Cameras, depth: Float[Tensor, 'n h w']
) -> Bool[Tensor, 'viewers n h w']:
    """Which cells each viewer has in view."""
    points = unproject(depth, cameras).view(1, -1, 3).expand(len(viewers), -1, -1)
    pixels, distance = project(points, viewers)
    inside = (distance > CONFIG.near) & (distance < FAR)
    inside &= ((pixels > -0.5) & (pixels < torch.tensor([WIDTH, HEIGHT]) - 0.5)).all(dim=-1)
    return inside.view(len(viewers), *depth.shape)


def chunks(rooms: int) -> Iterator[tuple[Cameras, Float[Tensor, 'n h w']]]:
    """Views from anywhere in a building of so many equal rooms, and their depth."""
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
class Filled:
    """A memory, the positions in it, and what each of its writes took, in seconds."""

    memory: LatentMemory
    positions: Float[Tensor, 'm 3']
    seconds: list[float]


def fill(
    name: str,
    views: Iterable[tuple[Cameras, Float[Tensor, 'n h w']]],
    cells: int,
    keep_of: Callable[[Cameras, Float[Tensor, 'n h w']], Bool[Tensor, 'n h w']],
) -> Filled:
    """Write views until so many cells are held or the views end; only what ``keep_of`` says."""
    latents = torch.randn(CHUNK, CHANNELS, HEIGHT, WIDTH)
    memory, positions, seconds = LatentMemory(CONFIG), [], []
    for cameras, depth in views:
        keep = keep_of(cameras, depth)
        start = perf_counter()
        memory.write(latents[: len(cameras)], depth, cameras, keep=keep, observed=True)
        seconds.append(perf_counter() - start)
        positions.append(unproject(depth, cameras)[keep])
        print(f'\r{name}: {len(memory):,} cells', end='', file=sys.stderr, flush=True)
        if len(memory) >= cells:
            break
    print(file=sys.stderr)
    return Filled(memory=memory, positions=torch.cat(positions), seconds=seconds)


def everything(cameras: Cameras, depth: Float[Tensor, 'n h w']) -> Bool[Tensor, 'n h w']:
    return torch.ones_like(depth, dtype=torch.bool)


def sort_and_assign(
    positions: Float[Tensor, 'm 3'], latents: Float[Tensor, 'm c'], cameras: Cameras
) -> tuple[Float[Tensor, 'n c h w'], Bool[Tensor, 'n h w']]:
    """The plain version: every cell projected, sorted far to near, assigned; the last stays."""
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
    """Seconds of one run, with nothing of it left in the caches by the run before."""
    sweep = np.ones(1 << 27, np.uint8)
    work()
    seconds = []
    for _ in range(repeats):
        sweep += 1
        start = perf_counter()
        work()
        seconds.append(perf_counter() - start)
    return statistics.median(seconds)


def ratio(name: str, over: float, under: float, bound: str, goal: float) -> Figure:
    """``over`` / ``under`` seconds; ``under`` is the memory's own time where more is better."""
    own, other = (under, over) if bound == 'at least' else (over, under)
    return Figure(
        name=name, value=over / under, bound=bound, goal=goal, seconds=own, against_seconds=other
    )


def measure(scale: float, repeats: int) -> tuple[list[Figure], dict[str, int]]:
    """All figures, at ``scale`` times the numbers of cells, and those numbers."""
    million, building, few = (int(count * scale) for count in (1e6, 1e7, 1e5))
    rooms = max(1, round(112 * scale))
    chunk, figures = chunk_ahead(), []

    dense = fill(
        'in view', chunks(1), million, lambda *view: in_view(view[0], chunk, view[1]).all(dim=0)
    )
    latents = torch.randn(len(dense.positions), CHANNELS)
    stream = median(dense.positions.sum, repeats)
    for cameras in (chunk[:1], chunk):
        name = f'{len(cameras)} camera(s), {len(dense.memory):,} cells in view'
        read = median(partial(dense.memory.readout, cameras), repeats)
        plain = median(partial(sort_and_assign, dense.positions, latents, cameras), repeats)
        passes = stream * len(cameras)
        figures.append(ratio(f'{name}: sort-and-assign / read', plain, read, 'at least', 8.0))
        name = f'{name}: read / one pass over the positions for each camera'
        figures.append(ratio(name, read, passes, 'at most', 12.0))
    counts = {'in_view_of_all': len(dense.memory)}
    del dense, latents

    whole = fill('building', chunks(rooms), building, everything)
    part = fill(
        'the same building, what is in view',
        itertools.islice(chunks(rooms), len(whole.seconds)),
        building,
        lambda *view: in_view(view[0], chunk, view[1]).any(dim=0),
    )
    counts |= {'building': len(whole.memory), 'building_in_view': len(part.memory)}
    latents = torch.randn(len(whole.positions), CHANNELS)
    for cameras in (chunk[:1], chunk):
        name = f'{len(cameras)} camera(s), {len(whole.memory):,} cells'
        read = median(partial(whole.memory.readout, cameras), repeats)
        near = median(partial(part.memory.readout, cameras), repeats)
        plain = median(
            partial(sort_and_assign, whole.positions, latents, cameras), min(repeats, 5)
        )
        name_near = f'read / read of {len(part.memory):,}'
        figures.append(ratio(f'{name}: {name_near}', read, near, 'at most', 1.5))
        figures.append(ratio(f'{name}: sort-and-assign / read', plain, read, 'at least', 50.0))
    del latents

    small = fill('one room', chunks(1), few, everything)
    counts['one_room'] = len(small.memory)
    depth = room_depth(chunk)
    seen = torch.randn(CHUNK, CHANNELS, HEIGHT, WIDTH)

    def write(memory: LatentMemory) -> None:
        memory.fork().write(seen, depth, chunk, keep=everything(chunk, depth), observed=True)

    into_whole = median(partial(write, whole.memory), repeats)
    into_small = median(partial(write, small.memory), repeats)
    name = f'write of a chunk into {len(whole.memory):,} / into {len(small.memory):,}'
    figures.append(ratio(name, into_whole, into_small, 'at most', 3.0))
    usual, slowest = statistics.median(whole.seconds), max(whole.seconds)
    figures.append(
        ratio(
            'slowest / median of the writes that filled the building',
            slowest,
            usual,
            'at most',
            10.0,
        )
    )
    return figures, counts


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--out', type=Path, default=Path('out/bench/memory.json'))
    parser.add_argument(
        '--scale', type=float, default=1.0, help='share of the cells to measure with'
    )
    parser.add_argument('--repeats', type=int, default=20)
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    figures, counts = measure(options.scale, options.repeats)
    for figure in figures:
        verdict = 'holds' if figure.holds else 'MISSED'
        print(
            f'{figure.value:9.2f}  {figure.bound} {figure.goal:g}  {verdict:6}  {figure.name}  '
            f'({figure.seconds * 1e3:.2f} ms against {figure.against_seconds * 1e3:.2f} ms)'
        )
    report = {
        'machine': {
            'processor': platform.processor() or platform.machine(),
            'threads': torch.get_num_threads(),
            'load': os.getloadavg()[0],
        },
        'grid': [HEIGHT, WIDTH],
        'channels': CHANNELS,
        'scale': options.scale,
        'repeats': options.repeats,
        'cells': counts,
        'figures': [asdict(figure) | {'holds': figure.holds} for figure in figures],
        'holds': all(figure.holds for figure in figures),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=2) + '\n')
    print(f'{options.out}: {"every goal holds" if report["holds"] else "a goal is missed"}')
    return 0 if report['holds'] else 1


if __name__ == '__main__':
    sys.exit(main())
