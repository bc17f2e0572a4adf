"""Which parts of a recorded drive are imagined, and what may be seen before each of them."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
import numpy as np

from mirage_model.data.sources import Listing
from mirage_model.evaluation.config import ReplayConfig


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Rows of a bag: those to be ``observed``, imagination starting from the last, and the ``future``."""

    index: int
    observed: tuple[int, ...]
    future: tuple[int, ...]


def segments_of(
    listing: Listing, stamps: Float[np.ndarray, 'n'], rate: float, config: ReplayConfig
) -> tuple[list[Segment], list[str]]:
    """Segments in order of time, and what is left out of them with the reason.

    ``listing`` holds the unbroken runs of the bag at ``rate``. A segment lies within one of them, what it
    observes may lie in earlier ones. Without a window on what is observed, every segment observes all that
    the one before did, and more: a memory walks along. Raises ValueError if there is no segment.
    """
    horizon = max(1, round(config.horizon * rate))
    stride = max(1, round(config.stride * rate))
    every = max(1, round(config.observe_every * rate))
    left_out = [f'{name}: {reason}' for name, _, reason in listing.left_out]
    rows: list[int] = []
    starts: list[int] = []
    for part in listing.parts:
        inside = range(0, len(part.rows) - horizon, stride)
        starts += [len(rows) + place for place in inside]
        rows += part.rows
        if not inside:
            left_out.append(
                f'{part.name}: {len(part.rows)} frames without a gap at {rate:g} Hz, '
                f'a segment needs {horizon + 1}'
            )
    if not starts:
        raise ValueError(f'no segment of {config.horizon:g} s: ' + '; '.join(left_out))
    seen = sorted({*starts, *range(0, len(rows), every)})
    segments = []
    for index, start in enumerate(starts):
        since = stamps[rows[start]] - config.observe - 1e-6
        observed = tuple(rows[i] for i in seen if i <= start and stamps[rows[i]] >= since)
        future = tuple(rows[start + 1 : start + 1 + horizon])
        segments.append(Segment(index=index, observed=observed, future=future))
    return segments, left_out
