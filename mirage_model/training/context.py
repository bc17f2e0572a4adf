"""The memory that a training sample sees: built by the same `write` as when running, and as imperfect."""

from __future__ import annotations

from dataclasses import dataclass, replace
import math

from jaxtyping import Bool, Float, Shaped
import numpy as np
from scipy.spatial.transform import Rotation
import torch
from torch import Tensor

from mirage_model.camera import Cameras, resized
from mirage_model.clip import Clip
from mirage_model.labels import labels
from mirage_model.memory import Memory, Pixels, Readout
from mirage_model.memory.latent import LatentMemory, MemoryConfig
from mirage_model.write_filter import write_mask

KINDS = ('empty', 'seed_only', 'rollout', 'visits')


@dataclass(frozen=True, kw_only=True)
class ContextConfig:
    """Shares of the samples whose memory is empty, holds only the seed, holds what a rollout would have
    written up to now, or holds stills of any time in the clip, as a robot has that was here before, the
    chunk's own moments among them; they add up to 1. The rest is noise: deviations
    in the log of depth, by frame and by cell, in metres, degrees and latents, and the largest share of
    cells dropped. Observed cells get a tenth of the noise. ``sensor`` is a deviation in the log of every
    depth, by cell, that observed cells get in full.

    From step ``imagined_from`` on, in the share ``imagined`` of the samples, the model has imagined the
    chunk before itself, in ``imagined_steps`` denoising steps: what it made is in the memory and is
    what the chunk starts from.
    """

    empty: float = 0.1
    seed_only: float = 0.25
    rollout: float = 0.35
    visits: float = 0.3
    max_visits: int = 6
    depth_frame: float = 0.04
    depth_cell: float = 0.02
    position: float = 0.02
    rotation: float = 0.3
    latent: float = 0.1
    drop: float = 0.3
    sensor: float = 0.0
    imagined: float = 0.25
    imagined_from: int = 1000
    imagined_steps: int = 4

    def __post_init__(self) -> None:
        if abs(sum(getattr(self, kind) for kind in KINDS) - 1) > 1e-6:
            raise ValueError(f'the shares of {", ".join(KINDS)} must add up to 1')
        for name in (*KINDS, 'drop', 'imagined'):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f'{name} must be a share in 0..1, got {getattr(self, name)}')
        for name in ('depth_frame', 'depth_cell', 'position', 'rotation', 'latent', 'sensor'):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f'{name} must be a deviation, got {getattr(self, name)}')
        for name in ('max_visits', 'imagined_steps'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name} must be at least 1, got {getattr(self, name)}')

    def imagined_now(self, step: int, batch: int) -> int:
        """How many samples of this step's batch start from what the model imagined.

        It follows from the step alone, so that all processes call the model equally often, and adds
        up to the share exactly also where a batch is a single sample.
        """
        if step < self.imagined_from:
            return 0
        per_step = self.imagined * batch
        return int(per_step * (step + 1) + 1e-6) - int(per_step * step + 1e-6)


@dataclass(frozen=True, kw_only=True)
class Stills:
    """What may be written of a clip: frames that were encoded alone, one at every latent frame.

    Depth and cameras are on the latent grid. ``pixels`` are there for memories that take them.
    """

    latents: Float[Tensor, 'n c h w']
    depth: Float[Tensor, 'n h w']
    valid: Bool[Tensor, 'n h w']
    cameras: Cameras
    pixels: Pixels | None = None

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, index: slice | list[int]) -> Stills:
        pixels = self.pixels
        if pixels is not None:
            pixels = Pixels(frames=pixels.frames[index], depth=pixels.depth[index])
        return Stills(
            latents=self.latents[index],
            depth=self.depth[index],
            valid=self.valid[index],
            cameras=self.cameras[index],
            pixels=pixels,
        )


