"""Image quality."""

from __future__ import annotations

import math
from typing import Any

PEAK_DB = 100.0
"""PSNR of identical frames, so that means stay finite."""


def psnr(frames: Any, truth: Any, valid: Any = None) -> float:
    """Return the peak signal-to-noise ratio [dB] of colours in 0..1, at most `PEAK_DB`.

    Args:
        frames, truth: Float arrays or tensors of one shape, (..., 3, H, W) where ``valid`` is
        given.
        valid: Boolean (..., H, W), the pixels to compare; None compares all.

    Returns:
        10 log10(1 / mean squared error); NaN where there are no pixels.
    """
    square = (frames - truth) ** 2
    if valid is not None:
        square = square.mean(-3)[valid]
    if 0 in square.shape:
        return math.nan
    error = float(square.mean())
    return min(-10 * math.log10(error), PEAK_DB) if error > 0 else PEAK_DB
