"""How long imagination takes on this machine, learnt from the chunks that it made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

RECENT = 0.3
"""Weight of the newest chunk in the running means."""


@dataclass(frozen=True)
class _Means:
    """Seconds of a chunk of one candidate: a denoising step's, and all the rest."""

    step: float
    rest: float


class LatencyModel:
    """Running means of a chunk's seconds, by the share of the frame's size and the batch."""

    def __init__(self) -> None:
        self._means: dict[tuple[float, int], _Means] = {}

    def learn(self, scale: float, batch: int, *, steps: int, stages: Mapping[str, float]) -> None:
        """``stages`` are those of `GeneratedChunk`."""
        rest = sum(stages.values()) - stages['denoise']
        new = _Means(stages['denoise'] / steps, rest)
        old = self._means.get((scale, batch), new)
        self._means[scale, batch] = _Means(
            (1 - RECENT) * old.step + RECENT * new.step,
            (1 - RECENT) * old.rest + RECENT * new.rest,
        )

    def seconds(self, scale: float, batch: int, *, steps: int, chunks: int) -> float | None:
        """Of ``chunks``, counted for every candidate; None where nothing was measured.

        What was not measured itself is taken from what comes nearest, first in scale, then in batch,
        in proportion to the pixels.
        """
        if not self._means:
            return None
        nearest = min(self._means, key=lambda key: (abs(key[0] - scale), abs(key[1] - batch)))
        means, pixels = self._means[nearest], (scale / nearest[0]) ** 2
        return chunks * pixels * (steps * means.step + means.rest)
