from __future__ import annotations

import math

import pytest
import torch

from mirage_model.memory import Readout
from mirage_model.model.patch_splatting import NEARNESS, REACH, SOFT_EDGE, splat_patches

SIDE, ROWS, COLUMNS = 4, 3, 4


def readout(visible: torch.Tensor, **values: torch.Tensor) -> Readout:
    zeros = torch.zeros(visible.shape)
    given = {
        'depth': zeros + 1,
        'depth_ratio': zeros,
        'offset': torch.zeros(len(visible), 2, *visible.shape[1:]),
        **values,
    }
    return Readout(latents=zeros[:, None], visible=visible, observed=visible, age=zeros, **given)


def oracle(patches: torch.Tensor, shown: Readout, row: int, column: int) -> tuple[list, float]:
    """Return sum and weight at a pixel of the first frame, point by point."""
    total, weight = [0.0] * 3, 0.0
    around = [
        (a, b)
        for a in range(ROWS)
        for b in range(COLUMNS)
        if abs(a - row // SIDE) < 2 and abs(b - column // SIDE) < 2 and shown.visible[0, a, b]
    ]
    nearest = min((float(shown.depth[0, a, b]) for a, b in around), default=1.0)
    for a, b in around:
        scale = math.exp(-float(shown.depth_ratio[0, a, b]))
        x, y = (
            ((pixel + 0.5) / SIDE - 0.5 - cell - float(shown.offset[0, axis, a, b])) / scale
            for axis, pixel, cell in ((0, column, b), (1, row, a))
        )
        kernel = (nearest / float(shown.depth[0, a, b])) ** NEARNESS
        for place in (x, y):
            kernel *= min(max((0.5 + SOFT_EDGE - abs(place)) / (2 * SOFT_EDGE), 0), 1)
        kernel += REACH * math.exp(-3 * (abs(x) + abs(y)))
        u, v = (min(max(place * SIDE + (SIDE - 1) / 2, 0), SIDE - 1) for place in (x, y))
        left, top = min(int(u), SIDE - 2), min(int(v), SIDE - 2)
        for channel in range(3):
            p = patches[0, channel, :, :, a, b]
            upper, lower = (
                (1 - u + left) * float(p[line, left]) + (u - left) * float(p[line, left + 1])
                for line in (top, top + 1)
            )
            total[channel] += kernel * ((1 - v + top) * upper + (v - top) * lower)
        weight += kernel
    return total, weight


def test_splat_equals_the_sum_over_points():
    torch.manual_seed(0)
    shape = (1, ROWS, COLUMNS)
    shown = readout(
        torch.rand(shape) < 0.7,
        depth=1 + torch.rand(shape),
        depth_ratio=0.3 * torch.randn(shape),
        offset=2 * torch.rand(1, 2, ROWS, COLUMNS) - 1,
    )
    patches = torch.rand(1, 3, SIDE, SIDE, ROWS, COLUMNS)
    total, weight = splat_patches(patches, shown)
    for row in range(ROWS * SIDE):
        for column in range(COLUMNS * SIDE):
            expected, share = oracle(patches, shown, row, column)
            assert total[0, :, row, column].tolist() == pytest.approx(expected, abs=1e-5)
            assert float(weight[0, 0, row, column]) == pytest.approx(share, abs=1e-5)


def test_shift_by_pixels_moves_the_image():
    frame = torch.rand(1, 3, 12, 16)
    patches = torch.nn.functional.pixel_unshuffle(frame, SIDE).unflatten(1, (3, SIDE, SIDE))
    visible = torch.ones(1, 3, 4, dtype=torch.bool)
    offset = torch.zeros(1, 2, 3, 4)
    offset[:, 0] = 1 / SIDE
    total, weight = splat_patches(patches, readout(visible, offset=offset))
    moved = total / weight
    # away from the soft edges of patches, a pixel to the right
    assert (moved[0, :, 1::4, 2::4] - frame[0, :, 1::4, 1::4]).abs().max() < 0.01


def test_nothing_visible_has_no_weight():
    shown = readout(torch.zeros(1, ROWS, COLUMNS, dtype=torch.bool))
    total, weight = splat_patches(torch.rand(1, 3, SIDE, SIDE, ROWS, COLUMNS), shown)
    assert not total.any() and not weight.any()
