"""Splat patches of pixels from where a memory shows their points.

A latent point stands for a square patch of pixels that faces the camera. The readout gives, at
each cell, where the nearest point projects and how its depth changed. So the patch is moved by a
fraction of a cell and scaled, which latents alone cannot be.
"""

from __future__ import annotations

from jaxtyping import Float, Int
import torch
from torch import Tensor
from torch.nn import functional as F

from mirage_model.memory import Readout

SOFT_EDGE = 0.12
"""Half the width of the ramp from one patch to the next [cells]."""
REACH = 1e-3
"""Weight of a patch's border pixels beyond the patch, relative to pixels in a patch."""
MAX_SCALE = 4.0
"""Largest magnification, and inverse of the smallest."""
NEARNESS = 8
"""Exponent of inverse depth in the weight of a patch: nearer surfaces hide farther ones."""


def splat_patches(
    patches: Float[Tensor, 'n c s s h w'], readout: Readout, *, edge: float = SOFT_EDGE
) -> tuple[Float[Tensor, 'n c H W'], Float[Tensor, 'n 1 H W']]:
    """Return the weighted sum of the patches at each pixel, and the sum of the weights.

    A pixel is taken from the points of its own cell and of the eight around, bilinearly within
    their patches. A pixel that no patch covers is taken from the borders of patches nearby, with a
    small weight.

    Args:
        patches: Pixels of the point that each cell shows, row and column in the patch first.
        edge: Half the width of the ramp from one patch to the next [cells]; 0.5 interpolates
            patches of one pixel linearly.
    """
    n, _, side, _, h, w = patches.shape
    image = F.pixel_shuffle(patches.flatten(1, 3), side)
    inverse = torch.where(readout.visible, 1 / readout.depth.clamp(min=1e-6), 0.0)
    nearest = F.max_pool2d(inverse[:, None], 3, stride=1, padding=1)[:, 0].clamp(min=1e-9)
    scale = readout.depth_ratio.neg().exp().clamp(1 / MAX_SCALE, MAX_SCALE)
    points = [*readout.offset.unbind(dim=1), scale, inverse, readout.visible.float()]
    # beyond the grid there are no points; a scale of 1 keeps the division defined
    beyond_grid = (0.0, 0.0, 1.0, 0.0, 0.0)
    padded = [
        F.pad(values, (1, 1, 1, 1), value=value)
        for values, value in zip(points, beyond_grid, strict=True)
    ]
    in_cell = (torch.arange(side, device=patches.device) + 0.5) / side - 0.5
    rows, columns = (torch.arange(size, device=patches.device) for size in (h, w))
    total = torch.zeros_like(image)
    weight = torch.zeros_like(image[:, :1])
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            x, y, zoom, nearness, known = (
                values[:, 1 + dy : 1 + dy + h, 1 + dx : 1 + dx + w] for values in padded
            )
            # position of the pixels in the patch, -0.5..0.5 from side to side: n h w s
            across = (in_cell - (dx + x)[..., None]) / zoom[..., None]
            down = (in_cell - (dy + y)[..., None]) / zoom[..., None]
            share = known * (nearness / nearest).pow(NEARNESS)
            kernel = (
                _box(down, edge)[..., :, None]
                * (_box(across, edge) * share[..., None])[..., None, :]
            )
            tail_across = REACH * known[..., None] * torch.exp(-3 * across.abs())
            kernel += torch.exp(-3 * down.abs())[..., :, None] * tail_across[..., None, :]
            kernel = _as_image(kernel)
            grid_x = _sample_position(across, columns + dx, w)[..., None, :].expand(
                -1, -1, -1, side, -1
            )
            grid_y = _sample_position(down, (rows + dy)[:, None], h)[..., :, None].expand(
                -1, -1, -1, -1, side
            )
            grid = torch.stack([_as_image(grid_x)[:, 0], _as_image(grid_y)[:, 0]], dim=-1)
            total += kernel * F.grid_sample(image, grid, align_corners=False)
            weight += kernel
    return total, weight


def _as_image(values: Float[Tensor, 'n h w s s']) -> Float[Tensor, 'n 1 H W']:
    return values.transpose(2, 3).flatten(3, 4).flatten(1, 2)[:, None]


def _box(position: Tensor, edge: float) -> Tensor:
    """Return 1 inside a patch, 0 outside, with soft edges."""
    return ((0.5 + edge - position.abs()) / (2 * edge)).clamp(0, 1)


def _sample_position(
    position: Float[Tensor, 'n h w s'], cell: Int[Tensor, '*hw'], cells: int
) -> Float[Tensor, 'n h w s']:
    """Return positions in the patch of a cell as `grid_sample` takes them.

    They are kept between the centres of the patch's border pixels, so that no other patch is
    sampled.
    """
    half = 0.5 - 0.5 / position.shape[-1]
    inside = position.clamp(-half, half)
    return (2 * (inside + cell[..., None]) + 1) / cells - 1
