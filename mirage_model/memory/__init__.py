"""Spatial memories: what was seen and imagined, kept in the world and read back from any camera.

A memory is given latents with a depth at cameras on the latent grid, and answers with what those
cameras, or others, would find there. It knows neither the model nor its time steps.
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


@runtime_checkable
class Memory(Protocol):
    """The verbs of a spatial memory. Cameras are on the latent grid: a pixel is a cell."""

    def write(
        self,
        latents: Float[Tensor, 'n c h w'],
        depth: Float[Tensor, 'n h w'],
        cameras: Cameras,
        *,
        keep: Bool[Tensor, 'n h w'],
        observed: bool,
        confidence: Float[Tensor, 'n h w'] | None = None,
    ) -> int:
        """Remember the cells in ``keep`` and return how many were added.

        ``depth`` is in metres; not finite or <= 0 says that there is none, and such a cell cannot
        be kept. ``observed`` says that a sensor saw these latents, else they were imagined.
        ``confidence`` in 0..1 says how far the depth is to be trusted; None is 1 everywhere.
        Raises ValueError.
        """
        ...

    def readout(self, cameras: Cameras) -> Readout:
        """What the cameras find, each at its own time, on the device of the cameras."""
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
