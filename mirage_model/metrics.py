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


def gradient_energy(frames: Any, valid: Any = None) -> float:
    """Return the mean squared difference of neighbouring pixels, across plus down.

    Args:
        frames: Float tensor (n, 3, H, W).
        valid: Boolean tensor (n, H, W); pairs of valid pixels count. None compares all.

    Returns:
        The energy; NaN where there are no pairs.
    """
    energy = 0.0
    for axis in (-1, -2):
        square = frames.diff(dim=axis).square().mean(dim=1)
        if valid is not None:
            size = valid.shape[axis] - 1
            square = square[valid.narrow(axis, 0, size) & valid.narrow(axis, 1, size)]
        energy += float(square.mean())
    return energy
