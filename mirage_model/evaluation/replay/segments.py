"""Which parts of a recorded drive are imagined, and what may be seen before each of them."""

from __future__ import annotations

from dataclasses import dataclass
import math

from jaxtyping import Float
import numpy as np

from mirage_model.data.sources import Listing


@dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """What is imagined, and what the memory may see before. Lengths are in seconds.

    ``horizon`` is imagined from every ``stride`` on. Before, frames that are ``observe_every`` apart are
    observed, and always the one that imagination starts from, as far back as ``observe``: 0 shows that one
    alone. Every segment is imagined with each of ``seeds``; ``steps`` 0 takes the model's own count.
    ``model_folder`` empty is mirage-tiny; with several ``devices`` each takes its share of the segments.
    """

    horizon: float = 4.0
    stride: float = 4.0
    observe: float = math.inf
    observe_every: float = 0.5
    seeds: tuple[int, ...] = (0,)
    steps: int = 0
    model_folder: str = ''
    devices: tuple[str, ...] = ('cpu',)
    allow_unscaled_depth: bool = False
    refine_cameras: bool = False

    def __post_init__(self) -> None:
        for name in ('horizon', 'stride', 'observe_every'):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f'{name} must be positive seconds, got {getattr(self, name)}')
        if not self.observe >= 0:
            raise ValueError(f'observe must be seconds, 0 or more, got {self.observe}')
        for name in ('seeds', 'devices'):
            if not getattr(self, name) or len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ValueError(f'{name} must be one or several different ones')


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
    rows, starts = [], []
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
