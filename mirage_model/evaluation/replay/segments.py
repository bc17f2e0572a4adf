"""The segments of a recording that are imagined, and the frames observed before each."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
import numpy as np

from mirage_model.data.sources import Listing
from mirage_model.evaluation.config import ReplayConfig


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Rows of a bag: the observed frames, of which imagination starts from the last, and the
    future frames."""

    index: int
    observed: tuple[int, ...]
    future: tuple[int, ...]


def segments_of(
    listing: Listing, stamps: Float[np.ndarray, 'n'], rate: float, config: ReplayConfig
) -> tuple[list[Segment], list[str]]:
    """Return segments in order of time, and what was left out with the reason.

    A segment is within one unbroken run of ``listing``; the frames that it observes may be in
    earlier runs. Without a window, each segment observes all frames of the segment before, and
    more.

    Args:
        listing: Unbroken runs of the bag at ``rate``.
        stamps: Stamps of the bag's images [s].
        rate: The model's frame rate [Hz].

    Raises:
        ValueError: There is no segment.
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
        raise ValueError(f'horizon: no segment of {config.horizon:g} s: ' + '; '.join(left_out))
    seen = sorted({*starts, *range(0, len(rows), every)})
    segments = []
    for index, start in enumerate(starts):
        since = stamps[rows[start]] - config.observe - 1e-6
        observed = tuple(rows[i] for i in seen if i <= start and stamps[rows[i]] >= since)
        future = tuple(rows[start + 1 : start + 1 + horizon])
        segments.append(Segment(index=index, observed=observed, future=future))
    return segments, left_out
