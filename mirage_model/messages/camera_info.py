"""sensor_msgs/CameraInfo: intrinsics, and the images that belong to them."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float32, Float64, UInt8
import numpy as np

from mirage_model.messages.images import depth_from_image, image_size, rgb_from_image
from mirage_model.messages.poses import frame_name


def K_from_camera_info(message: Any) -> Float64[np.ndarray, '3 3']:
    """Return the intrinsics of the rectified image: the left of P, or K where P is zero and
    nothing is distorted.

    Raises:
        ValueError: The camera is not calibrated or not rectified, or there is binning or a region
        of interest.
    """
    if message.height == 0 or message.width == 0:
        raise ValueError(f'camera_info: image size {message.height}x{message.width}')
    region = message.roi
    whole = (region.width, region.height) in ((0, 0), (message.width, message.height))
    whole &= (region.x_offset, region.y_offset) == (0, 0)
    if max(message.binning_x, message.binning_y) > 1 or not whole:
        raise ValueError('camera_info: binning and regions of interest are not supported')
    if message.p[0]:
        K = np.array(message.p, np.float64).reshape(3, 4)[:, :3].copy()
    elif not any(message.d):
        K = np.array(message.k, np.float64).reshape(3, 3)
    else:
        raise ValueError('camera_info: distorted and without P, rectified images are needed')
    pinhole = np.array([[K[0, 0], 0, K[0, 2]], [0, K[1, 1], K[1, 2]], [0, 0, 1]])
    if not np.isfinite(K).all() or (K != pinhole).any() or K[0, 0] <= 0 or K[1, 1] <= 0:
        raise ValueError(f'camera_info: not the intrinsics of a calibrated camera: {K.tolist()}')
    return K


def read_image(
    message: Any, *, camera_frame: str, size: tuple[int, int], max_pixels: int | None = None
) -> UInt8[np.ndarray, 'h w 3']:
    """Return the colours of an image whose camera_info has this frame and this (height, width).

    Raises:
        ValueError: The image is in another frame or of another size, has more than ``max_pixels``
            pixels, or cannot be decoded.
    """
    frame, camera_frame = frame_name(message.header.frame_id), frame_name(camera_frame)
    if not frame or frame != camera_frame:
        raise ValueError(f"image: in frame '{frame}', its camera_info in '{camera_frame}'")
    found = image_size(message, 'image', max_pixels=max_pixels)
    if found != size:
        raise ValueError(
            f'image: {found[0]}x{found[1]}, its camera_info is of {size[0]}x{size[1]}'
        )
    return rgb_from_image(message)


def read_depth(
    message: Any, *, size: tuple[int, int], max_pixels: int | None = None
) -> Float32[np.ndarray, 'h w']:
    """Return the metres of a depth image that is registered to images of this (height, width).

    Raises:
        ValueError: The depth is of another size, has more than ``max_pixels`` pixels, or cannot be
        decoded.
    """
    found = image_size(message, 'depth', max_pixels=max_pixels)
    if found != size:
        raise ValueError(
            f'depth: {found[0]}x{found[1]}, the image is {size[0]}x{size[1]}: it must be '
            'registered '
            'to the image'
        )
    return depth_from_image(message)
