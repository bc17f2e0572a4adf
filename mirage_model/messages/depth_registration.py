"""Depth of one camera at the pixels of another, as depth_image_proc/register makes it."""

from __future__ import annotations

from dataclasses import dataclass
import math

from jaxtyping import Float32, Float64
import numpy as np

MAX_SPLAT = 8
"""Pixels of the image, along a side, that one pixel of the depth may cover."""


@dataclass(frozen=True, kw_only=True)
class DepthCamera:
    """Camera of a depth image, and where it is."""

    frame: str
    """Frame of its camera_info."""
    K: Float64[np.ndarray, '3 3']
    size: tuple[int, int]
    """Height and width [px]."""
    image_from_depth: Float64[np.ndarray, '4 4']
    """Pose of the depth camera in the camera of the image."""


def register_depth(
    depth: Float32[np.ndarray, 'h w'],
    depth_camera: DepthCamera,
    *,
    K: Float64[np.ndarray, '3 3'],
    size: tuple[int, int],
) -> Float32[np.ndarray, 'image_h image_w']:
    """Return the depth that an image of (height, width) ``size`` sees, NaN where there is none.

    Each pixel of the depth covers as many pixels of the image as it is large there, and the
    nearest surface wins.
    """
    v, u = np.nonzero(np.isfinite(depth))
    z = depth[v, u].astype(np.float64)
    source = depth_camera.K
    points = np.stack(
        [(u - source[0, 2]) / source[0, 0] * z, (v - source[1, 2]) / source[1, 1] * z, z]
    )
    pose = depth_camera.image_from_depth
    x, y, z = pose[:3, :3] @ points + pose[:3, 3:]
    front = z > 0
    x, y, z = x[front], y[front], z[front]
    wide, high = (
        min(max(math.ceil(K[i, i] / source[i, i] - 1e-6), 1), MAX_SPLAT) for i in range(2)
    )
    left = np.floor(K[0, 0] * x / z + K[0, 2] - (wide - 1) / 2 + 0.5)
    top = np.floor(K[1, 1] * y / z + K[1, 2] - (high - 1) / 2 + 0.5)
    height, width = size
    registered = np.full(height * width, np.inf, np.float32)
    for dy in range(high):
        for dx in range(wide):
            column, row = left + dx, top + dy
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            pixel = (row[inside] * width + column[inside]).astype(np.int64)
            np.minimum.at(registered, pixel, z[inside].astype(np.float32))
    return np.where(np.isfinite(registered), registered, np.float32(np.nan)).reshape(size)
