"""Scale estimated depth to the memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
import math

import torch

from mirage_model.memory import Readout
from mirage_model.memory.depth_grid import depth_to_grid
from mirage_model.perception import Estimate


@dataclass(frozen=True, kw_only=True)
class AlignmentConfig:
    """Limits of the alignment."""

    min_cells: int = 12
    """Latent cells that estimate and memory must share."""

    max_scale: float = 2.0
    """Largest factor on depth; the smallest is its reciprocal."""


DEFAULT_ALIGNMENT = AlignmentConfig()


def align(estimate: Estimate, readout: Readout | None, config: AlignmentConfig) -> Estimate:
    """Multiply the depth of all frames by one factor that fits it to the memory.

    s = exp(clip(median over cells of log(readout.depth / depth), -b, b)), b = log(max_scale)

    The median runs over the cells of all frames that the memory covers and that are neither sky,
    nor on a dynamic object, nor at a depth edge: observed cells if there are ``min_cells`` of
    them, since imagined ones drift, else all. With too few cells the estimate is returned
    unchanged.
    """
    if readout is None:
        return estimate
    height, width = readout.depth.shape[-2:]
    static = estimate.depth.masked_fill(estimate.moving, torch.nan)
    depth, valid, edge = depth_to_grid(static, height, width)
    usable = readout.visible & valid & ~edge
    for cells in (usable & readout.observed, usable):
        if int(cells.sum()) >= config.min_cells:
            log_scale = (readout.depth[cells].log() - depth[cells].log()).quantile(0.5)
            bound = math.log(config.max_scale)
            return replace(
                estimate,
                depth=estimate.depth * log_scale.clamp(-bound, bound).exp(),
                scaled=torch.ones_like(estimate.scaled),
            )
    return estimate
