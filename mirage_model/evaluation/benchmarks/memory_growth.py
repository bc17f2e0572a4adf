"""Measure how much the memory grows: ``mirage bench growth``.

The metrics are the bytes of a point, the growth along a forward trajectory at full size after the
seed, and the growth on the path back through a map of Freedoom. Writes out/bench/growth.json and
exits with 1 where a goal is missed.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

from jaxtyping import Bool, Float
import numpy as np
import torch
from torch import Tensor

from mirage_model.camera import Cameras, directions, resized
from mirage_model.evaluation.benchmarks.goals import Metric, report
from mirage_model.evaluation.config import MemoryGrowthConfig
from mirage_model.memory.depth_grid import depth_to_grid
from mirage_model.memory.latent import LatentMemory, MemoryConfig
from mirage_model.worlds.doom import FRAME_RATE, HEIGHT, WIDTH, DoomWorld

CHANNELS = 48
MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Recording:
    """Cameras on the latent grid, their depth, and the cells that may be written."""

    cameras: Cameras
    depth: Float[Tensor, 'n h w']
    valid: Bool[Tensor, 'n h w']

    def __len__(self) -> int:
        return len(self.cameras)

    def __getitem__(self, index: slice) -> Recording:
        return Recording(
            cameras=self.cameras[index], depth=self.depth[index], valid=self.valid[index]
        )


def record(
    world: DoomWorld, poses: Float[np.ndarray, 'n 4 4'], *, stride: int, first: int = 0
) -> Recording:
    """Record what is seen along poses, from frame ``first`` on, on cells of ``stride`` pixels."""
    grid = (HEIGHT // stride, WIDTH // stride)
    clip = world.record(poses, (first + np.arange(len(poses))) / FRAME_RATE, name='growth')
    depth = clip.depth.masked_fill(clip.sky | clip.moving, torch.nan)
    depth, has_depth, edge = depth_to_grid(depth, *grid)
    return Recording(cameras=resized(clip.cameras, *grid), depth=depth, valid=has_depth & ~edge)


def write_recording(memory: LatentMemory, recording: Recording) -> int:
    """Write a recording as observed, camera after camera; return the number of points added."""
    before, (height, width) = len(memory), recording.depth.shape[1:]
    for k in range(len(recording)):
        view = recording[k : k + 1]
        latents = torch.full((1, memory.config.channels, height, width), float(k))
        memory.write(latents, view.depth, view.cameras, valid=view.valid, observed=True)
    return len(memory) - before


@dataclass(frozen=True, kw_only=True)
class CorridorGrowth:
    """Points and bytes of the seed and at the end, and the mean coverage of views before they are
    written."""

    seed_points: int
    seed_nbytes: int
    points: int
    nbytes: int
    index_nbytes: int
    covered: float


def corridor(chunks: int = 5) -> CorridorGrowth:
    """Write chunks of eight imagined latent frames of 704x1280 after an observed seed.

    The camera moves 5 cm a frame down a corridor of 4 x 3 m.
    """
    height, width, n = 44, 80, 8 * chunks + 1
    pose = np.tile(np.eye(4), (n, 1, 1))
    pose[:, 2, 3] = np.arange(n) * 0.05
    cameras = Cameras(
        K=torch.tensor([[40.0, 0, 39.5], [0, 40, 21.5], [0, 0, 1]]).repeat(n, 1, 1),
        world_from_camera=torch.tensor(pose, dtype=torch.float32),
        times=torch.arange(n, dtype=torch.float64) / 2,
        height=height,
        width=width,
    )
    aim = directions(cameras[0])
    sides = torch.stack([2.0 / aim[..., 0].abs(), 1.5 / aim[..., 1].abs()]).amin(dim=0)
    memory, covered = LatentMemory(MemoryConfig(channels=CHANNELS)), []
    latents, valid = torch.zeros(1, CHANNELS, height, width), torch.ones(1, height, width).bool()
    for k in range(n):
        view = cameras[k : k + 1]
        depth = torch.minimum(sides, 20.0 - view.world_from_camera[0, 2, 3])[None]
        if k > 0:
            covered.append(float(memory.readout(view, latents=False).visible.float().mean()))
        memory.write(latents, depth, view, valid=valid, observed=k == 0)
        if k == 0:
            seed = (len(memory), memory.nbytes)
    return CorridorGrowth(
        seed_points=seed[0],
        seed_nbytes=seed[1],
        points=len(memory),
        nbytes=memory.nbytes,
        index_nbytes=memory.index_nbytes,
        covered=sum(covered) / len(covered),
    )


def out_and_back(
    map_name: str, frames: int, *, stride: int, seed: int
) -> tuple[Recording, Recording, Recording]:
    """Record a random path out, the same path back, and a path back up to 10 cm beside it."""
    rng = np.random.default_rng(seed)
    with DoomWorld(map_name, seed=seed) as world:
        poses = world.plan('wander', frames, rng)
        beside = poses[::-1].copy()
        beside[:, :2, 3] += rng.uniform(-0.1, 0.1, (frames, 2))
        recording = record(world, np.concatenate([poses, poses[::-1], beside]), stride=stride)
    return recording[:frames], recording[frames : 2 * frames], recording[2 * frames :]


def coming_back(config: MemoryConfig, out: Recording, back: Recording) -> dict[str, float]:
    """Write the paths out and back.

    Returns:
        Points added on the path out, those added on the path back as a share of them, and the
        share of valid cells covered afterwards, with splats of one and of three cells.
    """
    memory = LatentMemory(config)
    added = write_recording(memory, out)
    grew = write_recording(memory, back)
    result = {'points_out': float(added), 'added_back': grew / added}
    for splat_size in (1, 3):
        memory.config = replace(config, splat_size=splat_size)
        visible = [
            memory.readout(path.cameras, latents=False).visible[path.valid] for path in (out, back)
        ]
        result[f'covered_{splat_size}'] = float(torch.cat(visible).float().mean())
    return result


def main(settings: MemoryGrowthConfig) -> int:
    """Measure, print and write the metrics; return 1 where a goal is missed."""
    growth = corridor()
    out, back, beside = out_and_back(
        settings.map_name, settings.frames, stride=settings.stride, seed=settings.seed
    )
    table, metrics = [], []
    for voxel in (1.0, 1.5, 2.0):
        config = MemoryConfig(channels=2, voxel=voxel)
        same, near = coming_back(config, out, back), coming_back(config, out, beside)
        table.append({'voxel': voxel, **same, 'added_beside': near['added_back']})
        print(f'voxel {voxel}:', ', '.join(f'{k} {v:.3f}' for k, v in table[-1].items()))
        if voxel == MemoryConfig(channels=2).voxel:
            metrics.append(
                Metric(
                    name='coming back along the same path: points added / added on the path out',
                    value=same['added_back'],
                    goal=0.05,
                )
            )
    print(f'corridor: {growth.points:,} points, {growth.seed_points:,} of them the seed')
    metrics += [
        Metric(
            name='bytes of a point of 48 channels', value=growth.nbytes / growth.points, goal=128.0
        ),
        Metric(
            name=f'forward trajectory, {growth.covered:.0%} of each view covered before: '
            f'MiB of {growth.points - growth.seed_points:,} points over the seed',
            value=(growth.nbytes - growth.seed_nbytes) / MIB,
            goal=2.6,
        ),
        Metric(
            name='bytes of the index for each of its points',
            value=growth.index_nbytes / growth.points,
            goal=None,
        ),
    ]
    about = {name: value for name, value in asdict(settings).items() if name != 'out'}
    return report(metrics, settings.out, {**about, 'corridor': vars(growth), 'paths': table})
