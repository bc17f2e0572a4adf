"""From a path to frames: counts, padding, and where the camera sits."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from instant_engine import InstantEngine
import numpy as np
import pytest

from mirage_ros.convert import Planned
from mirage_ros.plan import frames_along, moving_from_camera
from mirage_ros.settings import Settings

ENGINE = InstantEngine().describe()  # 8 Hz, 16 frames a chunk


def straight(seconds: float, poses: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """1 m/s along x from a stamp like today's."""
    times = 1_800_000_000 + np.linspace(0, seconds, poses)
    world_from_camera = np.tile(np.eye(4), (poses, 1, 1))
    world_from_camera[:, 0, 3] = times - times[0]
    return world_from_camera, times


@given(st.integers(1, 200), st.booleans())
def test_a_path_of_n_frames_gives_n(n, starts_at_seed):
    path, times = straight(n / 8, poses=3)
    plan = frames_along(path, times, starts_at_seed=starts_at_seed, engine=ENGINE, max_frames=1000)
    first = 1 if starts_at_seed else 0
    assert plan.wanted == n + 1 - first
    assert len(plan.times) % 16 == 0 and 0 <= len(plan.times) - plan.wanted < 16
    np.testing.assert_allclose(plan.times, times[0] + (first + np.arange(len(plan.times))) / 8)
    held = np.minimum(plan.times - times[0], n / 8)
    np.testing.assert_allclose(plan.world_from_camera[:, 0, 3], held, atol=1e-6)


def test_too_short_too_long_and_empty():
    ask = {'starts_at_seed': True, 'engine': ENGINE, 'max_frames': 16}
    with pytest.raises(ValueError, match='takes 0.100 s, less than one frame at 8 Hz'):
        frames_along(*straight(0.1), **ask)
    with pytest.raises(ValueError, match='takes 17 frames at 8 Hz, max_frames is 16'):
        frames_along(*straight(17 / 8), **ask)
    with pytest.raises(ValueError, match='empty'):
        frames_along(np.zeros((0, 4, 4)), np.zeros(0), **ask)


PLANNED = Planned(
    request_id='',
    world_frame='map',
    moving_frame='base_link',
    world_from_moving=np.eye(4)[None],
    times=np.zeros(1),
)
LOOKING_FORWARD = (0.2, 0.0, 0.5, -0.5, 0.5, -0.5, 0.5)


def test_camera_on_the_base():
    base_from_camera = moving_from_camera(
        PLANNED, 'camera', Settings(base_from_camera=LOOKING_FORWARD)
    )
    forward_right_down = base_from_camera[:3, :3] @ np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]]).T
    np.testing.assert_allclose(forward_right_down, [[1, 0, 0], [0, -1, 0], [0, 0, -1]], atol=1e-9)


def test_camera_that_moves_itself_needs_nothing():
    for moving in ('', 'camera'):
        np.testing.assert_array_equal(
            moving_from_camera(replace(PLANNED, moving_frame=moving), 'camera', Settings()),
            np.eye(4),
        )


@pytest.mark.parametrize(
    ('change', 'what'),
    [
        ({'world_frame': 'odom'}, "in frame 'odom', this node's world_frame is 'map'"),
        ({'moving_frame': 'gripper'}, "'gripper' is neither"),
        ({}, 'base_from_camera, .* is not set'),
    ],
)
def test_unknown_frames(change, what):
    with pytest.raises(ValueError, match=what):
        moving_from_camera(replace(PLANNED, **change), 'camera', Settings())


def test_zero_quaternion_in_the_parameter():
    with pytest.raises(ValueError, match='base_from_camera: the quaternion has length 0'):
        moving_from_camera(PLANNED, 'camera', Settings(base_from_camera=(0.0,) * 7))
