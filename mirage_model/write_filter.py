"""Write filter: the latents and pixels that may enter the memory, and writing frames into it."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool, Float
import torch
from torch import Tensor
from torch.nn import functional as F

from mirage_model.camera import resized
from mirage_model.memory import Encoder, Memory, Pixels
from mirage_model.memory.depth_grid import depth_to_grid
from mirage_model.perception import Estimate


@dataclass(frozen=True, kw_only=True)
class WriteFilterConfig:
    """Limits on the pixels of a latent cell, within which the cell may be written."""

    max_sky: float = 0.25
    """Largest share of sky pixels."""

    max_moving: float = 0.1
    """Largest share of pixels on dynamic objects."""

    min_confidence: float = 0.4
    """Smallest mean confidence."""


def write_frames(
    memory: Memory,
    frames: Float[Tensor, 'n 3 H W'],
    estimate: Estimate,
    *,
    codec: Encoder,
    observed: bool,
    latents: Float[Tensor, 'n c h w'] | None = None,
    config: WriteFilterConfig = WriteFilterConfig(),
) -> int:
    """Write frames into a memory and return how many latent points or pixels entered.

    The write filter decides which cells and pixels are written.

    Args:
        memory: Memory to write to.
        frames: RGB in 0..1.
        estimate: Depth, cameras and masks of the frames.
        codec: Codec that gives the stride of the latent grid and encodes the frames.
        observed: Whether a sensor took the frames; False for generated frames.
        latents: Latents of the frames. None encodes each frame alone, if the memory takes latents.
        config: Limits of the write filter.

    Raises:
        ValueError: If the stride does not divide the frames, or the memory rejects the values.
    """
    stride = codec.spatial_stride
    height, width = frames.shape[2] // stride, frames.shape[3] // stride
    depth, valid = write_mask(estimate, height=height, width=width, config=config)
    if latents is None and memory.takes_latents:
        latents = codec.encode_images(frames)
    return memory.write(
        latents,
        depth,
        resized(estimate.cameras, height, width),
        valid=valid,
        observed=observed,
        confidence=mean_in_cell(estimate.confidence, depth),
        pixels=filtered_pixels(frames, estimate, config=config),
    )


def write_mask(
    estimate: Estimate, *, height: int, width: int, config: WriteFilterConfig = WriteFilterConfig()
) -> tuple[Float[Tensor, 'n h w'], Bool[Tensor, 'n h w']]:
    """Return depth on a latent grid and the mask of cells that may be written.

    A cell may be written if it has depth, no depth edge, and passes the limits of ``config``.

    Raises:
        ValueError: If the grid does not divide the frames.
    """
    depth, has_depth, edge = depth_to_grid(estimate.depth, height, width)
    valid = has_depth & ~edge
    valid &= mean_in_cell(estimate.sky.float(), depth) <= config.max_sky
    valid &= mean_in_cell(estimate.moving.float(), depth) <= config.max_moving
    valid &= mean_in_cell(estimate.confidence, depth) >= config.min_confidence
    return depth, valid


def filtered_pixels(
    frames: Float[Tensor, 'n 3 H W'],
    estimate: Estimate,
    *,
    config: WriteFilterConfig = WriteFilterConfig(),
) -> Pixels:
    """Return the frames with depth set to NaN at pixels that fail the limits of ``config``."""
    rejected = estimate.sky.float() > config.max_sky
    rejected |= estimate.moving.float() > config.max_moving
    rejected |= estimate.confidence < config.min_confidence
    return Pixels(frames=frames, depth=estimate.depth.masked_fill(rejected, torch.nan))


def mean_in_cell(
    values: Float[Tensor, 'n H W'], cells: Float[Tensor, 'n h w']
) -> Float[Tensor, 'n h w']:
    """Return the mean of per-pixel values over each cell of a grid shaped like ``cells``."""
    height, width = cells.shape[1:]
    return F.adaptive_avg_pool2d(values, (height, width))
