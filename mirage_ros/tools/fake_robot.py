"""A robot in a process without a robot: it sends sensor data and trajectories to a node."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import time
from typing import Any

from jaxtyping import Float
from mirage.action import Imagine
from mirage.msg import ImaginedChunk, PlannedTrajectory
from nav_msgs.msg import Odometry
import numpy as np
from rclpy.action import ActionClient
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header
from tf2_msgs.msg import TFMessage

from mirage_model.interface import Observation
from mirage_model.messages.poses import matrix_from_numbers
from mirage_ros import convert

WORLD_FRAME, BASE_FRAME, CAMERA_FRAME = 'map', 'base_link', 'camera'
BASE_FROM_CAMERA = (0.0, 0.0, 0.4, -0.5, 0.5, -0.5, 0.5)
"""The camera looks forward from 0.4 m above the base: x y z [m], quaternion x y z w."""
CAMERA = {'image': Image, 'camera_info': CameraInfo, 'depth': Image}
CALL_PERIOD = 10.0
"""Time after which an unanswered service call is sent again [s]: a service drops its answer while
it has not discovered the client."""


class FakeRobot:
    """A ROS node with an executor that sends topics, collects messages, and calls services and
    actions.

    Args:
        topics: Topics that are sent, with their types. ``/tf`` or ``odometry`` among them are sent
            with each image.
        patience: Time after which waiting ends with a TimeoutError [s].
        alive: Whether the node under test runs; waiting ends with a ChildProcessError if not.
    """

    def __init__(
        self,
        name: str = 'fake_robot',
        *,
        topics: Mapping[str, type] = CAMERA,
        patience: float = 120.0,
        alive: Callable[[], bool] = lambda: True,
    ):
        self.node = Node(name)
        self.executor = SingleThreadedExecutor()
        self.executor.add_node(self.node)
        self.publishers: dict[str, Any] = {}
        self.received: dict[str, list] = {}
        self.action = ActionClient(self.node, Imagine, 'imagine')
        self._services: dict[str, Any] = {}
        self._patience, self._alive = patience, alive
        for topic, kind in topics.items():
            self.publisher(topic, kind)
        self.receive('imagined/chunk', ImaginedChunk)

    def __enter__(self) -> FakeRobot:
        return self

    def __exit__(self, *error: object) -> None:
        self.executor.shutdown()
        self.node.destroy_node()

    def publisher(self, name: str, kind: type) -> None:
        self.publishers[name] = self.node.create_publisher(kind, name, QoSProfile(depth=100))

    def receive(self, name: str, kind: type) -> None:
        """Collect a topic's messages in `received`."""
        messages = self.received[name] = []
        self.node.create_subscription(kind, name, messages.append, QoSProfile(depth=100))

    @property
    def chunks(self) -> list[ImaginedChunk]:
        return self.received['imagined/chunk']

    def spin(self, seconds: float) -> None:
        self.executor.spin_once(timeout_sec=seconds)

    def until(
        self,
        done: Callable[[], Any],
        seconds: float | None = None,
        complaint: str = 'it did not happen',
    ) -> Any:
        """Spin until ``done`` returns something true; return that."""
        seconds = self._patience if seconds is None else seconds
        deadline = time.monotonic() + seconds
        while not (result := done()):
            if not self._alive():
                raise ChildProcessError(f'{complaint}: the node has ended')
            if time.monotonic() > deadline:
                raise TimeoutError(f'{complaint} within {seconds:.0f} s')
            self.spin(0.05)
        return result

    def connect(self, *skip: str) -> None:
        """Wait until the node subscribes to the topics and publishes those that are received.

        Whether the node has discovered this side cannot be seen: a second more.
        """
        self.until(lambda: self.connected(*skip), complaint='the node did not appear')
        end = time.monotonic() + 1.0
        self.until(lambda: time.monotonic() > end)

    def connected(self, *skip: str) -> bool:
        sent = [p for name, p in self.publishers.items() if name not in skip]
        return bool(
            all(publisher.get_subscription_count() for publisher in sent)
            and all(self.node.count_publishers(name) for name in self.received)
            and self.action.server_is_ready()
        )

    def send(self, name: str, message: Any) -> None:
        self.publishers[name].publish(message)

    def send_view(self, view: Observation) -> None:
        """Send an image with its pose, camera_info and depth; the image last."""
        stamp = convert.stamp(view.time)
        header = Header(frame_id=CAMERA_FRAME, stamp=stamp)
        fixed = Header(frame_id=WORLD_FRAME, stamp=stamp)
        if '/tf' in self.publishers:
            transform = convert.transform_message(
                WORLD_FRAME, CAMERA_FRAME, view.world_from_camera, view.time
            )
            self.send('/tf', TFMessage(transforms=[transform]))
        if 'odometry' in self.publishers:
            base_from_camera = matrix_from_numbers(BASE_FROM_CAMERA, name='camera')
            odometry = Odometry(header=fixed, child_frame_id=BASE_FRAME)
            world_from_base = view.world_from_camera @ np.linalg.inv(base_from_camera)
            odometry.pose.pose = convert.pose_from_matrix(world_from_base)
            self.send('odometry', odometry)
        height, width = view.image.shape[:2]
        self.send('camera_info', convert.camera_info_message(view.K, height, width, header))
        if view.depth is not None:
            depth = np.ascontiguousarray(view.depth, np.float32)
            self.send('depth', convert.image_message(depth, '32FC1', header))
        self.send('image', convert.image_message(view.image, 'rgb8', header))

    def call(self, kind: Any, name: str, request: Any = None) -> Any:
        """Call a service and wait for its response. The request may be sent more than once."""
        if name not in self._services:
            self._services[name] = self.node.create_client(kind, name)
        client, futures, again = self._services[name], [], 0.0

        def response() -> Any:
            nonlocal again
            if time.monotonic() > again and client.service_is_ready():
                futures.append(client.call_async(request or kind.Request()))
                again = time.monotonic() + CALL_PERIOD
            return next((future.result() for future in futures if future.done()), None)

        return self.until(response, complaint=f'{name} does not answer')

    def goal(self, goal: Any, action: ActionClient | None = None) -> Goal:
        """Send a goal, of imagine by default; wait until it is accepted or rejected."""
        return Goal(self, goal, action)


