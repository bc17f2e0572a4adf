"""Clips of planes, whose depth is known."""

from __future__ import annotations

import torch

from mirage_model.camera import Cameras
from mirage_model.clip import Clip


def clip_of(
    name: str,
    *,
    scene: str,
    seed: int = 0,
    frames: int = 17,
    size: tuple[int, int] = (32, 48),
) -> Clip:
    """Return a clip of a wall 3 m away that fills the view, with the camera moving sideways."""
    height, width = size
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.randint(
        0, 256, (frames, height, width, 3), dtype=torch.uint8, generator=generator
    )
    world_from_camera = torch.eye(4).repeat(frames, 1, 1)
    world_from_camera[:, 0, 3] = 0.02 * torch.arange(frames)
    K = torch.tensor(
        [[24.0, 0.0, (width - 1) / 2], [0.0, 24.0, (height - 1) / 2], [0.0, 0.0, 1.0]]
    )
    cameras = Cameras(
        K=K.expand(frames, 3, 3),
        world_from_camera=world_from_camera,
        times=torch.arange(frames, dtype=torch.float64) / 8,
        height=height,
        width=width,
    )
    nothing = torch.zeros(frames, height, width, dtype=torch.bool)
    return Clip(
        name=name,
        frames=pictures,
        cameras=cameras,
        depth=torch.full((frames, height, width), 3.0),
        sky=nothing,
        moving=nothing,
        scene=scene,
        text='a wall',
    )
