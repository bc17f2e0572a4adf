"""Where frames are: from /tf and /tf_static, from odometry, or from poses. tf2_ros where the system has it.

A transform that is not known at the time that is asked for raises ValueError with both frames and the times that
are known; nothing is ever extrapolated.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
import threading
import time as clock
from typing import Protocol, runtime_checkable

from geometry_msgs.msg import PoseStamped, TransformStamped
from jaxtyping import Float64
from nav_msgs.msg import Odometry
import numpy as np
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock, JumpThreshold
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.time import Time
from std_msgs.msg import Header
from tf2_msgs.msg import TFMessage

from mirage_model.camera import resample_trajectory
from mirage_ros.convert import (
    matrix_from_pose,
    matrix_from_transform,
    pose_from_matrix,
    seconds,
    stamp,
)
from mirage_ros.parameters import NodeParameters

try:
    import tf2_ros
except ImportError:
    tf2_ros = None

MAX_FRAMES = 4096
"""Frames of a tree; beyond them new ones are refused."""
BACK = JumpThreshold(min_forward=None, min_backward=Duration(nanoseconds=-1))
LIVE = QoSProfile(depth=100)
LATCHED = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)


@runtime_checkable
class Transforms(Protocol):
    def add(self, transform: TransformStamped, *, static: bool) -> None:
        """Raise ValueError for a transform that is none."""
        ...

    def lookup(
        self, target: str, source: str, time: float | None, *, wait: float = 0.0
    ) -> Float64[np.ndarray, '4 4']:
        """target_from_source at a time, None being the newest that is known; ``wait`` seconds for it to come."""
        ...


@dataclass
class _Edge:
    parent: str
    static: bool
    times: deque[float] = field(default_factory=deque)
    parent_from_child: deque[np.ndarray] = field(default_factory=deque)

    def insert(self, time: float, matrix: np.ndarray, *, keep: float) -> None:
        if self.static:
            self.times.clear()
            self.parent_from_child.clear()
        elif self.times and time <= self.times[-1]:
            if self.times[-1] - time <= keep:
                return  # sent twice, or late: what is known stays
            self.times.clear()  # time was set back: a bag or a simulation began again
            self.parent_from_child.clear()
        self.times.append(time)
        self.parent_from_child.append(matrix)
        while not self.static and time - self.times[0] > keep:
            self.times.popleft()
            self.parent_from_child.popleft()

    def at(self, time: float | None) -> np.ndarray | None:
        """None where it is not known; ``time`` None will do for a static one."""
        if self.static:
            return self.parent_from_child[0]
        assert time is not None
        if not self.times[0] <= time <= self.times[-1]:
            return None
        after = bisect_left(self.times, time)
        if self.times[after] == time:
            return self.parent_from_child[after]
        around = slice(after - 1, after + 1)
        return resample_trajectory(
            np.stack(list(self.parent_from_child)[around]),
            np.array(list(self.times)[around]),
            np.array([time]),
        )[0]


class Tree:
    """Timed transforms, each kept for ``keep`` seconds. Safe to use from several threads."""

    def __init__(self, *, keep: float = 30.0, clock: Clock | None = None):
        """``clock``: all that moves is forgotten when it is set back, as simulated time is."""
        self._keep = keep
        self._edges: dict[str, _Edge] = {}
        self._changed = threading.Condition()
        if clock is not None:
            self._jumps = clock.create_jump_callback(BACK, post_callback=self._set_back)

    def add(self, transform: TransformStamped, *, static: bool) -> None:
        parent, child, matrix = checked(transform)
        with self._changed:
            edge = self._edges.get(child)
            if edge is None and len(self._edges) >= MAX_FRAMES:
                raise ValueError(f"frame '{child}' would be one more than {MAX_FRAMES}")
            if edge is None or edge.parent != parent or edge.static != static:
                edge = self._edges[child] = _Edge(parent, static)
            edge.insert(seconds(transform.header.stamp), matrix, keep=self._keep)
            self._changed.notify_all()

    def _set_back(self, jump: object) -> None:
        with self._changed:
            self._edges = {child: edge for child, edge in self._edges.items() if edge.static}

    def lookup(
        self, target: str, source: str, time: float | None, *, wait: float = 0.0
    ) -> Float64[np.ndarray, '4 4']:
        until = clock.monotonic() + wait
        with self._changed:
            while True:
                try:
                    return self._lookup(target, source, time)
                except ValueError:
                    left = until - clock.monotonic()
                    if left <= 0:
                        raise
                    self._changed.wait(left)

    def _lookup(self, target: str, source: str, time: float | None) -> np.ndarray:
        up, down = self._chain(source), self._chain(target)
        ancestor = next((frame for frame in up if frame in down), None)
        if ancestor is None:
            known = sorted({*self._edges, *(edge.parent for edge in self._edges.values())})
            raise ValueError(
                f"no transforms join '{source}' to '{target}'; the frames that are known: {', '.join(known) or 'none'}"
            )
        moved = [
            frame
            for frame in up[: up.index(ancestor)] + down[: down.index(ancestor)]
            if not self._edges[frame].static
        ]
        if time is None and moved:
            time = min(self._edges[frame].times[-1] for frame in moved)
        return np.linalg.inv(self._matrix(target, ancestor, time, source)) @ self._matrix(
            source, ancestor, time, target
        )

    def _chain(self, frame: str) -> list[str]:
        """From a frame to its root."""
        chain = [frame]
        while chain[-1] in self._edges and len(chain) <= len(self._edges):
            chain.append(self._edges[chain[-1]].parent)
        return chain

    def _matrix(self, frame: str, ancestor: str, time: float | None, asked: str) -> np.ndarray:
        """ancestor_from_frame."""
        matrix = np.eye(4)
        while frame != ancestor:
            edge = self._edges[frame]
            step = edge.at(time)
            if step is None:
                raise ValueError(
                    f"no transform between '{asked}' and '{frame}' at {time:.3f}: '{frame}' in '{edge.parent}' is known "
                    f'from {edge.times[0]:.3f} to {edge.times[-1]:.3f}'
                )
            matrix, frame = step @ matrix, edge.parent
        return matrix


class Tf2:
    """The buffer of tf2_ros behind the same two verbs."""

    def __init__(self, *, keep: float, clock: Clock):
        """As `Tree`: the buffer's own clock is not the node's."""
        self._buffer = tf2_ros.Buffer(cache_time=Duration(seconds=keep))
        self._jumps = clock.create_jump_callback(BACK, post_callback=self._set_back)

    def add(self, transform: TransformStamped, *, static: bool) -> None:
        checked(transform)
        # to the microsecond, as times that are asked for: a nanosecond later would be the future
        header = Header(
            frame_id=transform.header.frame_id, stamp=stamp(seconds(transform.header.stamp))
        )
        stamped = TransformStamped(
            header=header,
            child_frame_id=transform.child_frame_id,
            transform=transform.transform,
        )
        put = self._buffer.set_transform_static if static else self._buffer.set_transform
        put(stamped, 'mirage')

    def _set_back(self, jump: object) -> None:
        self._buffer.clear()  # static ones stay

    def lookup(
        self, target: str, source: str, time: float | None, *, wait: float = 0.0
    ) -> Float64[np.ndarray, '4 4']:
        at = Time() if time is None else Time.from_msg(stamp(time))
        try:
            found = self._buffer.lookup_transform(target, source, at, Duration(seconds=wait))
        except tf2_ros.TransformException as error:
            when = 'the newest time' if time is None else f'{time:.3f}'
            raise ValueError(
                f"no transform between '{target}' and '{source}' at {when}: {error}"
            ) from None
        return matrix_from_transform(found.transform, name=f"transform of '{source}'")


def checked(transform: TransformStamped) -> tuple[str, str, Float64[np.ndarray, '4 4']]:
    """Parent, child and parent_from_child. Raise ValueError for a transform that is none."""
    parent = transform.header.frame_id.removeprefix('/')
    child = transform.child_frame_id.removeprefix('/')
    if not parent or not child or parent == child:
        raise ValueError(f"a transform from '{child}' to '{parent}'")
    name = f"transform of '{child}' in '{parent}'"
    return parent, child, matrix_from_transform(transform.transform, name=name)


def listen(
    node: Node, parameters: NodeParameters, on_bad: Callable[[str, ValueError], None]
) -> Transforms:
    """What the node knows of frames: parameters and, as they say, /tf, odometry and poses.

    ``on_bad`` is called with the name of a topic and the error for every message that is refused.
    """
    keep = parameters.tf.history
    kind = Tree if tf2_ros is None else Tf2
    known: Transforms = kind(keep=keep, clock=node.get_clock())
    group = MutuallyExclusiveCallbackGroup()  # others wait for what comes in here
    posed: set[str] = set()
    """Frames told by odometry or poses: TF may join them to another parent, and each would forget the other's."""

    def add(topic: str, transforms: list[TransformStamped], *, static: bool = False) -> None:
        for transform in transforms:
            try:
                known.add(transform, static=static)
            except ValueError as error:
                on_bad(topic, error)

    def on_tf(message: TFMessage) -> None:
        add(
            'tf',
            [t for t in message.transforms if t.child_frame_id.removeprefix('/') not in posed],
        )

    if parameters.tf.enabled:
        node.create_subscription(TFMessage, '/tf', on_tf, LIVE, callback_group=group)
        node.create_subscription(
            TFMessage,
            '/tf_static',
            lambda m: add('tf_static', m.transforms, static=True),
            LATCHED,
            callback_group=group,
        )

    def on_odometry(message: Odometry) -> None:
        child = message.child_frame_id or parameters.frames.base
        with_pose(message.header, child, message.pose.pose, 'odometry')

    def on_pose(message: PoseStamped) -> None:
        with_pose(message.header, parameters.frames.base, message.pose, 'pose')

    def with_pose(header, child: str, pose, topic: str) -> None:
        try:
            matrix = matrix_from_pose(pose, name=topic)
            transform = transform_message(header.frame_id, child, matrix, seconds(header.stamp))
        except ValueError as error:
            on_bad(topic, error)
            return
        posed.add(child.removeprefix('/'))
        add(topic, [transform])

    if parameters.observe.pose_source == 'odometry':
        node.create_subscription(Odometry, 'odometry', on_odometry, LIVE, callback_group=group)
    if parameters.observe.pose_source == 'pose':
        node.create_subscription(PoseStamped, 'pose', on_pose, LIVE, callback_group=group)
    return known


def transform_message(
    parent: str, child: str, parent_from_child: Float64[np.ndarray, '4 4'], time: float
) -> TransformStamped:
    pose = pose_from_matrix(parent_from_child)
    message = TransformStamped(child_frame_id=child)
    message.header.frame_id, message.header.stamp = parent, stamp(time)
    translation = message.transform.translation
    translation.x, translation.y, translation.z = (
        pose.position.x,
        pose.position.y,
        pose.position.z,
    )
    message.transform.rotation = pose.orientation
    return message
