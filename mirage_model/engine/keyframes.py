"""Select the frames of a camera stream that are written into the memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
import math
from typing import Literal

from jaxtyping import Float
import numpy as np

Reason = Literal['first', 'uncovered', 'refresh', 'stationary', 'covered']
"""Reasons for a keyframe: first frame, uncovered view, refresh after some time.

Reasons to skip a frame: stationary camera, view that the memory covers.
"""


@dataclass(frozen=True, kw_only=True)
class KeyframeConfig:
    """Thresholds of a keyframe, relative to the last keyframe and to the memory."""

    distance: float = 0.25
    """Translation since the last keyframe that makes a new one, if ``gain`` is reached too [m]."""

    angle: float = math.radians(15)
    """Rotation since the last keyframe that makes a new one, if ``gain`` is reached too [rad]."""

    gain: float = 0.1
    """Smallest share of the view that the memory has not observed, in 0..1."""

    refresh: float = 5.0
    """Time since the last keyframe that makes a new one, moved or not [s]."""

    def __post_init__(self) -> None:
        for name in ('distance', 'angle', 'gain', 'refresh'):
            if not getattr(self, name) >= 0:
                raise ValueError(f'{name}: {getattr(self, name)} is not allowed, the least is 0')


@dataclass(frozen=True, kw_only=True)
class KeyframeDecision:
    """Whether a frame is a keyframe, and the reason."""

    keyframe: bool
    reason: Reason


class KeyframeSelector:
    """Decide on frames by the last keyframe; call `accept` once a keyframe is in the memory."""

    def __init__(self, config: KeyframeConfig) -> None:
        self.config = config
        self._last: tuple[Float[np.ndarray, '4 4'], float] | None = None

    def decide(
        self,
        world_from_camera: Float[np.ndarray, '4 4'],
        time: float,
        observed: Callable[[], float],
    ) -> KeyframeDecision:
        """Decide whether a frame is a keyframe.

        Args:
            world_from_camera: Pose of the frame [m].
            time: Time of the frame [s].
            observed: Returns the share of the view that the memory has observed, in 0..1; called
                only if the camera has moved.
        """
        config = self.config
        if self._last is None:
            return KeyframeDecision(keyframe=True, reason='first')
        last_from_world = np.linalg.inv(self._last[0])
        distance, angle = motion(last_from_world @ world_from_camera)
        moved = distance >= config.distance or angle >= config.angle
        if moved and 1 - observed() >= config.gain:
            return KeyframeDecision(keyframe=True, reason='uncovered')
        if (
            not 0 <= time - self._last[1] < config.refresh
        ):  # a time before the last keyframe refreshes too
            return KeyframeDecision(keyframe=True, reason='refresh')
        return KeyframeDecision(keyframe=False, reason='covered' if moved else 'stationary')

    def accept(self, world_from_camera: Float[np.ndarray, '4 4'], time: float) -> None:
        """Store a frame as the last keyframe."""
        self._last = (np.array(world_from_camera, dtype=np.float64), time)

    def reanchor(self, new_from_old: Float[np.ndarray, '4 4']) -> None:
        """Transform the last keyframe, after the world frame jumped."""
        if self._last is not None:
            self._last = (new_from_old @ self._last[0], self._last[1])

    def reset(self) -> None:
        """Clear the last keyframe: the next frame is the first."""
        self._last = None


def motion(transform: Float[np.ndarray, '4 4']) -> tuple[float, float]:
    """Return translation [m] and rotation [rad] of a rigid transform."""
    rotation = transform[:3, :3]
    # atan2 of sine and cosine keeps small angles exact
    axis = [
        rotation[2, 1] - rotation[1, 2],
        rotation[0, 2] - rotation[2, 0],
        rotation[1, 0] - rotation[0, 1],
    ]
    angle = math.atan2(float(np.linalg.norm(axis)), float(np.trace(rotation)) - 1)
    return float(np.linalg.norm(transform[:3, 3])), angle
