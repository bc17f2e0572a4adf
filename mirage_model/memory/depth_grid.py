"""Depth maps sampled on the latent grid without inventing points.

Depth edges are detected in inverse depth, which is affine in the pixel on every plane. A floor
towards the horizon is smooth in it, a step is not.
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
    """Return depth at the centres of latent cells, a mask of cells with depth, and one of edges.

    A smooth cell takes the depth at its centre, exact on planes, from the valid pixels around the
    centre. A cell with an edge, or with a hole at its centre, takes the lower median of its valid
    pixels: a sample of one side, never a blend. Depth is 0 where the cell has none.

    An edge is a step between two neighbouring pixels of a cell that neither side explains: inverse
    depth extrapolated from the left misses the right pixel by more than the share ``step``, and
    the other way round. Planes and creases between planes have no edges. If one side is too short
    to extrapolate, the other decides; if both are, the difference of the two pixels does.

    Args:
        depth: Metres. A pixel is valid if its depth is finite and positive.
        height: Rows of the grid.
        width: Columns of the grid.
        enough: Smallest share of valid pixels of a cell with depth.
        step: Smallest relative step of inverse depth that is an edge.

    Raises:
        ValueError: If the grid does not divide the frame.
    """
    frame_height, frame_width = depth.shape[1:]
    if frame_height % height or frame_width % width:
        raise ValueError(
            f'depth: a {height}x{width} grid does not divide {frame_height}x{frame_width} pixels'
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
    """Return whether each pixel has a step, as in `depth_to_grid`, to its right neighbour."""
    padded = torch.nn.functional.pad(inverse, (1, 2), value=torch.nan)
    before, left, right, after = padded.unfold(2, 4, 1).unbind(dim=-1)
    missed = torch.fmin((right - (2 * left - before)).abs(), (left - (2 * right - after)).abs())
    missed = torch.where(missed.isnan(), (right - left).abs(), missed)
    return missed > step * torch.minimum(left, right)


def _any_in_cell(steps: Bool[Tensor, 'n H W'], rows: int, columns: int) -> Bool[Tensor, 'n h w']:
    """Return whether a step lies between two pixels of the same cell."""
    cells = steps.unflatten(2, (-1, columns))[..., : columns - 1].any(dim=-1)
    return cells.unflatten(1, (-1, rows)).any(dim=2)
