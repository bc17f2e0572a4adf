"""Keyframes of the camera images are written to the driven memory, which follows jumps of
odometry."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
import threading
from typing import Any

from jaxtyping import Float64
import numpy as np
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_srvs.srv import Trigger

from mirage_model.engine.keyframes import KeyframeConfig, KeyframeSelector, motion
from mirage_model.interface import CandidatesRequest, EngineProtocol, ImagineRequest, Trajectory
from mirage_model.messages.camera_info import read_camera
from mirage_model.messages.poses import seconds
from mirage_ros import convert
from mirage_ros.context import NodeContext
from mirage_ros.memory_names import DRIVEN, MemoryRecord
from mirage_ros.sensor_sync import AnyImage

TRANSPORTS = {'image': 'compressed', 'depth': 'compressedDepth'}
"""Transports of compressed images, by topic."""
DROPS_TO_LOG = 3
"""Images in a row without a partner that are logged; one alone may be ahead of its depth."""


class Observer:
    """Considers the newest image for the memory at the rate ``observe.rate``.

    Images that are not written are counted by the reason, which /diagnostics shows.
    """

    def __init__(self, node: NodeContext):
        self._node = node
        parameters = node.parameters
        self._keyframes = KeyframeSelector(
            KeyframeConfig(
                distance=parameters.keyframe.distance,
                angle=parameters.keyframe.angle,
                gain=parameters.keyframe.gain,
                refresh=parameters.keyframe.refresh,
            )
        )
        self._record: MemoryRecord | None = None
        self._paused = False
        self._received = 0
        self._received_lock = threading.Lock()
        self._last_time = -np.inf
        self._dropped_in_a_row = 0
        self._world_from_odom: np.ndarray | None = None
        self._busy: Future | None = None
        qos = QoSProfile(
            depth=parameters.qos.sensor.depth,
            reliability=ReliabilityPolicy[parameters.qos.sensor.reliability.upper()],
        )
        raw = parameters.sensors.transport == 'raw'
        kind = Image if raw else CompressedImage
        inputs: dict[str, tuple[type, str, Callable]] = {
            'image': (kind, transport_topic(node, 'image', raw=raw), self._on_image),
            'camera_info': (CameraInfo, 'camera_info', node.add_camera_info),
        }
        if parameters.sensors.use_depth:
            depth = transport_topic(node, 'depth', raw=raw)
            inputs['depth'] = (kind, depth, node.sensors.add_depth)
            node.create_subscription(
                CameraInfo, 'depth_camera_info', node.add_depth_camera_info, qos
            )
        for name, (message, topic, callback) in inputs.items():
            node.inputs.add(name, node.create_subscription(message, topic, callback, qos))
        group = MutuallyExclusiveCallbackGroup()
        node.create_service(Trigger, 'pause_observing', self._pause, callback_group=group)
        node.create_service(Trigger, 'resume_observing', self._resume, callback_group=group)
        if parameters.observe.pose_source != 'none':
            node.create_timer(1 / parameters.observe.rate, self._on_timer, callback_group=group)

    def _on_image(self, message: AnyImage) -> None:
        self._node.sensors.add_image(message)
        with self._received_lock:
            self._received += 1

    def _pause(self, request: Any, response: Any) -> Any:
        self._paused = True
        response.success = True
        return response

    def _resume(self, request: Any, response: Any) -> Any:
        self._paused = False
        response.success = True
        return response

    def _on_timer(self) -> None:
        node = self._node
        with self._received_lock:
            received, self._received = self._received, 0
        for _ in range(received - 1):
            node.metrics.count('images dropped: rate')
        if not received:
            return
        if self._paused or not node.is_active:
            node.metrics.count('images dropped: paused')
            return
        if self._busy is not None and not self._busy.done():
            node.metrics.count('images dropped: busy')
            return
        with node.logging_errors('observation'):
            self._observe()

    def _drop(self, reason: str, text: str) -> None:
        self._node.metrics.count(f'images dropped: {reason}')
        self._dropped_in_a_row += 1
        if self._dropped_in_a_row >= DROPS_TO_LOG:
            self._node.log_warning(f'image not observed: {text}')

    def _observe(self) -> None:
        node = self._node
        try:
            images = node.newest_images()
        except ValueError as error:
            self._drop('incomplete', str(error))
            return
        image = images.image
        time, camera_frame = seconds(image.header.stamp), image.header.frame_id
        if time == self._last_time:
            self._drop('repeated', f'the newest complete one has the stamp {time:.3f} again')
            return
        self._last_time, self._dropped_in_a_row = time, 0
        camera = read_camera(images.camera_info, node.doubts)
        node.frames.set_camera(camera)
        try:
            world_from_camera = node.frames.world_from_camera(camera_frame, time)
        except ValueError as error:
            node.metrics.count('images dropped: no pose')
            node.log_warning(f'image not observed: {error}')
            return
        depth_camera = node.frames.depth_camera(images.depth, camera)
        self._follow_jump(time, world_from_camera)

        def task(engine: EngineProtocol) -> None:
            """Run in the worker's thread, where the memory does not change meanwhile."""
            record = node.memories.find(DRIVEN)
            if record is not self._record:  # the memory was dropped or loaded meanwhile
                self._keyframes.reset()
            viewpoint = Trajectory(
                world_from_camera=world_from_camera[None], times=np.array([time])
            )
            decision = self._keyframes.decide(
                world_from_camera,
                time,
                lambda: float(engine.score([viewpoint], memory=DRIVEN)[0].observed[0]),
            )
            if record and not decision.keyframe:
                node.metrics.count(f'images dropped: {decision.reason}')
                self._store_record(replace(record, newest=images.arrival))
                return
            with node.metrics.timing('observe'):
                observation = convert.observation_from_messages(
                    image,
                    images.camera_info,
                    images.depth,
                    world_from_camera=world_from_camera,
                    max_pixels=node.parameters.limits.max_pixels,
                    doubts=node.doubts,
                    depth_camera=depth_camera,
                )
                (engine.observe if record else engine.seed)(observation, memory=DRIVEN)
            self._store_record(MemoryRecord(camera_frame=camera_frame, newest=images.arrival))
            self._keyframes.accept(world_from_camera, time)
            node.metrics.count('images observed')

        self._busy = node.worker.call(task)
        self._busy.add_done_callback(self._done)

    def _store_record(self, record: MemoryRecord) -> None:
        self._record = record
        self._node.memories.add(DRIVEN, record)

    def _done(self, future: Future) -> None:
        with self._node.logging_errors('observation'):
            future.result()

    def _follow_jump(self, time: float, world_from_camera: Float64[np.ndarray, '4 4']) -> None:
        """Handle a jump of odometry in the world, after which earlier observations have another
        pose."""
        node, parameters = self._node, self._node.parameters
        world_from_odom = node.frames.world_from_odom(time)
        if world_from_odom is None:
            return
        before, self._world_from_odom = self._world_from_odom, world_from_odom
        if before is None:
            return
        new_from_old = world_from_odom @ np.linalg.inv(before)
        # at the camera, which may be far from the origins of both frames
        distance, angle = motion(
            np.linalg.inv(world_from_camera) @ new_from_old @ world_from_camera
        )
        if distance <= parameters.jump.distance and angle <= parameters.jump.angle:
            return
        node.metrics.count('jumps')
        frames = parameters.frames
        jump = (
            f"'{frames.odom}' jumped in '{frames.world}' by {distance:.2f} m and {angle:.3f} rad"
        )
        node.worker.call(
            lambda engine: self._apply_jump(engine, new_from_old, jump)
        ).add_done_callback(self._done)

    def _apply_jump(
        self, engine: EngineProtocol, new_from_old: Float64[np.ndarray, '4 4'], jump: str
    ) -> None:
        """Run in the worker's thread, between two observations and before the next request."""
        node, action = self._node, self._node.parameters.jump.action
        driven = node.memories.names(loaded=False)
        loaded = node.memories.names(loaded=True)
        if action != 'ignore':
            node.worker.interrupt(
                lambda request: _keeps(request) and request.memory not in loaded,
                f'{jump} while it ran, so the frames to keep have wrong poses',
            )
        for name in driven:
            if action == 'reanchor':
                engine.reanchor(new_from_old, memory=name)
            elif action == 'reset':
                engine.drop(memory=name)
                node.memories.remove(name)
        if action == 'reanchor':
            self._keyframes.reanchor(new_from_old)
        done = {'reanchor': 're-anchored', 'reset': 'deleted', 'ignore': 'unchanged'}[action]
        unchanged = f'; unchanged because loaded: {", ".join(loaded)}' if loaded else ''
        node.get_logger().warning(f'{jump}: {done}: {", ".join(driven) or "no memory"}{unchanged}')


def transport_topic(node: NodeContext, name: str, *, raw: bool) -> str:
    """Return the topic of an image: its own, or the compressed one below its remapped name.

    A remapping of the compressed name itself goes first.
    """
    if raw:
        return name
    compressed = f'{name}/{TRANSPORTS[name]}'
    expanded = node.resolve_topic_name(compressed, only_expand=True)
    if node.resolve_topic_name(compressed) != expanded:
        return compressed
    return f'{node.resolve_topic_name(name)}/{TRANSPORTS[name]}'


def _keeps(request: ImagineRequest | CandidatesRequest) -> bool:
    return isinstance(request, ImagineRequest) and request.keep_in is not None
