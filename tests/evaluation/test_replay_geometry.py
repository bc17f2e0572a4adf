from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
import torch

from mirage_model.camera import Cameras
from mirage_model.evaluation.replay.geometry import camera_control, consistency, pose_errors

HEIGHT, WIDTH, FOCAL, WALL = 96, 160, 100.0, 4.0


def cameras(x: list[float]) -> Cameras:
    world_from_camera = torch.eye(4).repeat(len(x), 1, 1)
    world_from_camera[:, 0, 3] = torch.tensor(x)
    K = torch.tensor(
        [[FOCAL, 0.0, (WIDTH - 1) / 2], [0.0, FOCAL, (HEIGHT - 1) / 2], [0.0, 0.0, 1.0]]
    )
    return Cameras(
        K=K.expand(len(x), 3, 3),
        world_from_camera=world_from_camera,
        times=torch.arange(len(x), dtype=torch.float64),
        height=HEIGHT,
        width=WIDTH,
    )


def wall(x: list[float]) -> torch.Tensor:
    """Return frames of a wall of blobs, exact for a camera that is shifted by whole pixels."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(1, 3, 60, 120, generator=generator)
    picture = torch.nn.functional.interpolate(noise, scale_factor=4, mode='bicubic').clamp(0, 1)[0]
    shifts = [round(FOCAL * value / WALL) for value in x]
    return torch.stack([picture[:, 20 : 20 + HEIGHT, 60 + s : 60 + s + WIDTH] for s in shifts])


def test_pose_errors_worked_by_hand():
    planned, found = np.tile(np.eye(4), (2, 1, 1)), np.tile(np.eye(4), (2, 1, 1))
    found[0, :3, :3] = Rotation.from_euler('y', 30, degrees=True).as_matrix()
    found[1, :3, 3] = 3.0, 4.0, 0.0
    degrees, metres = pose_errors(found, planned)
    np.testing.assert_allclose(degrees, [30.0, 0.0], atol=1e-9)
    np.testing.assert_allclose(metres, [0.0, 5.0], atol=1e-9)


def test_camera_errors_are_measured():
    """Frames that show 0.4 m are said to be at 0.4, 0.0 and 1.2 m."""
    frames = wall([0.4, 0.4, 0.4])
    frames[2] = 0.5
    control = camera_control(
        frames,
        cameras([0.4, 0.0, 1.2]),
        reference_frames=wall([0.0]),
        reference_depth=torch.full((1, HEIGHT, WIDTH), WALL),
        reference_cameras=cameras([0.0]),
    )
    np.testing.assert_allclose(control.metres[:2], [0.0, 0.4], atol=0.02)
    assert (control.degrees[:2] < 0.3).all()
    assert math.isnan(control.metres[2]) and control.reasons[2] and not control.reasons[0]
    assert control.failure_rate == pytest.approx(1 / 3)


def test_static_scene_is_consistent():
    places = [0.0, 0.4, 0.8, 1.2]
    frames, depth = wall(places), torch.full((4, HEIGHT, WIDTH), WALL)
    assert min(consistency(frames, depth, cameras(places), gap=2)) > 60
    # the same frames are not consistent with cameras that did not move
    assert max(consistency(frames, depth, cameras([0.0] * 4), gap=2)) < 20
    shifted = frames.clone()
    shifted[2] = (shifted[2] + 0.1).clamp(0, 1)
    found = consistency(shifted.clamp(0, 1), depth, cameras(places), gap=2)
    assert found[0] == pytest.approx(20.0, abs=1.0)


def test_occluded_surfaces_do_not_count():
    places = [0.0, 0.4]
    frames, depth = wall(places), torch.full((2, HEIGHT, WIDTH), WALL)
    frames[1, :, :, :80] = 0.0
    depth[1, :, :80] = 1.0  # something came between
    (found,) = consistency(frames, depth, cameras(places), gap=1)
    assert found > 50
    depth[1] = math.nan
    assert math.isnan(consistency(frames, depth, cameras(places), gap=1)[0])
