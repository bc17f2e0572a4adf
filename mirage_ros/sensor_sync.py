"""The newest image with its camera_info and depth, matched by their stamps."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
import time as clock
from typing import Generic, TypeVar

from sensor_msgs.msg import CameraInfo

from mirage_model.messages.camera_info import K_from_camera_info, same_camera
from mirage_model.messages.images import image_size
from mirage_model.messages.poses import seconds
from mirage_model.messages.transform_tree import SET_BACK
from mirage_ros.convert import AnyImage
from mirage_ros.memory_names import Arrival

Message = TypeVar('Message', AnyImage, CameraInfo)

BUFFER = 16
"""Messages of a topic that are kept for matching."""


@dataclass(frozen=True, kw_only=True)
class CameraImages:
    """An image with the camera_info and the depth image that belong to it."""

    image: AnyImage
    camera_info: CameraInfo
    depth: AnyImage | None
    """None if the node does without depth."""
    arrival: Arrival
    """When the image was taken and received."""


class MissingInput(ValueError):
    """Nothing was received on an input, which ``input`` names."""

    def __init__(self, input: str, text: str):
        super().__init__(text)
        self.input = input


class _Buffer(Generic[Message]):
    """The newest messages of one topic. A message replaces one of the same stamp."""

    def __init__(self, name: str, warn: Callable[[str], None]):
        self._name = name
        self._warn = warn
        self._items: deque[tuple[Message, float]] = deque(maxlen=BUFFER)

    def __iter__(self):
        """Yield messages and the times at which they were received, the newest first."""
        return reversed(list(self._items))

    def add(self, message: Message) -> None:
        time = seconds(message.header.stamp)
        before = self._items[-1][0] if self._items else None
        last = time if before is None else seconds(before.header.stamp)
        if time < last - SET_BACK:
            self._warn(
                f'{self._name}: stamp {time:.3f} comes after {last:.3f}, the clock of the stamps '
                'was set back (does a bag loop?): messages from before are dropped'
            )
            self._items.clear()
        elif before is not None and time == last:
            if getattr(before, 'data', None) != getattr(message, 'data', None):
                self._warn(
                    f'{self._name}: different messages have the same stamp, {time:.3f}, so their '
                    'age and the pose of the camera are unknown: the driver must stamp each image'
                )
            self._items.pop()
        self._items.append((message, clock.monotonic()))

    def nearest(self, time: float) -> tuple[Message, float] | None:
        """Return the message whose stamp is nearest and its distance [s], or None if empty."""
        found = None
        for message, _ in self:
            distance = abs(seconds(message.header.stamp) - time)
            if found is None or distance < found[1]:
                found = message, distance
        return found


class SensorSync:
    """Buffers images, camera_infos and depth images, which may arrive in any order."""

    def __init__(
        self,
        *,
        use_depth: bool,
        tolerance: float,
        max_pixels: int,
        warn: Callable[[str], None],
    ):
        """Create empty buffers.

        Args:
            tolerance: Largest difference between the stamps of a set [s].
            warn: Gets a sentence about stamps that cannot be right.
        """
        self._use_depth = use_depth
        self._tolerance = tolerance
        self._max_pixels = max_pixels
        self._images: _Buffer[AnyImage] = _Buffer('image', warn)
        self._camera_infos: _Buffer[CameraInfo] = _Buffer('camera_info', warn)
        self._depths: _Buffer[AnyImage] = _Buffer('depth', warn)

    def add_image(self, message: AnyImage) -> None:
        """Take an image.

        Raises ValueError if it cannot be read or is too large; earlier images stay.
        """
        image_size(message, 'image', max_pixels=self._max_pixels)
        self._images.add(message)

    def add_camera_info(self, message: CameraInfo) -> None:
        """Take a camera_info.

        Raises ValueError unless it is a rectified pinhole camera.
        """
        K_from_camera_info(message)
        self._camera_infos.add(message)

    def add_depth(self, message: AnyImage) -> None:
        """Take a depth image.

        Raises ValueError if it cannot be read or is too large.
        """
        image_size(message, 'depth', max_pixels=self._max_pixels)
        self._depths.add(message)

    @property
    def camera_frame(self) -> str:
        """Return the frame id of the newest camera_info, or '' if there is none."""
        return next((message.header.frame_id for message, _ in self._camera_infos), '')

    def newest(self) -> CameraImages:
        """Return the newest complete set.

        Raises:
            MissingInput: Nothing was received on one of the topics.
            ValueError: No messages have stamps that belong together; both stamps are named.
        """
        error: ValueError | None = None
        for image, received in self._images:
            try:
                return CameraImages(
                    image=image,
                    camera_info=self._camera_info(image),
                    depth=self._match(image, self._depths, 'depth') if self._use_depth else None,
                    arrival=Arrival(seconds(image.header.stamp), received),
                )
            except ValueError as missing:
                error = error or missing
        raise error or MissingInput('image', 'image: none was received')

    def _camera_info(self, image: AnyImage) -> CameraInfo:
        """Return the camera_info of an image, which need not have its stamp where intrinsics do
        not vary."""
        nearest = self._camera_infos.nearest(seconds(image.header.stamp))
        if nearest and all(same_camera(other, nearest[0]) for other, _ in self._camera_infos):
            return nearest[0]
        return self._match(image, self._camera_infos, 'camera_info')

    def _match(self, image: AnyImage, others: _Buffer[Message], name: str) -> Message:
        time = seconds(image.header.stamp)
        without = ' (sensors.use_depth false does without)' if name == 'depth' else ''
        nearest = others.nearest(time)
        if nearest is None:
            raise MissingInput(
                name, f'{name}: none was received for the image at {time:.3f}{without}'
            )
        message, distance = nearest
        if distance > self._tolerance:
            raise ValueError(
                f'{name}: none belongs to the image at {time:.3f}, the nearest is at '
                f'{seconds(message.header.stamp):.3f}, {distance:.3f} s away; '
                f'sensors.stamp_tolerance is {self._tolerance:g} s{without}'
            )
        return message
