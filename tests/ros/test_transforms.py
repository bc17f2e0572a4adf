"""Messages of transforms, odometry and poses in the node's tree."""

from __future__ import annotations

import math

from geometry_msgs.msg import PoseStamped
from nav_msgs.msg import Odometry
import numpy as np
import pytest
from rclpy.clock import ClockType
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import ReliabilityPolicy
from rclpy.time import Time
from scipy.spatial.transform import Rotation
from tf2_msgs.msg import TFMessage

from mirage_model.messages.poses import seconds
from mirage_ros.convert import pose_from_matrix, stamp, transform_message
from mirage_ros.declaration import from_values
from mirage_ros.parameters import NodeParameters
from mirage_ros.transforms import TransformListener


def turn(angle: float, x: float = 0.0) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler('z', angle).as_matrix()
    matrix[0, 3] = x
    return matrix


class Listener:
    """A listener, its callbacks by topic, and the messages that it rejected."""

    def __init__(self, values):
        overrides = [Parameter('use_sim_time', value=True)]
        self.node = Node('listens', parameter_overrides=overrides)
        self.rejected: list[str] = []
        self.warnings: list[str] = []
        self.tree = TransformListener(
            self.node,
            from_values(NodeParameters, values),
            on_bad=lambda topic, error: self.rejected.append(f'{topic}: {error}'),
            warn=self.warnings.append,
        )
        self._callbacks = {s.topic_name: s.callback for s in self.node.subscriptions}

    def receive(self, topic: str, message) -> None:
        self._callbacks[topic](message)

    def transform(self, parent: str, child: str, x: float, time: float, *, static=False) -> None:
        sent = transform_message(parent, child, turn(0.0, x), time)
        self.receive('/tf_static' if static else '/tf', TFMessage(transforms=[sent]))


@pytest.fixture
def listen(ros):
    listeners = []

    def start(**values) -> Listener:
        named = {name.replace('__', '.'): value for name, value in values.items()}
        listeners.append(Listener(named))
        return listeners[-1]

    yield start
    for listener in listeners:
        listener.node.destroy_node()


def test_transform_at_its_stamp_to_the_nanosecond(listen):
    listener = listen()
    for nanosec in (123_456_789, 499_999_999, 987_654_321):
        message = transform_message('map', 'base', turn(0.0, 3.0), 0.0)
        message.header.stamp.sec, message.header.stamp.nanosec = 1_700_000_000, nanosec
        listener.receive('/tf', TFMessage(transforms=[message]))
        pose = listener.tree.lookup('map', 'base', seconds(message.header.stamp))
        np.testing.assert_allclose(pose, turn(0.0, 3.0), atol=1e-6)
    assert not listener.rejected
    with pytest.raises(ValueError, match="'map' and 'base' at 1700000002.000"):
        listener.tree.lookup('map', 'base', 1_700_000_002.0)


def test_unusable_transforms_are_rejected(listen):
    listener = listen()
    message = transform_message('map', 'base', turn(0), 0.0)
    for change in (
        lambda t: setattr(t.transform.translation, 'x', math.nan),
        lambda t: setattr(t.transform.rotation, 'w', 0.0),
        lambda t: setattr(t, 'child_frame_id', 'map'),
        lambda t: setattr(t.header, 'frame_id', ''),
    ):
        change(message)
        listener.receive('/tf', TFMessage(transforms=[message]))
    assert len(listener.rejected) == 4
    assert listener.rejected[0].startswith("tf: transform of 'base' in 'map': position")
    with pytest.raises(ValueError, match='no transforms'):
        listener.tree.lookup('map', 'base', None)


def test_pose_by_topic_replaces_the_parent_by_tf(listen):
    """A localiser publishes base_link in the map, while TF has it below odom."""
    listener = listen(observe__pose_source='pose')
    for time in (10.0, 11.0):
        for _ in range(2):
            listener.transform('map', 'odom', 5.0, time)
            listener.transform('odom', 'base_link', 1.0, time)
            listener.transform('odom', 'base_link', 1.0, time, static=True)
            pose = PoseStamped(pose=pose_from_matrix(turn(0.0, time)))
            pose.header.frame_id, pose.header.stamp = 'map', stamp(time)
            listener.receive('/pose', pose)
    pose = listener.tree.lookup('map', 'base_link', 10.5)
    np.testing.assert_allclose(pose, turn(0.0, 10.5), atol=1e-6)
    odom = listener.tree.lookup('map', 'odom', 10.5)
    np.testing.assert_allclose(odom, turn(0.0, 5.0), atol=1e-6)


