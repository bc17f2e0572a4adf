"""Clips: frames with cameras, depth and labels. Each is one safetensors file."""

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
from mirage_model.perception import Estimate


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Frames of one scene in order of time. `data.estimate.complete` fills in missing labels."""

    name: str
    frames: UInt8[Tensor, 'n h w 3']
    cameras: Cameras
    depth: Float[Tensor, 'n h w']
    """Depth [m], NaN where it is unknown."""
    sky: Bool[Tensor, 'n h w']
    """Pixels of sky; they never enter a memory."""
    moving: Bool[Tensor, 'n h w']
    """Pixels on dynamic objects; they never enter a memory."""
    text: str = ''
    """Description of the scene."""
    scene: str = ''
    """Name of the map, house, video or place; a scene belongs to one split."""
    labelled: bool = True
    """Whether ``sky`` and ``moving`` are labelled."""
    metric: bool = True
    """Whether camera positions are in metres."""

    @property
    def valid(self) -> Bool[Tensor, 'n h w']:
        """Pixels that may enter a memory: of known depth, neither sky nor moving."""
        return ~(self.depth.isnan() | self.sky | self.moving)


def reason_to_reject(clip: Clip) -> str | None:
    """Return a reason not to train on a clip, or None."""
    if clip.valid.float().mean() < 0.4:
        return 'under 40% of the pixels have a depth and may enter a memory'
    if clip.depth[clip.valid].median() < 1.0:
        return 'the median depth is under 1 m'
    return None


def save_clip(path: Path, clip: Clip) -> None:
    """Write a clip; the file is whole or absent."""
    assert clip.labelled and clip.metric, f'{clip.name}: depth or labels are missing'
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
    """Return the number of frames of a clip file without reading them."""
    with safe_open(path, framework='pt') as file:
        return file.get_slice('frames').get_shape()[0]


def load_clip(path: Path, *, at: Sequence[int] | None = None) -> Clip:
    """Read a clip, or only the frames ``at``.

    Raises:
        ValueError: The file is damaged, or lacks a tensor.
    """
    try:
        with safe_open(path, framework='pt') as file:
            tensors = {name: _frames(file.get_slice(name), at) for name in file.keys()}
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f'{path}: damaged, or not a safetensors file: {error}') from None
    names = ('frames', 'depth', 'sky', 'moving', 'K', 'world_from_camera', 'times')
    missing = [name for name in names if name not in tensors]
    if missing:
        raise ValueError(f'{path}: lacks {", ".join(missing)}, must be a clip')
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


def labels(clip: Clip, at: slice, *, dynamic_filter: bool = True) -> Estimate:
    """Return the labels of the frames ``at`` in the form of a perception's estimate.

    Args:
        dynamic_filter: Mark dynamic objects. Otherwise their pixels, which have no depth label,
            get the depth of the nearest labelled pixel below.
    """
    depth, moving = clip.depth[at], clip.moving[at]
    if not dynamic_filter:
        depth, moving = fill_from_below(depth, moving), torch.zeros_like(moving)
    return Estimate(
        depth=depth,
        cameras=clip.cameras[at],
        confidence=(~depth.isnan()).float(),
        sky=clip.sky[at],
        moving=moving,
        moving_probability=moving.float(),
        scaled=torch.ones(len(depth), dtype=torch.bool),
    )


def fill_from_below(
    depth: Float[Tensor, 'n h w'], moving: Bool[Tensor, 'n h w']
) -> Float[Tensor, 'n h w']:
    """Return depth with that of the nearest known pixel below at moving pixels, NaN where there is
    none."""
    known = ~depth.isnan() & ~moving
    rows = torch.arange(depth.shape[1])[:, None].expand_as(known)
    # scan from the bottom row up
    below = torch.where(known, rows, depth.shape[1]).flip(1).cummin(dim=1).values.flip(1)
    filled = torch.nn.functional.pad(depth, (0, 0, 0, 1), value=torch.nan).gather(1, below)
    return torch.where(moving, filled, depth)
