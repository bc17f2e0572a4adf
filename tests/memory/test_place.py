"""The memory in a place that people designed: coming back adds next to nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mirage_model.camera import Cameras, directions, resized
from mirage_model.memory.grid import depth_to_grid
from mirage_model.memory.latent import LatentMemory, MemoryConfig
from mirage_model.worlds.doom import DoomWorld

CHANNELS, HEIGHT, WIDTH = 2, 12, 20
OUT = 17


@pytest.fixture(scope='module')
def way_and_back() -> tuple[Cameras, torch.Tensor, torch.Tensor]:
    """Cameras that wander and come back beside their path, depth on the grid, keep."""
    rng = np.random.default_rng(3)
    with DoomWorld(map_name='E1M1', seed=1) as world:
        out = world.plan('wander', OUT, rng)
        back = out[::-1].copy()
        back[:, :2, 3] += rng.uniform(-0.1, 0.1, (OUT, 2))
        clip = world.record(np.concatenate([out, back]), np.arange(2 * OUT) / 8, name='way')
    depth = torch.where(clip.sky | clip.moving, torch.nan, clip.depth)
    depth, valid, edge = depth_to_grid(depth, HEIGHT, WIDTH)
    return resized(clip.cameras, HEIGHT, WIDTH), depth, valid & ~edge


def grown(memory: LatentMemory, place, frames: range) -> int:
    cameras, depth, keep = place
    before = len(memory)
    for k in frames:
        latents = torch.full((1, CHANNELS, HEIGHT, WIDTH), float(k))
        one = slice(k, k + 1)
        memory.write(latents, depth[one], cameras[one], keep=keep[one], observed=True)
    return len(memory) - before


def test_coming_back_adds_next_to_nothing(way_and_back):
    memory = LatentMemory(MemoryConfig(channels=CHANNELS))
    out = grown(memory, way_and_back, range(OUT))
    back = grown(memory, way_and_back, range(OUT, 2 * OUT))
    assert 500 < out < way_and_back[2][:OUT].sum() / 2
    assert back < 0.05 * out


@pytest.mark.parametrize(('footprint', 'share'), [(1, 0.92), (3, 0.97)])
def test_merging_keeps_the_view_of_every_camera(way_and_back, footprint, share):
    cameras, _, keep = way_and_back
    memory = LatentMemory(MemoryConfig(channels=CHANNELS, footprint=footprint))
    grown(memory, way_and_back, range(2 * OUT))
    assert memory.readout(cameras).visible[keep].float().mean() > share
    assert memory.readout(cameras[-1:]).visible[keep[-1:]].all()


def test_without_merging_every_kept_cell_reads_back(way_and_back):
    cameras, depth, keep = way_and_back
    memory = LatentMemory(MemoryConfig(channels=CHANNELS, voxel=0.0, dtype='float32'))
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(1, CHANNELS, HEIGHT, WIDTH, generator=generator)
    memory.write(latents, depth[:1], cameras[:1], keep=keep[:1], observed=True)
    readout = memory.readout(cameras[:1])
    assert torch.equal(readout.visible, keep[:1])
    expected = torch.where(keep[:1, None], latents, 0.0)
    assert torch.equal(readout.latents, expected)


def test_a_forward_drive_at_full_size_stays_small():
    """Five chunks of 704x1280 frames down a corridor: the memory grows by what is new."""
    height, width, channels = 44, 80, 48
    pose = np.tile(np.eye(4), (41, 1, 1))
    pose[:, 2, 3] = np.arange(41) * 0.1
    cameras = Cameras(
        K=torch.tensor([[40.0, 0, 39.5], [0, 40, 21.5], [0, 0, 1]]).repeat(41, 1, 1),
        world_from_camera=torch.tensor(pose, dtype=torch.float32),
        times=torch.arange(41, dtype=torch.float64) / 2,
        height=height,
        width=width,
    )
    aim = directions(cameras[0])
    sides = torch.stack([2.0 / aim[..., 0].abs(), 1.5 / aim[..., 1].abs()]).amin(dim=0)
    memory = LatentMemory(MemoryConfig(channels=channels))
    latents, before = torch.zeros(1, channels, height, width), []
    keep = torch.ones(1, height, width, dtype=torch.bool)
    for k in range(41):
        depth = torch.minimum(sides, 20.0 - cameras.world_from_camera[k, 2, 3])[None]
        if k > 0:
            before.append(memory.readout(cameras[k : k + 1]).visible.float().mean())
        memory.write(latents, depth, cameras[k : k + 1], keep=keep, observed=k == 0)
        if k == 0:
            seed = memory.nbytes
            assert len(memory) == height * width
    assert sum(before) / len(before) < 0.9
    assert memory.nbytes / len(memory) <= 128
    assert memory.nbytes - seed <= 2.6 * 2**20
