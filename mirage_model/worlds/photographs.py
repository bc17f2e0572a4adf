"""Photographs from a folder as textures of generated rooms."""

from __future__ import annotations

from collections.abc import Sequence
import functools
import hashlib
from pathlib import Path
import re

import cv2
from jaxtyping import UInt8
import numpy as np

SUFFIXES = ('.jpg', '.jpeg', '.png', '.tga', '.webp')
SMALLEST = 128
"""Shortest allowed side of a picture [px]."""
SHARES = {'train': (0.0, 0.8), 'validation': (0.8, 0.9), 'test': (0.9, 1.0)}
"""Interval of the hash of a picture's name, in 0..1, for each split."""
_SIZE_IN_NAME = re.compile(r'_?\d+x\d+')


def find_photographs(folder: Path, split: str) -> list[Path]:
    """Return the pictures of a split in a folder and its subfolders, in a fixed order.

    Files whose names differ only in a size such as 1920x1080 are versions of the same picture; the
    largest file is returned. The split depends only on the name, so splits share no picture.

    Raises:
        ValueError: If the split is unknown, or the folder has no picture for it.
    """
    if split not in SHARES:
        raise ValueError(f'split: {split!r} is unknown, must be one of {sorted(SHARES)}')
    low, high = SHARES[split]
    largest: dict[str, Path] = {}
    for path in sorted(folder.rglob('*')):
        if path.suffix.lower() not in SUFFIXES or not path.is_file():
            continue
        name = _SIZE_IN_NAME.sub('', str(path.relative_to(folder).with_suffix('')))
        if name not in largest or path.stat().st_size > largest[name].stat().st_size:
            largest[name] = path
    chosen = [path for name, path in sorted(largest.items()) if low <= _position(name) < high]
    if not chosen:
        raise ValueError(f'{folder}: no pictures ({", ".join(SUFFIXES)}) for the split {split!r}')
    return chosen


def cut_texture(
    photographs: Sequence[Path], rng: np.random.Generator, size: int, *, tiled: bool
) -> UInt8[np.ndarray, '{size} {size} 3']:
    """Return a random square of a random picture as an RGB texture.

    Pictures that cannot be decoded or are smaller than `SMALLEST` are skipped.

    Args:
        photographs: Paths of the pictures.
        rng: Source of randomness.
        size: Side of the texture [px].
        tiled: Mirror the texture along both axes, so that it repeats without a seam.

    Raises:
        ValueError: If 100 random pictures are all unusable.
    """
    for _ in range(100):
        picture = _read(photographs[int(rng.integers(len(photographs)))])
        if picture is not None and min(picture.shape[:2]) >= SMALLEST:
            break
    else:
        raise ValueError(
            f'{photographs[0].parent}: no picture can be used as a texture, '
            f'readable pictures of at least {SMALLEST} pixels are needed'
        )
    height, width = picture.shape[:2]
    side = int(min(height, width) * rng.uniform(0.35, 1.0))
    top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
    square = picture[top : top + side, left : left + side]
    if rng.random() < 0.5:
        square = square[:, ::-1]
    gain = rng.uniform(0.7, 1.2) * rng.uniform(0.9, 1.1, 3)
    square = (square * gain).clip(0, 255).astype(np.uint8)
    inner = size // 2 if tiled else size
    square = cv2.resize(square, (inner, inner), interpolation=cv2.INTER_AREA)
    if tiled:
        square = np.concatenate([square, square[:, ::-1]], axis=1)
        square = np.concatenate([square, square[::-1]], axis=0)
    return np.ascontiguousarray(square)


@functools.lru_cache(maxsize=64)
def _read(path: Path) -> UInt8[np.ndarray, 'h w 3'] | None:
    large = path.stat().st_size > 400_000
    picture = cv2.imread(str(path), cv2.IMREAD_REDUCED_COLOR_2 if large else cv2.IMREAD_COLOR)
    return None if picture is None else cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


def _position(name: str) -> float:
    """Return the hash of a name as a number in 0..1."""
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:8], 'big') / 2**64
