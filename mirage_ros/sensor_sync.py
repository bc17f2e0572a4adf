"""The newest image with its camera_info and depth, matched by their stamps."""

from __future__ import annotations

from collections import deque

from sensor_msgs.msg import CameraInfo

from mirage_model.messages.camera_info import K_from_camera_info
from mirage_model.messages.images import image_size
from mirage_model.messages.poses import seconds
from mirage_ros.convert import AnyImage

CameraImages = tuple[AnyImage, CameraInfo, AnyImage | None]
"""An image, its camera_info and its depth image."""

BUFFER = 16
"""Messages of a topic that are kept for matching."""


class SensorSync:
    """Buffers images, camera_infos and depth images, which may arrive in any order."""

    def __init__(self, *, use_depth: bool, tolerance: float, max_pixels: int):
        """``tolerance``: largest difference between the stamps of a set [s]."""
        self._use_depth = use_depth
        self._tolerance = tolerance
        self._max_pixels = max_pixels
        self._images: deque[AnyImage] = deque(maxlen=BUFFER)
        self._camera_infos: deque[CameraInfo] = deque(maxlen=BUFFER)
        self._depths: deque[AnyImage] = deque(maxlen=BUFFER)

    def add_image(self, message: AnyImage) -> None:
        """Raises ValueError for an image that cannot be read or is too large.

        Earlier images stay.
        """
        image_size(message, 'image', max_pixels=self._max_pixels)
        self._images.append(message)

    def add_camera_info(self, message: CameraInfo) -> None:
        """Raises ValueError for a camera that is not a rectified pinhole camera."""
        K_from_camera_info(message)
        self._camera_infos.append(message)

    def add_depth(self, message: AnyImage) -> None:
        """Raises ValueError for a depth image that cannot be read or is too large."""
        image_size(message, 'depth', max_pixels=self._max_pixels)
        self._depths.append(message)

    @property
    def camera_frame(self) -> str:
        """Return the frame id of the newest camera_info, or '' if there is none."""
        return self._camera_infos[-1].header.frame_id if self._camera_infos else ''

    def newest(self) -> CameraImages:
        """Return the newest complete set. Raises ValueError that names the missing topic."""
        if not self._images:
            raise ValueError('image: none was received')
        missing = ''
        for image in reversed(list(self._images)):
            camera_info = self._match(image, self._camera_infos)
            depth = self._match(image, self._depths) if self._use_depth else None
            if camera_info is None:
                missing = missing or 'camera_info: none was received'
            elif depth is None and self._use_depth:
                missing = (
                    missing or 'depth: none was received (sensors.use_depth false does without)'
                )
            else:
                return image, camera_info, depth
        raise ValueError(f'{missing} within {self._tolerance:g} s of an image')

    def _match(self, image: AnyImage, others: deque) -> CameraInfo | AnyImage | None:
        distance = lambda other: abs(seconds(other.header.stamp) - seconds(image.header.stamp))  # noqa: E731
        nearest = min(list(others), key=distance, default=None)
        return nearest if nearest is not None and distance(nearest) <= self._tolerance else None
