"""Estimate depth, confidence, sky and dynamic objects of frames.

`embedded` holds the network of mirage-tiny, `adapters` runs published depth models, `alignment`
scales depth to the memory, and `pose_refinement` estimates cameras from matched features.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from jaxtyping import Bool, Float
import torch
from torch import Tensor
from torch.nn import functional as F

from mirage_model.camera import Cameras
from mirage_model.memory import Readout

_MIN_SENSOR_MOVING = 0.999
"""Probability from which on a pixel of a frame with sensor depth is on a dynamic object.

A missed object costs points until it is seen through; a false one costs measured surfaces.
"""

_SKY_MARGIN = 1 / 24
"""Distance from sensor depth within which there is no sky, relative to the frame's height."""


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

    moving_probability: Float[Tensor, 'n h w']
    """Probability of a dynamic object, in 0..1."""

    scaled: Bool[Tensor, 'n']
    """True if the metres come from a sensor, a metric model or the memory.

    False if they are the network's guess.
    """

    def depth_with_sky(self) -> Float[Tensor, 'n h w']:
        """Return depth [m]; infinite in the sky, NaN where it is unknown."""
        known = self.depth.isfinite() & (self.depth > 0)
        return torch.where(known, self.depth, torch.nan).masked_fill(self.sky, torch.inf)


@runtime_checkable
class Perception(Protocol):
    """A model that estimates depth, cameras, confidence, sky and dynamic objects."""

    segments_dynamic: bool
    """Whether `Estimate.moving` is estimated; otherwise it is False everywhere."""

    estimates_cameras: bool
    """Whether `Estimate.cameras` are found in the frames; otherwise they are the given ones."""

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


def with_sensor_depth(estimate: Estimate, depth: Float[Tensor, 'n h w']) -> Estimate:
    """Return the estimate with a sensor's depth in place of its own.

    Near pixels with sensor depth there is no sky, and dynamic objects need a high probability.

    Args:
        depth: Depth registered to the frames [m]; not finite or <= 0 where it is unknown.
    """
    known = depth.isfinite() & (depth > 0)
    reach = max(1, round(depth.shape[1] * _SKY_MARGIN))
    near = F.max_pool2d(known[:, None].float(), 2 * reach + 1, stride=1, padding=reach)[:, 0] > 0
    return replace(
        estimate,
        depth=depth,
        confidence=known.float(),
        sky=estimate.sky & ~near,
        moving=estimate.moving & (estimate.moving_probability >= _MIN_SENSOR_MOVING),
        scaled=torch.ones_like(estimate.scaled),
    )
