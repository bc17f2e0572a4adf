"""Configurations of a training by name or from a file, such as the one that a run folder holds."""

from __future__ import annotations

from dataclasses import MISSING, fields, is_dataclass
import json
from pathlib import Path

from mirage_model.training.context import ContextConfig
from mirage_model.training.model import WorldModelConfig
from mirage_model.training.trainer import TrainerConfig

STEPS = {'backbone': 4000, 'side_branch': 3000, 'adapter': 2000, 'joint': 4000}
SOURCES = {
    'tiny': {'trainer': {'validate_every': 1000}},
    'wan22_5b': {
        'world_model': {
            'size': 'wan22_5b',
            'batch': 1,
            'shift': 5.0,
            'gradient_checkpointing': True,
            'sampler_steps': 20,
        },
        'trainer': {
            'learning_rate': 1e-4,
            'precision': 'bf16',
            'fsdp': True,
            'validate_every': 1000,
        },
    },
}
"""What differs from the defaults at each size."""

PARTS = ('world_model', 'trainer', 'backbone', 'data', 'commit')
"""Of a run folder's file; the first two configure a run."""


def configure(
    source: str,
    *,
    stage: str | None = None,
    steps: int | None = None,
    batch: int | None = None,
    precision: str | None = None,
) -> tuple[WorldModelConfig, TrainerConfig]:
    """The configuration of a name in `SOURCES`, or of a JSON file, with a few overrides.

    A file holds 'world_model' and 'trainer', each with the fields that differ from those of its size.
    Raises ValueError naming the source and the field that is not known or not allowed.
    """
    given = {} if source in SOURCES else _read(Path(source))
    own, how = given.get('world_model', {}), given.get('trainer', {})
    size = source if source in SOURCES else own.get('size', 'tiny')
    if size not in SOURCES:
        raise ValueError(f'{source}: size must be one of {sorted(SOURCES)}, got {size!r}')
    model = {**SOURCES[size].get('world_model', {}), **own}
    trainer = {**SOURCES[size].get('trainer', {}), **how}
    model |= {k: v for k, v in {'stage': stage, 'batch': batch}.items() if v is not None}
    trainer |= {k: v for k, v in {'steps': steps, 'precision': precision}.items() if v is not None}
    try:
        model['context'] = _checked(ContextConfig, model.get('context', {}))
        config = _checked(WorldModelConfig, model)
        return config, _checked(TrainerConfig, {'steps': STEPS[config.stage], **trainer})
    except ValueError as error:
        raise ValueError(f'{source}: {error}') from None


def _checked(cls, values: object):
    """The dataclass of these values. Raises ValueError for an unknown field or a value of another type."""
    if not isinstance(values, dict):
        raise ValueError(f'{cls.__name__} must be a JSON object, got {values!r}')
    known = {field.name: field for field in fields(cls)}
    checked = {}
    for name, value in values.items():
        if name not in known:
            raise ValueError(f'{cls.__name__} has no field {name!r}')
        default = known[name].default
        wanted = int if default is MISSING else type(default)
        allowed = (int, float) if wanted is float else wanted
        wrong_bool = isinstance(value, bool) and wanted is not bool
        if not is_dataclass(value) and (wrong_bool or not isinstance(value, allowed)):
            raise ValueError(f'{name} must be {wanted.__name__}, got {value!r}')
        checked[name] = float(value) if wanted is float else value
    return cls(**checked)


def _read(path: Path) -> dict:
    try:
        given = json.loads(path.read_text())
    except FileNotFoundError:
        names = ', '.join(SOURCES)
        raise ValueError(f'no configuration {path}: give {names}, or a JSON file') from None
    except ValueError as error:
        raise ValueError(f'{path} is no JSON: {error}') from None
    if not isinstance(given, dict):
        raise ValueError(f'{path} holds no JSON object')
    for name, value in given.items():
        if name not in PARTS:
            raise ValueError(f'{path}: no part {name!r}, there are {", ".join(PARTS)}')
        if name in ('world_model', 'trainer') and not isinstance(value, dict):
            raise ValueError(f'{path}: {name} must be a JSON object, got {value!r}')
    return given
