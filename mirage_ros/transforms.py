"""Subscriptions that feed the tree of transforms: /tf and /tf_static, odometry or poses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from geometry_msgs.msg import PoseStamped
from nav_msgs.msg import Odometry
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import JumpThreshold
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from tf2_msgs.msg import TFMessage

from mirage_model.messages.poses import frame_name, read_pose, read_transform
from mirage_model.messages.transform_tree import TransformTree
from mirage_ros.parameters import NodeParameters

BACK = JumpThreshold(min_forward=None, min_backward=Duration(nanoseconds=-1))
LIVE = QoSProfile(depth=100)
LATCHED = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)


class TransformListener(TransformTree):
    """A tree of the transforms that a node receives, as its parameters choose the topics.

    Moving transforms are deleted when the node's clock is set back, as simulated time is.
    """

    def __init__(
        self, node: Node, parameters: NodeParameters, on_bad: Callable[[str, ValueError], None]
    ) -> None:
        """Subscribe to the topics; ``on_bad`` gets the topic and the error of every rejected
        message."""
        super().__init__(max_age=parameters.tf.history)
        self._base_frame = parameters.frames.base
        self._on_bad = on_bad
        # frames of odometry or poses, which TF may join to another parent: each would replace the
        # other
        self._posed: set[str] = set()
        self._jump_handle = node.get_clock().create_jump_callback(
            BACK, post_callback=lambda jump: self.clear_moving()
        )
        group = MutuallyExclusiveCallbackGroup()  # callbacks of other groups wait for transforms

        def subscribe(
            kind: type, topic: str, callback: Callable[[Any], None], qos: QoSProfile
        ) -> None:
            node.create_subscription(kind, topic, callback, qos, callback_group=group)

        if parameters.tf.enabled:
            subscribe(TFMessage, '/tf', self._on_tf, LIVE)
            subscribe(TFMessage, '/tf_static', self._on_tf_static, LATCHED)
        if parameters.observe.pose_source == 'odometry':
            subscribe(Odometry, 'odometry', self._on_odometry, LIVE)
        if parameters.observe.pose_source == 'pose':
            subscribe(PoseStamped, 'pose', self._on_pose, LIVE)

    def _on_tf(self, message: TFMessage) -> None:
        self._add_transforms('tf', message, static=False)

    def _on_tf_static(self, message: TFMessage) -> None:
        self._add_transforms('tf_static', message, static=True)

    def _on_odometry(self, message: Odometry) -> None:
        self._add_pose('odometry', message)

    def _on_pose(self, message: PoseStamped) -> None:
        self._add_pose('pose', message)

    def _add_transforms(self, topic: str, message: TFMessage, *, static: bool) -> None:
        for transform in message.transforms:
            if frame_name(transform.child_frame_id) in self._posed:
                continue
            try:
                self.add(*read_transform(transform), static=static)
            except ValueError as error:
                self._on_bad(topic, error)

    def _add_pose(self, topic: str, message: Odometry | PoseStamped) -> None:
        try:
            transform = read_pose(message, base_frame=self._base_frame, name=topic)
            self._posed.add(transform[1])
            self.add(*transform, static=False)
        except ValueError as error:
            self._on_bad(topic, error)
