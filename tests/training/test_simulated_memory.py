from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from small_data import clip_of
import torch

from mirage_model.camera import resized
from mirage_model.clip import fill_from_below, labels
from mirage_model.memory.baselines.none import NoMemory
from mirage_model.memory.latent import LatentMemory, MemoryConfig
from mirage_model.training.config import ContextConfig
from mirage_model.training.simulated_memory import (
    KINDS,
    SingleFrameLatents,
    count_imagined,
    fill,
    jitter,
    over_pixels,
    write,
)

NOISE = ('depth_frame', 'depth_cell', 'position', 'rotation', 'latent', 'drop', 'sensor')
QUIET = dict.fromkeys(NOISE, 0.0)


def stills_of(height: int = 4, width: int = 6) -> SingleFrameLatents:
    """Return nine single frames of a wall 3 m away, each a metre to the right of the one
    before."""
    generator = torch.Generator().manual_seed(0)
    cameras = resized(clip_of('a', 0).cameras[::4], height, width)
    world_from_camera = torch.eye(4).repeat(9, 1, 1)
    world_from_camera[:, 0, 3] = torch.arange(9.0)
    return SingleFrameLatents(
        latents=torch.randn(9, 4, height, width, generator=generator),
        depth=torch.full((9, height, width), 3.0),
        valid=torch.ones(9, height, width, dtype=torch.bool),
        cameras=replace(cameras, world_from_camera=world_from_camera),
    )


def memory_of() -> LatentMemory:
    return LatentMemory(MemoryConfig(channels=4, dtype='float32', voxel=0.0))


@pytest.mark.parametrize('kind', KINDS)
def test_kinds_of_context_write_their_frames(kind):
    config = ContextConfig(**{name: float(name == kind) for name in KINDS}, **QUIET)
    stills, counts = stills_of(), set()
    for seed in range(10):
        memory = memory_of()
        rng = np.random.default_rng(seed)
        assert fill(memory, stills, now=4, rng=rng, config=config) == kind
        readout = memory.readout(stills.cameras[4:5])
        if kind == 'empty':
            assert len(memory) == 0
        if kind == 'seed_only':
            assert len(memory) == 24 and readout.observed.all()
            torch.testing.assert_close(readout.latents[0], stills.latents[4])
        if kind == 'rollout':
            assert 24 <= len(memory) <= 24 * 5
            assert memory.readout(stills.cameras[:5]).observed.any()
        if kind == 'visits':
            assert 24 <= len(memory) <= 24 * config.max_visits
        counts.add(len(memory))
    # one or several frames, of one or several chunks
    assert len(counts) == 1 if kind in ('empty', 'seed_only') else len(counts) > 2


def test_shares_of_contexts_add_up():
    with pytest.raises(ValueError, match='add up'):
        ContextConfig(empty=0.5)
    with pytest.raises(ValueError, match='imagined'):
        ContextConfig(imagined=1.5)


def test_a_tenth_of_the_samples_is_empty_at_least():
    config, rng, stills = ContextConfig(), np.random.default_rng(0), stills_of()
    kinds = [fill(NoMemory(4), stills, now=4, rng=rng, config=config) for _ in range(300)]
    shares = {kind: kinds.count(kind) / len(kinds) for kind in KINDS}
    assert config.empty >= 0.1
    for kind, share in shares.items():
        assert share == pytest.approx(getattr(config, kind), abs=0.08)


@pytest.mark.parametrize('name', NOISE)
@pytest.mark.parametrize('observed', [True, False])
def test_every_noise_is_a_line_of_the_configuration(name, observed):
    stills, quiet = stills_of()[4:5], ContextConfig(**QUIET)

    def written(config: ContextConfig):
        memory = memory_of()
        write(memory, stills, observed=observed, rng=np.random.default_rng(0), config=config)
        return len(memory), memory.readout(stills.cameras)

    count, truth = written(quiet)
    assert count == 24 and torch.equal(truth.latents, stills.latents)
    count, noisy = written(replace(quiet, **{name: 0.3}))
    if name == 'drop':
        assert count < 24
    else:
        assert not all(
            torch.equal(getattr(noisy, field.name), getattr(truth, field.name))
            for field in fields(truth)
        )


