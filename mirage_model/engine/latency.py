"""Predict how long imagination takes on this machine, from the chunks so far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

SMOOTHING = 0.3
"""Weight of the newest chunk in the running means."""


@dataclass(frozen=True, kw_only=True)
class _ChunkTime:
    """Mean time of a chunk of one candidate."""

    step: float
    """A denoising step [s]."""
    rest: float
    """All other stages together [s]."""


class LatencyModel:
    """Running means of chunk times, by scale of the frame and batch size."""

    def __init__(self) -> None:
        self._means: dict[tuple[float, int], _ChunkTime] = {}

    def update(self, scale: float, batch: int, *, steps: int, stages: Mapping[str, float]) -> None:
        """Add the times of a chunk.

        Args:
            scale: Height of the frames, relative to the model's.
            batch: Candidates that were denoised together.
            stages: Seconds by stage, as `GeneratedChunk.stages`.
        """
        step = stages['denoise'] / steps
        rest = sum(stages.values()) - stages['denoise']
        old = self._means.get((scale, batch), _ChunkTime(step=step, rest=rest))
        self._means[scale, batch] = _ChunkTime(
            step=(1 - SMOOTHING) * old.step + SMOOTHING * step,
            rest=(1 - SMOOTHING) * old.rest + SMOOTHING * rest,
        )

    def predict(self, scale: float, batch: int, *, steps: int, chunks: int) -> float | None:
        """Return the seconds of ``chunks`` chunks, summed over candidates; None without timings.

        Settings without timings take those of the nearest scale, then of the nearest batch size,
        in proportion to the number of pixels.
        """
        if not self._means:
            return None
        nearest = min(self._means, key=lambda key: (abs(key[0] - scale), abs(key[1] - batch)))
        mean, pixels = self._means[nearest], (scale / nearest[0]) ** 2
        return chunks * pixels * (steps * mean.step + mean.rest)
