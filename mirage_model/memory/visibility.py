"""The visibility rule in plain torch: the point of the memory that each latent cell sees.

All arithmetic is elementwise float32 in a fixed order, without matrix products or fused
operations. `kernels` (numba) and `gpu_reader` (Triton) give the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
import numpy as np
import torch
from torch import Tensor
import torch.nn.functional as F

from mirage_model.camera import Cameras, invert
from mirage_model.memory.points import MAX_SERIAL, NO_POINT


@dataclass(frozen=True, kw_only=True)
class CameraArrays:
    """Pinhole cameras as the float32 arrays that projection reads."""

    rotation: Float[Tensor, 'n 3 3']
    """Rotation of camera_from_world."""

    translation: Float[Tensor, 'n 3']
    """Translation of camera_from_world, metres."""

    focal: Float[Tensor, 'n 2']
    """fx and fy, in cells."""

    centre: Float[Tensor, 'n 2']
    """cx and cy, in cells."""

    height: int
    width: int

    def __len__(self) -> int:
        return len(self.focal)

    @classmethod
    def from_cameras(cls, cameras: Cameras) -> CameraArrays:
        camera_from_world = invert(cameras.world_from_camera.double())
        return cls(
            rotation=camera_from_world[:, :3, :3].float(),
            translation=camera_from_world[:, :3, 3].float(),
            focal=torch.stack([cameras.K[:, 0, 0], cameras.K[:, 1, 1]], dim=-1).float(),
            centre=cameras.K[:, :2, 2].float(),
            height=cameras.height,
            width=cameras.width,
        )

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return rotation, translation, focal and centre."""
        return self.rotation, self.translation, self.focal, self.centre

    def arrays(self) -> tuple[np.ndarray, ...]:
        """Return rotation, translation, focal and centre as contiguous NumPy arrays."""
        return tuple(np.ascontiguousarray(values.numpy()) for values in self.tensors())


@dataclass(frozen=True, kw_only=True)
class Splats:
    """Points with an extent, in the order of writing: all that the visibility rule reads."""

    position: Float[Tensor, 'm 3']
    """Position in the world, metres."""

    size: Float[Tensor, 'm']
    """Edge of the square that a point covers, facing the camera, metres."""

    observed: Bool[Tensor, 'm']
    """Whether a sensor took the point."""

    def __len__(self) -> int:
        return self.position.shape[0]


@dataclass(frozen=True, kw_only=True)
class VisibilityRule:
    """How points compete for the cells of a camera.

    A point takes part if its depth is in ``near`` to ``far``, ``far`` excluded. It covers the cell
    that it projects into, and all cells whose centres its square covers within ``splat_size``. The
    nearest point wins a cell. For this comparison the depth of an imagined point grows by the
    share ``tolerance``. With ``splat_size`` > 1 the depth also grows with the distance of the
    cell's centre from the point, as on a surface at 45 degrees, so that a point does not take a
    cell that its neighbour on the same surface projects into. Ties go to the observed point, then
    to the later one.
    """

    splat_size: int
    """Largest number of cells across that a point covers. Odd; 1 is one cell a point."""

    tolerance: float
    """Share by which an imagined point counts as farther."""

    near: float
    """Smallest depth, metres."""

    far: float
    """Depth from which points are left out, metres."""


def project(
    position: Float[Tensor, '*#m 3'],
    rotation: Float[Tensor, '*#m 3 3'],
    translation: Float[Tensor, '*#m 3'],
    focal: Float[Tensor, '*#m 2'],
    centre: Float[Tensor, '*#m 2'],
) -> tuple[Float[Tensor, '*#m'], Float[Tensor, '*#m'], Float[Tensor, '*#m']]:
    """Return x and y in cells, and depth in metres, by the same operations in the same order."""
    x, y, z = position.unbind(dim=-1)
    rows = rotation.unbind(dim=-2)
    in_camera = []
    for row, shift in zip(rows, translation.unbind(dim=-1), strict=True):
        a, b, c = row.unbind(dim=-1)
        in_camera.append(((a * x + b * y) + c * z) + shift)
    across, down, depth = in_camera
    fx, fy = focal.unbind(dim=-1)
    cx, cy = centre.unbind(dim=-1)
    return (across / depth) * fx + cx, (down / depth) * fy + cy, depth