@pytest.mark.parametrize('observed', [True, False])
def test_depth_noise_has_its_deviation(observed):
    """Observed frames have a tenth of the noise of generated ones, but the whole noise of the
    sensor."""

    def deviation(**noise) -> float:
        config = ContextConfig(**{**QUIET, **noise})
        stills, memory = stills_of(48, 72)[:1], memory_of()
        rng = np.random.default_rng(0)
        write(memory, stills, observed=observed, rng=rng, config=config)
        return float(memory.readout(stills.cameras).depth.log().std())

    weight = 0.1 if observed else 1.0
    assert deviation(depth_cell=0.02) == pytest.approx(0.02 * weight, rel=0.1)
    assert deviation(sensor=0.02) == pytest.approx(0.02, rel=0.1)


@pytest.mark.parametrize(('batch', 'share'), [(4, 0.25), (4, 0.3), (1, 0.25), (1, 1.0), (3, 0.0)])
def test_the_share_of_imagined_contexts_holds_for_every_batch(batch, share):
    config = ContextConfig(imagined=share, imagined_from=10)
    counts = [count_imagined(config, step, batch) for step in range(10, 1010)]
    assert sum(counts) == pytest.approx(share * batch * 1000, abs=1)
    assert max(counts) <= batch and max(counts) - min(counts) <= 1
    assert all(count_imagined(config, step, batch) == 0 for step in range(10))


def test_jitter_has_its_deviations():
    cameras = clip_of('a', 0).cameras
    moved = jitter(cameras, np.random.default_rng(0), position=0.1, rotation=1.0)
    shift = (moved.world_from_camera - cameras.world_from_camera)[:, :3, 3]
    assert 0.05 < float(shift.std()) < 0.2
    assert torch.equal(
        jitter(cameras, np.random.default_rng(0), position=0.0, rotation=0.0).K, cameras.K
    )


def test_cells_spread_over_their_pixels():
    cells = torch.arange(24.0).view(1, 4, 6)
    pixels = over_pixels(cells, torch.zeros(1, 32, 48))
    assert all(
        pixels[0, row, column] == cells[0, row // 8, column // 8]
        for row in range(32)
        for column in range(48)
    )


def test_moving_pixels_get_the_depth_below_them():
    generator = torch.Generator().manual_seed(0)
    depth = 1 + torch.rand(2, 9, 7, generator=generator)
    depth[torch.rand(depth.shape, generator=generator) < 0.2] = torch.nan
    moving = torch.rand(depth.shape, generator=generator) < 0.5
    expected = depth.clone()
    for k, row, column in moving.nonzero().tolist():
        below = [
            depth[k, r, column]
            for r in range(row + 1, 9)
            if not moving[k, r, column] and not depth[k, r, column].isnan()
        ]
        expected[k, row, column] = below[0] if below else torch.nan
    torch.testing.assert_close(fill_from_below(depth, moving), expected, equal_nan=True)


def test_labels_equal_the_clip():
    clip = clip_of('a', 0)
    moving = clip.moving.clone()
    moving[:, :8] = True
    clip = replace(clip, moving=moving, depth=clip.depth.masked_fill(moving, torch.nan))
    exact = labels(clip, slice(0, None, 4))
    assert torch.equal(exact.moving, moving[::4]) and exact.scaled.all()
    assert torch.equal(exact.confidence == 0, moving[::4])
    blind = labels(clip, slice(0, None, 4), dynamic_filter=False)
    assert not blind.moving.any() and (blind.depth == 3).all() and (blind.confidence == 1).all()
