"""Checks and cameras that the memories of pixels share."""

from __future__ import annotations

from jaxtyping import Bool, Float
import torch
from torch import Tensor

from mirage_model.camera import Cameras, resized
from mirage_model.memory import Pixels
from mirage_model.memory.depth_grid import steps


def at_pixels(cameras: Cameras, stride: int) -> Cameras:
    """Return cameras on the latent grid as cameras at the resolution of the frames."""
    return resized(cameras, cameras.height * stride, cameras.width * stride)


def check_pixels(pixels: Pixels | None, cameras: Cameras, stride: int) -> tuple[Pixels, Cameras]:
    """Return the pixels and their cameras at the same resolution, on the CPU.

    Args:
        pixels: Argument of a write.
        cameras: Cameras on the latent grid.
        stride: Pixels across a latent cell.

    Raises:
        ValueError: If pixels are missing, or their shapes or values are wrong.
    """
    if pixels is None:
        raise ValueError('pixels: missing, this memory holds pixels')
    cameras = at_pixels(cameras.to('cpu'), stride)
    size = (len(cameras), cameras.height, cameras.width)
    if pixels.depth.shape != size or pixels.frames.shape != (size[0], 3, *size[1:]):
        raise ValueError(
            f'pixels: frames are {tuple(pixels.frames.shape)} and depth is '
            f'{tuple(pixels.depth.shape)}, expected {size[0]} of {size[1]}x{size[2]}'
        )
    pixels = Pixels(frames=pixels.frames.cpu(), depth=pixels.depth.cpu())
    bad = has_depth(pixels.depth) & ~pixels.frames.isfinite().all(dim=1)
    if bad.any():
        at = bad.nonzero()[0].tolist()
        raise ValueError(f'pixels at frame, row, column {at}: not finite')
    return pixels, cameras


def has_depth(depth: Float[Tensor, 'n h w']) -> Bool[Tensor, 'n h w']:
    return depth.isfinite() & (depth > 0)


def off_depth_edges(depth: Float[Tensor, 'n h w'], *, step: float = 0.1) -> Bool[Tensor, 'n h w']:
    """Return the mask of pixels with depth that do not touch a depth edge, where colours blend."""
    inverse = torch.where(has_depth(depth), depth, torch.nan).reciprocal()
    right, down = steps(inverse, step), steps(inverse.mT, step).mT
    edge = right | down
    edge[:, :, 1:] |= right[:, :, :-1]
    edge[:, 1:] |= down[:, :-1]
    return has_depth(depth) & ~edge
