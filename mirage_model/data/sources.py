"""The protocol of sources of clips, recorded clips as a source, and how frames of a sequence are
chosen.

`realestate10k` and `bag` are sources too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
import re
from typing import Protocol, runtime_checkable

from jaxtyping import Float
import numpy as np
from safetensors import SafetensorError, safe_open

from mirage_model.clip import Clip, load_clip


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What a source cuts its frames to: size, frames a second, and the fewest and the most of a
    clip."""

    height: int = 96
    width: int = 160
    rate: float = 8.0
    least: int = 17
    frames: int = 65

    def __post_init__(self) -> None:
        for name in ('height', 'width', 'rate', 'least'):
            if not getattr(self, name) > 0:
                raise ValueError(f'{name} must be positive, got {getattr(self, name)}')
        if self.frames < self.least:
            raise ValueError(
                f'clips of at most {self.frames} frames cannot hold a chunk of {self.least}'
            )


@dataclass(frozen=True, kw_only=True)
class Part:
    """A clip that a source can load: the ``rows`` of one of its sequences, all for a recorded
    clip."""

    name: str
    scene: str
    sequence: str
    rows: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Listing:
    """What a source has: clips, and what it leaves out, with the reason, by name and scene."""

    parts: list[Part]
    left_out: list[tuple[str, str, str]]


@runtime_checkable
class Source(Protocol):
    """Clips of one origin. It travels to other processes, which load while the first one lists."""

    def listing(self) -> Listing:
        """Everything it has, in a fixed order. Raises ValueError if that is nothing at all."""
        ...

    def load(self, part: Part) -> Clip:
        """Raises ValueError that names the file or the topic where what is stored is not
        usable.
        """
        ...


_RECORDED = re.compile(r'\d{5}-(.+)-[a-z_]+')


@dataclass(frozen=True, kw_only=True)
class RecordedClips:
    """Clips that `record` or an earlier preparation wrote, in a folder or in folders within it."""

    folder: Path
    layout: Layout

    def listing(self) -> Listing:
        paths = sorted(self.folder.rglob('*.safetensors'))
        if not paths:
            raise ValueError(f'no clips in {self.folder}')
        parts, left_out = [], []
        for path in paths:
            try:
                with safe_open(path, framework='pt') as file:
                    scene = (file.metadata() or {}).get('scene', '')
                    shape = file.get_slice('frames').get_shape()
            except SafetensorError as error:
                left_out.append((path.stem, '', f'{path}: no clip: {error}'))
                continue
            if not scene:  # clips that are older than this say it in their names alone
                named = _RECORDED.fullmatch(path.stem)
                scene = named[1] if named else ''
            wanted = (self.layout.height, self.layout.width)
            if not scene:
                left_out.append((path.stem, scene, 'it does not say its scene'))
            elif tuple(shape[1:3]) != wanted:
                sizes = f'{shape[1]}x{shape[2]}, not {wanted[0]}x{wanted[1]}'
                left_out.append((path.stem, scene, f'its frames are {sizes}'))
            elif shape[0] < self.layout.least:
                reason = f'{shape[0]} frames are fewer than a chunk of {self.layout.least}'
                left_out.append((path.stem, scene, reason))
            else:
                parts.append(Part(name=path.stem, scene=scene, sequence=str(path)))
        return Listing(parts=parts, left_out=left_out)

    def load(self, part: Part) -> Clip:
        return load_clip(Path(part.sequence))


def cut(
    name: str, scene: str, times: Float[np.ndarray, 'n'], layout: Layout, rows: list[int]
) -> Listing:
    """Clips of one sequence at the layout's rate: unbroken, one after the other, no frame in two
    of them.

    ``times`` are of the usable frames, increasing, and ``rows`` what they are called. Every tick
    of a clock at that rate, started with the first frame, takes the frame that is nearest to it
    within half a period; a tick that has none breaks the sequence.
    """
    parts, left_out = [], []
    for run in _runs(times, layout.rate):
        for start in range(0, len(run), layout.frames):
            chosen = run[start : start + layout.frames]
            called = f'{name}-{rows[chosen[0]]:05d}'
            if len(chosen) < layout.least:
                reason = (
                    f'{len(chosen)} frames without a gap at {layout.rate:g} Hz, '
                    f'a chunk needs {layout.least}'
                )
                left_out.append((called, scene, reason))
            else:
                part = Part(
                    name=called, scene=scene, sequence=name, rows=tuple(rows[i] for i in chosen)
                )
                parts.append(part)
    return Listing(parts=parts, left_out=left_out)


def _runs(times: Float[np.ndarray, 'n'], rate: float) -> list[list[int]]:
    """Indices of the frames on consecutive ticks."""
    position = (times - times[:1]) * rate
    tick = np.floor(position + 0.5).astype(np.int64)
    away = np.abs(position - tick)
    runs: list[list[int]] = []
    last = -2
    for number in np.unique(tick).tolist():
        here = np.flatnonzero(tick == number)
        if number != last + 1:
            runs.append([])
        runs[-1].append(int(here[away[here].argmin()]))
        last = number
    return runs
