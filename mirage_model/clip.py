"""A clip: frames with their cameras and what is known of every pixel. One safetensors file each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Bool, Float, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
import torch
from torch import Tensor

from mirage_model.camera import Cameras
from mirage_model.io import written_whole


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Frames in order of time, of one scene. ``depth`` is in metres, NaN where it is not known.

    ``sky`` and ``moving`` mark pixels that must never enter a memory; ``text`` describes the scene. A source
    that knows neither of them says so by ``labelled``, and by ``metric`` that its cameras' unit of length is
    a metre: `estimate.complete` finds what is missing.
    """

    name: str
    frames: UInt8[Tensor, 'n h w 3']
    cameras: Cameras
    depth: Float[Tensor, 'n h w']
    sky: Bool[Tensor, 'n h w']
    moving: Bool[Tensor, 'n h w']
    text: str = ''
    scene: str = ''
    labelled: bool = True
    metric: bool = True

    @property
    def valid(self) -> Bool[Tensor, 'n h w']:
        """Pixels that a memory may hold: of known depth, neither sky nor moving."""
        return ~(self.depth.isnan() | self.sky | self.moving)


def why_left_out(clip: Clip) -> str | None:
    """A reason not to learn from a clip, or None."""
    if clip.valid.float().mean() < 0.4:
        return 'under 40% of the pixels have a depth and may be remembered'
    if clip.depth[clip.valid].median() < 1.0:
        return 'it looks at a wall from less than a metre'
    return None


def save_clip(path: Path, clip: Clip) -> None:
    """Write a clip; the file is whole or absent."""
    assert clip.labelled and clip.metric, f'{clip.name} is not complete'
    tensors = {
        'frames': clip.frames,
        'depth': clip.depth,
        'sky': clip.sky,
        'moving': clip.moving,
        'K': clip.cameras.K,
        'world_from_camera': clip.cameras.world_from_camera,
        'times': clip.cameras.times,
    }
    with written_whole(path) as part:
        save_file(
            {k: v.clone().contiguous() for k, v in tensors.items()},
            part,
            metadata={'text': clip.text, 'scene': clip.scene},
        )


def _frames(tensor, at: Sequence[int] | None) -> Tensor:
    if at is None:
        return tensor[:]
    return torch.stack([tensor[index] for index in at])


def clip_length(path: Path) -> int:
    """The count of a clip's frames, read without them."""
    with safe_open(path, framework='pt') as file:
        return file.get_slice('frames').get_shape()[0]


def load_clip(path: Path, *, at: Sequence[int] | None = None) -> Clip:
    """Read a clip, or only the frames ``at``. Raises ValueError that names the file and the tensor it lacks."""
    try:
        with safe_open(path, framework='pt') as file:
            tensors = {name: _frames(file.get_slice(name), at) for name in file.keys()}
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f'{path} is damaged or no safetensors file: {error}') from None
    names = ('frames', 'depth', 'sky', 'moving', 'K', 'world_from_camera', 'times')
    missing = [name for name in names if name not in tensors]
    if missing:
        raise ValueError(f'{path}: not a clip, it lacks {", ".join(missing)}')
    height, width = tensors['frames'].shape[1:3]
    cameras = Cameras(
        K=tensors['K'].expand(len(tensors['times']), 3, 3),
        world_from_camera=tensors['world_from_camera'],
        times=tensors['times'],
        height=height,
        width=width,
    )
    return Clip(
        name=path.stem,
        frames=tensors['frames'],
        cameras=cameras,
        depth=tensors['depth'],
        sky=tensors['sky'],
        moving=tensors['moving'],
        text=metadata.get('text', ''),
        scene=metadata.get('scene', ''),
    )
