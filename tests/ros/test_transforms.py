"""The tree of frames against chains that are multiplied out by hand."""

from __future__ import annotations

from copy import deepcopy
import math
import threading
from types import SimpleNamespace

from geometry_msgs.msg import PoseStamped
import numpy as np
import pytest
from rclpy.clock import ClockType
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.time import Time
from scipy.spatial.transform import Rotation
from tf2_msgs.msg import TFMessage

from mirage_ros import transforms
from mirage_ros.convert import pose_from_matrix, seconds, stamp
from mirage_ros.parameters import NodeParameters, from_values
from mirage_ros.transforms import MAX_FRAMES, Tree, listen, transform_message


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


def tree_of(*edges: tuple[str, str, np.ndarray, float | None]) -> Tree:
    tree = Tree()
    for parent, child, matrix, time in edges:
        tree.add(transform_message(parent, child, matrix, time or 0.0), static=time is None)
    return tree


def test_every_pair_of_a_random_tree_is_the_product_along_its_way():
    rng = np.random.default_rng(0)
    tree, world_from = Tree(), {'0': np.eye(4)}
    for child in range(1, 12):
        parent, matrix = str(rng.integers(child)), rigid(rng)
        static = bool(rng.integers(2))
        tree.add(transform_message(parent, str(child), matrix, 7.0), static=static)
        world_from[str(child)] = world_from[parent] @ matrix
    for target in world_from:
        for source in world_from:
            expected = np.linalg.inv(world_from[target]) @ world_from[source]
            for time in (7.0, None):
                found = tree.lookup(target, source, time)
                np.testing.assert_allclose(found, expected, atol=1e-6)


def test_between_two_times_it_turns_and_moves_evenly():
    tree = tree_of(('odom', 'base', turn(0.0), 10.0), ('odom', 'base', turn(1.0, 2.0), 12.0))
    np.testing.assert_allclose(tree.lookup('odom', 'base', 10.5), turn(0.25, 0.5), atol=1e-6)
    np.testing.assert_allclose(tree.lookup('odom', 'base', None), turn(1.0, 2.0), atol=1e-6)


def test_no_transform_names_both_frames_and_the_times():
    tree = tree_of(('map', 'odom', turn(0), None), ('odom', 'base', turn(0), 10.0))
    tree.add(transform_message('odom', 'base', turn(0), 12.0), static=False)
    for time in (9.5, 12.5):
        with pytest.raises(
            ValueError,
            match=rf"'map' and 'base' at {time:.3f}: 'base' in 'odom' is known from 10.000 to 12.000",
        ):
            tree.lookup('map', 'base', time)
    with pytest.raises(ValueError, match="no transforms join 'base' to 'mars'.*base, map, odom"):
        tree.lookup('mars', 'base', 11.0)


def test_what_is_old_is_forgotten_and_time_may_begin_again():
    tree = Tree(keep=5.0)
    for time in range(100, 120):
        tree.add(transform_message('map', 'base', turn(0, time), float(time)), static=False)
    with pytest.raises(ValueError, match='known from 114.000 to 119.000'):
        tree.lookup('map', 'base', 113.0)
    tree.add(transform_message('map', 'base', turn(0, -1.0), 118.5), static=False)  # late
    np.testing.assert_allclose(tree.lookup('map', 'base', 118.5), turn(0, 118.5), atol=1e-6)
    tree.add(transform_message('map', 'base', turn(0, 3.0), 3.0), static=False)
    np.testing.assert_allclose(tree.lookup('map', 'base', None), turn(0, 3.0), atol=1e-6)


def test_a_lookup_waits_for_what_comes_and_not_for_long():
    tree = tree_of(('map', 'base', turn(0), 1.0))
    later = threading.Timer(
        0.1, lambda: tree.add(transform_message('map', 'base', turn(0, 1), 2.0), static=False)
    )
    later.start()
    np.testing.assert_allclose(tree.lookup('map', 'base', 2.0, wait=10.0), turn(0, 1))
    later.join()
    with pytest.raises(ValueError, match='known from 1.000 to 2.000'):
        tree.lookup('map', 'base', 3.0, wait=0.05)


def test_transforms_that_are_none_are_refused():
    tree = Tree()
    bad = transform_message('map', 'base', turn(0), 0.0)
    for change in (
        lambda t: setattr(t.transform.translation, 'x', math.nan),
        lambda t: setattr(t.transform.rotation, 'w', 0.0),
        lambda t: setattr(t, 'child_frame_id', 'map'),
        lambda t: setattr(t.header, 'frame_id', ''),
    ):
        change(bad)
        with pytest.raises(ValueError):
            tree.add(bad, static=False)
    with pytest.raises(ValueError, match='no transforms'):
        tree.lookup('map', 'base', None)


def test_a_loop_and_a_flood_of_frames_are_survived():
    loop = tree_of(('a', 'b', turn(0), None), ('b', 'a', turn(0), None))
    with pytest.raises(ValueError, match='no transforms join'):
        loop.lookup('a', 'z', 0.0)
    tree = Tree()
    for i in range(MAX_FRAMES):
        tree.add(transform_message('map', f'f{i}', turn(0), 0.0), static=True)
    with pytest.raises(ValueError, match='one more than'):
        tree.add(transform_message('map', 'one more', turn(0), 0.0), static=True)


