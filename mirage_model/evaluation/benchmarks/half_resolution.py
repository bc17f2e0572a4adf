"""Measure quality and time of candidates at half resolution, against full resolution.

``mirage bench half-resolution`` records trajectories through the validation maps, starts from the
first frame with its true depth, prints the metrics and writes them to out/bench/half.json. The
full frames are also compared at half the size, so that both are judged on the same pixels; the
half ones also at the full size, enlarged.
"""

from __future__ import annotations

import sys
from typing import Literal

from jaxtyping import Float
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mirage_model.clip import Clip
from mirage_model.data.record import maps_of, record_trajectory
from mirage_model.engine.engine import Engine
from mirage_model.evaluation.benchmarks.goals import Metric, report
from mirage_model.evaluation.config import HalfResolutionConfig
from mirage_model.evaluation.rollout_quality import KINDS
from mirage_model.interface import CandidatesRequest, Observation, Trajectory
from mirage_model.metrics import psnr


def validation_trajectory(index: int, frames: int) -> Clip:
    """Record trajectory ``index`` through the validation maps."""
    maps, kind = maps_of('validation'), KINDS[index % len(KINDS)]
    map_name = maps[index % len(maps)]
    name = f'{index:03d}-{map_name}-{kind}'
    return record_trajectory(map_name, kind, frames=frames, seed=20_000 + index, name=name)


def seed(engine: Engine, clip: Clip) -> None:
    depth = clip.depth[0].where(clip.valid[0], torch.nan)
    engine.seed(
        Observation(
            image=clip.frames[0].numpy(),
            K=clip.cameras.K[0].numpy(),
            world_from_camera=clip.cameras.world_from_camera[0].double().numpy(),
            time=float(clip.cameras.times[0]),
            depth=depth.float().numpy(),
        )
    )


def imagined(
    engine: Engine, clip: Clip, resolution: Literal['full', 'half']
) -> tuple[Float[Tensor, 'n 3 h w'], list[float]]:
    """Return the frames after the first, and the time of each chunk [s]."""
    path = Trajectory(
        world_from_camera=clip.cameras.world_from_camera[1:].double().numpy(),
        times=clip.cameras.times[1:].double().numpy(),
    )
    asked = CandidatesRequest(
        request_id='', trajectories=(path,), seeds=(0,), resolution=resolution
    )
    (candidate,) = engine.imagine_candidates(asked)
    frames = torch.from_numpy(np.concatenate([chunk.frames for chunk in candidate.chunks]))
    return as_batch(frames), [chunk.seconds for chunk in candidate.chunks]


def as_batch(frames: Tensor) -> Float[Tensor, 'n 3 h w']:
    return frames.permute(0, 3, 1, 2).float() / 255


def halved(frames: Float[Tensor, 'n 3 h w']) -> Float[Tensor, 'n 3 h2 w2']:
    return F.interpolate(frames, scale_factor=0.5, mode='area')


def measure(drives: int, frames: int) -> list[Metric]:
    engine = Engine.from_folder()
    engine.warm()
    rows: dict[str, list[float]] = {}
    seconds: dict[Literal['full', 'half'], list[float]] = {'full': [], 'half': []}
    for index in range(drives):
        print(f'\rdrive {index + 1} of {drives}', end='', file=sys.stderr, flush=True)
        clip = validation_trajectory(index, frames)
        seed(engine, clip)
        truth = as_batch(clip.frames[1:])
        made = {}
        for resolution, took in seconds.items():
            made[resolution], each = imagined(engine, clip, resolution)
            took += each
        enlarged = F.interpolate(made['half'], truth.shape[-2:], mode='bilinear')
        repeated = as_batch(clip.frames[:1]).expand_as(truth)
        for name, value in (
            ('full size, against the true frames', psnr(made['full'], truth)),
            ('half size enlarged, against the true frames', psnr(enlarged, truth)),
            ('full size, both halved', psnr(halved(made['full']), halved(truth))),
            ('half size, against the true frames halved', psnr(made['half'], halved(truth))),
            ('the first frame repeated, both halved', psnr(halved(repeated), halved(truth))),
        ):
            rows.setdefault(name, []).append(value)
    print(file=sys.stderr)
    metrics = [
        Metric(name=f'PSNR, dB: {name}', value=float(np.mean(values)), goal=None)
        for name, values in rows.items()
    ]
    full, half = (float(np.median(seconds[resolution])) for resolution in ('full', 'half'))
    ratio = Metric(
        name='a chunk, full against half size, times',
        value=full / half,
        goal=None,
        seconds=(full, half),
    )
    return [*metrics, ratio]


def main(config: HalfResolutionConfig) -> int:
    """Measure, print and write the metrics; return 1 where a goal is missed."""
    metrics = measure(config.trajectories, config.frames)
    about = {
        'drives': config.trajectories,
        'frames_each': config.frames,
        'maps': maps_of('validation'),
    }
    return report(metrics, config.out, about)
