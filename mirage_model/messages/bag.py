"""What messages of a bag hold, as arrays: intrinsics, poses, colours and depth. Raises ValueError for what is unusable."""

from __future__ import annotations

import math

import cv2
from jaxtyping import Float, Shaped
import numpy as np
from scipy.spatial.transform import Rotation

from mirage_model.messages.sensors import decompressed_depth

_COLOURS = {
    'rgb8': (3, None),
    'bgr8': (3, cv2.COLOR_BGR2RGB),
    'rgba8': (4, cv2.COLOR_RGBA2RGB),
    'bgra8': (4, cv2.COLOR_BGRA2RGB),
    'mono8': (1, cv2.COLOR_GRAY2RGB),
}
_DEPTHS = {'16UC1': ('u2', 0.001), '32FC1': ('f4', 1.0)}


def seconds(message) -> float:
    stamp = message.header.stamp
    return stamp.sec + stamp.nanosec * 1e-9


def matrix(numbers: tuple[float, ...], name: str) -> Float[np.ndarray, '4 4']:
    """From x y z and a quaternion x y z w. Raises ValueError, with ``name``."""
    if len(numbers) != 7 or not all(map(math.isfinite, numbers)):
        raise ValueError(f'{name}: 7 finite numbers are needed (x y z, quaternion x y z w)')
    length = math.hypot(*numbers[3:])
    if abs(length - 1) > 0.01:
        raise ValueError(f'{name}: the quaternion has length {length:.3g}, not 1')
    a_from_b = np.eye(4)
    a_from_b[:3, :3] = Rotation.from_quat(numbers[3:]).as_matrix()
    a_from_b[:3, 3] = numbers[:3]
    return a_from_b


def colours(message) -> Shaped[np.ndarray, 'h w 3']:
    """RGB of an image, raw or compressed."""
    if hasattr(message, 'format'):
        data = np.asarray(message.data)
        image = (
            cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
            if len(data)
            else None
        )
        if image is None:
            raise ValueError(f'{message.format!r} that cannot be decoded')
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    if message.encoding not in _COLOURS:
        raise ValueError(f'encoding {message.encoding!r} is not one of {sorted(_COLOURS)}')
    channels, conversion = _COLOURS[message.encoding]
    image = _pixels(message, np.dtype('u1'), channels)
    return image if conversion is None else cv2.cvtColor(image, conversion)


def metres(message) -> Float[np.ndarray, 'h w']:
    """Depth of an image, raw or of the compressedDepth transport, NaN where there is none."""
    if hasattr(message, 'format'):
        depth = decompressed_depth(message.format, np.asarray(message.data, np.uint8))
    elif message.encoding not in _DEPTHS:
        raise ValueError(f'depth is {message.encoding!r}, not one of {sorted(_DEPTHS)}')
    else:
        kind, scale = _DEPTHS[message.encoding]
        order = '>' if message.is_bigendian else '<'
        depth = _pixels(message, np.dtype(order + kind), 1)[..., 0].astype(np.float32) * scale
    return np.where(np.isfinite(depth) & (depth > 0), depth, np.nan).astype(np.float32)


def _pixels(message, dtype: np.dtype, channels: int) -> Shaped[np.ndarray, 'h w c']:
    """The image's pixels, without what fills up its rows."""
    height, width, step = message.height, message.width, message.step
    row = width * channels * dtype.itemsize
    data = np.ascontiguousarray(message.data).view(np.uint8)
    if not height or not width or step < row or len(data) != step * height:
        raise ValueError(
            f'{len(data)} bytes in rows of {step} are not {height}x{width} {message.encoding}'
        )
    return (
        np.ascontiguousarray(data.reshape(height, step)[:, :row])
        .view(dtype)
        .reshape(height, width, channels)
    )
