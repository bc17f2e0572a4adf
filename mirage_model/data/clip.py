"""A clip: frames with their cameras and what is known of every pixel. One safetensors file each."""

from __future__ import annotations

from dataclasses import dataclass
import os
from pathlib import Path

from jaxtyping import Bool, Float, UInt8
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mirage_model.camera import Cameras


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Frames in order of time. ``depth`` is in metres, NaN where it is not known exactly.

    ``sky`` and ``moving`` mark pixels that must never enter a memory; ``text`` describes the scene.
    """

    name: str
    frames: UInt8[Tensor, 'n h w 3']
    cameras: Cameras
    depth: Float[Tensor, 'n h w']
    sky: Bool[Tensor, 'n h w']
    moving: Bool[Tensor, 'n h w']
    text: str = ''


def save_clip(path: Path, clip: Clip) -> None:
    """Write aside, then rename: a clip file is whole or absent."""
    tensors = {
        'frames': clip.frames,
        'depth': clip.depth,
        'sky': clip.sky,
        'moving': clip.moving,
        'K': clip.cameras.K,
        'world_from_camera': clip.cameras.world_from_camera,
        'times': clip.cameras.times,
    }
    aside = path.with_suffix('.part')
    save_file(
        {k: v.clone().contiguous() for k, v in tensors.items()},
        aside,
        metadata={'text': clip.text},
    )
    os.replace(aside, path)


def load_clip(path: Path) -> Clip:
    """Read a clip. Raises ValueError that names the file and the tensor it lacks."""
    with safe_open(path, framework='pt') as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}
        text = (file.metadata() or {}).get('text', '')
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
        text=text,
    )
