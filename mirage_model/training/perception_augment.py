"""Batches of labelled frames and their augmentation, which covers the errors of generated
frames.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from jaxtyping import Bool, Float
import torch
from torch import Tensor
from torch.nn import functional as F

from mirage_model.camera import Cameras
from mirage_model.perception.embedded import MemoryDepth
from mirage_model.training.perception_config import AugmentConfig


@dataclass(frozen=True, kw_only=True)
class FrameBatch:
    """Single frames in 0..1 with their labels, the depth in the memory per pixel, and their clips'
    names."""

    frames: Float[Tensor, 'n 3 h w']
    cameras: Cameras
    depth: Float[Tensor, 'n h w']
    sky: Bool[Tensor, 'n h w']
    moving: Bool[Tensor, 'n h w']
    memory_depth: MemoryDepth
    names: tuple[str, ...]

    def to(self, device: torch.device | str) -> FrameBatch:
        return FrameBatch(
            frames=self.frames.to(device),
            cameras=self.cameras.to(device),
            depth=self.depth.to(device),
            sky=self.sky.to(device),
            moving=self.moving.to(device),
            memory_depth=MemoryDepth(
                depth=self.memory_depth.depth.to(device),
                observed=self.memory_depth.observed.to(device),
            ),
            names=self.names,
        )


def augment(batch: FrameBatch, config: AugmentConfig, generator: torch.Generator) -> FrameBatch:
    """Return a batch whose frames are changed at random, each by itself, with cameras and
    labels.
    """
    return _colour(_zoom(_flip(batch, generator), config, generator), config, generator)


def _uniform(
    n: int, low: float, high: float, generator: torch.Generator
) -> Float[Tensor, 'n 1 1 1']:
    return low + (high - low) * torch.rand(n, 1, 1, 1, generator=generator)


def _half(n: int, generator: torch.Generator) -> Float[Tensor, 'n 1 1 1']:
    return (torch.rand(n, 1, 1, 1, generator=generator) < 0.5).float()


def _flip(batch: FrameBatch, generator: torch.Generator) -> FrameBatch:
    """Mirror left and right: depth stays valid, camera poses do not."""
    chosen = _half(len(batch.frames), generator)[:, 0, 0, 0] > 0

    def mirrored(values: Tensor) -> Tensor:
        return torch.where(chosen.view(-1, *[1] * (values.ndim - 1)), values.flip(-1), values)

    K = batch.cameras.K.clone()
    K[chosen, 0, 2] = batch.cameras.width - 1 - K[chosen, 0, 2]
    return replace(
        batch,
        frames=mirrored(batch.frames),
        cameras=replace(batch.cameras, K=K),
        depth=mirrored(batch.depth),
        sky=mirrored(batch.sky),
        moving=mirrored(batch.moving),
        memory_depth=MemoryDepth(
            depth=mirrored(batch.memory_depth.depth),
            observed=mirrored(batch.memory_depth.observed),
        ),
    )


def _zoom(batch: FrameBatch, config: AugmentConfig, generator: torch.Generator) -> FrameBatch:
    """Enlarge a random part of the frame: K changes, depth does not."""
    n, _, height, width = batch.frames.shape
    zoom = _uniform(n, 1.0, config.zoom, generator) ** _half(n, generator)
    zoom = zoom[:, 0, 0, 0]
    left = torch.rand(n, generator=generator) * (width - width / zoom)
    top = torch.rand(n, generator=generator) * (height - height / zoom)
    x = (torch.arange(width) + 0.5)[None] / zoom[:, None] + left[:, None]
    y = (torch.arange(height) + 0.5)[None] / zoom[:, None] + top[:, None]
    shape = (n, height, width)
    grid = torch.stack(
        [
            (2 * x / width - 1)[:, None].expand(shape),
            (2 * y / height - 1)[:, :, None].expand(shape),
        ],
        dim=-1,
    )
    known = batch.memory_depth
    maps = (batch.depth, batch.sky, batch.moving, known.depth, known.observed)
    labels = torch.stack([values.float() for values in maps], dim=1)
    labels = F.grid_sample(labels, grid, mode='nearest', align_corners=False)
    K = batch.cameras.K.clone()
    K[:, 0, 2] = (K[:, 0, 2] + 0.5 - left) * zoom - 0.5
    K[:, 1, 2] = (K[:, 1, 2] + 0.5 - top) * zoom - 0.5
    K[:, 0, 0] *= zoom
    K[:, 1, 1] *= zoom
    return replace(
        batch,
        frames=F.grid_sample(
            batch.frames, grid, mode='bilinear', padding_mode='border', align_corners=False
        ),
        cameras=replace(batch.cameras, K=K),
        depth=labels[:, 0],
        sky=labels[:, 1] > 0.5,
        moving=labels[:, 2] > 0.5,
        memory_depth=MemoryDepth(depth=labels[:, 3], observed=labels[:, 4] > 0.5),
    )


def _colour(batch: FrameBatch, config: AugmentConfig, generator: torch.Generator) -> FrameBatch:
    """Change brightness, contrast, saturation and tint, then add blur, noise and blotches."""
    frames = batch.frames
    n, _, height, width = frames.shape
    low, high = 1 - config.colour, 1 + config.colour
    tint = 1 + 0.3 * config.colour * (2 * torch.rand(n, 3, 1, 1, generator=generator) - 1)
    frames = frames * tint * _uniform(n, low, high, generator)
    mean = frames.mean(dim=(1, 2, 3), keepdim=True)
    frames = mean + (frames - mean) * _uniform(n, low, high, generator)
    grey = frames.mean(dim=1, keepdim=True)
    frames = grey + (frames - grey) * _uniform(n, low, high, generator)

    sigma = _uniform(n, 0.3, max(0.3, config.blur), generator)
    kernel = torch.exp(-(torch.arange(-3.0, 4.0) ** 2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum(dim=-1, keepdim=True)).repeat_interleave(3, dim=0)
    flat = F.pad(frames.reshape(1, 3 * n, height, width), (3, 3, 3, 3), mode='replicate')
    flat = F.conv2d(F.conv2d(flat, kernel, groups=3 * n), kernel.mT, groups=3 * n)
    frames = torch.lerp(frames, flat.reshape(frames.shape), _half(n, generator))

    fine = torch.randn(frames.shape, generator=generator) * _uniform(
        n, 0.0, config.noise, generator
    )
    patches = torch.randn(n, 3, height // 8, width // 8, generator=generator)
    patches = F.interpolate(patches, (height, width), mode='bilinear')
    patches = patches * _uniform(n, 0.0, config.blotches, generator)
    frames = frames + fine * _half(n, generator) + patches * _half(n, generator)
    return replace(batch, frames=frames.clamp(0, 1))
