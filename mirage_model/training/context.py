"""The memory that a training sample sees: built by the same `write` as when running, and as imperfect."""

from __future__ import annotations

from dataclasses import dataclass, replace

from jaxtyping import Float
import numpy as np
from scipy.spatial.transform import Rotation
import torch
from torch import Tensor

from mirage_model.camera import Cameras
from mirage_model.memory.latent import LatentMemory


@dataclass(frozen=True, kw_only=True)
class ContextConfig:
    """Shares of the samples whose memory is empty, holds only the seed, holds what a rollout would have
    written up to now, or holds stills of any time in the clip, as a robot has that was here before, the
    chunk's own moments among them; they add up to 1. The rest is noise: deviations
    in the log of depth, by frame and by cell, in metres, degrees and latents, and the largest share of
    cells dropped. Observed cells get a tenth of the noise.
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

    def __post_init__(self) -> None:
        if abs(self.empty + self.seed_only + self.rollout + self.visits - 1) > 1e-6:
            raise ValueError('the shares of empty, seed_only, rollout and visits must add up to 1')


def fill(
    memory: LatentMemory,
    tensors: dict[str, Tensor],
    cameras: Cameras,
    *,
    now: int,
    rng: np.random.Generator,
    config: ContextConfig,
) -> str:
    """Write a clip's stills into an empty memory as one of the kinds of context, and name the kind.

    ``now`` is the still that the chunk to predict starts from.
    """
    kinds = ('empty', 'seed_only', 'rollout', 'visits')
    kind = str(rng.choice(kinds, p=[getattr(config, k) for k in kinds]))
    if kind == 'seed_only':
        _write(memory, tensors, cameras, [now], observed=True, rng=rng, config=config)
    elif kind == 'rollout':
        start = int(rng.integers(now + 1))
        _write(memory, tensors, cameras, [start], observed=True, rng=rng, config=config)
        if now > start:
            imagined = list(range(start + 1, now + 1))
            _write(memory, tensors, cameras, imagined, observed=False, rng=rng, config=config)
    elif kind == 'visits':
        count = int(rng.integers(1, config.max_visits + 1))
        chosen = sorted(rng.choice(len(cameras), size=min(count, len(cameras)), replace=False))
        _write(
            memory,
            tensors,
            cameras,
            [int(i) for i in chosen],
            observed=True,
            rng=rng,
            config=config,
        )
    return kind


def _write(
    memory, tensors, cameras: Cameras, stills: list[int], *, observed: bool, rng, config
) -> None:
    weight = 0.1 if observed else 1.0
    latents, depth = tensors['stills'][stills].float(), tensors['depth'][stills]
    n = len(stills)
    log_depth = rng.normal(0, config.depth_frame, (n, 1, 1)) + rng.normal(
        0, config.depth_cell, depth.shape
    )
    depth = depth * torch.from_numpy(np.exp(weight * log_depth)).float()
    noise = rng.uniform(0, config.latent) * rng.standard_normal(latents.shape, dtype=np.float32)
    keep = torch.from_numpy(rng.random(depth.shape) >= rng.uniform(0, config.drop))
    memory.write(
        latents + weight * torch.from_numpy(noise).float(),
        depth,
        jitter(
            cameras[stills],
            rng,
            position=weight * config.position,
            rotation=weight * config.rotation,
        ),
        keep=tensors['keep'][stills] & keep,
        observed=observed,
    )


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
