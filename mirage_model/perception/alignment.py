"""Estimated depth brought to the memory's scale, where the memory covers the view."""

from __future__ import annotations

from dataclasses import dataclass, replace
import math

import torch

from mirage_model.memory import Readout
from mirage_model.memory.depth_grid import depth_to_grid
from mirage_model.perception import Estimate


@dataclass(frozen=True, kw_only=True)
class AlignmentConfig:
    """At least ``min_cells`` cells must be shared; a scale is in 1 / max_scale .. max_scale."""

    min_cells: int = 12
    max_scale: float = 2.0


DEFAULT_ALIGNMENT = AlignmentConfig()


def align(estimate: Estimate, readout: Readout | None, config: AlignmentConfig) -> Estimate:
    """Multiply the depth of all frames by one factor that brings it to the memory's.

    s = exp(clip(median over the cells of log(readout.depth / depth), -b, b)), b = log max_scale

    The cells are those of all frames that the memory covers, at which the estimate is neither sky,
    moving nor at a depth edge. Cells that a sensor saw are taken alone where there are
    ``min_cells`` of them: they do not drift, imagined ones inherit the error of what wrote them.
    With too few cells of both kinds depth and ``scaled`` stay as they were.
    """
    if readout is None:
        return estimate
    height, width = readout.depth.shape[-2:]
    still = estimate.depth.masked_fill(estimate.moving, torch.nan)
    depth, valid, edge = depth_to_grid(still, height, width)
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
