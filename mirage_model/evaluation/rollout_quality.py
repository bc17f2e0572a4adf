"""Measure mirage-tiny on scenes that it was not trained on: ``mirage evaluate tiny``.

Three sets: trajectories through test maps of Doom and through test houses, and first chunks in a
folder of posed RGB-D frames. The seed frame comes with true depth, later depth is estimated. The
baselines run on the same trajectories: warp and inpaint, the first guess, an empty memory, the
seed frame repeated, its mean colour, and the codec. Finished trajectories are kept, so that an
interrupted run continues.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cache
import hashlib
import json
from pathlib import Path
import time

import cv2
from jaxtyping import Bool, Float
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mirage_model.clip import Clip, labels
from mirage_model.data.record import maps_of, record_trajectory
from mirage_model.evaluation.baselines import flat_colour, repeat_seed, warp_and_inpaint
from mirage_model.evaluation.config import RolloutQualityConfig
from mirage_model.evaluation.office import read_office
from mirage_model.io import as_json, write_json
from mirage_model.memory import Memory
from mirage_model.memory.baselines.none import NoMemory
from mirage_model.memory.latent import LatentMemory, MemoryConfig
from mirage_model.metrics import gradient_energy, psnr
from mirage_model.model.checkpoint import EMBEDDED, Model, ModelConfig, load_model
from mirage_model.model.resampler import Resampler
from mirage_model.model.rollout import rollout
from mirage_model.process_pool import in_workers
from mirage_model.write_filter import WriteFilterConfig, write_frames

KINDS = ('turn', 'forward', 'out_and_back')
BINS = 10
"""Bins of coverage, each a tenth wide."""


@dataclass(frozen=True, kw_only=True)
class Imagined:
    """Frames (n, 3, H, W) after the seed, and what the memory covered of each, at pixels."""

    frames: Float[Tensor, 'n 3 H W']
    covered: Bool[Tensor, 'n H W']
    observed: Bool[Tensor, 'n H W']
    seconds: float
    """Time of all chunks."""


@dataclass(frozen=True, kw_only=True)
class TrajectoryJob:
    """One trajectory to measure."""

    name: str
    """Set that it belongs to: doom, houses or office."""
    index: int
    frames: int
    office: Path | None = None
    count: int = 1
    """Number of trajectories in the set."""


def trajectory(index: int, frames: int, *, world: str = 'doom') -> Clip:
    """Return the trajectory at ``index`` of a world's manifest."""
    maps = maps_of('test', world)
    map_name, kind = maps[index // len(KINDS) % len(maps)], KINDS[index % len(KINDS)]
    name = f'{index:03d}-{map_name}-{kind}'
    return record_trajectory(map_name, kind, frames=frames, seed=10_000 + index, name=name)


def _clip(job: TrajectoryJob, config: ModelConfig) -> Clip:
    if job.office is None:
        world = {'doom': 'doom', 'houses': 'rooms'}[job.name]
        return trajectory(job.index, job.frames, world=world)
    clips = read_office(
        job.office,
        count=job.count,
        frames=config.chunk_frames,
        height=config.height,
        width=config.width,
        rate=config.frame_rate,
    )
    return clips[job.index]


def imagine(model: Model, clip: Clip, memory: Memory, *, seed: int) -> Imagined:
    """Seed the memory with the first frame and its true depth, then imagine all the others."""
    frames = clip.frames.permute(0, 3, 1, 2).float() / 255
    seed_frame = labels(clip, slice(0, 1))
    write_frames(memory, frames[:1], seed_frame, codec=model.codec, observed=True)
    start = time.perf_counter()
    chunks = list(
        rollout(
            model,
            memory,
            frames[:1],
            clip.cameras[:1],
            clip.cameras[1:],
            steps=model.config.steps,
            generator=torch.Generator().manual_seed(seed),
            context_depth=seed_frame.depth_with_sky(),
        )
    )
    seconds = time.perf_counter() - start
    stride = model.codec.spatial_stride

    def at_pixels(cells: list[Tensor]) -> Tensor:
        return torch.cat(cells).repeat_interleave(stride, 1).repeat_interleave(stride, 2)

    return Imagined(
        frames=torch.cat([chunk.frames for chunk in chunks]),
        covered=at_pixels([chunk.readout.visible for chunk in chunks]),
        observed=at_pixels([chunk.readout.observed for chunk in chunks]),
        seconds=seconds,
    )


def chroma(frames: Tensor) -> Tensor:
    return frames[:, [0, 2]] - frames[:, [1]]


def first_chunk(
    name: str,
    frames: Float[Tensor, 'n 3 H W'],
    truth: Float[Tensor, 'n 3 H W'],
    observed: Bool[Tensor, 'n H W'],
) -> dict[str, float]:
    """Return the PSNR of a first chunk over all pixels, observed pixels and the others."""
    prefix = f'{name}_' if name else ''
    return {
        f'{prefix}first_psnr_db': psnr(frames, truth),
        f'{prefix}first_observed_psnr_db': psnr(frames, truth, observed),
        f'{prefix}first_holes_psnr_db': psnr(frames, truth, ~observed),
    }


def colour_ratios(frames: Tensor, truth: Tensor) -> Float[Tensor, '3']:
    """Return mean red, green and blue over the true means."""
    return frames.mean(dim=(0, 2, 3)) / truth.mean(dim=(0, 2, 3))


def by_coverage(imagined: Imagined, truth: Float[Tensor, 'n 3 H W'], chunk: slice) -> list[float]:
    """Return the PSNR of a chunk's frames by coverage, NaN for an empty bin."""
    share = imagined.covered[chunk].float().mean(dim=(1, 2))
    bins = (share * BINS).long().clamp(max=BINS - 1)
    frames, truth = imagined.frames[chunk], truth[chunk]
    return [psnr(frames[bins == number], truth[bins == number]) for number in range(BINS)]


def measure(
    model: Model, clip: Clip, index: int, *, before: Model | None = None
) -> tuple[dict, list[Tensor]]:
    """Return metrics of a trajectory, and its images in rows: true, imagined, empty memory, codec
    and warp.

    Args:
        before: A second model, compared on the first chunk and by its speed.
    """
    imagined = imagine(model, clip, _memory(model), seed=index)
    empty = imagine(model, clip, NoMemory(model.codec.channels), seed=index)
    frames = clip.frames.permute(0, 3, 1, 2).float() / 255
    truth, new = frames[1:], model.new_frames
    known = clip.depth[0].masked_fill(clip.moving[0], torch.nan)
    warp = warp_and_inpaint(frames[0], known, clip.cameras[:1], clip.cameras[1:])
    start = first_part(clip, new + 1)
    baselines = {
        '': imagined.frames,
        'warp': warp,
        'guess': imagined.frames,
        'empty': empty.frames,
        'repeat': repeat_seed(frames[0], new),
        'flat': flat_colour(frames[0], new),
    }
    if model.resampler is None:
        del baselines['guess']
    else:
        plain = Resampler.of_codec(model.codec, ()).to(model.device)
        guess_model = replace(model, backbone=None, scheduler=None, resampler=plain)
        baselines['guess'] = imagine(guess_model, start, _memory(model), seed=index).frames
    speeds = {
        'frames_per_second': len(truth) / imagined.seconds,
        'frames_per_second_before': float('nan'),
    }
    if before is not None:
        other = imagine(before, start, _memory(before), seed=index)
        baselines['before'] = other.frames
        speeds['frames_per_second_before'] = new / other.seconds
    codec = torch.cat(
        [
            model.codec.decode(model.codec.encode(frames[None, at : at + new + 1]))[0, 1:].clamp(
                0, 1
            )
            for at in range(0, len(truth), new)
        ]
    )
    chunks = [slice(at, at + new) for at in range(0, len(truth), new)]
    first: dict[str, float] = {}
    for name, shown in baselines.items():
        first |= first_chunk(name, shown[:new], truth[:new], imagined.observed[:new])
    observed = imagined.observed[:new]
    metrics = {
        **first,
        **speeds,
        'gradient_ratio_observed': gradient_energy(imagined.frames[:new], observed)
        / gradient_energy(codec[:new], observed),
        'codec_gradient_ratio': gradient_energy(codec) / gradient_energy(truth),
        'imagined_psnr_db': psnr(imagined.frames, truth),
        'empty_memory_psnr_db': psnr(empty.frames, truth),
        'repeat_seed_psnr_db': psnr(repeat_seed(frames[0], len(truth)), truth),
        'warp_psnr_db': psnr(warp, truth),
        'codec_psnr_db': psnr(codec, truth),
        'codec_chroma_ratio': float(
            (chroma(codec) - chroma(truth)).abs().mean() / chroma(truth).abs().mean()
        ),
        'coverage': float(imagined.covered.float().mean()),
        'covered_psnr_db': psnr(imagined.frames, truth, imagined.covered),
        'covered_codec_psnr_db': psnr(codec, truth, imagined.covered),
        'codec_first_observed_psnr_db': psnr(codec[:new], truth[:new], observed),
        'gradient_energy_ratio': gradient_energy(imagined.frames) / gradient_energy(codec),
        'mean_colour_ratio': (colour := colour_ratios(imagined.frames, truth)).tolist(),
        'mean_colour_error': float((colour - 1).abs().mean()),
        'contrast_ratio': (contrast := float(imagined.frames.std() / truth.std())),
        'contrast_error': abs(contrast - 1),
        'chunk_psnr_db': [psnr(imagined.frames[s], truth[s]) for s in chunks],
    }
    metrics['coverage_bins_psnr_db'] = by_coverage(imagined, truth, slice(None))
    if len(chunks) > 2:
        second, last = (by_coverage(imagined, truth, chunk) for chunk in (chunks[1], chunks[-1]))
        fall = np.array(last) - np.array(second)
        fall = fall[~np.isnan(fall)]
        metrics['second_chunk_bins_psnr_db'] = second
        metrics['last_chunk_bins_psnr_db'] = last
        metrics['last_over_second_chunk_db'] = float(fall.mean()) if len(fall) else float('nan')
    returns = 'out_and_back' in clip.name
    for name, rolled in (('loop', imagined), ('loop_empty', empty)):
        metrics[f'{name}_psnr_db'] = (
            psnr(rolled.frames[-1:], frames[:1]) if returns else float('nan')
        )
    metrics |= perception_metrics(model, clip)
    rows = [truth, imagined.frames, empty.frames, codec, warp]
    return metrics, [row[[*range(3, len(truth), max(1, len(truth) // 6))]] for row in rows]


def _memory(model: Model) -> LatentMemory:
    return LatentMemory(
        MemoryConfig(channels=model.codec.channels, splat_size=model.config.splat_size)
    )


def first_part(clip: Clip, frames: int) -> Clip:
    """Return the first frames of a clip."""
    at = slice(0, frames)
    return replace(
        clip,
        frames=clip.frames[at],
        cameras=clip.cameras[at],
        depth=clip.depth[at],
        sky=clip.sky[at],
        moving=clip.moving[at],
    )


def perception_metrics(model: Model, clip: Clip) -> dict:
    """Return relative depth error and IoU of sky and dynamic objects, on true frames without a
    memory."""
    at = slice(0, None, 16)
    frames = clip.frames[at].permute(0, 3, 1, 2).float() / 255
    seen = model.perception.estimate(frames, clip.cameras[at])
    truth = clip.depth[at]
    known = ~truth.isnan() & ~seen.depth.isnan()
    known &= seen.confidence >= WriteFilterConfig().min_confidence

    def iou(a: Tensor, b: Tensor) -> float:
        union = (a | b).sum()
        return float((a & b).sum() / union) if union else float('nan')

    constant = truth[known].median()
    return {
        'depth_abs_rel': float(((seen.depth - truth).abs() / truth)[known].mean()),
        'depth_constant_abs_rel': float(((constant - truth).abs() / truth)[known].mean()),
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
    rows = ['| metric | mean | standard error |', '|---|---|---|']
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


def evaluate_trajectory(folder: Path, before: Path | None, job: TrajectoryJob, done: Path) -> None:
    """Measure one trajectory; write its metrics and images."""
    model = _model(folder)
    clip = _clip(job, model.config)
    with torch.no_grad():
        other = None if before is None else _model(before)
        metrics, rows = measure(model, clip, job.index, before=other)
    image = torch.cat([torch.cat(list(row), dim=-1) for row in rows], dim=-2)
    bgr = (image.permute(1, 2, 0).numpy()[..., ::-1] * 255).astype(np.uint8)
    cv2.imwrite(str(done / f'{job.name}-{clip.name}.png'), bgr)
    write_json(_metrics_path(done, job), metrics)


def _identity(model: Model, before: Path | None) -> str:
    """Return twelve digits that depend on weights and settings."""
    scheduler = None if model.scheduler is None else dict(model.scheduler.config)
    parts = [model.sha256, asdict(model.config), scheduler, str(before)]
    return hashlib.sha256(as_json(parts).encode()).hexdigest()[:12]


def _metrics_path(done: Path, job: TrajectoryJob) -> Path:
    return done / f'{job.name}-{job.index:03d}.json'


def _jobs(config: RolloutQualityConfig) -> dict[str, list[TrajectoryJob]]:
    """Return the jobs of each set that is asked for."""
    counts = {'doom': config.trajectories, 'houses': config.houses}
    jobs = {
        name: [
            TrajectoryJob(name=name, index=index, frames=config.frames) for index in range(count)
        ]
        for name, count in counts.items()
    }
    if config.office is not None:
        count = config.office_starts
        jobs['office'] = [
            TrajectoryJob(name='office', index=index, frames=0, office=config.office, count=count)
            for index in range(count)
        ]
    return {name: of_set for name, of_set in jobs.items() if of_set}


def main(config: RolloutQualityConfig) -> int:
    """Measure what is not measured yet; write the summary; return the exit status."""
    folder = config.model or EMBEDDED
    model = _model(folder)
    done = config.out / f'tiny-{_identity(model, config.before)}-{config.frames}'
    done.mkdir(parents=True, exist_ok=True)
    sets = _jobs(config)
    everything = [job for jobs in sets.values() for job in jobs]
    missing = [
        (folder, config.before, job, done)
        for job in everything
        if not _metrics_path(done, job).exists()
    ]
    finished = len(everything) - len(missing)
    with tqdm(total=len(everything), initial=finished, unit='trajectory') as bar:
        for _ in in_workers(evaluate_trajectory, missing, workers=config.workers):
            bar.update()
    summary: dict = {
        'model': model.config.name,
        'sha256': model.sha256,
        'frames_each': config.frames,
    }
    tables = []
    for name, jobs in sets.items():
        results = [json.loads(_metrics_path(done, job).read_text()) for job in jobs]
        summary[name] = {'n': len(results), **summarise(results)}
        tables.append(f'## {name}, {len(results)}\n\n{to_markdown(summary[name])}')
    write_json(config.out / 'tiny.json', summary)
    text = '\n'.join(tables)
    (config.out / 'tiny.md').write_text(text)
    print(text)
    return 0
