"""Estimate depth, confidence, sky and dynamic objects of frames.

`embedded` holds the network of mirage-tiny, `adapters` runs published depth models, `alignment`
scales depth to the memory, and `refine` estimates cameras from matched features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Bool, Float
import torch
from torch import Tensor

from mirage_model.camera import Cameras
from mirage_model.memory import Readout


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Estimates for each pixel of n frames."""

    depth: Float[Tensor, 'n h w']
    """Along the optical axis [m]; NaN in the sky and where it is unknown."""

    cameras: Cameras
    """Cameras of the frames."""

    confidence: Float[Tensor, 'n h w']
    """Probability that depth is within a factor of 1.25 of the truth, in 0..1."""

    sky: Bool[Tensor, 'n h w']
    """True in the sky."""

    moving: Bool[Tensor, 'n h w']
    """True on dynamic objects."""

    scaled: Bool[Tensor, 'n']
    """True if the metres come from a sensor, a metric model or the memory.

    False if they are the network's guess.
    """


@runtime_checkable
class Perception(Protocol):
    """A model that estimates depth, cameras, confidence, sky and dynamic objects."""

    def to(self, device: torch.device | str) -> None:
        """Move the network to a device."""
        ...

    def estimate(
        self, frames: Float[Tensor, 'n 3 h w'], cameras: Cameras, readout: Readout | None = None
    ) -> Estimate:
        """Estimate frames.

        Args:
            frames: RGB in 0..1.
            cameras: Cameras of the frames.
            readout: The memory at the same cameras; None without a memory.

        Raises:
            ValueError: The model does not accept the size of the frames.
        """
        ...
