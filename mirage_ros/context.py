"""The node as its parts see it: parameters, frames, sensors, memories, metrics, log and worker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
import traceback
from typing import Any

from rclpy.node import Node
from rclpy.subscription import Subscription
from rclpy.time_source import CLOCK_TOPIC
from sensor_msgs.msg import CameraInfo

from mirage_model.engine.worker import Worker
from mirage_model.interface import ModelInfo
from mirage_model.messages.camera_info import read_camera
from mirage_model.messages.doubts import Doubts
from mirage_model.messages.poses import seconds
from mirage_ros.convert import stamp
from mirage_ros.declaration import declare, unknown_parameters
from mirage_ros.diagnostics import NodeMetrics
from mirage_ros.input_monitor import InputMonitor
from mirage_ros.memory_names import MemoryNames
from mirage_ros.parameters import NodeParameters
from mirage_ros.sensor_sync import CameraImages, MissingInput, SensorSync
from mirage_ros.throttled_log import ThrottledLog
from mirage_ros.trajectory import CameraFrames
from mirage_ros.transforms import TransformListener


class NodeContext(Node):
    """Parameters, camera frames, sensor images, names of memories, metrics, the log, and the
    worker while active."""

    def __init__(self) -> None:
        self.inputs = InputMonitor(self)  # rclpy subscribes to /clock while it is initialised
        super().__init__('mirage')
        self._model_info: ModelInfo | None = None
        self._worker: Worker | None = None
        self.parameters = parameters = declare(self, NodeParameters)
        for text in unknown_parameters(self, NodeParameters):
            self.get_logger().warning(text)
        self.memories = MemoryNames(max_memories=parameters.limits.max_memories)
        self.metrics = NodeMetrics()
        self.throttled_log = ThrottledLog(self.metrics)
        self.doubts = Doubts(
            parameters.sensors.accept, parameter='sensors.accept', log=self.get_logger().warning
        )
        transforms = TransformListener(
            self, parameters, on_bad=self._log_rejected, warn=self.log_warning
        )
        for name, subscription in transforms.needed.items():
            self.inputs.add(name, subscription)
        self.frames = CameraFrames(parameters, transforms)
        self.sensors = SensorSync(
            use_depth=parameters.sensors.use_depth,
            tolerance=parameters.sensors.stamp_tolerance,
            max_pixels=parameters.limits.max_pixels,
            warn=self.log_warning,
        )

    def create_subscription(
        self,
        msg_type: type,
        topic: str,
        callback: Callable[[Any], None],
        *arguments: Any,
        **keywords: Any,
    ) -> Subscription:
        """Create a subscription that logs a callback's error instead of ending the executor.

        A time on /clock that does not fit into a stamp is rejected too, because rclpy raises when
        it uses it.
        """
        name = self.resolve_topic_name(topic)

        def logged(message: Any) -> None:
            self.inputs.received(name)
            with self.logging_errors(topic.removeprefix('/')):
                if topic == CLOCK_TOPIC:
                    stamp(seconds(message.clock))
                callback(message)

        subscription = super().create_subscription(msg_type, topic, logged, *arguments, **keywords)
        if topic == CLOCK_TOPIC:
            self.inputs.add('clock', subscription)
        return subscription

    def newest_images(self) -> CameraImages:
        """Return the newest image with its camera_info and depth.

        Raises ValueError; for a topic without messages it names what is published near by.
        """
        try:
            return self.sensors.newest()
        except MissingInput as error:
            raise ValueError(f'{error}; {self.inputs.describe(error.input)}') from None

    def add_camera_info(self, message: CameraInfo) -> None:
        """Take the camera of the images.

        Raises ValueError unless it is a rectified pinhole camera.
        """
        self.frames.set_camera(read_camera(message, self.doubts))
        self.sensors.add_camera_info(message)

    def add_depth_camera_info(self, message: CameraInfo) -> None:
        """Take the camera of the depth images.

        Raises ValueError unless it is a rectified pinhole camera.
        """
        self.frames.set_depth_camera(read_camera(message, self.doubts))

    @property
    def worker(self) -> Worker:
        """Return the worker. Raises ValueError if the node is not active."""
        worker = self._worker
        if worker is None:
            raise ValueError('node: not active, it is loading its model or waits to be activated')
        return worker

    @property
    def is_active(self) -> bool:
        return self._worker is not None

    @property
    def engine(self) -> ModelInfo:
        """Return the properties of the model. Raises ValueError if the node is not configured."""
        if self._model_info is None:
            raise ValueError('node: not configured, configure it first')
        return self._model_info

    @property
    def engine_or_none(self) -> ModelInfo | None:
        return self._model_info

    @contextmanager
    def logging_errors(self, what: str) -> Iterator[None]:
        """Log a ValueError as a rejection and any other error as a failure, and go on.

        An error that leaves a callback would end the executor, and with it the node.
        """
        try:
            yield
        except ValueError as error:
            self._log_rejected(what, error)
        except Exception as error:
            self.metrics.count('messages failed')
            self.log_error(
                f'{what} failed: {type(error).__name__}: {error}', traceback.format_exc()
            )

    def log_error(self, text: str, details: str = '') -> None:
        """Count an error by its reason and log it, throttled."""
        if line := self.throttled_log.line(text, details):
            self.get_logger().error(line)

    def log_warning(self, text: str) -> None:
        """Count a warning by its reason and log it, throttled."""
        if line := self.throttled_log.line(text):
            self.get_logger().warning(line)

    def _log_rejected(self, what: str, error: ValueError) -> None:
        self.metrics.count('messages rejected')
        self.log_error(f'{what} rejected: {error}')
