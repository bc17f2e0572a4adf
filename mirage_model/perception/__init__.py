"""What is in a frame, by one protocol: depth, camera, confidence, sky and moving things.

`embedded` holds the project's own network, `adapters` the big models of others, `alignment` brings
their depth to the memory's scale and `refine` finds cameras anew from matched features.
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
    """What is known of n frames, pixel by pixel.

    ``depth`` is in metres along the optical axis and NaN in the sky and wherever else nothing is
    known. ``confidence`` is the probability, in 0..1, that depth is within a factor of 1.25 of the
    truth. ``scaled`` says for each frame whether its metres were measured, by a sensor, a metric
    model or the memory; where False they are the network's guess.
    """

    depth: Float[Tensor, 'n h w']
    cameras: Cameras
    confidence: Float[Tensor, 'n h w']
    sky: Bool[Tensor, 'n h w']
    moving: Bool[Tensor, 'n h w']
    scaled: Bool[Tensor, 'n']


@runtime_checkable
class Perception(Protocol):
    """Frames to depth, cameras, confidence, sky and moving things."""

    def to(self, device: torch.device | str) -> None:
        """Move the network to a device."""
        ...

    def estimate(
        self, frames: Float[Tensor, 'n 3 h w'], cameras: Cameras, readout: Readout | None = None
    ) -> Estimate:
        """Estimate for frames in 0..1 seen by ``cameras``.

        ``readout`` is the memory's view from the same cameras; None where there is no memory yet.
        """
        ...
