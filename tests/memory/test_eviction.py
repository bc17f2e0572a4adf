"""Tests of capacity and of blocks in files."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import scenes
import torch

from mirage_model.memory.latent import LatentMemory, MemoryConfig

CHANNELS, HEIGHT, WIDTH = 4, 12, 20


def camera_at(x: float, time: float):
    pose = [scenes.transform(translation=(x, 0, 0))]
    return scenes.camera_row(pose, [time], height=HEIGHT, width=WIDTH, fx=10, fy=10)


def write_steps(memory: LatentMemory, steps: int, start: int = 0) -> None:
    """Write along a wall, two metres a step, with the step as latents.

    Ten observed steps alternate with ten imagined ones.
    """
    for step in range(start, start + steps):
        latents = torch.full((1, CHANNELS, HEIGHT, WIDTH), float(step))
        depth = torch.full((1, HEIGHT, WIDTH), 3.0)
        memory.write(
            latents,
            depth,
            camera_at(2.0 * step, step),
            valid=depth > 0,
            observed=step // 10 % 2 == 0,
        )


def test_paged_blocks_read_like_resident_blocks(tmp_path):
    whole = LatentMemory(MemoryConfig(channels=CHANNELS))
    paged = LatentMemory(MemoryConfig(channels=CHANNELS, resident=1000, folder=str(tmp_path)))
    for start in (0, 20):
        for memory in (whole, paged):
            write_steps(memory, 20, start)
            write_steps(memory, 2)  # back to the start, which is on disk
        assert len(paged) == len(whole) and paged.nbytes == whole.nbytes
        assert paged.resident_nbytes <= 1000 * paged.nbytes / len(paged)
        for step in range(start + 20):
            expected = whole.readout(camera_at(2.0 * step, step))
            for name, value in vars(paged.readout(camera_at(2.0 * step, step))).items():
                assert torch.equal(value, getattr(expected, name)), name
    assert not os.listdir(tmp_path)


@pytest.mark.slow
def test_files_hold_at_most_twice_the_points_in_use(tmp_path):
    """Revisits load blocks from files, change them and page them out again."""
    memory = LatentMemory(MemoryConfig(channels=CHANNELS, resident=1000, folder=str(tmp_path)))
    rng, at, files = np.random.default_rng(0), 0, {}
    for time in range(500):
        at = int(rng.integers(-40, 41)) if time % 20 == 0 else at + int(rng.integers(-1, 2))
        latents, depth, camera = wall_frame(2.0 * at, time)
        memory.write(latents, depth, camera, valid=depth > 0, observed=True)
        files = pages(tmp_path)
        each = memory.nbytes / len(memory)
        on_disk = memory.nbytes - memory.resident_nbytes
        assert sum(files.values()) <= 2 * on_disk + 1000 * each
    assert on_disk > 3 * 1000 * each and files


def pages(folder: Path) -> dict[int, int]:
    """Return the bytes of each open, deleted file of a folder."""
    result = {}
    for name in os.listdir('/proc/self/fd'):
        link = f'/proc/self/fd/{name}'
        if os.path.lexists(link) and os.readlink(link).startswith(str(folder)):
            found = os.stat(link)
            result[found.st_ino] = found.st_size
    return result


def test_loaded_memory_is_within_its_limits(tmp_path):
    memory = LatentMemory(MemoryConfig(channels=CHANNELS, resident=500, folder=str(tmp_path)))
    write_steps(memory, 12)
    memory.save(tmp_path / 'place.safetensors')
    loaded = LatentMemory.load(tmp_path / 'place.safetensors')
    assert len(loaded) == len(memory) > 500
    assert loaded.resident_nbytes <= 500 * loaded.nbytes / len(loaded)
    expected = memory.readout(camera_at(0, 12))
    assert torch.equal(loaded.readout(camera_at(0, 12)).latents, expected.latents)


def test_fork_of_a_paged_memory_is_independent(tmp_path):
    trunk = LatentMemory(MemoryConfig(channels=CHANNELS, resident=500, folder=str(tmp_path)))
    write_steps(trunk, 20)
    branch = trunk.fork()
    before = branch.readout(camera_at(0, 0)).latents
    write_steps(trunk, 20, start=20)
    write_steps(trunk, 1)
    del trunk
    assert torch.equal(branch.readout(camera_at(0, 0)).latents, before)


@pytest.mark.parametrize('policy', ['oldest', 'furthest'])
def test_capacity_evicts_by_policy(policy):
    memory = LatentMemory(MemoryConfig(channels=CHANNELS, capacity=1500, policy=policy))
    free = LatentMemory(MemoryConfig(channels=CHANNELS))
    for step in range(40):
        write_steps(memory, 1, step)
        write_steps(free, 1, step)
        assert len(memory) <= 1500
    assert len(free) > 2 * 1500 and len(memory) > 1000
    assert memory.readout(camera_at(78, 39)).visible.all()
    assert not memory.readout(camera_at(0, 39)).visible.any()
    write_steps(memory, 1, 40)
    memory.write(*wall_frame(0.0, 41.0), observed=True, valid=torch.ones(1, HEIGHT, WIDTH) > 0)
    assert memory.readout(camera_at(0, 41)).visible.all()
    assert memory.readout(camera_at(84, 41)).visible.any() == (policy == 'oldest')


def wall_frame(x: float, time: float):
    return (
        torch.zeros(1, CHANNELS, HEIGHT, WIDTH),
        torch.full((1, HEIGHT, WIDTH), 3.0),
        camera_at(x, time),
    )


def test_imagined_policy_evicts_imagined_points_first():
    memory = LatentMemory(MemoryConfig(channels=CHANNELS, capacity=2400, policy='imagined'))
    free = LatentMemory(MemoryConfig(channels=CHANNELS))
    for step in range(30):
        write_steps(memory, 1, step)
        write_steps(free, 1, step)
    seen = free._store.points().observed.sum()
    assert seen <= 2400 < len(free)
    assert memory._store.points().observed.sum() == seen
    write_steps(memory, 30, start=40)
    assert memory._store.points().observed.all() and 1500 < len(memory) <= 2400


def test_furthest_policy_keeps_near_points():
    memory = LatentMemory(MemoryConfig(channels=CHANNELS, capacity=1500, policy='furthest'))
    write_steps(memory, 40)
    write_steps(memory, 1)  # a jump back to the start
    near = memory._store.points().xyz_size[0]
    assert np.abs(near).max() < 80
    assert memory.readout(camera_at(0, 0)).visible.all()


@pytest.mark.parametrize(
    'wrong',
    [{'capacity': -1}, {'policy': 'newest'}, {'resident': 10}, {'voxel': -1.0}, {'dtype': 'int8'}],
)
def test_invalid_limits_raise(wrong):
    with pytest.raises((ValueError, TypeError), match=next(iter(wrong))):
        MemoryConfig(channels=3, **wrong)
