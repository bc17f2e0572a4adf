"""Which latent cells, and which pixels, may enter the memory."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool, Float
import torch
from torch import Tensor
from torch.nn import functional as F

from mirage_model.memory import Pixels
from mirage_model.memory.depth_grid import depth_to_grid
from mirage_model.perception import Estimate


@dataclass(frozen=True, kw_only=True)
class WriteFilterConfig:
    """A cell may show at most the shares ``max_sky`` and ``max_moving`` of its pixels as sky and
    as moving.

    Its mean confidence must reach ``min_confidence``.
    """

    max_sky: float = 0.25
    max_moving: float = 0.1
    min_confidence: float = 0.4


def write_mask(
    estimate: Estimate, *, height: int, width: int, config: WriteFilterConfig = WriteFilterConfig()
) -> tuple[Float[Tensor, 'n h w'], Bool[Tensor, 'n h w']]:
    """Depth on the latent grid, and which of its cells may be written: what `Memory.write` takes.

    A cell is kept if it has a depth, no depth edge, little sky, next to nothing that moves, and
    confidence. Raises ValueError unless the grid divides the frames.
    """
    depth, has_depth, edge = depth_to_grid(estimate.depth, height, width)
    valid = has_depth & ~edge
    valid &= mean_in_cell(estimate.sky.float(), depth) <= config.max_sky
    valid &= mean_in_cell(estimate.moving.float(), depth) <= config.max_moving
    valid &= mean_in_cell(estimate.confidence, depth) >= config.min_confidence
    return depth, valid


def pixels_of(
    frames: Float[Tensor, 'n 3 H W'],
    estimate: Estimate,
    *,
    config: WriteFilterConfig = WriteFilterConfig(),
) -> Pixels:
    """The frames with the depth of the pixels that may be remembered, each judged as a cell is."""
    hidden = estimate.sky.float() > config.max_sky
    hidden |= estimate.moving.float() > config.max_moving
    hidden |= estimate.confidence < config.min_confidence
    return Pixels(frames=frames, depth=estimate.depth.masked_fill(hidden, torch.nan))


def mean_in_cell(
    values: Float[Tensor, 'n H W'], cells: Float[Tensor, 'n h w']
) -> Float[Tensor, 'n h w']:
    """The mean of a value of pixels, such as confidence, over those of every cell."""
    return F.adaptive_avg_pool2d(values, cells.shape[1:])
