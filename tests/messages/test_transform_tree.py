from __future__ import annotations

import numpy as np
import pytest

from mirage_model.messages.transform_tree import Tree


def shift(x: float, y: float = 0.0) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:2, 3] = x, y
    return matrix


def test_a_chain_worked_by_hand():
    """map moves over odom at 1 Hz, odom over base at 10 Hz, the camera sits 0.5 m to the side."""
    tree = Tree()
    for k in range(3):
        tree.add('map', 'odom', 10.0 + k, shift(0.1 * k), static=False)
    for k in range(31):
        tree.add('odom', 'base', 9.55 + 0.1 * k, shift(k), static=False)
    tree.add('base', 'camera', 0.0, shift(0.0, 0.5), static=True)
    times, world_from_camera, refused = tree.poses('map', 'camera')
    assert not refused
    assert times.tolist() == [10.0, 11.0, 12.0]
    # at 10 s the base is half way between its fourth and fifth place
    np.testing.assert_allclose(world_from_camera[:, 0, 3], [4.5, 14.6, 24.7], atol=1e-9)
    np.testing.assert_allclose(world_from_camera[:, 1, 3], 0.5)


def test_what_is_sent_twice_counts_once():
    tree = Tree()
    for time in (1.0, 1.0, 2.0):
        tree.add('map', 'camera', time, shift(time), static=False)
    assert tree.poses('map', 'camera')[0].tolist() == [1.0, 2.0]


def test_what_leads_nowhere_is_refused():
    tree = Tree()
    tree.add('base', 'camera', 0.0, np.eye(4), static=True)
    with pytest.raises(
        ValueError, match="'base' has no parent; there are the frames base, camera"
    ):
        tree.poses('map', 'camera')
    with pytest.raises(ValueError, match='only static transforms'):
        tree.poses('base', 'camera')
    tree.add('camera', 'base', 0.0, np.eye(4), static=True)
    with pytest.raises(ValueError, match="no transforms lead from 'camera' up to 'map'"):
        tree.poses('map', 'camera')


def test_what_contradicts_itself_matters_only_on_the_way_up():
    tree = Tree()
    for time in (1.0, 2.0):
        tree.add('map', 'camera', time, shift(time), static=False)
    tree.add('table', 'cup', 1.0, np.eye(4), static=False)
    tree.add('hand', 'cup', 2.0, np.eye(4), static=False)
    tree.refuse('map', 'cup', 'no quaternion', static=False)
    times, _, refused = tree.poses('map', 'camera')
    assert times.tolist() == [1.0, 2.0] and not refused
    with pytest.raises(ValueError, match="'cup' has the parents 'table' and 'hand' and 'map'"):
        tree.poses('map', 'cup')
    tree.refuse('map', 'lamp', 'no quaternion', static=False)
    with pytest.raises(ValueError, match="'lamp' has no transform that can be used: no quat"):
        tree.poses('map', 'lamp')


def test_late_transforms_are_put_in_place_and_those_after_a_jump_left_out():
    tree = Tree()
    for time in (1.0, 3.0, 2.5, 2.0, 1.0, 0.5, 4.0):
        tree.add('map', 'camera', time, shift(time), static=False)
    times, world_from_camera, refused = tree.poses('map', 'camera')
    assert times.tolist() == world_from_camera[:, 0, 3].tolist() == [1.0, 2.0, 2.5, 3.0]
    assert refused == [
        "3 transforms of 'camera' are left out, the first: time goes backwards, 1.000000 after 3.000000"
    ]


def test_transforms_that_are_never_known_together_say_when_they_are():
    tree = Tree()
    for time in (1.0, 2.0):
        tree.add('map', 'odom', time, np.eye(4), static=False)
        tree.add('odom', 'camera', time + 5, np.eye(4), static=False)
    with pytest.raises(ValueError, match="'camera' from 6.0* to 7.0*, 'odom' from 1.0* to 2.0"):
        tree.poses('map', 'camera')
