"""Spatial memories: what was seen and imagined, kept in the world and read back from any camera.

A memory is given latents with a depth at cameras on the latent grid, and answers with what those
cameras, or others, would find there. It knows neither the model nor its time steps. `create` makes
one by name: the latent memory, or one of those that it is measured against.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor

from mirage_model.camera import Cameras


@dataclass(frozen=True, kw_only=True)
class Readout:
    """What a memory holds at every latent cell of n cameras. All zero where nothing is visible.

    ``observed`` is part of ``visible``. ``depth`` is metres along the reading camera's axis;
    ``age`` is the camera's time minus the time of writing, in seconds; ``offset`` is where the
    remembered point projects relative to the cell's centre, in cells, x then y; ``depth_ratio`` is
    log(depth read / depth written).
    """

    latents: Float[Tensor, '*n c h w']
    visible: Bool[Tensor, '*n h w']
    observed: Bool[Tensor, '*n h w']
    depth: Float[Tensor, '*n h w']
    age: Float[Tensor, '*n h w']
    offset: Float[Tensor, '*n 2 h w']
    depth_ratio: Float[Tensor, '*n h w']

    def __getitem__(self, index) -> Readout:
        """A part of the cameras, or with None one batch axis more."""
        return Readout(**{name: value[index] for name, value in vars(self).items()})


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """What n cameras saw at the resolution of their frames, for memories that remember pixels.

    ``frames`` are in 0..1. ``depth`` is in metres; not finite or <= 0 says that there is none, or
    that the pixel must not be remembered.
    """

    frames: Float[Tensor, 'n 3 H W']
    depth: Float[Tensor, 'n H W']


@runtime_checkable
class Encoder(Protocol):
    """What a memory of pixels needs of the codec."""

    channels: int
    spatial_stride: int

    def encode_images(self, frames: Float[Tensor, 'n 3 H W']) -> Float[Tensor, 'n c h w']:
        """Latents of frames in 0..1, each encoded alone."""
        ...


@runtime_checkable
class Memory(Protocol):
    """The verbs of a spatial memory. Cameras are on the latent grid: a pixel is a cell."""

    takes_latents: bool
    """False where `write` makes no use of latents: None will do, and nothing need be encoded."""

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
        """Remember the cells in ``valid`` and return how many were added.

        ``depth`` is in metres; not finite or <= 0 says that there is none, and such a cell cannot
        be kept. ``observed`` says that a sensor saw these latents, else they were imagined.
        ``confidence`` in 0..1 says how far the depth is to be trusted; None is 1 everywhere.
        A memory of pixels needs ``pixels`` and takes those that have a depth there, whatever
        ``valid`` says of their cells; the others do without. Raises ValueError.
        """
        ...

    def readout(self, cameras: Cameras, *, latents: bool = True) -> Readout:
        """What the cameras find, each at its own time, on the device of the cameras.

        Without ``latents`` they have no channels, which spares a memory that must encode them.
        """
        ...

    def fork(self) -> Memory:
        """A memory with the same content; what is written to one the other does not see."""
        ...

    def __len__(self) -> int:
        """The number of cells held."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes held for the cells."""
        ...

    @property
    def index_nbytes(self) -> int:
        """Bytes held to find them."""
        ...
