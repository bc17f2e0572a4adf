"""Read posed RGB-D frames from a folder, for measurements on a real camera.

``rgb/NNNN.jpg``; ``depth/NNNN.png``, 16 bit millimetres registered to the colour, 0 where unknown;
``poses.txt``, a row-major camera-to-world matrix a line, optical axes, metres; ``K.txt``, 3x3, the
centre of the first pixel at (0, 0).
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch

from mirage_model.camera import concatenate
from mirage_model.clip import Clip
from mirage_model.engine.inputs import fit_observation
from mirage_model.interface import Observation


def read_office(
    folder: Path, *, count: int, frames: int, height: int, width: int, rate: float
) -> list[Clip]:
    """Return ``count`` clips with starts spread evenly over the recording.

    Frames are cropped and scaled to the size. Nothing is labelled as sky or as moving.

    Args:
        frames: Frames of a clip.
        rate: Frames per second; the recording has no stamps.

    Raises:
        ValueError: A file is missing or the recording is shorter than a clip.
    """
    for name in ('K.txt', 'poses.txt'):
        if not (folder / name).is_file():
            raise ValueError(f'{folder / name}: the file is missing')
    K = np.loadtxt(folder / 'K.txt').reshape(3, 3)
    poses = np.loadtxt(folder / 'poses.txt').reshape(-1, 4, 4)
    if len(poses) < frames:
        raise ValueError(f'{folder}: {len(poses)} frames are too few, {frames} are needed')
    starts = np.linspace(0, len(poses) - frames, count).astype(int)
    clips = []
    for start in (int(start) for start in starts):
        views = []
        for index in range(start, start + frames):
            observation = Observation(
                image=_read(folder / f'rgb/{index:04d}.jpg', cv2.IMREAD_COLOR)[..., ::-1],
                K=K,
                world_from_camera=poses[index],
                time=index / rate,
                depth=_read(folder / f'depth/{index:04d}.png', cv2.IMREAD_UNCHANGED) / 1000.0,
            )
            views.append(fit_observation(observation, height, width))
        depth = torch.cat([view.depth for view in views if view.depth is not None])
        unknown = torch.zeros_like(depth, dtype=torch.bool)
        pixels = torch.cat([view.frame for view in views])
        clips.append(
            Clip(
                name=f'office-{start:04d}',
                frames=(pixels * 255).round().byte().permute(0, 2, 3, 1).contiguous(),
                cameras=concatenate([view.camera for view in views]),
                depth=depth.masked_fill(depth <= 0, torch.nan),
                sky=unknown,
                moving=unknown,
            )
        )
    return clips


def _read(path: Path, flags: int) -> np.ndarray:
    image = cv2.imread(str(path), flags)
    if image is None:
        raise ValueError(f'{path}: not an image, or missing')
    return image
