"""A memory's cells as one safetensors file."""

from __future__ import annotations

from collections.abc import Mapping
import json
import os
from pathlib import Path
from threading import get_ident

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save_file
import torch
from torch import Tensor

FORMAT = 'mirage latent memory'
VERSION = 2

SHAPES = {
    'position': (torch.float32, 2),
    'size': (torch.float32, 1),
    'depth': (torch.float32, 1),
    'time': (torch.float32, 1),
    'confidence': (torch.uint8, 1),
    'observed': (torch.bool, 1),
    'serial': (torch.int32, 1),
    'latents': (None, 2),
}


_ATTACHED = 'attached/'


def save(
    path: Path,
    cells: Mapping[str, Tensor],
    about: Mapping[str, object],
    attached: Mapping[str, Tensor],
) -> None:
    """Write the file aside and rename it, so that ``path`` holds all of it or what it held before.

    ``attached`` tensors travel along, for the caller.
    """
    assert set(cells) == set(SHAPES)
    cells = {**cells, **{_ATTACHED + name: v.contiguous() for name, v in attached.items()}}
    aside = path.with_name(f'.{path.name}.{os.getpid()}.{get_ident()}')
    metadata = {'format': FORMAT, 'version': str(VERSION), 'about': json.dumps(dict(about))}
    try:
        save_file(dict(cells), aside, metadata=metadata)
        with open(aside, 'rb') as written:
            os.fsync(written.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, object], dict[str, Tensor]]:
    """The cells, what was said about them, and the tensors that travelled along.

    The file is opened once: safetensors opens a path twice, and another may have been put in its place between.
    Raises ValueError, naming the file, for one that is truncated or no memory, of another version,
    or has missing tensors, wrong types or shapes, or values that no memory holds.
    """
    try:
        content = path.read_bytes()
        cells = load_tensors(content)
    except (OSError, SafetensorError) as error:
        raise ValueError(f'{path}: not a whole safetensors file: {error}') from error
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], 'little')])
    metadata = header.get('__metadata__', {})
    attached = {
        name.removeprefix(_ATTACHED): cells.pop(name)
        for name in list(cells)
        if name.startswith(_ATTACHED)
    }
    if metadata.get('format') != FORMAT:
        raise ValueError(f'{path}: not a latent memory')
    if metadata.get('version') != str(VERSION):
        raise ValueError(
            f'{path}: version {metadata.get("version")}, this library reads {VERSION}'
        )
    if set(cells) != set(SHAPES):
        raise ValueError(f'{path}: holds {sorted(cells)}, not {sorted(SHAPES)}')
    count = cells['size'].numel()
    for name, (dtype, dimensions) in SHAPES.items():
        values = cells[name]
        wrong = values.ndim != dimensions or len(values) != count
        if wrong or (dtype is not None and values.dtype != dtype):
            raise ValueError(f'{path}: {name} is {values.dtype} {tuple(values.shape)}')
        if not torch.isfinite(values).all():
            raise ValueError(f'{path}: {name} has values that are not finite')
    if cells['position'].shape[1] != 3:
        raise ValueError(f'{path}: position is {tuple(cells["position"].shape)}')
    for name in ('size', 'depth'):
        if (cells[name] <= 0).any():
            raise ValueError(f'{path}: {name} has values that are not positive')
    serial = cells['serial'].numpy()
    if count and (serial.min() < 0 or len(np.unique(serial)) != count):
        raise ValueError(f'{path}: serial numbers are not unique')
    try:
        return cells, json.loads(metadata['about']), attached
    except (KeyError, ValueError) as error:
        raise ValueError(f'{path}: its description is damaged: {error}') from error
