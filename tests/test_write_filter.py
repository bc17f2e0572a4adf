"""Which cells may enter the memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mirage_model.camera import Cameras, resized
from mirage_model.memory.latent import LatentMemory, MemoryConfig
from mirage_model.perception import Estimate
from mirage_model.write_filter import WriteFilterConfig, write_mask

HEIGHT, WIDTH, H, W = 96, 160, 12, 20


@pytest.fixture
def wall() -> Estimate:
    """A wall four metres in front of one camera."""
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
        scaled=torch.ones(1, dtype=torch.bool),
    )


def dropped(estimate: Estimate) -> list[list[int]]:
    """Cells that are not kept, as (row, column)."""
    return (~write_mask(estimate, height=H, width=W)[1][0]).nonzero().tolist()


def marked(share: float, row: int = 3, column: int = 5) -> torch.Tensor:
    """True in the given share of the 64 pixels of one cell."""
    mask = torch.zeros(1, HEIGHT, WIDTH, dtype=torch.bool)
    cell = torch.zeros(64, dtype=torch.bool)
    cell[: round(64 * share)] = True
    mask[0, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = cell.reshape(8, 8)
    return mask


def test_a_plain_wall_is_kept_at_its_depth(wall: Estimate):
    depth, valid = write_mask(wall, height=H, width=W)
    assert valid.all()
    torch.testing.assert_close(depth, torch.full((1, H, W), 4.0))


@pytest.mark.parametrize(('share', 'kept'), [(0.2, True), (0.3, False), (1.0, False)])
def test_sky_is_left_out(wall: Estimate, share: float, kept: bool):
    sky = marked(share)
    assert dropped(replace(wall, sky=sky)) == ([] if kept else [[3, 5]])
    assert dropped(replace(wall, sky=sky, depth=wall.depth.masked_fill(sky, torch.nan))) == (
        [] if kept else [[3, 5]]
    )


@pytest.mark.parametrize(('share', 'kept'), [(0.05, True), (0.15, False), (1.0, False)])
def test_what_moves_is_left_out(wall: Estimate, share: float, kept: bool):
    assert dropped(replace(wall, moving=marked(share))) == ([] if kept else [[3, 5]])


def test_depth_edges_are_left_out(wall: Estimate):
    depth = wall.depth.clone()
    depth[0, :, :44] = 2.0
    assert dropped(replace(wall, depth=depth)) == [[row, 5] for row in range(H)]


def test_an_edge_between_cells_costs_no_cell(wall: Estimate):
    depth = wall.depth.clone()
    depth[0, :, :40] = 2.0
    assert dropped(replace(wall, depth=depth)) == []


@pytest.mark.parametrize('value', [torch.nan, torch.inf, 0.0, -1.0])
def test_cells_without_depth_are_left_out(wall: Estimate, value: float):
    depth = wall.depth.masked_fill(marked(1.0), value)
    assert dropped(replace(wall, depth=depth)) == [[3, 5]]


def test_unsure_cells_are_left_out(wall: Estimate):
    confidence = wall.confidence.masked_fill(marked(1.0), 0.1)
    assert dropped(replace(wall, confidence=confidence)) == [[3, 5]]
    lenient = WriteFilterConfig(min_confidence=0.0)
    assert write_mask(replace(wall, confidence=confidence), height=H, width=W, config=lenient)[
        1
    ].all()


def test_a_grid_that_does_not_divide_the_frame_is_refused(wall: Estimate):
    with pytest.raises(ValueError, match='does not divide'):
        write_mask(wall, height=11, width=W)


def test_what_is_kept_is_what_the_memory_then_shows(wall: Estimate):
    estimate = replace(wall, sky=marked(1.0), moving=marked(1.0, row=7))
    depth, valid = write_mask(estimate, height=H, width=W)
    cameras = resized(wall.cameras, H, W)
    memory = LatentMemory(MemoryConfig(channels=2))
    written = memory.write(torch.rand(1, 2, H, W), depth, cameras, valid=valid, observed=False)
    assert written == H * W - 2
    assert torch.equal(memory.readout(cameras).visible, valid)
