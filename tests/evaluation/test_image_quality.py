"""Image quality equals closed forms and values worked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mirage_model.evaluation.image_quality import mean_with_interval, quality
from mirage_model.metrics import PEAK_DB


def frames(value: int, count: int = 1) -> np.ndarray:
    return np.full((count, 24, 32, 3), value, np.uint8)


def test_psnr_of_a_constant_error_in_every_region():
    """20 log10(255 / error); the left half is off by 51, the right by 25.5 on average."""
    truth, imagined = frames(100), frames(100)
    imagined[:, :, :16] += 51
    imagined[:, :, 16:] += 17
    covered = np.zeros((1, 24, 32), bool)
    covered[:, :, :16] = True
    (row,) = quality(imagined, truth, covered)
    assert row['psnr_covered'] == pytest.approx(20 * math.log10(5), abs=1e-4)
    assert row['psnr_uncovered'] == pytest.approx(20 * math.log10(15), abs=1e-4)
    both = (0.2**2 + (1 / 15) ** 2) / 2
    assert row['psnr_all'] == pytest.approx(-10 * math.log10(both), abs=1e-4)


def test_ssim_of_two_flat_frames_is_its_luminance_term():
    """(2 a b + c1) / (a^2 + b^2 + c1) with c1 = 0.01^2, for there is neither contrast nor
    structure."""
    a, b, c1 = 102 / 255, 153 / 255, 0.01**2
    (row,) = quality(frames(102), frames(153), np.ones((1, 24, 32), bool))
    expected = (2 * a * b + c1) / (a * a + b * b + c1)
    assert row['ssim_all'] == row['ssim_covered'] == pytest.approx(expected, abs=1e-5)
    assert math.isnan(row['ssim_uncovered']) and math.isnan(row['psnr_uncovered'])


def ssim_by_loops(a: np.ndarray, b: np.ndarray, y: int, x: int) -> float:
    """Return SSIM of one channel at a pixel away from the border: 11x11 Gaussian, sigma 1.5."""
    axis = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window = np.outer(axis, axis) / axis.sum() ** 2
    p, q = a[y - 5 : y + 6, x - 5 : x + 6], b[y - 5 : y + 6, x - 5 : x + 6]
    mp, mq = (window * p).sum(), (window * q).sum()
    vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
    both = (window * (p - mp) * (q - mq)).sum()
    c1, c2 = 0.01**2, 0.03**2
    return (2 * mp * mq + c1) * (2 * both + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2))


def test_ssim_over_a_region_is_the_map_at_its_pixels():
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 256, (1, 24, 32, 3), dtype=np.uint8)
    imagined = (truth * 0.7 + 20).astype(np.uint8)
    covered = np.zeros((1, 24, 32), bool)
    covered[0, 11, 14] = True
    (row,) = quality(imagined, truth, covered)
    a, b = imagined[0] / 255, truth[0] / 255
    expected = np.mean([ssim_by_loops(a[..., c], b[..., c], 11, 14) for c in range(3)])
    assert row['ssim_covered'] == pytest.approx(expected, abs=1e-3)


def test_equal_frames_have_the_peak_and_not_infinity():
    (row,) = quality(frames(7), frames(7), np.ones((1, 24, 32), bool))
    assert row['psnr_all'] == PEAK_DB and row['ssim_all'] == pytest.approx(1.0)


def test_mean_with_interval():
    values = torch.linspace(0, 1, 101).tolist() + [math.nan]
    found = mean_with_interval(values)
    assert found['count'] == 101 and found['mean'] == pytest.approx(0.5)
    # the normal approximation: 1.96 standard errors of a uniform sample
    half = 1.96 * np.std(values[:-1], ddof=1) / math.sqrt(101)
    assert found['low'] == pytest.approx(0.5 - half, abs=0.01)
    assert found['high'] == pytest.approx(0.5 + half, abs=0.01)
    assert found == mean_with_interval(values)
    single = mean_with_interval([3.0])
    assert single['mean'] == 3.0 and math.isnan(single['low']) and single['count'] == 1
    assert math.isnan(mean_with_interval([math.nan])['mean'])
