"""Tests of depth on the latent grid: exact on planes, and one side of an edge."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest
import torch

from mirage_model.memory.depth_grid import depth_to_grid

HEIGHT, WIDTH, ROWS, COLUMNS = 6, 10, 8, 8


def frame_of(cell_depths):
    return cell_depths.repeat_interleave(ROWS, dim=1).repeat_interleave(COLUMNS, dim=2)


def floor(camera_height=1.5, focal=48.0):
    """Return the depth of a floor up to the horizon in the middle of the frame."""
    below = torch.arange(HEIGHT * ROWS) - (HEIGHT * ROWS - 1) / 2
    depth = torch.where(below > 0, camera_height * focal / below, torch.nan)
    return depth[None, :, None].repeat(1, 1, WIDTH * COLUMNS)


@settings(max_examples=25, deadline=None)
@given(st.tuples(*[st.floats(-0.001, 0.001)] * 2), st.floats(0.2, 2.0))
def test_planes_are_exact_and_have_no_edges(slopes, inverse):
    y, x = torch.meshgrid(
        torch.arange(HEIGHT * ROWS), torch.arange(WIDTH * COLUMNS), indexing='ij'
    )
    depth = 1 / (inverse + slopes[0] * x + slopes[1] * y)[None]
    grid, valid, edge = depth_to_grid(depth, HEIGHT, WIDTH)
    row, column = torch.arange(HEIGHT)[:, None] * 8 + 3.5, torch.arange(WIDTH) * 8 + 3.5
    expected = 1 / (inverse + slopes[0] * column + slopes[1] * row)
    assert valid.all() and not edge.any()
    torch.testing.assert_close(grid[0], expected.float(), rtol=1e-4, atol=0)


def test_floor_has_no_edges_up_to_the_horizon():
    grid, valid, edge = depth_to_grid(floor(), HEIGHT, WIDTH)
    assert not edge.any()
    assert not valid[:, :3].any() and valid[:, 3:].all()
    torch.testing.assert_close(grid[0, 3:, 0], 1.5 * 48 / torch.tensor([4.0, 12.0, 20.0]))


def test_steps_are_edges_and_creases_are_not():
    wall_meets_floor = torch.fmin(floor(), torch.tensor(5.0)).nan_to_num(5.0)
    assert not depth_to_grid(wall_meets_floor, HEIGHT, WIDTH)[2].any()
    step = torch.full((1, HEIGHT * ROWS, WIDTH * COLUMNS), 4.0)
    step[..., 20:] = 3.0  # in the middle of the third column of cells
    edge = depth_to_grid(step, HEIGHT, WIDTH)[2]
    assert edge[..., 2].all() and edge.sum() == HEIGHT
    assert torch.equal(depth_to_grid(step.mT, WIDTH, HEIGHT)[2], edge.mT)


def test_step_between_cells_is_not_an_edge():
    depth = frame_of(torch.tensor([2.0, 8.0]).repeat(HEIGHT * WIDTH // 2).view(1, HEIGHT, WIDTH))
    grid, _, edge = depth_to_grid(depth, HEIGHT, WIDTH)
    assert not edge.any()
    torch.testing.assert_close(frame_of(grid), depth)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_cell_with_an_edge_takes_its_lower_median(seed):
    generator = torch.Generator().manual_seed(seed)
    depth = torch.rand(1, 16, 24, generator=generator) * 9 + 1
    holes = torch.tensor([math.nan, math.inf, 0.0, -1.0, -math.inf])
    missing = torch.rand(depth.shape, generator=generator) < 0.5
    depth[missing] = holes[torch.randint(5, depth.shape, generator=generator)][missing]
    grid, valid, edge = depth_to_grid(depth, 2, 3)
    assert (grid > 0).equal(valid) and grid.isfinite().all() and not (edge & ~valid).any()
    for row in range(2):
        for column in range(3):
            samples = depth[0, row * 8 : row * 8 + 8, column * 8 : column * 8 + 8]
            samples = samples[samples.isfinite() & (samples > 0)].sort().values
            assert valid[0, row, column] == (len(samples) >= 32)
            if edge[0, row, column]:
                assert grid[0, row, column] == samples[(len(samples) - 1) // 2]


def test_grid_that_does_not_divide_the_frame_raises():
    with pytest.raises(ValueError, match='5x10 grid does not divide 48x80'):
        depth_to_grid(torch.ones(1, 48, 80), 5, 10)
