"""What the parts of the node share: settings, frames, seeds, memories, figures, and the worker while it is active."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
import traceback

from rclpy.node import Node

from mirage_model.interface import Description
from mirage_ros.figures import Figures
from mirage_ros.plan import Frames
from mirage_ros.seeds import SeedBuffer
from mirage_ros.settings import declare
from mirage_ros.transforms import listen
from mirage_ros.worker import Worker

DRIVEN = 'driven'
"""The memory of what was driven through."""


class Host(Node):
    """``memories`` are those that requests may start from, each with the frame id of its camera, empty where it was loaded.

    ``when_forgotten`` is called with the name of a memory that is no more.
    """

    def __init__(self) -> None:
        super().__init__('mirage')
        self._about: Description | None = None
        self._worker: Worker | None = None
        self.settings = settings = declare(self)
        self.memories: dict[str, str] = {}
        self.when_forgotten: list[Callable[[str], None]] = []
        self.figures = Figures()
        self.frames = Frames(settings, listen(self, settings, self._refused))
        self.seeds = SeedBuffer(
            use_depth=settings.use_depth,
            tolerance=settings.stamp_tolerance,
            max_pixels=settings.max_pixels,
        )

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
    def engine(self) -> Description:
        """Raise ValueError where the node is not configured."""
        if self._about is None:
            raise ValueError('the node is not configured')
        return self._about

    @property
    def engine_or_none(self) -> Description | None:
        return self._about

    def camera_of(self, memory: str) -> str:
        """The frame id of the camera that a memory was seen by; that of the newest camera_info where it was loaded."""
        return self.memories[memory] or self.seeds.camera_frame

    def check_room(self, memory: str) -> None:
        """Raise ValueError where one memory more would be too many."""
        others = {*self.memories, memory} - {DRIVEN}
        if len(others) > self.settings.max_memories:
            raise ValueError(
                f"memory '{memory}' would be one more than max_memories, {self.settings.max_memories}"
            )

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
        except Exception:
            self.figures.count('messages failed')
            self.get_logger().error(f'{what} failed: {traceback.format_exc()}')

    def _refused(self, what: str, error: ValueError) -> None:
        self.figures.count('messages refused')
        self.get_logger().error(f'{what} refused: {error}')
