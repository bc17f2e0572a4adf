"""What the robot sees on its way goes into the memory: images with their poses, keyframes of them, one at a time."""

from __future__ import annotations

from concurrent.futures import Future
import threading
from typing import Any

from jaxtyping import Float64
import numpy as np
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_srvs.srv import Trigger

from mirage_model.engine.keyframes import KeyframeConfig, KeyframeSelector, motion
from mirage_model.interface import CandidatesRequest, EngineProtocol, ImagineRequest, Trajectory
from mirage_model.messages.poses import seconds
from mirage_ros import convert
from mirage_ros.context import NodeContext
from mirage_ros.memory_registry import DRIVEN, MemoryRecord
from mirage_ros.parameters import reliability
from mirage_ros.sensor_sync import AnyImage


class Observer:
    """Listens to the camera; looks at the newest image at most ``observe_rate`` times a second.

    What is not observed is dropped and counted by its reason, which /diagnostics shows.
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
        self._came = 0
        self._counting = threading.Lock()
        self._looked_at = -np.inf
        self._world_from_odom: np.ndarray | None = None
        self._busy: Future | None = None
        qos = QoSProfile(
            depth=parameters.qos.sensor.depth,
            reliability=reliability(parameters.qos.sensor.reliability),
        )
        raw = parameters.sensors.transport == 'raw'
        kind = Image if raw else CompressedImage
        image, depth = ('image', 'depth') if raw else ('image/compressed', 'depth/compressedDepth')
        node.create_subscription(kind, image, self._on_image, qos)
        node.create_subscription(CameraInfo, 'camera_info', node.sensors.add_camera_info, qos)
        if parameters.sensors.use_depth:
            node.create_subscription(kind, depth, node.sensors.add_depth, qos)
        group = MutuallyExclusiveCallbackGroup()
        node.create_service(Trigger, 'pause_observing', self._pause, callback_group=group)
        node.create_service(Trigger, 'resume_observing', self._resume, callback_group=group)
        if parameters.observe.pose_source != 'none':
            node.create_timer(1 / parameters.observe.rate, self._look, callback_group=group)

    def _on_image(self, message: AnyImage) -> None:
        self._node.sensors.add_image(message)
        with self._counting:
            self._came += 1

    def _pause(self, request: Any, response: Any) -> Any:
        self._paused = True
        response.success = True
        return response

    def _resume(self, request: Any, response: Any) -> Any:
        self._paused = False
        response.success = True
        return response

    def _look(self) -> None:
        node = self._node
        with self._counting:
            came, self._came = self._came, 0
        for _ in range(came - 1):
            node.figures.count('images dropped: rate')
        if not came:
            return
        if self._paused or not node.is_active:
            node.figures.count('images dropped: paused')
            return
        if self._busy is not None and not self._busy.done():
            node.figures.count('images dropped: busy')
            return
        with node.refusing('observation'):
            self._observe()

    def _observe(self) -> None:
        node = self._node
        try:
            image, camera_info, depth = node.sensors.newest()
        except ValueError:
            node.figures.count('images dropped: incomplete')
            return
        time, camera_frame = seconds(image.header.stamp), image.header.frame_id
        if time == self._looked_at:
            node.figures.count('images dropped: incomplete')
            return
        self._looked_at = time
        try:
            world_from_camera = node.frames.world_from_camera(camera_frame, time)
        except ValueError as error:
            node.figures.count('images dropped: no pose')
            node.get_logger().warning(f'image not observed: {error}', throttle_duration_sec=5.0)
            return
        self._follow_jump(time, world_from_camera)

        def task(engine: EngineProtocol) -> None:
            """In the worker's thread, so that the memory is the one that the image goes to."""
            record = node.memories.find(DRIVEN)
            if record is not self._record:  # the memory was dropped or loaded meanwhile
                self._keyframes.reset()
            here = Trajectory(world_from_camera=world_from_camera[None], times=np.array([time]))
            decision = self._keyframes.decide(
                world_from_camera,
                time,
                lambda: float(engine.score([here], memory=DRIVEN)[0].observed[0]),
            )
            if record and not decision.keyframe:
                node.figures.count(f'images dropped: {decision.reason}')
                return
            with node.figures.timing('observe'):
                view = convert.observation_from_messages(
                    image,
                    camera_info,
                    depth,
                    world_from_camera=world_from_camera,
                    max_pixels=node.parameters.limits.max_pixels,
                )
                (engine.observe if record else engine.seed)(view, memory=DRIVEN)
            self._record = MemoryRecord(camera_frame=camera_frame)
            node.memories.add(DRIVEN, self._record)
            self._keyframes.accept(world_from_camera, time)
            node.figures.count('images observed')

        self._busy = node.worker.call(task)
        self._busy.add_done_callback(self._done)

    def _done(self, future: Future) -> None:
        with self._node.refusing('observation'):
            future.result()

    def _follow_jump(self, time: float, world_from_camera: Float64[np.ndarray, '4 4']) -> None:
        """What joins world and odometry has jumped: all that was seen before lies elsewhere now."""
        node, parameters = self._node, self._node.parameters
        world_from_odom = node.frames.world_from_odom(time)
        if world_from_odom is None:
            return
        before, self._world_from_odom = self._world_from_odom, world_from_odom
        if before is None:
            return
        new_from_old = world_from_odom @ np.linalg.inv(before)
        # as the camera feels it, which may be far from the origins of both frames
        moved, turned = motion(np.linalg.inv(world_from_camera) @ new_from_old @ world_from_camera)
        if moved <= parameters.jump.distance and turned <= parameters.jump.angle:
            return
        node.figures.count('jumps')
        jump = f"'{parameters.frames.odom}' jumped in '{parameters.frames.world}' by {moved:.2f} m and {turned:.3f} rad"
        node.worker.call(lambda engine: self._move(engine, new_from_old, jump)).add_done_callback(
            self._done
        )

    def _move(
        self, engine: EngineProtocol, new_from_old: Float64[np.ndarray, '4 4'], jump: str
    ) -> None:
        """In the worker's thread: what is observed or imagined next finds every memory where it belongs."""
        node, on_jump = self._node, self._node.parameters.jump.action
        hang = node.memories.names(loaded=False)
        lie = node.memories.names(loaded=True)
        if on_jump != 'ignore':
            node.worker.interrupt(
                lambda request: _keeps(request) and request.memory not in lie,
                f'{jump} while it ran: what it would have kept lies elsewhere now',
            )
        for name in hang:
            if on_jump == 'reanchor':
                engine.reanchor(new_from_old, memory=name)
            elif on_jump == 'reset':
                engine.drop(memory=name)
                node.memories.remove(name)
        if on_jump == 'reanchor':
            self._keyframes.reanchor(new_from_old)
        done = {'reanchor': 're-anchored', 'reset': 'reset', 'ignore': 'left as they are'}[on_jump]
        loaded = f'; loaded, so left: {", ".join(lie)}' if lie else ''
        node.get_logger().warning(f'{jump}: {done}: {", ".join(hang) or "no memory"}{loaded}')


def _keeps(request: ImagineRequest | CandidatesRequest) -> bool:
    return isinstance(request, ImagineRequest) and request.keep_in is not None
