"""Fit an image to the model's size: crop it about the centre to the aspect, then scale it; its K
with it.

Colours, depth and labels of one camera are cropped alike, so that a pixel of one belongs to that
pixel of the others.
"""

from __future__ import annotations

import cv2
from jaxtyping import Float, Float64, Shaped
import numpy as np


def fit_image(
    image: Shaped[np.ndarray, 'h w *c'], height: int, width: int
) -> Shaped[np.ndarray, '{height} {width} *c']:
    """Return an image of colours at a size: averaged where it gets smaller, interpolated where it
    gets larger."""
    cropped = crop(image, height, width)
    method = cv2.INTER_AREA if cropped.shape[0] > height else cv2.INTER_LINEAR
    return cv2.resize(cropped, (width, height), interpolation=method)


def fit_depth(
    depth: Shaped[np.ndarray, 'h w'], height: int, width: int
) -> Shaped[np.ndarray, '{height} {width}']:
    """Return depth or labels at a size: the value at every pixel's centre, never a blend of two
    surfaces."""
    return cv2.resize(
        crop(depth, height, width), (width, height), interpolation=cv2.INTER_NEAREST_EXACT
    )


def fit_K(
    K: Float[np.ndarray, '*batch 3 3'], size: tuple[int, int], height: int, width: int
) -> Float64[np.ndarray, '*batch 3 3']:
    """Return the intrinsics of an image of (height, width) ``size`` after `fit_image`.

    The centre of the first pixel is (0, 0), so scaling by s takes c to (c + 0.5) s - 0.5.
    """
    top, left, crop_height, crop_width = _crop(size, height, width)
    fitted = np.array(K, np.float64)
    fitted[..., :2, 2] += 0.5 - np.array([left, top])
    fitted[..., :2, :] *= np.array([[width / crop_width], [height / crop_height]])
    fitted[..., :2, 2] -= 0.5
    return fitted


def crop(
    image: Shaped[np.ndarray, 'h w *c'], height: int, width: int
) -> Shaped[np.ndarray, 'crop_h crop_w *c']:
    """Return the part of an image that `fit_image` scales: the largest one with the aspect, about
    the centre."""
    top, left, crop_height, crop_width = _crop(image.shape[:2], height, width)
    return image[top : top + crop_height, left : left + crop_width]


def _crop(size: tuple[int, ...], height: int, width: int) -> tuple[int, int, int, int]:
    """Return top, left, height and width of the crop."""
    scale = min(size[0] / height, size[1] / width)
    crop_height, crop_width = round(height * scale), round(width * scale)
    return (size[0] - crop_height) // 2, (size[1] - crop_width) // 2, crop_height, crop_width
