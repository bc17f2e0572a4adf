"""Files of latent memories: a safetensors file with all points."""

from __future__ import annotations

from collections.abc import Mapping
import json
import os
from pathlib import Path
from threading import get_ident
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save_file
import torch
from torch import Tensor

FORMAT = 'mirage latent memory'
VERSION = 2

TENSORS = {
    'position': (torch.float32, 2),
    'size': (torch.float32, 1),
    'depth': (torch.float32, 1),
    'time': (torch.float32, 1),
    'confidence': (torch.uint8, 1),
    'observed': (torch.bool, 1),
    'serial': (torch.int32, 1),
    'latents': (None, 2),
}
"""Data type and dimensions of the points' tensors."""

_ATTACHED = 'attached/'


def save(
    path: Path,
    points: Mapping[str, Tensor],
    description: Mapping[str, Any],
    attached: Mapping[str, Tensor],
) -> None:
    """Write a file beside ``path`` and rename it, so that readers find the old or the new one.

    Args:
        path: File to write or replace.
        points: Tensors named in `TENSORS`.
        description: JSON content.
        attached: Further tensors of the caller.
    """
    assert set(points) == set(TENSORS)
    tensors = {**points, **{_ATTACHED + name: v.contiguous() for name, v in attached.items()}}
    aside = path.with_name(f'.{path.name}.{os.getpid()}.{get_ident()}')
    metadata = {'format': FORMAT, 'version': str(VERSION), 'about': json.dumps(dict(description))}
    try:
        save_file(tensors, aside, metadata=metadata)
        with open(aside, 'rb') as written:
            os.fsync(written.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Tensor]]:
    """Return the points' tensors, the description and the attached tensors of a file.

    Raises:
        ValueError: If the file is truncated, holds something else, has another version, or has
            tensors with wrong names, types, shapes or values. The message names the file.
    """
    try:
        # safetensors opens a path twice; the file may be replaced in between
        content = path.read_bytes()
        points = load_tensors(content)
    except (OSError, SafetensorError) as error:
        raise ValueError(f'{path}: not a whole safetensors file: {error}') from error
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], 'little')])
    metadata = header.get('__metadata__', {})
    attached = {
        name.removeprefix(_ATTACHED): points.pop(name)
        for name in list(points)
        if name.startswith(_ATTACHED)
    }
    if metadata.get('format') != FORMAT:
        raise ValueError(
            f'{path}: not a latent memory, expected a file that a memory was saved to'
        )
    if metadata.get('version') != str(VERSION):
        raise ValueError(
            f'{path}: version {metadata.get("version")}, this library reads version {VERSION}'
        )
    if set(points) != set(TENSORS):
        raise ValueError(f'{path}: holds tensors {sorted(points)}, expected {sorted(TENSORS)}')
    count = points['size'].numel()
    for name, (dtype, dimensions) in TENSORS.items():
        values = points[name]
        wrong = values.ndim != dimensions or len(values) != count
        if wrong or (dtype is not None and values.dtype != dtype):
            raise ValueError(
                f'{path}: {name} is {values.dtype} {tuple(values.shape)}, '
                f'expected {dtype or "floats"} with {dimensions} dimensions and {count} points'
            )
        if not torch.isfinite(values).all():
            raise ValueError(f'{path}: {name} has values that are not finite')
    if points['position'].shape[1] != 3:
        raise ValueError(
            f'{path}: position is {tuple(points["position"].shape)}, expected 3 columns'
        )
    for name in ('size', 'depth'):
        if (points[name] <= 0).any():
            raise ValueError(f'{path}: {name} has values that are not positive')
    serial = points['serial'].numpy()
    if count and (serial.min() < 0 or len(np.unique(serial)) != count):
        raise ValueError(f'{path}: serial numbers are not unique')
    try:
        return points, json.loads(metadata['about']), attached
    except (KeyError, ValueError) as error:
        raise ValueError(f'{path}: the description is damaged: {error}') from error