class Goal:
    """A goal of an action.

    Attributes:
        feedback: Feedback messages so far.
        handle: The client's goal handle.
    """

    def __init__(self, robot: FakeRobot, goal: Any, action: ActionClient | None = None):
        self._robot = robot
        self.feedback: list[Any] = []
        sent = (action or robot.action).send_goal_async(
            goal, lambda message: self.feedback.append(message.feedback)
        )
        robot.until(sent.done, complaint='the goal was not answered')
        self.handle = sent.result()

    def result(self) -> tuple[int, Any]:
        """Wait for status and result."""
        future = self.handle.get_result_async()
        self._robot.until(future.done, complaint='no result came')
        return future.result().status, future.result().result

    def cancel(self) -> None:
        future = self.handle.cancel_goal_async()
        self._robot.until(future.done, complaint='the cancel request was not answered')


def planned_trajectory(
    poses: Float[np.ndarray, 'n 4 4'],
    times: Sequence[float] | np.ndarray,
    *,
    request_id: str = '',
    client: str = '',
    frame_id: str = WORLD_FRAME,
    moving_frame: str = CAMERA_FRAME,
) -> PlannedTrajectory:
    """Make a trajectory message from poses of the moving frame and their times [s]."""
    return PlannedTrajectory(
        header=Header(frame_id=frame_id),
        request_id=request_id,
        client=client,
        moving_frame=moving_frame,
        poses=[convert.pose_from_matrix(pose) for pose in poses],
        times=[convert.stamp(float(time)) for time in times],
    )