def fill(
    memory: Memory, stills: Stills, *, now: int, rng: np.random.Generator, config: ContextConfig
) -> str:
    """Write a clip's stills into an empty memory as one of the kinds of context, and name the kind.

    ``now`` is the still that the chunk to predict starts from.
    """
    kind = str(rng.choice(KINDS, p=[getattr(config, k) for k in KINDS]))
    if kind == 'seed_only':
        write(memory, stills[now : now + 1], observed=True, rng=rng, config=config)
    elif kind == 'rollout':
        start = int(rng.integers(now + 1))
        write(memory, stills[start : start + 1], observed=True, rng=rng, config=config)
        if now > start:
            later = stills[start + 1 : now + 1]
            write(memory, later, observed=False, rng=rng, config=config)
    elif kind == 'visits':
        count = min(int(rng.integers(1, config.max_visits + 1)), len(stills))
        chosen = sorted(int(i) for i in rng.choice(len(stills), size=count, replace=False))
        write(memory, stills[chosen], observed=True, rng=rng, config=config)
    return kind


def readout_of(clip: Clip, frame: int, *, cell: int, seen_from: slice = slice(None)) -> Readout:
    """What a memory of one frame of a clip, and of its labels, shows the cameras of others.

    For latents it has the numbers of that frame's cells, row by row. ``cell`` is in pixels.
    """
    height, width = (side // cell for side in clip.depth.shape[1:])
    cameras = resized(clip.cameras, height, width)
    one = slice(frame, frame + 1)
    depth, valid = write_mask(labels(clip, one), height=height, width=width)
    numbers = torch.arange(height * width, dtype=torch.float32).view(1, 1, height, width)
    memory = LatentMemory(MemoryConfig(channels=1, splat_size=3, dtype='float32'))
    memory.write(numbers, depth, cameras[one], valid=valid, observed=True)
    return memory.readout(cameras[seen_from])


def write(
    memory: Memory,
    stills: Stills,
    *,
    observed: bool,
    rng: np.random.Generator,
    config: ContextConfig,
) -> None:
    """Write stills with the noise that observed or imagined ones have."""
    weight = 0.1 if observed else 1.0
    n = len(stills)
    log_depth = weight * rng.normal(0, config.depth_frame, (n, 1, 1))
    spread = np.hypot(weight * config.depth_cell, config.sensor)
    log_depth = log_depth + rng.normal(0, spread, stills.depth.shape)
    scale = torch.from_numpy(np.exp(log_depth)).float()
    noise = rng.standard_normal(stills.latents.shape, dtype=np.float32)
    noise *= weight * rng.uniform(0, config.latent)
    kept = torch.from_numpy(rng.random(stills.depth.shape) >= rng.uniform(0, config.drop))
    memory.write(
        stills.latents + torch.from_numpy(noise),
        stills.depth * scale,
        jitter(
            stills.cameras,
            rng,
            position=weight * config.position,
            rotation=weight * config.rotation,
        ),
        valid=stills.valid & kept,
        observed=observed,
        pixels=None if stills.pixels is None else _by_cell(stills.pixels, scale, kept),
    )


def _by_cell(pixels: Pixels, scale: Float[Tensor, 'n h w'], kept: Bool[Tensor, 'n h w']) -> Pixels:
    """Pixels whose depth is scaled, and dropped, as that of the cell they lie in."""
    scale = scale.masked_fill(~kept, torch.nan)
    return Pixels(frames=pixels.frames, depth=pixels.depth * over_pixels(scale, pixels.depth))


def over_pixels(
    cells: Shaped[Tensor, 'n h w'], like: Float[Tensor, 'n H W']
) -> Shaped[Tensor, 'n H W']:
    """Every pixel's value of the cell that it lies in."""
    rows, columns = like.shape[1] // cells.shape[1], like.shape[2] // cells.shape[2]
    return cells.repeat_interleave(rows, 1).repeat_interleave(columns, 2)


def jitter(
    cameras: Cameras, rng: np.random.Generator, *, position: float, rotation: float
) -> Cameras:
    """Cameras moved by noise of the given deviations, in metres and degrees, in their own frames."""
    n = len(cameras)
    moved: Float[Tensor, 'n 4 4'] = torch.eye(4).repeat(n, 1, 1)
    angles = np.radians(rng.normal(0, rotation, (n, 3)))
    moved[:, :3, :3] = torch.from_numpy(Rotation.from_rotvec(angles).as_matrix()).float()
    moved[:, :3, 3] = torch.from_numpy(rng.normal(0, position, (n, 3))).float()
    return replace(cameras, world_from_camera=cameras.world_from_camera @ moved)
