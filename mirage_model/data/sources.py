"""Protocol of sources of clips, recorded clips as a source, and cutting of sequences into clips.

The modules `realestate10k`, `bag`, `vipe` and `posed_frames` hold other sources.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
import re
from typing import Protocol, runtime_checkable

import cv2
from jaxtyping import Bool, Float, Float32, UInt8
import numpy as np
from safetensors import SafetensorError, safe_open
import torch

from mirage_model.camera import Cameras, check_cameras
from mirage_model.clip import Clip, load_clip
from mirage_model.image_fit import fit_depth, fit_image, fit_K


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
    """Clip that a source can load."""

    name: str
    """Name of the clip."""
    scene: str
    """Scene that it shows; it decides the split."""
    sequence: str
    """Sequence that it is cut from, or path of a recorded clip."""
    rows: tuple[int, ...] = ()
    """Frames of the sequence; empty for a recorded clip, of which all frames are used."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Usable and unusable clips of a source."""

    parts: list[Part]
    """Clips that can be loaded."""
    left_out: list[tuple[str, str, str]]
    """Name, scene and reason of each clip that cannot be used."""


@runtime_checkable
class Source(Protocol):
    """Origin of clips. It must be picklable, since worker processes load the clips."""

    def listing(self) -> Listing:
        """Return all clips in a fixed order.

        Raises:
            ValueError: If there are no clips.
        """
        ...

    def load(self, part: Part) -> Clip:
        """Load a clip.

        Raises:
            ValueError: If a file or topic cannot be used; the message names it.
        """
        ...


def clip_of(
    part: Part,
    layout: Layout,
    *,
    images: Sequence[UInt8[np.ndarray, 'H W 3']],
    K: Float[np.ndarray, 'n 3 3'],
    world_from_camera: Float[np.ndarray, 'n 4 4'],
    times: Float[np.ndarray, 'n'],
    metric: bool,
    depth: Sequence[Float32[np.ndarray, 'H W']] | None = None,
    sky: Sequence[Bool[np.ndarray, 'H W']] | None = None,
    moving: Sequence[Bool[np.ndarray, 'H W']] | None = None,
) -> Clip:
    """Return the clip of a part, cropped and scaled to the layout.

    Args:
        images: RGB.
        K: Intrinsics at the size of the images [px].
        world_from_camera: Poses, in metres if ``metric``.
        times: Times of the frames [s].
        depth: Depth [m], NaN where unknown; None if the source has none.
        sky: Pixels of sky; None if the source has no labels.
        moving: Pixels on dynamic objects; None if the source has no labels.

    Raises:
        ValueError: The images differ in size, or a camera is not valid.
    """
    sizes = {image.shape[:2] for image in images}
    if len(sizes) > 1:
        raise ValueError(f'{part.sequence}: sizes are {sorted(sizes)}, must be equal')
    (size,) = sizes
    height, width = layout.height, layout.width
    fitted = [
        None
        if maps is None
        else torch.from_numpy(np.stack([fit_depth(one, height, width) for one in maps]))
        for maps in (depth, _bytes(sky), _bytes(moving))
    ]
    unknown = torch.full((len(images), height, width), torch.nan)
    return Clip(
        name=part.name,
        frames=torch.from_numpy(np.stack([fit_image(image, height, width) for image in images])),
        cameras=check_cameras(
            Cameras(
                K=torch.from_numpy(fit_K(K, size, height, width)).float(),
                world_from_camera=torch.from_numpy(world_from_camera).float(),
                times=torch.from_numpy(times),
                height=height,
                width=width,
            )
        ),
        depth=unknown if fitted[0] is None else fitted[0],
        sky=unknown > 0 if fitted[1] is None else fitted[1] > 0,
        moving=unknown > 0 if fitted[2] is None else fitted[2] > 0,
        scene=part.scene,
        labelled=moving is not None,
        metric=metric,
    )


def read_image(path: Path) -> UInt8[np.ndarray, 'h w 3']:
    """Read an image file as RGB.

    Raises:
        ValueError: The file is missing or is not an image.
    """
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(f'{path}: cannot be read as an image')
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _bytes(masks: Sequence[Bool[np.ndarray, 'h w']] | None) -> list[np.ndarray] | None:
    return None if masks is None else [mask.astype(np.uint8) for mask in masks]


_RECORDED = re.compile(r'\d{5}-(.+)-[a-z_]+')


@dataclass(frozen=True, kw_only=True)
class RecordedClips:
    """Source of clips that `record` or `prepare` wrote to a folder or its subfolders."""

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
            if not scene:  # older clips carry the scene only in the file name
                named = _RECORDED.fullmatch(path.stem)
                scene = named[1] if named else ''
            size = (self.layout.height, self.layout.width)
            if not scene:
                left_out.append((path.stem, scene, 'it has no scene'))
            elif tuple(shape[1:3]) != size:
                sizes = f'{shape[1]}x{shape[2]}, not {size[0]}x{size[1]}'
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
    """Cut a sequence into consecutive clips at the layout's rate, without gaps or shared frames.

    A clock at that rate starts with the first frame. Each tick takes the nearest frame within half
    a period; a tick without a frame ends the clip.

    Args:
        name: Name of the sequence.
        scene: Scene of the sequence.
        times: Times of the usable frames [s], increasing.
        layout: Rate and lengths of the clips.
        rows: (n,) numbers of the usable frames in the sequence.
    """
    parts, left_out = [], []
    for run in _runs(times, layout.rate):
        for start in range(0, len(run), layout.frames):
            chosen = run[start : start + layout.frames]
            clip_name = f'{name}-{rows[chosen[0]]:05d}'
            if len(chosen) < layout.least:
                reason = (
                    f'{len(chosen)} frames without a gap at {layout.rate:g} Hz, '
                    f'a chunk needs {layout.least}'
                )
                left_out.append((clip_name, scene, reason))
            else:
                part = Part(
                    name=clip_name, scene=scene, sequence=name, rows=tuple(rows[i] for i in chosen)
                )
                parts.append(part)
    return Listing(parts=parts, left_out=left_out)


def _runs(times: Float[np.ndarray, 'n'], rate: float) -> list[list[int]]:
    """Return runs of frame indices on consecutive ticks of a clock at ``rate`` [Hz]."""
    position = (times - times[:1]) * rate
    tick = np.floor(position + 0.5).astype(np.int64)
    distance = np.abs(position - tick)
    runs: list[list[int]] = []
    last = -2
    for number in np.unique(tick).tolist():
        candidates = np.flatnonzero(tick == number)
        if number != last + 1:
            runs.append([])
        runs[-1].append(int(candidates[distance[candidates].argmin()]))
        last = number
    return runs
