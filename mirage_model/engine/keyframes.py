"""Which of the frames that a robot sees are worth remembering."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
import math
from typing import Literal

from jaxtyping import Float
import numpy as np

Reason = Literal['first', 'new', 'old', 'still', 'known']
"""Keyframes are the first frame, frames that show what the memory does not hold, and one now and then,
because what was seen last may be old; the others are dropped, as the camera stood still or as what it
sees is known."""


@dataclass(frozen=True, kw_only=True)
class KeyframeConfig:
    """A frame is compared with the last keyframe and with the memory.

    It is a keyframe where the camera has moved ``distance`` metres or turned ``angle`` radians since
    and at least the share ``gain`` of its view is not observed yet, or ``refresh`` seconds later,
    moved or not, so that what changed is noticed.
    """

    distance: float = 0.25
    angle: float = math.radians(15)
    gain: float = 0.1
    refresh: float = 5.0

    def __post_init__(self) -> None:
        for name in ('distance', 'angle', 'gain', 'refresh'):
            if not getattr(self, name) >= 0:
                raise ValueError(f'{name} must not be negative, got {getattr(self, name)}')


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether a frame is a keyframe, and why or why not."""

    keyframe: bool
    reason: Reason


class KeyframeSelector:
    """The last keyframe: `judge` a frame, and say that it was `taken` once the memory has it."""

    def __init__(self, config: KeyframeConfig) -> None:
        self.config = config
        self._last: tuple[Float[np.ndarray, '4 4'], float] | None = None

    def judge(
        self,
        world_from_camera: Float[np.ndarray, '4 4'],
        time: float,
        observed: Callable[[], float],
    ) -> Verdict:
        """``observed`` is the share of the view that the memory has observed; asked for only where the
        camera has moved."""
        config = self.config
        if self._last is None:
            return Verdict(keyframe=True, reason='first')
        last_from_world = np.linalg.inv(self._last[0])
        distance, angle = motion(last_from_world @ world_from_camera)
        moved = distance >= config.distance or angle >= config.angle
        if moved and 1 - observed() >= config.gain:
            return Verdict(keyframe=True, reason='new')
        if not 0 <= time - self._last[1] < config.refresh:  # or time was set back
            return Verdict(keyframe=True, reason='old')
        return Verdict(keyframe=False, reason='known' if moved else 'still')

    def taken(self, world_from_camera: Float[np.ndarray, '4 4'], time: float) -> None:
        self._last = (np.array(world_from_camera, dtype=np.float64), time)

    def reanchor(self, new_from_old: Float[np.ndarray, '4 4']) -> None:
        """Move with the memory, after the world frame has jumped."""
        if self._last is not None:
            self._last = (new_from_old @ self._last[0], self._last[1])

    def reset(self) -> None:
        """The next frame is the first."""
        self._last = None


def motion(transform: Float[np.ndarray, '4 4']) -> tuple[float, float]:
    """The metres and the radians that a rigid transform moves and turns."""
    rotation = transform[:3, :3]
    # by both sine and cosine, so that small angles are not lost to rounding
    axis = [
        rotation[2, 1] - rotation[1, 2],
        rotation[0, 2] - rotation[2, 0],
        rotation[1, 0] - rotation[0, 1],
    ]
    angle = math.atan2(float(np.linalg.norm(axis)), float(np.trace(rotation)) - 1)
    return float(np.linalg.norm(transform[:3, 3])), angle
