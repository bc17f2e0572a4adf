"""Tests of the visibility rule in torch against the oracle."""

from __future__ import annotations

from hypothesis import given, settings
import oracle
import scenes
import torch

from mirage_model.memory.visibility import CameraArrays, Splats, VisibilityRule, nearest

PLAIN = VisibilityRule(splat_size=1, tolerance=0.05, near=0.05, far=float('inf'))


@settings(max_examples=60, deadline=None)
@given(scenes.points(), scenes.cameras(), scenes.rules)
def test_nearest_equals_the_oracle(points, cameras, rule):
    views = CameraArrays.from_cameras(cameras)
    index, won = nearest(points, views, rule)
    expected_index, expected_won = oracle.nearest(points, views, rule)
    assert torch.equal(index, expected_index)
    assert torch.equal(won, expected_won)


def test_ties_go_to_observed_then_later_points():
    position = torch.tensor([[0.125, 0.125, 1.0]]).repeat(4, 1)
    views = CameraArrays.from_cameras(scenes.camera_row([scenes.transform()]))
    rule = VisibilityRule(splat_size=1, tolerance=0.0, near=0.05, far=float('inf'))
    for observed, winner in [([1, 1, 1, 1], 3), ([0, 1, 1, 0], 2), ([0, 0, 0, 0], 3)]:
        points = Splats(
            position=position,
            size=torch.ones(4),
            observed=torch.tensor(observed, dtype=torch.bool),
        )
        assert nearest(points, views, rule)[0].max() == winner


def test_splat_covers_its_metric_size():
    views = CameraArrays.from_cameras(scenes.camera_row([scenes.transform()], height=9, width=9))
    for size, splat_size, across in [(0.2, 7, 1), (0.8, 7, 3), (9.0, 7, 7), (0.8, 1, 1)]:
        points = Splats(
            position=torch.tensor([[0.0, 0.0, 1.0]]),
            size=torch.tensor([size]),
            observed=torch.tensor([True]),
        )
        rule = VisibilityRule(splat_size=splat_size, tolerance=0.0, near=0.05, far=float('inf'))
        assert (nearest(points, views, rule)[0] >= 0).sum() == across**2


def test_splats_keep_cells_of_the_same_surface():
    """On a wall seen from half the distance, each cell keeps the point that projects into it."""
    views = CameraArrays.from_cameras(scenes.camera_row([scenes.transform()], height=9, width=9))
    grid = torch.stack(torch.meshgrid(torch.arange(-4, 5), torch.arange(-4, 5), indexing='xy'), -1)
    position = torch.cat([grid.reshape(-1, 2) / 4.0, torch.ones(81, 1)], dim=-1)
    position[:, 2] += position[:, 0] * 0.1  # slightly slanted: neighbours are nearer
    points = Splats(
        position=position, size=torch.full((81,), 0.5), observed=torch.ones(81, dtype=torch.bool)
    )
    spread = VisibilityRule(splat_size=3, tolerance=0.05, near=0.05, far=float('inf'))
    plain_index, _ = nearest(points, views, PLAIN)
    spread_index, _ = nearest(points, views, spread)
    hit = plain_index >= 0
    assert (spread_index[hit] == plain_index[hit]).float().mean() > 0.95
