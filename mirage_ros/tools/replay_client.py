"""A running node in the place of an engine: the replay plays to it over ROS 2 and waits for every answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
import time

from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import TransformStamped
from mirage.action import Imagine as ImagineAction
from mirage.msg import ImaginedChunk, PlannedTrajectory
from mirage.srv import ResetMemory
import numpy as np
from rclpy.action import ActionClient
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header
from tf2_msgs.msg import TFMessage

from mirage_model.interface import (
    Chunk,
    DepthSource,
    ImagineRequest,
    InvalidRequest,
    ModelInfo,
    Observation,
)
from mirage_ros import convert
from mirage_ros.convert import image_message

CAMERA_FRAME, WORLD_FRAME = 'replay_camera_optical', 'map'
_QOS = QoSProfile(depth=100)
_AGAIN = 1.0
"""Seconds after which a view that the node has not looked at is sent again."""


class Sensors:
    """What a robot's drivers would send of a recorded view, and what the node counts of it."""

    def __init__(self, node: Node):
        self._outputs = {
            name: node.create_publisher(kind, name, _QOS)
            for name, kind in (
                ('/tf', TFMessage),
                ('camera_info', CameraInfo),
                ('depth', Image),
                ('image', Image),
            )
        }
        self.counts: dict[str, int] = {}
        self.reports = 0  # of an active node: before, everything is refused
        node.create_subscription(DiagnosticArray, '/diagnostics', self._on_diagnostics, _QOS)

    def connected(self, *, depth: bool) -> bool:
        names = [name for name in self._outputs if depth or name != 'depth']
        return all(self._outputs[name].get_subscription_count() for name in names)

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name.endswith(': imagination'):
                values = {value.key: value.value for value in status.values}
                self.reports += values['state'] == 'active'
                self.counts = {
                    key: int(value)
                    for key, value in values.items()
                    if key.startswith(('images ', 'messages ', 'requests '))
                }

    def send(self, view: Observation) -> None:
        """The image last: it is looked at once its pose, camera_info and depth have come."""
        stamp = convert.stamp(view.time)
        header = Header(frame_id=CAMERA_FRAME, stamp=stamp)
        height, width = view.image.shape[:2]
        pose = convert.pose_from_matrix(view.world_from_camera)
        moved = TransformStamped(
            header=Header(frame_id=WORLD_FRAME, stamp=stamp), child_frame_id=CAMERA_FRAME
        )
        at = moved.transform.translation
        at.x, at.y, at.z = pose.position.x, pose.position.y, pose.position.z
        moved.transform.rotation = pose.orientation
        self._outputs['/tf'].publish(TFMessage(transforms=[moved]))
        self._outputs['camera_info'].publish(
            convert.camera_info_message(view.K, height, width, header)
        )
        if view.depth is not None:
            depth = np.ascontiguousarray(view.depth, np.float32)
            self._outputs['depth'].publish(image_message(depth, '32FC1', header))
        self._outputs['image'].publish(image_message(view.image, 'rgb8', header))


def plan_message(request: ImagineRequest) -> PlannedTrajectory:
    """Without a seed: the node starts from what was driven through."""
    return PlannedTrajectory(
        header=Header(frame_id=WORLD_FRAME),
        request_id=request.request_id,
        moving_frame=CAMERA_FRAME,
        poses=[convert.pose_from_matrix(pose) for pose in request.world_from_camera],
        times=[convert.stamp(float(t)) for t in request.times],
    )


