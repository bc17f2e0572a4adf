"""Depth of a frame brought to the latent grid without inventing points.

The tests for depth edges work on inverse depth, which is affine in the pixel on every plane,
however steep: a floor towards the horizon is smooth, a step is not.
"""

from __future__ import annotations

from jaxtyping import Bool, Float
import torch
from torch import Tensor


def depth_to_grid(
    depth: Float[Tensor, 'n H W'],
    height: int,
    width: int,
    *,
    enough: float = 0.5,
    step: float = 0.1,
) -> tuple[Float[Tensor, 'n h w'], Bool[Tensor, 'n h w'], Bool[Tensor, 'n h w']]:
    """Depth at the centre of every cell of the latent grid, where it is valid, and where it has an
    edge.

    A pixel is valid if its depth is finite and positive, a cell if at least the share ``enough``
    of its pixels is. Depth is 0 where it is not valid. A smooth cell takes the depth at its
    centre, exact on planes, from the valid pixels around it; a cell with an edge, or with a hole
    at its centre, takes the lower median of its valid pixels: one sample of one side, never a
    blend.

    An edge is a step between two neighbouring pixels of the cell that neither side explains:
    inverse depth extrapolated from the left misses the right pixel by more than the share
    ``step``, and the other way round. A plane has none, nor has a crease between two planes. Where
    one side is too short to extrapolate the other decides, and where both are, the difference of
    the two pixels itself.

    Raises ValueError unless the grid divides the frame.
    """
    frame_height, frame_width = depth.shape[1:]
    if frame_height % height or frame_width % width:
        raise ValueError(
            f'a {height}x{width} grid does not divide {frame_height}x{frame_width} depth'
        )
    rows, columns = frame_height // height, frame_width // width
    valid_pixel = torch.isfinite(depth) & (depth > 0)
    depth = torch.where(valid_pixel, depth, torch.nan)
    inverse = depth.reciprocal()

    edge = _any_in_cell(steps(inverse, step), rows, columns)
    edge |= _any_in_cell(steps(inverse.mT, step), columns, rows).mT

    cells = depth.unflatten(1, (height, rows)).unflatten(3, (width, columns)).transpose(2, 3)
    valid = cells.isfinite().float().mean(dim=(3, 4)) >= enough
    median = cells.flatten(3).nanmedian(dim=-1).values
    middle = cells[..., _middle(rows), _middle(columns)].reciprocal().mean(dim=(3, 4)).reciprocal()
    result = torch.where(edge | middle.isnan(), median, middle)
    return torch.where(valid, result, 0.0), valid, edge & valid


def _middle(size: int) -> slice:
    return slice((size - 1) // 2, size // 2 + 1)


def steps(inverse: Float[Tensor, 'n H W'], step: float) -> Bool[Tensor, 'n H W']:
    """Whether there is a step, as `depth_to_grid` says, between a pixel and the one to its right."""
    padded = torch.nn.functional.pad(inverse, (1, 2), value=torch.nan)
    before, left, right, after = padded.unfold(2, 4, 1).unbind(dim=-1)
    missed = torch.fmin((right - (2 * left - before)).abs(), (left - (2 * right - after)).abs())
    missed = torch.where(missed.isnan(), (right - left).abs(), missed)
    return missed > step * torch.minimum(left, right)


def _any_in_cell(steps: Bool[Tensor, 'n H W'], rows: int, columns: int) -> Bool[Tensor, 'n h w']:
    """Whether a cell holds a step between two of its own pixels."""
    cells = steps.unflatten(2, (-1, columns))[..., : columns - 1].any(dim=-1)
    return cells.unflatten(1, (-1, rows)).any(dim=2)
