"""What the memories of pixels share: which pixels they take, and the cameras that saw them."""

from __future__ import annotations

from jaxtyping import Bool, Float
import torch
from torch import Tensor

from mirage_model.camera import Cameras, resized
from mirage_model.memory import Pixels
from mirage_model.memory.depth_grid import steps


def at_pixels(cameras: Cameras, stride: int) -> Cameras:
    """Cameras of the latent grid at the resolution of the frames."""
    return resized(cameras, cameras.height * stride, cameras.width * stride)


def checked(pixels: Pixels | None, cameras: Cameras, stride: int) -> tuple[Pixels, Cameras]:
    """The pixels and the cameras that saw them, on the CPU.

    ``cameras`` are on the latent grid. Raises ValueError.
    """
    if pixels is None:
        raise ValueError('this memory remembers pixels: they must be given to write')
    cameras = at_pixels(cameras.to('cpu'), stride)
    size = (len(cameras), cameras.height, cameras.width)
    if pixels.depth.shape != size or pixels.frames.shape != (size[0], 3, *size[1:]):
        raise ValueError(
            f'frames are {tuple(pixels.frames.shape)} and their depth '
            f'{tuple(pixels.depth.shape)}; {size[0]} of {size[1]}x{size[2]} were expected'
        )
    pixels = Pixels(frames=pixels.frames.cpu(), depth=pixels.depth.cpu())
    bad = has_depth(pixels.depth) & ~pixels.frames.isfinite().all(dim=1)
    if bad.any():
        raise ValueError(f'frame, row, column {bad.nonzero()[0].tolist()}: not finite')
    return pixels, cameras


def has_depth(depth: Float[Tensor, 'n h w']) -> Bool[Tensor, 'n h w']:
    return depth.isfinite() & (depth > 0)


def on_a_surface(depth: Float[Tensor, 'n h w'], *, step: float = 0.1) -> Bool[Tensor, 'n h w']:
    """Pixels that have a depth and lie beside no step of it, where colours are blended."""
    inverse = torch.where(has_depth(depth), depth, torch.nan).reciprocal()
    right, down = steps(inverse, step), steps(inverse.mT, step).mT
    edge = right | down
    edge[:, :, 1:] |= right[:, :, :-1]
    edge[:, 1:] |= down[:, :-1]
    return has_depth(depth) & ~edge
