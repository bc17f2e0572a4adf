"""Estimated depth brought to the memory's scale, where the memory covers the view."""

from __future__ import annotations

from dataclasses import dataclass, replace
import math

from jaxtyping import Bool, Float
import torch
from torch import Tensor

from mirage_model.memory import Readout
from mirage_model.memory.grid import depth_to_grid
from mirage_model.perception import Estimate


@dataclass(frozen=True, kw_only=True)
class AlignmentConfig:
    """``min_cells`` cells must be shared; a scale stays within 1 / max_scale .. max_scale."""

    min_cells: int = 12
    max_scale: float = 2.0


DEFAULT_ALIGNMENT = AlignmentConfig()


def align(estimate: Estimate, readout: Readout | None, config: AlignmentConfig) -> Estimate:
    """Multiply every frame's depth by one factor that brings it to the memory's.

    s = exp(clip(median over the cells of log(readout.depth / depth), -b, b)), b = log max_scale

    The cells are those that the memory covers, at which the estimate is neither sky, moving nor at
    a depth edge. Cells that a sensor saw are taken alone where a frame has ``min_cells`` of them:
    they do not drift, imagined ones inherit the error of the frame that wrote them. A frame with
    too few cells of both kinds takes the median over the whole chunk; if that has too few as well,
    its scale is 1 and ``scaled`` stays as it was.
    """
    if readout is None:
        return estimate
    height, width = readout.depth.shape[-2:]
    still = estimate.depth.masked_fill(estimate.moving, torch.nan)
    depth, valid, edge = depth_to_grid(still, height, width)
    usable = readout.visible & valid & ~edge
    log_ratio = torch.where(usable, readout.depth.log() - depth.log(), 0.0)
    chunk = _median(log_ratio, usable, usable & readout.observed, config.min_cells)
    log_scales = [
        _median(log_ratio[i], usable[i], usable[i] & readout.observed[i], config.min_cells)
        for i in range(len(depth))
    ]
    log_scales = [chunk if value is None else value for value in log_scales]
    aligned = torch.tensor([value is not None for value in log_scales], device=depth.device)
    bound = math.log(config.max_scale)
    log_scale = depth.new_tensor([value or 0.0 for value in log_scales]).clamp(-bound, bound)
    return replace(
        estimate,
        depth=estimate.depth * log_scale.exp()[:, None, None],
        scaled=estimate.scaled | aligned,
    )


def _median(
    values: Float[Tensor, '*cells'],
    usable: Bool[Tensor, '*cells'],
    preferred: Bool[Tensor, '*cells'],
    min_cells: int,
) -> float | None:
    """Median over the preferred values, or over all usable ones, or None: what is enough."""
    for chosen in (preferred, usable):
        if int(chosen.sum()) >= min_cells:
            return float(values[chosen].quantile(0.5))
    return None