class NodeEngine:
    """The verbs of `mirage_model.evaluation.replay.replay.Imaginer` by a node that observes every image it is sent.

    Raises TimeoutError when an answer does not come for ``patience`` seconds, ChildProcessError when the
    node has ended.
    """

    def __init__(
        self,
        about: ModelInfo,
        *,
        depth: bool,
        patience: float = 600.0,
        alive: Callable[[], bool] = lambda: True,
    ):
        """``about`` is the model that the node serves; ``alive`` says whether the node still runs."""
        self._about, self._patience, self._alive = about, patience, alive
        self._chunks: list[ImaginedChunk] = []
        self._node = Node('mirage_replay')
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self._node)
        self._sensors = Sensors(self._node)
        self._reset = self._node.create_client(ResetMemory, 'reset_memory')
        self._action = ActionClient(self._node, ImagineAction, 'imagine')
        self._node.create_subscription(ImaginedChunk, 'imagined/chunk', self._chunks.append, _QOS)
        self._until(
            lambda: (
                self._action.server_is_ready()
                and self._reset.service_is_ready()
                and self._sensors.connected(depth=depth)
                and self._node.count_publishers('imagined/chunk')
                and self._sensors.reports
            ),
            'the node did not appear',
        )

    def close(self) -> None:
        self._executor.shutdown()
        self._node.destroy_node()

    def describe(self) -> ModelInfo:
        return self._about

    def seed(self, view: Observation, *, memory: str = 'default') -> DepthSource:
        """Forget what was driven through, if anything was, and begin it with the view."""
        if self._sensors.counts.get('images observed'):
            future = self._reset.call_async(ResetMemory.Request())
            self._until(future.done, 'the memory was not reset')
        return self.observe(view, memory=memory)

    def observe(self, view: Observation, *, memory: str = 'default') -> DepthSource:
        """Send a view and wait until the node has counted it. Raises InvalidRequest where it would not take it."""
        before = dict(self._sensors.counts)
        new = lambda name: self._sensors.counts.get(name, 0) - before.get(name, 0)  # noqa: E731
        sent = -np.inf
        deadline = time.monotonic() + self._patience
        while not new('images observed'):
            if new('messages refused') or new('messages failed') or new('images dropped: no pose'):
                raise InvalidRequest(
                    f'the node would not observe the view at {view.time:.6f}: its log says why'
                )
            if time.monotonic() > sent + _AGAIN:
                self._sensors.send(view)
                sent = time.monotonic()
            self._spin(deadline, f'the view at {view.time:.6f} was not observed')
        return 'sensor' if view.depth is not None else 'perception'

    def imagine(self, request: ImagineRequest) -> Iterator[Chunk]:
        """Raises InvalidRequest with the node's reason, and ValueError where it serves another model."""
        self._chunks.clear()
        goal = ImagineAction.Goal(
            trajectory=plan_message(request), seed=request.seed, steps=request.steps or 0
        )
        sent = self._action.send_goal_async(goal)
        self._until(sent.done, 'the goal was not answered')
        if not sent.result().accepted:
            raise InvalidRequest('the node is serving as many goals as it may')
        future = sent.result().get_result_async()
        self._until(future.done, 'no result came')
        result = future.result().result
        if not result.complete:
            raise InvalidRequest(result.message)
        self._until(lambda: len(self._answers(request)) == result.chunks, 'chunks are missing')
        for message in self._answers(request):
            if message.model_sha256 != self._about.sha256:
                raise ValueError(
                    f'the node serves {message.model} ({message.model_sha256[:12]}), '
                    f'the replay is of {self._about.model} ({self._about.sha256[:12]})'
                )
            yield convert.chunk_from_message(message)

    def _answers(self, request: ImagineRequest) -> list[ImaginedChunk]:
        here = [chunk for chunk in self._chunks if chunk.request_id == request.request_id]
        return sorted(here, key=lambda chunk: chunk.index)

    def _until(self, done: Callable[[], object], complaint: str) -> None:
        deadline = time.monotonic() + self._patience
        while not done():
            self._spin(deadline, complaint)

    def _spin(self, deadline: float, complaint: str) -> None:
        if not self._alive():
            raise ChildProcessError(f'{complaint}: the node has ended')
        if time.monotonic() > deadline:
            raise TimeoutError(f'{complaint} within {self._patience:.0f} s')
        self._executor.spin_once(timeout_sec=0.05)
