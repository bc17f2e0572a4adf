"""What the parts of the node share: parameters, frames, seeds, memories, figures, and the worker while it is active."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
import traceback
from typing import Any

from rclpy.node import Node
from rclpy.subscription import Subscription
from rclpy.time_source import CLOCK_TOPIC

from mirage_model.engine.worker import Worker
from mirage_model.interface import ModelInfo
from mirage_model.messages.poses import seconds
from mirage_ros.convert import stamp
from mirage_ros.diagnostics import NodeMetrics
from mirage_ros.memory_registry import MemoryRegistry
from mirage_ros.parameters import declare
from mirage_ros.sensor_sync import SensorSync
from mirage_ros.throttled_log import ThrottledLog
from mirage_ros.trajectory import CameraFrames
from mirage_ros.transforms import TransformListener


class NodeContext(Node):
    """Node with what its parts share: parameters, camera frames, sensors, names of memories, metrics and the worker."""

    def __init__(self) -> None:
        super().__init__('mirage')
        self._about: ModelInfo | None = None
        self._worker: Worker | None = None
        self.parameters = parameters = declare(self)
        self.memories = MemoryRegistry(max_memories=parameters.limits.max_memories)
        self.figures = NodeMetrics()
        self.refusals = ThrottledLog(self.figures)
        self.frames = CameraFrames(parameters, TransformListener(self, parameters, self._refused))
        self.sensors = SensorSync(
            use_depth=parameters.sensors.use_depth,
            tolerance=parameters.sensors.stamp_tolerance,
            max_pixels=parameters.limits.max_pixels,
        )

    def create_subscription(
        self,
        msg_type: type,
        topic: str,
        callback: Callable[[Any], None],
        *arguments: Any,
        **keywords: Any,
    ) -> Subscription:
        """As rclpy's, and what the callback raises is refused. So is a simulated time that no stamp holds: whatever
        rclpy stamps by it would end the executor.
        """

        def refusing(message: Any) -> None:
            with self.refusing(topic.removeprefix('/')):
                if topic == CLOCK_TOPIC:
                    stamp(seconds(message.clock))
                callback(message)

        return super().create_subscription(msg_type, topic, refusing, *arguments, **keywords)

    @property
    def worker(self) -> Worker:
        """Raise ValueError where the node is not active."""
        worker = self._worker
        if worker is None:
            raise ValueError('the node is not active')
        return worker

    @property
    def is_active(self) -> bool:
        return self._worker is not None

    @property
    def engine(self) -> ModelInfo:
        """Raise ValueError where the node is not configured."""
        if self._about is None:
            raise ValueError('the node is not configured')
        return self._about

    @property
    def engine_or_none(self) -> ModelInfo | None:
        return self._about

    @contextmanager
    def refusing(self, what: str) -> Iterator[None]:
        """Log why a message is refused, a ValueError, or what failed, anything else, and go on.

        What a callback raises would end the executor, and with it the node.
        """
        try:
            yield
        except ValueError as error:
            self._refused(what, error)
        except Exception as error:
            self.figures.count('messages failed')
            self.complain(
                f'{what} failed: {type(error).__name__}: {error}', traceback.format_exc()
            )

    def complain(self, text: str, details: str = '') -> None:
        """Count and log an error by its reason, as `ThrottledLog` does."""
        if line := self.refusals.line(text, details):
            self.get_logger().error(line)

    def _refused(self, what: str, error: ValueError) -> None:
        self.figures.count('messages refused')
        self.complain(f'{what} refused: {error}')
