"""What the parts of the node share: settings, frames, seeds, memories, figures, and the worker while it is active."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
import threading
import traceback
from typing import Any

from rclpy.node import Node
from rclpy.subscription import Subscription
from rclpy.time_source import CLOCK_TOPIC

from mirage_model.engine.worker import Worker
from mirage_model.interface import ModelInfo
from mirage_ros.convert import seconds, stamp
from mirage_ros.diagnostics import NodeMetrics
from mirage_ros.parameters import declare
from mirage_ros.sensor_sync import SensorSync
from mirage_ros.throttled_log import ThrottledLog
from mirage_ros.trajectory import CameraFrames
from mirage_ros.transforms import listen

DRIVEN = 'driven'
"""The memory of what was driven through."""


@dataclass(frozen=True, kw_only=True)
class MemoryRecord:
    """Of a memory: the frame id of its camera, empty where that is not known, and whether it is ``loaded``.

    What was loaded, and copies of it, lie in the map as it was saved: no jump of odometry moves them. What a sensor
    saw since hangs on odometry.
    """

    camera_frame: str
    loaded: bool = False


class NodeContext(Node):
    """``memories`` are those that requests may start from, by name. ``when_forgotten`` is called with the name of one
    that is no more.
    """

    def __init__(self) -> None:
        super().__init__('mirage')
        self._about: ModelInfo | None = None
        self._worker: Worker | None = None
        self.settings = settings = declare(self)
        self.memories: dict[str, MemoryRecord] = {}
        self._promised: list[str] = []
        self._room = threading.Lock()
        self.when_forgotten: list[Callable[[str], None]] = []
        self.figures = NodeMetrics()
        self.refusals = ThrottledLog(self.figures)
        self.frames = CameraFrames(settings, listen(self, settings, self._refused))
        self.seeds = SensorSync(
            use_depth=settings.use_depth,
            tolerance=settings.stamp_tolerance,
            max_pixels=settings.max_pixels,
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

    def camera_of(self, memory: str) -> str:
        """The frame id of the camera that a memory was seen by; that of the newest camera_info where it was loaded."""
        return self.memories[memory].camera_frame or self.seeds.camera_frame

    def promise_room(self, memory: str) -> None:
        """Keep room for a memory that is to be made, until `end_promise`. Raise ValueError where it would be one too many."""
        with self._room:
            others = {*self.memories, *self._promised, memory} - {DRIVEN}
            if len(others) > self.settings.max_memories:
                raise ValueError(
                    f"memory '{memory}' would be one more than max_memories, {self.settings.max_memories}"
                )
            self._promised.append(memory)

    def end_promise(self, memory: str) -> None:
        with self._room:
            self._promised.remove(memory)

    def forget(self, memory: str) -> None:
        self.memories.pop(memory, None)
        for call in self.when_forgotten:
            call(memory)

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
