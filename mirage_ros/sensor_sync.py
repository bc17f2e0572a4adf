"""The newest image that has its camera_info, and its depth where that is wanted: what imagination starts from."""

from __future__ import annotations

from collections import deque

from sensor_msgs.msg import CameraInfo

from mirage_model.messages.camera_info import K_from_camera_info
from mirage_model.messages.images import image_size
from mirage_model.messages.poses import seconds
from mirage_ros.convert import AnyImage

KEPT = 16
"""Messages of a kind that are kept until their partners come."""


class SensorSync:
    """Add what arrives, in any order; ask for the newest set that belongs together by its stamps."""

    def __init__(self, *, use_depth: bool, tolerance: float, max_pixels: int):
        self._use_depth = use_depth
        self._tolerance = tolerance
        self._max_pixels = max_pixels
        self._images: deque[AnyImage] = deque(maxlen=KEPT)
        self._camera_infos: deque[CameraInfo] = deque(maxlen=KEPT)
        self._depths: deque[AnyImage] = deque(maxlen=KEPT)

    def add_image(self, message: AnyImage) -> None:
        """Raise ValueError for an image that cannot be read or is too large, and keep those before it."""
        image_size(message, 'image', max_pixels=self._max_pixels)
        self._images.append(message)

    def add_camera_info(self, message: CameraInfo) -> None:
        """Raise ValueError for what is no rectified pinhole camera."""
        K_from_camera_info(message)
        self._camera_infos.append(message)

    def add_depth(self, message: AnyImage) -> None:
        """Raise ValueError for a depth image that cannot be read or is too large."""
        image_size(message, 'depth', max_pixels=self._max_pixels)
        self._depths.append(message)

    @property
    def camera_frame(self) -> str:
        """Of the newest camera_info, empty where none has come."""
        return self._camera_infos[-1].header.frame_id if self._camera_infos else ''

    def newest(self) -> tuple[AnyImage, CameraInfo, AnyImage | None]:
        """Raise ValueError that says what is missing."""
        if not self._images:
            raise ValueError('no seed yet: no image has come')
        missing = ''
        for image in reversed(list(self._images)):
            camera_info = self._partner(image, self._camera_infos)
            depth = self._partner(image, self._depths) if self._use_depth else None
            if camera_info is None:
                missing = missing or 'no camera_info'
            elif depth is None and self._use_depth:
                missing = missing or 'no depth (set sensors.use_depth to false to do without)'
            else:
                return image, camera_info, depth
        raise ValueError(
            f'no seed yet: {missing} within {self._tolerance:g} s of an image has come'
        )

    def _partner(self, image: AnyImage, others: deque) -> CameraInfo | AnyImage | None:
        distance = lambda other: abs(seconds(other.header.stamp) - seconds(image.header.stamp))  # noqa: E731
        nearest = min(list(others), key=distance, default=None)
        return nearest if nearest is not None and distance(nearest) <= self._tolerance else None
