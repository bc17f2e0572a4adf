"""Compare models, or settings of a model, on the same trajectories: ``mirage evaluate compare``.

All variants imagine the same trajectories from the same seed frames with the same noise, so that
differences are paired. Finished trajectories are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
import json
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from mirage_model.clip import Clip
from mirage_model.evaluation.config import RolloutComparisonConfig
from mirage_model.evaluation.rollout_quality import first_part, imagine, summarise, trajectory
from mirage_model.io import begin_run, write_json
from mirage_model.memory.latent import LatentMemory, MemoryConfig
from mirage_model.metrics import psnr
from mirage_model.model.checkpoint import Model, load_model
from mirage_model.process_pool import in_workers

SETTINGS = ('steps', 'references', 'preceding')
"""Fields of `ModelConfig` that a variant may set."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A model folder, with other settings."""

    label: str
    folder: Path
    settings: dict[str, Any]


def parse_variant(text: str) -> Variant:
    """Return the variant of 'FOLDER' or 'FOLDER:field=value,...'.

    Raises:
        ValueError: A field is unknown, or a value is not an integer.
    """
    folder, _, rest = text.partition(':')
    settings = {}
    for part in filter(None, rest.split(',')):
        name, _, value = part.partition('=')
        if name not in SETTINGS or not value.isdecimal():
            raise ValueError(
                f'variants: {part!r} of {text!r} is not a setting, needed is a whole number for '
                f'one of {", ".join(SETTINGS)}'
            )
        settings[name] = int(value)
    return Variant(label=text, folder=Path(folder), settings=settings)


@cache
def _loaded(folder: Path) -> Model:
    return load_model(folder)


def load_variant(variant: Variant) -> Model:
    """Load a variant; raise ValueError as `load_model` does, and for settings that do not fit."""
    model = _loaded(variant.folder)
    return replace(model, config=replace(model.config, **variant.settings))


@torch.no_grad()
def measure(model: Model, clip: Clip, *, seed: int) -> dict[str, Any]:
    """Return PSNR of a rollout [dB], and its seconds a chunk."""
    memory = LatentMemory(
        MemoryConfig(channels=model.codec.channels, splat_size=model.config.splat_size)
    )
    imagined = imagine(model, clip, memory, seed=seed)
    truth = clip.frames[1:].permute(0, 3, 1, 2).float() / 255
    starts = range(0, len(truth), model.new_frames)
    chunks = [
        psnr(imagined.frames[at : at + model.new_frames], truth[at : at + model.new_frames])
        for at in starts
    ]
    returns = 'out_and_back' in clip.name
    return {
        'psnr_db': psnr(imagined.frames, truth),
        'covered_psnr_db': psnr(imagined.frames, truth, imagined.covered),
        'loop_psnr_db': psnr(imagined.frames[-1:], truth[-1:]) if returns else float('nan'),
        'chunk_psnr_db': chunks,
        'chunk_s': imagined.seconds / len(chunks),
    }


def measure_trajectory(config: RolloutComparisonConfig, index: int, path: Path) -> None:
    """Measure all variants on one trajectory, and write their metrics."""
    variants = [parse_variant(text) for text in config.variants]
    models = [load_variant(variant) for variant in variants]
    new = models[0].new_frames
    clip = trajectory(index, config.chunks * new + 1, world=config.world)
    results = [
        measure(model, first_part(clip, config.chunks * model.new_frames + 1), seed=index)
        for model in models
    ]
    write_json(path, dict(zip(config.variants, results, strict=True)))


def compare(results: Sequence[dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Return means and standard errors of each variant, and of its differences to the first."""
    summary: dict[str, dict[str, Any]] = {}
    first = next(iter(results[0]))
    for label in results[0]:
        summary[label] = summarise([result[label] for result in results])
        if label != first:
            summary[label]['over_first'] = summarise(
                [_difference(result[label], result[first]) for result in results]
            )
    return summary


def _difference(result: dict[str, Any], first: dict[str, Any]) -> dict[str, Any]:
    """Return the differences of two results of a trajectory."""
    names = [name for name in result if name != 'chunk_s']
    values = {name: np.array(result[name], float) - np.array(first[name], float) for name in names}
    return {name: value.tolist() for name, value in values.items()}


def to_markdown(summary: dict[str, dict[str, Any]]) -> str:
    """Return a table of PSNR, and one of differences to the first variant, each with its error."""
    labels = list(summary)
    chunks = range(1, len(summary[labels[0]]['chunk_psnr_db']) + 1)
    head = [*(f'chunk {number}' for number in chunks), 'all', 'covered', 'out and back']
    lines = [f'| PSNR, dB | {" | ".join(head)} | s a chunk |', '|---' * (len(head) + 2) + '|']
    for label in labels:
        seconds = f'{summary[label]["chunk_s"]:.2f}'
        lines.append(f'| {label} | {" | ".join(_cells(summary[label]))} | {seconds} |')
    if len(labels) > 1:
        lines += ['', f'| over {labels[0]}, dB | {" | ".join(head)} |']
        lines.append('|---' * (len(head) + 1) + '|')
        for label in labels[1:]:
            cells = _cells(summary[label]['over_first'], sign='+')
            lines.append(f'| {label} | {" | ".join(cells)} |')
    return '\n'.join(lines) + '\n'


def _cells(summary: dict[str, Any], *, sign: str = '') -> list[str]:
    pairs = list(zip(summary['chunk_psnr_db'], summary['chunk_psnr_db_se'], strict=True))
    for name in ('psnr_db', 'covered_psnr_db', 'loop_psnr_db'):
        pairs.append((summary[name], summary[f'{name}_se']))
    return ['–' if isnan(mean) else f'{mean:{sign}.2f} ± {error:.2f}' for mean, error in pairs]


def main(config: RolloutComparisonConfig) -> int:
    """Measure the trajectories that are not measured yet, and print the tables."""
    models = [load_variant(parse_variant(text)) for text in config.variants]
    if len({model.new_frames for model in models}) > 1:
        raise ValueError('variants: their chunks have different lengths, which cannot be paired')
    shas = {t: model.sha256 for t, model in zip(config.variants, models, strict=True)}
    settings = {'chunks': config.chunks, 'world': config.world, 'sha256': shas}
    begin_run(config.out / 'config.json', settings)
    paths = [config.out / f'{index:03d}.json' for index in range(config.trajectories)]
    missing = [(config, i, path) for i, path in enumerate(paths) if not path.exists()]
    with tqdm(total=len(paths), initial=len(paths) - len(missing), unit='trajectory') as bar:
        for _ in in_workers(measure_trajectory, missing, workers=config.workers):
            bar.update()
    summary = compare([json.loads(path.read_text()) for path in paths])
    write_json(config.out / 'comparison.json', {'n': len(paths), **settings, 'variants': summary})
    text = to_markdown(summary)
    (config.out / 'comparison.md').write_text(text)
    print(text)
    return 0
