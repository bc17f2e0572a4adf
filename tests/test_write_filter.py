"""Tests of the write filter and of writing frames into a memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mirage_model.camera import Cameras, resized
from mirage_model.memory.latent import LatentMemory, MemoryConfig
from mirage_model.perception import Estimate
from mirage_model.write_filter import (
    WriteFilterConfig,
    filtered_pixels,
    write_frames,
    write_mask,
)

HEIGHT, WIDTH, H, W = 96, 160, 12, 20


@pytest.fixture
def wall() -> Estimate:
    """Return the estimate of a wall four metres in front of one camera."""
    K = torch.tensor([[[80.0, 0.0, 79.5], [0.0, 80.0, 47.5], [0.0, 0.0, 1.0]]])
    depth = torch.full((1, HEIGHT, WIDTH), 4.0)
    nothing = torch.zeros_like(depth, dtype=torch.bool)
    return Estimate(
        depth=depth,
        cameras=Cameras(
            K=K,
            world_from_camera=torch.eye(4)[None],
            times=torch.zeros(1, dtype=torch.float64),
            height=HEIGHT,
            width=WIDTH,
        ),
        confidence=torch.ones_like(depth),
        sky=nothing,
        moving=nothing,
        moving_probability=nothing.float(),
        scaled=torch.ones(1, dtype=torch.bool),
    )


def masked_cells(estimate: Estimate) -> list[list[int]]:
    """Return the cells outside the write mask as (row, column)."""
    return (~write_mask(estimate, height=H, width=W)[1][0]).nonzero().tolist()


def marked(share: float, row: int = 3, column: int = 5) -> torch.Tensor:
    """Return a mask of the given share of the 64 pixels of one cell."""
    mask = torch.zeros(1, HEIGHT, WIDTH, dtype=torch.bool)
    cell = torch.zeros(64, dtype=torch.bool)
    cell[: round(64 * share)] = True
    mask[0, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = cell.reshape(8, 8)
    return mask


def test_plain_wall_is_valid_at_its_depth(wall: Estimate):
    depth, valid = write_mask(wall, height=H, width=W)
    assert valid.all()
    torch.testing.assert_close(depth, torch.full((1, H, W), 4.0))


@pytest.mark.parametrize(('share', 'valid'), [(0.2, True), (0.3, False), (1.0, False)])
def test_sky_is_masked(wall: Estimate, share: float, valid: bool):
    sky = marked(share)
    assert masked_cells(replace(wall, sky=sky)) == ([] if valid else [[3, 5]])
    assert masked_cells(replace(wall, sky=sky, depth=wall.depth.masked_fill(sky, torch.nan))) == (
        [] if valid else [[3, 5]]
    )


@pytest.mark.parametrize(('share', 'valid'), [(0.05, True), (0.15, False), (1.0, False)])
def test_dynamic_objects_are_masked(wall: Estimate, share: float, valid: bool):
    assert masked_cells(replace(wall, moving=marked(share))) == ([] if valid else [[3, 5]])


def test_depth_edges_are_masked(wall: Estimate):
    depth = wall.depth.clone()
    depth[0, :, :44] = 2.0
    assert masked_cells(replace(wall, depth=depth)) == [[row, 5] for row in range(H)]


def test_edge_between_cells_masks_nothing(wall: Estimate):
    depth = wall.depth.clone()
    depth[0, :, :40] = 2.0
    assert masked_cells(replace(wall, depth=depth)) == []


@pytest.mark.parametrize('value', [torch.nan, torch.inf, 0.0, -1.0])
def test_cells_without_depth_are_masked(wall: Estimate, value: float):
    depth = wall.depth.masked_fill(marked(1.0), value)
    assert masked_cells(replace(wall, depth=depth)) == [[3, 5]]


def test_low_confidence_is_masked(wall: Estimate):
    confidence = wall.confidence.masked_fill(marked(1.0), 0.1)
    assert masked_cells(replace(wall, confidence=confidence)) == [[3, 5]]
    lenient = WriteFilterConfig(min_confidence=0.0)
    assert write_mask(replace(wall, confidence=confidence), height=H, width=W, config=lenient)[
        1
    ].all()


def test_grid_that_does_not_divide_the_frame_raises(wall: Estimate):
    with pytest.raises(ValueError, match='does not divide'):
        write_mask(wall, height=11, width=W)


class MeanColours:
    """Encoder whose latents are the mean colours of the cells."""

    channels = 3
    spatial_stride = 8

    def encode_images(self, frames: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(frames, self.spatial_stride)


@pytest.mark.parametrize('observed', [False, True])
def test_written_frames_read_back_where_the_mask_is_valid(wall: Estimate, observed: bool):
    estimate = replace(wall, sky=marked(1.0), moving=marked(1.0, row=7))
    _, valid = write_mask(estimate, height=H, width=W)
    memory, codec = LatentMemory(MemoryConfig(channels=3, dtype='float32')), MeanColours()
    frames = torch.rand(1, 3, HEIGHT, WIDTH)
    written = write_frames(memory, frames, estimate, codec=codec, observed=observed)
    assert written == H * W - 2
    readout = memory.readout(resized(wall.cameras, H, W))
    assert torch.equal(readout.visible, valid)
    assert torch.equal(readout.observed, valid & observed)
    assert torch.equal(readout.latents, codec.encode_images(frames) * valid)


def test_given_latents_are_written_unchanged(wall: Estimate):
    memory = LatentMemory(MemoryConfig(channels=3, dtype='float32'))
    frames, latents = torch.rand(1, 3, HEIGHT, WIDTH), torch.rand(1, 3, H, W)
    write_frames(memory, frames, wall, codec=MeanColours(), observed=False, latents=latents)
    assert torch.equal(memory.readout(resized(wall.cameras, H, W)).latents, latents)


def test_pixels_follow_the_filter(wall: Estimate):
    frames, sky = torch.rand(1, 3, HEIGHT, WIDTH), marked(0.3)
    pixels = filtered_pixels(frames, replace(wall, sky=sky))
    assert torch.equal(pixels.depth.isnan(), sky)
