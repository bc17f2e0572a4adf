"""Measure mirage-tiny on maps that it was not trained on: ``mirage evaluate tiny``.

A seeded manifest of drives through the test maps: turning, driving forward, out and back. The seed
frame comes with true depth, all later depth is the model's own. Baselines in the same run: the
same model with an empty memory, the seed frame repeated, and the codec's reconstruction of the
true frames. Finished trajectories are kept, so that an interrupted run goes on.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cache
import hashlib
import json
from pathlib import Path

import cv2
from jaxtyping import Bool, Float
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mirage_model.clip import Clip
from mirage_model.data.record import maps_of, record_drive
from mirage_model.evaluation.config import RolloutQualityConfig
from mirage_model.io import as_json, write_json
from mirage_model.labels import labels
from mirage_model.memory import Memory
from mirage_model.memory.baselines.none import NoMemory
from mirage_model.memory.latent import LatentMemory, MemoryConfig
from mirage_model.metrics import psnr
from mirage_model.model.checkpoint import EMBEDDED, Model, load_model
from mirage_model.model.rollout import rollout
from mirage_model.process_pool import in_workers
from mirage_model.write_filter import write_frames

KINDS = ('turn', 'forward', 'out_and_back')
BINS = 10
"""Bins of coverage, each a tenth wide."""


@dataclass(frozen=True, kw_only=True)
class Imagined:
    """Frames (n, 3, H, W) after the seed, and what the memory covered of each, at pixels."""

    frames: Float[Tensor, 'n 3 H W']
    covered: Bool[Tensor, 'n H W']


def trajectory(index: int, frames: int) -> Clip:
    """Record trajectory ``index`` of the manifest."""
    maps = maps_of('test')
    map_name, kind = maps[index // len(KINDS) % len(maps)], KINDS[index % len(KINDS)]
    name = f'{index:03d}-{map_name}-{kind}'
    return record_drive(map_name, kind, frames=frames, seed=10_000 + index, name=name)


def imagine(model: Model, clip: Clip, memory: Memory, *, seed: int) -> Imagined:
    """Seed the memory with the first frame and its true depth, then imagine all the others."""
    frames = clip.frames.permute(0, 3, 1, 2).float() / 255
    seed_frame = labels(clip, slice(0, 1))
    write_frames(memory, frames[:1], seed_frame, codec=model.codec, observed=True)
    chunks = list(
        rollout(
            model,
            memory,
            frames[:1],
            clip.cameras[:1],
            clip.cameras[1:],
            steps=model.config.steps,
            generator=torch.Generator().manual_seed(seed),
        )
    )
    stride = model.codec.spatial_stride
    covered = torch.cat([chunk.readout.visible for chunk in chunks])
    return Imagined(
        frames=torch.cat([chunk.frames for chunk in chunks]),
        covered=covered.repeat_interleave(stride, 1).repeat_interleave(stride, 2),
    )


def chroma(frames: Tensor) -> Tensor:
    return frames[:, [0, 2]] - frames[:, [1]]


def gradient_energy(frames: Tensor) -> float:
    horizontal, vertical = frames.diff(dim=-1).square().mean(), frames.diff(dim=-2).square().mean()
    return float(horizontal + vertical)


def colour_ratios(frames: Tensor, truth: Tensor) -> Float[Tensor, '3']:
    """Return mean red, green and blue over the true means."""
    return frames.mean(dim=(0, 2, 3)) / truth.mean(dim=(0, 2, 3))


def by_coverage(imagined: Imagined, truth: Float[Tensor, 'n 3 H W'], chunk: slice) -> list[float]:
    """Return the PSNR of a chunk's frames by coverage, NaN for an empty bin."""
    share = imagined.covered[chunk].float().mean(dim=(1, 2))
    bins = (share * BINS).long().clamp(max=BINS - 1)
    frames, truth = imagined.frames[chunk], truth[chunk]
    return [psnr(frames[bins == number], truth[bins == number]) for number in range(BINS)]


