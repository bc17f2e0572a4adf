"""The memory's reader and the differentiable gather of the codec's training agree."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from small_data import clip_of
import torch

from mirage_model.camera import resized
from mirage_model.clip import labels
from mirage_model.memory.latent import LatentMemory, MemoryConfig
from mirage_model.training.reprojection_loss import MAX_GAP, FramePairs, ReprojectionHead
from mirage_model.write_filter import write_mask

STRIDE = 4


def frame_of(clip, picture: torch.Tensor) -> int:
    return next(
        i for i, f in enumerate(clip.frames) if torch.equal(f.permute(2, 0, 1) / 255, picture)
    )


@pytest.mark.parametrize('seed', range(4))
def test_an_untrained_head_returns_the_readout(seed):
    rng = np.random.default_rng(seed)
    clips = [clip_of(name, seed) for name in 'ab']
    clips[1] = replace(clips[1], depth=clips[1].depth + torch.rand(33, 1, 1))
    clips[1].sky[:, :9] = True
    pairs = FramePairs.of(clips, stride=STRIDE, rng=rng)
    latents = torch.randn(2, 5, 8, 12)
    moved = ReprojectionHead(5)(latents, pairs.cell, pairs.offset, pairs.depth_ratio)
    for i, clip in enumerate(clips):
        first, second = frame_of(clip, pairs.first[i]), frame_of(clip, pairs.second[i])
        assert 1 <= abs(first - second) <= MAX_GAP
        cameras = resized(clip.cameras, 8, 12)
        depth, valid = write_mask(labels(clip, slice(first, first + 1)), height=8, width=12)
        memory = LatentMemory(MemoryConfig(channels=5, splat_size=3, voxel=0.0, dtype='float32'))
        memory.write(latents[i][None], depth, cameras[first][None], valid=valid, observed=True)
        readout = memory.readout(cameras[second : second + 1])[0]
        assert torch.equal(moved[i], readout.latents)
        assert torch.equal(pairs.cell[i] >= 0, readout.visible) and readout.visible.any()
        assert torch.equal(pairs.offset[i], readout.offset)
        assert torch.equal(pairs.depth_ratio[i], readout.depth_ratio)


def test_pairs_follow_from_the_generator_and_fit_short_clips():
    clip = clip_of('a', 0, frames=2)
    one, other = (FramePairs.of([clip], stride=STRIDE, rng=np.random.default_rng(7)) for _ in 'ab')
    assert torch.equal(one.cell, other.cell) and torch.equal(one.first, other.first)
    assert not torch.equal(one.first, one.second)


def test_a_head_learns_a_shift_of_half_a_cell():
    """The linear part learns that a smooth signal, read half a cell aside, is the mean of two
    neighbours."""
    torch.manual_seed(0)
    mover = ReprojectionHead(1, width=4)
    optimizer = torch.optim.Adam(mover.parameters(), lr=0.02)
    cell = torch.arange(96).view(1, 8, 12).expand(16, 8, 12)
    offset = torch.zeros(16, 2, 8, 12)
    offset[8:, 0] = 0.5
    for _ in range(200):
        latents = torch.randn(16, 1, 8, 12)
        wanted = latents.clone()
        wanted[8:, ..., 1:] = (latents[8:, ..., 1:] + latents[8:, ..., :-1]) / 2
        moved = mover(latents, cell, offset, torch.zeros(16, 8, 12))
        error = (moved - wanted)[..., 1:].square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    assert error < 0.01
