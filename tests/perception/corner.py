"""Cameras, a painted corner that they look at, and estimates of it."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from mirage_model.camera import Cameras, directions
from mirage_model.memory import Readout
from mirage_model.perception import Estimate

HEIGHT, WIDTH = 96, 160
TEXTURES = F.interpolate(
    torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0)),
    scale_factor=8,
    mode='bicubic',
).clamp(0, 1)


def cameras_at(world_from_camera: torch.Tensor, *, focal: float = 80.0) -> Cameras:
    n = len(world_from_camera)
    K = torch.tensor([[focal, 0.0, 79.5], [0.0, focal, 47.5], [0.0, 0.0, 1.0]])
    return Cameras(
        K=K.expand(n, 3, 3),
        world_from_camera=world_from_camera,
        times=torch.arange(n, dtype=torch.float64),
        height=HEIGHT,
        width=WIDTH,
    )


def standing(n: int) -> Cameras:
    return cameras_at(torch.eye(4).expand(n, 4, 4))


def render(cameras: Cameras) -> tuple[torch.Tensor, torch.Tensor]:
    """Return frames and depth of a painted corner: a wall at z = 5, one at x = 3, a floor at
    y = 1.5 [m]."""
    normals = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    offsets = torch.tensor([5.0, 3.0, 1.5])
    in_plane = ((0, 1), (2, 1), (0, 2))
    rotation, origin = cameras.world_from_camera[:, :3, :3], cameras.world_from_camera[:, :3, 3]
    rays = directions(cameras) @ rotation[:, None].mT
    depths = (offsets - origin @ normals.T)[:, None, None] / (rays @ normals.T)
    depth, plane = torch.where(depths > 0, depths, torch.inf).min(dim=-1)
    points = origin[:, None, None] + rays * depth[..., None]
    frames = torch.zeros(*depth.shape, 3)
    for index, axes in enumerate(in_plane):
        at = (points[..., axes] / 4).clamp(-1, 1)
        painted = F.grid_sample(
            TEXTURES[index].expand(len(at), -1, -1, -1), at, align_corners=False
        )
        frames = torch.where((plane == index)[..., None], painted.movedim(1, -1), frames)
    return frames.movedim(-1, 1), depth


def pose(metres: tuple[float, float, float], degrees: float) -> torch.Tensor:
    matrix = torch.eye(4)
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    matrix[0, 0], matrix[0, 2], matrix[2, 0], matrix[2, 2] = c, s, -s, c
    matrix[:3, 3] = torch.tensor(metres)
    return matrix


def estimate_of(depth: torch.Tensor) -> Estimate:
    nothing = torch.zeros_like(depth, dtype=torch.bool)
    return Estimate(
        depth=depth,
        cameras=standing(len(depth)),
        confidence=torch.ones_like(depth),
        sky=nothing,
        moving=nothing,
        moving_probability=nothing.float(),
        scaled=torch.zeros(len(depth), dtype=torch.bool),
    )


def readout_of(depth: torch.Tensor, visible: torch.Tensor, observed: torch.Tensor) -> Readout:
    n, h, w = depth.shape
    return Readout(
        latents=torch.zeros(n, 2, h, w),
        visible=visible,
        observed=observed & visible,
        depth=torch.where(visible, depth, 0.0),
        age=torch.zeros(n, h, w),
        offset=torch.zeros(n, 2, h, w),
        depth_ratio=torch.zeros(n, h, w),
    )
