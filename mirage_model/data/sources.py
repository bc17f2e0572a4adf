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
    """Size, rate and length of the clips that a source loads."""

    height: int = 96
    """Height of the frames [px]."""
    width: int = 160
    """Width of the frames [px]."""
    rate: float = 8.0
    """Frames per second."""
    least: int = 17
    """Fewest frames of a clip."""
    frames: int = 65
    """Most frames of a clip."""

    def __post_init__(self) -> None:
        for name in ('height', 'width', 'rate', 'least'):
            if not getattr(self, name) > 0:
                raise ValueError(f'{name}: {getattr(self, name)}, must be positive')
        if self.frames < self.least:
            raise ValueError(
                f'frames: {self.frames}, must be at least those of a chunk, {self.least}'
            )


@dataclass(frozen=True, kw_only=True)
class Part:
    """Clip that a source can load: ``rows`` of a sequence, or all of a recorded clip."""

    name: str
    scene: str
    sequence: str
    rows: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Clips of a source, and (name, scene, reason) of those that it leaves out."""

    parts: list[Part]
    left_out: list[tuple[str, str, str]]


@runtime_checkable
class Source(Protocol):
    """Clips of one origin; it is pickled to the processes that load them."""

    def listing(self) -> Listing:
        """Return all clips in a fixed order. Raises ValueError if there are none."""
        ...

    def load(self, part: Part) -> Clip:
        """Load a clip. Raises ValueError naming the file or topic that cannot be used."""
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
            raise ValueError(f'{self.folder}: no clips in this folder')
        parts, left_out = [], []
        for path in paths:
            try:
                with safe_open(path, framework='pt') as file:
                    scene = (file.metadata() or {}).get('scene', '')
                    shape = file.get_slice('frames').get_shape()
            except SafetensorError as error:
                left_out.append((path.stem, '', f'{path}: not a clip: {error}'))
                continue
            if not scene:  # older clips have their scene in their names alone
                named = _RECORDED.fullmatch(path.stem)
                scene = named[1] if named else ''
            wanted = (self.layout.height, self.layout.width)
            if not scene:
                left_out.append((path.stem, scene, 'it has no scene'))
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
    """Return consecutive clips of a sequence at the layout's rate, without gaps or shared frames.

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
    """Return indices of frames on consecutive ticks."""
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
