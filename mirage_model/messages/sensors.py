"""What sensors' messages of ROS say, whatever library has read them: intrinsics, and depth as compressedDepth sends it."""

from __future__ import annotations

from array import array

import cv2
from jaxtyping import Float, Float32, UInt8
import numpy as np

COMPRESSED_DEPTHS = {
    f'{kind}; compressedDepth{png}' for kind in ('16UC1', '32FC1') for png in (' png', '')
}
"""What the compressedDepth transport calls its PNG; older versions do not say that it is one."""
COMPRESSED_DEPTH_HEADER = 12
"""Bytes before the PNG: how it is stored, and two float32."""


def decompressed_depth(
    kind: str, data: bytes | UInt8[np.ndarray, 'n'] | array
) -> Float32[np.ndarray, 'h w']:
    """Metres of what the compressedDepth transport sent, NaN where there are none; ``kind`` is its format.

    16UC1 is millimetres; of 32FC1 the PNG holds a / depth + b, a and b being in the header, and 0 for none.
    Raises ValueError.
    """
    if kind not in COMPRESSED_DEPTHS:
        raise ValueError(f'depth: format {kind!r} is not one of {sorted(COMPRESSED_DEPTHS)}')
    every = np.frombuffer(data, np.uint8)
    header, png = every[:COMPRESSED_DEPTH_HEADER], every[COMPRESSED_DEPTH_HEADER:]
    stored = cv2.imdecode(png, cv2.IMREAD_UNCHANGED) if len(png) else None
    if stored is None or stored.dtype != np.uint16 or stored.ndim != 2:
        raise ValueError(f'depth: {kind!r} that holds no PNG of 16 bits')
    if kind.startswith('16UC1'):
        return np.where(stored == 0, np.float32(np.nan), stored * np.float32(0.001))
    a, b = header[4:].copy().view('<f4')
    with np.errstate(all='ignore'):
        depth = a / (stored.astype(np.float32) - b)
    return np.where(stored == 0, np.float32(np.nan), depth)


def intrinsics(message) -> Float[np.ndarray, '3 3']:
    """Intrinsics of the rectified image: the left of P, or K where there is no P and no distortion.

    Raises ValueError for a camera that is not calibrated or not rectified, and for binning and regions of interest.
    """
    if message.height == 0 or message.width == 0:
        raise ValueError(f'image size {message.height}x{message.width}')
    region = message.roi
    whole = (region.width, region.height) in ((0, 0), (message.width, message.height))
    whole &= (region.x_offset, region.y_offset) == (0, 0)
    if max(message.binning_x, message.binning_y) > 1 or not whole:
        raise ValueError('binning and regions of interest are not taken')
    if message.p[0]:
        K = np.array(message.p).reshape(3, 4)[:, :3].copy()
    elif not any(message.d):
        K = np.array(message.k).reshape(3, 3)
    else:
        raise ValueError('distorted and without P; rectified images are needed')
    pinhole = np.array([[K[0, 0], 0, K[0, 2]], [0, K[1, 1], K[1, 2]], [0, 0, 1]])
    if not np.isfinite(K).all() or (K != pinhole).any() or K[0, 0] <= 0 or K[1, 1] <= 0:
        raise ValueError(f'not the intrinsics of a calibrated camera: {K.tolist()}')
    return K
