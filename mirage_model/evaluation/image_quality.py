"""Image quality over all pixels, over pixels covered by the memory, and over the others.

SSIM is torchmetrics'. LPIPS is reported as missing: its backbone's weights lie in no package, and
a figure from another backbone would not be LPIPS.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Bool, Float, UInt8
import numpy as np
from scipy import stats
import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from mirage_model.metrics import psnr

REGIONS = ('all', 'covered', 'uncovered')
QUALITY = tuple(f'{metric}_{region}' for metric in ('psnr', 'ssim') for region in REGIONS)
MISSING = {'lpips': 'the weights of its backbone are not installed'}
"""Metrics that are not computed here, with the reason; they are never reported as a number."""


def quality(
    frames: UInt8[np.ndarray, 'n h w 3'],
    truth: UInt8[np.ndarray, 'n h w 3'],
    covered: Bool[np.ndarray, 'n h w'],
) -> list[dict[str, float]]:
    """Return `QUALITY` of each frame by name, NaN over a region without pixels.

    SSIM over a region is the mean of the map of all of the frame, so that its windows reach
    across.
    """
    rows = []
    for frame, true, mask in zip(_in_unit(frames), _in_unit(truth), torch.from_numpy(covered)):
        _, similar = structural_similarity_index_measure(
            frame[None], true[None], data_range=1.0, return_full_image=True
        )
        similar = similar[0].mean(dim=0)
        row = {}
        for region, pixels in zip(REGIONS, (torch.ones_like(mask), mask, ~mask)):
            row[f'psnr_{region}'] = psnr(frame, true, pixels)
            row[f'ssim_{region}'] = float(similar[pixels].mean())
        rows.append(row)
    return rows


def mean_with_interval(values: Sequence[float], *, seed: int = 0) -> dict[str, float | int]:
    """Return the mean of the finite values, its 95% interval (bootstrap, BCa), and their count.

    A mean of nothing is NaN, and so is the interval of fewer than two different values.
    """
    known = np.array([value for value in values if np.isfinite(value)])
    low = high = float('nan')
    if len(np.unique(known)) > 1:
        interval = stats.bootstrap(
            (known,), np.mean, rng=np.random.default_rng(seed)
        ).confidence_interval
        low, high = float(interval.low), float(interval.high)
    mean = float(known.mean()) if len(known) else float('nan')
    return {'mean': mean, 'low': low, 'high': high, 'count': len(known)}


def _in_unit(frames: UInt8[np.ndarray, 'n h w 3']) -> Float[Tensor, 'n 3 h w']:
    # in double: the variance of a bright flat frame drowns in float32
    return torch.from_numpy(frames).permute(0, 3, 1, 2).double() / 255
