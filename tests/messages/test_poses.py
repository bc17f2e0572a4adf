"""Stamps, poses and frames of messages, and interpolation."""

from __future__ import annotations

from types import SimpleNamespace as Message

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from mirage_model.messages.poses import (
    matrices_from_poses,
    matrix_from_numbers,
    matrix_from_pose,
    read_pose,
    read_transform,
    resample_trajectory,
    seconds,
)

EPOCH = 1_700_000_000.0


def random_rigid(rng: np.random.Generator, n: int) -> np.ndarray:
    matrices = np.tile(np.eye(4), (n, 1, 1))
    matrices[:, :3, :3] = Rotation.random(n, random_state=rng.integers(1 << 30)).as_matrix()
    matrices[:, :3, 3] = rng.normal(size=(n, 3))
    return matrices


def pose(x=0.0, y=0.0, z=0.0, *, quaternion=(0.0, 0.0, 0.0, 1.0)) -> Message:
    position = Message(x=x, y=y, z=z)
    return Message(position=position, orientation=Message(**dict(zip('xyzw', quaternion))))


def header(frame: str) -> Message:
    return Message(frame_id=frame, stamp=Message(sec=7, nanosec=250_000_000))


def test_matrix_of_a_pose():
    quaternion = Rotation.from_euler('z', 90, degrees=True).as_quat()
    expected = [[0, -1, 0, 1], [1, 0, 0, 2], [0, 0, 1, 3], [0, 0, 0, 1]]
    for matrix in (
        matrix_from_pose(pose(1.0, 2.0, 3.0, quaternion=quaternion)),
        matrix_from_numbers((1.0, 2.0, 3.0, *quaternion), name='mount'),
    ):
        np.testing.assert_allclose(matrix, expected, atol=1e-12)


@pytest.mark.parametrize(
    ('quaternion', 'what'),
    [
        ((0.0, 0.0, 0.0, 0.0), 'length 0'),
        ((0.0, 0.0, 0.0, 2.0), 'length 2'),
        ((0.0, 0.0, float('nan'), 1.0), 'not finite'),
        ((0.0, float('inf'), 0.0, 1.0), 'not finite'),
    ],
)
def test_bad_quaternion_is_named(quaternion, what):
    poses = [pose() for _ in range(5)]
    poses[3] = pose(quaternion=quaternion)
    with pytest.raises(ValueError, match=rf'poses\[3\]: .*{what}'):
        matrices_from_poses(poses)


@pytest.mark.parametrize('x', [10_001.0, -1e200])
def test_position_far_from_the_origin_is_named(x):
    with pytest.raises(ValueError, match=r'poses\[1\]: position .* further than 10 km'):
        matrices_from_poses([pose(), pose(x), pose()])


def test_mount_needs_seven_numbers():
    with pytest.raises(ValueError, match=r'mount: needs 7 numbers .*, got 6'):
        matrix_from_numbers((0.0,) * 6, name='mount')


def test_stamp_in_seconds():
    assert seconds(Message(sec=1_700_000_000, nanosec=500_000_000)) == 1_700_000_000.5


def transform(parent: str, child: str) -> Message:
    moved = Message(translation=Message(x=1.0, y=0.0, z=0.0), rotation=pose().orientation)
    return Message(header=header(parent), child_frame_id=child, transform=moved)


def test_leading_slash_of_frames_is_dropped():
    parent, child, time, matrix = read_transform(transform('/map', '/base'))
    assert (parent, child, time, matrix[0, 3]) == ('map', 'base', 7.25, 1.0)
    message = Message(header=header('/odom'), child_frame_id='/base', pose=Message(pose=pose()))
    assert read_pose(message, base_frame='x', name='odometry')[:2] == ('odom', 'base')


def test_base_frame_stands_in_for_a_missing_child_frame():
    odometry = Message(header=header('odom'), child_frame_id='', pose=Message(pose=pose(2.0)))
    stamped = Message(header=header('odom'), pose=pose(2.0))
    for message in (odometry, stamped):
        parent, child, time, matrix = read_pose(message, base_frame='/base', name='pose')
        assert (parent, child, time, matrix[0, 3]) == ('odom', 'base', 7.25, 2.0)


@pytest.mark.parametrize(('parent', 'child'), [('', 'base'), ('map', ''), ('map', '/map')])
def test_transform_needs_two_different_frames(parent, child):
    with pytest.raises(ValueError, match='two different frames are needed'):
        read_transform(transform(parent, child))


def trajectory(count=4, seed=0):
    return random_rigid(np.random.default_rng(seed), count), EPOCH + np.arange(count) * 0.5


def test_resampling_at_the_poses_times_is_exact():
    poses, times = trajectory()
    np.testing.assert_array_equal(resample_trajectory(poses, times, times), poses)


def test_resampling_between_is_halfway_and_rigid():
    poses, times = trajectory()
    at = times[:-1] + 0.25
    result = resample_trajectory(poses, times, at)
    turned = result[:, :3, :3]
    identity = np.broadcast_to(np.eye(3), turned.shape)
    np.testing.assert_allclose(turned @ turned.transpose(0, 2, 1), identity, atol=1e-12)
    np.testing.assert_allclose(result[:, :3, 3], (poses[:-1, :3, 3] + poses[1:, :3, 3]) / 2)
    before, after = (Rotation.from_matrix(part[:, :3, :3]) for part in (poses[:-1], poses[1:]))
    halfway = Rotation.from_matrix(result[:, :3, :3])
    whole = (before.inv() * after).magnitude()
    np.testing.assert_allclose((before.inv() * halfway).magnitude(), whole / 2, atol=1e-5)
    np.testing.assert_allclose((halfway.inv() * after).magnitude(), whole / 2, atol=1e-5)


def test_resampling_holds_the_ends_and_a_single_pose():
    poses, times = trajectory()
    result = resample_trajectory(poses, times, np.array([times[0] - 9, times[-1] + 9]))
    np.testing.assert_array_equal(result, poses[[0, -1]])
    result = resample_trajectory(poses[:1], times[:1], np.array([0.0, EPOCH, EPOCH + 9]))
    np.testing.assert_array_equal(result, poses[[0, 0, 0]])


@pytest.mark.parametrize(
    ('edit', 'message'),
    [
        (lambda poses, times: (poses[:0], times[:0]), 'empty'),
        (lambda poses, times: (poses, times[:3]), 'times: 3 for 4 poses'),
        (lambda poses, times: (poses, times[[0, 1, 1, 2]]), r'times\[2\]: .*, times must'),
        (lambda poses, times: (poses, times[::-1]), r'times\[1\]: .*, times must'),
        (
            lambda poses, times: (poses, np.where(times > times[2], np.nan, times)),
            r'times\[3\]: nan',
        ),
        (lambda poses, times: (poses * 0, times), 'camera 0: transform is not rigid'),
    ],
)
def test_bad_trajectory_is_rejected(edit, message):
    poses, times = edit(*trajectory())
    with pytest.raises(ValueError, match=message):
        resample_trajectory(poses, times, np.array([EPOCH]))


def test_resampling_at_a_time_that_is_not_finite():
    poses, times = trajectory()
    with pytest.raises(ValueError, match=r'at\[1\]: nan'):
        resample_trajectory(poses, times, np.array([EPOCH, np.nan]))
