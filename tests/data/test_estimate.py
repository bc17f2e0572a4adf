from __future__ import annotations

from dataclasses import replace
import math

import pytest
import torch

from mirage_model.clip import Clip
from mirage_model.data.estimate import complete, perceive, to_scale, triangulate
from mirage_model.data.record import record_trajectory
from mirage_model.perception import Estimate
from mirage_model.perception.embedded import EmbeddedPerception, Network, NetworkConfig


@pytest.fixture(scope='module')
def clip() -> Clip:
    return record_trajectory('room-0030', 'wander', frames=25, seed=1, name='clip')


@pytest.fixture(scope='module')
def points(clip) -> torch.Tensor:
    return triangulate(clip)


def scaled_estimate(clip: Clip, factors: torch.Tensor) -> Estimate:
    """Return an estimate of the true depth times a factor (n,) for each frame."""
    return Estimate(
        depth=clip.depth * factors[:, None, None],
        cameras=clip.cameras,
        confidence=torch.ones_like(clip.depth),
        sky=clip.sky,
        moving=clip.moving,
        moving_probability=clip.moving.float(),
        scaled=torch.zeros(len(clip.depth), dtype=torch.bool),
    )


def in_other_unit(clip: Clip, factor: float) -> Clip:
    """Return the clip with cameras in another unit of length."""
    world_from_camera = clip.cameras.world_from_camera.clone()
    world_from_camera[:, :3, 3] *= factor
    cameras = replace(clip.cameras, world_from_camera=world_from_camera)
    return replace(clip, cameras=cameras, metric=False, labelled=False)


def test_triangulated_points_lie_on_the_surfaces(clip, points):
    valid = ~points.isnan() & ~clip.depth.isnan() & ~clip.moving
    assert int(valid.sum()) > 500 and (valid.sum(dim=(1, 2)) > 12).float().mean() > 0.8
    error = (points[valid] / clip.depth[valid]).log()
    assert abs(float(error.median())) < 0.03 and float(error.abs().median()) < 0.08


def test_points_have_the_unit_of_the_cameras(clip, points):
    valid = ~points.isnan()
    again = triangulate(in_other_unit(clip, 10.0))
    assert (valid == ~again.isnan()).float().mean() > 0.999
    both = valid & ~again.isnan()
    torch.testing.assert_close(again[both], 10 * points[both], rtol=1e-3, atol=0)


def test_a_rotating_camera_gives_no_points():
    turn = record_trajectory('room-0030', 'turn', frames=9, seed=1, name='turn')
    points = triangulate(turn)
    assert points.isnan().all()
    with pytest.raises(ValueError, match='0 points could be triangulated, 50 are needed'):
        to_scale(turn, scaled_estimate(turn, torch.ones(9)), points)


def test_estimated_depth_is_scaled_to_metric_cameras(clip, points):
    """The estimate is 1.7 times too large, and another 1.3 times in every other frame."""
    factors = torch.where(torch.arange(25) % 2 == 0, 1.7, 1.7 * 1.3)
    estimate, cameras = to_scale(clip, scaled_estimate(clip, factors), points)
    assert torch.equal(cameras.world_from_camera, clip.cameras.world_from_camera)
    enough = (~points.isnan() & ~clip.moving).sum(dim=(1, 2)) >= 20
    ratio = (estimate.depth / clip.depth).nanmedian(dim=2).values.nanmedian(dim=1).values
    assert enough.float().mean() > 0.8
    assert ((ratio - 1).abs()[enough] < 0.1).float().mean() > 0.9


def test_cameras_without_a_unit_are_scaled_to_the_estimate(clip):
    other = in_other_unit(clip, 4.0)
    estimate, cameras = to_scale(
        other, scaled_estimate(clip, torch.full((25,), 1.2)), triangulate(other)
    )
    true = clip.cameras.world_from_camera[:, :3, 3]
    scaled = cameras.world_from_camera[:, :3, 3]
    scale = float((scaled[-1] - scaled[0]).norm() / (true[-1] - true[0]).norm())
    assert scale == pytest.approx(1.2, rel=0.04)
    assert float((estimate.depth / clip.depth).nanmedian()) == pytest.approx(1.2, rel=0.04)
    assert torch.equal(
        cameras.world_from_camera[:, :3, :3], clip.cameras.world_from_camera[:, :3, :3]
    )


@pytest.fixture(scope='module')
def perception() -> EmbeddedPerception:
    torch.manual_seed(0)
    network = Network(
        NetworkConfig(
            widths=(8, 8, 8, 8), sky_threshold=1.0, moving_threshold=0.5, max_error_ratio=math.inf
        )
    )
    with torch.no_grad():
        network.head.weight.zero_()
        spread, moving = slice(4, 8), slice(12, 16)
        network.head.bias.zero_()
        network.head.bias[spread], network.head.bias[moving] = -3.0, -5.0
    return EmbeddedPerception(network)


def test_batched_estimates_equal_single_frame_estimates(clip, perception):
    estimate = perceive(clip, perception)
    frame = clip.frames[20:21].permute(0, 3, 1, 2).float() / 255
    alone = perception.estimate(frame, clip.cameras[20:21])
    torch.testing.assert_close(estimate.depth[20], alone.depth[0])
    assert estimate.depth.shape == clip.depth.shape and estimate.cameras is clip.cameras


def test_a_complete_clip_is_returned_unchanged(clip, perception):
    assert complete(clip, perception) is clip


def test_measured_depth_is_kept(clip, perception):
    valid = replace(clip, labelled=False)
    done = complete(valid, perception)
    assert done.labelled and torch.equal(done.depth.nan_to_num(-1), clip.depth.nan_to_num(-1))
    assert torch.equal(done.moving, perceive(clip, perception).moving)


def test_missing_depth_is_estimated_where_confident(clip, perception):
    blind = replace(in_other_unit(clip, 4.0), depth=torch.full_like(clip.depth, torch.nan))
    done = complete(blind, perception)
    assert done.labelled and done.metric and not done.depth.isnan().any()
    ratio = done.cameras.world_from_camera[-1, :3, 3] / blind.cameras.world_from_camera[-1, :3, 3]
    assert float(ratio.std()) < 1e-3 * float(ratio.mean())
    with torch.no_grad():
        perception.network.head.bias[4:8] = 2.0  # low confidence everywhere
    assert complete(blind, perception).depth.isnan().all()
