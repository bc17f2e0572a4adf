"""Tests of the estimated coverage against that of readouts."""

from __future__ import annotations

from dataclasses import replace
import json

import numpy as np
import pytest
import scenes
import torch

from mirage_model.camera import Cameras, concatenate, resized
from mirage_model.cli import main
from mirage_model.evaluation.benchmarks import coverage_score, memory_speed
from mirage_model.memory.coverage import Coverage
from mirage_model.memory.latent import LatentMemory, MemoryConfig


@pytest.fixture(scope='module')
def building() -> LatentMemory:
    """Return a memory of nine rooms, partly observed and partly imagined."""
    return coverage_score.building(60_000, 9)


def paths(count: int) -> Cameras:
    return concatenate(coverage_score.candidates(count, 9))


def errors(memory: LatentMemory, cameras: Cameras) -> tuple[float, float]:
    ours = memory.coverage(cameras)
    truth = Coverage.from_readout(memory.readout(cameras, latents=False))
    assert (ours.observed <= ours.visible + 1e-6).all()
    assert ours.visible.min() >= 0 and ours.visible.max() <= 1
    return tuple(
        float((getattr(ours, name) - getattr(truth, name)).abs().mean())
        for name in ('visible', 'observed')
    )


def test_estimate_is_within_three_percent_of_the_readout(building):
    assert max(errors(building, paths(12))) < 0.03


def test_estimate_holds_for_other_image_sizes(building):
    for_tiny = resized(paths(12), 12, 20)
    assert max(errors(building, for_tiny)) < 0.08


def test_estimate_holds_for_a_coarse_grid_with_splats():
    """The memory has few large points with splats of up to three cells, as in mirage-tiny."""
    memory = LatentMemory(MemoryConfig(channels=1, splat_size=3))
    views = memory_speed.chunks(4)
    for _ in range(12):
        cameras, _ = next(views)
        cameras = resized(cameras, 12, 20)
        depth = small_room_depth(cameras)
        valid = torch.ones_like(depth, dtype=torch.bool)
        memory.write(torch.zeros(9, 1, 12, 20), depth, cameras, valid=valid, observed=True)
    cameras = resized(concatenate(coverage_score.candidates(12, 4)), 12, 20)
    assert max(errors(memory, cameras)) < 0.05


def small_room_depth(cameras: Cameras) -> torch.Tensor:
    whole = resized(cameras, memory_speed.HEIGHT, memory_speed.WIDTH)
    depth = memory_speed.room_depth(whole)
    return torch.nn.functional.interpolate(depth[None], (12, 20), mode='nearest-exact')[0]


def wall(memory: LatentMemory, depth: float, *, time: float, observed: bool = True) -> Cameras:
    camera = scenes.camera_row([np.eye(4)], [time], height=16, width=24, fx=16.0, fy=16.0)
    size = (1, 16, 24)
    memory.write(
        torch.zeros(1, 1, 16, 24),
        torch.full(size, depth),
        camera,
        valid=torch.ones(size, dtype=torch.bool),
        observed=observed,
    )
    return camera


def test_wall_occludes_and_gives_its_age():
    memory = LatentMemory(MemoryConfig(channels=1))
    wall(memory, 8.0, time=100.0)
    camera = wall(memory, 3.0, time=160.0, observed=False)
    # the imagined wall stands before an observed one and is rejected
    coverage = memory.coverage(replace(camera, times=camera.times + 10))
    assert coverage.observed > 0.8 and coverage.age == pytest.approx(70.0, abs=0.1)
    memory = LatentMemory(MemoryConfig(channels=1))
    wall(memory, 3.0, time=160.0, observed=False)
    far = scenes.camera_row([np.eye(4)], [160.0], height=16, width=24, fx=16.0, fy=16.0)
    coverage = memory.coverage(far)
    assert coverage.visible > 0.8 and coverage.observed == 0
    behind = scenes.transform((0, np.pi, 0))
    away = replace(far, world_from_camera=torch.tensor(behind, dtype=torch.float32)[None])
    assert memory.coverage(away).visible == 0


def test_empty_memory_covers_nothing():
    camera = scenes.camera_row([np.eye(4)])
    assert LatentMemory(MemoryConfig(channels=1)).coverage(camera).visible == 0


@pytest.mark.slow
def test_counts_are_updated_incrementally(building):
    memory, cameras = building.fork(), paths(2)
    memory.coverage(cameras)
    grid = memory._estimator._grid
    for view, depth in (next(memory_speed.chunks(9)) for _ in range(2)):
        valid = torch.ones_like(depth, dtype=torch.bool)
        latents = torch.zeros(9, 16, *depth.shape[1:])
        memory.write(latents, 0.7 * depth, view, valid=valid, observed=True)
        memory.coverage(cameras)
        assert memory._estimator._grid is grid
        anew = replace(grid, bricks=np.full_like(grid.bricks, -1), sums=grid.sums * 0, filled=0)
        for block in memory._store.blocks():
            anew.add(block, 1)
        np.testing.assert_allclose(sums_of(grid), sums_of(anew), rtol=1e-3, atol=1e-2)
    away = replace(view, world_from_camera=view.world_from_camera.clone())
    away.world_from_camera[:, 0, 3] += 500.0
    memory.write(latents, depth, away, valid=valid, observed=True)
    torch.testing.assert_close(memory.coverage(away).visible, memory.fork().coverage(away).visible)


def sums_of(grid) -> np.ndarray:
    """Return the sums by brick in space, zero for empty bricks."""
    nothing = np.zeros((1, *grid.sums.shape[1:]), np.float32)
    return np.concatenate([grid.sums[: grid.filled], nothing])[grid.bricks]


@pytest.mark.slow
def test_benchmark_reports_time_and_error(tmp_path, capsys):
    out = tmp_path / 'score.json'
    main(
        [
            'bench',
            'score',
            '--points',
            '20000',
            '--rooms',
            '4',
            '--repeats',
            '1',
            '--out',
            str(out),
        ]
    )
    content = json.loads(out.read_text())
    assert content['points'] >= 20000 and len(content['metrics']) == 6
    assert [figure['goal'] for figure in content['metrics']] == [
        100.0,
        100.0,
        None,
        None,
        3.0,
        3.0,
    ]
    assert 'candidates of 20 poses' in capsys.readouterr().out
