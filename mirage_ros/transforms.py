"""Subscriptions that feed the tree of transforms: /tf and /tf_static, odometry or poses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from geometry_msgs.msg import PoseStamped, PoseWithCovarianceStamped
from jaxtyping import Float64
from nav_msgs.msg import Odometry
import numpy as np
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import JumpThreshold
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.subscription import Subscription
from tf2_msgs.msg import TFMessage

from mirage_model.messages.poses import frame_name, read_pose, read_transform
from mirage_model.messages.transform_tree import SET_BACK, TransformTree
from mirage_ros.parameters import NodeParameters

LATCHED = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)
BACK = JumpThreshold(min_forward=None, min_backward=Duration(nanoseconds=-1))


class ReceivedTransforms(TransformTree):
    """A live tree of the transforms in messages.

    Moving transforms are deleted when the stamps of a frame are set back, as those of a bag that
    loops.
    """

    def __init__(
        self,
        parameters: NodeParameters,
        *,
        on_bad: Callable[[str, ValueError], None],
        warn: Callable[[str], None],
    ) -> None:
        """Create an empty tree.

        Args:
            on_bad: Gets the topic and the error of every rejected message.
            warn: Gets a sentence when stamps were set back.
        """
        super().__init__(max_age=parameters.tf.history)
        self._base_frame = parameters.frames.base
        self._on_bad = on_bad
        self._warn = warn
        self._newest: dict[str, float] = {}
        # frames of odometry or poses, which TF may join to another parent: both would contradict
        # each other
        self._posed: set[str] = set()

    def add_transforms(self, topic: str, message: TFMessage, *, static: bool) -> None:
        """Add the transforms of a message, but for those of a frame that poses give."""
        for transform in message.transforms:
            if frame_name(transform.child_frame_id) in self._posed:
                continue
            try:
                self._add(*read_transform(transform), static=static)
            except ValueError as error:
                self._on_bad(topic, error)

    def add_pose(
        self, topic: str, message: Odometry | PoseStamped | PoseWithCovarianceStamped
    ) -> None:
        """Add the pose of a frame."""
        try:
            transform = read_pose(message, base_frame=self._base_frame, name=topic)
            if transform[1] not in self._posed:
                self._posed.add(transform[1])
                self.remove(transform[1])
            self._add(*transform, static=False)
        except ValueError as error:
            self._on_bad(topic, error)

    def _add(
        self,
        parent: str,
        child: str,
        time: float,
        parent_from_child: Float64[np.ndarray, '4 4'],
        *,
        static: bool,
    ) -> None:
        """Add a transform, after the moving ones were deleted if its stamp is set back."""
        newest = self._newest.get(child, time)
        if not static and time < newest - SET_BACK:
            self._warn(
                f"transforms: the stamp {time:.3f} of '{child}' comes after {newest:.3f}, the "
                'clock of the stamps was set back (does a bag loop?): older ones are deleted'
            )
            self.clear_moving()
            self._newest.clear()
        self.add(parent, child, time, parent_from_child, static=static)
        if not static:
            self._newest[child] = max(time, self._newest.get(child, time))


class TransformListener(ReceivedTransforms):
    """A tree of the transforms that a node receives, as its parameters choose the topics.

    Moving transforms are deleted when the node's clock is set back too, as simulated time is.
    """

    def __init__(
        self,
        node: Node,
        parameters: NodeParameters,
        *,
        on_bad: Callable[[str, ValueError], None],
        warn: Callable[[str], None],
    ) -> None:
        """Subscribe to the topics; ``on_bad`` and ``warn`` are those of `ReceivedTransforms`."""
        super().__init__(parameters, on_bad=on_bad, warn=warn)
        self.needed: dict[str, Subscription] = {}
        """Subscription to the pose of the robot, by the name of the input; empty without pose
        source."""
        self._jump_handle = node.get_clock().create_jump_callback(
            BACK, post_callback=lambda jump: self.clear_moving()
        )
        source = parameters.observe.pose_source
        tf_qos = QoSProfile(
            depth=parameters.qos.tf.depth,
            reliability=ReliabilityPolicy[parameters.qos.tf.reliability.upper()],
        )
        pose_qos = QoSProfile(
            depth=parameters.qos.pose.depth,
            reliability=ReliabilityPolicy[parameters.qos.pose.reliability.upper()],
        )
        group = MutuallyExclusiveCallbackGroup()  # callbacks of other groups wait for transforms

        def subscribe(
            kind: type, topic: str, callback: Callable[[Any], None], qos: QoSProfile
        ) -> None:
            subscription = node.create_subscription(
                kind, topic, callback, qos, callback_group=group
            )
            if topic.removeprefix('/') == source.removesuffix('_with_covariance'):
                self.needed[source] = subscription

        if parameters.tf.enabled:
            subscribe(TFMessage, '/tf', self._on_tf, tf_qos)
            subscribe(TFMessage, '/tf_static', self._on_tf_static, LATCHED)
        if source == 'odometry':
            subscribe(Odometry, 'odometry', self._on_odometry, pose_qos)
        if source == 'pose':
            subscribe(PoseStamped, 'pose', self._on_pose, pose_qos)
        if source == 'pose_with_covariance':
            subscribe(PoseWithCovarianceStamped, 'pose', self._on_pose, pose_qos)

    def _on_tf(self, message: TFMessage) -> None:
        self.add_transforms('tf', message, static=False)

    def _on_tf_static(self, message: TFMessage) -> None:
        self.add_transforms('tf_static', message, static=True)

    def _on_odometry(self, message: Odometry) -> None:
        self.add_pose('odometry', message)

    def _on_pose(self, message: PoseStamped | PoseWithCovarianceStamped) -> None:
        self.add_pose('pose', message)
