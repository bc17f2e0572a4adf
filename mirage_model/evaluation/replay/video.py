"""Videos that browsers play."""

from __future__ import annotations

from pathlib import Path
import tempfile

import cv2
from jaxtyping import UInt8
import numpy as np

_PAPER = 245


def mask_in_colour(visibility: UInt8[np.ndarray, 'n h w']) -> UInt8[np.ndarray, 'n h w 3']:
    """Colour a mask: black not covered, amber imagined before, green observed."""
    table = np.zeros((256, 3), np.uint8)
    table[128], table[255] = (230, 160, 30), (60, 170, 90)
    return table[visibility]


def at_most(frames: UInt8[np.ndarray, 'n h w 3'], width: int) -> UInt8[np.ndarray, 'n h2 w2 3']:
    """Scale frames down to a width, where they are wider."""
    if frames.shape[2] <= width:
        return frames
    size = width, max(1, round(frames.shape[1] * width / frames.shape[2]))
    return np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames])


def side_by_side(
    *rows: UInt8[np.ndarray, 'n h w 3'], gap: int = 4
) -> UInt8[np.ndarray, 'n h2 w2 3']:
    """Put frames of one size beside each other, with even sides for the codec."""
    height = rows[0].shape[1]
    between = np.full((len(rows[0]), height, gap, 3), _PAPER, np.uint8)
    parts = [part for row in rows for part in (between, row)][1:]
    video = np.concatenate(parts, axis=2)
    video = np.pad(
        video,
        ((0, 0), (0, height % 2), (0, video.shape[2] % 2), (0, 0)),
        constant_values=_PAPER,
    )
    return video


def mp4(frames: UInt8[np.ndarray, 'n h w 3'], *, frame_rate: float, scale: int = 1) -> bytes:
    """Encode VP9 in MP4, each pixel ``scale`` pixels wide and high.

    Raises OSError without the codec.
    """
    frames = frames.repeat(scale, axis=1).repeat(scale, axis=2)
    height, width = frames.shape[1:3]
    assert height % 2 == 0 and width % 2 == 0, 'the codec needs even sizes'
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'video.mp4'
        video = cv2.VideoWriter(
            str(path), cv2.VideoWriter.fourcc(*'vp09'), frame_rate, (width, height)
        )
        if not video.isOpened():
            raise OSError('video: this build of OpenCV cannot write VP9, use that of PyPI')
        for frame in frames:
            video.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        video.release()
        return path.read_bytes()
