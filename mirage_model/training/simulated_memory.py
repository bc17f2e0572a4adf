"""Memories of training samples, written as in a rollout and with its errors."""

from __future__ import annotations

from dataclasses import dataclass, replace

from jaxtyping import Bool, Float, Shaped
import numpy as np
from scipy.spatial.transform import Rotation
import torch
from torch import Tensor

from mirage_model.camera import Cameras, resized
from mirage_model.clip import Clip, labels
from mirage_model.memory import Memory, Pixels, Readout
from mirage_model.memory.latent import LatentMemory, MemoryConfig
from mirage_model.training.config import ContextConfig
from mirage_model.write_filter import write_mask

KINDS = ('empty', 'seed_only', 'rollout', 'visits')


@dataclass(frozen=True, kw_only=True)
class SingleFrameLatents:
    """Frames of a clip that were encoded alone, one per latent frame, on the latent grid.

    ``pixels`` are present for memories that take them.
    """

    latents: Float[Tensor, 'n c h w']
    depth: Float[Tensor, 'n h w']
    valid: Bool[Tensor, 'n h w']
    cameras: Cameras
    pixels: Pixels | None = None

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, index: slice | list[int]) -> SingleFrameLatents:
        pixels = self.pixels
        if pixels is not None:
            pixels = Pixels(frames=pixels.frames[index], depth=pixels.depth[index])
        return SingleFrameLatents(
            latents=self.latents[index],
            depth=self.depth[index],
            valid=self.valid[index],
            cameras=self.cameras[index],
            pixels=pixels,
        )


def count_imagined(config: ContextConfig, step: int, batch: int) -> int:
    """Return how many samples of a step's batch start from a chunk that the model generated.

    The count depends on the step alone, so that all processes call the model equally often. Its
    sum over the steps has the configured share, also where a batch is a single sample.
    """
    if step < config.imagined_from:
        return 0
    per_step = config.imagined * batch
    return int(per_step * (step + 1) + 1e-6) - int(per_step * step + 1e-6)


def fill(
    memory: Memory,
    frames: SingleFrameLatents,
    *,
    now: int,
    rng: np.random.Generator,
    config: ContextConfig,
) -> str:
    """Write frames of a clip into an empty memory as a random kind of context; return the kind.

    Args:
        now: Index of the frame that the chunk to predict starts from.
    """
    kind = str(rng.choice(KINDS, p=[getattr(config, k) for k in KINDS]))
    if kind == 'seed_only':
        write(memory, frames[now : now + 1], observed=True, rng=rng, config=config)
    elif kind == 'rollout':
        start = int(rng.integers(now + 1))
        write(memory, frames[start : start + 1], observed=True, rng=rng, config=config)
        if now > start:
            later = frames[start + 1 : now + 1]
            write(memory, later, observed=False, rng=rng, config=config)
    elif kind == 'visits':
        count = min(int(rng.integers(1, config.max_visits + 1)), len(frames))
        chosen = sorted(int(i) for i in rng.choice(len(frames), size=count, replace=False))
        write(memory, frames[chosen], observed=True, rng=rng, config=config)
    return kind


def readout_of(clip: Clip, frame: int, *, cell: int, cameras: slice = slice(None)) -> Readout:
    """Return what the cameras of a clip read from a memory of one of its frames with labels.

    Args:
        frame: Index of the frame in the memory.
        cell: Side of a latent cell [px].
        cameras: Frames whose cameras read.

    Returns:
        A readout whose only latent channel is the index of the frame's cell, row by row.
    """
    height, width = (side // cell for side in clip.depth.shape[1:])
    on_grid = resized(clip.cameras, height, width)
    written = slice(frame, frame + 1)
    depth, valid = write_mask(labels(clip, written), height=height, width=width)
    indices = torch.arange(height * width, dtype=torch.float32).view(1, 1, height, width)
    memory = LatentMemory(MemoryConfig(channels=1, splat_size=3, dtype='float32'))
    memory.write(indices, depth, on_grid[written], valid=valid, observed=True)
    return memory.readout(on_grid[cameras])


def write(
    memory: Memory,
    frames: SingleFrameLatents,
    *,
    observed: bool,
    rng: np.random.Generator,
    config: ContextConfig,
) -> None:
    """Write frames with the noise of observed or of generated ones."""
    weight = 0.1 if observed else 1.0
    n = len(frames)
    log_depth = weight * rng.normal(0, config.depth_frame, (n, 1, 1))
    spread = np.hypot(weight * config.depth_cell, config.sensor)
    log_depth = log_depth + rng.normal(0, spread, frames.depth.shape)
    scale = torch.from_numpy(np.exp(log_depth)).float()
    noise = rng.standard_normal(frames.latents.shape, dtype=np.float32)
    noise *= weight * rng.uniform(0, config.latent)
    survives = torch.from_numpy(rng.random(frames.depth.shape) >= rng.uniform(0, config.drop))
    memory.write(
        frames.latents + torch.from_numpy(noise),
        frames.depth * scale,
        jitter(
            frames.cameras,
            rng,
            position=weight * config.position,
            rotation=weight * config.rotation,
        ),
        valid=frames.valid & survives,
        observed=observed,
        pixels=None if frames.pixels is None else _by_cell(frames.pixels, scale, survives),
    )


def _by_cell(
    pixels: Pixels, scale: Float[Tensor, 'n h w'], survives: Bool[Tensor, 'n h w']
) -> Pixels:
    """Return pixels whose depth is scaled and dropped with the cell that they lie in."""
    scale = scale.masked_fill(~survives, torch.nan)
    return Pixels(frames=pixels.frames, depth=pixels.depth * over_pixels(scale, pixels.depth))


def over_pixels(
    cells: Shaped[Tensor, 'n h w'], like: Float[Tensor, 'n H W']
) -> Shaped[Tensor, 'n H W']:
    """Repeat the value of each cell over its pixels."""
    rows, columns = like.shape[1] // cells.shape[1], like.shape[2] // cells.shape[2]
    return cells.repeat_interleave(rows, 1).repeat_interleave(columns, 2)


def jitter(
    cameras: Cameras, rng: np.random.Generator, *, position: float, rotation: float
) -> Cameras:
    """Return cameras with noise in their own frames, of deviations in metres and degrees."""
    n = len(cameras)
    camera_from_noisy: Float[Tensor, 'n 4 4'] = torch.eye(4).repeat(n, 1, 1)
    angles = np.radians(rng.normal(0, rotation, (n, 3)))
    camera_from_noisy[:, :3, :3] = torch.from_numpy(
        Rotation.from_rotvec(angles).as_matrix()
    ).float()
    camera_from_noisy[:, :3, 3] = torch.from_numpy(rng.normal(0, position, (n, 3))).float()
    return replace(cameras, world_from_camera=cameras.world_from_camera @ camera_from_noisy)