def test_odometry_without_a_child_frame_is_of_the_base(listen):
    listener = listen(observe__pose_source='odometry', frames__base='base')
    message = Odometry()
    message.header.frame_id = '/odom'
    message.pose.pose.orientation.w = 1.0
    message.pose.pose.position.x = 4.0
    listener.receive('/odometry', message)
    assert listener.tree.lookup('odom', 'base', None)[0, 3] == 4.0
    message.pose.pose.position.x = math.nan
    listener.receive('/odometry', message)
    assert 'odometry: odometry: position' in listener.rejected[0]


def test_simulated_time_set_back_deletes_moving_transforms(listen):
    """Time is set back by less than the tree keeps; transforms of the run before must not
    answer."""
    listener = listen()
    listener.transform('base_link', 'camera', 2.0, 0.0, static=True)
    for time, x in ((100.0, 7.0), (95.0, 1.0)):
        clock = listener.node.get_clock()
        clock.set_ros_time_override(Time(seconds=time, clock_type=ClockType.ROS_TIME))
        listener.transform('map', 'base_link', x, time)
        at = listener.tree.lookup('map', 'camera', time)
        np.testing.assert_allclose(at, turn(0.0, x) @ turn(0.0, 2.0), atol=1e-9)
    with pytest.raises(ValueError, match='known from 95.000 to 95.000'):
        listener.tree.lookup('map', 'camera', 100.0)


def test_stamps_set_back_delete_moving_transforms(listen):
    """A bag that loops deletes them, a transform that is a little late does not."""
    listener = listen()
    listener.transform('base_link', 'camera', 2.0, 0.0, static=True)
    for time in (100.0, 110.0, 109.5, 100.2):
        listener.transform('map', 'base_link', time, time)
    assert len(listener.warnings) == 1
    assert "the stamp 100.200 of 'base_link' comes after 110.000" in listener.warnings[0]
    at = listener.tree.lookup('map', 'camera', 100.2)
    np.testing.assert_allclose(at, turn(0.0, 102.2), atol=1e-9)
    with pytest.raises(ValueError, match='known from 100.200 to 100.200'):
        listener.tree.lookup('map', 'camera', 105.0)


def test_reliability_of_tf_is_a_parameter(listen):
    """That of tf2_ros by default; static transforms are latched, which needs a reliable one."""
    for chosen in ('reliable', 'best_effort'):
        listener = listen(observe__pose_source='tf', qos__tf__reliability=chosen)
        (needed,) = listener.tree.needed.values()
        assert needed.topic_name == '/tf' and needed.qos_profile.reliability.short_key == chosen
        (static,) = (s for s in listener.node.subscriptions if s.topic_name == '/tf_static')
        assert static.qos_profile.reliability == ReliabilityPolicy.RELIABLE
    (default,) = listen(observe__pose_source='tf').tree.needed.values()
    assert default.qos_profile.reliability == ReliabilityPolicy.RELIABLE


def test_pose_of_a_frame_takes_the_place_of_earlier_transforms(listen):
    listener = listen(observe__pose_source='pose')
    listener.transform('odom', 'base_link', 1.0, 10.0)
    pose = PoseStamped(pose=pose_from_matrix(turn(0.0, 4.0)))
    pose.header.frame_id, pose.header.stamp = 'map', stamp(10.0)
    listener.receive('/pose', pose)
    np.testing.assert_allclose(
        listener.tree.lookup('map', 'base_link', 10.0), turn(0.0, 4.0), atol=1e-6
    )


@pytest.mark.parametrize('source', ['odometry', 'pose', 'pose_with_covariance'])
def test_poses_are_heard_from_any_publisher(listen, source):
    for chosen, expected in (
        ({}, ReliabilityPolicy.BEST_EFFORT),
        ({'qos__pose__reliability': 'reliable'}, ReliabilityPolicy.RELIABLE),
    ):
        listener = listen(observe__pose_source=source, **chosen)
        (needed,) = listener.tree.needed.values()
        assert needed.qos_profile.reliability == expected