def measure(model: Model, clip: Clip, index: int) -> tuple[dict, list[Tensor]]:
    """Return metrics of a trajectory, and rows of images: true, imagined, empty memory, codec."""
    channels = model.codec.channels
    config = MemoryConfig(channels=channels, splat_size=model.config.splat_size)
    imagined = imagine(model, clip, LatentMemory(config), seed=index)
    empty = imagine(model, clip, NoMemory(channels), seed=index)
    frames = clip.frames.permute(0, 3, 1, 2).float() / 255
    truth, new = frames[1:], model.new_frames
    codec = torch.cat(
        [
            model.codec.decode(model.codec.encode(frames[None, at : at + new + 1]))[0, 1:].clamp(
                0, 1
            )
            for at in range(0, len(truth), new)
        ]
    )
    chunks = [slice(at, at + new) for at in range(0, len(truth), new)]
    figures = {
        'imagined_psnr_db': psnr(imagined.frames, truth),
        'empty_memory_psnr_db': psnr(empty.frames, truth),
        'repeat_seed_psnr_db': psnr(frames[:1].expand_as(truth), truth),
        'codec_psnr_db': psnr(codec, truth),
        'codec_chroma_ratio': float(
            (chroma(codec) - chroma(truth)).abs().mean() / chroma(truth).abs().mean()
        ),
        'coverage': float(imagined.covered.float().mean()),
        'covered_psnr_db': psnr(imagined.frames, truth, imagined.covered),
        'covered_codec_psnr_db': psnr(codec, truth, imagined.covered),
        'covered_first_chunk_psnr_db': psnr(
            imagined.frames[:new], truth[:new], imagined.covered[:new]
        ),
        'covered_first_chunk_codec_psnr_db': psnr(
            codec[:new], truth[:new], imagined.covered[:new]
        ),
        'gradient_energy_ratio': gradient_energy(imagined.frames) / gradient_energy(codec),
        'mean_colour_ratio': (colour := colour_ratios(imagined.frames, truth)).tolist(),
        'mean_colour_error': float((colour - 1).abs().mean()),
        'contrast_ratio': (contrast := float(imagined.frames.std() / truth.std())),
        'contrast_error': abs(contrast - 1),
        'chunk_psnr_db': [psnr(imagined.frames[s], truth[s]) for s in chunks],
    }
    figures['coverage_bins_psnr_db'] = by_coverage(imagined, truth, slice(None))
    if len(chunks) > 2:
        second, last = (by_coverage(imagined, truth, chunk) for chunk in (chunks[1], chunks[-1]))
        fall = np.array(last) - np.array(second)
        fall = fall[~np.isnan(fall)]
        figures['second_chunk_bins_psnr_db'] = second
        figures['last_chunk_bins_psnr_db'] = last
        figures['last_over_second_chunk_db'] = float(fall.mean()) if len(fall) else float('nan')
    if 'out_and_back' in clip.name:
        figures['closed_loop_psnr_db'] = psnr(imagined.frames[-1:], frames[:1])
        figures['closed_loop_empty_psnr_db'] = psnr(empty.frames[-1:], frames[:1])
    figures |= perception_figures(model, clip)
    rows = [truth, imagined.frames, empty.frames, codec]
    return figures, [row[[*range(3, len(truth), max(1, len(truth) // 6))]] for row in rows]


def perception_figures(model: Model, clip: Clip) -> dict:
    """Return relative depth error and IoU of sky and dynamic objects, on true frames without a
    memory."""
    at = slice(0, None, 16)
    frames = clip.frames[at].permute(0, 3, 1, 2).float() / 255
    seen = model.perception.estimate(frames, clip.cameras[at])
    truth = clip.depth[at]
    known = ~truth.isnan() & ~seen.depth.isnan()

    def iou(a: Tensor, b: Tensor) -> float:
        union = (a | b).sum()
        return float((a & b).sum() / union) if union else float('nan')

    return {
        'depth_abs_rel': float(((seen.depth - truth).abs() / truth)[known].mean()),
        'sky_iou': iou(seen.sky, clip.sky[at]),
        'mover_iou': iou(seen.moving, clip.moving[at]),
    }


def summarise(results: list[dict]) -> dict:
    """Return means over trajectories and their standard errors, NaN where there are no values."""
    summary: dict = {}
    for key in {key: None for result in results for key in result}:
        values = np.array([r[key] for r in results if key in r], dtype=np.float64)
        count = (~np.isnan(values)).sum(axis=0)
        mean = np.nansum(values, axis=0) / np.where(count, count, np.nan)
        spread = np.sqrt(
            np.nansum((values - mean) ** 2, axis=0) / np.where(count > 1, count - 1, np.nan)
        )
        summary[key] = mean.tolist()
        summary[f'{key}_se'] = (spread / np.sqrt(np.where(count, count, np.nan))).tolist()
    return summary


def to_markdown(summary: dict) -> str:
    rows = ['| figure | mean | standard error |', '|---|---|---|']
    for key, value in summary.items():
        if isinstance(value, float) and f'{key}_se' in summary:
            rows.append(f'| {key} | {value:.3f} | {summary[key + "_se"]:.3f} |')
        elif f'{key}_se' in summary:
            for number, cells in enumerate(zip(value, summary[f'{key}_se'], strict=True)):
                if not np.isnan(cells[0]):
                    rows.append(f'| {key}[{number}] | {cells[0]:.3f} | {cells[1]:.3f} |')
    return '\n'.join(rows) + '\n'


@cache
def _model(folder: Path) -> Model:
    return load_model(folder)


def evaluate_trajectory(folder: Path, index: int, frames: int, done: Path) -> None:
    """Measure one trajectory; write its metrics and images."""
    clip = trajectory(index, frames)
    with torch.no_grad():
        figures, rows = measure(_model(folder), clip, index)
    image = torch.cat([torch.cat(list(row), dim=-1) for row in rows], dim=-2)
    bgr = (image.permute(1, 2, 0).numpy()[..., ::-1] * 255).astype(np.uint8)
    cv2.imwrite(str(done / f'{clip.name}.png'), bgr)
    write_json(_figures_path(done, index), figures)


def _identity(model: Model) -> str:
    """Return twelve digits that depend on weights and settings."""
    parts = [model.sha256, asdict(model.config), dict(model.scheduler.config)]
    return hashlib.sha256(as_json(parts).encode()).hexdigest()[:12]


def _figures_path(done: Path, index: int) -> Path:
    return done / f'{index:03d}.json'


def main(config: RolloutQualityConfig) -> int:
    """Measure what is not measured yet; write the summary; return the exit status."""
    folder = config.model or EMBEDDED
    model = _model(folder)
    done = config.out / f'tiny-{_identity(model)}-{config.frames}'
    done.mkdir(parents=True, exist_ok=True)
    jobs = [
        (folder, index, config.frames, done)
        for index in range(config.trajectories)
        if not _figures_path(done, index).exists()
    ]
    finished = config.trajectories - len(jobs)
    with tqdm(total=config.trajectories, initial=finished, unit='trajectory') as bar:
        for _ in in_workers(evaluate_trajectory, jobs, workers=config.workers):
            bar.update()
    results = [
        json.loads(_figures_path(done, index).read_text()) for index in range(config.trajectories)
    ]
    summary = {
        'model': model.config.name,
        'sha256': model.sha256,
        'trajectories': len(results),
        'frames_each': config.frames,
        'maps': maps_of('test'),
        **summarise(results),
    }
    write_json(config.out / 'tiny.json', summary)
    (config.out / 'tiny.md').write_text(to_markdown(summary))
    print(to_markdown(summary))
    return 0
