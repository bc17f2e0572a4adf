"""Spatial memories: observed and imagined content at points of the world, read from any camera.

A memory takes latents with depth from cameras on the latent grid, and returns what these or other
cameras see. It depends neither on the model nor on time steps. `registry.create_memory` makes the
latent memory or one of the baselines by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor

from mirage_model.camera import Cameras


@dataclass(frozen=True, kw_only=True)
class Readout:
    """Content of a memory at each latent cell of n cameras; 0 where nothing is visible."""

    latents: Float[Tensor, '*n c h w']
    """Latents of the nearest point."""

    visible: Bool[Tensor, '*n h w']
    """Whether a point covers the cell."""

    observed: Bool[Tensor, '*n h w']
    """Whether a sensor took that point. Implies ``visible``."""

    depth: Float[Tensor, '*n h w']
    """Metres along the optical axis of the reading camera."""

    age: Float[Tensor, '*n h w']
    """Time of the reading camera minus the time of writing, seconds."""

    offset: Float[Tensor, '*n 2 h w']
    """Projection of the point relative to the cell's centre, x then y, in cells."""

    depth_ratio: Float[Tensor, '*n h w']
    """log(depth read / depth written)."""

    def __getitem__(self, index: Any) -> Readout:
        """Return some of the cameras, or with None the same readout with a batch axis in front."""
        return Readout(**{name: value[index] for name, value in vars(self).items()})


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """Frames of n cameras with depth at full resolution, for memories that hold pixels."""

    frames: Float[Tensor, 'n 3 H W']
    """RGB in 0..1."""

    depth: Float[Tensor, 'n H W']
    """Metres. A pixel whose depth is not finite or not positive is not written."""


@runtime_checkable
class Encoder(Protocol):
    """The part of a codec that memories use."""

    channels: int
    spatial_stride: int

    def encode_images(self, frames: Float[Tensor, 'n 3 H W']) -> Float[Tensor, 'n c h w']:
        """Encode each frame, in 0..1, alone."""
        ...


@runtime_checkable
class Memory(Protocol):
    """A spatial memory. Cameras are on the latent grid: a pixel of theirs is a latent cell."""

    takes_latents: bool
    """Whether `write` uses latents. If False, they may be None and need not be encoded."""

    def write(
        self,
        latents: Float[Tensor, 'n c h w'] | None,
        depth: Float[Tensor, 'n h w'],
        cameras: Cameras,
        *,
        valid: Bool[Tensor, 'n h w'],
        observed: bool,
        confidence: Float[Tensor, 'n h w'] | None = None,
        pixels: Pixels | None = None,
    ) -> int:
        """Write the cells in ``valid`` and return how many points were added.

        Args:
            latents: Latents of each cell.
            depth: Depth of each cell, metres. It must be finite and positive where ``valid``.
            cameras: Cameras on the latent grid.
            valid: Mask of the cells to write.
            observed: Whether a sensor took the latents; False for imagined ones.
            confidence: Confidence of the depth in 0..1. None is 1 everywhere.
            pixels: Frames and depth at full resolution. Memories of pixels need them and write
                their pixels with depth, whatever ``valid`` is; other memories ignore them.

        Raises:
            ValueError: If a needed argument is missing, or its shape or values are wrong.
        """
        ...

    def readout(self, cameras: Cameras, *, latents: bool = True) -> Readout:
        """Return what the cameras see, each at its own time, on the device of the cameras.

        If ``latents`` is False, they have no channels, and memories of pixels encode nothing.
        """
        ...

    def fork(self) -> Memory:
        """Return a memory with the same content; later writes to one do not change the other."""
        ...

    def __len__(self) -> int:
        """Return the number of points."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of the points."""
        ...

    @property
    def index_nbytes(self) -> int:
        """Bytes of the structures that find the points."""
        ...
