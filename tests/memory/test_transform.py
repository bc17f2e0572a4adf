"""Tests of a rigid transform of the memory: transformed cameras read the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scenes
import torch

from mirage_model.camera import Cameras
from mirage_model.memory.latent import LatentMemory, MemoryConfig

CHANNELS, HEIGHT, WIDTH = 3, 12, 16


def cameras(*transforms: np.ndarray, time: float = 0.0) -> Cameras:
    times = [time + k for k in range(len(transforms))]
    return scenes.camera_row(transforms, times, height=HEIGHT, width=WIDTH, fx=8.0, fy=8.0)


def filled(config: MemoryConfig) -> LatentMemory:
    """Return a memory with overlapping observed and imagined frames."""
    memory, generator = LatentMemory(config), torch.Generator().manual_seed(0)
    views = [
        (scenes.transform(), True),
        (scenes.transform((0, 0.4, 0), (0.5, 0, 0)), False),
        (scenes.transform((0, -0.3, 0), (-0.25, 0.25, 0)), True),
        (scenes.transform((0, 1.2, 0), (0, 0, 0.5)), False),
    ]
    for k, (transform, observed) in enumerate(views):
        memory.write(
            torch.randn(1, CHANNELS, HEIGHT, WIDTH, generator=generator),
            2.0 + 2.0 * torch.rand(1, HEIGHT, WIDTH, generator=generator),
            cameras(transform, time=float(k)),
            valid=torch.ones(1, HEIGHT, WIDTH, dtype=torch.bool),
            observed=observed,
        )
    return memory


READING = cameras(
    scenes.transform((0, 0.1, 0), (0.1, 0, -0.2)), scenes.transform((0, 0.9, 0)), time=50.0
)


def moved(views: Cameras, new_from_old: np.ndarray) -> Cameras:
    at = torch.from_numpy(new_from_old)
    return replace(views, world_from_camera=(at @ views.world_from_camera.double()).float())


JUMPS = {
    'a step': scenes.transform((0, 0, 0), (0.7, -0.2, 1.1)),
    'a turn': scenes.transform((0.1, 1.0, -0.2)),
    'both': scenes.transform((0.3, -0.7, 0.2), (-12.0, 3.0, 40.0)),
}


@pytest.mark.parametrize('name', JUMPS)
@pytest.mark.parametrize('voxel', [0.0, 1.5])
def test_transformed_cameras_read_the_same(name, voxel):
    memory = filled(MemoryConfig(channels=CHANNELS, splat_size=3, voxel=voxel, dtype='float32'))
    before, cells = memory.readout(READING), len(memory)
    memory.transform(torch.from_numpy(JUMPS[name]))
    after = memory.readout(moved(READING, JUMPS[name]))
    assert len(memory) == cells
    assert before.visible.any() and (before.visible & ~before.observed).any()
    # rounding may carry a point over the border of a cell
    same = (before.latents == after.latents).all(dim=1)
    assert same.float().mean() > 0.97
    assert torch.equal(before.observed[same], after.observed[same])
    for field in ('depth', 'age', 'depth_ratio'):
        torch.testing.assert_close(
            getattr(before, field)[same], getattr(after, field)[same], atol=1e-3, rtol=1e-4
        )


def test_inverse_transform_restores_the_readout():
    memory = filled(MemoryConfig(channels=CHANNELS, dtype='float32'))
    before = memory.readout(READING)
    for transform in (JUMPS['both'], np.linalg.inv(JUMPS['both'])):
        memory.transform(torch.from_numpy(transform))
    after = memory.readout(READING)
    assert (before.visible == after.visible).float().mean() > 0.97


def test_transform_leaves_forks_and_empty_memories():
    memory = filled(MemoryConfig(channels=CHANNELS))
    fork, before = memory.fork(), memory.readout(READING)
    memory.transform(torch.from_numpy(JUMPS['a step']))
    assert torch.equal(fork.readout(READING).latents, before.latents)
    empty = LatentMemory(MemoryConfig(channels=CHANNELS))
    empty.transform(torch.from_numpy(JUMPS['a step']))
    assert len(empty) == 0


def test_write_after_a_transform():
    memory = filled(MemoryConfig(channels=CHANNELS, dtype='float32'))
    memory.transform(torch.from_numpy(JUMPS['both']))
    view = moved(cameras(scenes.transform(), time=60.0), JUMPS['both'])
    latents = torch.randn(1, CHANNELS, HEIGHT, WIDTH)
    depth = torch.full((1, HEIGHT, WIDTH), 1.5)
    valid = torch.ones(1, HEIGHT, WIDTH, dtype=torch.bool)
    memory.write(latents, depth, view, valid=valid, observed=True)
    assert torch.equal(memory.readout(view).latents, latents)


def test_sample_points_are_evenly_chosen():
    memory = filled(MemoryConfig(channels=CHANNELS))
    positions, latents, observed = memory.sample_points(len(memory))
    assert len(positions) == len(latents) == len(observed) == len(memory)
    few, latents, observed = memory.sample_points(40)
    assert 20 <= len(few) <= 41 and latents.shape == (len(few), CHANNELS)
    assert observed.any() and not observed.all()