def nearest(
    points: Splats, cameras: CameraArrays, rule: VisibilityRule
) -> tuple[Int[Tensor, 'n h w'], Float[Tensor, 'n h w']]:
    """Return the index and the rule's depth of the point that wins each cell, or -1 and inf."""
    count = cameras.height * cameras.width
    device = points.position.device
    best = torch.full((len(cameras), count), NO_POINT, dtype=torch.int64, device=device)
    # one word to compare: depth above, then imagined after observed, then early after late
    order = MAX_SERIAL - torch.arange(len(points), device=device)
    order += torch.where(points.observed, 0, MAX_SERIAL + 1)
    reach = rule.splat_size // 2
    for camera in range(len(cameras)):
        focal = cameras.focal[camera]
        u, v, depth = project(points.position, *(values[camera] for values in cameras.tensors()))
        inside = (depth >= rule.near) & (depth < rule.far)
        # bounds beyond the reach of any cell keep the conversion to integers defined
        inside &= (u > -reach - 1) & (u < cameras.width + reach + 1)
        inside &= (v > -reach - 1) & (v < cameras.height + reach + 1)
        chosen = inside.nonzero().squeeze(-1)
        u, v, depth = u[chosen], v[chosen], depth[chosen]
        column, row = torch.floor(u + 0.5), torch.floor(v + 0.5)
        half_x = points.size[chosen] * focal[0] / depth * 0.5
        half_y = points.size[chosen] * focal[1] / depth * 0.5
        farther = torch.where(points.observed[chosen], 0.0, torch.tensor(rule.tolerance))
        for dy in range(-reach, reach + 1):
            for dx in range(-reach, reach + 1):
                x, y = column + dx, row + dy
                offset_x, offset_y = (u - x).abs(), (v - y).abs()
                covers = (x >= 0) & (x < cameras.width) & (y >= 0) & (y < cameras.height)
                if dx:
                    covers &= offset_x < half_x
                if dy:
                    covers &= offset_y < half_y
                rank = depth
                if rule.splat_size > 1:
                    rank = depth + depth * torch.maximum(offset_x / focal[0], offset_y / focal[1])
                rank = rank + rank * farther
                word = (rank.view(torch.int32).long() << 32) | order[chosen]
                cell = (y * cameras.width + x).long()[covers]
                best[camera].scatter_reduce_(0, cell, word[covers], 'amin')
    shape = (len(cameras), cameras.height, cameras.width)
    covered = best != NO_POINT
    index = torch.where(covered, MAX_SERIAL - (best & MAX_SERIAL), -1)
    rank = (best >> 32).int().view(torch.float32)
    return index.view(shape), torch.where(covered, rank, torch.inf).view(shape)


def free_depth(depth: Float[Tensor, 'n h w'], rule: VisibilityRule) -> Float[Tensor, 'n h w']:
    """Return the depth up to which space is surely free in front of an observed depth map.

    It is the smallest depth of the 3x3 cells around, less the tolerance, so that it holds near
    depth edges. It is 0 if one of these cells lies outside the image or has no depth.
    """
    valid = torch.isfinite(depth) & (depth > 0)
    padded = F.pad(torch.where(valid, depth, 0.0), (1, 1, 1, 1))
    surface = -F.max_pool2d(-padded[:, None], 3, stride=1)[:, 0]
    return surface - surface * rule.tolerance


def in_free_space(
    points: Splats, depth: Float[Tensor, 'n h w'], cameras: CameraArrays, rule: VisibilityRule
) -> Bool[Tensor, 'm']:
    """Return which points lie more than their size in front of the depth that cameras observed."""
    limit = free_depth(depth, rule)
    free = torch.zeros_like(points.observed)
    for camera in range(len(cameras)):
        u, v, distance = project(
            points.position, *(values[camera] for values in cameras.tensors())
        )
        inside = (distance >= rule.near) & (u >= -0.5) & (u < cameras.width - 0.5)
        inside &= (v >= -0.5) & (v < cameras.height - 0.5)
        column = torch.where(inside, torch.floor(u + 0.5), 0).long().clamp(max=cameras.width - 1)
        row = torch.where(inside, torch.floor(v + 0.5), 0).long().clamp(max=cameras.height - 1)
        free |= inside & (distance + points.size < limit[camera, row, column])
    return free
