"""Orientations of paths as planners of Nav2 send them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from mirage_model.messages.doubts import Doubts
from mirage_model.messages.path_orientation import read_path


def pose(x: float, y: float, yaw: float | None = 0.0) -> SimpleNamespace:
    z, w = (0.0, 0.0) if yaw is None else (float(np.sin(yaw / 2)), float(np.cos(yaw / 2)))
    return SimpleNamespace(
        position=SimpleNamespace(x=x, y=y, z=0.0),
        orientation=SimpleNamespace(x=0.0, y=0.0, z=z, w=w),
    )


def read(poses, orientation='auto'):
    doubts = Doubts(parameter='sensors.accept')
    matrices = read_path(poses, orientation=orientation, doubts=doubts)
    return np.arctan2(matrices[:, 1, 0], matrices[:, 0, 0]), list(doubts.warnings)


CORNER = [(0.0, 0.0), (1.0, 0.0), (2.0, 0.0), (2.0, 1.0), (2.0, 2.0)]
QUARTER = np.pi / 2


def test_a_planner_without_orientations_looks_along_its_path():
    """NavFn sends identity for all poses but the last, which has the goal's orientation."""
    poses = [pose(x, y) for x, y in CORNER[:-1]] + [pose(2.0, 2.0, np.pi)]
    yaw, told = read(poses)
    np.testing.assert_allclose(yaw, [0, 0, QUARTER, QUARTER, QUARTER], atol=1e-12)
    assert told == ['path_orientation']


def test_zero_quaternions_look_along_the_path():
    yaw, told = read([pose(x, y, None) for x, y in CORNER])
    np.testing.assert_allclose(yaw, [0, 0, QUARTER, QUARTER, QUARTER], atol=1e-12)
    assert told == ['path_orientation']
    with pytest.raises(ValueError, match=r'poses\[0\]: the quaternion has length 0'):
        read([pose(x, y, None) for x, y in CORNER], 'as_sent')


@pytest.mark.parametrize(
    ('poses', 'index'),
    [
        ([pose(0.0, 0.0, None)], 0),
        ([pose(1.0, 0.0, None)] * 3, 0),
        ([pose(x, y, yaw) for (x, y), yaw in zip(CORNER, [0.0, 0.3, None, 0.9, 1.2])], 2),
        ([pose(x, y, yaw) for (x, y), yaw in zip(CORNER, [0.0, 0.3, 0.6, 0.9, None])], 4),
    ],
    ids=['one pose', 'no motion', 'one of a path that turns', 'the last alone'],
)
def test_zero_quaternions_without_a_remedy_are_named(poses, index):
    with pytest.raises(ValueError, match=rf'poses\[{index}\]: the quaternion has length 0'):
        read(poses)


def test_orientations_that_turn_are_taken_as_sent():
    sent = [0.0, 0.3, 0.6, 0.9, 1.2]
    yaw, told = read([pose(x, y, angle) for (x, y), angle in zip(CORNER, sent)])
    np.testing.assert_allclose(yaw, sent, atol=1e-12)
    assert not told


def test_a_straight_path_in_its_direction_is_as_sent():
    yaw, told = read([pose(0.0, 0.5 * i, QUARTER) for i in range(4)])
    np.testing.assert_allclose(yaw, QUARTER, atol=1e-12)
    assert not told


def test_driving_backwards_is_as_sent_and_told():
    yaw, told = read([pose(0.0, -0.5 * i, QUARTER) for i in range(4)])
    np.testing.assert_allclose(yaw, QUARTER, atol=1e-12)
    assert told == ['path_orientation']


def test_the_parameter_settles_it_without_a_warning():
    poses = [pose(x, y) for x, y in CORNER]
    assert read(poses, 'as_sent')[1] == read(poses, 'along_path')[1] == []
    np.testing.assert_allclose(read(poses, 'as_sent')[0], 0.0)
    np.testing.assert_allclose(read(poses, 'along_path')[0][-1], QUARTER)
