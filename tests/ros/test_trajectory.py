"""Frames along a path, padding, and poses of the camera."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from instant_engine import InstantEngine
import numpy as np
import pytest

from mirage_model.messages.poses import matrix_from_numbers, seconds
from mirage_model.messages.transform_tree import TransformTree
from mirage_ros.convert import stamp
from mirage_ros.declaration import from_values
from mirage_ros.parameters import NodeParameters
from mirage_ros.trajectory import CameraFrames, frames_along

ENGINE = InstantEngine().describe()  # 8 Hz, 16 frames a chunk


def straight(seconds: float, poses: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Return a path of 1 m/s along x from a stamp like today's."""
    times = 1_800_000_000 + np.linspace(0, seconds, poses)
    world_from_camera = np.tile(np.eye(4), (poses, 1, 1))
    world_from_camera[:, 0, 3] = times - times[0]
    return world_from_camera, times


@given(st.integers(1, 200), st.booleans())
def test_a_path_of_n_frames_gives_n(n, skip_first):
    path, times = straight(n / 8, poses=3)
    frames = frames_along(path, times, skip_first=skip_first, frame_rate=8.0, max_frames=1000)
    first = 1 if skip_first else 0
    assert len(frames.times) == n + 1 - first
    padded = frames.padded(ENGINE)
    assert len(padded.times) % 16 == 0 and 0 <= len(padded.times) - len(frames.times) < 16
    np.testing.assert_allclose(padded.times, times[0] + (first + np.arange(len(padded.times))) / 8)
    held = np.minimum(padded.times - times[0], n / 8)
    np.testing.assert_allclose(padded.world_from_camera[:, 0, 3], held, atol=1e-6)


@given(st.sampled_from([24.0, 30.0, 29.97, 50.0]), st.floats(1e9, 1.9e9), st.integers(2, 40))
def test_poses_sent_for_frames_are_used_exactly(rate, start, count):
    """The stamps of the poses are rounded to microseconds."""
    sent = np.array([seconds(stamp(start + k / rate)) for k in range(count)])
    world_from_camera = np.tile(np.eye(4), (count, 1, 1))
    world_from_camera[:, 0, 3] = np.arange(count) ** 2
    frames = frames_along(
        world_from_camera, sent, skip_first=False, frame_rate=rate, max_frames=100
    )
    np.testing.assert_array_equal(frames.world_from_camera, world_from_camera)


def test_too_short_too_long_and_empty():
    keywords = {'skip_first': True, 'frame_rate': 8.0, 'max_frames': 16}
    with pytest.raises(ValueError, match='takes 0.100 s, less than one frame at 8 Hz'):
        frames_along(*straight(0.1), **keywords)
    with pytest.raises(ValueError, match='takes 17 frames at 8 Hz, limits.max_frames is 16'):
        frames_along(*straight(17 / 8), **keywords)
    with pytest.raises(ValueError, match='empty'):
        frames_along(np.zeros((0, 4, 4)), np.zeros(0), **keywords)


LOOKING_FORWARD = (0.2, 0.0, 0.5, -0.5, 0.5, -0.5, 0.5)


def frames(
    tree: TransformTree | None = None,
    base_from_camera: tuple[float, ...] = (),
    pose_source: str = 'none',
) -> CameraFrames:
    values = {'frames.base_from_camera': base_from_camera, 'observe.pose_source': pose_source}
    tree = tree or TransformTree(max_age=30.0)
    return CameraFrames(from_values(NodeParameters, {'tf.wait': 0.0, **values}), tree)


def test_camera_on_the_base():
    base_from_camera = frames(base_from_camera=LOOKING_FORWARD).moving_from_camera(
        'base_link', 'camera', 1.0
    )
    forward_right_down = base_from_camera[:3, :3] @ np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]]).T
    np.testing.assert_allclose(forward_right_down, [[1, 0, 0], [0, -1, 0], [0, 0, -1]], atol=1e-9)


def test_camera_as_moving_frame_needs_no_transform():
    for moving in ('', 'camera'):
        np.testing.assert_array_equal(
            frames().moving_from_camera(moving, 'camera', None), np.eye(4)
        )


def test_unknown_frames():
    with pytest.raises(ValueError, match="no transforms join 'mars' to 'map'"):
        frames().world_from('mars', 1.0)
    with pytest.raises(ValueError, match="header.frame_id: is ''"):
        frames().world_from('', 1.0)
    for moving in ('gripper', 'base_link'):
        with pytest.raises(
            ValueError, match=f"'camera' in '{moving}' is unknown, .*base_from_camera"
        ):
            frames().moving_from_camera(moving, 'camera', 1.0)


def test_camera_in_the_world():
    """The pose through the tree alone equals that through the base and the parameter."""
    base_from_camera = matrix_from_numbers(LOOKING_FORWARD, name='')
    world_from_base = np.eye(4)
    world_from_base[:3, 3] = 1, 2, 0
    tree = TransformTree(max_age=30.0)
    tree.add('map', 'base_link', 5.0, world_from_base, static=False)
    by_parameter = frames(tree, base_from_camera=LOOKING_FORWARD, pose_source='odometry')
    expected = world_from_base @ base_from_camera
    np.testing.assert_allclose(by_parameter.world_from_camera('camera', 5.0), expected, atol=1e-9)
    tree.add('base_link', 'camera', 0.0, base_from_camera, static=True)
    by_tree = frames(tree, pose_source='tf')
    np.testing.assert_allclose(by_tree.world_from_camera('camera', 5.0), expected, atol=1e-9)
    with pytest.raises(ValueError, match='observe.pose_source: none'):
        frames(tree).world_from_camera('camera', 5.0)


def test_zero_quaternion_in_the_parameter():
    with pytest.raises(ValueError, match='frames.base_from_camera: the quaternion has length 0'):
        frames(base_from_camera=(0.0,) * 7)