class TransformException(Exception):
    """As that of tf2_ros."""


class Buffer:
    """As that of tf2_ros, of frames that have one parent for good: the time is in nanoseconds, the future is not known."""

    def __init__(self, cache_time):
        self.cache_time = cache_time
        self._kept: dict[tuple[str, bool], list] = {}

    def set_transform(self, transform, authority: str) -> None:
        self._keep(transform, static=False)

    def set_transform_static(self, transform, authority: str) -> None:
        self._keep(transform, static=True)

    def _keep(self, transform, *, static: bool) -> None:
        self._kept.setdefault((transform.child_frame_id, static), []).append(deepcopy(transform))

    def clear(self) -> None:
        self._kept = {key: kept for key, kept in self._kept.items() if key[1]}

    def lookup_transform(self, target_frame: str, source_frame: str, time: Time, timeout=None):
        tree = Tree()
        newest = None
        for (_, static), kept in self._kept.items():
            for transform in kept:
                tree.add(transform, static=static)
            if not static:
                newest = Time.from_msg(kept[-1].header.stamp).nanoseconds
        if newest is not None and time.nanoseconds > newest:
            raise TransformException('would require extrapolation into the future')
        try:
            at = seconds(time.to_msg()) if time.nanoseconds else None
            matrix = tree.lookup(target_frame, source_frame, at)
        except ValueError as error:
            raise TransformException(str(error)) from None
        return transform_message(target_frame, source_frame, matrix, 0.0)


@pytest.fixture(params=['tree', 'tf2'])
def known_to(request, monkeypatch):
    """Both ways to know frames; tf2_ros by what is documented of its buffer, as it is not there."""
    if request.param == 'tf2':
        there = SimpleNamespace(Buffer=Buffer, TransformException=TransformException)
        monkeypatch.setattr(transforms, 'tf2_ros', there)
    return lambda *arguments: listen(
        *arguments, on_bad=lambda topic, error: pytest.fail(f'{topic}: {error}')
    )


def test_a_transform_is_known_at_its_own_time_to_the_nanosecond(ros, known_to):
    node = Node('listens')
    known = known_to(node, NodeParameters())
    for nanosec in (123_456_789, 499_999_999, 987_654_321):
        message = transform_message('map', 'base', turn(0.0, 3.0), 0.0)
        message.header.stamp.sec, message.header.stamp.nanosec = 1_700_000_000, nanosec
        known.add(message, static=False)
        found = known.lookup('map', 'base', seconds(message.header.stamp))
        np.testing.assert_allclose(found, turn(0.0, 3.0), atol=1e-6)
    np.testing.assert_allclose(known.lookup('map', 'base', None), turn(0.0, 3.0), atol=1e-6)
    message.transform.rotation.w = math.nan
    with pytest.raises(ValueError, match="transform of 'base' in 'map'"):
        known.add(message, static=False)
    with pytest.raises(ValueError, match="'map' and 'base' at 1700000002.000"):
        known.lookup('map', 'base', 1_700_000_002.0)
    node.destroy_node()


def test_a_pose_by_topic_goes_before_the_parent_that_tf_gives_the_same_frame(ros, known_to):
    """A localiser says where base_link is in the map, while TF has it below odom."""
    node = Node('listens')
    known = known_to(node, from_values({'observe.pose_source': 'pose'}))
    hear = {one.topic_name: one.callback for one in node.subscriptions}
    for time in (10.0, 11.0):
        tf = TFMessage(
            transforms=[
                transform_message('map', 'odom', turn(0.0, 5.0), time),
                transform_message('odom', 'base_link', turn(0.0, 1.0), time),
            ]
        )
        hear['/tf'](tf)
        pose = PoseStamped(pose=pose_from_matrix(turn(0.0, time)))
        pose.header.frame_id, pose.header.stamp = 'map', stamp(time)
        hear['/pose'](pose)
        hear['/tf'](tf)
    found = known.lookup('map', 'base_link', 10.5)
    np.testing.assert_allclose(found, turn(0.0, 10.5), atol=1e-6)
    np.testing.assert_allclose(known.lookup('map', 'odom', 10.5), turn(0.0, 5.0), atol=1e-6)
    node.destroy_node()


def test_simulated_time_that_is_set_back_begins_anew(ros, known_to):
    """By less than transforms are kept: those of the run before must not answer."""
    node = Node('listens', parameter_overrides=[Parameter('use_sim_time', value=True)])
    known = known_to(node, NodeParameters())
    known.add(transform_message('base_link', 'camera', turn(0.0, 2.0), 0.0), static=True)
    for time, x in ((100.0, 7.0), (95.0, 1.0)):
        node.get_clock().set_ros_time_override(Time(seconds=time, clock_type=ClockType.ROS_TIME))
        known.add(transform_message('map', 'base_link', turn(0.0, x), time), static=False)
        at = known.lookup('map', 'camera', time)
        np.testing.assert_allclose(at, turn(0.0, x) @ turn(0.0, 2.0), atol=1e-9)
    with pytest.raises(
        ValueError, match="'map' and 'camera' at 100.000|known from 95.000 to 95.000"
    ):
        known.lookup('map', 'camera', 100.0)
    node.destroy_node()
