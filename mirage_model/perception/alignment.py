"""Scale estimated depth to the memory, and estimated cameras to the planned ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
import math

from jaxtyping import Float
import torch
from torch import Tensor

from mirage_model.camera import Cameras
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


_MIN_EXTENT = 0.05
"""Root mean square distance of cameras from their centre, below which it gives no scale [m]."""

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


def align_cameras(
    world_from_camera: Float[Tensor, 'n 4 4'], planned: Cameras
) -> tuple[Cameras, float | None]:
    """Map cameras of another world and unit into the planned ones' by a similarity transform.

    The rotation is the mean over the cameras, so that it is defined on a straight line too. Scale
    and translation are the least-squares fit of the positions.

    Args:
        world_from_camera: Found cameras, in any world and unit.
        planned: Cameras of the same frames.

    Returns:
        The cameras in the planned world, and metres per found unit. The scale is None, and the
        planned positions are kept, where the cameras hardly move.
    """
    found, plan = world_from_camera.double(), planned.world_from_camera.double()
    u, _, vh = torch.linalg.svd((plan[:, :3, :3] @ found[:, :3, :3].mT).sum(dim=0))
    u[:, -1] *= torch.det(u @ vh).sign()
    rotation = u @ vh
    rotated = found[:, :3, 3] @ rotation.T
    centred = rotated - rotated.mean(dim=0)
    target = plan[:, :3, 3] - plan[:, :3, 3].mean(dim=0)
    overlap, extent = (centred * target).sum(), target.square().sum(dim=1).mean().sqrt()
    scale = None
    aligned = plan.clone()
    if len(plan) > 1:
        aligned[:, :3, :3] = rotation @ found[:, :3, :3]
    if extent >= _MIN_EXTENT and overlap > 0:
        scale = float(overlap / centred.square().sum())
        aligned[:, :3, 3] = scale * centred + plan[:, :3, 3].mean(dim=0)
    return replace(planned, world_from_camera=aligned.to(planned.world_from_camera)), scale
