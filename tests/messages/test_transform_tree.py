"""The tree of transforms against chains that are multiplied out by hand."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from mirage_model.messages.transform_tree import MAX_FRAMES, TransformTree


def rigid(rng: np.random.Generator) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.random(random_state=rng.integers(1 << 30)).as_matrix()
    matrix[:3, 3] = rng.normal(size=3)
    return matrix


def turn(angle: float, x: float = 0.0) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler('z', angle).as_matrix()
    matrix[0, 3] = x
    return matrix


def shift(x: float, y: float = 0.0) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:2, 3] = x, y
    return matrix


def tree_of(*links: tuple[str, str, np.ndarray, float | None], **options) -> TransformTree:
    """Return a tree of links; those without a time are static."""
    tree = TransformTree(**options)
    for parent, child, matrix, time in links:
        tree.add(parent, child, time or 0.0, matrix, static=time is None)
    return tree


def test_every_pair_of_a_random_tree():
    rng = np.random.default_rng(0)
    tree, world_from = TransformTree(max_age=30.0), {'0': np.eye(4)}
    for child in range(1, 12):
        parent, matrix = str(rng.integers(child)), rigid(rng)
        tree.add(parent, str(child), 7.0, matrix, static=bool(rng.integers(2)))
        world_from[str(child)] = world_from[parent] @ matrix
    for target in world_from:
        for source in world_from:
            expected = np.linalg.inv(world_from[target]) @ world_from[source]
            for time in (7.0, None):
                found = tree.lookup(target, source, time)
                np.testing.assert_allclose(found, expected, atol=1e-6)


def test_interpolation_between_two_times():
    tree = tree_of(('odom', 'base', turn(0.0), 10.0), ('odom', 'base', turn(1.0, 2.0), 12.0))
    np.testing.assert_allclose(tree.lookup('odom', 'base', 10.5), turn(0.25, 0.5), atol=1e-6)
    np.testing.assert_allclose(tree.lookup('odom', 'base', None), turn(1.0, 2.0), atol=1e-6)


def test_every_link_is_interpolated_at_the_time_asked_for():
    """map moves over odom at 1 Hz, odom over base at 10 Hz with a jump that 1 Hz would smooth
    away."""
    tree = TransformTree()
    for k in range(3):
        tree.add('map', 'odom', 10.0 + k, shift(0.1 * k), static=False)
    for k in range(31):
        tree.add('odom', 'base', 9.55 + 0.1 * k, shift(k**2), static=False)
    tree.add('base', 'camera', 0.0, shift(0.0, 0.5), static=True)
    times = np.array([9.5, 10.0, 10.6, 11.45, 12.5])
    poses, valid, rejected = tree.lookup_all('map', 'camera', times, max_gap=1.0)
    assert not rejected and valid.tolist() == [False, True, True, True, False]
    # at 10.0 s the base is half way between its places 4 and 5, at 10.6 between 10 and 11, at
    # 11.45 at its place 19
    np.testing.assert_allclose(
        poses[1:4, 0, 3], [20.5 + 0.0, 110.5 + 0.06, 361 + 0.145], atol=1e-9
    )
    np.testing.assert_allclose(poses[:, 1, 3], 0.5)
    for time, pose in zip(times[1:4], poses[1:4]):
        np.testing.assert_allclose(tree.lookup('map', 'camera', time), pose, atol=1e-12)
    assert tree.span('map', 'camera') == (10.0, 12.0)


def test_gap_of_every_link_is_checked():
    tree = TransformTree()
    for k in range(31):
        tree.add('map', 'odom', 10 + k / 10, shift(0), static=False)
    for time in (10.0, 11.0, 11.2, 13.0):
        tree.add('odom', 'base', time, shift(time), static=False)
    times = np.array([10.0, 10.45, 10.9, 11.0, 11.1, 11.3, 13.0])
    _, valid, _ = tree.lookup_all('map', 'base', times, max_gap=0.6)
    assert valid.tolist() == [True, True, False, True, True, False, True]


def test_two_branches_meet_at_their_common_ancestor():
    tree = tree_of(
        ('odom', 'map', shift(-1.0), 5.0),
        ('odom', 'map', shift(-3.0), 7.0),
        ('odom', 'base', shift(10.0), 5.0),
        ('odom', 'base', shift(20.0), 7.0),
    )
    poses, valid, _ = tree.lookup_all('map', 'base', np.array([5.0, 6.0]), max_gap=2.0)
    assert valid.all() and poses[:, 0, 3].tolist() == [11.0, 17.0]


def test_leading_slash_of_a_lookup_is_ignored():
    tree = tree_of(('map', 'base', shift(2.0), 1.0))
    assert tree.lookup('/map', '/base', 1.0)[0, 3] == 2.0


def test_unknown_time_names_both_frames_and_the_span():
    tree = tree_of(('map', 'odom', turn(0), None), ('odom', 'base', turn(0), 10.0))
    tree.add('odom', 'base', 12.0, turn(0), static=False)
    for time in (9.5, 12.5):
        with pytest.raises(
            ValueError,
            match=rf"'map' and 'base' at {time:.3f}: 'base' in 'odom' is known from 10.000 to "
            '12.000',
        ):
            tree.lookup('map', 'base', time)
    with pytest.raises(ValueError, match="no transforms join 'base' to 'mars'.*base, map, odom"):
        tree.lookup('mars', 'base', 11.0)


def test_live_tree_drops_old_transforms_and_restarts():
    tree = TransformTree(max_age=5.0)
    for time in range(100, 120):
        tree.add('map', 'base', float(time), turn(0, time), static=False)
    with pytest.raises(ValueError, match='known from 114.000 to 119.000'):
        tree.lookup('map', 'base', 113.0)
    tree.add('map', 'base', 3.0, turn(0, 3.0), static=False)
    np.testing.assert_allclose(tree.lookup('map', 'base', None), turn(0, 3.0), atol=1e-6)


@pytest.mark.parametrize('max_age', [5.0, None])
def test_late_transform_is_inserted_and_repeated_is_ignored(max_age):
    tree = TransformTree(max_age=max_age)
    for time, x in ((1.0, 1.0), (3.0, 3.0), (2.5, 9.0), (1.0, 5.0)):
        tree.add('map', 'base', time, shift(x), static=False)
    for time, x in ((1.0, 1.0), (2.5, 9.0), (2.75, 6.0), (3.0, 3.0)):
        assert tree.lookup('map', 'base', time)[0, 3] == pytest.approx(x)


def test_live_frame_has_one_parent_once_the_older_one_is_forgotten():
    tree = tree_of(('map', 'base', shift(1), 1.0), ('odom', 'base', shift(2), 2.0), max_age=30.0)
    for target in ('odom', 'map'):
        with pytest.raises(ValueError, match="'base' has the parents 'map' and 'odom'"):
            tree.lookup(target, 'base', 1.5)
    tree.add('odom', 'base', 31.5, shift(3), static=False)
    assert tree.lookup('odom', 'base', 31.5)[0, 3] == 3
    with pytest.raises(ValueError, match='no transforms join'):
        tree.lookup('map', 'base', 31.5)


@pytest.mark.parametrize('max_age', [5.0, None])
@pytest.mark.parametrize('static_first', [True, False])
def test_static_and_moving_transforms_of_a_frame(max_age, static_first):
    """Equal ones are static; ones that differ contradict each other, in either order."""
    for moving, differ in ((2.0, False), (3.0, True)):
        links = [('base', 'arm', shift(2), None), ('base', 'arm', shift(moving), 1.0)]
        tree = tree_of(*(links if static_first else links[::-1]), max_age=max_age)
        if differ:
            with pytest.raises(ValueError, match="'arm' in 'base' is sent as a static and as a"):
                tree.lookup('base', 'arm', 1.0)
            tree.clear_moving()
        assert tree.lookup('base', 'arm', 9.0)[0, 3] == 2


def test_static_transform_of_a_bag_that_changes_is_named():
    tree = tree_of(('base', 'camera', shift(2), None), ('base', 'camera', shift(3), None))
    poses, _, rejected = tree.lookup_all('base', 'camera', AT, max_gap=1.0)
    assert poses[0, 0, 3] == 3
    assert rejected == [
        "1 transforms of 'camera' are left out, the first: a later static transform, of 0.000000, "
        'differs'
    ]


def test_clear_moving_keeps_static_transforms():
    tree = tree_of(
        ('map', 'base', shift(1), 1.0), ('base', 'camera', shift(2), None), max_age=30.0
    )
    tree.clear_moving()
    assert tree.lookup('base', 'camera', None)[0, 3] == 2
    with pytest.raises(ValueError, match='no transforms join'):
        tree.lookup('map', 'camera', None)


def test_lookup_waits_for_a_transform():
    tree = tree_of(('map', 'base', turn(0), 1.0), max_age=30.0)
    later = threading.Timer(0.1, lambda: tree.add('map', 'base', 2.0, turn(0, 1), static=False))
    later.start()
    np.testing.assert_allclose(tree.lookup('map', 'base', 2.0, wait=10.0), turn(0, 1))
    later.join()
    with pytest.raises(ValueError, match='known from 1.000 to 2.000'):
        tree.lookup('map', 'base', 3.0, wait=0.05)


def test_loop_and_flood_of_frames():
    loop = tree_of(('a', 'b', turn(0), None), ('b', 'a', turn(0), None))
    with pytest.raises(ValueError, match='no transforms join'):
        loop.lookup('a', 'z', 0.0)
    tree = TransformTree()
    for i in range(MAX_FRAMES):
        tree.add('map', f'f{i}', 0.0, turn(0), static=True)
    with pytest.raises(ValueError, match='one more than'):
        tree.add('map', 'one more', 0.0, turn(0), static=True)


AT = np.array([1.0, 1.5])


def test_static_transforms_are_valid_at_all_times():
    tree = tree_of(('base', 'camera', np.eye(4), None))
    with pytest.raises(ValueError, match="join 'camera' to 'map'; .* known: base, camera"):
        tree.lookup_all('map', 'camera', AT, max_gap=1.0)
    poses, valid, _ = tree.lookup_all('base', 'camera', AT, max_gap=1.0)
    assert valid.all() and poses.shape == (2, 4, 4)
    assert tree.span('base', 'camera') == (-np.inf, np.inf)


def test_a_hole_of_one_link_is_rejected_unless_it_never_moved():
    moved = tree_of(('map', 'base', shift(0), 1.0), ('map', 'base', shift(1), 6.0))
    with pytest.raises(ValueError, match='sent at 1.000 and then at 6.000, a gap over 2 s'):
        moved.lookup('map', 'base', 3.0, max_gap=2.0)
    np.testing.assert_allclose(moved.lookup('map', 'base', 3.0, max_gap=3.0), shift(0.4))
    fixed = tree_of(('map', 'base', shift(1), 1.0), ('map', 'base', shift(1), 6.0))
    np.testing.assert_allclose(fixed.lookup('map', 'base', 3.0, max_gap=2.0), shift(1))
    _, valid, _ = fixed.lookup_all('map', 'base', AT, max_gap=0.1)
    assert valid.all()


def test_two_parents_in_a_bag_matter_only_on_the_path():
    tree = tree_of(
        ('map', 'camera', shift(1), 1.0),
        ('map', 'camera', shift(2), 2.0),
        ('table', 'cup', np.eye(4), 1.0),
        ('hand', 'cup', np.eye(4), 2.0),
    )
    tree.reject('map', 'cup', 'no quaternion')
    _, valid, rejected = tree.lookup_all('map', 'camera', AT, max_gap=1.0)
    assert valid.all() and not rejected
    with pytest.raises(ValueError, match="'cup' has the parents 'hand' and 'map' and 'table'"):
        tree.lookup_all('map', 'cup', AT, max_gap=1.0)
    tree.reject('map', 'lamp', 'no quaternion')
    with pytest.raises(ValueError, match="'lamp' has no transform that can be used: no quat"):
        tree.lookup_all('map', 'lamp', AT, max_gap=1.0)


def test_transforms_of_a_bag_after_a_clock_jump_are_rejected():
    tree = TransformTree()
    for time in (1.0, 3.0, 2.5, 2.0, 1.0, 0.5, 4.0):
        tree.add('map', 'camera', time, shift(time), static=False)
    times = np.array([1.0, 2.0, 2.5, 3.0, 3.5])
    poses, valid, rejected = tree.lookup_all('map', 'camera', times, max_gap=1.0)
    assert valid.tolist() == [True] * 4 + [False]
    assert poses[:4, 0, 3].tolist() == [1.0, 2.0, 2.5, 3.0]
    assert rejected == [
        "3 transforms of 'camera' are left out, the first: time goes backwards, 1.000000 after "
        '3.000000'
    ]


def test_spans_that_do_not_overlap_are_named():
    tree = TransformTree()
    for time in (1.0, 2.0):
        tree.add('map', 'odom', time, np.eye(4), static=False)
        tree.add('odom', 'camera', time + 5, np.eye(4), static=False)
    with pytest.raises(ValueError, match="'camera' from 6.0* to 7.0*, 'odom' from 1.0* to 2.0"):
        tree.lookup_all('map', 'camera', AT, max_gap=1.0)
