"""Which remembered cell a camera sees: the rule, in plain torch.

All arithmetic is elementwise float32 in a fixed order, with no matrix product and nothing fused,
so that every implementation of the rule gives the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
import torch
from torch import Tensor
import torch.nn.functional as F

from mirage_model.camera import Cameras, invert

NOTHING = torch.iinfo(torch.int64).max
LATEST = torch.iinfo(torch.int32).max


@dataclass(frozen=True, kw_only=True)
class Views:
    """Cameras taken apart into what projection needs, float32."""

    rotation: Float[Tensor, 'n 3 3']
    translation: Float[Tensor, 'n 3']
    focal: Float[Tensor, 'n 2']
    centre: Float[Tensor, 'n 2']
    height: int
    width: int

    @classmethod
    def of(cls, cameras: Cameras) -> Views:
        camera_from_world = invert(cameras.world_from_camera.double())
        return cls(
            rotation=camera_from_world[:, :3, :3].float(),
            translation=camera_from_world[:, :3, 3].float(),
            focal=torch.stack([cameras.K[:, 0, 0], cameras.K[:, 1, 1]], dim=-1).float(),
            centre=cameras.K[:, :2, 2].float(),
            height=cameras.height,
            width=cameras.width,
        )


@dataclass(frozen=True, kw_only=True)
class Points:
    """What of remembered cells decides who is seen; ``size`` is metres across a cell."""

    position: Float[Tensor, 'm 3']
    size: Float[Tensor, 'm']
    observed: Bool[Tensor, 'm']

    def __len__(self) -> int:
        return self.position.shape[0]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How cells compete for a view.

    A cell takes part where its depth is in ``near`` to ``far``, the end left out and far below
    what float32 holds. It covers the cell that its point falls into, and where its metric size
    makes it larger than that, all whose centres its square holds, but no more than ``splat_size``
    across (odd; 1 is one point a cell). The nearest wins; for this an imagined cell counts as farther by the share ``tolerance``, and
    with ``splat_size`` > 1 every cell as receding from its point at 45 degrees, so that a cell hit
    squarely is not taken by its neighbour on the same surface. Of equals the observed wins, then
    the later written.
    """

    splat_size: int
    tolerance: float
    near: float
    far: float


def project(
    position: Float[Tensor, '*#m 3'],
    rotation: Float[Tensor, '*#m 3 3'],
    translation: Float[Tensor, '*#m 3'],
    focal: Float[Tensor, '*#m 2'],
    centre: Float[Tensor, '*#m 2'],
) -> tuple[Float[Tensor, '*#m'], Float[Tensor, '*#m'], Float[Tensor, '*#m']]:
    """Cell coordinates x and y, and depth, each by the same operations in the same order."""
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
    points: Points, views: Views, rule: Rule
) -> tuple[Int[Tensor, 'n h w'], Float[Tensor, 'n h w']]:
    """Index of the point that wins each cell, or -1, and the depth it won with, or infinity."""
    count = views.height * views.width
    device = points.position.device
    best = torch.full((len(views.focal), count), NOTHING, dtype=torch.int64, device=device)
    # one word to compare: depth above, then imagined after observed, then early after late
    order = LATEST - torch.arange(len(points), device=device)
    order += torch.where(points.observed, 0, LATEST + 1)
    reach = rule.splat_size // 2
    for camera in range(len(views.focal)):
        focal = views.focal[camera]
        u, v, depth = project(
            points.position,
            views.rotation[camera],
            views.translation[camera],
            focal,
            views.centre[camera],
        )
        inside = (depth >= rule.near) & (depth < rule.far)
        # a bound that no cell in view reaches keeps the conversion to integers defined
        inside &= (u > -reach - 1) & (u < views.width + reach + 1)
        inside &= (v > -reach - 1) & (v < views.height + reach + 1)
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
                covers = (x >= 0) & (x < views.width) & (y >= 0) & (y < views.height)
                if dx:
                    covers &= offset_x < half_x
                if dy:
                    covers &= offset_y < half_y
                rank = depth
                if rule.splat_size > 1:
                    rank = depth + depth * torch.maximum(offset_x / focal[0], offset_y / focal[1])
                rank = rank + rank * farther
                word = (rank.view(torch.int32).long() << 32) | order[chosen]
                cell = (y * views.width + x).long()[covers]
                best[camera].scatter_reduce_(0, cell, word[covers], 'amin')
    shape = (len(views.focal), views.height, views.width)
    found = best != NOTHING
    index = torch.where(found, LATEST - (best & LATEST), -1)
    rank = (best >> 32).int().view(torch.float32)
    return index.view(shape), torch.where(found, rank, torch.inf).view(shape)


def surface_of(depth: Float[Tensor, 'n h w'], rule: Rule) -> Float[Tensor, 'n h w']:
    """How near a point must be so that a camera which saw ``depth`` has surely seen through it.

    To be sure near depth edges it is the nearest depth of the 3x3 cells around, less the
    tolerance, and 0 where one of them lies outside the view or has no depth.
    """
    valid = torch.isfinite(depth) & (depth > 0)
    padded = F.pad(torch.where(valid, depth, 0.0), (1, 1, 1, 1))
    surface = -F.max_pool2d(-padded[:, None], 3, stride=1)[:, 0]
    return surface - surface * rule.tolerance


def seen_through(
    points: Points, depth: Float[Tensor, 'n h w'], views: Views, rule: Rule
) -> Bool[Tensor, 'm']:
    """Points more than their size in front of what the views saw at ``depth``."""
    surface = surface_of(depth, rule)
    gone = torch.zeros_like(points.observed)
    for camera in range(len(views.focal)):
        u, v, distance = project(
            points.position,
            views.rotation[camera],
            views.translation[camera],
            views.focal[camera],
            views.centre[camera],
        )
        inside = (distance >= rule.near) & (u >= -0.5) & (u < views.width - 0.5)
        inside &= (v >= -0.5) & (v < views.height - 0.5)
        column = torch.where(inside, torch.floor(u + 0.5), 0).long().clamp(max=views.width - 1)
        row = torch.where(inside, torch.floor(v + 0.5), 0).long().clamp(max=views.height - 1)
        gone |= inside & (distance + points.size < surface[camera, row, column])
    return gone
